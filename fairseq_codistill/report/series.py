"""Curves over updates: one of each model, a mean and a band of several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fairseq_codistill.report.logs import Log
from fairseq_codistill.report.thinning import MOST, NLL, Line

Numbers = NDArray[np.float64]

# What is drawn of each model: where it comes from, and under which of fairseq's names, the first
# that is there.  Without label smoothing or sentence averaging, fairseq's cross_entropy logs its
# NLL as loss alone.
QUANTITIES = {
    "train_nll": ("train", NLL),
    "train_loss": ("train", ("loss",)),
    "valid_nll": ("valid", NLL),
    "valid_top1": ("valid", ("top1",)),
    "eval_train_nll": ("epochs", ("eval_nll_loss",)),
    "distance": ("epochs", ("distance",)),
    "alpha": ("train", ("codistill_alpha",)),
    "codistill_loss": ("train", ("codistill_loss",)),
    "staleness": ("train", ("codistill_staleness",)),
}


@dataclass(frozen=True)
class Curve:
    """Values at growing updates."""

    updates: Numbers
    values: Numbers

    def __len__(self) -> int:
        return len(self.updates)


@dataclass(frozen=True)
class Band:
    """Mean, least and greatest of several curves, at the updates that all of them cover.

    Attributes:
        updates: all at which any curve has a value, the others are interpolated; of more than
            ``MOST`` so many of them, evenly.
        curves: how many there are.
        measured: whether every curve has a value of its own at each of the updates.
    """

    updates: Numbers
    mean: Numbers
    low: Numbers
    high: Numbers
    curves: int
    measured: bool


def curve(log: Log, quantity: str) -> Curve:
    """Give what a model has logged of one of ``QUANTITIES``; what is not finite is left out."""
    source, names = QUANTITIES[quantity]
    sources: dict[str, list[Line]] = {"train": log.train, "epochs": log.epochs, "valid": log.valid}
    lines = sources[source]
    found = [(line.update, _first(line, names)) for line in lines]
    kept = [(update, value) for update, value in found if value is not None and np.isfinite(value)]
    return curve_of(kept)


def curve_of(points: Sequence[tuple[float, float]]) -> Curve:
    """Give the curve through (update, value), at growing updates."""
    return Curve(
        np.array([update for update, _ in points], dtype=np.float64),
        np.array([value for _, value in points], dtype=np.float64),
    )


def smooth(one: Curve, updates: float) -> Curve:
    """Give the running mean of a curve over ``updates`` around each of its own."""
    first = np.searchsorted(one.updates, one.updates - updates / 2, side="left")
    last = np.searchsorted(one.updates, one.updates + updates / 2, side="right")
    sums = np.concatenate([[0.0], np.cumsum(one.values)])
    return Curve(one.updates, (sums[last] - sums[first]) / (last - first))


def band(curves: Sequence[Curve]) -> Band | None:
    """Give the mean and the band of curves, or None if no update is covered by all of them."""
    curves = [one for one in curves if len(one)]
    if not curves:
        return None
    start = max(one.updates[0] for one in curves)
    end = min(one.updates[-1] for one in curves)
    if start > end:
        return None
    every = np.unique(np.concatenate([one.updates for one in curves]))
    updates = _thinned(every[(every >= start) & (every <= end)])
    values = np.stack([np.interp(updates, one.updates, one.values) for one in curves])
    return Band(
        updates,
        values.mean(axis=0),
        values.min(axis=0),
        values.max(axis=0),
        len(curves),
        all(np.isin(updates, one.updates).all() for one in curves),
    )


def _thinned(updates: Numbers) -> Numbers:
    if len(updates) <= MOST:
        return updates
    return updates[np.linspace(0, len(updates) - 1, MOST).round().astype(int)]


def _first(line: Line, names: Sequence[str]) -> float | None:
    return next((line.values[name] for name in names if name in line.values), None)
