"""One worker's process: started, signalled with all it started in its turn, and what it wrote."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fairseq_codistill.launch.commands import MISLEADING_VARIABLES, Worker
from fairseq_codistill.launch.guard import Guard

# The plugin and argparse end with it when the settings are wrong: to start again is no use.
CONFIG_STATUS = 2
# fairseq spawns the workers on GPUs; what status they ended with is only in the log.
_SPAWNED_CONFIG_ERROR = re.compile(r"process \d+ terminated with exit code 2\b")

# In the log of each worker, before the command of each start.
START_MARK = " | INFO | codistill.launch | "

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


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
        self._status: int | None = None
        self._asked_to_end = False
        guard.watch(self._popen.pid)

    def status(self) -> int | None:
        """Give the exit status (negative: the signal) once it has ended, with all it started."""
        if self._status is None and (status := self._popen.poll()) is not None:
            # Workers that it has spawned were asked to end too, and may be about to.
            if self._asked_to_end and self._anything_runs():
                return None
            # Data loaders that outlived their worker.
            self._signal_all(signal.SIGKILL)
            self._guard.release(self._popen.pid)
            self._status = status
        return self._status

    def signal(self, number: int) -> None:
        """Send a signal to it and all it started, unless it has ended.

        After SIGTERM its end is that of the last of them; SIGKILL waits for none.
        """
        # Once it has ended, its number may by now be another process's.
        if self.status() is None:
            if number in (signal.SIGTERM, signal.SIGKILL):
                self._asked_to_end = number == signal.SIGTERM
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

    def says_settings_are_wrong(self) -> bool:
        """Tell whether it ended because of its settings, which a restart would not change."""
        status = self.status()
        if status == CONFIG_STATUS:
            return True
        return status == 1 and any(_SPAWNED_CONFIG_ERROR.search(line) for line in self.output())

    def _anything_runs(self) -> bool:
        try:
            os.killpg(self._popen.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def _signal_all(self, number: int) -> None:
        # All of them may be gone already: then there is nothing to end.
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)


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
