"""Which peers' snapshots a group uses from an update on: the two modes.

A source is asked at each boundary, by all workers of the group, and gives all of them the same.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from fairseq_codistill.codistillation.prospects import NeverComes, Prospects
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import (
    ExchangeError,
    PeerUnusable,
    Prefetcher,
    Reader,
    Snapshot,
    SnapshotMissing,
    SnapshotRejected,
    within,
)

# How long one look at the exchange may take, even if the time for the snapshot is nearly over.
ANSWER_SECONDS = 5.0


class Source(Protocol):
    """Where new snapshots of peers come from."""

    def take(self, update: int) -> list[Snapshot]:
        """Give the snapshots that replace those in use, before ``update`` is made."""
        ...

    def refuse(self, snapshot: Snapshot, rejection: SnapshotRejected) -> None:
        """Be told that a snapshot given by ``take`` did not fit its model."""
        ...

    def stop(self) -> None:
        """Be told that nothing will be asked any more."""
        ...


class Own(Protocol):
    """This group's own side of a lockstep run, as one of its workers knows of it."""

    def check_published(self) -> None:
        """Raise an ``ExchangeError`` if a snapshot of this group will not be published."""
        ...

    def note_failure(self, failure: str) -> None:
        """Be told why this group ends for good."""
        ...


class LockstepSource:
    """At every multiple of T exactly the peers' snapshots of that update, waited for.

    Args:
        reader: reads and checks.
        workers: of this group.
        peers: the groups listened to.
        interval: T, in updates.
        timeout: seconds to wait for one boundary's snapshots.
        own: this group's side; without it, snapshots of its own that cannot be published, and for
            which its peers wait, are not noticed while it waits for theirs.
        start: names the common start of the groups, if it is known.
    """

    def __init__(
        self,
        reader: Reader,
        workers: Workers,
        peers: Sequence[int],
        interval: int,
        timeout: float,
        own: Own | None = None,
        start: str | None = None,
    ) -> None:
        self._reader = reader
        self._workers = workers
        self._peers = peers
        self._interval = interval
        self._timeout = timeout
        self._own = own
        self._in_use: int | None = None
        self._prospects = Prospects(reader.exchange, peers, interval, start)

    def take(self, update: int) -> list[Snapshot]:
        """Wait for the snapshots of the last multiple of T, unless they are in use already.

        Raises:
            ExchangeError: if one does not come; the same on all workers.
        """
        due = update - update % self._interval
        if due == self._in_use:
            return []
        snapshots: list[Snapshot] = []
        failure: ExchangeError | None = None
        try:
            deadline = time.monotonic() + self._timeout
            for peer in self._peers:
                snapshots.append(self._wait(peer, due, deadline))
        except ExchangeError as error:
            failure = error
            if self._own is not None and isinstance(error, (NeverComes, PeerUnusable)):
                self._own.note_failure(str(error))
        # A worker that failed takes the others with it, before they train on without it.
        (all_have,) = self._workers.least([0 if failure else 1])
        if failure:
            raise failure
        if not all_have:
            raise ExchangeError(f"another worker could not read the snapshots of update {due}")
        self._in_use = due
        return snapshots

    def refuse(self, snapshot: Snapshot, rejection: SnapshotRejected) -> None:
        """Stop: in lockstep there is nothing else to use."""
        failure = (
            f"the snapshot of peer {snapshot.manifest.group} at update "
            f"{snapshot.manifest.update} cannot be used: {rejection}"
        )
        if self._own is not None:
            self._own.note_failure(failure)
        raise ExchangeError(failure) from rejection

    def stop(self) -> None:
        """Nothing runs in the background."""

    def _wait(self, peer: int, update: int, deadline: float) -> Snapshot:
        pause = 0.005
        reason = "it has not been published"
        while True:
            try:
                left = max(deadline - time.monotonic(), ANSWER_SECONDS)
                return within(left, lambda: self._look(peer, update))
            except PeerUnusable:
                raise
            except SnapshotRejected as rejection:
                reason = str(rejection)
            except SnapshotMissing:
                pass  # Not yet.
            except ExchangeError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a store raises may pass in time
                reason = f"the exchange could not be read: {error}"
            if time.monotonic() > deadline:
                raise ExchangeError(
                    f"--codistill-timeout {self._timeout:g}: no snapshot of peer {peer} at update "
                    f"{update} within that many seconds ({reason}); see whether group {peer} "
                    f"runs, with --codistill-run-id {self._reader.exchange.run_id}, or allow more"
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _look(self, peer: int, update: int) -> Snapshot:
        if self._own is not None:
            # Peers do not come either if they wait for this group's snapshot in vain.
            self._own.check_published()
        try:
            return self._reader.read(peer, update)
        except PeerUnusable:
            raise
        except SnapshotMissing:
            self._prospects.check(peer, update)
            raise
        except SnapshotRejected as rejection:
            self._prospects.check(peer, update, rejection)
            raise


class AsyncSource:
    """The newest snapshots, as soon as all workers of the group hold the same one.

    The leader looks for the newest; the others get what the leader holds.

    Args:
        reader: reads and checks.
        workers: of this group.
        peers: the groups listened to.
    """

    def __init__(self, reader: Reader, workers: Workers, peers: Sequence[int]) -> None:
        self._reader = reader
        self._workers = workers
        self._peers = peers
        self._prefetcher = Prefetcher(reader)
        if workers.leader:
            for peer in peers:
                self._prefetcher.look(peer, above=-1)

    def take(self, update: int) -> list[Snapshot]:
        """Give what all workers hold; never waits for a snapshot."""
        # Not before it is first asked: what was found before a burn-in would be old after it.
        self._prefetcher.start()
        held = {peer: self._prefetcher.held(peer) for peer in self._peers}
        votes = [number for peer in self._peers for number in self._vote(peer, held[peer])]
        least = iter(self._workers.least(votes))
        taken = []
        for peer in self._peers:
            low, high, digest_low, digest_high, leads, given_up = (next(least) for _ in range(6))
            snapshot = held[peer]
            of_one_update = snapshot is not None and low == -high
            agreed = of_one_update and digest_low == -digest_high
            if snapshot is not None and agreed:
                taken.append(snapshot)
            if self._workers.leader:
                if snapshot is not None and of_one_update and not agreed:
                    # It was replaced between two workers' reads, and nobody reads it again.
                    self.refuse(snapshot, _DIFFERENT_FILES)
                # Another worker may be unable to get it: it may have been deleted since.
                if snapshot is not None and (of_one_update or given_up == leads):
                    self._prefetcher.look(peer, above=leads)
            elif agreed:
                self._prefetcher.rest(peer)
            elif leads != _NONE:
                self._prefetcher.get(peer, leads)
        return taken

    def refuse(self, snapshot: Snapshot, rejection: SnapshotRejected) -> None:
        """Log it; training goes on with what it had."""
        manifest = snapshot.manifest
        self._reader.reject(manifest.group, manifest.update, rejection, manifest)

    def stop(self) -> None:
        """Stop looking."""
        self._prefetcher.stop()

    def _vote(self, peer: int, snapshot: Snapshot | None) -> list[int]:
        """Numbers whose least over all workers tells what the group holds.

        Low and high bound of the update and of the digest held, the update the leader holds, and
        an update that some worker was asked to get and cannot.
        """
        update, digest = -1, 0
        if snapshot is not None:
            update = snapshot.manifest.update
            digest = int(snapshot.manifest.sha256[:15], 16)
        leads = update if self._workers.leader and snapshot is not None else _NONE
        given_up = self._prefetcher.given_up(peer)
        return [update, -update, digest, -digest, leads, _NONE if given_up is None else given_up]


# More than any update: what the least of all workers' numbers never is, if the leader has one.
_NONE = 2**62

_DIFFERENT_FILES = SnapshotRejected("the workers of this group read different files")
