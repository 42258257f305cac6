"""An exchange in a folder, on this machine or on a network file system: no link is followed.

Whoever can write to the exchange could plant a link, a pipe or a device under the name of a
snapshot.  So every part of a name is opened relative to the folder that was opened before it, and
what was opened is looked at again before it is read: there is no moment between check and use.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import stat
import uuid
from collections.abc import Iterator

from fairseq_codistill.exchange.errors import SnapshotRejected

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


# Equal if, and only if, two listings show one and the same file.
Mark = tuple[str, ...]


class LinkInTheWay(OSError):
    """A folder of the exchange is a link or no folder."""


class LocalFiles:
    """The operations of ``Store`` on a folder; names are checked already.

    Args:
        root: the exchange's folder, which may itself be a link.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, whole or not at all."""
        os.makedirs(self._root, exist_ok=True)
        with self._folder(name, make=True) as (folder, last):
            partial = f"{last}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
                with open(os.open(partial, flags, 0o666, dir_fd=folder), "wb") as file:
                    file.write(data)
                    file.flush()
                    # A rename may reach the disk before the bytes do; after a power cut there
                    # would be an empty manifest under a name that is never written again.
                    os.fsync(file.fileno())
                os.replace(partial, last, src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):  # the first error is the one to tell
                    os.unlink(partial, dir_fd=folder)
                raise

    def size(self, name: str) -> int:
        """Bytes stored under ``name``."""
        with _rejecting(name), self._folder(name) as (folder, last):
            status = os.stat(last, dir_fd=folder, follow_symlinks=False)
            _must_be_regular(status)
            return status.st_size

    def read(self, name: str, limit: int) -> bytes:
        """Give what is stored under ``name``, or one byte more than ``limit`` of it."""
        with _rejecting(name), self._folder(name) as (folder, last):
            # Looked at before it is opened, as opening a device may do something; and opened
            # without waiting, as a pipe that nobody writes to would keep us for ever.
            _must_be_regular(os.stat(last, dir_fd=folder, follow_symlinks=False))
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with open(os.open(last, flags, dir_fd=folder), "rb", buffering=0) as file:
                status = os.fstat(file.fileno())
                _must_be_regular(status)
                # A buffer as large as the file, not as large as the limit.
                return _read_up_to(file, limit + 1, step=min(status.st_size, limit) + 1)

    def names(self, folder: str) -> list[str]:
        """What is directly in ``folder``; nothing if it is not there."""
        try:
            with self._folder(f"{folder}/" if folder else "") as (descriptor, _):
                return os.listdir(descriptor)
        except FileNotFoundError:
            return []

    def listing(self, folder: str) -> dict[str, Mark | None]:
        """What is directly in ``folder``, each with what tells it from another of its name."""
        found: dict[str, Mark | None] = {}
        with (
            contextlib.suppress(FileNotFoundError),
            self._folder(f"{folder}/" if folder else "") as (descriptor, _),
            os.scandir(descriptor) as entries,
        ):
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # it has gone since
                    status = entry.stat(follow_symlinks=False)
                    telling = (status.st_ino, status.st_mtime_ns, status.st_size)
                    found[entry.name] = tuple(map(str, telling))
        return found

    def delete(self, name: str) -> None:
        """Remove ``name``, a link itself rather than what it points to."""
        with contextlib.suppress(FileNotFoundError), self._folder(name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    @contextlib.contextmanager
    def _folder(self, name: str, make: bool = False) -> Iterator[tuple[int, str]]:
        """Open the folder that ``name`` is in; gives it with the last part of the name."""
        *parts, last = name.split("/")
        folder = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in parts:
                if make:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, dir_fd=folder)
                inner = _open_folder(part, folder, f"{self._root}/{name}")
                os.close(folder)
                folder = inner
            yield folder, last
        finally:
            os.close(folder)


def _open_folder(part: str, within: int, path: str) -> int:
    try:
        return os.open(part, _FOLDER, dir_fd=within)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise LinkInTheWay(
                error.errno,
                f"{part} is a link or no folder, and no link is followed in an exchange; remove it",
                path,
            ) from error
        raise


@contextlib.contextmanager
def _rejecting(name: str) -> Iterator[None]:
    """Turn what the system says of a link or a socket into a reason for rejection."""
    try:
        yield
    except LinkInTheWay as error:
        raise SnapshotRejected(f"it does not lie in a folder of the exchange ({error})") from error
    except OSError as error:
        # Only if it was put there since it was looked at.
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):
            raise SnapshotRejected(f"{name} is not a regular file") from error
        raise


def _must_be_regular(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
        raise SnapshotRejected(f"its file is {kind}, where only regular files are read")


def _read_up_to(file: io.FileIO, most: int, step: int) -> bytes:
    chunks, left = [], most
    while left and (chunk := file.read(min(step, left))):
        chunks.append(chunk)
        left -= len(chunk)
    return b"".join(chunks)


_KINDS = {
    stat.S_IFLNK: "a link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
