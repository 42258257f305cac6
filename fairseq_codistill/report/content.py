"""What a report holds, however it is written: sentences, tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fairseq_codistill.errors import UserError
from fairseq_codistill.report import labels as grouping
from fairseq_codistill.report import plots, series, table
from fairseq_codistill.report.compare import gap
from fairseq_codistill.report.labels import Label
from fairseq_codistill.report.series import Band, Curve
from fairseq_codistill.report.settings import difference
from fairseq_codistill.report.table import Figures, Spread

# A training curve is drawn as its running mean over this share of all updates, and three lines.
SMOOTHING = 1 / 50

MOST_SETTINGS = 16
# Settings that are of interest although only some of the runs have them.
TELLING = {
    *("criterion", "label_smoothing", "codistill_num_groups", "codistill_interval"),
    *("codistill_alpha", "codistill_alpha_growth", "codistill_mode", "codistill_peer_dropout"),
}


@dataclass(frozen=True)
class Plot:
    """How one of ``series.QUANTITIES`` is drawn.

    Attributes:
        file: the picture's, without its ending.
        quantity: what it shows.
        title: above it.
        unit: along its axis, with {each} for what is counted.
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
        *("eval_train_nll", "eval_train_nll"),
        *("Training NLL, evaluated as in validation", _NLL, ".3f"),
        cut=True,
    ),
    Plot("train_nll", "train_nll", "Training NLL", _NLL, ".3f", smooth=True, cut=True),
    Plot(
        *("train_loss", "train_loss", "Training loss"),
        *("bits per {each}, (cross-entropy + α D) / ln 2", ".3f"),
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
        *("updates (own − peer's)", ".0f"),
        rows=True,
    ),
)


def _each(labels: Sequence[Label]) -> str:
    """Give what the runs count: images have a top-1 accuracy."""
    logs = [model.log for label in labels for model in label.models]
    images = [any("top1" in line.values for line in [*log.train, *log.valid]) for log in logs]
    return "image" if all(images) else "token or image" if any(images) else "token"


@dataclass(frozen=True)
class Table:
    """A table: the first ``names`` columns are text, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture, what it shows and what it says to those who cannot see it."""

    file: str
    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Content:
    """All of a report, in the order in which it is read."""

    title: str
    summary: list[str]
    main: Table
    results: list[Table]
    pictures: list[Picture]
    tables: list[Table]
    notes: list[str]


def build(labels: Sequence[Label]) -> Content:
    """Work out and draw everything.

    Raises:
        UserError: if the models of a label have no update of training in common.
    """
    notes = [note for label in labels for run in label.runs for note in run.notes]
    notes += grouping.notes(labels)
    notes += [note for label in labels for note in _odd(label)]
    pictures = []
    for plot in PLOTS:
        picture, said = _picture(plot, labels)
        notes += said
        if picture is not None:
            pictures.append(picture)
    if not any(label.codistilled for label in labels):
        notes.append("No run here has peers, so there is no picture of alpha, D and staleness.")
    results = [*_translations(labels), *_gaps(labels)]
    tables = [_models(labels)] if any(len(label.models) > 1 for label in labels) else []
    tables += [*_settings(labels), _places(labels)]
    title = "Codistillation report"
    return Content(title, summary(labels), _main(labels), results, pictures, tables, notes)


def summary(labels: Sequence[Label]) -> list[str]:
    """Say in one sentence a label what its best validation NLL is."""
    said = []
    for label in labels:
        spread = _spreads(label)
        best, where = spread["best_nll"], spread["best_update"]
        models = f"{len(label.models)} models, " if len(label.models) > 1 else ""
        if best is None:
            text = f"no validation in {_whole(spread['updates'])} updates"
        else:
            text = f"best validation NLL {_nll(best)} at update {_whole(where)}"
            if spread["best_top1"] is not None:
                text += f", best top-1 {_number(spread['best_top1'], '.2f')} %"
        said.append(f"{label.name}: {models}{text}")
    return said


def _main(labels: Sequence[Label]) -> Table:
    several = any(len(label.models) > 1 for label in labels)
    header = ["run", "models"] if several else ["run"]
    every = [_spreads(label) for label in labels]
    images = any(spread["best_top1"] is not None for spread in every)
    each = _each(labels)
    header += [*("best valid NLL", "at update", "last valid NLL")]
    header += ["best top-1 %", "last top-1 %"] if images else []
    header += [*("updates", "words/s", "α at the end", "staleness", "stalled", "restarts")]
    rows = []
    for label, spread in zip(labels, every, strict=True):
        restarts = spread["restarts"]
        total = "-" if restarts is None else f"{restarts.mean * len(label.models):.0f}"
        rows.append(
            [
                label.name,
                *([str(len(label.models))] if several else []),
                _nll(spread["best_nll"]),
                _whole(spread["best_update"]),
                _nll(spread["last_nll"]),
                *(_number(spread[name], ".2f") for name in _top1_columns(images)),
                _whole(spread["updates"]),
                _rate(spread["words_per_second"]),
                _number(spread["alpha"], ".3g"),
                _number(spread["staleness"], ".0f"),
                _share(spread["stall_share"]),
                total,
            ]
        )
    caption = (
        f"NLL in bits per {each} (base 2), lower is better; words/s: median over the training "
        "lines, of all workers of a model together; staleness: mean, own update minus the peer "
        "snapshot's; stalled: share of the time in which training waited on the exchange; "
        "restarts: of all models together."
    )
    if several:
        caption = (
            "A mean over the models of a line, every group of every run of it, and in brackets "
            f"the least and the greatest. {caption}"
        )
    return Table("Runs", header, rows, 1, caption)


def _top1_columns(images: bool) -> tuple[str, ...]:
    return ("best_top1", "last_top1") if images else ()


def _translations(labels: Sequence[Label]) -> list[Table]:
    """Give a table of the translations' scores, if any run has some."""
    scored = {label.name: [run.scores for run in label.runs if run.scores] for label in labels}
    known = [scores for some in scored.values() for scores in some]
    if not known:
        return []
    rows = [
        [
            name,
            str(len(some)),
            _number(table.spread([value for one in some for value in one.models]), ".2f"),
            _number(table.spread([one.ensemble for one in some]), ".2f"),
            _number(table.spread([one.weight_average for one in some]), ".2f"),
        ]
        for name, some in scored.items()
        if some
    ]
    alike = [
        f"{key} {values.pop()}"
        for key in known[0].conditions
        if len(values := {one.conditions.get(key, "-") for one in known}) == 1
    ]
    signatures = sorted({one.signature for one in known if one.signature})
    caption = "; ".join(
        [
            "sacreBLEU, higher is better: a mean over the models, ensembles or averages of a line, "
            "and in brackets the least and the greatest",
            *alike,
            *signatures,
        ]
    )
    header = ["run", "runs", "one model", "ensemble", "mean of the weights"]
    return [Table("Translations", header, rows, 1, f"{caption}.")]


def _gaps(labels: Sequence[Label]) -> list[Table]:
    """Give a table of how far each line is from the first one."""
    if len(labels) < 2:
        return []

    def values(label: Label, name: str) -> list[float]:
        """One number a run: its models know of each other, and are no independent tries."""
        each = [
            [getattr(table.figures(model.log), name) for model in run.models] for run in label.runs
        ]
        return [sum(some) / len(some) for some in each if None not in some]

    def bleu(label: Label) -> list[float]:
        return [run.scores.model for run in label.runs if run.scores is not None]

    first, *others = labels
    columns = [
        ("best valid NLL", ".3f", lambda label: values(label, "best_nll")),
        ("last valid NLL", ".3f", lambda label: values(label, "last_nll")),
        ("best top-1 %", ".2f", lambda label: values(label, "best_top1")),
        ("last top-1 %", ".2f", lambda label: values(label, "last_top1")),
        ("sacreBLEU, one model", ".2f", bleu),
    ]
    columns = [column for column in columns if column[2](first)]
    if not columns:
        return []
    rows = []
    for label in others:
        gaps = [(gap(get(label), get(first)), digits) for _, digits, get in columns]
        rows.append([label.name, *("-" if one is None else one.say(d) for one, d in gaps)])
    caption = (
        "The difference of the means, and after ± its standard error. What counts once is a run, "
        "with the mean over its models. Without ±: one side has a single run, so that nothing is "
        "known of chance."
    )
    header = ["run", *(name for name, _, _ in columns)]
    return [Table(f"Against {first.name}", header, rows, 1, caption)]


def _models(labels: Sequence[Label]) -> Table:
    images = any(len(series.curve(m.log, "valid_top1")) for label in labels for m in label.models)
    header = ["run", "log", "group", "seed", "best valid NLL", "at update", "last valid NLL"]
    header += ["best top-1 %", "last top-1 %"] if images else []
    header += ["updates", "words/s", "α at the end", "staleness", "stalled", "restarts"]
    rows = []
    for label in labels:
        for run in label.runs:
            for model in run.models:
                one = table.spreads([table.figures(model.log)])
                rows.append(
                    [
                        label.name,
                        run.named,
                        str(model.group),
                        "-" if model.seed is None else str(model.seed),
                        _nll(one["best_nll"]),
                        _whole(one["best_update"]),
                        _nll(one["last_nll"]),
                        *(_number(one[name], ".2f") for name in _top1_columns(images)),
                        _whole(one["updates"]),
                        _rate(one["words_per_second"]),
                        _number(one["alpha"], ".3g"),
                        _number(one["staleness"], ".0f"),
                        _share(one["stall_share"]),
                        _whole(one["restarts"]),
                    ]
                )
    return Table("Each model", header, rows, 2)


def _settings(labels: Sequence[Label]) -> list[Table]:
    """Give a table of the settings in which the labels differ, if they do and it is known."""
    known = [label for label in labels if label.runs[0].settings]
    if len(known) < 2:
        return []
    settings = [label.runs[0].settings for label in known]
    names = [
        name
        for name in difference(settings)
        if name in TELLING or len({one[name] for one in settings if name in one}) > 1
        if name != "task"
    ]
    if not names:
        return []
    names.sort(key=lambda name: name not in TELLING)
    more = len(names) - MOST_SETTINGS
    caption = f"and {more} more" if more > 0 else ""
    names = names[:MOST_SETTINGS]
    rows = [[name, *(one.get(name, "-").strip("'") for one in settings)] for name in names]
    header = ["setting", *(label.name for label in known)]
    return [Table("Settings that differ", header, rows, len(header), caption)]


def _places(labels: Sequence[Label]) -> Table:
    rows = [
        [
            label.name,
            run.named,
            str(len(run.models)),
            run.run_id or "-",
            (run.git_commit or "-")[:10],
        ]
        for label in labels
        for run in label.runs
    ]
    return Table("Where it comes from", ["run", "log", "models", "run id", "commit"], rows, 5)


def _odd(label: Label) -> list[str]:
    said = []
    for model in label.models:
        log, name = model.log, model.path
        if log.torn:
            lines = "1 line" if log.torn == 1 else f"{log.torn} lines"
            said.append(f"{name}: {lines} could not be read and are left out.")
        if not log.inner:
            said.append(f"{name}: no line within an epoch; training is shown as epochs' means.")
        for line in [*log.train, *log.valid]:
            if not math.isfinite(line.values.get("loss", 0.0)):
                said.append(f"{name}: a loss that is not finite, first at update {line.update}.")
                break
    return said


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
    unit = plot.unit.format(each=_each(labels))
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
        f"{one.label} {plots.number(value, plot.digits)}"
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
        said.append("Line: mean over the models of a run; band: least to greatest.")
    if {one.dashed for one in lines} == {True, False}:
        said.append("Dashed: trained without peers.")
    if plot.smooth and window >= 1:
        said.append(f"Each curve is a running mean over {window:,.0f} updates.")
    if not measured:
        said.append("Between the updates that a model logged, its values are interpolated.")
    if plot.cut and plots.limits(lines) is not None:
        said.append("The high values of the beginning are left out.")
    return " ".join(said)


def _spreads(label: Label) -> dict[str, Spread | None]:
    figures: list[Figures] = [table.figures(model.log) for model in label.models]
    return dict(table.spreads(figures))


def _nll(spread: Spread | None) -> str:
    return _number(spread, ".3f")


def _whole(spread: Spread | None) -> str:
    """Give the one number that all have, or the range."""
    if spread is None:
        return "-"
    if spread.min == spread.max:
        return f"{spread.min:,.0f}"
    return f"{spread.min:,.0f} to {spread.max:,.0f}"


def _rate(spread: Spread | None) -> str:
    return "-" if spread is None else f"{spread.mean:,.0f}"


def _share(spread: Spread | None) -> str:
    return "-" if spread is None else f"{100 * spread.mean:.2g} %"


def _number(spread: Spread | None, digits: str) -> str:
    if spread is None:
        return "-"
    three = (spread.mean, spread.min, spread.max)
    mean, low, high = (plots.number(value, digits) for value in three)
    return mean if low == high else f"{mean} ({low} to {high})"
