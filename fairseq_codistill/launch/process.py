"""One worker's process: started, signalled with all it started in its turn, and what it wrote."""

from __future__ import annotations

import ctypes
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from fairseq_codistill import statuses
from fairseq_codistill.launch.commands import MISLEADING_VARIABLES, Worker
from fairseq_codistill.launch.guard import Guard

# fairseq spawns the workers on GPUs; what status they ended with is only in the log.
_SPAWNED_CONFIG_ERROR = re.compile(r"process \d+ terminated with exit code 2\b")

# In the log of each worker, before the command of each start.
START_MARK = " | INFO | codistill.launch | "

# Of a log: how much of its end is looked at, and how much is read at a time.
LAST_BYTES = 20_000
BLOCK = 1 << 20

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


class NoSuchProgram(OSError):
    """The command's program is not there, or may not be run."""


class Process:
    """One worker, in a session of its own, so that it and all it starts can be ended together.

    Its log is held open: what the worker writes can be read even if somebody renames or deletes
    the file, as log rotation does.

    Args:
        worker: what to start.
        guard: ends it should this process be killed.

    Raises:
        NoSuchProgram: if the program cannot be run.
        OSError: if it cannot be started for another reason, which may pass.
    """

    def __init__(self, worker: Worker, guard: Guard) -> None:
        self.log = worker.log
        self.log.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._log = os.open(self.log, flags, 0o666)
        try:
            if not stat.S_ISREG(os.fstat(self._log).st_mode):
                raise OSError(f"{self.log} is not a regular file; remove it")
            self.log_start = os.fstat(self._log).st_size
            self._mark_start(worker)
            environ = {k: v for k, v in os.environ.items() if k not in MISLEADING_VARIABLES}
            try:
                self._popen = subprocess.Popen(
                    worker.argv,
                    env={**environ, **worker.env},
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    preexec_fn=_die_with_parent,
                )
            except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
                if error.filename == worker.argv[0]:
                    raise NoSuchProgram(error.errno, error.strerror, error.filename) from error
                raise
        except BaseException:
            os.close(self._log)
            raise
        self._guard = guard
        self._status: int | None = None
        self._asked_to_end = False
        guard.watch(self._popen.pid)

    def __del__(self) -> None:
        """Close the log; whoever still reads it has a descriptor of its own."""
        with suppress(OSError, AttributeError):
            os.close(self._log)

    def duplicate_log(self) -> int:
        """Return a descriptor of the log as the worker writes it, for the caller to close.

        Raises:
            OSError: if there are no descriptors left.
        """
        return os.dup(self._log)

    def _mark_start(self, worker: Worker) -> None:
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        line = f"{now}{START_MARK}{shlex.join(worker.argv)}\n".encode(errors="backslashreplace")
        # On a full disk the log lacks its first line, and training goes on.
        with suppress(OSError):
            os.write(self._log, line)

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
        """Return the last lines of what it has written, without empty ones; none if unreadable."""
        try:
            end = os.fstat(self._log).st_size
            # Truncated since, the log has nothing of what came before.
            start = self.log_start if self.log_start <= end else 0
            first = max(start, end - LAST_BYTES)
            text = os.pread(self._log, end - first, first).decode(errors="replace")
        except OSError:
            return []
        lines = text.splitlines()
        # Of a line whose beginning is cut off nobody knows who wrote it.
        if first > start and len(lines) > 1:
            lines = lines[1:]
        return [line for line in lines if line.strip()]

    def says_settings_are_wrong(self) -> bool:
        """Tell whether it ended because of its settings, which a restart would not change."""
        status = self.status()
        if status == statuses.CONFIG:
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
    """Count the starts of a worker with this log, those of earlier launches among them.

    0 if the log cannot be read: the number is for people.
    """
    mark = START_MARK.encode()
    count, rest = 0, b""
    try:
        descriptor = os.open(log, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return 0
    with open(descriptor, "rb", buffering=0) as file:
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return 0
            while block := file.read(BLOCK):
                text = rest + block
                count += text.count(mark)
                # A mark may lie across two blocks.
                rest = text[-(len(mark) - 1) :]
        except OSError:
            return count
    return count


def _die_with_parent() -> None:
    """In a new worker: be killed should launch itself be killed (Linux only)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
