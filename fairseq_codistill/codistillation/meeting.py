"""Taking one's place among the groups of a run, before the first update.

The exchange is met by a write that is read back, by every worker of the group: a wrong address, a
bucket that is not there and a directory that only one node sees are told before training, whatever
started the process.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.membership import Group, Membership
from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.codistillation.prospects import Led
from fairseq_codistill.codistillation.sources import AsyncSource, LockstepSource, Source
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import (
    Exchange,
    ExchangeError,
    Reader,
    Store,
    key_from,
    read_alive,
    say_what_it_does,
)
from fairseq_codistill.records import Memory, get_logger
from fairseq_codistill.records.address import check_address

logger = get_logger(__name__)

# How long a worker looks for what its leader has written: network file systems show it late.
ANSWER_SECONDS = 60.0

# A peer may have another architecture; a snapshot whose tensors take more bytes than this ratio to
# the student's is not read, unless it is small by any measure.
LARGEST_RATIO = 16
SMALL_BYTES = 2**28

# More than any digest: what a worker that does not lead adds to the least of all.
_NONE = 2**62


@dataclass(frozen=True)
class Place:
    """One worker's place in the run.

    Attributes:
        membership: of the group, for its leader; None for the other workers.
        reader: reads peers' snapshots.
        source: decides which of them are used from an update on.
    """

    membership: Membership | None
    reader: Reader
    source: Source


def meet(
    config: CodistillationConfig,
    group: Group,
    state: Callable[[], Mapping[str, Tensor]],
    workers: Workers,
    peers: Mapping[int, Peer],
    directory: Path | None,
) -> Place:
    """Join the other groups.  A collective of the group's workers.

    Args:
        config: checked settings, with more than one group.
        group: what this group is to others.
        state: gives the student's current state, names -> tensors.
        workers: of this group.
        peers: the groups listened to, by index.
        directory: the group's save directory, where it remembers what a restart has to know.

    Raises:
        ConfigError: if the address cannot be used, another process has this group's index, two
            groups have one seed, or (lockstep) different vocabularies.
        ExchangeError: if the exchange cannot be written and read back.
    """
    run_id = config.codistill_run_id
    with _naming_the_flag(config):
        _check_address(config)
        store = Store(str(config.codistill_dir))
        key = key_from(os.environ)
        exchange = Exchange(store, run_id, key)
        membership = None
        needed = config.codistill_mode == "lockstep"
        if workers.leader:
            say_what_it_does(key)
            memory = Memory(directory, run_id, config.codistill_group, str(config.codistill_dir))
            needed = needed or not memory.met
            membership = Membership(config, group, state, exchange, memory)
        _see_the_leader(workers, store, config.codistill_group, membership, needed)
    reader = Reader(
        exchange,
        group.seed,
        group.vocabulary,
        largest=_largest(state()),
        prepare=lambda snapshot: peers[snapshot.manifest.group].prepare(snapshot),
        # In lockstep all workers read the same; else what the others get, the leader has.
        quiet=config.codistill_mode == "lockstep" and not workers.leader,
        source_vocabulary=group.source_vocabulary,
    )
    return Place(membership, reader, _source(config, reader, workers, list(peers), membership))


def warn_of_long_interval(config: CodistillationConfig, updates: int | None) -> None:
    """Warn if no snapshot will be published before the last update.

    Args:
        config: checked settings, with more than one group.
        updates: of the whole run; None if that is not known.
    """
    if updates is not None and 0 < updates < config.codistill_interval:
        logger.warning(
            "--codistill-interval %d is more than the %d updates of this run: no group learns from "
            "another before it ends; give a smaller interval",
            config.codistill_interval,
            updates,
        )


def _source(
    config: CodistillationConfig,
    reader: Reader,
    workers: Workers,
    peers: Sequence[int],
    membership: Membership | None,
) -> Source:
    if config.codistill_mode == "lockstep":
        interval, timeout = config.codistill_interval, config.codistill_timeout
        start = os.environ.get("CODISTILL_START") or None
        own = membership or Led(reader.exchange, config.codistill_group, start)
        return LockstepSource(reader, workers, peers, interval, timeout, own, start)
    return AsyncSource(reader, workers, peers)


def _see_the_leader(
    workers: Workers, store: Store, group: int, membership: Membership | None, needed: bool
) -> None:
    """Make sure that every worker sees what the leader has written.  A collective.

    Args:
        workers: of this group.
        store: of the exchange.
        group: its index.
        membership: the leader's.
        needed: the leader's answer to whether the exchange has to answer now.

    Raises:
        OSError: if a worker does not see it; on all workers.
    """
    if workers.size == 1:
        return
    own = _NONE if membership is None else _digest(membership.nonce)
    expected, insists = workers.least([own, -int(needed)])
    sees = membership is not None or not insists
    deadline = time.monotonic() + ANSWER_SECONDS
    while not sees:
        alive = read_alive(store, group)
        sees = alive is not None and _digest(alive.nonce) == expected
        if not sees and time.monotonic() > deadline:
            break
        time.sleep(0.0 if sees else 0.1)
    (all_see,) = workers.least([int(sees)])
    if not all_see:
        which = "another worker" if sees else f"worker {workers.rank}"
        raise OSError(
            f"{which} of this group does not see there what the group's first worker has written"
        )


def _digest(nonce: str) -> int:
    return int(hashlib.sha256(nonce.encode(errors="surrogatepass")).hexdigest()[:15], 16)


def _check_address(config: CodistillationConfig) -> None:
    try:
        check_address(str(config.codistill_dir))
    except ValueError as error:
        raise ConfigError(f"--codistill-dir {error}") from None


def _largest(state: Mapping[str, Tensor]) -> int:
    """Return the bytes that a peer's snapshot may have, if this is the student's state."""
    own = sum(tensor.numel() * max(tensor.element_size(), 4) for tensor in state.values())
    return max(SMALL_BYTES, LARGEST_RATIO * own)


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
            f"--codistill-dir {config.codistill_dir} cannot be used ({error}); name a directory or "
            "URI that every group can write and read"
        ) from error
