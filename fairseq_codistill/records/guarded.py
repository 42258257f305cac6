"""Reading and writing small files that others may have touched.

Whoever can write to a directory can put a link, a pipe, a device or a file without end under any
name.  ``read_file`` opens a name without following a link and without waiting, looks at what it
has opened, and reads a bounded number of bytes.  ``write_file`` replaces a file as a whole.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import stat
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fairseq_codistill.records.strict_json import parse_object

# A record is a few kilobytes; launch.json with its history may be more.
LARGEST = 1024 * 1024
LARGEST_LAUNCH_RECORD = 16 * 1024 * 1024


class Unreadable(ValueError):
    """A file is there, and is not what it must be; the message is the reason."""


def open_regular(path: Path, follow: bool = False) -> io.FileIO:
    """Open a regular file for reading, without waiting for anybody.

    Args:
        path: the file.
        follow: its last component may be a link, to a regular file.

    Raises:
        FileNotFoundError: if there is no such file.
        Unreadable: if it is a directory, a pipe or a device, or a link that is not followed.
        OSError: if it cannot be opened.
    """
    # Looked at before it is opened, as opening a device may do something.
    _must_be_regular(os.stat(path) if follow else os.lstat(path), path)
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if not follow:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    file = io.FileIO(os.open(path, flags), "rb")
    try:
        _must_be_regular(os.fstat(file.fileno()), path)
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: Path, limit: int = LARGEST) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file; its last component must not be a link.
        limit: bytes.

    Raises:
        FileNotFoundError: if there is no such file.
        Unreadable: if it is a link, a directory, a pipe or a device, or larger than ``limit``.
        OSError: if it cannot be read.
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise Unreadable(f"{path} has {size} bytes, more than {limit}")
        data = b""
        while len(data) <= limit and (chunk := file.read(min(limit + 1 - len(data), 1 << 20))):
            data += chunk
    if len(data) > limit:
        raise Unreadable(f"{path} has more than {limit} bytes")
    return data


def read_object(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """Return the JSON object in a file.

    Raises:
        FileNotFoundError: if there is no such file.
        Unreadable: if it is no regular file, too large, or not a strict JSON object.
        OSError: if it cannot be read.
    """
    try:
        return parse_object(read_file(path, limit))
    except Unreadable:
        raise
    except ValueError as error:
        raise Unreadable(f"{path} is malformed: {error}") from None


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object: a reader finds the file before or this one, after a crash too.

    Raises:
        OSError: if it cannot be written; the file before stays.
    """
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file: a reader finds the file before or this one, after a crash too.

    Raises:
        OSError: if it cannot be written; the file before stays.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
        # Not writable by others, whatever the umask: what is in it is obeyed.
        with open(os.open(temporary, flags, 0o644), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_directory(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error is the one to report
            os.unlink(temporary)
        raise


def why_not_trusted(path: Path) -> str | None:
    """Return why the content of ``path`` must not be obeyed, or None if it may be.

    It may be if the file and its directory belong to the caller, and nobody else can write them.

    Raises:
        OSError: if they cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return None
    for place in (path.parent, path):
        status = os.stat(place) if place != path else os.lstat(place)
        if status.st_uid != os.geteuid():
            return f"{place} belongs to another user"
        if status.st_mode & 0o022:
            return f"others can write {place} (mode {stat.S_IMODE(status.st_mode):o})"
    return None


def _must_be_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable(f"{path} is not a regular file")


def _sync_directory(directory: Path) -> None:
    """Make a rename durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
