"""Pictures: for each label a mean line and a band, named at its end."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fairseq_codistill.report import wording
from fairseq_codistill.report.series import Band

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which is
# hard to see on white.  After the last one they come again, with marks on the lines.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")
MARKS = ("", "o", "s", "^", "D", "v", "P")
INK, PALE = "#222222", "#d9d9d9"

# Inches.
PLOT_WIDTH, PLOT_HEIGHT = 6.4, 3.9
ROW_HEIGHT, ROW_GAP = 0.62, 0.1
LEFT, BOTTOM, TOP, GAP, SAMPLE, EDGE = 0.75, 0.6, 0.45, 0.45, 0.34, 0.12
LABEL_HEIGHT = 0.21
DOTS = 144
LONGEST_NAME = 40

_TITLE: dict[str, Any] = {"loc": "left", "fontsize": 12, "color": INK, "fontweight": "bold"}
_NAME: dict[str, Any] = {"va": "center", "fontsize": 9.5, "color": INK, "parse_math": False}

# What comes before this share of the updates may be left out, above.
BEGINNING = 0.1
# And is, where it would take more than this share of the height.
WASTE = 0.25


@dataclass(frozen=True)
class Series:
    """One label's line in a picture.

    Attributes:
        label: its name.
        band: mean, least and greatest.
        place: of the label among all labels: the same in each picture gives the same looks.
        dashed: whether the line is.
    """

    label: str
    band: Band
    place: int
    dashed: bool


def missing() -> str | None:
    """Say in one sentence that there is nothing to draw with; None if there is."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return (
            "The plots are left out, because matplotlib is not installed; pip install matplotlib, "
            "or this package with its extra: fairseq-codistill[report]."
        )
    return None


def limits(series: Sequence[Series]) -> tuple[float, float] | None:
    """Give the least and the greatest value to show, or None if that is all of them.

    Losses fall so far in the beginning that nothing could be told apart later on.
    """
    highest = max(float(np.max(one.band.high)) for one in series)
    low, high = _range(series, BEGINNING * _last(series))
    if high <= low or (highest - high) < WASTE * (highest - low):
        return None
    return low, high


def draw(
    title: str,
    unit: str,
    series: Sequence[Series],
    digits: str,
    cut: bool = False,
    begin: float = 0.0,
) -> bytes:
    """Draw the lines of one quantity against updates on one axis, as a PNG.

    Args:
        title: above the plot.
        unit: what the values are, along the axis.
        series: at least one.
        digits: how to write a value, as in ``.3f``.
        cut: leave the high values of the beginning out where ``limits`` says so.
        begin: the first of the updates to show.
    """
    height = max(PLOT_HEIGHT, LABEL_HEIGHT * (len(series) + 1))
    names = [f"{_short(one.label)}  {wording.number(one.band.mean[-1], digits)}" for one in series]
    sheet = _Sheet(names, height)
    axes = sheet.axes(0, height)
    _dress(axes)
    axes.set_title(title, **_TITLE)
    axes.set_xlabel("updates", color=INK)
    axes.set_ylabel(unit, color=INK)
    for place, one in enumerate(series):
        # Of lines on top of each other, each leaves an edge of those below to be seen.
        below = sum(_same(one, other) for other in series[place + 1 :])
        _line(axes, one, place / len(series), faint=len(series) > 4, wider=2.0 * below)
    shown = _range(series, begin) if begin else limits(series) if cut else None
    if shown is not None and shown[0] < shown[1]:
        edge = 0.05 * (shown[1] - shown[0])
        axes.set_ylim(shown[0] - edge, shown[1] + edge)
    axes.set_xlim(begin, _last(series))
    _name(axes, series, names, height)
    return sheet.png()


def draw_rows(title: str, unit: str, series: Sequence[Series], digits: str) -> bytes:
    """Draw each line on an axis of its own, one below the other, all alike, as a PNG.

    For what goes up and down all the time: on one axis the lines would hide each other. The
    number is the mean of the line.
    """
    row = max(ROW_HEIGHT, (PLOT_HEIGHT / 2 + ROW_GAP) / len(series) - ROW_GAP)
    height = len(series) * (row + ROW_GAP) - ROW_GAP
    names = [
        f"{_short(one.label)}  {wording.number(one.band.mean.mean(), digits)}" for one in series
    ]
    sheet = _Sheet(names, height)
    low, high = _range(series, 0.0)
    edge = 0.08 * (high - low) or 1.0
    for place, (one, name) in enumerate(zip(series, names, strict=True)):
        axes = sheet.axes(height - row - place * (row + ROW_GAP), row)
        _dress(axes)
        _line(axes, one, None)
        axes.set_xlim(0, _last(series))
        axes.set_ylim(low - edge, high + edge)
        axes.locator_params(axis="y", nbins=3 if row < 1 else 5)
        if place == 0:
            axes.set_title(title, **_TITLE)
        if place == len(series) - 1:
            axes.set_xlabel("updates", color=INK)
        else:
            axes.tick_params(labelbottom=False)
        axes.text(1 + 0.12 / PLOT_WIDTH, 0.5, name, transform=axes.transAxes, **_NAME)
    sheet.figure.text(
        *(0.14 / sheet.width, (BOTTOM + height / 2) / sheet.height, unit),
        rotation="vertical",
        va="center",
        ha="left",
        color=INK,
    )
    return sheet.png()


def spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Give places near the wanted ones, in their order, at least ``gap`` apart where that fits."""
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    # Neighbours that would touch form a heap around the middle of what they want.
    heaps: list[list[int]] = []

    def start(heap: list[int]) -> float:
        middle = sum(wanted[index] for index in heap) / len(heap)
        length = gap * (len(heap) - 1)
        return max(low, min(high - length, middle - length / 2))

    for index in order:
        heap = [index]
        while heaps and start(heaps[-1]) + gap * len(heaps[-1]) > start(heap):
            heap = heaps.pop() + heap
        heaps.append(heap)
    places = [0.0] * len(wanted)
    for heap in heaps:
        for position, index in enumerate(heap):
            places[index] = start(heap) + gap * position
    return places


class _Sheet:
    """A figure with room for names at the right of its plots; sizes are in inches."""

    def __init__(self, names: Sequence[str], height: float) -> None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        self.figure = Figure(dpi=DOTS, facecolor="white")
        self._canvas = FigureCanvasAgg(self.figure)
        self.width = LEFT + PLOT_WIDTH + GAP + SAMPLE + 0.08 + _width(self.figure, names) + EDGE
        self.height = BOTTOM + height + TOP
        self.figure.set_size_inches(self.width, self.height)

    def axes(self, above: float, height: float) -> Axes:
        """Make a plot so far above the lowest one."""
        return self.figure.add_axes(
            (
                LEFT / self.width,
                (BOTTOM + above) / self.height,
                PLOT_WIDTH / self.width,
                height / self.height,
            )
        )

    def png(self) -> bytes:
        """Give the picture."""
        file = io.BytesIO()
        # Without the library's name and site, so that the page names no place elsewhere.
        self._canvas.print_png(file, metadata={"Software": None})
        return file.getvalue()


def _range(series: Sequence[Series], begin: float) -> tuple[float, float]:
    """Give the least and the greatest value from an update on."""
    later = [(one.band, one.band.updates >= begin) for one in series]
    later = [(band, which) for band, which in later if which.any()] or [
        (one.band, one.band.updates >= 0) for one in series
    ]
    low = min(float(np.min(band.low[which])) for band, which in later)
    return low, max(float(np.max(band.high[which])) for band, which in later)


def _last(series: Sequence[Series]) -> float:
    return max(float(one.band.updates[-1]) for one in series) or 1.0


def _dress(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 2.5, 5, 10]))
    axes.grid(color=PALE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#888888")


def _same(one: Series, other: Series) -> bool:
    return np.array_equal(one.band.updates, other.band.updates) and np.allclose(
        one.band.mean, other.band.mean
    )


def _line(
    axes: Axes, one: Series, shift: float | None, faint: bool = False, wider: float = 0.0
) -> None:
    """Draw one line.

    Args:
        axes: where.
        one: what.
        shift: how far to move its marks, of the way to the next one, so that those of several
            lines keep apart; None for no marks.
        faint: let other bands be seen through its own.
        wider: points to add to its width.
    """
    band, colour = one.band, _colour(one)
    if band.curves > 1:
        axes.fill_between(
            band.updates, band.low, band.high, color=colour, alpha=0.10 if faint else 0.2, lw=0
        )
    mark = "" if shift is None else _mark(one)
    every = max(1, len(band.updates) // 5)
    axes.plot(
        band.updates,
        band.mean,
        color=colour,
        linewidth=1.6 + wider,
        linestyle=(0, (4, 1.6)) if one.dashed else "solid",
        marker=mark or ("o" if len(band.updates) == 1 else ""),
        markersize=4.5,
        markevery=(int((shift or 0) * every), every),
    )


def _name(axes: Axes, series: Sequence[Series], names: Sequence[str], height: float) -> None:
    """Write each label beside the end of its line, with a sample of it."""
    low, high = axes.get_ylim()
    left, right = axes.get_xlim()
    ends = [min(max((float(s.band.mean[-1]) - low) / (high - low), 0), 1) for s in series]
    half = LABEL_HEIGHT / height / 2
    places = spread_out(ends, 2 * half, half, 1 - half)
    begin = 1 + GAP / PLOT_WIDTH
    end = begin + SAMPLE / PLOT_WIDTH
    for one, name, value, place in zip(series, names, ends, places, strict=True):
        looks: dict[str, Any] = {
            "color": _colour(one),
            "clip_on": False,
            "transform": axes.transAxes,
        }
        last = max((float(one.band.updates[-1]) - left) / (right - left), 0.0)
        axes.plot([last, begin - 0.01], [value, place], linewidth=0.7, alpha=0.6, **looks)
        axes.plot(
            [begin, (begin + end) / 2, end],
            [place] * 3,
            linewidth=2,
            linestyle=(0, (3, 1.2)) if one.dashed else "solid",
            marker=_mark(one),
            markersize=4.5,
            markevery=[1],
            **looks,
        )
        axes.text(
            end + 0.08 / PLOT_WIDTH,
            place,
            name,
            transform=axes.transAxes,
            **_NAME,
        )


def _width(figure: Figure, names: Sequence[str]) -> float:
    """Give how wide the longest name comes out, in inches."""
    widths = []
    for name in names:
        text = figure.text(0, 0, name, **_NAME)
        widths.append(text.get_window_extent().width / DOTS)
        text.remove()
    return max(widths)


def _short(name: str) -> str:
    """Give a name that fits: the middle of a long one is left out."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    if len(name) <= LONGEST_NAME:
        return name
    half = (LONGEST_NAME - 1) / 2
    return f"{name[: math.ceil(half)]}…{name[-math.floor(half) :]}"


def _colour(one: Series) -> str:
    return COLOURS[one.place % len(COLOURS)]


def _mark(one: Series) -> str:
    return MARKS[one.place // len(COLOURS) % len(MARKS)]
