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
    Manifest,
    Presence,
    Publisher,
    Unpublishable,
    first_names,
    lives,
    read_alive,
)
from fairseq_codistill.records import Memory, get_logger
from fairseq_codistill.records.heartbeat import ENDS_FOR_GOOD

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
        source_vocabulary: digest of the source vocabulary; None if there is none.
    """

    seed: int
    vocabulary: str
    model: dict[str, Any]
    build: BuildModel
    like: Tensor
    source_vocabulary: str | None = None


class Membership:
    """One group's side of the exchange.

    Args:
        config: checked settings.
        group: what this group is to others.
        state: gives the student's current state, names -> tensors.
        exchange: of the run.
        memory: what this group remembers over its restarts.

    Raises:
        ConfigError: if two groups have one seed, or (lockstep) different vocabularies, or this
            group's snapshots could never be published.
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
        self._rehearse()
        self._start = 0
        self._clearing = threading.Lock()
        # In lockstep they stay: the replay must match them.
        self._clear = self._lockstep
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
            self.check_published()
        due = update % self._config.codistill_interval == 0
        if not self._started:
            self._started, self._start = True, update
            if self._lockstep:
                self._tell_of_random_peers()
                self._publish_start()
                return
            # Whether or not the exchange answers, training begins.
            threading.Thread(
                target=self._try_to_clear_the_way, name="codistill-former-life", daemon=True
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
            ConfigError: lockstep only: this process has other weights than its run had here.
        """
        self._update, self._epoch = update, epoch
        if not self._started:
            self._started, self._start = True, update
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

    def abandon(self, failure: str | None = None) -> None:
        """End without having reached the end: publish nothing, say that the process is gone.

        Args:
            failure: why training cannot go on, if it would come to the same end again.
        """
        self._publisher.wait(timeout=LEAVE_SECONDS, failing=0)
        self._publisher.close()
        # What is not finite may have ended training before the next snapshot was due.
        refused = self._refused() if self._lockstep else None
        final = refused or (failure if self._lockstep else None)
        if final is not None:
            self.note_failure(final)
        self.say_goodbye()

    def check_published(self) -> None:
        """Make sure, in lockstep, that the newest snapshot is published or still may be.

        Raises:
            ExchangeError: if it will not be.
        """
        if not self._publisher.given_up:
            return
        refused = self._refused()
        if refused is not None:
            self.note_failure(refused)
            raise ExchangeError(
                f"{refused}; in lockstep the other groups wait for it, and stop too: see whether "
                "training has diverged"
            )
        raise ExchangeError(
            f"the snapshot of update {self._published} could not be published to "
            f"--codistill-dir {self._exchange.store.uri} ({self._publisher.failure}), and "
            "peers in lockstep wait for it; see to the exchange and start again"
        )

    def note_failure(self, failure: str) -> None:
        """Note why this group ends for good: its other workers, its peers and launch are told."""
        if self._presence.failure is None:
            # Launch believes the heartbeat, which anybody can write, if the log says the same.
            logger.error(ENDS_FOR_GOOD + "%s", self._presence.note_failure(failure))

    def _refused(self) -> str | None:
        """Give why no peer would take the newest snapshot; None if it is not so."""
        if not isinstance(self._publisher.failure, Unpublishable):
            return None
        return (
            f"the snapshot of group {self._config.codistill_group} at update {self._published} "
            f"cannot be published ({self._publisher.failure})"
        )

    def _rehearse(self) -> None:
        """Refuse to train, perhaps for days, what could never be published."""
        state = self._state()
        firsts = first_names(state)
        aliases = {name: first for name, first in firsts.items() if name != first}
        tensors = {name: state[name] for name in firsts if name not in aliases}
        try:
            self._exchange.rehearse(self._draft(tensors, aliases))
        except Unpublishable as refusal:
            raise ConfigError(
                f"no peer would take the snapshots of group {self._config.codistill_group}: "
                f"{refusal}"
            ) from refusal

    def _presence_of(self, restarts: int) -> Presence:
        alive = Alive(
            run_id=self._config.codistill_run_id,
            nonce=self.nonce,
            seed=self._group.seed,
            vocabulary=self._group.vocabulary,
            source_vocabulary=self._group.source_vocabulary,
            restarts=restarts,
            returns=_is_started_again(os.environ),
            start=os.environ.get("CODISTILL_START") or None,
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
        problem = None
        if alive.seed == self._group.seed:
            problem = (
                f"--seed {alive.seed} is that of group {other} too; give every group a seed of "
                "its own, 1000003 apart"
            )
        listened = self._lockstep and other in self._config.listens_to()
        for side, theirs, own in (
            ("target", alive.vocabulary, self._group.vocabulary),
            ("source", alive.source_vocabulary, self._group.source_vocabulary),
        ):
            if problem is None and listened and None not in (theirs, own) and theirs != own:
                problem = (
                    f"--codistill-mode lockstep: group {other} has another {side} vocabulary and "
                    "cannot be left out; prepare the data of all groups with one dictionary, or "
                    "the same classes"
                )
        # Watched only if it matters: that takes some seconds.
        if problem and (alive.finished or lives(self._exchange.store, other, alive)):
            raise ConfigError(problem)

    def _tell_of_random_peers(self) -> None:
        """Lockstep: say so if the first updates are made with peers that have learnt nothing."""
        config, interval = self._config, self._config.codistill_interval
        first = max(self._start, config.codistill_burn_in)
        if interval > 1 and first < interval and config.codistill_alpha > 0 and config.listens_to():
            logger.info(
                "--codistill-interval %d in lockstep: up to update %d this group learns from peers "
                "as they were at update 0, which have learnt nothing; --codistill-burn-in %d "
                "leaves them out until then",
                *(interval, interval, interval),
            )

    def _clear_the_way(self) -> None:
        """Async: remove this group's snapshots of updates above its start, and say so, once.

        They are of a former life of the group, which has lost the checkpoints of that time.  As
        they have the highest updates, peers would go on using them, and those that this life
        publishes would be pruned.

        Raises:
            Exception: whatever the store raises; then it is to be tried again.
        """
        with self._clearing:
            if self._clear:
                return
            found = self._exchange.above(self._config.codistill_group, self._start)
            removed = [manifest.update for manifest in found if self._is_ours(manifest)]
            self._exchange.remove(self._config.codistill_group, removed)
            self._clear = True
        if len(removed) < len(found):
            logger.error(
                "the exchange has %d snapshot(s) of group %d of another training with the same "
                "--codistill-run-id %s, up to update %d, with another seed or vocabulary: they are "
                "left there, and peers use them; give this run an id of its own",
                *(len(found) - len(removed), self._config.codistill_group),
                *(self._config.codistill_run_id, found[0].update),
            )
        if removed:
            logger.warning(
                "removed %d snapshot(s) of this group above update %d, where it starts, up to "
                "update %d: the run %s has published them before, and peers would not see the new "
                "ones; if that was another run, give each a --codistill-run-id of its own",
                *(len(removed), self._start, max(removed), self._config.codistill_run_id),
            )

    def _is_ours(self, manifest: Manifest) -> bool:
        """Whether a snapshot of this run and group may be of this very training."""
        return (manifest.seed, manifest.vocabulary) == (
            self._group.seed,
            self._group.vocabulary,
        ) and manifest.source_vocabulary in (None, self._group.source_vocabulary)

    def _try_to_clear_the_way(self) -> None:
        try:
            self._clear_the_way()
        except Exception as error:  # noqa: BLE001 - stores raise what they like
            logger.warning(
                "whether this run has snapshots above update %d is not known (%s); it is tried "
                "again before the next one is published",
                self._start,
                error,
            )

    def _await_published(self) -> None:
        """Lockstep: wait until the newest snapshot is published.

        Raises:
            ExchangeError: if it cannot be.
            ConfigError: if it is another one than this run has published before.
        """
        timeout = self._config.codistill_timeout
        if not self._publisher.wait(timeout=timeout):
            raise ExchangeError(
                f"--codistill-timeout {timeout:g}: the snapshot of update {self._published} is not "
                f"published within that many seconds; see to {self._exchange.store.uri}, or "
                "allow more"
            )
        self.check_published()
        self._check_agreed()

    def _check_agreed(self) -> None:
        """Lockstep: make sure that the newest snapshot is the one that peers have used, if any.

        A group that resumes publishes again what it has published after its checkpoint, or all, if
        it has lost its checkpoints.  On a GPU the same computation may give other last bits, so
        there only the weights of the beginning, which were read from a file, must be the same.

        Raises:
            ConfigError: if it is not.
        """
        exact = self._published == self._start or self._group.like.device.type == "cpu"
        if self._publisher.agreed or not exact:
            return
        group = self._config.codistill_group
        self.note_failure(
            f"the run has other weights of group {group} for update {self._published}"
        )
        raise ConfigError(
            f"--codistill-run-id {self._config.codistill_run_id}: this run has published other "
            f"weights of group {group} for update {self._published} than this process has, which "
            f"began at update {self._start}; go on from that run's checkpoints with the settings, "
            "devices and versions that it had, or remove this group's snapshots from that update "
            f"on from {self._exchange.store.uri}/group-{group}, or give another id"
        )

    def _publish_start(self) -> None:
        """Publish where a lockstep run starts or resumes, and make sure it is the same run."""
        self._submit()
        self._await_published()

    def _submit(self) -> None:
        """Copy the weights out, and leave the rest to the publisher, which has room."""
        tensors, aliases, ready = self._copy_out(self._state())

        def when_ready() -> None:
            self._clear_the_way()
            ready()

        self._publisher.submit(self._draft(tensors, aliases), when_ready)
        self._published = self._update

    def _draft(self, tensors: Mapping[str, Tensor], aliases: dict[str, str]) -> Draft:
        return Draft(
            group=self._config.codistill_group,
            seed=self._group.seed,
            update=self._update,
            epoch=self._epoch,
            dtype=self._config.codistill_snapshot_dtype,
            vocabulary=self._group.vocabulary,
            source_vocabulary=self._group.source_vocabulary,
            model=self._group.model,
            tensors=tensors,
            aliases=aliases,
        )


def _is_started_again(environ: Mapping[str, str]) -> bool:
    """Whether whoever started this process will start it again, should it fail: they say so."""
    return environ.get("CODISTILL_RESTARTS_LEFT", "0") not in ("", "0")
