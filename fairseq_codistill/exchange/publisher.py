"""Publishing in the background: the training thread copies the weights out and goes on."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable

from fairseq_codistill.exchange.errors import Unpublishable
from fairseq_codistill.exchange.exchange import Draft, Exchange
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# Seconds before a failed publication is tried again: doubled each time, up to the longest.
FIRST_RETRY_SECONDS = 1.0
LONGEST_RETRY_SECONDS = 30.0


class _State(enum.Enum):
    IDLE = "nothing to publish"
    BUSY = "a draft is being published"
    WAITING = "a draft waits to be tried again"


class Publisher:
    """Publishes one draft at a time on a thread of its own, and prunes after each.

    What fails is tried again, ever more slowly, until it succeeds, is given up after ``patience``
    seconds, or makes room for a newer draft.  A store that hangs is waited for.  A draft that no
    reader would take (its numbers are not finite, say) is given up at once, and nothing is deleted
    for it.

    Args:
        exchange: where to.
        keep: newest snapshots of the group that stay; 0 keeps all.
        patience: seconds to go on trying to publish one draft; None for as long as it takes.

    Attributes:
        failure: what went wrong with the newest draft at its last try; None before that, or if
            nothing did.
        given_up: whether the newest draft will not be tried again.
        agreed: whether the exchange holds the weights of the newest draft, and no others of that
            update.
        skipped: how many snapshots were not published because another one took too long, or
            because no reader would take them.
    """

    def __init__(self, exchange: Exchange, keep: int, patience: float | None) -> None:
        self._exchange = exchange
        self._keep = keep
        self._patience = patience
        self._changed = threading.Condition()
        self._state = _State.IDLE
        self._draft: Draft | None = None
        self._ready: Callable[[], None] = _at_once
        self._swept = False
        self._closed = False
        self.failure: Exception | None = None
        self.given_up = False
        self.agreed = True
        self.skipped = 0
        threading.Thread(target=self._work, name="codistill-publisher", daemon=True).start()

    def make_room(self) -> bool:
        """Drop a draft that waits to be tried again, if there is one.

        Returns:
            False if a draft is being published at this moment.  Otherwise there is room for a
            new one, and what the old one was made of is used no more.
        """
        with self._changed:
            if self._state is not _State.IDLE:
                self.skipped += 1
            if self._state is _State.WAITING:
                assert self._draft is not None
                logger.warning(
                    "snapshot of update %d skipped, %d so far: it could not be published, and a "
                    "newer one takes its place",
                    self._draft.update,
                    self.skipped,
                )
                self._settle()
            return self._state is _State.IDLE

    def submit(self, draft: Draft, ready: Callable[[], None] | None = None) -> None:
        """Hand a draft over, after ``make_room`` or ``wait``.

        Args:
            draft: what to publish.
            ready: called on the publisher's thread before the draft's tensors are read.
        """
        with self._changed:
            assert self._state is _State.IDLE, self._state.value
            self._draft, self._ready = draft, ready or _at_once
            self._state = _State.BUSY
            self.failure, self.given_up, self.agreed = None, False, True
            self._changed.notify_all()

    def wait(self, timeout: float | None = None, failing: float | None = None) -> bool:
        """Wait until there is nothing to publish.

        Args:
            timeout: seconds to wait at most.
            failing: seconds to wait at most while attempts fail.

        Returns:
            Whether there is nothing to publish any more.
        """
        start = time.monotonic()
        with self._changed:
            while self._draft is not None:
                bounds = [timeout, failing if self.failure is not None else None]
                limit = min((bound for bound in bounds if bound is not None), default=None)
                left = None if limit is None else start + limit - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def close(self) -> None:
        """Try nothing again, and end the thread: one at work when the interpreter ends is fatal."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _settle(self) -> None:
        """Have nothing to publish; the caller holds the lock."""
        self._draft, self._state = None, _State.IDLE
        self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._draft is not None or self._closed)
                draft, ready = self._draft, self._ready
            if draft is None:
                return
            self._try_until_done(draft, ready)

    def _try_until_done(self, draft: Draft, ready: Callable[[], None]) -> None:
        start = time.monotonic()
        pause = FIRST_RETRY_SECONDS
        while True:
            try:
                ready()
                self._publish(draft)
            except Unpublishable as refusal:
                self._refuse(draft, refusal)
                return
            except Exception as error:  # noqa: BLE001 - whatever a store raises, training goes on
                failure = error
            else:
                with self._changed:
                    self.failure = None
                    self._settle()
                return
            given_up = self._closed or (
                self._patience is not None and time.monotonic() + pause > start + self._patience
            )
            logger.log(
                logging.ERROR if given_up else logging.WARNING,
                "snapshot of update %d is not published (%s: %s); %s",
                draft.update,
                type(failure).__name__,
                failure,
                "given up" if given_up else f"trying again in {pause:g} s",
            )
            with self._changed:
                self.failure, self.given_up = failure, given_up
                if given_up:
                    self._settle()
                    return
                self._state = _State.WAITING
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._draft is not draft or self._closed, pause)
                if self._closed and self._draft is draft:
                    self._settle()
                if self._draft is not draft:
                    return
                self._state = _State.BUSY
            pause = min(2 * pause, LONGEST_RETRY_SECONDS)

    def _refuse(self, draft: Draft, refusal: Unpublishable) -> None:
        with self._changed:
            self.skipped += 1
            logger.error(
                "snapshot of update %d skipped, %d so far: no peer would take it (%s); the last "
                "sound one stays",
                draft.update,
                self.skipped,
                refusal,
            )
            self.failure, self.given_up = refusal, True
            self._settle()

    def _publish(self, draft: Draft) -> None:
        if not self._swept:
            self._exchange.sweep(draft.group)
            self._swept = True
        manifest = self._exchange.publish(draft)
        self.agreed = manifest is not None
        if manifest is not None:
            logger.info(
                "published snapshot of update %d, sha256 %s", draft.update, manifest.sha256[:16]
            )
        else:
            logger.warning(
                "the exchange holds other weights of group %d for update %d; they stay, and "
                "peers use them",
                draft.group,
                draft.update,
            )
        try:
            self._exchange.prune(draft.group, self._keep)
        except Exception as error:  # noqa: BLE001 - as above; the snapshot is published all the same
            logger.warning("snapshots that have had their time stay for now: %s", error)


def _at_once() -> None:
    """Nothing has to be waited for."""
