"""Reading peers' snapshots for one group: every check done, every rejection said once."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from fairseq_codistill.exchange.errors import (
    PeerUnusable,
    SnapshotIncomplete,
    SnapshotMissing,
    SnapshotRejected,
)
from fairseq_codistill.exchange.exchange import Exchange, Snapshot
from fairseq_codistill.exchange.local import Mark
from fairseq_codistill.exchange.manifest import Manifest
from fairseq_codistill.exchange.tensors import largest_decoded
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# Of the tensors of a snapshot, if the group does not say what it can hold: 64 GiB.
LARGEST_BYTES = 64 * 2**30

# What may have been seen too early is looked at again after each of these pauses, in seconds; a
# network file system may show a file's size and content some seconds after its name.
PAUSES = (0.0, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class _Verdict:
    """Why a snapshot was not used.

    Attributes:
        manifest: its manifest then; None if that could not be read.
        rejection: the reason.
        looks: how often it was looked at again.
        due: when to look at it again, by the monotonic clock; infinity for never.
        mark: of its manifest when that was last listed before.
    """

    manifest: Manifest | None
    rejection: SnapshotRejected
    looks: int
    due: float
    mark: Mark | None = None


class Reader:
    """Reads peers' snapshots on behalf of one group.

    Args:
        exchange: where from.
        seed: this group's seed; a peer with the same one replays this group's randomness.
        vocabulary: digest of this group's target vocabulary.
        largest: bytes; a snapshot whose tensors may take more is not read.
        prepare: makes a checked snapshot ready to use, on the thread that reads; it may still
            reject it.
        quiet: another worker of the group reads the same, and says what was rejected.
        source_vocabulary: digest of this group's source vocabulary; None if it has none.

    Attributes:
        rejections: how many snapshots were found unusable.
    """

    def __init__(
        self,
        exchange: Exchange,
        seed: int,
        vocabulary: str,
        largest: int = LARGEST_BYTES,
        prepare: Callable[[Snapshot], Snapshot] = lambda snapshot: snapshot,
        quiet: bool = False,
        source_vocabulary: str | None = None,
    ) -> None:
        self.exchange = exchange
        self._seed = seed
        self._vocabulary = vocabulary
        self._largest = largest
        self._prepare = prepare
        self._quiet = quiet
        self._source_vocabulary = source_vocabulary
        self._verdicts: dict[tuple[int, int], _Verdict] = {}
        self.rejections = 0

    def read(self, peer: int, update: int) -> Snapshot:
        """Read one snapshot; tensors that were rejected only if they are others since, or are due.

        Raises:
            SnapshotMissing: if there is none.
            SnapshotIncomplete: if it was perhaps seen too early, and is to be read again; it has
                been logged.
            SnapshotRejected: if it fails a check; it has been logged.
            PeerUnusable: if nothing this peer publishes can be used; it has been logged.
        """
        manifest = None
        try:
            manifest = self.exchange.manifest(peer, update)
            before = self._verdicts.get((peer, update))
            if before is None or before.manifest != manifest or time.monotonic() >= before.due:
                snapshot = self._checked(manifest)
                if self._verdicts.pop((peer, update), None) is not None:
                    self._say(logging.INFO, "peer %d: snapshot of update %d is whole", peer, update)
                return snapshot
            rejection = before.rejection
        except SnapshotRejected as found:
            rejection = self.reject(peer, update, found, manifest)
        # The same one may be raised many times.
        raise rejection.with_traceback(None)

    def newest(self, peer: int, above: int) -> Snapshot | None:
        """Read a peer's newest sound snapshot after update ``above``; None if there is none.

        What was rejected before is not read again, unless it is due or was replaced.  If the one of
        ``above`` is there no more and none is newer, the peer has started over, and its newest one
        takes its place.
        """
        updates = self.exchange.candidates(peer)
        if above not in updates:
            above = -1
        for update in updates:
            if update <= above:
                break
            before = self._verdicts.get((peer, update))
            replaced = before is not None and before.mark != self.exchange.mark(peer, update)
            if before is not None and not replaced and time.monotonic() < before.due:
                continue
            try:
                return self.read(peer, update)
            except (SnapshotMissing, SnapshotRejected):
                continue
        return None

    def reject(
        self,
        peer: int,
        update: int,
        rejection: SnapshotRejected,
        manifest: Manifest | None = None,
    ) -> SnapshotRejected:
        """Note that a snapshot cannot be used; count and log it once.

        Args:
            peer: whose snapshot.
            update: of the snapshot.
            rejection: the reason.
            manifest: of the snapshot, if that could be read.

        Returns:
            The reason that stands: no ``SnapshotIncomplete`` once it was looked at often enough.
        """
        before = self._verdicts.get((peer, update))
        same = before is not None and before.manifest == manifest
        if before is not None and same and time.monotonic() < before.due:
            return before.rejection
        looks = before.looks + 1 if before is not None and same else 0
        due = math.inf
        may_pass = isinstance(rejection, SnapshotIncomplete)
        standing = rejection
        if may_pass and looks < len(PAUSES):
            due = time.monotonic() + PAUSES[looks]
        elif may_pass:
            standing = SnapshotRejected(str(rejection))
        # How much of it can be seen may change from look to look, and is said once.
        if not (same and may_pass):
            self._say_rejected(peer, update, rejection)
        if not same:
            self.rejections += 1
        mark = self.exchange.mark(peer, update)
        self._verdicts[peer, update] = _Verdict(manifest, standing, looks, due, mark)
        return standing

    def _checked(self, manifest: Manifest) -> Snapshot:
        self._check_peer(manifest)
        size = largest_decoded(manifest.bytes, manifest.dtype)
        if size > self._largest:
            raise SnapshotRejected(
                f"its tensors may take {size} bytes, and this group reads no more than "
                f"{self._largest}"
            )
        try:
            snapshot = self.exchange.fetch(manifest)
        except SnapshotMissing:
            # Deleted since its manifest was read, as a rule, and then that is gone too.
            if self.exchange.manifest(manifest.group, manifest.update) != manifest:
                raise
            raise SnapshotIncomplete("its manifest is there, and its tensor file is not") from None
        return self._prepare(snapshot)

    def _say_rejected(self, peer: int, update: int, rejection: SnapshotRejected) -> None:
        reason = str(rejection)
        if not isinstance(rejection, PeerUnusable):
            line = "peer %d: snapshot of update %d rejected: %s"
            self._say(logging.WARNING, line, peer, update, reason)
        elif reason not in [str(verdict.rejection) for verdict in self._verdicts.values()]:
            self._say(logging.ERROR, "peer %d is left out: %s", peer, reason)

    def _say(self, level: int, line: str, *values: object) -> None:
        logger.log(logging.DEBUG if self._quiet else level, line, *values)

    def _check_peer(self, manifest: Manifest) -> None:
        if manifest.vocabulary != self._vocabulary:
            raise PeerUnusable(
                f"group {manifest.group} was trained with another target vocabulary "
                f"({manifest.vocabulary[:12]}... against {self._vocabulary[:12]}...); train all "
                "groups on data prepared with one dictionary, or with the same classes"
            )
        own, theirs = self._source_vocabulary, manifest.source_vocabulary
        if own is not None and theirs is not None and theirs != own:
            raise PeerUnusable(
                f"group {manifest.group} was trained with another source vocabulary "
                f"({theirs[:12]}... against {own[:12]}...), and reads other words than this group; "
                "train all groups on data prepared with one dictionary"
            )
        if manifest.seed == self._seed:
            raise PeerUnusable(
                f"group {manifest.group} has this group's --seed {self._seed}; give every group a "
                "seed of its own, 1000003 apart"
            )
