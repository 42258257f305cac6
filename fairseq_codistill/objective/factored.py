"""logit-mse from hidden states: exact, and neither model's N x V logits are needed.

With h and h' the last hidden states of student and peer (rows are tokens), W and W' their output
layers (V x d and V x d'), a bias being one more column beside a hidden state that ends in 1:

    sum_v (z_v - z'_v)^2 = h G h - 2 h C h' + h' G' h'     G = W^T W, C = W^T W', G' = W'^T W'

The three terms cancel, and a large common offset of the logits would leave nothing of float32's
digits.  So the columns of W and W' are centred first, and the offset is counted apart:

    sum_v (z_v - z'_v)^2 = (the same of centred W, W') + V (mean z - mean z')^2

G' belongs to a snapshot, G and C to an update; ``products`` makes them, and whoever calls keeps
them as long as they hold.  Everything is computed in float32 at least, never in TF32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fairseq_codistill.objective.output import Head


@dataclass(frozen=True)
class Own:
    """What one output layer makes alone.

    Attributes:
        head: the layer.
        mean: of its rows.
        gram: product of the centred layer with itself, (d, d).
    """

    head: Head
    mean: Tensor
    gram: Tensor


def own(head: Head) -> Own:
    """Work out what depends on one layer: for a peer once a snapshot, for the student an update."""
    with torch.no_grad(), _in_full(head.weight):
        mean = head.mean()
        gram = mean.new_zeros(len(mean), len(mean))
        for _, part in head.chunks(mean):
            gram.addmm_(part.T, part)
    return Own(head, mean, gram)


def cross(student: Own, peer: Own) -> Tensor:
    """Give the product of two centred layers, (d, d'), once an update and peer."""
    if len(student.head) != len(peer.head):
        raise ValueError(
            f"output layers of {len(student.head)} and {len(peer.head)} classes cannot be compared"
        )
    with torch.no_grad(), _in_full(student.head.weight):
        product = student.gram.new_zeros(len(student.mean), len(peer.mean))
        both = zip(student.head.chunks(student.mean), peer.head.chunks(peer.mean), strict=True)
        for (_, mine), (_, other) in both:
            product.addmm_(mine.T, other.to(mine.dtype))
    return product


@dataclass(frozen=True)
class PeerOutput:
    """What a peer says of a batch.

    Attributes:
        hidden: its last hidden states, (N, d').
        own: of its output layer.
        cross: with the student's.
    """

    hidden: Tensor
    own: Own
    cross: Tensor


def factored_logit_mse(
    hidden: Tensor, student: Own, peers: Sequence[PeerOutput], centered: bool = False
) -> Tensor:
    """Sum over the peers of ``logit_mse`` (or ``centered_logit_mse``), without any logits.

    Gradients flow to ``hidden`` and to the weight and bias of the student's layer.

    Args:
        hidden: the student's last hidden states, (N, d); leave padding out.
        student: of its output layer as it is now.
        peers: at least one, on the same N rows.
        centered: leave the difference of the logits' means out.

    Returns:
        One number a row, not negative, of shape (N,).
    """
    head = student.head
    return _Factored.apply(hidden, head.weight, head.bias, student, tuple(peers), centered)


class _Factored(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        student: Own,
        peers: tuple[PeerOutput, ...],
        centered: bool,
    ) -> Tensor:
        classes = len(student.head)
        with _in_full(hidden):
            h = student.head.extend(hidden)
            value = h.new_zeros(len(h))
            mine, slope, offsets = h @ student.gram, torch.zeros_like(h), torch.zeros_like(value)
            for peer in peers:
                other = peer.own.head.extend(peer.hidden).to(h.dtype)
                # Half of the gradient by h, and by h': exactly 0 if the models are the same.
                by_h = mine - other @ peer.cross.T
                by_other = other @ peer.own.gram.to(h.dtype) - h @ peer.cross
                squares = (by_h * h).sum(dim=1) + (by_other * other).sum(dim=1)
                value += squares.clamp_(min=0) / classes
                slope += by_h
                if not centered:
                    offset = h @ student.mean - other @ peer.own.mean.to(h.dtype)
                    value += offset.square()
                    offsets += offset
        ctx.student, ctx.peers = student, peers
        ctx.save_for_backward(hidden, weight, bias, slope, offsets)
        return value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        hidden, weight, bias, slope, offsets = ctx.saved_tensors
        student: Own = ctx.student
        classes = len(student.head)
        by_hidden = by_weight = by_bias = None
        with _in_full(hidden):
            each = 2 * grad[:, None]
            if ctx.needs_input_grad[0]:
                by_hidden = each * (slope / classes + offsets[:, None] * student.mean)
                by_hidden = by_hidden[:, : hidden.size(1)].to(hidden.dtype)
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                by_weight, by_bias = _by_layer(ctx, hidden, weight, bias, each, offsets)
        return by_hidden, by_weight, by_bias, None, None, None


def _by_layer(
    ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, each: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Gradient by weight and bias: W A - sum of W' B over the peers, by rows of the layers."""
    student: Own = ctx.student
    peers: tuple[PeerOutput, ...] = ctx.peers
    classes = len(student.head)
    h = student.head.extend(hidden)
    weighed = each * h / classes
    a = len(peers) * (h.T @ weighed)
    b = [peer.own.head.extend(peer.hidden).to(h.dtype).T @ weighed for peer in peers]
    # The mean of the logits is the mean of the rows: each row has the same part in it.
    common = offsets @ weighed
    by_weight = torch.empty_like(weight)
    by_bias = None if bias is None else torch.empty_like(bias)
    others = [peer.own.head.chunks(peer.own.mean) for peer in peers]
    for rows, part in student.head.chunks(student.mean):
        by_rows = torch.addmm(common.expand(len(part), -1), part, a)
        for other, product in zip(others, b, strict=True):
            by_rows.addmm_(next(other)[1].to(h.dtype), product, alpha=-1)
        by_weight[rows] = by_rows[:, : weight.size(1)]
        if by_bias is not None:
            by_bias[rows] = by_rows[:, -1]
    return by_weight, by_bias


@contextmanager
def _in_full(like: Tensor) -> Iterator[None]:
    """Neither autocast nor TF32: the terms cancel."""
    # torch before 2.9 has the first alone, and later ones refuse to read it once the second is set.
    switch: str = "allow_tf32"
    full: bool | str = False
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        switch, full = "fp32_precision", "ieee"
    before = getattr(torch.backends.cuda.matmul, switch)
    setattr(torch.backends.cuda.matmul, switch, full)
    try:
        with torch.autocast(like.device.type, enabled=False):
            yield
    finally:
        setattr(torch.backends.cuda.matmul, switch, before)
