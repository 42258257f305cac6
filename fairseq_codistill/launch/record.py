"""``OUT/launch.json``: what was started, and what a later launch on the same OUT needs to go on.

No variable of the surrounding environment is written, so no key ever is.  Other commands read the
file too, whoever has written it: every field is checked.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import reprlib
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fairseq_codistill import __version__, installed
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.commands import Worker
from fairseq_codistill.records import Unreadable, is_text, printable, read_object, write_file
from fairseq_codistill.records.guarded import LARGEST_LAUNCH_RECORD

NAME = "launch.json"
FORMAT = 1

# Launch runs all groups on one machine.
MOST_GROUPS = 10_000

# Far above what is in a record; what writes it again as JSON needs some stack for each level.
_DEEPEST = 12

# Where the launches on one OUT would fill more of what a reader takes, the oldest are left out.
_LARGEST_WRITTEN = LARGEST_LAUNCH_RECORD * 3 // 4


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
        # Not writable by others, whatever the umask: what is in it is obeyed.
        out.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {out} cannot be made ({error.strerror or error}); choose another directory, "
            "or remove what is in its place"
        ) from None
    path = out / "launch.lock"
    # What cannot be a lock must neither be followed nor waited for.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with ExitStack() as stack:
        try:
            descriptor = os.open(path, flags, 0o644)
            stack.callback(os.close, descriptor)
            _lock(descriptor)
        except BlockingIOError:
            raise UserError(
                f"--out {out} is in use by another launch; wait for it or choose another directory"
            ) from None
        except OSError as error:
            warn(
                f"{path} cannot be locked ({error.strerror or error}); see to it that no second "
                "launch runs on this --out"
            )
        yield


def _lock(descriptor: int) -> None:
    """Lock a file.

    Raises:
        BlockingIOError: if it is locked.
        OSError: if the file system has no locks.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:
        try:
            # Some network file systems have these and not those.
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except PermissionError as error:
            # As POSIX allows, for EAGAIN.
            raise BlockingIOError(error.errno, error.strerror) from error


def identity(out: Path, groups: int, may_differ: bool = False) -> Identity:
    """Return the run id and the nonces of the run in ``out``, new ones if it has none yet.

    Args:
        out: the run's directory.
        groups: their number.
        may_differ: whether it may be another one than the run has had so far.

    Raises:
        UserError: if ``out`` holds a run with another number of groups, or a file that is not ours.
    """
    previous = read(out)
    if previous is None:
        nonces = tuple(secrets.token_hex(16) for _ in range(groups))
        return Identity(run_id=secrets.token_hex(8), nonces=nonces)
    nonces = previous["nonces"][:groups]
    if len(previous["nonces"]) != groups and not may_differ:
        raise UserError(
            f"--groups {groups} is not the number of groups of the run in {out}, which is "
            f"{len(previous['nonces'])}; give that, choose another --out, or add --allow-changed "
            "groups to go on with another number"
        )
    nonces += [secrets.token_hex(16) for _ in range(groups - len(nonces))]
    return Identity(run_id=previous["run_id"], nonces=tuple(nonces))


def write(
    out: Path,
    who: Identity,
    command: Sequence[str],
    groups: list[list[Worker]],
    options: Sequence[str],
    exchange: str | None,
    files: Mapping[str, Mapping[str, str]] | None = None,
) -> None:
    """Write ``launch.json``; what it said of earlier launches goes to its history.

    The file is on disk when this returns.

    Args:
        out: the run's folder.
        who: what it keeps over all launches.
        command: the user's.
        groups: the processes of each.
        options: of launch, those that decide what is trained.
        exchange: its absolute path or its URI; None for a run of one group.
        files: what the configuration files say that the commands name; see ``changed``.

    Raises:
        OSError: if it cannot be written.
        UserError: if the file there is not ours.
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
        # Where others look for what the groups say; null in a run of one group.
        "exchange": exchange,
        # What a later launch compares its own with.
        "files": {name: dict(settings) for name, settings in (files or {}).items()},
    }
    write_file(out / NAME, {**record, "history": _newest(history, beside=record)})


def versions() -> dict[str, str | None]:
    """Give the versions of all that the numbers of a run may depend on."""
    return {
        "python": platform.python_version(),
        "fairseq_codistill": __version__,
        "torch": installed.version_of("torch"),
        **installed.fairseq_distributions(),
    }


def read(out: Path) -> dict[str, Any] | None:
    """Return what ``launch.json`` says; None if ``out`` has none.

    Raises:
        UserError: if it is not of this version's making.
    """
    try:
        return load(out / NAME)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(
            f"{out / NAME} cannot be read ({error.strerror or error}); see to its permissions, or "
            "choose another --out"
        ) from None
    except Unreadable as error:
        raise UserError(
            f"{out / NAME} is not of this version's making ({printable(error)}); choose another "
            "--out"
        ) from None


def load(path: Path) -> dict[str, Any]:
    """Return what a ``launch.json`` says, its fields checked.

    Nothing in it may be obeyed for that alone: see ``guarded.why_not_trusted``.  A record made
    before launch wrote ``exchange`` has no such key.

    Raises:
        FileNotFoundError: if there is no such file.
        Unreadable: if it is no regular file, too large, or not a record.
        OSError: if it cannot be read.
    """
    record = read_object(path, LARGEST_LAUNCH_RECORD)
    # First, as an error could not quote what is nested deeply.
    if not _is_shallow(record, _DEEPEST):
        raise Unreadable("it is nested too deeply")
    found = record.get("format")
    if type(found) is not int or found != FORMAT:
        raise Unreadable(f"its format is {reprlib.repr(found)}, not {FORMAT}")
    missing = [name for name in _ALWAYS if name not in record]
    if missing:
        raise Unreadable(f"it lacks {', '.join(missing)}")
    _check(record)
    for number, entry in enumerate(record["history"]):
        try:
            _check(entry)
        except Unreadable as error:
            raise Unreadable(f"entry {number} of its history: {error}") from None
    return record


def _newest(history: list[Mapping[str, Any]], beside: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the newest entries, as many as leave a reader able to take the file."""
    kept: list[Mapping[str, Any]] = []
    size = len(json.dumps(beside, indent=2))
    for entry in reversed(history):
        size += len(json.dumps(entry, indent=2))
        if size > _LARGEST_WRITTEN:
            break
        kept.append(entry)
    return kept[::-1]


def _check(record: Mapping[str, Any]) -> None:
    for name, (fits, kind) in _FIELDS.items():
        if name in record and not fits(record[name]):
            found = reprlib.repr(record[name])
            raise Unreadable(f"its field {name} is {found}, which is not {kind}")


def _is_shallow(value: Any, depth: int) -> bool:
    if not isinstance(value, (list, dict)):
        return True
    parts = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(part, depth - 1) for part in parts)


# A path or an argument may hold half of a surrogate pair: a byte that is not UTF-8.
def _is_string(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _is_strings(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_string, value))


def _is_time(value: Any) -> bool:
    if not is_text(value, 1, 64):
        return False
    try:
        # Every time zone's clock can show it.
        return 1970 < datetime.fromisoformat(value).year < 9999
    except ValueError:
        return False


def _is_worker(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and _is_strings(value.get("argv"))
        and isinstance(value.get("env"), dict)
        and all(_is_string(part) for pair in value["env"].items() for part in pair)
    )


def _is_groups(value: Any) -> bool:
    return (
        isinstance(value, list)
        and 1 <= len(value) <= MOST_GROUPS
        and all(isinstance(workers, list) and all(map(_is_worker, workers)) for workers in value)
    )


def _is_files(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_string(name)
        and isinstance(settings, dict)
        and all(_is_string(part) for pair in settings.items() for part in pair)
        for name, settings in value.items()
    )


def _is_versions(value: Any) -> bool:
    return isinstance(value, dict) and all(
        _is_string(name) and (version is None or _is_string(version))
        for name, version in value.items()
    )


# What a record always has; the rest came later.
_ALWAYS = ("run_id", "nonces", "time", "groups", "history")

_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run_id": (lambda value: is_text(value, 1, 4096), "a text of 1 to 4096 characters"),
    "nonces": (_is_strings, "a list of texts"),
    "time": (_is_time, "a time in ISO format"),
    "directory": (_is_string, "a path"),
    "options": (_is_strings, "a list of texts"),
    "command": (_is_strings, "a list of texts"),
    "groups": (_is_groups, f"a list of 1 to {MOST_GROUPS} groups"),
    "versions": (_is_versions, "names of packages and their versions"),
    "git_commit": (lambda value: value is None or _is_string(value), "a commit"),
    "exchange": (lambda value: value is None or _is_string(value), "a path or a URI"),
    "files": (_is_files, "the settings of files, by their names"),
    "history": (
        lambda value: isinstance(value, list) and all(isinstance(one, dict) for one in value),
        "a list of earlier records",
    ),
}
