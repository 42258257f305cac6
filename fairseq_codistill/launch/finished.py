"""Whether a group has reached its end: on what evidence, and remembered over launches.

An exit status of 0 is no evidence: fairseq ends with it when it finds no GPU to start a worker on.
The group's leader leaves ``ended.json`` at its orderly end (``records.ended``), and launch wants
it: of this run, of this group's nonce, written since the process was started, and not
contradicted by the log or by ``alive.json``.

The mark ``finished.json`` keeps that evidence with what decided the length.  A group that has it is
not started again, unless more is asked for now (``length``): fairseq, started again on a checkpoint
that has all its updates, makes one update more; and peers in lockstep would wait for its snapshots.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.dialects import recognise
from fairseq_codistill.launch.length import Limits, covers, is_limits, limits_of
from fairseq_codistill.records import Alive, Ended, read_ended, read_object, write_file
from fairseq_codistill.records.ended import NAME, parse_ended

MARK = "finished.json"
FORMAT = 2
# With the command in place of the limits.
_FORMAT_OF_COMMANDS = 1


class Finished:
    """The evidence and the mark of one group.

    Args:
        folder: the group's directory.
        limits: what decides how long this group is asked to train.
        run_id: of the run.
        nonce: of the group's processes.

    Attributes:
        missed_its_peers: whether the group has finished without ever having had a live peer,
            although it was to learn from some.
    """

    def __init__(self, folder: Path, limits: Limits, run_id: str, nonce: str) -> None:
        self._folder = folder
        self._limits = dict(limits)
        self._run_id = run_id
        self._nonce = nonce
        self._before: Ended | None = None
        self._ended: Ended | None = None
        self._marked = False
        self.missed_its_peers = False

    @property
    def reached(self) -> bool:
        """Whether the group has reached before all that it is asked for now."""
        try:
            mark = read_object(self._folder / MARK)
            ended = parse_ended(mark.get("ended"), MARK)
            then = _limits_in(mark)
        except (OSError, ValueError, UserError):
            # There is none, it was written by an earlier version, or somebody else.
            return False
        if (mark.get("run_id"), mark.get("nonce")) != (self._run_id, self._nonce):
            return False
        if (ended.run_id, ended.nonce) != (self._run_id, self._nonce):
            return False
        if not covers(ended, then, self._limits):
            return False
        self.missed_its_peers = ended.missed_its_peers
        self._marked = True
        return True

    def forget(self) -> None:
        """Before a start: remove the evidence of earlier processes, or note it if that fails."""
        self._before = self._ended = None
        try:
            (self._folder / NAME).unlink(missing_ok=True)
        except OSError:
            try:
                self._before = read_ended(self._folder)
            except (OSError, ValueError):
                return

    def missing(self, logged_update: int | None, alive: Alive | None) -> str | None:
        """After a process has ended with status 0: return why it has not finished, or None.

        Args:
            logged_update: the highest update in the log since the start, if it can be read.
            alive: the group's heartbeat, if it can be read.
        """
        place = self._folder / NAME
        try:
            ended = read_ended(self._folder)
        except (OSError, ValueError) as error:
            return f"its evidence of having trained to the end cannot be used: {error}"
        if ended is None or ended == self._before:
            return (
                f"it has left no {place}, so it has not trained to its end. Either it has trained "
                "nothing (see its log: the data, the GPUs, what the command does), or the file "
                "could not be written"
            )
        if (ended.run_id, ended.nonce) != (self._run_id, self._nonce):
            return f"{place} is of another run or process"
        if logged_update is not None and logged_update > ended.update:
            return f"{place} says update {ended.update}, and the log has update {logged_update}"
        ours = alive is not None and (alive.run_id, alive.nonce) == (self._run_id, self._nonce)
        if alive is not None and ours and alive.update > ended.update:
            return f"{place} says update {ended.update}, and alive.json says {alive.update}"
        self._ended = ended
        self.missed_its_peers = ended.missed_its_peers
        return None

    def note(self) -> None:
        """Set the mark, once there is evidence, unless it is set.

        Raises:
            OSError: if it cannot be written.
        """
        if self._marked or self._ended is None:
            return
        content = {
            "format": FORMAT,
            "run_id": self._run_id,
            "nonce": self._nonce,
            "limits": self._limits,
            "ended": dataclasses.asdict(self._ended),
        }
        write_file(self._folder / MARK, content)
        self._marked = True


def _limits_in(mark: Mapping[str, Any]) -> Limits:
    """Return what decided the length of the training that a mark tells of.

    Raises:
        ValueError: if it does not tell.
        UserError: if it holds a command that this version does not know.
    """
    limits, command = mark.get("limits"), mark.get("command")
    if mark.get("format") == FORMAT and isinstance(limits, dict) and is_limits(limits):
        return limits
    if mark.get("format") != _FORMAT_OF_COMMANDS or not isinstance(command, list):
        raise ValueError("its format is unknown")
    dialect = recognise([str(word) for word in command])
    if dialect.file() is not None:
        raise ValueError("what its configuration file said is not known")
    return limits_of(dialect)
