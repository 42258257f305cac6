"""Damage to an exchange, and a look at what is in it, behind the back of everybody who uses it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import random
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from servers import Proxy, proxy_to, s3_server

from fairseq_codistill.records import Alive
from fairseq_codistill.records.heartbeat import parse_alive

DISK_BYTES = 32 * 1024 * 1024


@contextlib.contextmanager
def exchange(kind: str, out: Path) -> Iterator[tuple[str, Vandal, dict[str, str], Proxy | None]]:
    """Give an exchange: its URI, its vandal, what to set in the environment, and its proxy."""
    out.mkdir(parents=True)
    marker = out / "pickle-ran"
    if kind == "folder":
        disk = out / "disk"
        disk.mkdir()
        mounted = mount(disk)
        try:
            root = disk / "exchange"
            yield str(root), Vandal(fsspec.filesystem("file"), str(root), marker), {}, None
        finally:
            if mounted:
                subprocess.run(["umount", "-l", str(disk)], check=True)
        return
    with s3_server() as server, proxy_to(server.address, out) as proxy:
        proxy.say("ok")
        uri = server.uri("run")
        straight = server.environment()
        fs = fsspec.filesystem(
            "s3",
            key=straight["AWS_ACCESS_KEY_ID"],
            secret=straight["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=straight["AWS_ENDPOINT_URL"],
            use_listings_cache=False,
        )
        vandal = Vandal(fs, uri.removeprefix("s3://"), marker)
        yield uri, vandal, server.environment(proxy.address), proxy


def mount(folder: Path) -> bool:
    """Make a folder a small disk of its own; False if this machine does not let us."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


class Vandal:
    """Damages an exchange behind the back of everybody who uses it.

    Args:
        fs: where the exchange is; for an object store not by way of the proxy.
        root: the exchange's path there.
        marker: a file that a pickle would write if it ran.
    """

    def __init__(self, fs: Any, root: str, marker: Path) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        self._marker = marker

    def updates(self, group: int) -> list[int]:
        """The updates that a group has snapshots of, the newest last."""
        names = [path.rsplit("/", 1)[-1] for path in self._list(f"group-{group}")]
        return sorted(int(name[:10]) for name in names if re.fullmatch(r"\d{10}\.json", name))

    def read(self, name: str) -> bytes:
        """What is stored under a name, such as ``group-0/alive.json``."""
        return bytes(self._fs.cat_file(f"{self._root}/{name}"))

    def write(self, name: str, data: bytes) -> None:
        """Store something; in a folder in place, not all at once."""
        self._fs.pipe_file(f"{self._root}/{name}", data)

    def truncate(self, name: str, rng: random.Random) -> str:
        """Leave only the beginning of a file."""
        data = self.read(name)
        left = rng.choice([0, 1, 7, rng.randrange(len(data)), len(data) - 1])
        self.write(name, data[:left])
        return f"{name} keeps {left} of {len(data)} bytes"

    def overwrite(self, name: str, older: str, rng: random.Random, how: str) -> str:
        """Put something else into a file: ``how`` is a key of ``OVERWRITES``."""
        self.write(name, OVERWRITES[how](self, name, older, rng))
        return f"{name} becomes {how}"

    def remove(self, prefix: str) -> str:
        """Remove a folder with all that is in it, or a file."""
        path = f"{self._root}/{prefix}".rstrip("/")
        # Its owners write into it at this very moment.
        for _ in range(20):
            try:
                self._fs.rm(path, recursive=True)
            except FileNotFoundError:
                break
            except OSError:
                continue
            break
        return f"{prefix or 'the whole exchange'} is removed"

    def alive(self, group: int) -> Alive | None:
        """What ``alive.json`` of a group says; None if that is nothing."""
        name = f"group-{group}/alive.json"
        if self._local and not Path(self._root, name).is_file():
            return None
        try:
            return parse_alive(self.read(name))
        except (OSError, ValueError):
            return None

    def replace_alive(self, group: int, rng: random.Random) -> str:
        """Put something else in place of a group's ``alive.json``."""
        name = f"group-{group}/alive.json"
        how = rng.choice([*HEARTBEATS, *(["a FIFO"] if self._local else [])])
        if how == "a FIFO":
            fifo = Path(self._root, f"group-{group}", "fifo")
            os.mkfifo(fifo)
            os.replace(fifo, Path(self._root, name))
        else:
            ours = self.alive(group)
            said = {} if ours is None else dataclasses.asdict(ours)
            self.write(name, HEARTBEATS[how](said))
        return f"{name} becomes {how}"

    @property
    def _local(self) -> bool:
        return isinstance(self._fs, LocalFileSystem)

    def _list(self, folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            return [str(path) for path in self._fs.ls(f"{self._root}/{folder}", detail=False)]
        except FileNotFoundError:
            return []

    def _random(self, name: str, _older: str, rng: random.Random) -> bytes:
        return rng.randbytes(len(self.read(name)))

    def _flip(self, name: str, _older: str, rng: random.Random) -> bytes:
        data = bytearray(self.read(name))
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return bytes(data)

    def _older(self, _name: str, older: str, _rng: random.Random) -> bytes:
        return self.read(older)

    def _poison(self, name: str, _older: str, _rng: random.Random) -> bytes:
        data = self.read(name)
        if name.endswith(".json"):
            return data.replace(b'"sha256": "', b'"sha256": "0')
        body = 8 + int.from_bytes(data[:8], "little")
        # In bfloat16 and in float32 some 12,000: finite, and a catastrophe in any layer.
        return data[:body] + (b"\x40\x46" * len(data))[: len(data) - body]

    def _pickle(self, _name: str, _older: str, _rng: random.Random) -> bytes:
        return pickle.dumps(_Trap(str(self._marker)))


OVERWRITES = {
    "random bytes": Vandal._random,
    "itself but for one bit": Vandal._flip,
    "an older one's content": Vandal._older,
    "a well-formed file of huge numbers": Vandal._poison,
    "a pickle": Vandal._pickle,
}


def _said(**changes: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda said: json.dumps({**said, "time": time.time(), **changes}).encode()


# From what a group says of itself, what is written in its place.
HEARTBEATS: dict[str, Callable[[dict[str, Any]], bytes]] = {
    "nothing": lambda _: b"",
    "deeply nested": lambda _: b"[" * 50_000,
    "a number of 5,000 digits": lambda _: b'{"update": ' + b"9" * 5000 + b"}",
    "another run's": _said(run_id="another\n| train_inner | {}\x1b[2J"),
    "another process's": _said(nonce="f" * 32),
    "far ahead": _said(update=10**9),
    "a word": lambda _: b'"update"',
}


class _Trap:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: str) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple:
        return Path(self._marker).write_text, ("a pickle was run",)


class Record(threading.Thread):
    """Reads the manifests of an exchange as they come, beside the groups' own logs.

    Args:
        vandal: reads them.
        groups: how many there are.

    Attributes:
        seen: (group, update, beginning of the digest) of every one.
    """

    def __init__(self, vandal: Vandal, groups: int) -> None:
        super().__init__(name="record", daemon=True)
        self.seen: set[tuple[int, int, str]] = set()
        self._vandal = vandal
        self._groups = groups
        self._over = threading.Event()

    def run(self) -> None:
        """Look twice a second."""
        known: set[tuple[int, int]] = set()
        while not self._over.wait(0.5):
            for group in range(self._groups):
                # What is just being removed or damaged is read as far as it can be.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    there = {(group, update) for update in self._vandal.updates(group)}
                    for name in sorted(there - known):
                        self._read(*name)
                    known = {name for name in known if name[0] != group} | there

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def _read(self, group: int, update: int) -> None:
        manifest = json.loads(self._vandal.read(f"group-{group}/{update:010d}.json"))
        if (manifest["group"], manifest["update"]) == (group, update):
            self.seen.add((group, update, manifest["sha256"][:16]))
