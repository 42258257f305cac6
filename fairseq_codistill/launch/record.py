"""``OUT/launch.json``: what was started, and what a later launch on the same OUT needs to go on.

No variable of the surrounding environment is written, so no key ever is.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from fairseq_codistill import __version__, installed
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.commands import Worker

FORMAT = 1


@dataclass(frozen=True)
class Identity:
    """What stays the same over all launches on one OUT.

    Attributes:
        run_id: shared by all groups.
        nonces: one for each group.
    """

    run_id: str
    nonces: tuple[str, ...]


@contextmanager
def only_launch(out: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``out``, which a process that dies gives back by itself.

    Args:
        out: the run's directory.
        warn: is told if the file system has no locks; launch goes on without one.

    Raises:
        UserError: if another launch holds it, or ``out`` cannot be made.
    """
    try:
        out.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be made: {error.strerror}; name another") from None
    with ExitStack() as stack:
        try:
            lock = stack.enter_context((out / "launch.lock").open("w"))
            _lock(lock)
        except BlockingIOError:
            raise UserError(
                f"--out {out} is in use by another launch; wait for it or choose another directory"
            ) from None
        except OSError as error:
            warn(
                f"{out / 'launch.lock'} cannot be locked ({error.strerror}); see to it that no "
                "second launch runs on this --out"
            )
        yield


def _lock(file: IO[str]) -> None:
    """Lock a file.

    Raises:
        BlockingIOError: if it is locked.
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        try:
            # Some network file systems have these and not those.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError as error:
            # As POSIX allows, for EAGAIN.
            raise BlockingIOError(error.errno, error.strerror) from error


def identity(out: Path, groups: int) -> Identity:
    """Give the run id and the nonces of the run in ``out``, new ones if it has none yet.

    Raises:
        UserError: if ``out`` holds a run with another number of groups, or a file that is not ours.
    """
    previous = read(out)
    if previous is None:
        nonces = tuple(secrets.token_hex(16) for _ in range(groups))
        return Identity(run_id=secrets.token_hex(8), nonces=nonces)
    if len(previous["nonces"]) != groups:
        raise UserError(
            f"--groups {groups} is not the number of groups of the run in {out}, which is "
            f"{len(previous['nonces'])}; give that, or choose another --out"
        )
    return Identity(run_id=previous["run_id"], nonces=tuple(previous["nonces"]))


def write(
    out: Path,
    who: Identity,
    command: Sequence[str],
    groups: list[list[Worker]],
    options: Sequence[str],
) -> None:
    """Write ``launch.json``; what it said of earlier launches goes to its history.

    Args:
        out: the run's folder.
        who: what it keeps over all launches.
        command: the user's.
        groups: the processes of each.
        options: of launch, those that decide what is trained.
    """
    previous = read(out)
    history: list[Mapping[str, Any]] = []
    if previous is not None:
        history = previous.pop("history")
        history.append({k: v for k, v in previous.items() if k not in ("run_id", "nonces")})
    record = {
        "format": FORMAT,
        "run_id": who.run_id,
        "nonces": list(who.nonces),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        # What relative paths in the commands are relative to.
        "directory": os.getcwd(),
        "options": list(options),
        "command": list(command),
        "groups": [
            [{"argv": list(worker.argv), "env": dict(worker.env)} for worker in workers]
            for workers in groups
        ],
        "versions": versions(),
        "git_commit": installed.git_commit(),
        "history": history,
    }
    temporary = out / "launch.json.tmp"
    temporary.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(temporary, out / "launch.json")


def versions() -> dict[str, str | None]:
    """Give the versions of all that the numbers of a run may depend on."""
    return {
        "python": platform.python_version(),
        "fairseq_codistill": __version__,
        "torch": installed.version_of("torch"),
        **installed.fairseq_distributions(),
    }


def read(out: Path) -> dict[str, Any] | None:
    """Give what ``launch.json`` says; None if ``out`` has none.

    Raises:
        UserError: if it is not of this version's making.
    """
    path = out / "launch.json"
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
        found = record["format"]
    except (ValueError, KeyError, TypeError):
        found = None
    if found != FORMAT:
        raise UserError(f"{path} is not of this version's making; choose another --out")
    return record
