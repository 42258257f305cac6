"""What the user named as a RUN: which logs it has, one for each model."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import record
from fairseq_codistill.report import agreement, logs, origin, scores, settings
from fairseq_codistill.report.agreement import Agreement
from fairseq_codistill.report.logs import Log
from fairseq_codistill.report.origin import Origin
from fairseq_codistill.report.scores import Scores
from fairseq_codistill.report.settings import Settings

USUAL = ("log.txt", "train.log", "hydra_train.log")
ENDINGS = (".log", ".txt", ".out")


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
        return int(text) if text.isdecimal() else None


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
    if not path.exists():
        raise UserError(
            f"{named} is not there; name the --out of a launch, the folder of a run with a log in "
            "it, or a log"
        )
    if not path.is_dir():
        return Run(named, [_model(0, path)], [])
    groups = _groups(path)
    if not groups:
        return Run(named, [_model(0, _log_in(path))], [])
    return _launched(named, path, groups)


def _launched(named: str, out: Path, groups: dict[int, Path]) -> Run:
    written: dict[str, Any] = record.read(out) or {}
    models, notes = [], []
    for group in sorted({*groups, *range(len(written.get("groups", [])))}):
        path = out / f"group-{group}" / "log.txt"
        if not path.exists():
            notes.append(f"{named}: group {group} has no log.txt and is left out.")
            continue
        try:
            models.append(_model(group, path))
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
        run_id=written.get("run_id"),
        git_commit=written.get("git_commit"),
        scores=found,
        agreement=alike,
        origin=origin.of(written),
    )


def _model(group: int, path: Path) -> Model:
    log = logs.read(path)
    if not log.train:
        raise UserError(
            f"{path} has no line of training in fairseq's --log-format json or simple: either it "
            "is no such log, or training has not come to its first --log-interval yet"
        )
    return Model(group, path, log, settings.parse(log.settings))


def _groups(folder: Path) -> dict[int, Path]:
    found = {}
    for path in folder.glob("group-*/log.txt"):
        match = re.fullmatch(r"group-(\d+)", path.parent.name)
        if match is not None:
            found[int(match[1])] = path
    return found


def _log_in(folder: Path) -> Path:
    """Find the log in the folder of a plain run."""
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise UserError(f"{folder} cannot be read: {error.strerror or error}") from None
    for name in USUAL:
        if name in names:
            return folder / name
    candidates = [folder / name for name in names if name.endswith(ENDINGS)]
    logs_found = [path for path in candidates if path.is_file() and logs.read(path).train]
    if len(logs_found) > 1:
        said = ", ".join(path.name for path in logs_found)
        raise UserError(f"{folder} has several logs ({said}); name the one that you mean")
    if not logs_found:
        raise UserError(
            f"{folder} has no log: no group-<i>/log.txt of a launch, no {', '.join(USUAL)} and no "
            f"other {', '.join(ENDINGS)} with fairseq's lines of training; name the log itself"
        )
    return logs_found[0]
