"""The evidence of an orderly end: ``ended.json`` in the group's save directory."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Protocol

from fairseq_codistill.codistillation.config import CodistillationConfig
from fairseq_codistill.records import Ended, get_logger, write_ended

logger = get_logger(__name__)

# How long to try to write it, and between two attempts: a disk may be full for a moment.
PATIENCE_SECONDS = 30.0
PAUSE_SECONDS = 1.0


class Peered(Protocol):
    """What tells whether a group has learnt from peers."""

    @property
    def expected_peer(self) -> bool:
        """Whether it was to."""

    @property
    def had_peer(self) -> bool:
        """Whether it has."""


def leave_evidence(
    directory: Path,
    config: CodistillationConfig,
    update: int,
    reason: str,
    codistillation: Peered | None,
) -> None:
    """Write that training has reached its end, and warn of a group that never had a peer.

    To be called by the group's leader alone, after ``Codistillation.finish``.  Never raises: that
    the end cannot be written down is no failure of training, but ``codistill launch`` will not
    take the group for finished, and the log says why.

    Args:
        directory: the group's save directory.
        config: settings.
        update: updates made.
        reason: one of ``records.ended.REASONS``.
        codistillation: the group's side; None if it learns from nobody.
    """
    ended = Ended(
        run_id=config.codistill_run_id,
        nonce=os.environ.get("CODISTILL_NONCE") or "",
        update=update,
        reason=reason,
        had_peer=codistillation is not None and codistillation.had_peer,
        expected_peer=codistillation is not None and codistillation.expected_peer,
    )
    if ended.missed_its_peers:
        logger.warning(
            "training has ended, and this group never had a live peer: it trained alone.  See "
            "whether all groups used one --codistill-dir and --codistill-run-id, whether "
            "--codistill-interval %d is less than their updates, and whether this log says that "
            "snapshots were rejected",
            config.codistill_interval,
        )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            write_ended(directory, ended)
        except OSError as error:
            if time.monotonic() < deadline:
                time.sleep(PAUSE_SECONDS)
                continue
            logger.error(
                "training has ended in order at update %d, but ended.json cannot be written to %s "
                "(%s): codistill launch will not take this group for finished",
                update,
                directory,
                error,
            )
        return
