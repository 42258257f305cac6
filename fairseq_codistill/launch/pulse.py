"""Whether a group gets on: when its update count or its log last moved.

The update comes from the group's ``alive.json``, where the exchange is a directory.  Its time says
nothing: a thread in the background goes on writing it while training hangs.  Of an exchange that
is no directory launch sees nothing, and takes the log alone, which speaks at fairseq's log
interval.  Where neither can be read nothing is known, and nothing is held against the group.
"""

from __future__ import annotations

from pathlib import Path

from fairseq_codistill.launch.background import Look
from fairseq_codistill.records import Alive, read_alive_file

# Within this a group must have made an update after a start, if the timeout is not longer anyway:
# libraries and data are loaded first, and a checkpoint.
START_SECONDS = 600.0
_LOOK_EVERY = 0.5


class Pulse:
    """One group's signs of progress.

    Args:
        timeout: seconds without any after which it counts as hanging; 0 for never.
        alive: its ``alive.json``, or None if that is out of reach.
        run_id: of its run; what another run wrote there means nothing.
    """

    def __init__(self, timeout: float = 0.0, alive: Path | None = None, run_id: str = "") -> None:
        self.timeout = timeout
        self.update: int | None = None
        self._alive = alive
        self._run_id = run_id
        self._lines = 0
        self._trains = False
        self._moved_at = 0.0
        self._look_at = 0.0
        self._told: Look[Alive | None] = Look(self._read, None)

    def restart(self, now: float) -> None:
        """Take what follows for a new start."""
        self._moved_at = now
        self._trains = False

    def look(
        self,
        now: float,
        lines: int,
        trained: bool,
        logged_update: int | None,
        readable: bool = True,
    ) -> None:
        """Look for progress.

        Args:
            now: seconds on any clock.
            lines: lines of the log so far.
            trained: whether the log shows any training since the start.
            logged_update: the newest update in the log.
            readable: whether the log can be read.
        """
        if lines != self._lines:
            self._lines = lines
            self._moved_at = now
        self._trains |= trained
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_EVERY
        told = self.heartbeat()
        if told is None and not readable:
            self.hold(now)
        update = logged_update if told is None else told.update
        if update is not None and update != self.update:
            # A process begins with 0, and goes on from where its checkpoint was.
            self._trains |= 0 < (self.update or 0) < update
            self.update = update
            self._moved_at = now

    def hold(self, now: float) -> None:
        """Take standing still for no fault of the group's until now."""
        self._moved_at = now

    def hangs(self, now: float) -> bool:
        """Tell whether there was no progress for too long."""
        if self.timeout == 0:
            return False
        patience = self.timeout if self._trains else max(self.timeout, START_SECONDS)
        return now - self._moved_at > patience

    def heartbeat(self) -> Alive | None:
        """Return what ``alive.json`` said when it was last read; None if it said nothing."""
        return None if self._alive is None else self._told.newest()

    def last_heartbeat(self, patience: float) -> Alive | None:
        """Return what ``alive.json`` says now, if it can be read within ``patience`` seconds."""
        return None if self._alive is None else self._told.last(patience)

    def _read(self) -> Alive | None:
        assert self._alive is not None
        alive = read_alive_file(self._alive)
        return alive if alive is not None and alive.run_id == self._run_id else None


def awaits_another(own: Pulse, others: list[tuple[Pulse, bool]]) -> bool:
    """Tell whether a group of a lockstep run may be waiting for another, through no fault of its.

    Who listens to whom is not known here: with a topology, this may hold for a group that waits for
    nobody, which is then not found to hang.

    Args:
        own: the group's.
        others: those of the groups that have not finished, and whether each is running.
    """
    return any(not running or (pulse.update or 0) < (own.update or 0) for pulse, running in others)
