"""What the user named: an exchange, or the OUT of a ``codistill launch``, which has one.

Whoever can write to a directory can put a ``launch.json`` there.  One that lies in an exchange is
never read.  One that others may have written says what was launched, and is not obeyed: it opens
nothing.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import record
from fairseq_codistill.launch.dialects import recognise
from fairseq_codistill.records import Unreadable
from fairseq_codistill.records.address import check_address, is_uri, resolved
from fairseq_codistill.records.guarded import why_not_trusted

GROUP = re.compile(r"group-(0|[1-9][0-9]{0,5})", re.ASCII)
MANIFEST = re.compile(r"([0-9]{10})\.json", re.ASCII)

# Directories of groups that are looked into to tell an exchange.
_GROUPS_TRIED = 1024


@dataclass(frozen=True)
class Launched:
    """What ``OUT/launch.json`` tells.

    Attributes:
        out: the directory.
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
        notes: sentences about how it was found.
    """

    exchange: str
    launched: Launched | None = None
    notes: tuple[str, ...] = ()


def find(named: str) -> Place:
    """Find the exchange that ``named`` is or has.

    Raises:
        UserError: if it is or has none.
    """
    if is_uri(named) or ("::" in named and not os.path.lexists(named)):
        return Place(_checked(named))
    try:
        return _find(Path(named))
    except FileNotFoundError:
        raise UserError(
            f"{named} is not there; name the --out of a launch, or an exchange (a path or a URI)"
        ) from None
    except NotADirectoryError:
        raise UserError(f"{named} is a file; name the --out of a launch, or an exchange") from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{named} cannot be looked at ({getattr(error, 'strerror', None) or error}); name the "
            "--out of a launch, or an exchange (a path or a URI), that you may read"
        ) from None


def _find(directory: Path) -> Place:
    names = os.listdir(directory)
    if _is_exchange(directory, names):
        return Place(_checked(str(directory)))
    if record.NAME in names:
        return _of_launch(directory)
    if (directory / "exchange").is_dir():
        return Place(_checked(str(directory / "exchange")))
    if names:
        raise UserError(
            f"{directory} is no exchange (it has no group-0/alive.json or the like) and no "
            "launch's OUT (it has no launch.json); name one of these"
        )
    return Place(_checked(str(directory)))


def _is_exchange(directory: Path, names: list[str]) -> bool:
    """Whether a group has left a file of the contract there."""
    groups = [name for name in names if GROUP.fullmatch(name)]
    return any(_has_left_a_file(directory / name) for name in groups[:_GROUPS_TRIED])


def _has_left_a_file(group: Path) -> bool:
    try:
        if group.is_symlink():
            return False
        with os.scandir(group) as entries:
            return any(one.name == "alive.json" or MANIFEST.fullmatch(one.name) for one in entries)
    except OSError:
        return False  # whatever it is, it is nothing that a group has left for us


def _of_launch(out: Path) -> Place:
    path, inside = out / record.NAME, out / "exchange"
    try:
        why = why_not_trusted(path)
        written = record.load(path)
    except (OSError, Unreadable) as error:
        if inside.is_dir():
            note = f"{path} cannot be used ({error}); {inside} is shown"
            return Place(_checked(str(inside)), notes=(note,))
        raise UserError(
            f"{path} is not of this version's making ({error}); name the exchange itself"
        ) from None
    groups = len(written["groups"])
    if groups == 1:
        raise UserError(
            f"the run in {out} has one group, and a single group exchanges nothing; see "
            f"{out / 'group-0' / 'log.txt'}"
        )
    launched = Launched(
        out=out,
        run_id=written["run_id"],
        groups=groups,
        time=written["time"],
        launches=len(written["history"]) + 1,
    )
    if why is None:
        return _recorded(launched, written)
    chmod = shlex.join(["chmod", "go-w", str(out), str(path)])
    remedy = f"name the exchange itself, or, if {out} is yours, run: {chmod}"
    if not inside.is_dir():
        raise UserError(f"{path} is not obeyed, as {why}, and {inside} is not there; {remedy}")
    note = f"{path} is not obeyed, as {why}; {inside} is shown. Should it be another, {remedy}"
    return Place(_checked(str(inside)), launched, (note,))


def _recorded(launched: Launched, written: Mapping[str, Any]) -> Place:
    """Find the exchange that launch has written down."""
    notes: tuple[str, ...] = ()
    inside = launched.out / "exchange"
    named = written["exchange"] if "exchange" in written else _from_command(written)
    if named is None:
        named = str(inside)
        if "exchange" not in written:
            note = (
                f"{launched.out / record.NAME} is of an earlier version and does not tell where "
                f"the exchange is; {inside} is shown. Should it be another, name it itself"
            )
            notes = (note,)
    # Earlier versions wrote paths relative to where launch ran.
    exchange = resolved(_checked(named), written.get("directory", "."))
    if is_uri(exchange):
        return Place(exchange, launched, notes)
    # And OUT may have been moved or mounted elsewhere since.
    if not os.path.exists(exchange) and inside.is_dir():
        exchange = str(inside)
    return Place(_checked(exchange), launched, notes)


def _from_command(written: Mapping[str, Any]) -> str | None:
    """Return the exchange that the first group was told of by an earlier version's launch.

    Only the command itself is looked at; a file that it names is not read.
    """
    try:
        dialect = recognise(written["groups"][0][0]["argv"])
    except (IndexError, UserError):
        return None
    return dialect.read(dialect.arguments, "task.codistill_dir")


def _checked(named: str) -> str:
    try:
        check_address(named)
    except ValueError as error:
        raise UserError(f"{error}") from None
    return named
