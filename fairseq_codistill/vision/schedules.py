"""Learning rate and weight decay as closed forms of the update, so that a resumed run has those of
an unbroken one: nothing is multiplied in place, nothing is remembered.

Times are in epochs and may be fractions of one; an update is placed in time by the number of
updates that an epoch has.  Goyal et al. 2017; paper, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LR_SCHEDULES = ("goyal", "cosine", "constant")

# Goyal's drops at 30, 60 and 80 of 90 epochs, as fractions of the whole.
GOYAL_DROPS = (30 / 90, 60 / 90, 80 / 90)


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of each update.

    Attributes:
        kind: ``goyal`` (falls by a factor at each milestone), ``cosine`` (half a cosine from the
            end of the warm-up to 0 at the end), ``constant``.
        peak: after the warm-up.
        start: at the first update of the warm-up.
        warmup: epochs of linear warm-up.
        milestones: of ``goyal``, epochs after which it falls.
        factor: of ``goyal``, what each fall multiplies it by.
        epochs: of the whole training.
    """

    kind: str
    peak: float
    start: float = 0.0
    warmup: float = 0.0
    milestones: Sequence[float] = ()
    factor: float = 0.1
    epochs: float = 90.0

    def __call__(self, update: int, updates_per_epoch: int) -> float:
        """Give the learning rate of one update.

        Args:
            update: updates made before it.
            updates_per_epoch: > 0.

        Raises:
            ValueError: for a ``kind`` that is none of ``LR_SCHEDULES``.
        """
        time = update / updates_per_epoch
        if time < self.warmup:
            return self.start + (self.peak - self.start) * time / self.warmup
        if self.kind == "constant":
            return self.peak
        if self.kind == "goyal":
            return self.peak * self.factor ** passed(self.milestones, update, updates_per_epoch)
        if self.kind == "cosine":
            done = min(1.0, (time - self.warmup) / (self.epochs - self.warmup))
            return self.peak * 0.5 * (1 + math.cos(math.pi * done))
        raise ValueError(f"learning rate schedule {self.kind!r} is none of {LR_SCHEDULES}")


@dataclass(frozen=True)
class WeightDecay:
    """The weight decay of each update (paper, section 3: 1e-4, then 1e-5, then 0).

    Attributes:
        first: until the first milestone.
        then: after the first milestone, after the second, and so on; the last one stays.
        milestones: epochs, at least as many as ``then`` has values.
    """

    first: float
    then: Sequence[float] = ()
    milestones: Sequence[float] = ()

    def __call__(self, update: int, updates_per_epoch: int) -> float:
        """Give the weight decay of one update; arguments as for ``LearningRate``."""
        values = (self.first, *self.then)
        return values[min(passed(self.milestones, update, updates_per_epoch), len(values) - 1)]


def passed(milestones: Sequence[float], update: int, updates_per_epoch: int) -> int:
    """Count the milestones, in epochs, that lie at or before an update.

    A milestone of m has passed once m epochs are complete, as with fairseq's and torchvision's.
    """
    # Half an update of tolerance: 13.1 * 10 is 131.00000000000001 updates to a computer.
    return sum(1 for epoch in milestones if epoch * updates_per_epoch < update + 0.5)
