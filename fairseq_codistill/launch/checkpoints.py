"""Which checkpoint a group can continue from, told without torch.

fairseq writes one file and copies it to the others, so a process killed in between leaves a torn
copy, and copying a run to another place may change the times of all.  So every file is checked
as a whole, and its update is read from its content.  A probe answers yes or no, whatever the file
is, and raises nothing.

    python -m fairseq_codistill.launch.checkpoints SAVE_DIR

does what launch does before it starts a group, for other schedulers: it moves a torn
``checkpoint_last.pt`` away and prints what to give to ``--restore-file``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from fairseq_codistill.launch.archive import Damaged, Member, content, members
from fairseq_codistill.launch.pickled import Malformed, read_plain
from fairseq_codistill.records import is_whole, printable

LAST = "checkpoint_last.pt"
# What training writes.  An averaged or exported checkpoint beside them is nothing to resume from.
_WRITTEN_BY_TRAINING = re.compile(
    r"checkpoint([0-9]+|_[0-9]+_(?P<update>[0-9]{1,18})|_best|_last|\.best_.+)\.pt"
)
# The structure of a checkpoint without its tensors; 10,000 of them need 5 MB.
_LARGEST_STRUCTURE = 16 * 1024 * 1024


@dataclass(frozen=True)
class Resume:
    """How a group (re)starts.

    Attributes:
        checkpoint: the loadable checkpoint of the highest update, or None to start afresh.
        torn: where a torn ``checkpoint_last.pt`` was moved to, or None.
        update: updates made when ``checkpoint`` was written; None if it does not tell.
        problem: a sentence about what could not be read or moved away, or None.
    """

    checkpoint: Path | None = None
    torn: Path | None = None
    update: int | None = None
    problem: str | None = None


def is_loadable(path: Path) -> bool:
    """Whether ``path`` is a complete checkpoint."""
    return _probe(path).loadable


def find(save_dir: Path) -> Resume:
    """Find the loadable checkpoint of the highest update in ``save_dir``; change nothing.

    Of two with the same update take the newer one, and of two as new as each other
    ``checkpoint_last.pt``.  A checkpoint that does not tell its update comes after those that do.
    """
    try:
        # Listed as a whole: files may come and go meanwhile.
        names = os.listdir(save_dir)
    except (FileNotFoundError, NotADirectoryError):
        return Resume()
    except (OSError, ValueError) as error:
        return Resume(
            problem=f"{save_dir} cannot be listed ({error}); its checkpoints are not used"
        )
    found = [one for name in names if (one := _look_at(save_dir / name)) is not None]
    found.sort(key=_Candidate.order, reverse=True)
    # Told even if another one is loadable: what cannot be read may be of a higher update.
    problem = next((one.problem for one in found if one.problem is not None), None)
    for candidate in found:
        probe = _probe(candidate.path)
        if probe.loadable:
            return Resume(candidate.path, update=candidate.update, problem=problem)
        problem = problem or probe.problem
    return Resume(problem=problem)


def prepare(save_dir: Path) -> Resume:
    """As ``find``, and move a torn ``checkpoint_last.pt`` out of fairseq's way; delete nothing."""
    resume = find(save_dir)
    last = save_dir / LAST
    if resume.checkpoint == last or not _probe(last).torn:
        return resume
    torn = save_dir / f"{LAST}.torn"
    number = 1
    try:
        while os.path.lexists(torn):
            number += 1
            torn = save_dir / f"{LAST}.torn-{number}"
        last.rename(torn)
    except OSError as error:
        problem = f"{last} is torn and cannot be moved away ({error}); remove it"
        return dataclasses.replace(resume, problem=problem)
    return dataclasses.replace(resume, torn=torn)


def restore_file(resume: Resume) -> str:
    """Return what fairseq's ``--restore-file`` has to be."""
    # Under this very name fairseq looks in the save-dir, and begins afresh if there is none.
    if resume.checkpoint is None or resume.checkpoint.name == LAST:
        return LAST
    return str(resume.checkpoint)


@dataclass(frozen=True)
class _Probe:
    """What a look at a whole file has found.

    Attributes:
        loadable: it is a complete checkpoint.
        torn: it is there and is none, and never will be.
        problem: a sentence if it is there and cannot be read, which may pass; or None.
    """

    loadable: bool = False
    torn: bool = False
    problem: str | None = None


@dataclass(frozen=True)
class _Candidate:
    """A file that training may have written, before it is read as a whole.

    Attributes:
        path: the file.
        time: of its last change, in nanoseconds; 0 if it cannot be told.
        update: updates made when it was written, or None if it does not tell.
        problem: a sentence if it is there and cannot be read, or None.
    """

    path: Path
    time: int = 0
    update: int | None = None
    problem: str | None = None

    def order(self) -> tuple[int, int, bool]:
        """Return what to compare by; the highest is the one to resume from."""
        return (-1 if self.update is None else self.update, self.time, self.path.name == LAST)


def _probe(path: Path) -> _Probe:
    try:
        with _opened(path) as (file, size):
            top = None
            missing = {b"data.pkl", b"version"}
            for member in members(file, size):
                # torch takes the first member's directory for that of all.
                top = top or member.name.partition(b"/")[0]
                missing.discard(member.name.removeprefix(top + b"/"))
                for _ in content(file, member):
                    pass
        return _Probe(loadable=not missing, torn=bool(missing))
    except OSError as error:
        return _Probe(torn=error.errno == errno.ELOOP, problem=_problem(path, error))
    except ValueError:
        return _Probe(torn=True)


def _problem(path: Path, error: OSError) -> str | None:
    """Return a sentence about what may pass; an absent file and a loop of links are no problem."""
    if error.errno in (errno.ENOENT, errno.ELOOP):
        return None
    return f"{path} cannot be read ({error}); it is not used"


def _look_at(path: Path) -> _Candidate | None:
    """Return what a file tells without being read as a whole; None if it is no candidate."""
    match = _WRITTEN_BY_TRAINING.fullmatch(path.name)
    if match is None:
        return None
    named = None if match["update"] is None else int(match["update"])
    try:
        time = os.stat(path).st_mtime_ns
        update = _read_update(path)
    except OSError as error:
        return _Candidate(path, problem=_problem(path, error))
    return _Candidate(path, time, named if update is None else update)


def _read_update(path: Path) -> int | None:
    """Return the updates made when a checkpoint was written, or None if it does not tell.

    Raises:
        OSError: if it cannot be read.
    """
    try:
        with _opened(path) as (file, size):
            for member in members(file, size):
                if member.name.endswith(b"/data.pkl"):
                    return _update_in(read_plain(_structure(file, member)))
    except ValueError:
        # Whether it is loadable is another question, asked of the whole file.
        return None
    return None


def _structure(file: BinaryIO, member: Member) -> bytes:
    if member.size > _LARGEST_STRUCTURE:
        raise Malformed("it is too long")
    return b"".join(content(file, member))


def _update_in(state: Any) -> int | None:
    """Return what a checkpoint of the image program, or of fairseq, says of its update."""
    if not isinstance(state, dict):
        return None
    update = state.get("update")
    history = state.get("optimizer_history")
    if isinstance(history, list) and history and isinstance(history[-1], dict):
        # The last entry is that of the run that wrote it; the others are of runs before.
        update = history[-1].get("num_updates")
    return update if is_whole(update, 0, 2**63) else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, or a link to one, without waiting; yield it and its size.

    Raises:
        Damaged: if it is something else.
        OSError: if it cannot be opened.
    """
    # Looked at before it is opened, as opening a device may do something.
    _must_be_regular(os.stat(path))
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        _must_be_regular(status)
        yield file, status.st_size


def _must_be_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Damaged("it is not a regular file")


def main(arguments: list[str]) -> None:
    """Prepare a save directory, and print what ``--restore-file`` has to be."""
    if len(arguments) != 1:
        sys.exit("usage: python -m fairseq_codistill.launch.checkpoints SAVE_DIR")
    resume = prepare(Path(arguments[0]))
    if resume.problem is not None:
        print(f"codistill: warning: {printable(resume.problem, 2000)}", file=sys.stderr)
    # A name need not be text in any encoding.
    sys.stdout.buffer.write(os.fsencode(restore_file(resume)) + b"\n")


if __name__ == "__main__":
    main(sys.argv[1:])
