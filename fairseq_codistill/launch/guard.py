"""Ends what a launch has started should the launch itself be killed.

The kernel then ends the workers (see ``process``), but not what these have started: spawned
workers, data loaders.  So a process of its own waits for the end of the launch, which it sees as
the end of its input, and kills every process group that was entrusted to it and not given back.

This file is also that process's program, and imports nothing of the package.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress


class Guard:
    """The launch's side: starts the process, and tells it what to guard."""

    def __init__(self) -> None:
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            # Ctrl-C on the launch's terminal is not meant for it.
            start_new_session=True,
        )

    def watch(self, leader: int) -> None:
        """Entrust the process group of ``leader``."""
        self._say(f"+{leader}")

    def release(self, leader: int) -> None:
        """Take it back: it has ended, and its number may be given to another."""
        self._say(f"-{leader}")

    def close(self) -> None:
        """End the process; what is still entrusted to it is killed."""
        self._popen.communicate()

    def _say(self, line: str) -> None:
        stream = self._popen.stdin
        assert stream is not None
        # Should somebody have killed the guard, the run is no worse off for it.
        with suppress(BrokenPipeError):
            stream.write(line + "\n")
            stream.flush()


def guard(lines: Iterable[str]) -> None:
    """Follow ``lines``, and at their end kill what is left."""
    leaders: set[int] = set()
    for line in lines:
        change = leaders.add if line[0] == "+" else leaders.discard
        change(int(line[1:]))
    for leader in leaders:
        # All of it may be gone.
        with suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    guard(sys.stdin)
