"""What the user named as a RUN: which logs it has, one for each model."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.report import agreement, launched, logs, scores, settings
from fairseq_codistill.report.agreement import Agreement
from fairseq_codistill.report.logs import Log
from fairseq_codistill.report.origin import Origin
from fairseq_codistill.report.scores import Scores
from fairseq_codistill.report.settings import Settings

USUAL = ("log.txt", "train.log", "hydra_train.log")
ENDINGS = (".log", ".txt", ".out")
LONGEST_SEED = 20


@dataclass(frozen=True)
class Model:
    """One model's training: a group of a codistilled run, or a plain run.

    Attributes:
        group: its index, 0 for a plain run.
        path: its log.
        log: what that says.
        settings: its own.
    """

    group: int
    path: Path
    log: Log
    settings: Settings

    @property
    def seed(self) -> int | None:
        """Its seed, if the log tells."""
        text = self.settings.get("seed", "")
        return int(text) if text.isdecimal() and len(text) <= LONGEST_SEED else None


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        named: as the user did.
        models: at least one.
        notes: sentences about what is missing.
        run_id: if launch or the log tells.
        git_commit: that launch ran.
        scores: of its translations, if evaluate.sh has made them.
        agreement: of its groups' models on images, if vision.diagnostics has been asked.
        origin: how it was made, if launch has made it.
    """

    named: str
    models: list[Model]
    notes: list[str]
    run_id: str | None = None
    git_commit: str | None = None
    scores: Scores | None = None
    agreement: Agreement | None = None
    origin: Origin | None = None

    @property
    def settings(self) -> Settings:
        """Those of its first model."""
        return self.models[0].settings


def find(named: str) -> Run:
    """Find and read the logs of a run.

    Raises:
        UserError: if there is none, or none with a line of training.
    """
    path = Path(named)
    try:
        is_folder = stat.S_ISDIR(os.stat(path).st_mode)
        names = sorted(os.listdir(path)) if is_folder else []
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{named} is not there; name the --out of a launch, the folder of a run with a log in "
            "it, or a log"
        ) from None
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror or error}") from None
    if not is_folder:
        return Run(named, [_model(path, logs.read(path))], [])
    groups = _groups(path, names)
    if groups:
        return _launched(named, path, groups)
    return Run(named, [_model_in(path, names)], [])


def _launched(named: str, out: Path, groups: dict[int, Path]) -> Run:
    told = launched.read(out)
    models, notes = [], list(told.notes)
    for group in sorted({*groups, *range(told.groups)}):
        if group not in groups:
            notes.append(f"{named}: group {group} has no log.txt and is left out.")
            continue
        try:
            models.append(_model(groups[group], logs.read(groups[group]), group))
        except UserError as error:
            notes.append(f"{named}: group {group} is left out: {error}.")
    if not models:
        raise UserError(" ".join([f"no group of {named} has trained.", *notes]).rstrip("."))
    found, complaint = scores.read(out)
    alike, odd = agreement.read(out)
    notes += [said for said in (complaint, odd) if said]
    return Run(
        named=named,
        models=models,
        notes=notes,
        run_id=told.run_id,
        git_commit=told.git_commit,
        scores=found,
        agreement=alike,
        origin=told.origin,
    )


def _model(path: Path, log: Log, group: int = 0) -> Model:
    if not log.train:
        raise UserError(
            f"{path} has no line of training in fairseq's --log-format json or simple: either it "
            "is no such log, or training has not come to its first --log-interval yet"
        )
    return Model(group, path, log, settings.parse(log.settings))


def _groups(folder: Path, names: Sequence[str]) -> dict[int, Path]:
    """Find the logs of a launch's groups."""
    found = {}
    for name in names:
        match = re.fullmatch(r"group-([0-9]{1,6})", name)
        path = folder / name / "log.txt"
        if match is not None and os.path.lexists(path):
            found[int(match[1])] = path
    return found


def _model_in(folder: Path, names: Sequence[str]) -> Model:
    """Find the log in the folder of a plain run, and read it."""
    for name in USUAL:
        if name in names:
            return _model(folder / name, logs.read(folder / name))
    read = {name: logs.read(folder / name) for name in names if _may_be_log(folder / name)}
    read = {name: log for name, log in read.items() if log.train}
    if len(read) > 1:
        raise UserError(
            f"{folder} has several logs ({', '.join(read)}); name the one that you mean"
        )
    if not read:
        raise UserError(
            f"{folder} has no log: no group-<i>/log.txt of a launch, no {', '.join(USUAL)} and no "
            f"other {', '.join(ENDINGS)} with fairseq's lines of training; name the log itself"
        )
    ((name, log),) = read.items()
    return _model(folder / name, log)


def _may_be_log(path: Path) -> bool:
    return path.name.endswith(ENDINGS) and os.path.isfile(path)
