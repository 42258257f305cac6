"""Running another program to ask it something, with a limit on its time and on what it writes.

A driver that hangs keeps the program that asks it in the kernel, where not even SIGKILL ends it.
Nothing here waits for such a program.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from fairseq_codistill.records import printable

# Bytes of an answer; what writes more is not answering.
LONGEST = 1 << 20
# Programs that run at the same time.
AT_ONCE = 8
_TICK = 0.05


@dataclass(frozen=True)
class Answer:
    """What a program answered.

    Attributes:
        out: its standard output.
        err: its standard error.
        trouble: why the answer does not count, for example "did not end within 20 s"; empty if
            the program ended with status 0.
        timed_out: whether that is because it did not end.
    """

    out: str
    err: str
    trouble: str = ""
    timed_out: bool = False


def ask(argv: Sequence[str], environ: Mapping[str, str], seconds: float) -> Answer:
    """Run ``argv`` with the environment ``environ`` for at most so many seconds."""
    return ask_each(argv, [environ], seconds)[0]


def ask_each(
    argv: Sequence[str], environs: Sequence[Mapping[str, str]], seconds: float
) -> list[Answer]:
    """Run ``argv`` once with each of ``environs``, several at the same time.

    Args:
        argv: the program and its arguments.
        environs: the environments.
        seconds: limit of each run.
    """
    waiting = list(enumerate(environs))
    running: dict[int, _Run] = {}
    answers: dict[int, Answer] = {}
    try:
        while waiting or running:
            while waiting and len(running) < AT_ONCE:
                position, environ = waiting.pop(0)
                try:
                    running[position] = _Run(argv, environ, seconds)
                except OSError as error:
                    trouble = f"cannot be started ({error.strerror})"
                    answers[position] = Answer("", "", trouble)
            for position, run in list(running.items()):
                answer = run.look(_TICK / len(running))
                if answer is not None:
                    answers[position] = answer
                    running.pop(position).end()
    finally:
        # After an error or Ctrl-C, which does not reach them: each is in a session of its own.
        for run in running.values():
            run.end()
    return [answers[position] for position in range(len(environs))]


class _Run:
    """One program that is being asked."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str], seconds: float) -> None:
        self._seconds = seconds
        self._process = subprocess.Popen(
            argv,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self._deadline = time.monotonic() + seconds
        self._written = {"out": _Written(), "err": _Written()}
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ, "out")
        self._selector.register(self._process.stderr, selectors.EVENT_READ, "err")

    def look(self, seconds: float) -> Answer | None:
        """Read what there is, waiting so long at most; return the answer once it is complete."""
        # Before the reading: what a program wrote before it ended is there when it has ended.
        status = self._process.poll()
        if self._selector.get_map():
            ready = self._selector.select(seconds)
        else:
            ready = []
            if status is None:
                time.sleep(seconds)
        for key, _ in ready:
            data = os.read(key.fd, 1 << 16)
            if data:
                self._written[key.data].add(data)
            else:
                self._selector.unregister(key.fileobj)
        if any(written.size > LONGEST for written in self._written.values()):
            return self._answer(f"wrote more than {LONGEST} bytes")
        # What it started may still hold the pipes; it is not waited for.
        if status is not None and not ready:
            return self._answer(self._why(status))
        if time.monotonic() > self._deadline:
            return self._answer(f"did not end within {self._seconds:g} s", timed_out=True)
        return None

    def end(self) -> None:
        """End it with all it started, unless it has ended; do not wait for what cannot end."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=1)
        self._selector.close()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()

    def _answer(self, trouble: str, timed_out: bool = False) -> Answer:
        out, err = (self._written[pipe].text() for pipe in ("out", "err"))
        return Answer(out, err, trouble, timed_out)

    def _why(self, status: int) -> str:
        if status == 0:
            return ""
        ended = f"ended by signal {-status}" if status < 0 else f"failed with status {status}"
        said = last_line(self._written["err"].text()) or last_line(self._written["out"].text())
        return f"{ended} ({printable(said)})" if said else ended


@dataclass
class _Written:
    """What came out of one pipe."""

    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def add(self, data: bytes) -> None:
        self.parts.append(data)
        self.size += len(data)

    def text(self) -> str:
        return b"".join(self.parts).decode(errors="replace")


def last_line(text: str) -> str:
    """Return the last line of ``text`` that is not empty, or ``""``."""
    return next(iter(reversed(text.strip().splitlines())), "")
