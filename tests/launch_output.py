"""Where launch's output goes in the chaos runs: a small disk, or a pipe whose reader may leave."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from vandal import mount

# The smallest pipe there is.
PIPE_BYTES = 4096


class Output(Protocol):
    """The stdout and stderr of a launch; all that got through is in ``OUT/launch.txt``."""

    def descriptor(self) -> int:
        """Return what launch is to write to, for the caller to close."""

    def trouble(self, kind: str) -> contextlib.AbstractContextManager[None]:
        """Be in trouble for a while."""

    def close(self) -> None:
        """Clean up, after the end of launch."""


class OnDisk:
    """Output to a file on a small disk of its own, which can be full.

    Args:
        out: the run's directory.

    Attributes:
        mounted: whether this machine lets us have such a disk; if not, it is never full.
    """

    def __init__(self, out: Path) -> None:
        self._folder = out / "output"
        self._folder.mkdir()
        self.mounted = mount(self._folder)
        self._file = self._folder / "launch.txt"
        self._file.touch()
        self._link = out / "launch.txt"
        self._link.symlink_to(self._file)

    def descriptor(self) -> int:
        """Return what launch is to write to."""
        return os.open(self._file, os.O_WRONLY | os.O_APPEND)

    @contextlib.contextmanager
    def trouble(self, _kind: str) -> Iterator[None]:
        """Have no room for one byte more."""
        filler = self._folder / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            # The last block of the output itself has room still.
            with contextlib.suppress(OSError), self._file.open("ab", buffering=0) as file:
                while self._file.stat().st_size % 4096:
                    file.write(b"\n")
            yield
        finally:
            filler.unlink()

    def close(self) -> None:
        """Keep the text, and take the disk away."""
        self._link.unlink()
        shutil.copyfile(self._file, self._link)
        if self.mounted:
            subprocess.run(["umount", "-l", str(self._folder)], check=True)


class InPipe(threading.Thread):
    """Output to a named pipe, whose reader can leave and come back, or stop reading.

    Args:
        out: the run's directory.
    """

    def __init__(self, out: Path) -> None:
        super().__init__(name="output", daemon=True)
        self._fifo = out / "launch.fifo"
        os.mkfifo(self._fifo)
        self._text = (out / "launch.txt").open("ab", buffering=0)
        self._reader: int | None = self._open()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.start()

    def _open(self) -> int:
        return os.open(self._fifo, os.O_RDONLY | os.O_NONBLOCK)

    def descriptor(self) -> int:
        """Return what launch is to write to."""
        writer = os.open(self._fifo, os.O_WRONLY)
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return writer

    def run(self) -> None:
        """Copy what comes."""
        while not self._over.wait(0.02):
            with self._lock:
                self._read()

    def _read(self) -> None:
        while self._reader is not None and select.select([self._reader], [], [], 0)[0]:
            data = os.read(self._reader, PIPE_BYTES)
            if not data:
                return
            self._text.write(data)

    @contextlib.contextmanager
    def trouble(self, kind: str) -> Iterator[None]:
        """Close the pipe's end for a while; or, if ``kind`` says so, only stop reading it."""
        with self._lock:
            reader, self._reader = self._reader, None
        assert reader is not None
        leaves = kind == "output's reader leaves"
        if leaves:
            os.close(reader)
        else:
            self._fill()
        try:
            yield
        finally:
            with self._lock:
                self._reader = self._open() if leaves else reader

    def _fill(self) -> None:
        writer = os.open(self._fifo, os.O_WRONLY | os.O_NONBLOCK)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, b"\n")
        os.close(writer)

    def close(self) -> None:
        """Read the rest, and stop."""
        self._over.set()
        self.join()
        self._read()
        if self._reader is not None:
            os.close(self._reader)
        self._text.close()
