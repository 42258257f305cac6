"""Lines of numbers in bounded memory: of a long log, neighbours become one.

Up to ``MOST`` lines of a kind are kept as they are.  Beyond that neighbours among the older ones
are merged, the same number of lines each time, so that a curve keeps its shape.  A merged line has

- the mean of its lines' values, where they are finite;
- the clock of its last line, and the time that passed within it, so that sums stay what they are;
- the best validation of its lines, and the first update without a finite loss;
- for the rates, of which the report gives the median, the value of its first line: a sample.

A restart drops lines.  Of a merged line that reaches beyond the update taken up again, all is
dropped; the newest ``RECENT`` lines are not merged before the end of the log is read, so a merged
line is met only by a restart from further back.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

# Merging leaves a quarter of them.
MOST = 20_000
RECENT = 2_000

NLL = ("nll_loss", "loss")
CLOCK = "wall"
RATES = ("wps", "images_per_second")
MEANS = (
    *("loss", "nll_loss", "top1", "eval_nll_loss", "distance"),
    *("codistill_alpha", "codistill_loss", "codistill_peers"),
    *("codistill_staleness", "codistill_stall"),
)
# All that the report shows.
SHOWN = frozenset((*MEANS, *RATES, CLOCK))


@dataclass(frozen=True)
class Merged:
    """What is known of lines that became one, beyond its values.

    Attributes:
        lines: how many there were.
        counts: how many finite values each mean is of, by its name.
        clock: the first line's, and how far it ran from there to the last one; None without one.
        best_nll: lowest finite validation NLL and its update; of training None.
        best_top1: highest finite top-1 accuracy; of training None.
        not_finite: first update with a loss that is not finite.
    """

    lines: int
    counts: dict[str, int]
    clock: tuple[float, float] | None
    best_nll: tuple[float, int] | None
    best_top1: float | None
    not_finite: int | None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of numbers, or several that became one.

    Attributes:
        update: updates so far, of several lines the last one's.
        values: the numbers by fairseq's names, without the prefix of their kind.
        merged: None of a single line.
    """

    update: int
    values: dict[str, float]
    merged: Merged | None = None

    @property
    def lines(self) -> int:
        """How many lines this was."""
        return 1 if self.merged is None else self.merged.lines

    @property
    def nll(self) -> float | None:
        """NLL, by the first of its names that is there."""
        return next((self.values[name] for name in NLL if name in self.values), None)

    @property
    def best_nll(self) -> tuple[float, int] | None:
        """The lowest finite NLL and its update."""
        if self.merged is not None:
            return self.merged.best_nll
        nll = self.nll
        return None if nll is None or not math.isfinite(nll) else (nll, self.update)

    @property
    def best_top1(self) -> float | None:
        """The highest top-1 accuracy."""
        return self.values.get("top1") if self.merged is None else self.merged.best_top1

    @property
    def not_finite(self) -> int | None:
        """The first update whose loss is not finite."""
        if self.merged is not None:
            return self.merged.not_finite
        return None if math.isfinite(self.values.get("loss", 0.0)) else self.update

    @property
    def clock(self) -> tuple[float, float, float] | None:
        """The clock at its first line, how far it ran from there, and where it came to."""
        now = self.values.get(CLOCK)
        if now is None:
            return None
        if self.merged is None or self.merged.clock is None:
            return now, 0.0, now
        return *self.merged.clock, now

    def count(self, name: str) -> int:
        """Return how many lines' mean the value of that name is."""
        return 1 if self.merged is None else self.merged.counts.get(name, 1)


def elapsed(lines: Sequence[Line]) -> float | None:
    """Add up fairseq's clock, which a resumed run takes up where the checkpoint left it.

    It starts from nothing again if a run is resumed with its meters reset.
    """
    clocks = [clock for line in lines if (clock := line.clock) is not None]
    if not clocks:
        return None
    return clocks[0][0] + sum(_growth(clocks))


def thin(lines: list[Line], recent: int = RECENT, validation: bool = False) -> None:
    """Merge neighbours, in place.

    Args:
        lines: at growing updates.
        recent: how many of the newest to leave alone.
        validation: they are of validation, so their best is remembered.
    """
    old = lines[: len(lines) - recent]
    count = sum(line.lines for line in old)
    # A power of 2, so that what was merged before fits into what is merged now.
    size = 1
    while count > size * (MOST // 4):
        size *= 2
    groups: list[list[Line]] = []
    room = 0
    for line in old:
        merged = line.merged
        lines_of_it = 1 if merged is None else merged.lines
        if lines_of_it > room:
            groups.append([])
            room = size
        groups[-1].append(line)
        room -= lines_of_it
    lines[: len(old)] = [
        group[0] if len(group) == 1 else _merge(group, validation) for group in groups
    ]


def _merge(group: Sequence[Line], validation: bool) -> Line:
    single = all(line.merged is None for line in group)
    values: dict[str, float] = {}
    counts: dict[str, int] = {}
    for name in SHOWN:
        column = [line.values[name] for line in group if name in line.values]
        if not column:
            continue
        # A sample of the rates, and of what is never finite.
        values[name] = column[0]
        if name not in MEANS:
            continue
        if single and math.isfinite(total := sum(column)):
            values[name], counts[name] = total / len(column), len(column)
        else:
            weights = [line.count(name) for line in group if name in line.values]
            finite = [(v, w) for v, w in zip(column, weights, strict=True) if math.isfinite(v)]
            if finite:
                counts[name] = sum(weight for _, weight in finite)
                values[name] = sum(value * weight for value, weight in finite) / counts[name]
    clocks = [clock for line in group if (clock := line.clock) is not None]
    if clocks:
        values[CLOCK] = clocks[-1][2]
    merged = Merged(
        lines=sum(line.lines for line in group),
        counts=counts,
        clock=(clocks[0][0], sum(_growth(clocks))) if clocks else None,
        best_nll=min(filter(None, (line.best_nll for line in group)), default=None)
        if validation
        else None,
        best_top1=_highest(line.best_top1 for line in group) if validation else None,
        not_finite=next((u for line in group if (u := line.not_finite) is not None), None),
    )
    return Line(group[-1].update, values, merged)


def _highest(values: Iterable[float | None]) -> float | None:
    """Return the highest of the values that are finite."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return max(finite, default=None)


def _growth(clocks: Sequence[tuple[float, float, float]]) -> list[float]:
    """Return how far the clock ran within each, and from each to the next."""
    grown = [ran for _, ran, _ in clocks if ran]
    for (_, _, before), (now, _, _) in zip(clocks, clocks[1:], strict=False):
        grown.append(now - before if now >= before else now)
    return grown
