"""logit-mse in half precision: the difference of two models' logits, rounded once.

Logits in float16 or bfloat16 have lost the digits in which two models of one run differ: with a
mean square of 1 and D = 2e-4 bfloat16 leaves two of them.  The inputs of the output layers have
lost nothing, and products of half-precision numbers are added up in float32, so the difference is
made in one product and rounded afterwards,

    z - z' = [h, -h'] [W, W']^T,

with a relative error of one rounding.  This takes N V d products more than two models' logits do.
The layers are taken by rows: no copy of a whole one is made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from fairseq_codistill.objective.output import ROWS, Hidden


def joint_logit_mse(student: Hidden, peers: Sequence[Hidden]) -> Tensor:
    """Sum ``logit_mse`` over the peers.

    Gradients flow to the student's logits where they are there (``student.logits``), and so to
    whatever they were made of; otherwise to its hidden states and its output layer, and N x V
    differences are at no time in memory.

    Args:
        student: its output.
        peers: at least one, on the same N rows, with as many classes.

    Returns:
        One number a row, of shape (N,), in float32 (float64 for float64 input).

    Raises:
        ValueError: if a peer has another number of classes.
    """
    for peer in peers:
        if len(peer.head) != len(student.head):
            raise ValueError(
                f"output layers of {len(student.head)} and {len(peer.head)} classes cannot be "
                "compared"
            )
    head = student.head
    inputs = student.rows, head.weight, head.bias
    if student.logits is None:
        return _OfHidden.apply(*inputs, student, tuple(peers))
    return _OfLogits.apply(student.logits.reshape(len(student.rows), -1), student, tuple(peers))


class _OfLogits(torch.autograd.Function):
    """Where the student's logits are there, as for the cross-entropy: the gradient is by them."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, student: Hidden, peers: tuple[Hidden, ...]) -> Tensor:
        value = logits.new_zeros(len(logits), dtype=_wide(logits))
        total = torch.empty_like(logits)
        for columns, differences in _differences(student, peers):
            value += sum(_squares(difference) for difference in differences)
            total[:, columns] = _sum(differences)
        ctx.save_for_backward(total)
        return value / len(student.head)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (total,) = ctx.saved_tensors
        each = 2 * grads[0][:, None] / total.size(1)
        # Computed in the wider dtype, and written in the other.
        return torch.mul(total, each, out=torch.empty_like(total)), None, None


class _OfHidden(torch.autograd.Function):
    """Where they are not: the differences are made again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        student: Hidden,
        peers: tuple[Hidden, ...],
    ) -> Tensor:
        ctx.student, ctx.peers, ctx.compute = student, peers, _compute(hidden)
        ctx.save_for_backward(hidden, weight, bias)
        value = hidden.new_zeros(len(hidden), dtype=_wide(hidden))
        for _, differences in _differences(student, peers):
            value += sum(_squares(difference) for difference in differences)
        return value / len(student.head)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        if not len(hidden):
            nothing = None if bias is None else torch.zeros_like(bias)
            return torch.zeros_like(hidden), torch.zeros_like(weight), nothing, None, None
        student: Hidden = ctx.student
        wide = _wide(hidden)
        each = (2 * grads[0][:, None] / len(weight)).to(wide)
        # In float16 neither is a mean over V to be rounded to nothing, nor a sum over rows to be
        # beyond its range.
        lift = each.abs().amax().clamp_(min=torch.finfo(wide).tiny) * math.sqrt(len(hidden))
        weighed = (each / lift * hidden.to(wide)).to(ctx.compute)
        by_hidden = torch.zeros_like(hidden, dtype=wide)
        by_weight = torch.empty_like(weight)
        by_bias = None if bias is None else torch.empty_like(bias)
        for columns, differences in _differences(student, ctx.peers, ctx.compute):
            total = _sum(differences)
            with _in_float32(hidden):
                by_hidden += (total @ weight[columns].to(ctx.compute)).to(wide)
                by_weight[columns] = ((total.T @ weighed).to(wide) * lift).to(weight.dtype)
            if by_bias is not None:
                by_bias[columns] = (total.to(wide) * each).sum(dim=0).to(by_bias.dtype)
        return (by_hidden * each).to(hidden.dtype), by_weight, by_bias, None, None


def _differences(
    student: Hidden, peers: Sequence[Hidden], compute: torch.dtype | None = None
) -> Iterator[tuple[slice, list[Tensor]]]:
    """Give z - z' of each peer, (N, some classes), by classes."""
    compute = compute or _compute(student.rows)
    with torch.no_grad():
        both = [
            torch.cat([student.rows.to(compute), -peer.rows.to(compute)], dim=1) for peer in peers
        ]
        for start in range(0, len(student.head), ROWS):
            columns = slice(start, min(start + ROWS, len(student.head)))
            made = []
            for rows, peer in zip(both, peers, strict=True):
                layers = [side.head.weight[columns].to(compute) for side in (student, peer)]
                shift = _shift(student, peer, columns, _wide(rows))
                with _in_float32(rows):
                    layer = torch.cat(layers, dim=1)
                    made.append(F.linear(rows, layer, None if shift is None else shift.to(compute)))
            yield columns, made


def _shift(student: Hidden, peer: Hidden, columns: slice, wide: torch.dtype) -> Tensor | None:
    """Return the difference of the biases, which is rounded once as well."""
    own, other = student.head.bias, peer.head.bias
    if own is None and other is None:
        return None
    parts = [None if bias is None else bias[columns].to(wide) for bias in (own, other)]
    if parts[0] is None or parts[1] is None:
        return parts[0] if parts[1] is None else -parts[1]
    return parts[0] - parts[1]


def _sum(differences: Sequence[Tensor]) -> Tensor:
    if len(differences) == 1:
        return differences[0]
    return torch.stack([one.to(_wide(one)) for one in differences]).sum(0).to(differences[0].dtype)


def _squares(difference: Tensor) -> Tensor:
    return difference.to(_wide(difference)).square().sum(dim=1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _compute(hidden: Tensor) -> torch.dtype:
    """Return the dtype that products are made of: autocast's, where that is on."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return hidden.dtype


@contextmanager
def _in_float32(like: Tensor) -> Iterator[None]:
    """Add products up in float32 throughout, and let autocast alone.

    cuBLAS may otherwise round the parts of a long sum to half precision.
    """
    matmul = torch.backends.cuda.matmul
    switches = [f"allow_{dtype}_reduced_precision_reduction" for dtype in ("fp16", "bf16")]
    before = {switch: getattr(matmul, switch) for switch in switches}
    for switch in switches:
        # Later versions of torch have a second part of it, which has a name only to be read.
        beside = f"{switch}_split_k"
        if hasattr(matmul, beside):
            before[switch] = (before[switch], getattr(matmul, beside))
    try:
        for switch in switches:
            setattr(matmul, switch, False)
        with torch.autocast(like.device.type, enabled=False):
            yield
    finally:
        for switch, value in before.items():
            setattr(matmul, switch, value)
