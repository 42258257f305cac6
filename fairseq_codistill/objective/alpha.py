"""Alpha, the weight of the divergence, as a closed form of (epoch, update).

Closed form, because a resumed run must have the alpha of an unbroken one: nothing is multiplied
in place, nothing is remembered.  Paper: section 3 (ImageNet: constant, or a step at each drop of
the learning rate) and appendix A.1 (translation: geometric, factor 1.1 an epoch).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SCHEDULES = ("constant", "geometric", "step")


@dataclass(frozen=True)
class AlphaSchedule:
    """When the divergence counts how much.

    Attributes:
        kind: ``constant``; ``geometric`` (``first * growth ** (epoch - 1)``); ``step``
            (``first + step`` for each milestone that has passed).
        first: alpha in epoch 1, >= 0.
        growth: the factor gamma of ``geometric``, > 0.
        step: the increment of ``step``.
        milestones: epochs after whose end ``step`` adds its increment.
        cap: alpha never exceeds it; ``None`` for no cap.
        burn_in: updates at the start with alpha 0.  Growth counts from epoch 1 all the same.
    """

    kind: str = "geometric"
    first: float = 1.0
    growth: float = 1.1
    step: float = 0.5
    milestones: Sequence[int] = ()
    cap: float | None = None
    burn_in: int = 0

    def __call__(self, epoch: int, update: int) -> float:
        """Give alpha for one update.

        Args:
            epoch: the epoch, counted from 1, that the update belongs to.
            update: updates made before this one (0 for the first).

        Raises:
            ValueError: for a ``kind`` that is none of ``SCHEDULES``.
        """
        if update < self.burn_in:
            return 0.0
        if self.kind == "constant":
            alpha = self.first
        elif self.kind == "geometric":
            alpha = self._geometric(epoch)
        elif self.kind == "step":
            # A milestone of m has passed once m epochs are complete, as with fairseq's and
            # torchvision's learning-rate milestones: from epoch m + 1 on, counted from 1.
            passed = sum(1 for milestone in self.milestones if epoch > milestone)
            alpha = self.first + self.step * passed
        else:
            raise ValueError(f"alpha schedule {self.kind!r} is none of {', '.join(SCHEDULES)}")
        return alpha if self.cap is None else min(alpha, self.cap)

    def _geometric(self, epoch: int) -> float:
        try:
            return self.first * self.growth ** (epoch - 1)
        except OverflowError:
            return math.inf  # for the cap, if there is one, to cut


def weight(alpha: float, update: int, every: int) -> float:
    """Give what the divergence counts with in an update if it is computed in every K-th only.

    K alpha in those updates and 0 in the others: over K updates the expected gradient is that of
    alpha in each.

    Args:
        alpha: as the schedule has it.
        update: updates made before this one.
        every: K, >= 1.
    """
    return 0.0 if update % every else alpha * every
