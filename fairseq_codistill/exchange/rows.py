"""Matrices at one byte a number: whole numbers from -127 to 127, and a scale for each row.

In a tensor file a matrix ``w`` of R rows is ``w``, of int8, and ``w:scale``, R numbers of float32;
a row is its whole numbers times its scale.  A row is what has one index in the first dimension: a
word's embedding, or what makes one output of a linear layer or one channel of a convolution.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected

SCALE = ":scale"
LARGEST = 127


def pack(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give what a file holds; numbers change by no more than half their row's scale.

    Args:
        tensors: names -> CPU tensors.  Those with less than two dimensions, and whole numbers,
            stay what they are.

    Raises:
        ExchangeError: if a tensor has a name such as scales have.
    """
    packed = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(SCALE):
            raise ExchangeError(
                f"the model's tensor {name!r:.80} has a name that int8 needs for itself; choose "
                "another --codistill-snapshot-dtype"
            )
        if not tensor.is_floating_point() or tensor.dim() < 2:
            continue
        rows = tensor.float().flatten(1)
        scale = rows.abs().amax(1) / LARGEST if rows.numel() else rows.new_zeros(len(rows))
        # A row of zeros, or one too small for a scale, has the scale 0.
        whole = (rows / torch.where(scale > 0, scale, 1.0)[:, None]).round()
        packed[name] = whole.clamp(-LARGEST, LARGEST).to(torch.int8).view(tensor.shape)
        packed[name + SCALE] = scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors that ``pack`` was given, nearly: matrices in float32.

    Args:
        packed: what a file holds; its sender is not trusted.

    Raises:
        SnapshotRejected: if scales do not fit a matrix of int8.
    """
    tensors = {name: tensor for name, tensor in packed.items() if not name.endswith(SCALE)}
    for name in sorted(packed.keys() - tensors.keys()):
        of, scale = name.removesuffix(SCALE), packed[name]
        whole = packed.get(of)
        if (
            whole is None
            or whole.dtype != torch.int8
            or whole.dim() < 2
            or (scale.dtype, scale.shape) != (torch.float32, whole.shape[:1])
        ):
            raise SnapshotRejected(f"its scales {name!r:.80} do not fit a matrix of int8")
        tensors[of] = (whole.flatten(1) * scale[:, None]).view(whole.shape)
    return tensors
