"""What another run has left in an exchange, remembered so that it is looked at once.

Each look at a manifest costs two requests, and an old run may have left thousands.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from fairseq_codistill.exchange.local import Mark

# Where a listing does not show that a file was replaced: how long another run's is left alone,
# doubled each time it is found to be another run's still.
FIRST_SECONDS = 10.0
LONGEST_SECONDS = 120.0


@dataclass(frozen=True)
class _Entry:
    mark: Mark | None
    until: float
    pause: float


class Foreign:
    """The snapshots that were found to be another run's, by group and update.

    One of this run may take the place of another run's.  Where the listing marks files, such a
    name is looked at again as soon as its mark is another; elsewhere after ever longer pauses.
    """

    def __init__(self) -> None:
        self._entries: dict[tuple[int, int], _Entry] = {}

    def note(self, group: int, update: int, mark: Mark | None) -> None:
        """Remember a snapshot as another run's.

        Args:
            group: whose folder it is in.
            update: of the snapshot.
            mark: of its manifest, listed before it was read.
        """
        before = self._entries.get((group, update))
        pause = FIRST_SECONDS if before is None else min(2 * before.pause, LONGEST_SECONDS)
        self._entries[group, update] = _Entry(mark, time.monotonic() + pause, pause)

    def holds(self, group: int, update: int, mark: Mark | None) -> bool:
        """Tell whether a snapshot that is listed with this mark is another run's still."""
        entry = self._entries.get((group, update))
        if entry is None or entry.mark != mark:
            return False
        return mark is not None or time.monotonic() < entry.until
