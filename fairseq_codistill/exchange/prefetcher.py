"""Looking for peers' snapshots in the background, so that the training thread never waits."""

from __future__ import annotations

import threading
import time

from fairseq_codistill.exchange.errors import (
    SnapshotIncomplete,
    SnapshotMissing,
    SnapshotRejected,
)
from fairseq_codistill.exchange.exchange import Snapshot
from fairseq_codistill.exchange.reader import Reader
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

POLL_SECONDS = 1.0

# Longest pause between two looks; after the store has failed it is doubled from POLL_SECONDS at
# each failure on end.
LONGEST_PAUSE_SECONDS = 30.0

# A newer snapshot is looked for ever more rarely: seen later by no more than POLL_SECONDS, or by
# this part of the time that was waited for it.  Object stores take money for each look.
LATE = 0.02

# How long a snapshot that another worker has seen may stay invisible to this one.
PATIENCE_SECONDS = 30.0

# How long the end of training waits for a read that is under way.
STOP_SECONDS = 10.0


class Prefetcher:
    """Holds, for each peer, at most one verified snapshot that has not been taken yet.

    For each peer it either looks for the newest snapshot (``look``) or gets a certain one
    (``get``).  Once it holds one it keeps it until the next of these calls.

    Args:
        reader: reads and checks.
    """

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stopped = False
        self._above: dict[int, int] = {}
        # Since when each peer is looked for, and when the next look is due.
        self._since: dict[int, float] = {}
        self._due: dict[int, float] = {}
        self._exact: dict[int, tuple[int, float]] = {}
        self._held: dict[int, Snapshot] = {}
        self._given_up: dict[int, int] = {}
        # Peers whose last attempt failed, and the pause after the next failure.
        self._failing: dict[int, float] = {}
        self._thread = threading.Thread(target=self._work, name="codistill-prefetch", daemon=True)

    def start(self) -> None:
        """Begin to look, unless begun."""
        if self._thread.ident is None:
            with self._lock:
                self._since = dict.fromkeys(self._since, time.monotonic())
            self._thread.start()

    def stop(self) -> None:
        """End the thread; one that reads in the interpreter's last moments can abort it."""
        self._stopped = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=STOP_SECONDS)

    def look(self, peer: int, above: int) -> None:
        """From now on look for the newest snapshot of ``peer`` after update ``above``."""
        with self._lock:
            self._forget(peer)
            self._above[peer] = above
            self._since[peer] = time.monotonic()
        self._wake.set()

    def get(self, peer: int, update: int) -> None:
        """From now on try to get ``peer``'s snapshot of exactly ``update``."""
        with self._lock:
            if self._exact.get(peer, (None, 0))[0] == update:
                return
            self._forget(peer)
            self._exact[peer] = (update, time.monotonic() + PATIENCE_SECONDS)
            self._since[peer] = time.monotonic()
        self._wake.set()

    def held(self, peer: int) -> Snapshot | None:
        """The snapshot that waits to be taken."""
        with self._lock:
            return self._held.get(peer)

    def given_up(self, peer: int) -> int | None:
        """The update that ``get`` asked for and that cannot be had."""
        with self._lock:
            return self._given_up.get(peer)

    def rest(self, peer: int) -> None:
        """Hold nothing of ``peer`` and stop looking, until told to again."""
        with self._lock:
            self._forget(peer)

    def _forget(self, peer: int) -> None:
        self._held.pop(peer, None)
        self._above.pop(peer, None)
        self._exact.pop(peer, None)
        self._given_up.pop(peer, None)
        if peer not in self._failing:
            self._due.pop(peer, None)

    def _work(self) -> None:
        while not self._stopped:
            with self._lock:
                # The next look at each peer whose snapshot is asked for and not yet held.
                asked = {*self._above, *self._exact} - self._held.keys()
                due = {peer: self._due.get(peer, 0.0) for peer in asked}
            now = time.monotonic()
            for peer in [peer for peer, when in due.items() if when <= now]:
                if self._stopped:
                    return
                due[peer] = self._look_once(peer)
            self._wake.wait(max(min(due.values()) - time.monotonic(), 0.0) if due else None)
            self._wake.clear()

    def _look_once(self, peer: int) -> float:
        """Try once; give when the next try is due."""
        with self._lock:
            since = self._since[peer]
        try:
            self._try(peer)
        except Exception as error:  # noqa: BLE001 - the store may recover, training goes on
            pause = self._failing.get(peer, POLL_SECONDS)
            logger.warning(
                "looking for snapshots of peer %d failed (%s: %s); trying again in %g s",
                *(peer, type(error).__name__, error, pause),
            )
            self._failing[peer] = min(2 * pause, LONGEST_PAUSE_SECONDS)
        else:
            if self._failing.pop(peer, None):
                logger.info("the snapshots of peer %d can be read again", peer)
            waited = time.monotonic() - since
            pause = min(max(POLL_SECONDS, LATE * waited), LONGEST_PAUSE_SECONDS)
        due = time.monotonic() + pause
        with self._lock:
            # Something else may have been asked for meanwhile, which is due at once.
            if self._since[peer] == since or peer in self._failing:
                self._due[peer] = due
            return self._due.get(peer, 0.0)

    def _try(self, peer: int) -> None:
        with self._lock:
            above = self._above.get(peer)
            exact, patience_ends = self._exact.get(peer, (None, 0.0))
            if peer in self._given_up:
                return
        found, hopeless = None, False
        if exact is not None:
            try:
                found = self._reader.read(peer, exact)
            except SnapshotMissing:
                hopeless = time.monotonic() > patience_ends
            except SnapshotIncomplete:
                pass  # Looked at again, until it is whole or rejected for good.
            except SnapshotRejected:
                hopeless = True
        elif above is not None:
            found = self._reader.newest(peer, above)
        with self._lock:
            # What was asked for may have changed while the store was read.
            if above != self._above.get(peer) or exact != self._exact.get(peer, (None, 0))[0]:
                return
            if found is not None:
                self._held[peer] = found
            elif hopeless and exact is not None:
                self._given_up[peer] = exact
