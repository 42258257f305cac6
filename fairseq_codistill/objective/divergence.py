"""Divergences D between a peer's and the student's logits, one number a row.

Each takes two tensors of logits, ``student`` and ``peer``, of one shape (rows, classes), and
gives a float32 tensor (float64 for float64 input) of shape (rows,).  Gradients flow to the
student alone: in Algorithm 1 a peer is a constant.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

Divergence = Callable[[Tensor, Tensor], Tensor]

DIVERGENCES = ("logit-mse", "centered-logit-mse", "kl")


def logit_mse(student: Tensor, peer: Tensor) -> Tensor:
    """Mean over the classes of the squared difference of the raw logits (paper, section 3)."""
    return (_wide(student) - _wide(peer.detach())).square().mean(dim=-1)


def centered_logit_mse(student: Tensor, peer: Tensor) -> Tensor:
    """``logit_mse`` after each row's mean is taken off, so that a common offset costs nothing.

    The softmax does not see such an offset.  The paper reports "similar results" to the raw form.
    """
    # The mean is linear, so the difference can be centred once in place of both logits.
    difference = _wide(student) - _wide(peer.detach())
    return (difference - difference.mean(dim=-1, keepdim=True)).square().mean(dim=-1)


def kl(student: Tensor, peer: Tensor, temperature: float = 1.0) -> Tensor:
    """T^2 KL(softmax(peer / T) || softmax(student / T)), in nats, summed over the classes.

    The divergence of Zhang et al. 2018 and Anil et al. 2018.  The factor T^2 keeps the gradient's
    size when the temperature changes (Hinton et al. 2015).
    """
    student_log_probs = F.log_softmax(_wide(student) / temperature, dim=-1)
    peer_log_probs = F.log_softmax(_wide(peer.detach()) / temperature, dim=-1)
    divergence = F.kl_div(student_log_probs, peer_log_probs, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def make_divergence(name: str, temperature: float = 1.0) -> Divergence:
    """Give the divergence called ``name``.

    Args:
        name: one of ``DIVERGENCES``.
        temperature: for ``kl``, > 0; the others do not look at it.

    Raises:
        ValueError: for another name.
    """
    if name == "logit-mse":
        return logit_mse
    if name == "centered-logit-mse":
        return centered_logit_mse
    if name == "kl":
        return partial(kl, temperature=temperature)
    raise ValueError(f"divergence {name!r} is none of {', '.join(DIVERGENCES)}")


def _wide(logits: Tensor) -> Tensor:
    """Half-precision logits are squared and exponentiated in float32."""
    return logits if logits.dtype == torch.float64 else logits.float()
