"""Algorithm 1 of the paper, and the one place where it lives.

    theta_i[k+1] = theta_i[k] - eta_k grad_i ( L(y, f_i(x))
                   + alpha_k / (n-1) sum_{j != i} D( f_j(x), f_i(x) ) )

The adapter computes f_i(x) and L and takes the gradient step.  Here are alpha_k
(``Codistillation.alpha``), the f_j, which are stale copies (``peers``), and the second term
(``term``); ``at_boundary`` stands between update k - 1 and update k.
"""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.peer import BuildModel, Peer, cuda_devices
from fairseq_codistill.codistillation.sources import AsyncSource, LockstepSource, Source
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import (
    WIRE_DTYPES,
    Alive,
    Draft,
    Exchange,
    ExchangeError,
    Presence,
    Publisher,
    Reader,
    SnapshotRejected,
    Store,
    copy_out,
    read_alive,
)

logger = logging.getLogger(__name__)

# How long the leader may write a checkpoint or validate while the other workers wait for it.
SAVING_SECONDS = 3600.0

# How long a process that ends early waits for a store that hangs.
LEAVE_SECONDS = 10.0


@dataclass(frozen=True)
class Group:
    """What a group is to others, beside its settings.

    Attributes:
        seed: of this group's randomness; differs from group to group.
        vocabulary: digest of the target vocabulary (or of the classes).
        model: configuration from which ``build`` makes this group's model; plain JSON.
        build: makes a model from such a configuration, this group's or a peer's.
    """

    seed: int
    vocabulary: str
    model: dict[str, Any]
    build: BuildModel


class Codistillation:
    """One group's side of codistillation, from its first update to its last.

    Every worker of the group makes one, and all call ``at_boundary`` for the same updates; only
    the leader writes to the exchange.

    Args:
        config: checked settings, with more than one group.
        group: what this group is to others.
        state: gives the student's current state, names -> tensors.

    Raises:
        ConfigError: if the exchange is none, another process has this group's index, two groups
            have one seed, or (lockstep) different vocabularies.
        ExchangeError: if the exchange cannot be read or written.
    """

    def __init__(
        self,
        config: CodistillationConfig,
        group: Group,
        state: Callable[[], Mapping[str, Tensor]],
    ) -> None:
        self.alpha = 0.0
        self.update = 0
        self.epoch = 1
        self.workers = Workers(timeout=2 * config.codistill_timeout + SAVING_SECONDS)
        self._config = config
        self._group = group
        self._state = state
        self._schedule = config.alpha_schedule()
        self._divergence = config.divergence()
        self._lockstep = config.codistill_mode == "lockstep"
        self._stall = 0.0
        self._published: int | None = None
        self._started = False
        self._skipped = 0

        others = [j for j in range(config.codistill_num_groups) if j != config.codistill_group]
        self._peers = {j: Peer(j, group.build) for j in others}
        with _naming_the_flag(config):
            self._exchange = Exchange(Store(str(config.codistill_dir)), config.codistill_run_id)
            if self.workers.leader:
                self._presence = self._claim(others)
                self._publisher = Publisher(self._exchange, config.keep)
        reader = Reader(self._exchange, group.seed, group.vocabulary)
        self._source: Source
        if self._lockstep:
            self._source = LockstepSource(
                reader, self.workers, others, config.codistill_interval, config.codistill_timeout
            )
        else:
            self._source = AsyncSource(reader, self.workers, others)

    # Between two updates.

    def at_boundary(self, update: int, epoch: int) -> None:
        """Publish or refresh, as is due before an update.

        Args:
            update: updates made so far, which is the index k of the one that follows.
            epoch: the epoch, from 1, that it belongs to.

        Raises:
            ExchangeError: lockstep only: a peer's snapshot cannot be had, or this group's cannot
                be published.
            ConfigError: lockstep only: this process has other weights than its run had here.
        """
        self.update, self.epoch = update, epoch
        self.alpha = self._schedule(epoch, update)
        with self._stalling():
            self._publish_if_due()
            if self.alpha > 0:
                self._refresh()

    def finish(self, update: int) -> None:
        """End: publish the snapshot of the last update, and say that training is over."""
        self.update = update
        self._source.stop()
        self.workers.close()
        if not self.workers.leader:
            return
        if self._published != update:
            self._publisher.submit(self._draft())
        self._publisher.wait()
        # Peers may wait for the last snapshot only if it is there.
        self._presence.release(finished=self._publisher.failure is None)

    def abandon(self) -> None:
        """End without having reached the end: publish nothing, say that the process is gone."""
        self._source.stop()
        if self.workers.leader:
            self._publisher.wait(timeout=LEAVE_SECONDS)
            self._presence.release(finished=False)

    # Within an update.

    @property
    def peers(self) -> list[Peer]:
        """The live peers: those whose term counts in this update."""
        if self.alpha == 0:
            return []
        return [peer for peer in self._peers.values() if peer.update is not None]

    @property
    def staleness(self) -> float:
        """Mean over the live peers of this group's update minus the peer snapshot's; 0 if none."""
        ages = [self.update - peer.update for peer in self.peers if peer.update is not None]
        return sum(ages) / len(ages) if ages else 0.0

    def term(self, student: Tensor, forward: Callable[[nn.Module], Tensor]) -> Tensor | None:
        """Give the mean over the live peers of D(f_j(x), f_i(x)), without alpha.

        Args:
            student: f_i(x), logits of shape (..., classes).
            forward: gives f_j(x), of the same shape, for the module of a peer.

        Returns:
            One number a row, of shape (...), or None if no peer is live.
        """
        if not self.peers:
            return None
        total = student.new_zeros(student.shape[:-1], dtype=torch.float32)
        for peer in self.peers:
            # Some modules draw random numbers in eval mode (LayerDrop): the student's own
            # randomness must not depend on whether it has peers.
            with torch.no_grad(), torch.random.fork_rng(devices=cuda_devices()):
                target = forward(peer.module)
            total = total + self._divergence(student, target)
        return total / len(self.peers)

    def take_stall(self) -> float:
        """Give the seconds the training thread has spent on the exchange since last asked."""
        stall, self._stall = self._stall, 0.0
        return stall

    # The exchange, seen from here.

    def _publish_if_due(self) -> None:
        if not self.workers.leader:
            return
        if self._lockstep and self._publisher.failure is not None:
            raise ExchangeError(
                f"a snapshot could not be published ({self._publisher.failure}), and peers in "
                "lockstep wait for it; see to the exchange and start again"
            )
        if not self._started:
            self._started = True
            self._warn_of_a_former_life()
            if self._lockstep:
                self._publish_start()
                return
            due = self.update > 0
        else:
            due = self.update % self._config.codistill_interval == 0
        if not due or self._published == self.update:
            return
        if self._publisher.busy and not self._lockstep:
            self._skipped += 1
            logger.warning(
                "snapshot of update %d skipped, %d so far: the one before is still being published",
                self.update,
                self._skipped,
            )
            return
        self._publisher.submit(self._draft())
        self._published = self.update

    def _warn_of_a_former_life(self) -> None:
        """Say so if this run has snapshots already and this process begins from the beginning."""
        newest = self._exchange.newest_update(self._config.codistill_group)
        if self.update == 0 and newest:
            logger.warning(
                "the run %s already has snapshots of this group, up to update %d, and peers go "
                "on using those; unless this is a restart of that run, stop all groups and give "
                "them a --codistill-run-id of their own",
                self._config.codistill_run_id,
                newest,
            )

    def _publish_start(self) -> None:
        """Publish where a lockstep run starts or resumes, and make sure it is the same run."""
        draft = self._draft()
        try:
            agrees = self._exchange.publish(draft)
        except OSError as error:
            raise ExchangeError(
                f"--codistill-dir {self._exchange.store.uri} cannot be written ({error})"
            ) from error
        if not agrees:
            raise ConfigError(
                f"--codistill-run-id {self._config.codistill_run_id}: this run has published "
                f"other weights of group {draft.group} for update {draft.update} than this "
                "process starts with; resume from that run's checkpoint, or give another id"
            )
        self._published = self.update

    def _draft(self) -> Draft:
        dtype = self._config.codistill_snapshot_dtype
        tensors, aliases = copy_out(self._state(), WIRE_DTYPES[dtype])
        return Draft(
            group=self._config.codistill_group,
            seed=self._group.seed,
            update=self.update,
            epoch=self.epoch,
            dtype=dtype,
            vocabulary=self._group.vocabulary,
            model=self._group.model,
            tensors=tensors,
            aliases=aliases,
        )

    def _refresh(self) -> None:
        for snapshot in self._source.take(self.update):
            manifest = snapshot.manifest
            peer = self._peers[manifest.group]
            first = peer.update is None
            try:
                peer.load(snapshot)
            except SnapshotRejected as rejection:
                self._source.refuse(snapshot, rejection)
                continue
            logger.log(
                logging.INFO if self.workers.leader else logging.DEBUG,
                "peer %d %s: update %d, sha256 %s, from update %d on",
                manifest.group,
                "first seen" if first else "refreshed",
                manifest.update,
                manifest.sha256[:16],
                self.update,
            )

    def _claim(self, others: list[int]) -> Presence:
        config, group = self._config, self._group
        alive = Alive(
            run_id=config.codistill_run_id,
            nonce=os.environ.get("CODISTILL_NONCE") or uuid.uuid4().hex,
            seed=group.seed,
            vocabulary=group.vocabulary,
            update=0,
            time=0.0,
            finished=False,
            running=True,
        )
        store = self._exchange.store
        presence = Presence(store, config.codistill_group, alive, update=lambda: self.update)
        presence.claim()
        for other in others:
            peer = read_alive(store, other)
            if peer is None or not peer.fresh or peer.run_id != config.codistill_run_id:
                continue
            problem = None
            if peer.seed == group.seed:
                problem = (
                    f"--seed {group.seed} is that of group {other} too; give every group a seed "
                    "of its own, 1000003 apart"
                )
            elif peer.vocabulary != group.vocabulary and self._lockstep:
                problem = (
                    f"group {other} trains with another target vocabulary, and --codistill-mode "
                    "lockstep cannot leave it out; prepare the data of all groups with one "
                    "dictionary"
                )
            if problem is not None:
                presence.release(finished=False)
                raise ConfigError(problem)
        return presence

    @contextmanager
    def _stalling(self) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._stall += time.perf_counter() - start


@contextmanager
def _naming_the_flag(config: CodistillationConfig) -> Iterator[None]:
    """Tell, at the start, wrong settings from an exchange that cannot be reached just now."""
    try:
        yield
    except ExchangeError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        # Not a ConfigError: a restart may find the exchange well again.
        raise ExchangeError(
            f"--codistill-dir {config.codistill_dir} cannot be used ({error}); name a folder or "
            "URI that every group can write"
        ) from error
