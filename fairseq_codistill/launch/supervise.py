"""Keeps groups of processes running: starts, restarts, gives up, and ends them all cleanly.

It knows nothing of fairseq but how a process says that its settings are wrong (see
``CONFIG_STATUS``); what to start comes from outside.
"""

from __future__ import annotations

import ctypes
import enum
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from fairseq_codistill.launch.commands import MISLEADING_VARIABLES, Worker
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.progress import LiveView, LogReader, Progress, live_line
from fairseq_codistill.launch.pulse import Pulse, awaits_another

# The plugin and argparse end with it when the settings are wrong: to start again is no use.
CONFIG_STATUS = 2
_CONFIG_ERROR = "codistill: error:"
# fairseq spawns the workers on GPUs; what status they ended with is only in the log.
_SPAWNED_CONFIG_ERROR = re.compile(r"process \d+ terminated with exit code 2\b")

# In the log of each worker, before the command of each start.
START_MARK = " | INFO | codistill.launch | "

_TICK = 0.1
_LONGEST_BACKOFF = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class State(enum.Enum):
    """What a group is doing."""

    WAITING = "waiting"
    RUNNING = "running"
    STOPPING = "stopping"
    FINISHED = "finished"
    GAVE_UP = "gave up"
    REFUSED = "refused"
    STOPPED = "stopped"


_OVER = {State.FINISHED, State.GAVE_UP, State.REFUSED, State.STOPPED}


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


class Process:
    """One worker, in a session of its own, so that it and all it starts can be ended together.

    Args:
        worker: what to start.
        guard: ends it should this process be killed.
    """

    def __init__(self, worker: Worker, guard: Guard) -> None:
        self.log = worker.log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environ = {k: v for k, v in os.environ.items() if k not in MISLEADING_VARIABLES}
        with self.log.open("ab") as log:
            self.log_start = log.tell()
            now = datetime.now().isoformat(sep=" ", timespec="seconds")
            log.write(f"{now}{START_MARK}{shlex.join(worker.argv)}\n".encode())
            log.flush()
            self._popen = subprocess.Popen(
                worker.argv,
                env={**environ, **worker.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )
        self._guard = guard
        guard.watch(self._popen.pid)

    def status(self) -> int | None:
        """Give the exit status (negative: the signal) once it has ended, with all it started."""
        known = self._popen.returncode
        status = self._popen.poll()
        if known is None and status is not None:
            # Data loaders that outlived their worker.
            self._signal_all(signal.SIGKILL)
            self._guard.release(self._popen.pid)
        return status

    def signal(self, number: int) -> None:
        """Send a signal to it and all it started, unless it has ended."""
        # Once it has ended, its number may by now be another process's.
        if self.status() is None:
            self._signal_all(number)

    def wait(self) -> None:
        """Wait for its end."""
        while self.status() is None:
            time.sleep(0.01)

    def output(self) -> list[str]:
        """Give the last lines of what it has written, without empty ones."""
        with self.log.open("rb") as log:
            end = log.seek(0, os.SEEK_END)
            log.seek(max(self.log_start, end - 20000))
            text = log.read().decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()]

    def _signal_all(self, number: int) -> None:
        # All of them may be gone already: then there is nothing to end.
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)


class Group:
    """The processes of one group and their history.

    Args:
        name: what to call it.
        start: gives the workers to start; its argument says how often the group has restarted.
        log: the first worker's log.
        patience: how often and how long to try.
        announce: prints a line for the user.
        finished: the mark of its end; a group that has it is not started.
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
        self._reader = LogReader(log, self.progress)
        self._patience = patience
        self._announce = announce
        self._finished = finished
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
        self.pulse.look(now, self.progress.lines, self.progress.trained, self.progress.update)
        if self.state is State.WAITING and now >= self._start_at:
            self._run(now)
        elif self.state is State.RUNNING:
            self._watch(now)
        elif self.state is State.STOPPING:
            self._see_off(now)

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

    def _read_log(self) -> None:
        self._reader.poll()
        self._ever_trained |= self.progress.trained

    def _run(self, now: float) -> None:
        self._failed = None
        self._hung = False
        self.progress.restart()
        self.pulse.restart(now)
        # One by one: should a start fail, kill() must know those before it.
        self._processes = []
        for worker in self._start(self.restarts):
            self._processes.append(Process(worker, self._guard))
        self.state = State.RUNNING

    def _watch(self, now: float) -> None:
        statuses = [process.status() for process in self._processes]
        failed = [p for p, s in zip(self._processes, statuses, strict=True) if s not in (None, 0)]
        if failed:
            self._failed = failed[0]
            self._terminate(now)
        elif all(status == 0 for status in statuses):
            self._finished.note()
            self.state = State.FINISHED

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
        self._read_log()
        if self._told_to_stop or self._failed is None:
            self.state = State.STOPPED
        else:
            self._judge(self._failed, now)

    def _judge(self, failed: Process, now: float) -> None:
        """Decide what becomes of a group that has failed."""
        refused = [process for process in self._processes if _says_settings_are_wrong(process)]
        # Settings that it has trained with are not wrong.
        if refused and not self.progress.trained:
            self.state = State.REFUSED
            words = refused[0].output()
            reasons = [line for line in words if line.startswith(_CONFIG_ERROR)] or words[-3:]
            self._announce("\n".join([f"{self.name}: its settings are wrong", *reasons[-3:]]))
            return
        words = failed.output()
        how = self._describe(failed.status())
        again = bool(words) and words[-1] == self._last_words and not self._ever_trained
        self._last_words = words[-1] if words and (failed.status() or 0) > 0 else None
        if again or self.restarts >= self._patience.max_restarts:
            self.state = State.GAVE_UP
            why = "twice in the same way, before any training" if again else "once too often"
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

    def _describe(self, status: int | None) -> str:
        if self._hung:
            return f"has made no update for {self.pulse.timeout:g} s"
        if status is not None and status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"


class Interrupt:
    """Counts the signals that ask for the end; in place between ``__enter__`` and ``__exit__``."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup has SIGHUP ignored, and means it.
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


def supervise(groups: Sequence[Group], view: LiveView, lockstep: bool = False) -> int:
    """Run ``groups`` to their end.

    The first Ctrl-C (or SIGTERM, SIGHUP) ends all with SIGTERM and, after a grace, SIGKILL; the
    second one at once.

    Args:
        groups: all groups of the run.
        view: shows them.
        lockstep: whether groups wait for each other.

    Returns:
        The exit status: 0 if every group finished, 2 if the settings of one were wrong, 128 + the
        signal's number (130 for Ctrl-C) if a signal ended them, otherwise 1.
    """
    with Interrupt() as interrupt:
        stopping = False
        try:
            while not all(group.over for group in groups):
                now = time.monotonic()
                if interrupt.count > 1:
                    for group in groups:
                        group.kill()
                if interrupt.count and not stopping:
                    stopping = True
                    view.announce("stopping all groups (once more to kill them at once)")
                # With one group's settings wrong the run cannot be what was asked for.
                stopping |= any(group.state is State.REFUSED for group in groups)
                for group in groups:
                    if stopping:
                        group.stop(now)
                    group.step(now)
                for group in groups if not stopping else []:
                    if lockstep and _awaits_another(group, groups):
                        group.pulse.hold(now)
                    elif group.hangs(now):
                        group.give_up_waiting(now)
                view.show([group.line() for group in groups], now)
                time.sleep(_TICK)
        finally:
            # Nothing outlives this function, whatever ends it.
            for group in groups:
                group.kill()
        view.show([group.line() for group in groups], time.monotonic(), final=True)
    if all(group.state is State.FINISHED for group in groups):
        return 0
    if interrupt.first is not None:
        return 128 + interrupt.first
    return CONFIG_STATUS if any(group.state is State.REFUSED for group in groups) else 1


def _awaits_another(group: Group, groups: Sequence[Group]) -> bool:
    others = [other for other in groups if other is not group and other.state is not State.FINISHED]
    return awaits_another(
        group.pulse, [(other.pulse, other.state is State.RUNNING) for other in others]
    )


def _says_settings_are_wrong(process: Process) -> bool:
    status = process.status()
    if status == CONFIG_STATUS:
        return True
    return status == 1 and any(_SPAWNED_CONFIG_ERROR.search(line) for line in process.output())


def starts_so_far(log: Path) -> int:
    """Count the starts of a worker with this log, those of earlier launches among them."""
    if not log.exists():
        return 0
    with log.open("rb") as lines:
        return sum(START_MARK.encode() in line for line in lines)


def _die_with_parent() -> None:
    """In a new worker: be killed should launch itself be killed (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
