"""What a model says of a batch, in the two forms that a divergence takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# Rows of an output layer that are worked on at a time: no copy of a whole one is made.
ROWS = 4096


@dataclass(frozen=True)
class Head:
    """A model's output layer: logits = hidden @ weight.T + bias.

    Attributes:
        weight: (V, d).
        bias: (V,), or None.
    """

    weight: Tensor
    bias: Tensor | None = None

    def __len__(self) -> int:
        """V, the number of classes."""
        return self.weight.size(0)

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: float64 for float64, float32 for all others."""
        return torch.float64 if self.weight.dtype == torch.float64 else torch.float32

    def chunks(self, offset: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """Give the layer by rows, a bias as the last column, less ``offset`` of shape (d,)."""
        for start in range(0, len(self), ROWS):
            rows = slice(start, min(start + ROWS, len(self)))
            part = self.weight[rows].to(self.dtype)
            if self.bias is not None:
                part = torch.cat([part, self.bias[rows, None].to(self.dtype)], dim=1)
            yield rows, part if offset is None else part - offset

    def mean(self) -> Tensor:
        """The mean of the rows, of shape (d,), or (d + 1,) with a bias."""
        # In float64, as a sum of many: what is left of it by rounding is not centred away.
        total = sum(part.sum(dim=0, dtype=torch.float64) for _, part in self.chunks())
        assert isinstance(total, Tensor)
        return (total / len(self)).to(self.dtype)

    def extend(self, hidden: Tensor) -> Tensor:
        """Give hidden states that ``chunks`` can be multiplied with, of shape (N, d or d + 1)."""
        hidden = hidden.to(self.dtype)
        if self.bias is None:
            return hidden
        return torch.cat([hidden, hidden.new_ones(len(hidden), 1)], dim=1)


@dataclass(frozen=True)
class Hidden:
    """A model's output before its output layer.

    Attributes:
        rows: last hidden states, (N, d).
        head: the output layer.
        logits: what the layer has made of them, (N, V), where they are there anyway.
    """

    rows: Tensor
    head: Head
    logits: Tensor | None = None


# Logits of shape (..., V), or what they would be made of.
Output = Tensor | Hidden


def as_logits(output: Output) -> Tensor:
    """Give the logits, which are made if they are not there."""
    if isinstance(output, Tensor):
        return output
    if output.logits is not None:
        return output.logits
    return F.linear(output.rows, output.head.weight, output.head.bias)
