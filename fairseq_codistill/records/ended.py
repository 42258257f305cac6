"""``ended.json``: the evidence that a group's training has reached its orderly end.

The leader of a group writes it to the group's save directory when fairseq's training loop, the
image program or the block of ``join`` ends in order.  An exit status of 0 alone proves nothing:
fairseq ends with 0 without having started a single worker, too.
"""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq_codistill.records.guarded import Unreadable, read_object, write_file
from fairseq_codistill.records.strict_json import is_text, is_whole

NAME = "ended.json"
FORMAT = 1

# What launch, status and report say of a group without a peer, after its name.
ALONE = "never had a live peer: trained alone to the end, though it was to learn from others"

# Why training ended; the last two are fairseq's --stop-time-hours and --stop-min-lr.
REASONS = (
    "max-update",
    "max-epoch",
    "patience",
    "end of the block",
    "stop-time-hours",
    "stop-min-lr",
)


@dataclass(frozen=True)
class Ended:
    """An orderly end.

    Attributes:
        run_id: of the run.
        nonce: of the process (``CODISTILL_NONCE``), or empty if it was given none.
        update: updates made.
        reason: one of ``REASONS``.
        had_peer: whether the group had a live peer at any time, in this or an earlier start.
        expected_peer: whether it should have had one: its topology names peers, and alpha was
            above 0 at some update.
        time: when this was written, seconds since the epoch of Unix.
        format: version of this file.
    """

    run_id: str
    nonce: str
    update: int
    reason: str
    had_peer: bool
    expected_peer: bool
    time: float = 0.0
    format: int = FORMAT

    @property
    def missed_its_peers(self) -> bool:
        """Whether it trained alone although it was to learn from others."""
        return self.expected_peer and not self.had_peer


def write_ended(directory: Path, ended: Ended) -> None:
    """Write ``ended.json``; ``time`` is filled in.

    Raises:
        OSError: if it cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = dataclasses.asdict(dataclasses.replace(ended, time=time.time()))
    write_file(directory / NAME, content)


def read_ended(directory: Path) -> Ended | None:
    """Return what ``ended.json`` in a directory says; None if there is none.

    Raises:
        Unreadable: if it is malformed.
        OSError: if it cannot be read.
    """
    path = directory / NAME
    try:
        content = read_object(path)
    except FileNotFoundError:
        return None
    return parse_ended(content, path)


def parse_ended(content: Any, where: object) -> Ended:
    """Return what the content of ``ended.json`` says.

    Args:
        content: a JSON document, or a part of one.
        where: the file, for the message.

    Raises:
        Unreadable: if it is no such content.
    """
    names = {field.name for field in dataclasses.fields(Ended)}
    if not isinstance(content, dict):
        raise Unreadable(f"{where} tells of no end")
    if not names <= content.keys():
        raise Unreadable(f"{where} lacks {', '.join(sorted(names - content.keys()))}")
    ended = Ended(**{name: content[name] for name in names})
    if not (
        is_text(ended.run_id, 0, 4096)
        and is_text(ended.nonce, 0, 4096)
        and is_whole(ended.update, 0, 2**63)
        and is_text(ended.reason, 1, 100)
        and type(ended.had_peer) is bool
        and type(ended.expected_peer) is bool
        and type(ended.time) in (int, float)
        and type(ended.format) is int
    ):
        raise Unreadable(f"{where} has a field of another kind, or out of its range")
    return ended
