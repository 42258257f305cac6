"""What ``launch.json`` tells of a run, as far as it can be used.

Whoever can write to a run's folder can write it; what is of another kind than launch writes is
left out, and said in a note.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import record
from fairseq_codistill.records import is_text
from fairseq_codistill.report import origin
from fairseq_codistill.report.origin import Origin

MOST_GROUPS = 1000
LONGEST_NAME = 200


@dataclass(frozen=True)
class Launched:
    """What is known of a launch.

    Attributes:
        groups: how many there were; 0 if it is not known.
        run_id: the run's.
        git_commit: that launch ran.
        origin: how the run was made.
        notes: sentences on what is wrong with the file.
    """

    groups: int = 0
    run_id: str | None = None
    git_commit: str | None = None
    origin: Origin | None = None
    notes: list[str] = field(default_factory=list)


def read(out: Path) -> Launched:
    """Return what ``launch.json`` in ``out`` says; nothing if there is none."""
    try:
        written = record.read(out)
    except (UserError, OSError, ValueError, RecursionError) as error:
        return Launched(notes=[f"{out}/launch.json cannot be used and is left out: {error}."])
    if written is None:
        return Launched()
    return _parse(written, out)


def _parse(written: Mapping[str, Any], out: Path) -> Launched:
    groups = written.get("groups", [])
    told = {name: written.get(name) for name in ("run_id", "git_commit")}
    made, said = None, []
    if not isinstance(groups, list) or len(groups) > MOST_GROUPS:
        groups = []
        said.append("groups")
    for name, text in told.items():
        if text is not None and not is_text(text, 0, LONGEST_NAME):
            told[name] = None
            said.append(name)
    try:
        made = origin.of(written, len(groups))
    except ValueError as error:
        said.append(str(error))
    notes = []
    if said:
        notes.append(
            f"{out}/launch.json has something else than launch writes as {', '.join(said)}, which "
            "is left out."
        )
    return Launched(len(groups), told["run_id"], told["git_commit"], made, notes)
