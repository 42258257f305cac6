"""``alive.json``: that a group's process runs, how far it is, and that there is only one of it."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.exchange.errors import ExchangeError, SnapshotRejected
from fairseq_codistill.exchange.exchange import group_folder
from fairseq_codistill.exchange.manifest import MAX_MANIFEST_BYTES
from fairseq_codistill.exchange.plain_json import is_text, is_whole, parse_object
from fairseq_codistill.exchange.store import Store

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 5.0

# How long an exchange may take to answer at the start, and at the end.
ANSWER_SECONDS = 60.0
LEAVE_SECONDS = 10.0

# A process that has not written for this long, by the reader's clock, is taken for dead.
FRESH_SECONDS = 60.0


@dataclass(frozen=True)
class Alive:
    """What a group says of itself.

    Attributes:
        run_id: the run it takes part in.
        nonce: names the process; a restart by ``codistill launch`` has its predecessor's.
        update: updates made so far.
        time: when this was written, seconds since the epoch of Unix.
        finished: training has reached its end, and the last snapshot is published.
        running: False once the process has ended in an orderly way, finished or not.
        seed: the group's seed, if it is told.
        vocabulary: digest of its target vocabulary, if it is told.
        restarts: how often it has been started again, as far as that was told.
        epoch: the epoch, from 1, that training is in.
        peers: the live peers -> the update of the snapshot in use.
    """

    run_id: str
    nonce: str
    update: int = 0
    time: float = 0.0
    finished: bool = False
    running: bool = True
    seed: int | None = None
    vocabulary: str | None = None
    restarts: int = 0
    epoch: int = 1
    peers: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether its process probably runs now."""
        return self.running and time.time() - self.time < FRESH_SECONDS


# What every sign of life says; the rest came later, and another implementation may not have it.
ALWAYS = ("run_id", "nonce", "update", "time", "finished")
_FIELDS = [field.name for field in dataclasses.fields(Alive)]


def read_alive(store: Store, group: int) -> Alive | None:
    """Give what a group last said; None if it said nothing that can be read."""
    name = f"{group_folder(group)}/alive.json"
    try:
        fields = parse_object(store.read(name, MAX_MANIFEST_BYTES))
        known = {name: fields[name] for name in ALWAYS} | {"running": not fields["finished"]}
        known |= {name: fields[name] for name in _FIELDS if name in fields}
        alive = Alive(**known)
    except (OSError, SnapshotRejected, ValueError, KeyError, TypeError):
        return None
    return alive if _well_formed(alive) else None


def _well_formed(alive: Alive) -> bool:
    """Whether every field is of its kind; anybody who can write to the store can write this."""
    return (
        all(is_text(text, 0, 4096) for text in (alive.run_id, alive.nonce))
        and (alive.vocabulary is None or is_text(alive.vocabulary, 0, 4096))
        and (alive.seed is None or is_whole(alive.seed, -(2**63), 2**63))
        and all(is_whole(n, 0, 2**63) for n in (alive.restarts, alive.update, alive.epoch))
        and all(type(flag) is bool for flag in (alive.finished, alive.running))
        and type(alive.time) in (int, float)
        and 0 <= alive.time < 2**40
        and type(alive.peers) is dict
        and all(
            peer.isascii() and peer.isdecimal() and is_whole(update, 0, 2**63)
            for peer, update in alive.peers.items()
        )
    )


class Presence:
    """One group's claim to its index, kept up by a heartbeat in the background.

    Args:
        store: where ``alive.json`` goes.
        group: the index claimed.
        alive: what to say first; ``time`` is filled in at each writing.
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

    def claim(self, needed: bool = True) -> None:
        """Take the index, or refuse if a live process has it, and begin the heartbeat.

        The other process is observed for one heartbeat and a half, so that neither a process
        killed a moment ago nor a clock that is off counts as alive.

        Args:
            needed: whether to insist on an exchange that answers.

        Raises:
            ExchangeError: if another process of this index lives.
            OSError: if the exchange cannot be written, and that is needed.
        """
        try:
            within(ANSWER_SECONDS, self._take)
        except OSError as error:
            if needed:
                raise
            logger.warning(
                "the exchange cannot be used now (%s: %s); training goes on without it until it "
                "can be",
                type(error).__name__,
                error,
            )
        self._thread.start()

    def _take(self) -> None:
        before = read_alive(self._store, self._group)
        if before is not None and before.fresh and before.nonce != self._alive.nonce:
            logger.info(
                "group %d left a sign of life %.0f s ago; watching whether it still lives",
                self._group,
                time.time() - before.time,
            )
            time.sleep(1.5 * HEARTBEAT_SECONDS)
            after = read_alive(self._store, self._group)
            if after is not None and after.running and after.time != before.time:
                raise ExchangeError(
                    f"--codistill-group {self._group}: another live process has this index in "
                    f"{self._store.uri} (run {after.run_id}, update {after.update}); give every "
                    "group an index of its own or stop the other process"
                )
        self._write()

    def release(self, finished: bool) -> None:
        """Say that the process ends, and stop the heartbeat; what is said first stands."""
        if self._stop.is_set():
            return
        self._alive = dataclasses.replace(self._alive, finished=finished, running=False)
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
        alive = dataclasses.replace(self._alive, time=time.time(), **self._progress())
        data = json.dumps(dataclasses.asdict(alive), indent=1).encode()
        self._store.write(f"{group_folder(self._group)}/alive.json", data)
