"""Cross-entropy, and divergences that need logits, without N x V logits in memory.

Rows are taken some at a time: their logits are made, used and let go.  Cross-entropy computes its
gradient on the way, so nothing is made twice; a divergence makes its logits again for the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fairseq_codistill.objective.divergence import Divergence
from fairseq_codistill.objective.output import Head, Hidden, as_logits

# Logits that are there at one time; as float32, 32 MB.
AT_A_TIME = 2**23

# The gradient by a logit is at most 1 and often below what float16 holds: it is lifted meanwhile.
LIFT = 1024.0
# Half of the largest number of float16.
FLOAT16_ROOM = 2.0**15


def rows_at_a_time(classes: int) -> int:
    """Give how many rows of so many classes make ``AT_A_TIME`` logits; at least 16."""
    return max(16, AT_A_TIME // classes)


def fused_cross_entropy(
    hidden: Tensor, head: Head, target: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Give the cross-entropy of ``hidden``'s logits with ``target``, summed, in nats.

    Args:
        hidden: (N, d); leave padding out.
        head: the output layer.
        target: classes, (N,).
        smoothing: epsilon as fairseq's label_smoothed_cross_entropy has it: each of the V - 1
            other classes gets epsilon / (V - 1).

    Returns:
        The smoothed sum, through which gradients flow to ``hidden`` and to the layer, and the sum
        without smoothing, which is only to look at.  Float32, or float64 for float64 input.
    """
    smoothed, plain = _CrossEntropy.apply(hidden, head.weight, head.bias, target, smoothing)
    return smoothed, plain


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Tensor,
        smoothing: float,
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        lift = LIFT if dtype == torch.float16 else 1.0
        classes = len(weight)
        with torch.autocast(device, enabled=False):
            layer, shift = weight.to(dtype), None if bias is None else bias.to(dtype)
            smoothed = hidden.new_zeros((), dtype=wide)
            plain = smoothed.clone()
            by_hidden = torch.empty_like(hidden, dtype=wide)
            by_weight = torch.zeros_like(weight, dtype=wide)
            by_bias = None if bias is None else torch.zeros_like(bias, dtype=wide)
            for start in range(0, len(hidden), rows_at_a_time(classes)):
                rows = slice(start, start + rows_at_a_time(classes))
                part = hidden[rows].to(dtype)
                logits = F.linear(part, layer, shift).to(wide)
                slope, loss, nll = _slope(logits, target[rows], smoothing)
                smoothed += loss
                plain += nll
                if by_bias is not None:
                    by_bias += slope.sum(dim=0)
                # Half precision for the products alone.
                by_logits = slope.mul_(lift).to(dtype)
                by_hidden[rows] = (by_logits @ layer).to(wide) / lift
                if dtype == wide:
                    by_weight.addmm_(by_logits.T, part)
                elif dtype == torch.float16:
                    shrink = _shrink(by_logits, part)
                    product = by_logits.T @ (part.to(wide) / shrink).to(dtype)
                    by_weight += product.to(wide) * (shrink / lift)
                else:
                    by_weight += (by_logits.T @ part).to(wide)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        ctx.dtypes = hidden.dtype, weight.dtype
        ctx.mark_non_differentiable(plain)
        return smoothed, plain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        by_hidden, by_weight, by_bias = ctx.saved_tensors
        hidden, weight = ctx.dtypes
        grad = grads[0]
        return (
            (by_hidden * grad).to(hidden),
            (by_weight * grad).to(weight),
            None if by_bias is None else (by_bias * grad).to(weight),
            None,
            None,
        )


def _shrink(by_logits: Tensor, part: Tensor) -> Tensor:
    """Give the least power of two to divide ``part`` by, so that no sum over rows is too large.

    A word that is the target of many rows would otherwise have a gradient beyond float16.
    """
    largest = by_logits.abs().sum(dim=0, dtype=torch.float32).amax() * part.abs().amax()
    return (largest / FLOAT16_ROOM).log2().ceil().clamp(min=0).exp2()


def _slope(logits: Tensor, target: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradient by the logits, the smoothed sum and the plain sum; uses up the logits."""
    classes = logits.size(1)
    normaliser = torch.logsumexp(logits, dim=1)
    right = logits.gather(1, target[:, None])
    nll = (normaliser - right[:, 0]).sum()
    loss, each = nll, 0.0
    if smoothing > 0:
        each = smoothing / (classes - 1)
        # The sum over all classes of -log p.
        others = (classes * normaliser - logits.sum(dim=1)).sum()
        loss = (1 - smoothing - each) * nll + each * others
    slope = logits.sub_(normaliser[:, None]).exp_()
    if smoothing > 0:
        slope -= each
    slope.scatter_add_(
        1, target[:, None], slope.new_full((len(target), 1), -(1 - smoothing - each))
    )
    return slope, loss, nll


def chunked(divergence: Divergence, student: Hidden | Tensor, peers: Sequence[Hidden]) -> Tensor:
    """Sum a divergence over the peers, with some rows' logits in memory at a time.

    Args:
        divergence: of two tensors of logits.
        student: its output, or its logits of shape (N, V) if they are there anyway.
        peers: at least one, on the same N rows.

    Returns:
        One number a row, of shape (N,).
    """
    size = rows_at_a_time(len(peers[0].head))
    mine = (student.rows if isinstance(student, Hidden) else student).split(size)
    theirs = zip(*(peer.rows.split(size) for peer in peers), strict=True)

    def of_rows(part: Tensor, *others: Tensor) -> Tensor:
        logits = as_logits(Hidden(part, student.head)) if isinstance(student, Hidden) else part
        terms = [
            divergence(logits, as_logits(Hidden(other, peer.head)))
            for other, peer in zip(others, peers, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)

    parts = [
        checkpoint(of_rows, part, *others, use_reentrant=False, preserve_rng_state=False)
        for part, others in zip(mine, theirs, strict=True)
    ]
    return torch.cat(parts)
