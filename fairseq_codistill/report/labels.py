"""Which runs make one line of the report, and what to call it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_codistill.report import figures
from fairseq_codistill.report.figures import Spread
from fairseq_codistill.report.runs import Model, Run
from fairseq_codistill.report.settings import alike, difference


@dataclass
class Label:
    """One line of the report: runs that are told apart by nothing but chance.

    Attributes:
        name: what the line is called.
        runs: at least one.
    """

    name: str
    runs: list[Run]

    @property
    def models(self) -> list[Model]:
        """The models of all its runs."""
        return [model for run in self.runs for model in run.models]

    @property
    def codistilled(self) -> bool:
        """Whether any of its models has a peer, or is to have one."""
        return any(
            _is_to_have_peers(model.settings)
            or any(line.values.get("codistill_peers") for line in model.log.train)
            for model in self.models
        )

    def spreads(self) -> Mapping[str, Spread | None]:
        """Give the spread of each of the ``Figures`` over its models."""
        return figures.spreads([figures.measure(model.log) for model in self.models])


def _is_to_have_peers(settings: Mapping[str, str]) -> bool:
    """Tell whether a model of such settings looks at others at some time."""
    if settings.get("codistill_num_groups", "1") == "1":
        return False
    grows = settings.get("codistill_alpha_schedule") == "'step'"
    return grows or settings.get("codistill_alpha") not in ("0", "0.0")


def counted(labels: Sequence[Label]) -> str:
    """Give what the runs count: images have a top-1 accuracy."""
    logs = [model.log for label in labels for model in label.models]
    images = [any("top1" in line.values for line in [*log.train, *log.valid]) for log in logs]
    return "image" if all(images) else "token or image" if any(images) else "token"


def divided_by(labels: Sequence[Label]) -> str:
    """Return what the training loss is divided by: with --sentence-avg, sentences."""
    each = counted(labels)
    models = [model for label in labels for model in label.models]
    by_sentence = [model.settings.get("sentence_avg") == "True" for model in models]
    if by_sentence and all(by_sentence):
        return "sentence"
    return f"{each} or sentence" if any(by_sentence) else each


def group(runs: Sequence[Run], named: Sequence[tuple[str, Sequence[Run]]]) -> list[Label]:
    """Put runs that differ in their seed only into one line.

    Args:
        runs: those that the user has left to us.
        named: those that the user has put together, under the name given.
    """
    together: list[list[Run]] = []
    for run in runs:
        for others in together:
            if alike(run.settings, others[0].settings):
                others.append(run)
                break
        else:
            together.append([run])
    labels = [
        Label(name, some) for name, some in zip(_names(together, named), together, strict=True)
    ]
    for name, some in named:
        known = next((label for label in labels if label.name == name), None)
        if known is None:
            labels.append(Label(name, list(some)))
        else:
            known.runs.extend(some)
    return labels


def notes(labels: Sequence[Label]) -> list[str]:
    """Say what the reader should know of the lines."""
    said = []
    for label in labels:
        names = difference([run.settings for run in label.runs if run.settings])
        if names:
            said.append(
                f"{label.name}: its runs differ in more than the seed: {', '.join(names[:8])}"
                + (f" and {len(names) - 8} more." if len(names) > 8 else ".")
            )
    return said


def _names(together: list[list[Run]], named: Sequence[tuple[str, Sequence[Run]]]) -> list[str]:
    """Name each line after its folders, with as much of their paths as tells them apart."""
    paths = [[_parts(run.named) for run in runs] for runs in together]
    depths = [1] * len(paths)
    while True:
        names = [
            _common(["/".join(parts[-depth:]) for parts in some])
            for depth, some in zip(depths, paths, strict=True)
        ]
        count = Counter([*names, *(name for name, _ in named)])
        short = [
            index
            for index, name in enumerate(names)
            if count[name] > 1 and depths[index] < max(map(len, paths[index]))
        ]
        if not short:
            break
        for index in short:
            depths[index] += 1
    return [f"{name} ({i})" if count[name] > 1 else name for i, name in enumerate(names, 1)]


def _parts(named: str) -> tuple[str, ...]:
    path = Path(os.path.abspath(named))
    if path.suffix and path.is_file():
        # runs/a/log.txt is run a; a.log is run a.
        path = path.parent if path.stem in ("log", "train", "hydra_train") else path.with_suffix("")
    return path.parts[1:] or (named,)


def _common(names: list[str]) -> str:
    """Give what several names have in common: ``plain-seed1``, ``plain-seed2`` are ``plain``."""
    if len(names) == 1:
        return names[0]
    start = os.path.commonprefix(names)
    if any(name[len(start) : len(start) + 1].isdecimal() for name in names):
        # A number that only begins alike, as 12 and 13 do, is not in common.
        start = start.rstrip("0123456789")
    start = re.sub(r"(^|[\s._/-]+)(seeds?|runs?|s)?[\s._=/-]*$", "", start, flags=re.IGNORECASE)
    return start or f"{names[0]} and {len(names) - 1} more"
