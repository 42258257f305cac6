"""What the user named: an exchange, or the OUT of a ``codistill launch``, which has one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import record
from fairseq_codistill.launch.dialects import recognise


@dataclass(frozen=True)
class Launched:
    """What ``OUT/launch.json`` tells.

    Attributes:
        out: the folder.
        run_id: of its run.
        groups: number of groups.
        time: when it was last launched, in ISO format.
        launches: how often it was.
    """

    out: Path
    run_id: str
    groups: int
    time: str
    launches: int


@dataclass(frozen=True)
class Place:
    """Where to look.

    Attributes:
        exchange: a path or a URI.
        launched: what is known besides, if a launch's OUT was named.
    """

    exchange: str
    launched: Launched | None = None


def is_uri(named: str) -> bool:
    """Tell a URI from a path of this machine."""
    return "://" in named or "::" in named


def find(named: str) -> Place:
    """Find the exchange that ``named`` is or has.

    Raises:
        UserError: if it is or has none.
    """
    if is_uri(named):
        return Place(named)
    folder = Path(named)
    if not folder.exists():
        raise UserError(
            f"{named} is not there; name the --out of a launch, or an exchange (a path or a URI)"
        )
    if not folder.is_dir():
        raise UserError(f"{named} is a file; name the --out of a launch, or an exchange")
    written = record.read(folder)
    if written is not None:
        return _of_launch(folder, written)
    if any(folder.glob("group-*/alive.json")) or any(folder.glob("group-*/[0-9]*.json")):
        return Place(str(folder))
    if (folder / "exchange").is_dir():
        return Place(str(folder / "exchange"))
    if any(folder.iterdir()):
        raise UserError(
            f"{named} is no exchange (it has no group-0/alive.json or the like) and no launch's "
            "OUT (it has no launch.json); name one of these"
        )
    return Place(str(folder))


def _of_launch(out: Path, written: dict[str, Any]) -> Place:
    groups = written["groups"]
    if len(groups) == 1:
        raise UserError(
            f"the run in {out} has one group, and a single group exchanges nothing; see "
            f"{out / 'group-0' / 'log.txt'}"
        )
    launched = Launched(
        out=out,
        run_id=written["run_id"],
        groups=len(groups),
        time=written["time"],
        launches=len(written["history"]) + 1,
    )
    named = recognise(groups[0][0]["argv"]).value("task.codistill_dir") or "exchange"
    if is_uri(named):
        return Place(named, launched)
    # Relative to where launch ran; and OUT may have been moved or mounted elsewhere since.
    exchange, inside = Path(written.get("directory", "."), named), out / "exchange"
    moved = not exchange.exists() and inside.is_dir()
    return Place(str(inside if moved else exchange), launched)
