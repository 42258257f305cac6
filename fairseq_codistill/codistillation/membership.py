"""A group's membership of the run: its index, the snapshots it publishes, its orderly end.

Only a group's leader has one; it is the group's one writer to the exchange.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.peer import BuildModel
from fairseq_codistill.exchange import (
    WIRE_DTYPES,
    Alive,
    CopyOut,
    Draft,
    Exchange,
    ExchangeError,
    Presence,
    Publisher,
    read_alive,
)
from fairseq_codistill.records import Memory, get_logger

logger = get_logger(__name__)

# At the end, how long to wait for the last snapshot to be published (the group's other workers
# wait too); how long while attempts fail; and how long if the process ends early.
LAST_SECONDS = 480.0
FAILING_SECONDS = 60.0
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Group:
    """What a group is to others, beside its settings.

    Attributes:
        seed: of this group's randomness; differs from group to group.
        vocabulary: digest of the target vocabulary (or of the classes).
        model: configuration from which ``build`` makes this group's model; plain JSON.
        build: makes a model from such a configuration, this group's or a peer's.
        like: a parameter of the student; peers are on its device.
    """

    seed: int
    vocabulary: str
    model: dict[str, Any]
    build: BuildModel
    like: Tensor


class Membership:
    """One group's side of the exchange.

    Args:
        config: checked settings.
        group: what this group is to others.
        state: gives the student's current state, names -> tensors.
        exchange: of the run.
        memory: what this group remembers over its restarts.

    Raises:
        ConfigError: if two groups have one seed, or (lockstep) different vocabularies.
        ExchangeError: if another process has this group's index.
        OSError: if the exchange cannot be written.
    """

    def __init__(
        self,
        config: CodistillationConfig,
        group: Group,
        state: Callable[[], Mapping[str, Tensor]],
        exchange: Exchange,
        memory: Memory,
    ) -> None:
        self._config = config
        self._group = group
        self._state = state
        self._exchange = exchange
        self._lockstep = config.codistill_mode == "lockstep"
        self._update = 0
        self._epoch = 1
        self._peers: Mapping[int, int] = {}
        self._published: int | None = None
        self._started = False
        self._copy_out = CopyOut(WIRE_DTYPES[config.codistill_snapshot_dtype])
        self.memory = memory
        self.nonce = os.environ.get("CODISTILL_NONCE") or uuid.uuid4().hex
        self._presence = self._presence_of(int(os.environ.get("CODISTILL_RESTARTS") or 0))
        # A run that has met its exchange has passed all this before.  In async mode its restarts do
        # not even need the exchange.
        met_before = memory.met
        if self._presence.claim(needed=self._lockstep or not met_before):
            memory.note_met()
        try:
            for other in range(config.codistill_num_groups) if not met_before else ():
                if other != config.codistill_group:
                    self._check_fits(other)
        except ConfigError:
            self._presence.release(finished=False)
            raise
        patience = config.codistill_timeout if self._lockstep else None
        self._publisher = Publisher(exchange, config.keep, patience)

    @property
    def skipped(self) -> int:
        """How many snapshots were due and not published, because another one took too long."""
        return self._publisher.skipped

    def at_boundary(self, update: int, epoch: int) -> None:
        """Publish the snapshot of an update, if it is due.

        Raises:
            ExchangeError: lockstep only: a snapshot could not be published.
            ConfigError: lockstep only: this process has other weights than its run had here.
        """
        self._update, self._epoch = update, epoch
        if self._lockstep:
            self._check_published()
        due = update % self._config.codistill_interval == 0
        if not self._started:
            self._started = True
            if self._lockstep:
                self._publish_start()
                return
            if update == 0:
                # Whether or not the exchange answers, training begins.
                threading.Thread(
                    target=self._warn_of_a_former_life, name="codistill-former-life", daemon=True
                ).start()
            # Nobody wants to learn from random weights, but a resumed model is worth having.
            due = update > 0
        if not due or self._published == update:
            return
        if self._lockstep:
            self._await_published()
        elif not self._publisher.make_room():
            logger.warning(
                "snapshot of update %d skipped, %d so far: the one before is still being published",
                update,
                self.skipped,
            )
            return
        self._submit()

    def tell(self, peers: Mapping[int, int]) -> None:
        """Note the live peers and the updates of their snapshots, for others to see."""
        self._peers = peers

    def finish(self, update: int, epoch: int) -> None:
        """End: publish the snapshot of the last update, and say that training is over.

        Raises:
            ExchangeError: lockstep only: a snapshot that peers wait for cannot be published.
        """
        self._update, self._epoch = update, epoch
        deadline = time.monotonic() + LAST_SECONDS
        if self._lockstep:
            # Peers may wait for this one; the last one is for those who come later.
            self._await_published()
        if self._published != update:
            # A draft that fails again and again makes room; one on its way is waited for.
            self._publisher.wait(timeout=LAST_SECONDS, failing=0)
            if self._publisher.make_room():
                self._submit()
        left = deadline - time.monotonic()
        settled = self._publisher.wait(timeout=left, failing=FAILING_SECONDS)
        self._publisher.close()
        published = settled and self._publisher.failure is None and self._published == update
        if not published:
            logger.error(
                "training is over, but the exchange did not take the last snapshot, of update %d; "
                "peers go on with the one before",
                update,
            )
        # Peers may count on the last snapshot only if it is there.
        self._presence.release(finished=published)

    def say_goodbye(self) -> None:
        """Say that the process is gone without having reached the end, if nothing else was said."""
        self._presence.release(finished=False)

    def abandon(self) -> None:
        """End without having reached the end: publish nothing, say that the process is gone."""
        self._publisher.wait(timeout=LEAVE_SECONDS, failing=0)
        self._publisher.close()
        self.say_goodbye()

    def _presence_of(self, restarts: int) -> Presence:
        alive = Alive(
            run_id=self._config.codistill_run_id,
            nonce=self.nonce,
            seed=self._group.seed,
            vocabulary=self._group.vocabulary,
            restarts=restarts,
        )
        index = self._config.codistill_group
        return Presence(self._exchange.store, index, alive, self._progress)

    def _progress(self) -> dict[str, Any]:
        peers = {str(peer): update for peer, update in self._peers.items()}
        return {"update": self._update, "epoch": self._epoch, "peers": peers}

    def _check_fits(self, other: int) -> None:
        """Refuse to train beside a group of this run that this one cannot codistil with.

        One that has died may come back with other settings, and is not looked at.
        """
        alive = read_alive(self._exchange.store, other)
        if alive is None or alive.run_id != self._config.codistill_run_id:
            return
        if not (alive.fresh or alive.finished):
            return
        if alive.seed == self._group.seed:
            raise ConfigError(
                f"--seed {alive.seed} is that of group {other} too; give every group a seed of "
                "its own, 1000003 apart"
            )
        listened = self._lockstep and other in self._config.listens_to()
        if listened and alive.vocabulary not in (None, self._group.vocabulary):
            raise ConfigError(
                f"--codistill-mode lockstep: group {other} has another target vocabulary "
                "and cannot be left out; prepare the data of all groups with one dictionary, or "
                "the same classes"
            )

    def _warn_of_a_former_life(self) -> None:
        """Say so if this run has snapshots already and this process begins from the beginning."""
        try:
            newest = self._exchange.newest_update(self._config.codistill_group)
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            logger.warning("whether this run has snapshots already is not known: %s", error)
            return
        if newest:
            logger.warning(
                "the run %s already has snapshots of this group, up to update %d, and peers go "
                "on using those; unless this is a restart of that run, stop all groups and give "
                "them a --codistill-run-id of their own",
                self._config.codistill_run_id,
                newest,
            )

    def _await_published(self) -> None:
        """Lockstep: wait until the newest snapshot is published.

        Raises:
            ExchangeError: if it cannot be.
        """
        timeout = self._config.codistill_timeout
        if not self._publisher.wait(timeout=timeout):
            raise ExchangeError(
                f"--codistill-timeout {timeout:g}: the snapshot of update {self._published} is not "
                f"published within that many seconds; see to {self._exchange.store.uri}, or "
                "allow more"
            )
        self._check_published()

    def _check_published(self) -> None:
        if self._publisher.given_up:
            raise ExchangeError(
                f"the snapshot of update {self._published} could not be published to "
                f"--codistill-dir {self._exchange.store.uri} ({self._publisher.failure}), and "
                "peers in lockstep wait for it; see to the exchange and start again"
            )

    def _publish_start(self) -> None:
        """Publish where a lockstep run starts or resumes, and make sure it is the same run."""
        self._submit()
        self._await_published()
        if not self._publisher.agreed:
            raise ConfigError(
                f"--codistill-run-id {self._config.codistill_run_id}: this run has published "
                f"other weights of group {self._config.codistill_group} for update "
                f"{self._update} than this process starts with; resume from that run's "
                "checkpoint, or give another id"
            )

    def _submit(self) -> None:
        """Copy the weights out, and leave the rest to the publisher, which has room."""
        tensors, aliases, ready = self._copy_out(self._state())
        draft = Draft(
            group=self._config.codistill_group,
            seed=self._group.seed,
            update=self._update,
            epoch=self._epoch,
            dtype=self._config.codistill_snapshot_dtype,
            vocabulary=self._group.vocabulary,
            model=self._group.model,
            tensors=tensors,
            aliases=aliases,
        )
        self._publisher.submit(draft, ready)
        self._published = self._update
