"""Lockstep: whether a snapshot that a group waits for may still come.

A group that was killed says nothing, and is waited for: it may be started again.  So is one that
has said goodbye, if whoever started it starts it again; otherwise only for a moment, in case
somebody does so by hand.  One that says that it ends for good is not waited for.

What a group has said in a former start of the run counts for nothing.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence

from fairseq_codistill.exchange import (
    Alive,
    Exchange,
    ExchangeError,
    SnapshotIncomplete,
    SnapshotMissing,
    SnapshotRejected,
    may_have_alive,
    read_alive,
)
from fairseq_codistill.records import printable
from fairseq_codistill.records.heartbeat import ENDS_FOR_GOOD

# How long a group may be gone, or its rejected snapshot stay what it is, until that is final.
GONE_SECONDS = 15.0

# Characters of what a peer gives as its reason.
LONGEST_FAILURE = 400


# How long a network file system may go on saying that a file is not there.
UNSEEN_SECONDS = 60.0


class NeverComes(ExchangeError):
    """What a group in lockstep waits for will never come; the message names the peer."""


class Led:
    """A group's own prospects, as its workers but the leader know of them: by its heartbeat.

    Args:
        exchange: of the run.
        group: its index.
        start: names the common start of the groups, if it is known.
    """

    def __init__(self, exchange: Exchange, group: int, start: str | None = None) -> None:
        self._exchange = exchange
        self._group = group
        self._start = start

    def check_published(self) -> None:
        """Make sure that the leader has not said that the group ends for good.

        Raises:
            NeverComes: if it has.
        """
        alive = read_alive(self._exchange.store, self._group)
        if alive is None or alive.run_id != self._exchange.run_id or alive.failure is None:
            return
        if None not in (self._start, alive.start) and self._start != alive.start:
            # Said in a former start; the leader's first heartbeat cannot be seen here yet.
            return
        raise NeverComes(ENDS_FOR_GOOD + _said(alive.failure))

    def note_failure(self, failure: str) -> None:
        """Leave it to the leader, who finds the same, to tell others."""


class Prospects:
    """What peers' heartbeats tell of the snapshots that are waited for.

    Args:
        exchange: of the run.
        peers: the groups listened to.
        interval: T, in updates.
        start: names the common start of the groups that this one belongs to; None if it is not
            known, as for groups that are started by hand.
    """

    def __init__(
        self, exchange: Exchange, peers: Sequence[int], interval: int, start: str | None = None
    ) -> None:
        self._exchange = exchange
        self._interval = interval
        self._start = start
        # Of each peer, what it had said before this process began, once that could be read.
        self._former: dict[int, Alive | None] = {}
        for peer in peers:
            self._note_former(peer)
        # Of each peer, what speaks against it, and since when.
        self._against: dict[Hashable, tuple[Hashable, float]] = {}
        # What a peer said when a snapshot of its was first rejected.
        self._said_then: dict[tuple[int, int], Alive] = {}

    def check(self, peer: int, update: int, rejection: SnapshotRejected | None = None) -> None:
        """Make sure that a peer's snapshot may still come.

        Args:
            peer: whose snapshot.
            update: of the snapshot.
            rejection: why what is there cannot be used; None if nothing is there.

        Raises:
            NeverComes: if it will not.
        """
        alive = read_alive(self._exchange.store, peer)
        of_this_run = alive is not None and alive.run_id == self._exchange.run_id
        if alive is None or not of_this_run or self._is_of_a_former_start(peer, alive):
            self._against.pop(peer, None)
            return
        if alive.finished and alive.update < update:
            raise NeverComes(
                f"peer {peer} finished at update {alive.update}, so its snapshot of update "
                f"{update} will not come; in lockstep give all groups the same number of updates"
            )
        if alive.failure is not None:
            raise NeverComes(
                f"peer {peer} stops for good at update {alive.update}: {_said(alive.failure)}"
            )
        if rejection is not None and (alive.update >= update or not alive.running):
            # It has published that, and goes on or is gone: nobody will put another in its place.
            waited = self._lasts(peer, ("rejected", update, alive.running or alive.nonce))
            # One that was killed says that it runs, and may be started again.
            killed = alive.running and alive == self._said_then.setdefault((peer, update), alive)
            final = waited > GONE_SECONDS and not killed and not _comes_back(alive)
            if final and not isinstance(rejection, SnapshotIncomplete):
                raise NeverComes(
                    f"the snapshot of peer {peer} at update {update} can never be used: "
                    f"{rejection}; see the log of group {peer}"
                )
        elif not alive.running:
            waited = self._lasts(peer, ("gone", alive.nonce, alive.time))
            if waited > GONE_SECONDS and not _comes_back(alive):
                raise NeverComes(
                    f"peer {peer} has said at update {alive.update} that it is gone, and has not "
                    f"come back within {waited:.0f} s, so its snapshot of update {update} will not "
                    f"come; see the log of group {peer}, and start the groups again"
                )
        else:
            self._against.pop(peer, None)
        # By then it was published: a group makes sure of that when the next one is due.
        if rejection is None and alive.update > update + self._interval:
            try:
                self._exchange.manifest(peer, update)
            except SnapshotMissing as missing:
                if self._lasts(("unseen", peer), update) <= UNSEEN_SECONDS:
                    return
                raise NeverComes(
                    f"peer {peer} is at update {alive.update} and keeps its snapshot of update "
                    f"{update} no more; in lockstep leave --codistill-keep out, and resume all "
                    "groups from checkpoints of one update"
                ) from missing

    def _is_of_a_former_start(self, peer: int, alive: Alive) -> bool:
        """Whether a peer has yet to be started again since it said this."""
        if self._start is not None and alive.start is not None:
            return alive.start != self._start
        if peer not in self._former:
            # Its first heartbeat that could be read since this process began.
            self._former[peer] = alive
        return alive == self._former[peer]

    def _note_former(self, peer: int) -> None:
        alive = read_alive(self._exchange.store, peer)
        if alive is not None or not may_have_alive(self._exchange.store, peer):
            self._former[peer] = alive

    def _lasts(self, of: Hashable, evidence: Hashable) -> float:
        """Return the seconds for which this, and nothing else, has spoken against a peer."""
        now = time.monotonic()
        before, since = self._against.get(of, (None, now))
        if before != evidence:
            since = now
        self._against[of] = evidence, since
        return now - since


def _comes_back(alive: Alive) -> bool:
    """Whether somebody starts a group again that has ended; it publishes anew what is damaged."""
    return alive.returns and not alive.running


def _said(failure: str) -> str:
    # Short enough that a group can pass on what it was told, and add its own words.
    return printable(failure, LONGEST_FAILURE)
