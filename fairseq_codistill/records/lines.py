"""The lines of a file that others write, in linear time and in bounded memory.

A log may have any size, may grow while it is read, and may be no log at all: a gigabyte of zeros is
one line.  ``LineReader`` reads a block at a time, goes on where it stopped, and skips a line that
is longer than any line can be.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

# fairseq's line with all settings has some 20 kilobytes, a line of numbers less than one.
LONGEST_LINE = 1024 * 1024
BLOCK = 256 * 1024


class LineReader:
    """Reads the lines of a file, and later those that were appended to it.

    It keeps a position of its own, so that the file may be opened anew between two reads.  At most
    ``BLOCK`` bytes are read at once, and at most ``longest`` are kept of a line without an end.

    Args:
        position: where to begin, in bytes.
        longest: bytes of a line; a longer one is skipped.
        returns: take a carriage return for the end of a line too, as Python does for text; a
            progress bar writes them.

    Attributes:
        position: of the first byte that has not been read.
        skipped: lines skipped so far, counted as soon as they are too long.
    """

    def __init__(
        self, position: int = 0, longest: int = LONGEST_LINE, returns: bool = False
    ) -> None:
        self.position = position
        self.skipped = 0
        self._longest = longest
        self._returns = returns
        self._rest = b""
        self._skips = False

    def restart(self, position: int = 0) -> None:
        """Go on at another position: the file was replaced or truncated."""
        self.position = position
        self._rest = b""
        self._skips = False

    def read(self, descriptor: int, most: int | None = None) -> Iterator[bytes]:
        """Yield the lines that are complete by now, without their ends.

        The bytes after the last line's end are kept for the next read.  A caller that stops before
        the last line loses the others of the same block.

        Args:
            descriptor: of a regular file, open for reading; its own position does not change.
            most: bytes to read; None for all that there are.

        Raises:
            OSError: if the file cannot be read; what was read before is not lost.
        """
        end = None if most is None else self.position + most
        while end is None or self.position < end:
            size = BLOCK if end is None else min(BLOCK, end - self.position)
            block = os.pread(descriptor, size, self.position)
            if not block:
                return
            self.position += len(block)
            yield from self._split(block)

    def take_rest(self) -> bytes:
        """Return what follows the last line's end, and forget it; empty if nothing does."""
        rest, self._rest = self._rest, b""
        return rest

    def _split(self, block: bytes) -> list[bytes]:
        if self._returns:
            # What ends in both ends twice; a line more that is empty means nothing.
            block = block.replace(b"\r", b"\n")
        if self._skips:
            _, found, block = block.partition(b"\n")
            if not found:
                return []
            self._skips = False
        lines = (self._rest + block).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > self._longest:
            self.skipped += 1
            self._skips = True
            self._rest = b""
        kept = [line for line in lines if len(line) <= self._longest]
        self.skipped += len(lines) - len(kept)
        return kept
