"""Reading peers' snapshots for one group: every check done, every rejection said once."""

from __future__ import annotations

import logging
from collections.abc import Callable

from fairseq_codistill.exchange.errors import PeerUnusable, SnapshotMissing, SnapshotRejected
from fairseq_codistill.exchange.exchange import Exchange, Snapshot
from fairseq_codistill.exchange.manifest import Manifest
from fairseq_codistill.exchange.tensors import largest_decoded
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# Of the tensors of a snapshot, if the group does not say what it can hold: 64 GiB.
LARGEST_BYTES = 64 * 2**30


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
    ) -> None:
        self.exchange = exchange
        self._seed = seed
        self._vocabulary = vocabulary
        self._largest = largest
        self._prepare = prepare
        self._quiet = quiet
        self._rejected: dict[tuple[int, int], str] = {}
        self.rejections = 0

    def read(self, peer: int, update: int) -> Snapshot:
        """Read one snapshot.

        Raises:
            SnapshotMissing: if there is none.
            SnapshotRejected: if it fails a check; it has been logged.
            PeerUnusable: if nothing this peer publishes can be used; it has been logged.
        """
        try:
            manifest = self.exchange.manifest(peer, update)
            self._check_peer(manifest)
            size = largest_decoded(manifest.bytes, manifest.dtype)
            if size > self._largest:
                raise SnapshotRejected(
                    f"its tensors may take {size} bytes, and this group reads no more than "
                    f"{self._largest}"
                )
            return self._prepare(self.exchange.fetch(manifest))
        except SnapshotRejected as rejection:
            self.reject(peer, update, rejection)
            raise

    def newest(self, peer: int, above: int) -> Snapshot | None:
        """Read a peer's newest sound snapshot after update ``above``; None if there is none.

        What was rejected before is not read again.  If the one of ``above`` is there no more and
        none is newer, the peer has started over, and its newest one takes its place.
        """
        updates = self.exchange.updates(peer)
        if above not in updates:
            above = -1
        for update in updates:
            if update <= above:
                break
            if (peer, update) in self._rejected:
                continue
            try:
                return self.read(peer, update)
            except (SnapshotMissing, SnapshotRejected):
                continue
        return None

    def reject(self, peer: int, update: int, rejection: SnapshotRejected) -> None:
        """Note that a snapshot cannot be used, and log each reason once."""
        reason = str(rejection)
        if isinstance(rejection, PeerUnusable):
            if reason not in self._rejected.values():
                self._say(logging.ERROR, "peer %d is left out: %s", peer, reason)
        elif self._rejected.get((peer, update)) != reason:
            line = "peer %d: snapshot of update %d rejected: %s"
            self._say(logging.WARNING, line, peer, update, reason)
        if self._rejected.get((peer, update)) != reason:
            self.rejections += 1
        self._rejected[peer, update] = reason

    def _say(self, level: int, line: str, *values: object) -> None:
        logger.log(logging.DEBUG if self._quiet else level, line, *values)

    def _check_peer(self, manifest: Manifest) -> None:
        if manifest.vocabulary != self._vocabulary:
            raise PeerUnusable(
                f"group {manifest.group} was trained with another target vocabulary "
                f"({manifest.vocabulary[:12]}... against {self._vocabulary[:12]}...); train all "
                "groups on data prepared with one dictionary, or with the same classes"
            )
        if manifest.seed == self._seed:
            raise PeerUnusable(
                f"group {manifest.group} has this group's --seed {self._seed}; give every group a "
                "seed of its own, 1000003 apart"
            )
