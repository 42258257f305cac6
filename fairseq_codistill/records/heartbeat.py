"""``alive.json``: what a group's process says of itself in the exchange.

Anybody who can write to the exchange can write it, and it is not signed: a reader takes it for
data, checks every field, and obeys nothing in it.

Its time is that of the writer's clock, which may be hours off the reader's.  Whether a process
lives is seen by watching whether its heartbeat changes; two times are compared only if one clock
has told both.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_codistill.records.guarded import read_file
from fairseq_codistill.records.strict_json import is_text, is_whole, parse_object

NAME = "alive.json"

LONGEST_TEXT = 4096

# How a group's log begins the line that says the same as ``failure``.
ENDS_FOR_GOOD = "this group ends for good: "


@dataclass(frozen=True)
class Alive:
    """What a group says of itself.

    Attributes:
        run_id: the run it takes part in.
        nonce: names the process; a restart by ``codistill launch`` has its predecessor's.
        update: updates made so far.
        time: when this was written by the writer's clock, seconds since the epoch of Unix.
        finished: training has reached its end, and the last snapshot is published.
        running: False once the process has ended in an orderly way, finished or not.
        seed: the group's seed, if it is told.
        vocabulary: digest of its target vocabulary, if it is told.
        restarts: how often it has been started again, as far as that was told.
        epoch: the epoch, from 1, that training is in.
        peers: the live peers -> the update of the snapshot in use.
        source_vocabulary: digest of its source vocabulary, if it has one and it is told.
        returns: whoever started the process starts it again should it end before it has finished.
        failure: why it ends for good without reaching its end; no restart would help.
        start: names the common start of the run's groups that the process belongs to, if it is
            told; restarts of single groups belong to it too.
        clock: names the clock of ``time``, if it is told; see ``clock_of_this_host``.
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
    source_vocabulary: str | None = None
    returns: bool = False
    failure: str | None = None
    start: str | None = None
    clock: str | None = None


# What every heartbeat has; the rest came later, and another implementation may not have it.
ALWAYS = ("run_id", "nonce", "update", "time", "finished")
_FIELDS = [field.name for field in dataclasses.fields(Alive)]


@functools.cache
def clock_of_this_host() -> str | None:
    """Return a name for the clock that ``time.time`` reads, or None if none is known.

    All processes of a host have the same, in containers too; after the host's next start its clock
    has another name.
    """
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    except OSError:
        return None
    return hashlib.sha256(started).hexdigest()[:32]


def parse_alive(data: bytes) -> Alive:
    """Return what the bytes of an ``alive.json`` say.

    Raises:
        ValueError: if they are not a heartbeat; the message is the reason.
    """
    fields = parse_object(data)
    missing = [name for name in ALWAYS if name not in fields]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    known: dict[str, Any] = {"running": not fields["finished"]}
    known |= {name: fields[name] for name in _FIELDS if name in fields}
    alive = Alive(**known)
    if not _is_well_formed(alive):
        raise ValueError("one of its fields is of another kind, or out of its range")
    return alive


def read_alive_file(path: Path) -> Alive | None:
    """Return what an ``alive.json`` on a local file system says, or None if it says nothing."""
    try:
        return parse_alive(read_file(path))
    except (OSError, ValueError):
        return None


def _is_well_formed(alive: Alive) -> bool:
    return (
        all(is_text(text, 0, LONGEST_TEXT) for text in (alive.run_id, alive.nonce))
        and all(
            text is None or is_text(text, 0, LONGEST_TEXT)
            for text in (alive.vocabulary, alive.source_vocabulary, alive.clock, alive.start)
        )
        and (alive.failure is None or is_text(alive.failure, 1, LONGEST_TEXT))
        and (alive.seed is None or is_whole(alive.seed, -(2**63), 2**64 - 1))
        and all(is_whole(n, 0, 2**63) for n in (alive.restarts, alive.update, alive.epoch))
        and all(type(flag) is bool for flag in (alive.finished, alive.running, alive.returns))
        and type(alive.time) in (int, float)
        and 0 <= alive.time < 2**40
        and type(alive.peers) is dict
        and all(
            # A group's index has at most six digits (``manifest``).
            len(peer) <= 6 and peer.isascii() and peer.isdecimal() and is_whole(update, 0, 2**63)
            for peer, update in alive.peers.items()
        )
    )
