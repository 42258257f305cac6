"""Algorithm 1 of the paper, and the one place where it lives.

    theta_i[k+1] = theta_i[k] - eta_k grad_i ( L(y, f_i(x))
                   + alpha_k / (n-1) sum_{j != i} D( f_j(x), f_i(x) ) )

The adapter computes f_i(x) and L and takes the gradient step.  Here are alpha_k
(``Codistillation.alpha``; ``weight`` if the term is left out at times), the f_j, which are stale
copies (``peers``), and the sum divided by n - 1 (``term``); ``at_boundary`` stands between update
k - 1 and update k.  j runs over those that i listens to and over i's teachers, whose f_j never
change.  Peers without a snapshot, with one too old, or with one whose output cannot be learnt from
are left out of both the sum and the number that it is divided by.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation.acceptance import Acceptance
from fairseq_codistill.codistillation.comparison import Comparison, Wants
from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.meeting import meet, warn_of_long_interval
from fairseq_codistill.codistillation.membership import Group, Membership
from fairseq_codistill.codistillation.peer import Peer, cuda_devices
from fairseq_codistill.codistillation.sources import Source
from fairseq_codistill.codistillation.teacher import Teacher
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import ExchangeError, Reader, SnapshotRejected
from fairseq_codistill.objective import Output, weight
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# How long the leader may write a checkpoint or validate while the other workers wait for it.
SAVING_SECONDS = 3600.0

# What can happen to a peer, and to a snapshot of this group ("skipped"), in the log and counted.
CHANGES = ("first_seen", "refreshed", "stale", "back", "rejected", "skipped")


class Codistillation:
    """One group's side of codistillation, from its first update to its last.

    Every worker of the group makes one, and all call ``at_boundary`` for the same updates.

    Args:
        config: checked settings, with somebody to learn from.
        group: what this group is to others.
        state: gives the student's current state, names -> tensors.
        teachers: those of ``config.teachers``.
        directory: the group's save directory, where it remembers what a restart has to know.
        updates: of the whole run, if that is known.

    Raises:
        ConfigError: if the topology does not fit, the exchange is none, another process has this
            group's index, two groups have one seed, (lockstep) different vocabularies, or peers
            are to compute in what this device is slow at.
        ExchangeError: if the exchange cannot be read or written.
    """

    def __init__(
        self,
        config: CodistillationConfig,
        group: Group,
        state: Callable[[], Mapping[str, Tensor]],
        teachers: Sequence[Teacher] = (),
        directory: Path | None = None,
        updates: int | None = None,
    ) -> None:
        if group.like.device.type == "cpu" and config.codistill_peer_dtype == "float16":
            raise ConfigError(
                "--codistill-peer-dtype float16 needs a GPU, on a CPU it is many times slower than "
                "float32; give bfloat16, or leave it out"
            )
        self.alpha = 0.0
        self.update = 0
        self.epoch = 1
        self.workers = Workers(timeout=2 * config.codistill_timeout + SAVING_SECONDS)
        self._schedule = config.alpha_schedule()
        self._compare = Comparison(config)
        self._stall = 0.0
        self._max_staleness = config.codistill_max_staleness
        self._every = config.codistill_every
        self._in_step = config.codistill_mode == "lockstep" and config.needs_exchange
        self._stale: set[int] = set()
        self._acceptance = Acceptance(
            self.workers, self._in_step, centered=config.codistill_divergence != "logit-mse"
        )
        self._left_out = 0
        self._changes = dict.fromkeys(CHANGES, 0)
        self._logged = dict(self._changes)

        listens_to = config.listens_to()
        if config.codistill_topology != "all":
            named = ", ".join(map(str, listens_to)) or "nobody"
            self._say(f"topology {config.codistill_topology}: listens to {named}")
        self._teachers = list(teachers)
        self._peers = {
            j: Peer(
                j,
                group.build,
                group.like,
                dtype=config.codistill_peer_dtype,
                dropout=config.codistill_peer_dropout,
            )
            for j in listens_to
        }
        # One group with teachers needs no exchange.
        self._membership: Membership | None = None
        self._reader: Reader | None = None
        self._source: Source | None = None
        if config.needs_exchange:
            if self.workers.leader:
                warn_of_long_interval(config, updates)
            place = meet(config, group, state, self.workers, self._peers, directory)
            self._membership = place.membership
            self._reader, self._source = place.reader, place.source

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
        start, waited = time.perf_counter(), self.workers.waited
        self.update, self.epoch = update, epoch
        self.alpha = self._schedule(epoch, update)
        self._compare.begin_update()
        if self._membership is not None:
            self._membership.at_boundary(update, epoch)
        self._settle()
        if self.alpha > 0:
            self._refresh()
            self._look_at_staleness()
        elif self._in_step:
            # The leader may have waited for the exchange: longer than a collective of GPUs waits.
            self.workers.least([1])
        if self._membership is not None:
            if self.alpha > 0 and self._peers:
                self._membership.memory.note_expected()
            live = self._live() if self.alpha > 0 else []
            self._membership.tell({p.group: p.update for p in live if p.update is not None})
        self._changes["rejected"] = self._left_out
        if self._reader is not None:
            self._changes["rejected"] += self._reader.rejections
        if self._membership is not None:
            self._changes["skipped"] = self._membership.skipped
        self._stall += time.perf_counter() - start
        if not self._in_step:
            # Others of the group that come later, from saving a checkpoint for one, are no
            # business of the exchange.  In lockstep it is the leader's wait for peers.
            self._stall -= self.workers.waited - waited

    def finish(self, update: int) -> None:
        """End, after ``update`` updates: publish the last snapshot, and say that it is over."""
        if self._source is not None:
            self._source.stop()
        try:
            self._settle()
            if self._membership is not None:
                self._membership.finish(update, self.epoch)
        except BaseException:
            if self._membership is not None:
                # Peers and `codistill status` are told that nobody is here any more.
                self._membership.abandon()
            raise
        # The others wait for the leader here, and not in a collective of GPUs, which would give up.
        self.workers.least([1])
        self.workers.close()

    @property
    def expected_peer(self) -> bool:
        """Whether the group was to learn from peers, in any of its starts.  The leader's answer."""
        return self._membership is not None and self._membership.memory.expected_peer

    @property
    def had_peer(self) -> bool:
        """Whether the group has had a live peer, in any of its starts.  The leader's answer."""
        return self._membership is not None and self._membership.memory.had_peer

    def say_goodbye(self) -> None:
        """Tell the other groups at once that this process ends, if it has not told them before."""
        if self._membership is not None:
            self._membership.say_goodbye()

    def abandon(self, failure: str | None = None) -> None:
        """End without having reached the end.

        Args:
            failure: why training cannot go on, if it would come to the same end again; in lockstep
                the groups that wait for this one are told, and launch does not start it again.
        """
        if self._source is not None:
            self._source.stop()
        if self._membership is not None:
            self._membership.abandon(failure)

    # Within an update.

    @property
    def peers(self) -> list[Peer | Teacher]:
        """The live peers and the teachers: those whose term counts in this update."""
        if self.alpha == 0:
            return []
        return [*self._live(), *self._teachers]

    @property
    def asks(self) -> bool:
        """Whether ``term`` asks anybody in this update."""
        return bool(self.weight and self.peers)

    @property
    def weight(self) -> float:
        """What ``term`` counts with in this update: alpha, if it is not left out at times."""
        return weight(self.alpha, self.update, self._every)

    @property
    def staleness(self) -> float | None:
        """Mean over the live peers of this group's update minus the peer snapshot's.

        None if no peer is live; teachers have no age.
        """
        ages = [self.update - peer.update for peer in self._live() if peer.update is not None]
        return sum(ages) / len(ages) if ages and self.alpha > 0 else None

    def wants(
        self, rows: int, width: int, classes: int, *, half: bool = False, on_gpu: bool = False
    ) -> Wants:
        """Return what ``term`` wants of outputs, if an adapter can give it.

        Args:
            rows: of a batch, by the settings: the same on all workers and after a resume.
            width: of the student's hidden states.
            classes: of its output layer.
            half: whether logits are computed in half precision.
            on_gpu: whether on a GPU.
        """
        return self._compare.wants(rows, width, classes, half=half, on_gpu=on_gpu)

    def term(
        self,
        student: Output,
        forward: Callable[[nn.Module], Output],
        targets: Tensor | None = None,
    ) -> Tensor | None:
        """Give the mean over live peers and teachers of D(f_j(x), f_i(x)), without ``weight``.

        Args:
            student: f_i(x), as logits of shape (..., classes) or before the output layer.
            forward: gives f_j(x), on the same rows, for the module of a peer.
            targets: y, by which a peer that has diverged is known; below 0 for rows of padding.

        Returns:
            One number a row, or None if there is none of them, none is asked in this update, or
            none gives what can be learnt from.

        Raises:
            ExchangeError: lockstep only: a peer's output is not finite.
        """
        if not self.asks:
            return None
        # Peers may draw random numbers (dropout; LayerDrop draws in eval mode too): the student's
        # own randomness must not depend on whether it has peers.
        with torch.random.fork_rng(devices=cuda_devices()):
            counted = 0

            def outputs() -> Iterator[tuple[Peer | Teacher, Output]]:
                nonlocal counted
                for peer in self.peers:
                    output = _constant(peer, forward)
                    if isinstance(peer, Teacher) or self._acceptance.accepts(
                        peer, student, output, targets
                    ):
                        counted += 1
                        yield peer, output

            try:
                total = self._compare(student, outputs())
            except ExchangeError as error:
                # Computed again it is the same: neither peers nor launch wait for this group.
                if self._membership is not None:
                    self._membership.note_failure(str(error))
                raise
            return None if total is None else total / counted

    @property
    def stall(self) -> float:
        """Seconds that the training thread has spent on the exchange, and that are not logged."""
        return self._stall

    @property
    def changes(self) -> dict[str, int]:
        """How many changes of each kind of ``CHANGES`` there were that are not logged.

        They are those up to the last boundary: all batches of an update see the same.
        """
        return {kind: total - self._logged[kind] for kind, total in self._changes.items()}

    def note_logged(self) -> None:
        """Note that ``stall`` and ``changes`` are logged.

        Until then they stay: an update may come to nothing, and its log line with it.
        """
        self._stall = 0.0
        self._logged = dict(self._changes)

    def _live(self) -> list[Peer]:
        """Give the peers with a snapshot that is fresh enough, and not found to be of no use."""
        out = self._stale | self._acceptance.left_out
        loaded = (peer for peer in self._peers.values() if peer.update is not None)
        return [peer for peer in loaded if peer.group not in out]

    def _settle(self) -> None:
        """Leave out the peers whose new snapshots gave what cannot be learnt from."""
        for group, why in self._acceptance.settle().items():
            if why is None:
                if self._membership is not None:
                    self._membership.memory.note_peer()
                continue
            self._left_out += 1
            self._say(
                f"peer {group} left out: with its snapshot of update {self._peers[group].update} "
                f"{why}; from update {self.update} on, until its next snapshot"
            )

    def _look_at_staleness(self) -> None:
        """Leave out the peers that fell too far behind, and take them back."""
        if self._max_staleness == 0:
            return
        for peer in self._peers.values():
            if peer.update is None:
                continue
            staleness = self.update - peer.update
            if staleness > self._max_staleness and peer.group not in self._stale:
                self._stale.add(peer.group)
                self._changed(
                    "stale",
                    f"peer {peer.group} stale: its snapshot of update {peer.update} is "
                    f"{staleness} updates old, more than --codistill-max-staleness "
                    f"{self._max_staleness}; left out from update {self.update} on",
                )
            elif staleness <= self._max_staleness and peer.group in self._stale:
                self._stale.discard(peer.group)
                self._changed(
                    "back",
                    f"peer {peer.group} back: update {peer.update}, from update {self.update} on",
                )

    def _changed(self, change: str, line: str) -> None:
        """Count a change, and log it."""
        self._changes[change] += 1
        self._say(line)

    def _say(self, line: str) -> None:
        """Log a line, once a group."""
        logger.log(logging.INFO if self.workers.leader else logging.DEBUG, line)

    def _refresh(self) -> None:
        if self._source is None:
            return
        for snapshot in self._source.take(self.update):
            manifest = snapshot.manifest
            peer = self._peers[manifest.group]
            first = peer.update is None
            # Before it is loaded, which may fail on one worker alone; what is there is looked at.
            self._acceptance.renew(manifest.group)
            try:
                peer.load(snapshot)
            except SnapshotRejected as rejection:
                self._source.refuse(snapshot, rejection)
                continue
            change = "first_seen" if first else "refreshed"
            self._changed(
                change,
                f"peer {manifest.group} {change.replace('_', ' ')}: update {manifest.update}, "
                f"sha256 {manifest.sha256[:16]}, from update {self.update} on",
            )


def _constant(peer: Peer | Teacher, forward: Callable[[nn.Module], Output]) -> Output:
    """Give a peer's output, which nothing is learnt through."""
    with torch.no_grad():
        return forward(peer.module)
