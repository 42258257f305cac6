"""Snapshots in a store: the layout on disk, how one comes to exist, and every check on reading.

group-0/0000002500.safetensors   the tensors
group-0/0000002500.json          the manifest, written after them: with it the snapshot exists
group-0/alive.json               see ``presence``
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_codistill.exchange import signing
from fairseq_codistill.exchange.errors import (
    ExchangeError,
    SnapshotIncomplete,
    SnapshotMissing,
    SnapshotRejected,
    Unpublishable,
)
from fairseq_codistill.exchange.known import Foreign
from fairseq_codistill.exchange.local import Mark
from fairseq_codistill.exchange.manifest import MAX_MANIFEST_BYTES, Manifest, check_size
from fairseq_codistill.exchange.store import Store
from fairseq_codistill.exchange.tensors import decode, emptied, encode, shapes_digest
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

_MANIFEST_NAME = re.compile(r"([0-9]{10})\.json")


def group_folder(group: int) -> str:
    """Name of a group's folder in the exchange."""
    return f"group-{group}"


@dataclass(frozen=True)
class Draft:
    """A snapshot on its way out: copied from the model, not yet in the exchange.

    Attributes:
        tensors: names -> CPU tensors, tied ones once (``copies.copy_out``).
        aliases: tied tensors, other name -> name in ``tensors``.
    """

    group: int
    seed: int
    update: int
    epoch: int
    dtype: str
    vocabulary: str
    model: dict[str, Any]
    tensors: Mapping[str, Tensor]
    aliases: dict[str, str]
    source_vocabulary: str | None = None


@dataclass(frozen=True)
class Snapshot:
    """A snapshot that was read and has passed every check.

    Attributes:
        tensors: all names, aliases among them -> CPU tensors, the floating-point ones of
            ``WIRE_DTYPES`` for the manifest's dtype.
    """

    manifest: Manifest
    tensors: Mapping[str, Tensor]


class Exchange:
    """The snapshots of one run; those of other runs in the same store are never used.

    Args:
        store: where they live.
        run_id: the run.
        key: signs this run's manifests, and those of others must be signed with it; None signs
            and asks for nothing.
    """

    def __init__(self, store: Store, run_id: str, key: bytes | None = None) -> None:
        self.store = store
        self.run_id = run_id
        self._key = key
        self._foreign = Foreign()
        # Of each group, the marks of its manifests when they were last listed.
        self._marks: dict[int, dict[int, Mark | None]] = {}

    def rehearse(self, draft: Draft) -> None:
        """Make sure of what can be known of a draft before its numbers are; write nothing.

        Args:
            draft: its tensors need neither be on the CPU nor in the dtype that they travel in.

        Raises:
            Unpublishable: if no reader would take it.
        """
        with _refusing_to_publish():
            encode(emptied(draft.tensors, draft.dtype), draft.dtype, draft.aliases)
            self._described(draft, size=1, sha256="0" * 64)

    def publish(self, draft: Draft) -> Manifest | None:
        """Make a snapshot exist, unless it does already: snapshots are immutable.

        Returns:
            The snapshot's manifest, or None if the run published other weights for the same
            update before; those stay.

        Raises:
            Unpublishable: if no reader would take it; nothing is written.
            OSError: if the store fails.
        """
        with _refusing_to_publish():
            data = encode(draft.tensors, draft.dtype, draft.aliases)
            digest = hashlib.sha256(data).hexdigest()
            manifest, content = self._described(draft, len(data), digest)
        there = self._own_manifest(draft.group, draft.update)
        if there is not None and self._is_whole(there):
            return there if there.sha256 == manifest.sha256 else None
        stem = f"{group_folder(draft.group)}/{draft.update:010d}"
        # Another run's snapshot of the same update gives way, as does a damaged one; its manifest
        # goes first, so that its tensors are at no time described by one they do not match.
        self.store.delete(f"{stem}.json")
        self.store.write(f"{stem}.safetensors", data)
        self.store.write(f"{stem}.json", content)
        return manifest

    def updates(self, group: int) -> list[int]:
        """Updates of a group that have a manifest, of whatever run, the newest first."""
        return list(self._listed(group))

    def candidates(self, group: int) -> list[int]:
        """Those of ``updates`` that are not known to be another run's."""
        listed = self._listed(group)
        return [u for u, mark in listed.items() if not self._foreign.holds(group, u, mark)]

    def mark(self, group: int, update: int) -> Mark | None:
        """The mark that a manifest had when the group's were last listed; None if it had none."""
        return self._marks.get(group, {}).get(update)

    def manifest(self, group: int, update: int) -> Manifest:
        """Read and check one manifest.

        Raises:
            SnapshotMissing: if there is none, or it is another run's.
            SnapshotRejected: if it is malformed, does not belong where it lies, or is not signed
                with this group's key.
        """
        name = f"{group_folder(group)}/{update:010d}.json"
        # Before it is read: should it be replaced meanwhile, this is the mark of what is no more.
        listed = self._marks.get(group, {})
        try:
            check_size(self.store.size(name))
            manifest = Manifest.from_json(self.store.read(name, MAX_MANIFEST_BYTES))
        except FileNotFoundError as error:
            raise SnapshotMissing(f"{name} is not in {self.store.uri}") from error
        if manifest.run_id != self.run_id:
            if update in listed:
                self._foreign.note(group, update, listed[update])
            raise SnapshotMissing(f"{name} is of the run {manifest.run_id!r}")
        if (manifest.group, manifest.update) != (group, update):
            raise SnapshotRejected(
                f"its manifest is that of group {manifest.group}, update {manifest.update}"
            )
        if self._key is not None:
            signing.check(manifest, self._key)
        return manifest

    def fetch(self, manifest: Manifest) -> Snapshot:
        """Read the tensors that a manifest describes, and check them against it.

        Raises:
            SnapshotMissing: if they have gone since (retention).
            SnapshotIncomplete: if size or digest are not the manifest's.
            SnapshotRejected: if format, names or shapes are not.
        """
        name = f"{group_folder(manifest.group)}/{manifest.update:010d}.safetensors"
        try:
            size = self.store.size(name)
            if size != manifest.bytes:
                raise SnapshotIncomplete(
                    f"its tensor file has {size} bytes where its manifest says {manifest.bytes}"
                )
            data = self.store.read(name, manifest.bytes)
        except FileNotFoundError as error:
            raise SnapshotMissing(f"{name} is not in {self.store.uri}") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.sha256:
            raise SnapshotIncomplete(
                f"its tensor file has SHA-256 {digest[:12]}... where its manifest says "
                f"{manifest.sha256[:12]}..."
            )
        tensors = decode(data, manifest.aliases, manifest.dtype)
        if shapes_digest(tensors) != manifest.shapes:
            raise SnapshotRejected("its tensors' names and shapes are not those of its manifest")
        return Snapshot(manifest, tensors)

    def newest_update(self, group: int) -> int | None:
        """The newest update of a group that this run has a manifest of."""
        own = (u for u in self.candidates(group) if self._own_manifest(group, u) is not None)
        return next(own, None)

    def prune(self, group: int, keep: int) -> None:
        """Delete this run's snapshots of a group but for the ``keep`` newest; 0 keeps all.

        A manifest that nobody can use any more goes when its turn has come.
        """
        if keep == 0:
            return
        kept = 0
        for update in self.candidates(group):
            try:
                self.manifest(group, update)
                kept += 1
                if kept <= keep:
                    continue
            except SnapshotMissing:
                # Another run's.
                continue
            except SnapshotRejected:
                if kept < keep:
                    continue
            self._delete(group, update)

    def above(self, group: int, update: int) -> list[Manifest]:
        """Return this run's manifests of a group above an update, the newest first."""
        found = (self._own_manifest(group, u) for u in self.candidates(group) if u > update)
        return [manifest for manifest in found if manifest is not None]

    def remove(self, group: int, updates: Iterable[int]) -> None:
        """Delete snapshots of a group, the newest last.

        A peer that has the newest one would take any other for a new one, were that gone.  Only the
        group's one writer may call this.
        """
        for update in sorted(updates):
            self._delete(group, update)

    def sweep(self, group: int) -> None:
        """Delete what a killed process of the group left half-written.

        Only the group's one writer may call this, before it publishes.
        """
        folder = group_folder(group)
        names = set(self.store.names(folder))
        for name in names:
            orphan = name.endswith(".safetensors") and f"{name[:-12]}.json" not in names
            # The heartbeat writes beside this.
            partial = name.endswith(".tmp") and not name.startswith("alive.json.")
            if orphan or partial:
                try:
                    self.store.delete(f"{folder}/{name}")
                except OSError as error:
                    # What lies in the way of nothing, a folder of such a name say, may stay.
                    logger.warning("%s/%s cannot be removed: %s", folder, name, error)

    def _listed(self, group: int) -> dict[int, Mark | None]:
        """Give the updates that have a manifest, the newest first, with their marks."""
        listing = self.store.listing(group_folder(group))
        found = ((_MANIFEST_NAME.fullmatch(name), mark) for name, mark in listing.items())
        marks = {int(match[1]): mark for match, mark in found if match}
        self._marks[group] = marks
        return dict(sorted(marks.items(), reverse=True, key=lambda item: item[0]))

    def _described(self, draft: Draft, size: int, sha256: str) -> tuple[Manifest, bytes]:
        """Give a draft's manifest, signed if there is a key, and its file's content."""
        manifest = Manifest(
            run_id=self.run_id,
            group=draft.group,
            seed=draft.seed,
            update=draft.update,
            epoch=draft.epoch,
            dtype=draft.dtype,
            bytes=size,
            sha256=sha256,
            shapes=shapes_digest(_with_aliases(draft)),
            aliases=draft.aliases,
            vocabulary=draft.vocabulary,
            source_vocabulary=draft.source_vocabulary,
            model=draft.model,
            time=time.time(),
        )
        # As peers will read it: what they would refuse is refused here.
        manifest = Manifest.from_json(manifest.to_json())
        if self._key is not None:
            manifest = signing.sign(manifest, self._key)
        content = manifest.to_json()
        check_size(len(content))
        return manifest, content

    def _delete(self, group: int, update: int) -> None:
        # The manifest first: what a reader may still find must be whole.
        self.store.delete(f"{group_folder(group)}/{update:010d}.json")
        self.store.delete(f"{group_folder(group)}/{update:010d}.safetensors")

    def _is_whole(self, manifest: Manifest) -> bool:
        try:
            self.fetch(manifest)
        except (SnapshotMissing, SnapshotRejected):
            return False
        return True

    def _own_manifest(self, group: int, update: int) -> Manifest | None:
        try:
            return self.manifest(group, update)
        except (SnapshotMissing, SnapshotRejected):
            return None


@contextlib.contextmanager
def _refusing_to_publish() -> Iterator[None]:
    """Tell what no reader would take from what may go better next time."""
    try:
        yield
    except ExchangeError as error:
        raise Unpublishable(str(error)) from error


def _with_aliases(draft: Draft) -> dict[str, Tensor]:
    aliased = {alias: draft.tensors[name] for alias, name in draft.aliases.items()}
    return {**draft.tensors, **aliased}
