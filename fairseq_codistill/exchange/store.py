"""Bytes by name under one URI: the only door to a file system.

A folder is read and written with care for links (``local``); everything else goes through fsspec,
so that an object store and memory are one thing to the floors above.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

import fsspec
from fsspec.asyn import AsyncFileSystem, sync
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected
from fairseq_codistill.exchange.local import LocalFiles, Mark

# A remote operation that has not ended by then has failed; one that moves bytes may take longer
# by what they take on the slowest line worth using.
OPERATION_SECONDS = 60.0
SLOWEST_BYTES_PER_SECOND = 128 * 1024

# What tells in a listing that a file is another than before.  That it was made at another time does
# not: some stores keep the time when they replace what is there.
_TELLING = (
    *["ETag", "etag", "generation", "md5Hash", "content_md5", "ino"],
    *["mtime", "LastModified", "last_modified", "updated", "last_write_time", "modified"],
)

_PART = re.compile(r"[A-Za-z0-9._-]+")

# Where an object appears when it is complete.  Everywhere else it takes a rename.
_OBJECT_STORES = {"memory", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oss", "oci"}


class Store:
    """Named byte strings under a path or any fsspec URI.

    A name is relative, its parts joined by ``/``, each of ``A-Z a-z 0-9 . _ -``.  A write is all
    or nothing to a reader.  Whatever goes wrong in a store is an ``OSError``.  Safe to use from
    several threads, and after a fork.

    S3 takes its endpoint and keys from ``AWS_ENDPOINT_URL``, ``AWS_ACCESS_KEY_ID`` and the rest of
    the usual environment and files, or from fsspec's configuration; the bucket must be there.

    Args:
        uri: a path, or a URI that fsspec opens.

    Raises:
        ExchangeError: if fsspec cannot open ``uri``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._files = _open(uri)

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, in place of what was there."""
        self._files.write(_checked(name), data)

    def size(self, name: str) -> int:
        """Bytes stored under ``name``.

        Raises:
            FileNotFoundError: if there is no such name.
            SnapshotRejected: if it is a link, or no file.
        """
        return self._files.size(_checked(name))

    def read(self, name: str, limit: int) -> bytes:
        """Give what is stored under ``name``, of which no more than ``limit`` bytes are taken.

        An object store is asked for so many bytes, and trusted to send no more.

        Raises:
            FileNotFoundError: if there is no such name.
            SnapshotRejected: if there is more than that, or it is a link, or no file.
        """
        data = self._files.read(_checked(name), limit)
        if len(data) > limit:
            raise SnapshotRejected(f"its file holds more than {limit} bytes")
        return data

    def names(self, folder: str) -> list[str]:
        """Give the names directly under ``folder``, without the folder; none if it is not there.

        The folder ``""`` is the whole exchange.  What cannot be a name is left out.
        """
        found = self._files.names(_checked(folder) if folder else "")
        return sorted(filter(_is_shown, found))

    def listing(self, folder: str) -> dict[str, Mark | None]:
        """Give the same names, each with a mark that is another whenever the file is another.

        The mark comes with the listing, at no further cost; None where the store gives nothing of
        the kind.
        """
        found = self._files.listing(_checked(folder) if folder else "")
        return {name: found[name] for name in sorted(filter(_is_shown, found))}

    def delete(self, name: str) -> None:
        """Remove ``name``; it is no error if it has gone already."""
        self._files.delete(_checked(name))


class _Files(Protocol):
    """What ``Store`` needs; ``read`` gives at most one byte more than its limit."""

    def write(self, name: str, data: bytes) -> None: ...
    def size(self, name: str) -> int: ...
    def read(self, name: str, limit: int) -> bytes: ...
    def names(self, folder: str) -> list[str]: ...
    def listing(self, folder: str) -> dict[str, Mark | None]: ...
    def delete(self, name: str) -> None: ...


def _is_part(part: str) -> bool:
    return _PART.fullmatch(part) is not None and part not in (".", "..")


def _is_shown(name: str) -> bool:
    # NFS keeps a deleted file that somebody reads under a name of its own.
    return _is_part(name) and not name.startswith(".nfs")


def _checked(name: str) -> str:
    if not all(map(_is_part, name.split("/"))):
        raise ValueError(f"{name!r} is no name in an exchange")
    return name


def _open(uri: str) -> _Files:
    files, root = _filesystem(uri)
    if isinstance(files, LocalFileSystem):
        return LocalFiles(root)
    return _RemoteFiles(uri)


def _filesystem(uri: str) -> tuple[Any, str]:
    """Give fsspec's file system for a URI, and the path in it."""
    # A listing must show what another process has just written, and what is set here is no
    # business of others in this process who use the same bucket.
    ours = {"use_listings_cache": False, "skip_instance_cache": True}
    # A URI may be a chain, as dir::s3://bucket/folder: each of its links gets its options by name.
    links = [link.split("://")[0] for link in uri.split("::") if "://" in link or "::" in uri]
    options: dict[str, dict[str, Any]] = {link: dict(ours) for link in links}
    for s3 in options.keys() & {"s3", "s3a"}:
        # What is tried again, and when, is decided above the store.
        few = {"retries": {"total_max_attempts": 2, "mode": "standard"}}
        theirs = fsspec.config.conf.get(s3, {}).get("config_kwargs", {})
        options[s3]["config_kwargs"] = few | theirs
    try:
        files, root = fsspec.core.url_to_fs(uri, **options)
    except (ValueError, ImportError) as error:
        raise ExchangeError(
            f"--codistill-dir {uri} cannot be opened ({error}); name a folder or a URI whose "
            "fsspec package is installed"
        ) from error
    while isinstance(files, DirFileSystem):
        # What it wraps is what matters: whether it is a folder, and whether it can be timed.
        files, root = files.fs, files._join(root)
    if options.keys() & {"s3", "s3a"}:
        files.retries = 1
    return files, root


class _RemoteFiles:
    """The operations of ``Store`` through fsspec; names are checked already."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._reopen()

    def write(self, name: str, data: bytes) -> None:
        path, seconds = self._path(name), _seconds(len(data))
        if self._complete_at_once:
            # Its folders need no making; making one would make a bucket where there is none.
            try:
                self._call("pipe_file", path, data, seconds=seconds)
            except FileNotFoundError as error:
                raise self._no_bucket() from error
            return
        self._call("makedirs", path.rsplit("/", 1)[0], exist_ok=True)
        partial = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            self._call("pipe_file", partial, data, seconds=seconds)
            self._call("mv", partial, path, seconds=seconds)
        except BaseException:
            with contextlib.suppress(OSError):  # the first error is the one to tell
                self._call("rm_file", partial)
            raise

    def size(self, name: str) -> int:
        info = self._call("info", self._path(name))
        if info["type"] == "directory":
            raise FileNotFoundError(f"{name} is a folder in {self._uri}")
        return int(info["size"])

    def read(self, name: str, limit: int) -> bytes:
        end = limit + 1
        try:
            data = self._call("cat_file", self._path(name), start=0, end=end, seconds=_seconds(end))
        except OSError as error:
            # S3 refuses to give a range of what is empty.
            if error.errno == errno.EINVAL and self.size(name) == 0:
                return b""
            raise
        return bytes(data)

    def names(self, folder: str) -> list[str]:
        path = self._path(folder).rstrip("/")
        return [name for name, _ in self._inner(path, detail=False)]

    def listing(self, folder: str) -> dict[str, Mark | None]:
        return {
            name: _mark(entry)
            for name, entry in self._inner(self._path(folder).rstrip("/"), detail=True)
        }

    def _inner(self, path: str, detail: bool) -> list[tuple[str, Any]]:
        """Give the names directly under a path, each with what the store lists of it."""
        try:
            entries = self._list(path, detail)
        except FileNotFoundError as error:
            if "NoSuchBucket" in repr(error.__cause__):
                raise self._no_bucket() from error
            return []
        # Some stores list the folder itself, or a file of that name.
        paths = [entry["name"] if detail else entry for entry in entries]
        parts = [inner.rstrip("/").rpartition("/") for inner in paths]
        return [
            (name, entry)
            for (parent, _, name), entry in zip(parts, entries, strict=True)
            if parent.strip("/") == path.strip("/")
        ]

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call("rm_file", self._path(name))

    def _list(self, path: str, detail: bool) -> list[Any]:
        # Memory looks each name up again while it lists, and one may have gone since.
        for _ in range(100):
            with contextlib.suppress(_Gone):
                return list(self._call("ls", path, detail=detail))
        raise OSError(f"{self._uri}: names go away faster than they can be listed")

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def _no_bucket(self) -> OSError:
        return OSError(f"the bucket of {self._uri} does not exist; create it, or name another")

    def _reopen(self) -> None:
        self._files, self._root = _filesystem(self._uri)
        protocol = self._files.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self._complete_at_once = bool(names & _OBJECT_STORES)
        self._process = os.getpid()

    def _call(
        self, operation: str, *args: Any, seconds: float | None = None, **options: Any
    ) -> Any:
        """Have fsspec do something, in a bounded time where it can; errors become ``OSError``."""
        if self._process != os.getpid():
            # The connections, and the thread that serves them, are the parent's.
            self._reopen()
        seconds = seconds or OPERATION_SECONDS
        action = getattr(self._files, f"_{operation}", None)
        try:
            if isinstance(self._files, AsyncFileSystem) and action is not None:
                return sync(self._files.loop, action, *args, timeout=seconds, **options)
            return getattr(self._files, operation)(*args, **options)
        except TimeoutError as error:
            told = str(error) or f"no answer within {seconds:.0f} s"
            raise TimeoutError(f"{self._uri}: {told}") from error
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001 - each client has errors of its own
            if isinstance(error, KeyError) and isinstance(self._files, MemoryFileSystem):
                raise _Gone(f"{error} is not in {self._uri}") from error
            raise OSError(f"{self._uri}: {error}") from error


def _mark(entry: Mapping[str, Any]) -> Mark | None:
    telling = [str(entry[key]) for key in _TELLING if entry.get(key) is not None]
    return (str(entry.get("size")), *telling) if telling else None


class _Gone(FileNotFoundError):
    """A name in memory went away in the middle of an operation."""


def _seconds(size: int) -> float:
    return OPERATION_SECONDS + size / SLOWEST_BYTES_PER_SECOND
