"""Algorithm 1 of the paper, and the one place where it lives.

    theta_i[k+1] = theta_i[k] - eta_k grad_i ( L(y, f_i(x))
                   + alpha_k / (n-1) sum_{j != i} D( f_j(x), f_i(x) ) )

The adapter computes f_i(x) and L and takes the gradient step.  Here are alpha_k
(``Codistillation.alpha``), the f_j, which are stale copies (``peers``), and the sum divided by
n - 1 (``term``); ``at_boundary`` stands between update k - 1 and update k.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.membership import Group, Membership
from fairseq_codistill.codistillation.peer import Peer, cuda_devices
from fairseq_codistill.codistillation.sources import AsyncSource, LockstepSource, Source
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import Exchange, ExchangeError, Reader, SnapshotRejected, Store

logger = logging.getLogger(__name__)

# How long the leader may write a checkpoint or validate while the other workers wait for it.
SAVING_SECONDS = 3600.0


class Codistillation:
    """One group's side of codistillation, from its first update to its last.

    Every worker of the group makes one, and all call ``at_boundary`` for the same updates.

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
        self._schedule = config.alpha_schedule()
        self._divergence = config.divergence()
        self._stall = 0.0

        others = [j for j in range(config.codistill_num_groups) if j != config.codistill_group]
        self._peers = {j: Peer(j, group.build) for j in others}
        self._membership: Membership | None = None
        with _naming_the_flag(config):
            exchange = Exchange(Store(str(config.codistill_dir)), config.codistill_run_id)
            if self.workers.leader:
                self._membership = Membership(config, group, state, exchange, others)
        reader = Reader(exchange, group.seed, group.vocabulary)
        self._source: Source
        if config.codistill_mode == "lockstep":
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
        start = time.perf_counter()
        self.update, self.epoch = update, epoch
        self.alpha = self._schedule(epoch, update)
        if self._membership is not None:
            self._membership.at_boundary(update, epoch)
        if self.alpha > 0:
            self._refresh()
        if self._membership is not None:
            self._membership.tell({p.group: p.update for p in self.peers if p.update is not None})
        self._stall += time.perf_counter() - start

    def finish(self, update: int) -> None:
        """End, after ``update`` updates: publish the last snapshot, and say that it is over."""
        self._source.stop()
        self.workers.close()
        if self._membership is not None:
            self._membership.finish(update, self.epoch)

    def abandon(self) -> None:
        """End without having reached the end."""
        self._source.stop()
        if self._membership is not None:
            self._membership.abandon()

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
