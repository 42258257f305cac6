"""See whether a .tar.gz is whole: read to its end, in constant memory.

gzip's checksum at the end, and the blocks of zeros that end a tar, are what a file that was cut off
does not have.
"""

import gzip
import re
import zlib
from pathlib import Path
from typing import BinaryIO

TAR_NAMES = (".tgz", ".tar.gz")
BLOCK = 512
CHUNK = 1 << 18
ZEROS = bytes(BLOCK)
# Files, folders and links, and what goes before one: names of more than 100 letters, pax headers.
WITH_DATA, WITHOUT_DATA, BEFORE_ANOTHER = b"0\x007", b"125", b"xgLK"
# Bytes of such names and headers; tarfile reads them at one go.
MOST_BEFORE_ANOTHER = 1 << 20


class _Counted:
    """What a gzip file holds, up to a limit."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit, self._count = stream, limit, 0

    def read(self, count: int) -> bytes:
        """Return up to so many bytes; fewer only at the end."""
        data = self._stream.read(count)
        self._count += len(data)
        if self._count > self._limit:
            raise ValueError(f"what is packed in it is larger than {self._limit} bytes")
        return data

    def skip(self, count: int) -> None:
        """Read so many bytes."""
        while count > 0:
            if not (data := self.read(min(count, CHUNK))):
                raise ValueError("it ends inside a file")
            count -= len(data)


def _octal(field: bytes) -> int:
    if not re.fullmatch(rb" *[0-7]*[ \0]*", field):
        raise ValueError("it is not a tar: a number in it is none")
    return int(field.strip(b" \0") or b"0", 8)


def _size(field: bytes) -> int:
    """Return the size in a header; those of 8 GB and more are not in octal digits."""
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else _octal(field)


def _doubt_about_tar(packed: _Counted) -> str | None:
    while (header := packed.read(BLOCK)) != ZEROS:
        if not header:
            return "the mark at the end of a tar is missing"
        if len(header) < BLOCK:
            raise ValueError("it ends inside a header")
        if _octal(header[148:156]) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            raise ValueError("it is not a tar: a header's checksum is wrong")
        kind, size = header[156:157], _size(header[124:136])
        if kind in BEFORE_ANOTHER and size > MOST_BEFORE_ANOTHER:
            raise ValueError(f"a name or a header in it has {size} bytes")
        if kind in WITH_DATA + BEFORE_ANOTHER:
            packed.skip(-(-size // BLOCK) * BLOCK)
        elif kind not in WITHOUT_DATA:
            raise ValueError(f"it holds something that is no file, folder or link: {kind!r}")
    rest = packed.read(BLOCK)
    if len(rest) < BLOCK:
        return "the mark at the end of a tar is missing"
    while rest:
        if rest.strip(b"\0"):
            return "something follows the end of the tar"
        rest = packed.read(CHUNK)
    return None


def doubt_about(path: Path, limit: int) -> str | None:
    """Read an archive to its end; return why it may not be whole, or None if it is.

    Args:
        path: a gzip file, a tar in it if the name says so.
        limit: the most bytes that may be packed in it.

    Raises:
        ValueError: if it cannot be read to its end; the message is the reason.
        OSError: if the file cannot be read.
    """
    try:
        with gzip.open(path) as stream:
            packed = _Counted(stream, limit)  # type: ignore[arg-type]
            if path.name.removesuffix(".part").endswith(TAR_NAMES):
                return _doubt_about_tar(packed)
            while packed.read(CHUNK):
                pass
            return None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"it cannot be read to its end: {error}") from error
