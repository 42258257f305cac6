"""A group's processes and their history: started, restarted, given up, ended."""

from __future__ import annotations

import enum
import secrets
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fairseq_codistill import statuses
from fairseq_codistill.launch.background import Look
from fairseq_codistill.launch.commands import Worker
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.process import NoSuchProgram, Process
from fairseq_codistill.launch.progress import LogReader, Progress, live_line
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.retry import Retry
from fairseq_codistill.records.heartbeat import ENDS_FOR_GOOD
from fairseq_codistill.records.training_log import error_in

# Names this start of a run to its groups: what they have said in an earlier one is old.
START = secrets.token_hex(8)

# The logger that says so with ``ENDS_FOR_GOOD``.
_WHO_ENDS_FOR_GOOD = "fairseq_codistill.codistillation.membership"

_CONFIG_ERROR = "codistill: error:"
_LONGEST_BACKOFF = 30.0
_START_AGAIN_SECONDS = 5.0
# How long to wait for a log or a heartbeat that a file system does not return.
_LAST_LOOK_SECONDS = 2.0


class State(enum.Enum):
    """What a group is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    UNPROVEN = "failed"
    GAVE_UP = "gave up"
    REFUSED = "refused"
    STOPPED = "stopped"


_OVER = {State.FINISHED, State.UNPROVEN, State.GAVE_UP, State.REFUSED, State.STOPPED}


@dataclass(frozen=True)
class Patience:
    """How often and how long to try.

    Attributes:
        max_restarts: restarts of one group.
        backoff: seconds before a restart, doubled for each further one without any training.
        grace: seconds from SIGTERM to SIGKILL.
    """

    max_restarts: int = 3
    backoff: float = 1.0
    grace: float = 10.0


class Group:
    """The processes of one group and their history.

    Args:
        name: what to call it.
        start: gives the workers to start; its argument says how often the group has restarted.
        log: the first worker's log.
        patience: how often and how long to try.
        announce: prints a line for the user.
        finished: the evidence of its end, and the mark; a group that has it is not started.
        pulse: tells whether it hangs.
        guard: ends its processes should this one be killed.
    """

    def __init__(
        self,
        name: str,
        start: Callable[[int], Sequence[Worker]],
        log: Path,
        patience: Patience,
        announce: Callable[[str], None],
        finished: Finished,
        pulse: Pulse,
        guard: Guard,
    ) -> None:
        self.name = name
        self.state = State.FINISHED if finished.reached else State.WAITING
        self.restarts = 0
        self._in_vain = 0
        self.progress = Progress()
        self._start = start
        self._log = log
        self._reader: LogReader | None = None
        self._log_read = Look(lambda: None, None)
        self._patience = patience
        self._announce = announce
        self._finished = finished
        self._mark = Retry(f"the mark that {name} has finished", finished.note, announce)
        self.pulse = pulse
        self._guard = guard
        self._processes: list[Process] = []
        self._start_at = 0.0
        self._kill_at = 0.0
        self._failed: Process | None = None
        self._hung = False
        self._ever_trained = False
        self._last_words: str | None = None
        self._told_to_stop = False
        self._cannot_start: str | None = None

    @property
    def missed_its_peers(self) -> bool:
        """Whether it has finished without ever having had a live peer, although it should have."""
        return self._finished.missed_its_peers

    @property
    def over(self) -> bool:
        """Whether nothing of it runs and nothing will."""
        return self.state in _OVER

    def line(self) -> str:
        """Give its live line."""
        return live_line(self.name, self.state.value, self.restarts, self.progress)

    def step(self, now: float) -> None:
        """Do what is due."""
        self._read_log()
        progress = self.progress
        readable = self._reader is None or self._reader.readable
        self.pulse.look(now, progress.lines, progress.trained, progress.update, readable)
        if self.state is State.FINISHED:
            self._mark.try_now(now)
        elif self.state is State.WAITING and now >= self._start_at:
            self._run(now)
        elif self.state is State.RUNNING:
            self._watch(now)
        elif self.state is State.STOPPING:
            self._see_off(now)

    def settle(self) -> None:
        """At the end of launch: try once more to set the mark."""
        if self.state is State.FINISHED:
            self._mark.try_now()

    def hangs(self, now: float) -> bool:
        """Tell whether it runs and makes no progress."""
        return self.state is State.RUNNING and self.pulse.hangs(now)

    def give_up_waiting(self, now: float) -> None:
        """Take a group that hangs for dead: end its processes, to start them again."""
        self._failed = self._processes[0]
        self._hung = True
        self._terminate(now)

    def stop(self, now: float) -> None:
        """Begin to end it for good."""
        self._told_to_stop = True
        if self.state is State.WAITING:
            self.state = State.STOPPED
        elif self.state is State.RUNNING:
            self._terminate(now)

    def kill(self) -> None:
        """End every process of it at once, and wait for that."""
        for process in self._processes:
            process.signal(signal.SIGKILL)
        for process in self._processes:
            process.wait()

    def _read_log(self, patience: float | None = None) -> None:
        """Read what is new in the log; with ``patience`` all that is there, in so many seconds."""
        if patience is None:
            self._log_read.newest()
        else:
            self._log_read.last(patience)
        self._ever_trained |= self.progress.trained

    def _run(self, now: float) -> None:
        self._failed = None
        self._hung = False
        self.progress.restart()
        self.pulse.restart(now)
        self._finished.forget()
        # One by one: should a start fail, kill() must know those before it.
        self._processes = []
        try:
            # The group tells its peers in lockstep whether it comes back.
            left = {
                "CODISTILL_RESTARTS_LEFT": str(self._patience.max_restarts - self.restarts),
                "CODISTILL_START": START,
            }
            for worker in self._start(self.restarts):
                worker = replace(worker, env={**worker.env, **left})
                self._processes.append(Process(worker, self._guard))
            descriptor = self._processes[0].duplicate_log()
        except OSError as error:
            # Its directory may be away for a moment, or the machine short of memory.
            self.kill()
            self._processes = []
            reason = str(error)
            if isinstance(error, NoSuchProgram):
                self.state = State.REFUSED
                self._announce(f"{self.name} cannot be started: {reason}")
                return
            self._start_at = now + _START_AGAIN_SECONDS
            if reason != self._cannot_start:
                self._announce(
                    f"{self.name} cannot be started ({reason}); trying again every "
                    f"{_START_AGAIN_SECONDS:g} s"
                )
            self._cannot_start = reason
            return
        self._cannot_start = None
        self._reader = LogReader(descriptor, self._processes[0].log_start, self.progress)
        self._log_read = Look(self._reader.poll, None)
        self.state = State.RUNNING

    def _watch(self, now: float) -> None:
        statuses = [process.status() for process in self._processes]
        failed = [p for p, s in zip(self._processes, statuses, strict=True) if s not in (None, 0)]
        if failed:
            self._failed = failed[0]
            self._terminate(now)
        elif all(status == 0 for status in statuses):
            self._end()

    def _end(self) -> None:
        """All of its processes have ended with 0: has it finished?"""
        self._read_log(_LAST_LOOK_SECONDS)
        logged = self.progress.reached
        alive = self.pulse.last_heartbeat(_LAST_LOOK_SECONDS)
        missing = self._finished.missing(logged, alive)
        if missing is None:
            self.state = State.FINISHED
            self._mark.try_now()
            return
        self.state = State.UNPROVEN
        self._announce(
            f"{self.name} ended with status 0, but {missing}; it counts as failed and is not "
            f"started again; its log is {self._log}"
        )

    def _terminate(self, now: float) -> None:
        for process in self._processes:
            process.signal(signal.SIGTERM)
            # One that somebody has stopped takes no notice before it goes on.
            process.signal(signal.SIGCONT)
        self._kill_at = now + self._patience.grace
        self.state = State.STOPPING

    def _see_off(self, now: float) -> None:
        if any(process.status() is None for process in self._processes):
            if now >= self._kill_at:
                # Not waited for: it may be held up in the kernel, and other groups need looking at.
                for process in self._processes:
                    process.signal(signal.SIGKILL)
            return
        # The last lines of the log came after the last look at it.
        self._read_log(_LAST_LOOK_SECONDS)
        if self._told_to_stop or self._failed is None:
            self.state = State.STOPPED
        else:
            self._judge(self._failed, now)

    def _judge(self, failed: Process, now: float) -> None:
        """Decide what becomes of a group that has failed."""
        refused = [process for process in self._processes if process.says_settings_are_wrong()]
        # Settings that it has trained with are not wrong; a file that they name may be away.
        if refused and not self._ever_trained:
            self.state = State.REFUSED
            words = refused[0].output()
            reasons = [line for line in words if line.startswith(_CONFIG_ERROR)] or words[-3:]
            self._announce("\n".join([f"{self.name}: its settings are wrong", *reasons[-3:]]))
            return
        words = failed.output()
        how = self._describe(failed.status())
        said = self.pulse.last_heartbeat(_LAST_LOOK_SECONDS)
        # In lockstep a group that cannot go on takes the others with it; a restart would not help.
        final = said is not None and said.failure is not None and self._says(said.failure)
        again = bool(words) and words[-1] == self._last_words and not self._ever_trained
        by_itself = failed.status() and not _signal(failed.status())
        self._last_words = words[-1] if words and by_itself else None
        if final or again or self.restarts >= self._patience.max_restarts:
            self.state = State.GAVE_UP
            why = "once too often"
            if final or again:
                why = "for good" if final else "twice in the same way, before any training"
            excerpt = "\n".join(f"    {line}" for line in words[-10:])
            self._announce(
                f"{self.name} {how}, {why}: gave up; the end of {failed.log}:\n{excerpt}"
            )
            return
        # A death in the middle of training has nothing to do with those before it.
        self._in_vain = 0 if self.progress.trained else self._in_vain + 1
        delay = min(self._patience.backoff * 2 ** max(0, self._in_vain - 1), _LONGEST_BACKOFF)
        self.restarts += 1
        self._start_at = now + delay
        self.state = State.WAITING
        self._announce(
            f"{self.name} {how}; restart {self.restarts} of {self._patience.max_restarts} "
            f"in {delay:g} s; its log is {failed.log}"
        )

    def _says(self, failure: str) -> bool:
        """Tell whether its log says so too, as anybody may have written the heartbeat.

        Lines of other loggers may quote what is in the exchange: only a line that the membership
        has logged, and that says nothing else, counts.
        """
        said = (_WHO_ENDS_FOR_GOOD, ENDS_FOR_GOOD + failure)
        return any(said == error_in(line) for one in self._processes for line in one.output())

    def _describe(self, status: int | None) -> str:
        if self._hung:
            return f"has made no update for {self.pulse.timeout:g} s"
        if number := _signal(status):
            known = number in [one.value for one in signal.Signals]
            return f"was killed by {signal.Signals(number).name if known else f'signal {number}'}"
        return f"ended with status {status}"


def _signal(status: int | None) -> int:
    """Give the signal that ended a process, or 0; some say it as a shell does."""
    if status is not None and status < 0:
        return -status
    return signal.SIGTERM if status == statuses.TERMINATED else 0
