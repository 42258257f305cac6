"""What launch shows: one live line a group, and announcements, on a terminal or in a pipe.

Showing decides about nothing.  A closed terminal, a pipe that nobody reads, a full disk and an
encoding without umlauts cost lines and never a group: text is written on a thread of its own, and
what cannot be written is dropped.  Announcements go to ``OUT/launch.log`` too.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TextIO

from fairseq_codistill.records import printable

# Pieces of text that wait for a slow terminal; the oldest go first.
MOST_WAITING = 1000
# How long the end of launch waits for the last of them.
LAST_SECONDS = 2.0
LONGEST_LINE = 2000


class LiveView:
    """One line a group: redrawn in place on a terminal, otherwise printed now and then.

    Nothing here raises, or waits for whoever reads.

    Args:
        stream: where to; None if there is no such stream.
        every: seconds between two looks; the default suits the kind of stream.
        log: a file that announcements are added to; None for none.
    """

    def __init__(
        self, stream: TextIO | None, every: float | None = None, log: Path | None = None
    ) -> None:
        self._out = _Outlet(stream)
        self._log = log
        self._log_failed = False
        self._terminal = self._out.terminal
        self._every = every if every is not None else (1.0 if self._terminal else 10.0)
        self._next = 0.0
        self._drawn: list[str] = []

    def announce(self, text: str) -> None:
        """Print ``text`` for good, above the live lines."""
        lines = [printable(line, LONGEST_LINE) for line in text.rstrip("\n").split("\n")]
        again = self._drawn if self._terminal else []
        self._out.put(self._clear() + _joined([*lines, *again]))
        complaint = self._note(lines)
        if complaint is not None:
            self._out.put(self._clear() + _joined([complaint, *again]))

    def show(self, lines: Sequence[str], now: float, final: bool = False) -> None:
        """Bring the live lines up to date if it is time to, or ``final``."""
        if now < self._next and not final:
            return
        self._next = now + self._every
        plain = [printable(line, LONGEST_LINE) for line in lines]
        if self._terminal:
            width = shutil.get_terminal_size().columns
            text = self._clear()
            self._drawn = [line[: width - 1] for line in plain]
            self._out.put(text + _joined(self._drawn))
        else:
            self._out.put(_joined([line for line in plain if line not in self._drawn]))
            self._drawn = plain
        if final:
            self._out.flush(LAST_SECONDS)

    def _clear(self) -> str:
        # Up to the first live line, and clear from there to the end of the screen.
        return f"\x1b[{len(self._drawn)}F\x1b[J" if self._terminal and self._drawn else ""

    def _note(self, lines: Sequence[str]) -> str | None:
        """Add lines to the log; return a complaint the first time that this fails."""
        if self._log is None:
            return None
        now = datetime.now().isoformat(sep=" ", timespec="seconds")
        try:
            with open(
                self._log, "a", encoding="utf-8", errors="backslashreplace", opener=_open_at_once
            ) as log:
                log.write(_joined([f"{now} {line}" for line in lines]))
        except OSError as error:
            failed_before, self._log_failed = self._log_failed, True
            return None if failed_before else f"{self._log} cannot be written: {error.strerror}"
        self._log_failed = False
        return None


class _Outlet:
    """Writes text to a stream; what cannot be written is dropped.

    A stream of the operating system is written to on a thread, past Python's buffer: the
    interpreter would flush that at its end, and fail.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream, self._descriptor = _opened(stream)
        self.terminal = self._stream is not None and self._stream.isatty()
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._changed = threading.Condition()
        self._busy = False
        if self._descriptor is not None:
            threading.Thread(target=self._work, name="codistill-view", daemon=True).start()

    def put(self, text: str) -> None:
        """Write ``text`` when it can be written."""
        if not text:
            return
        if self._descriptor is None:
            self._put_now(text)
            return
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        data = text.encode(encoding, errors="backslashreplace")
        with self._changed:
            self._waiting.append(data)
            self._changed.notify_all()

    def flush(self, seconds: float) -> None:
        """Wait until all is written, or was dropped; at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy, seconds)

    def _put_now(self, text: str) -> None:
        if self._stream is None:
            return
        try:
            self._stream.write(text)
        except (OSError, ValueError):  # ValueError: it is closed, or cannot be encoded
            self._stream = None

    def _work(self) -> None:
        assert self._descriptor is not None
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: bool(self._waiting))
                data = self._waiting.popleft()
                self._busy = True
            try:
                while data:
                    data = data[os.write(self._descriptor, data) :]
            except OSError:
                # Closed, gone, full, or its disk is; the next piece may get through.
                continue


def _opened(stream: TextIO | None) -> tuple[TextIO | None, int | None]:
    """Return the stream, None if it cannot be written to, and its descriptor, if it has one."""
    if stream is None:
        return None, None
    try:
        # What was written to it before goes first.
        stream.flush()
    except (OSError, ValueError):
        return None, None
    try:
        return stream, stream.fileno()
    except (OSError, ValueError, AttributeError):
        return stream, None


def _open_at_once(path: str, flags: int) -> int:
    """Open a file; fail at once, in place of waiting, if it is a FIFO that nobody reads."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def _joined(lines: Sequence[str]) -> str:
    return "".join(f"{line}\n" for line in lines)
