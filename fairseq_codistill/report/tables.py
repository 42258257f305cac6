"""The tables of a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fairseq_codistill.report import figures, series, wording
from fairseq_codistill.report.compare import gap
from fairseq_codistill.report.content import Table
from fairseq_codistill.report.figures import Spread
from fairseq_codistill.report.labels import Label, counted
from fairseq_codistill.report.settings import difference

MOST_SETTINGS = 16
# Settings that are of interest although only some of the runs have them.
TELLING = {
    *("criterion", "label_smoothing", "codistill_num_groups", "codistill_interval"),
    *("codistill_alpha", "codistill_alpha_growth", "codistill_mode", "codistill_peer_dropout"),
    *("codistill_topology", "codistill_teachers"),
}


def main(labels: Sequence[Label]) -> Table:
    """Give the table with a row for each label."""
    several = any(len(label.models) > 1 for label in labels)
    images, rate = _of_images(labels), _rate(labels)
    header = ["run", *(["models"] if several else []), *_header(images, rate)]
    rows = []
    for label in labels:
        spread = label.spreads()
        restarts = spread["restarts"]
        total = "-" if restarts is None else f"{restarts.mean * len(label.models):.0f}"
        models = [str(len(label.models))] if several else []
        rows.append([label.name, *models, *_cells(spread, images), total])
    caption = (
        f"NLL in bits per {counted(labels)} (base 2), lower is better; {rate}: median over "
        "the training lines, of all workers of a model together; staleness: mean, own update minus "
        "the peer snapshot's; stalled: share of the time in which training waited on the "
        "exchange; restarts: of all models together."
    )
    if several:
        caption = (
            "A mean over the models of a line, every group of every run of it, and in brackets "
            f"the least and the greatest. {caption}"
        )
    return Table("Runs", header, rows, 1, caption)


def models(labels: Sequence[Label]) -> Table:
    """Give the table with a row for each model."""
    images, rate = _of_images(labels), _rate(labels)
    rows = []
    for label in labels:
        for run in label.runs:
            for model in run.models:
                one = figures.spreads([figures.measure(model.log)])
                seed = "-" if model.seed is None else str(model.seed)
                names = [label.name, run.named, str(model.group), seed]
                rows.append([*names, *_cells(one, images), wording.whole(one["restarts"])])
    header = ["run", "log", "group", "seed", *_header(images, rate)]
    return Table("Each model", header, rows, 2)


def _of_images(labels: Sequence[Label]) -> bool:
    return any(len(series.curve(m.log, "valid_top1")) for label in labels for m in label.models)


def _rate(labels: Sequence[Label]) -> str:
    rates = {"token": "words/s", "image": "images/s", "token or image": "words or images/s"}
    return rates[counted(labels)]


def _header(images: bool, rate: str) -> list[str]:
    return [
        *("best valid NLL", "at update", "last valid NLL"),
        *(("best top-1 %", "last top-1 %") if images else ()),
        *("updates", rate, "α at the end", "staleness", "stalled", "restarts"),
    ]


def _cells(of: Mapping[str, Spread | None], images: bool) -> list[str]:
    """Give what stands below the header, but for the restarts."""
    return [
        wording.nll(of["best_nll"]),
        wording.whole(of["best_update"]),
        wording.nll(of["last_nll"]),
        *([wording.percent(of["best_top1"]), wording.percent(of["last_top1"])] if images else []),
        wording.whole(of["updates"]),
        wording.rate(of["images_per_second"] or of["words_per_second"]),
        wording.spread(of["alpha"], ".3g"),
        wording.spread(of["staleness"], ",.1f"),
        wording.share(of["stall_share"]),
    ]


def translations(labels: Sequence[Label]) -> list[Table]:
    """Give a table of the translations' scores, if any run has some."""
    scored = {label.name: [run.scores for run in label.runs if run.scores] for label in labels}
    known = [scores for some in scored.values() for scores in some]
    if not known:
        return []
    rows = [
        [
            name,
            str(len(some)),
            wording.percent(figures.spread([value for one in some for value in one.models])),
            wording.percent(figures.spread([one.ensemble for one in some])),
            wording.percent(figures.spread([one.weight_average for one in some])),
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


def agreements(labels: Sequence[Label]) -> list[Table]:
    """Give a table of how alike the models of a run answer on images, if any run tells."""
    rows = []
    for label in labels:
        some = [run.agreement for run in label.runs if run.agreement is not None]
        if some:
            rows.append(
                [
                    label.name,
                    str(len(some)),
                    wording.percent(figures.spread([100 * one.shares[-1] for one in some])),
                    wording.percent(figures.spread([100 * one.churn[-1] for one in some])),
                    wording.whole(figures.spread([one.updates[-1] for one in some])),
                ]
            )
    if not rows:
        return []
    caption = (
        "Agreement: of the validation images, how many two groups' models give the same class; "
        "churn: the rest. The last checkpoints that were compared; a mean over the runs of a line, "
        "and in brackets the least and the greatest."
    )
    header = ["run", "runs", "agreement %", "churn %", "at update"]
    return [Table("Agreement between groups", header, rows, 1, caption)]


def gaps(labels: Sequence[Label]) -> list[Table]:
    """Give a table of how far each line is from the first one."""
    if len(labels) < 2:
        return []

    def values(label: Label, name: str) -> list[float]:
        """One number a run: its models know of each other, and are no independent tries."""
        each = [
            [getattr(figures.measure(model.log), name) for model in run.models]
            for run in label.runs
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


def settings(labels: Sequence[Label]) -> list[Table]:
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


def places(labels: Sequence[Label]) -> Table:
    """Give the table of where each run is, and of what it was made with."""
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
