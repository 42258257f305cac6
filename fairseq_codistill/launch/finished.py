"""That a group has reached the end of its command, remembered over launches.

fairseq, started again on a checkpoint that has all its updates, makes one update more; and peers
in lockstep would wait for its snapshots.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path


class Finished:
    """The mark of one group.

    Args:
        folder: the group's.
        command: what the user asked this group to run; with another one the mark means nothing.
    """

    def __init__(self, folder: Path, command: Sequence[str]) -> None:
        self._file = folder / "finished.json"
        self._command = list(command)

    @property
    def reached(self) -> bool:
        """Whether the group has finished this very command before."""
        try:
            return bool(json.loads(self._file.read_text()) == self._command)
        except (FileNotFoundError, ValueError):
            return False

    def note(self) -> None:
        """Set the mark."""
        self._file.write_text(json.dumps(self._command) + "\n")
