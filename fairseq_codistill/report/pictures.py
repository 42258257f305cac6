"""The pictures of a report: what is drawn, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_codistill.errors import UserError
from fairseq_codistill.report import plots, series, wording
from fairseq_codistill.report.content import Picture
from fairseq_codistill.report.labels import Label, counted, divided_by
from fairseq_codistill.report.series import Band, Curve

# A training curve is drawn as its running mean over this share of all updates, and three lines.
SMOOTHING = 1 / 50
# A quantity of a run, not of each of its models.
AGREEMENT = "agreement"


@dataclass(frozen=True)
class Plot:
    """How one of ``series.QUANTITIES``, or the agreement, is drawn.

    Attributes:
        file: the picture's, without its ending.
        quantity: what it shows.
        title: above it.
        unit: along its axis, with {each} for what is counted, and {divided_by} for what the
            training loss is divided by.
        digits: how to write a value.
        smooth: draw running means.
        cut: leave the high values of the beginning out.
        second_half: show that alone.
        rows: one axis for each label.
    """

    file: str
    quantity: str
    title: str
    unit: str
    digits: str
    smooth: bool = False
    cut: bool = False
    second_half: bool = False
    rows: bool = False


# {each}: token or image, as the runs have them.
_NLL = "bits per {each} (NLL, base 2)"
_TOP1 = "% of the images"
PLOTS = (
    Plot("valid_nll", "valid_nll", "Validation NLL", _NLL, ".3f", cut=True),
    Plot(
        *("valid_nll_end", "valid_nll", "Validation NLL, second half", _NLL, ".3f"),
        second_half=True,
    ),
    Plot("valid_top1", "valid_top1", "Validation top-1 accuracy", _TOP1, ".2f"),
    Plot(
        *("valid_top1_end", "valid_top1", "Validation top-1 accuracy, second half", _TOP1, ".2f"),
        second_half=True,
    ),
    Plot(
        *("agreement", AGREEMENT, "Agreement: images that the models give the same class"),
        *("% of the images, churn is the rest", ".1f"),
    ),
    Plot(
        *("eval_train_nll", "eval_train_nll"),
        *("Training NLL, evaluated as in validation", _NLL, ".3f"),
        cut=True,
    ),
    Plot("train_nll", "train_nll", "Training NLL", _NLL, ".3f", smooth=True, cut=True),
    Plot(
        *("train_loss", "train_loss", "Training loss"),
        *("bits per {divided_by}, (cross-entropy + α D) / ln 2", ".3f"),
        smooth=True,
        cut=True,
    ),
    Plot(
        *("distance", "distance", "Distance of the parameters from where they began"),
        *("Euclidean norm", ".3g"),
    ),
    Plot("alpha", "alpha", "α, the weight of the divergence", "α (no unit)", ".3g"),
    Plot(
        *("codistill_loss", "codistill_loss", "Divergence from the peers (codistill_loss)"),
        *("D (mean per {each}, α left out)", ".3g"),
        cut=True,
    ),
    Plot(
        *("staleness", "staleness", "Staleness of the peers"),
        *("updates (own − peer's)", ",.1f"),
        rows=True,
    ),
)


def pictures(labels: Sequence[Label]) -> tuple[list[Picture], list[str]]:
    """Draw all that the runs have logged, and say what is left out.

    Raises:
        UserError: if the models of a label have no update of training in common.
    """
    drawn, notes = [], []
    for plot in PLOTS:
        picture, said = _picture(plot, labels)
        notes += said
        if picture is not None:
            drawn.append(picture)
    return drawn, notes


def _picture(plot: Plot, labels: Sequence[Label]) -> tuple[Picture | None, list[str]]:
    lines, notes, measured = [], [], True
    curves = {label.name: _curves(plot, label) for label in labels}
    longest = max((one.updates[-1] for some in curves.values() for one in some), default=0.0)
    window = _window([one for some in curves.values() for one in some]) if plot.smooth else 0.0
    for place, label in enumerate(labels):
        some = curves[label.name]
        if not some:
            continue
        band = series.band([series.smooth(one, window) for one in some])
        if band is None:
            notes.append(_apart(plot, label, some))
            continue
        measured &= band.measured
        notes += _uneven(plot, label, band, some)
        lines.append(plots.Series(label.name, band, place, not label.codistilled))
    if not lines:
        return None, notes
    unit = plot.unit.format(each=counted(labels), divided_by=divided_by(labels))
    if plot.second_half and not any(len(one.band.updates) > 2 for one in lines):
        return None, []
    if plot.rows:
        png = plots.draw_rows(plot.title, unit, lines, plot.digits)
        values = [one.band.mean.mean() for one in lines]
    else:
        begin = longest / 2 if plot.second_half else 0.0
        png = plots.draw(plot.title, unit, lines, plot.digits, plot.cut, begin)
        values = [one.band.mean[-1] for one in lines]
    said = ", ".join(
        f"{one.label} {wording.number(value, plot.digits)}"
        for one, value in zip(lines, values, strict=True)
    )
    what = "their means are" if plot.rows else "the lines end at"
    alt = f"{plot.title}, {unit}, against updates; {what}: {said}."
    caption = _caption(plot, lines, window, measured)
    return Picture(f"{plot.file}.png", plot.title, caption, alt, png), notes


def _apart(plot: Plot, label: Label, some: Sequence[Curve]) -> str:
    """Say that there is no mean to draw; without one of the training there is no comparison."""
    if plot.quantity == "train_loss":
        spans = ", ".join(f"{one.updates[0]:.0f} to {one.updates[-1]:.0f}" for one in some)
        raise UserError(
            f"the models of {label.name} have no update in common ({spans}), so they have no mean; "
            "give them labels of their own, each with --as LABEL RUN"
        )
    return (
        f"{label.name}, {plot.title}: no update is covered by all of its models, so there is no "
        "mean to draw."
    )


def _curves(plot: Plot, label: Label) -> list[Curve]:
    if plot.quantity == AGREEMENT:
        known = [run.agreement.known for run in label.runs if run.agreement is not None]
        # One comparison is no curve; it stands in the table.
        return [
            series.curve_of([(update, 100 * share) for update, share in some])
            for some in known
            if len(some) > 1
        ]
    if plot.quantity in ("alpha", "codistill_loss", "staleness") and not label.codistilled:
        return []
    return [one for model in label.models if len(one := series.curve(model.log, plot.quantity))]


def _window(curves: Sequence[Curve]) -> float:
    """Give the width of the running mean, in updates."""
    between = [float(np.median(np.diff(one.updates))) for one in curves if len(one) > 1]
    longest = max((float(one.updates[-1]) for one in curves), default=0.0)
    return max(longest * SMOOTHING, 3 * max(between, default=0.0))


def _uneven(plot: Plot, label: Label, band: Band, some: Sequence[Curve]) -> list[str]:
    """Say that the mean ends before some of its models do; once a label, of the training NLL."""
    last = max(float(one.updates[-1]) for one in some)
    if plot.quantity != "train_nll" or last <= float(band.updates[-1]):
        return []
    return [
        f"{label.name}: its models have come to different updates; its line ends at "
        f"{band.updates[-1]:,.0f}, the furthest is at {last:,.0f}."
    ]


def _caption(plot: Plot, lines: Sequence[plots.Series], window: float, measured: bool) -> str:
    said = [f"The number is the line's {'mean' if plot.rows else 'last value'}."]
    if any(one.band.curves > 1 for one in lines):
        what = "runs of a line" if plot.quantity == AGREEMENT else "models of a run"
        said.append(f"Line: mean over the {what}; band: least to greatest.")
    if {one.dashed for one in lines} == {True, False}:
        said.append("Dashed: trained without peers.")
    if plot.smooth and window >= 1:
        said.append(f"Each curve is a running mean over {window:,.0f} updates.")
    if not measured:
        said.append("Between the updates that a model logged, its values are interpolated.")
    if plot.cut and plots.limits(lines) is not None:
        said.append("The high values of the beginning are left out.")
    return " ".join(said)
