"""The numbers of each model, and their spread over the models of a label."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean, median

from fairseq_codistill.report.logs import Log
from fairseq_codistill.report.thinning import Line, elapsed


@dataclass(frozen=True)
class Figures:
    """What there is to say of one model in numbers; None where the log does not tell.

    Attributes:
        best_nll: lowest validation NLL, in bits per token or image.
        best_update: where that was, the first time.
        last_nll: the newest validation NLL.
        best_top1: highest top-1 accuracy in validation, in percent; of images.
        last_top1: the newest one.
        updates: how many it has trained for.
        words_per_second: median of what the training lines say, of all workers of the model.
        images_per_second: the same, of images.
        alpha: the newest.
        staleness: mean over the training lines that have one, in updates.
        stall_share: of the time, how much the training thread waited on the exchange.
        seconds: time trained, validation and saving included.
        restarts: how often training began anew.
    """

    best_nll: float | None
    best_update: float | None
    last_nll: float | None
    best_top1: float | None
    last_top1: float | None
    updates: float | None
    words_per_second: float | None
    images_per_second: float | None
    alpha: float | None
    staleness: float | None
    stall_share: float | None
    seconds: float | None
    restarts: float | None


@dataclass(frozen=True)
class Spread:
    """Mean, least and greatest of one number over several models."""

    mean: float
    min: float
    max: float


def measure(log: Log) -> Figures:
    """Work out the numbers of one model.

    Of a log so long that its lines were merged (``thinning``), the rates' medians are those of a
    sample; all the rest is as of every single line.
    """
    validated = [(nll, line.update) for line in log.valid if (nll := line.nll) is not None]
    best = min((found for line in log.valid if (found := line.best_nll) is not None), default=None)
    top1 = _all(log.valid, "top1")
    best_top1 = [share for line in log.valid if (share := line.best_top1) is not None]
    train = log.train
    seconds = elapsed(train)
    stalls = _all(train, "codistill_stall")
    ages = _all(train, "codistill_staleness")
    alphas = _all(train, "codistill_alpha")
    return Figures(
        best_nll=best[0] if best else None,
        best_update=best[1] if best else None,
        last_nll=validated[-1][0] if validated else None,
        best_top1=max(best_top1, default=None),
        last_top1=top1[-1] if top1 else None,
        updates=max(line.update for line in [*log.inner[-1:], *log.epochs[-1:], *log.valid[-1:]]),
        words_per_second=_median(_all(train, "wps")),
        images_per_second=_median(_all(train, "images_per_second")),
        alpha=alphas[-1] if alphas else None,
        staleness=mean(ages, _counts(train, "codistill_staleness")) if ages else None,
        stall_share=_sum(train, "codistill_stall") / seconds if stalls and seconds else None,
        seconds=seconds,
        restarts=log.restarts,
    )


def spreads(models: Sequence[Figures]) -> Mapping[str, Spread | None]:
    """Give the spread of each of the ``Figures`` over those models that have it."""
    return {one.name: spread([getattr(m, one.name) for m in models]) for one in fields(Figures)}


def spread(values: Iterable[float | None]) -> Spread | None:
    """Give the spread of the values that are there; None if there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    if any(math.isnan(value) for value in known):
        return Spread(math.nan, math.nan, math.nan)
    return Spread(mean(known), min(known), max(known))


def mean(values: Sequence[float], counts: Sequence[int] | None = None) -> float:
    """Return the mean of at least one value; NaN if there are infinite ones of both signs.

    Args:
        values: numbers.
        counts: how often each of them counts; None for once.
    """
    try:
        return fmean(values, counts)
    except ValueError:
        return math.nan


def _all(lines: Sequence[Line], key: str) -> list[float]:
    return [line.values[key] for line in lines if key in line.values]


def _counts(lines: Sequence[Line], key: str) -> list[int] | None:
    """Return of how many lines each of ``_all`` is the mean; None if of one each."""
    if all(line.merged is None for line in lines):
        return None
    return [line.count(key) for line in lines if key in line.values]


def _sum(lines: Sequence[Line], key: str) -> float:
    return sum(line.values[key] * line.count(key) for line in lines if key in line.values)


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None
