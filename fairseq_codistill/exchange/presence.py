"""``alive.json``: that a group's process runs, how far it is, and that there is only one of it."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected
from fairseq_codistill.exchange.exchange import group_folder
from fairseq_codistill.exchange.manifest import MAX_MANIFEST_BYTES
from fairseq_codistill.exchange.store import Store
from fairseq_codistill.records import get_logger, printable
from fairseq_codistill.records.heartbeat import NAME, Alive, clock_of_this_host, parse_alive

logger = get_logger(__name__)

HEARTBEAT_SECONDS = 5.0

# A heartbeat is watched for so many beats: a slow store may hold one or two of them up.
WATCHED_BEATS = 5

# How long an exchange may take to answer at the start, and at the end.
ANSWER_SECONDS = 60.0
LEAVE_SECONDS = 10.0


def read_alive(store: Store, group: int) -> Alive | None:
    """Return what a group last said; None if it said nothing that can be read."""
    try:
        return parse_alive(store.read(f"{group_folder(group)}/{NAME}", MAX_MANIFEST_BYTES))
    except (OSError, SnapshotRejected, ValueError):
        return None


def may_have_alive(store: Store, group: int) -> bool:
    """Return whether a group may have said something, though nothing could be read."""
    try:
        store.size(f"{group_folder(group)}/{NAME}")
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return True


def lives(store: Store, group: int, before: Alive) -> Alive | None:
    """Watch whether the process that has left a heartbeat still runs.

    It does if the heartbeat changes within ``WATCHED_BEATS``.  What its time says counts for
    nothing: it is that of another clock.

    Args:
        store: of the exchange.
        group: the process's.
        before: the heartbeat.

    Returns:
        Its newest heartbeat, or None if it does not run.
    """
    if not before.running:
        return None
    deadline = time.monotonic() + WATCHED_BEATS * HEARTBEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(HEARTBEAT_SECONDS / 5)
        after = read_alive(store, group)
        if after is not None and after != before:
            return after if after.running else None
    return None


class Presence:
    """One group's claim to its index, kept up by a heartbeat in the background.

    Args:
        store: where ``alive.json`` goes.
        group: the index claimed.
        alive: what to say first; ``time`` and ``clock`` are filled in at each writing.
        progress: asked at each heartbeat for ``update``, ``epoch`` and ``peers``.
    """

    def __init__(
        self, store: Store, group: int, alive: Alive, progress: Callable[[], Mapping[str, Any]]
    ) -> None:
        self._store = store
        self._group = group
        self._alive = alive
        self._progress = progress
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="codistill-heartbeat", daemon=True)

    def claim(self, needed: bool = True) -> bool:
        """Take the index, or refuse if a live process has it, and begin the heartbeat.

        The first heartbeat is read back: an exchange that takes bytes and does not return them is
        none.  Another process that says it runs is watched for some heartbeats, so that neither one
        that was killed nor a clock that is off is taken for what it is not.

        Args:
            needed: whether to insist on an exchange that answers.

        Returns:
            Whether the exchange has answered.

        Raises:
            ExchangeError: if another process of this index lives.
            OSError: if the exchange cannot be written and read, and that is needed.
        """
        met = True
        try:
            within(ANSWER_SECONDS, self._take)
        except OSError as error:
            if needed:
                raise
            met = False
            logger.warning(
                "the exchange cannot be used now (%s: %s); training goes on without it until it "
                "can be",
                type(error).__name__,
                error,
            )
        self._thread.start()
        return met

    def _take(self) -> None:
        before = read_alive(self._store, self._group)
        if before is not None and before.running and before.nonce != self._alive.nonce:
            logger.info(
                "another process has left a heartbeat as group %d; watching whether it still runs",
                self._group,
            )
            other = lives(self._store, self._group, before)
            if other is not None:
                raise ExchangeError(
                    f"--codistill-group {self._group}: another live process has this index in "
                    f"{self._store.uri} (run {other.run_id}, update {other.update}); give every "
                    "group an index of its own or stop the other process"
                )
        self._write()
        back = read_alive(self._store, self._group)
        if back is None or back.nonce != self._alive.nonce:
            found = "nothing that can be read" if back is None else "another process's"
            raise OSError(
                f"{group_folder(self._group)}/{NAME} was written to {self._store.uri} and could "
                f"not be read back: there is {found}"
            )
        if NAME not in self._store.names(group_folder(self._group)):
            raise OSError(
                f"{group_folder(self._group)}/{NAME} was written to {self._store.uri}, and is not "
                "among the names that are listed there"
            )

    @property
    def failure(self) -> str | None:
        """Why the process ends for good, if it does."""
        return self._alive.failure

    def note_failure(self, failure: str) -> str:
        """Say, from the next heartbeat on, that the process ends for good; the first reason stands.

        Args:
            failure: why it cannot reach its end, where a restart would not help.

        Returns:
            What is said: the reason on one printable line.
        """
        said = self._alive.failure or printable(failure)
        self._alive = dataclasses.replace(self._alive, failure=said, returns=False)
        return said

    def release(self, finished: bool) -> None:
        """Say that the process ends, and stop the heartbeat; what is said first stands.

        Args:
            finished: whether training has reached its end, and the last snapshot is published.
        """
        if self._stop.is_set():
            return
        self._alive = dataclasses.replace(
            self._alive,
            finished=finished,
            running=False,
            returns=self._alive.returns and not finished,
        )
        self._stop.set()
        self._thread.join(timeout=LEAVE_SECONDS)
        if self._thread.is_alive():
            logger.error("the last sign of life is not written: the exchange does not answer")

    def _beat(self) -> None:
        failing = False
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._write()
            except Exception as error:  # noqa: BLE001 - stores raise what they like
                # The exchange may come back; training does not depend on it.
                if not failing:
                    logger.warning("no sign of life can be written: %s", error)
                failing = True
            else:
                if failing:
                    logger.info("signs of life can be written again")
                failing = False
        # Here, so that no sign of life that is still being written comes after it.
        try:
            self._write()
        except Exception as error:  # noqa: BLE001 - as above
            logger.error("the last sign of life could not be written: %s", error)

    def _write(self) -> None:
        alive = dataclasses.replace(
            self._alive, time=time.time(), clock=clock_of_this_host(), **self._progress()
        )
        data = json.dumps(dataclasses.asdict(alive), indent=1).encode()
        self._store.write(f"{group_folder(self._group)}/alive.json", data)
