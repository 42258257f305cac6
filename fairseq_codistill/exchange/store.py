"""Bytes by name under one URI: the only module that talks to a file system.

Everything goes through fsspec, so that a folder, NFS, an object store and memory are one thing to
the floors above.
"""

from __future__ import annotations

import uuid

import fsspec
from fsspec.implementations.local import LocalFileSystem

from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected


class Store:
    """Named byte strings under a path or any fsspec URI.

    A name is relative, its parts joined by ``/``.  A write is all or nothing to a reader on file
    systems whose rename is atomic, and on object stores.  Safe to use from several threads.

    Args:
        uri: a path, or a URI that fsspec opens.

    Raises:
        ExchangeError: if fsspec cannot open ``uri``.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        try:
            # A listing must show what another process has just written.
            self._fs, self._root = fsspec.core.url_to_fs(uri, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ExchangeError(
                f"--codistill-dir {uri} cannot be opened ({error}); name a folder or a URI whose "
                "fsspec package is installed"
            ) from error

    def write(self, name: str, data: bytes) -> None:
        """Store ``data`` under ``name``, in place of what was there."""
        path = self._path(name)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        if isinstance(self._fs, LocalFileSystem):
            # An object store shows an object when it is complete; a folder needs a rename.
            partial = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
            try:
                self._fs.pipe_file(partial, data)
                self._fs.mv(partial, path)
            except BaseException:
                if self._fs.exists(partial):
                    self._fs.rm_file(partial)
                raise
        else:
            self._fs.pipe_file(path, data)

    def size(self, name: str) -> int:
        """Bytes stored under ``name``.

        Raises:
            FileNotFoundError: if there is no such name.
        """
        self._fs.invalidate_cache()
        return int(self._fs.size(self._path(name)))

    def read(self, name: str, limit: int) -> bytes:
        """Give what is stored under ``name``, of which no more than ``limit`` bytes are taken.

        Raises:
            FileNotFoundError: if there is no such name.
            SnapshotRejected: if there is more than that.
        """
        data = bytes(self._fs.cat_file(self._path(name), start=0, end=limit + 1))
        if len(data) > limit:
            raise SnapshotRejected(f"its file holds more than {limit} bytes")
        return data

    def names(self, folder: str) -> list[str]:
        """Give the names directly under ``folder``, without the folder; none if it is not there."""
        path = self._path(folder)
        self._fs.invalidate_cache()
        try:
            entries = self._fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted(entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries)

    def delete(self, name: str) -> None:
        """Remove ``name``; it is no error if it has gone already."""
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"
