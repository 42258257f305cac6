"""Work out all of a report."""

from __future__ import annotations

from collections.abc import Sequence

from fairseq_codistill.report import labels as grouping
from fairseq_codistill.report import pictures, plots, tables, wording
from fairseq_codistill.report.content import Content, Listing, made_printable
from fairseq_codistill.report.labels import Label


def build(labels: Sequence[Label]) -> Content:
    """Work out everything, and draw it if there is something to draw with.

    Raises:
        UserError: if the models of a label have no update of training in common.
    """
    notes = [note for label in labels for run in label.runs for note in run.notes]
    notes += grouping.notes(labels)
    notes += [note for label in labels for note in _odd(label)]
    missing = plots.missing()
    drawn, said = ([], [missing]) if missing else pictures.pictures(labels)
    notes += said
    if drawn and not any(label.codistilled for label in labels):
        notes.append("No run here has peers, so there is no picture of alpha, D and staleness.")
    several = any(len(label.models) > 1 for label in labels)
    content = Content(
        title="Codistillation report",
        summary=summary(labels),
        main=tables.main(labels),
        results=[
            *tables.translations(labels),
            *tables.agreements(labels),
            *tables.gaps(labels),
        ],
        pictures=drawn,
        tables=[
            *([tables.models(labels)] if several else []),
            *tables.settings(labels),
            tables.places(labels),
        ],
        made=made(labels),
        notes=notes,
    )
    return made_printable(content)


def summary(labels: Sequence[Label]) -> list[str]:
    """Say in one sentence a label what its best validation NLL is."""
    said = []
    for label in labels:
        spread = label.spreads()
        best, where = spread["best_nll"], spread["best_update"]
        models = f"{len(label.models)} models, " if len(label.models) > 1 else ""
        if best is None:
            text = f"no validation in {wording.whole(spread['updates'])} updates"
        else:
            text = f"best validation NLL {wording.nll(best)} at update {wording.whole(where)}"
            if spread["best_top1"] is not None:
                text += f", best top-1 {wording.percent(spread['best_top1'])} %"
        said.append(f"{label.name}: {models}{text}")
    return said


def made(labels: Sequence[Label]) -> Listing | None:
    """Give the command of each label's first run, and all versions; None if no run tells."""
    lines: list[str] = []
    versions: dict[str, list[str]] = {}
    for label in labels:
        known = [run.origin for run in label.runs if run.origin is not None]
        if not known:
            continue
        lines += [f"# {label.name}", known[0].command]
        for one in known:
            said = ", ".join(f"{name} {version}" for name, version in one.versions.items())
            names = versions.setdefault(said, [])
            if label.name not in names:
                names.append(label.name)
    if not lines:
        return None
    if len(versions) == 1:
        said = next(iter(versions))
    else:
        said = "; ".join(f"{one} ({', '.join(names)})" for one, names in versions.items())
    caption = (
        "The command of the first run of each line: absolute paths by their last component, no "
        f'--out, "..." where launch has not kept its options. Versions: {said}.'
    )
    return Listing("How these were made", lines, caption)


def _odd(label: Label) -> list[str]:
    said = []
    for model in label.models:
        log, name = model.log, model.path
        if log.torn:
            lines = "1 line" if log.torn == 1 else f"{log.torn} lines"
            said.append(f"{name}: {lines} could not be read and are left out.")
        if not log.inner:
            said.append(f"{name}: no line within an epoch; training is shown as epochs' means.")
        odd = next(
            (o for o in (line.not_finite for line in [*log.train, *log.valid]) if o is not None),
            None,
        )
        if odd is not None:
            said.append(f"{name}: a loss that is not finite, first at update {odd}.")
    return said
