"""How far one label is from another, and how much of that chance explains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance


@dataclass(frozen=True)
class Gap:
    """The difference of two means.

    Attributes:
        mean: the one's mean minus the other's.
        error: its standard error, from the variances of both; None if either has one run only.
    """

    mean: float
    error: float | None

    def say(self, digits: str) -> str:
        """Write it with its sign, as in ``+0.012 ± 0.005``."""
        text = f"{self.mean:+{digits}}"
        return text if self.error is None else f"{text} ± {self.error:{digits}}"


def gap(one: Sequence[float], other: Sequence[float]) -> Gap | None:
    """Compare two sets of independent runs, by one number of each.

    Returns:
        The gap, or None if either has no number or one that is not finite.
    """
    if not one or not other or not all(map(math.isfinite, [*one, *other])):
        return None
    error = None
    if len(one) > 1 and len(other) > 1:
        error = math.sqrt(variance(one) / len(one) + variance(other) / len(other))
    return Gap(fmean(one) - fmean(other), error)
