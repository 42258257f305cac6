"""Publishing in the background: the training thread copies the weights out and goes on."""

from __future__ import annotations

import logging
import threading

from fairseq_codistill.exchange.exchange import Draft, Exchange

logger = logging.getLogger(__name__)


class Publisher:
    """Publishes one draft at a time on a thread of its own, and prunes after each.

    Args:
        exchange: where to.
        keep: newest snapshots of the group that stay; 0 keeps all.

    Attributes:
        failure: what went wrong with the newest draft; None while it is on its way, or if nothing
            did.
    """

    def __init__(self, exchange: Exchange, keep: int) -> None:
        self._exchange = exchange
        self._keep = keep
        self._draft: Draft | None = None
        self._changed = threading.Condition()
        self._swept = False
        self.failure: Exception | None = None
        threading.Thread(target=self._work, name="codistill-publisher", daemon=True).start()

    @property
    def busy(self) -> bool:
        """Whether a draft is still on its way."""
        with self._changed:
            return self._draft is not None

    def submit(self, draft: Draft) -> None:
        """Hand a draft over; waits if one is still on its way."""
        with self._changed:
            self._changed.wait_for(lambda: self._draft is None)
            self._draft, self.failure = draft, None
            self._changed.notify_all()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until nothing is on its way, or for ``timeout`` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._draft is None, timeout)

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._draft is not None)
                draft = self._draft
            assert draft is not None
            failure: Exception | None = None
            try:
                self._publish(draft)
            except Exception as error:  # noqa: BLE001 - whatever a store raises, training goes on
                logger.error("snapshot of update %d was not published: %s", draft.update, error)
                failure = error
            with self._changed:
                self._draft, self.failure = None, failure
                self._changed.notify_all()

    def _publish(self, draft: Draft) -> None:
        if not self._swept:
            self._exchange.sweep(draft.group)
            self._swept = True
        if self._exchange.publish(draft):
            logger.info("published snapshot of update %d", draft.update)
        else:
            logger.warning(
                "the exchange holds other weights of group %d for update %d; they stay, and "
                "peers use them",
                draft.group,
                draft.update,
            )
        self._exchange.prune(draft.group, self._keep)
