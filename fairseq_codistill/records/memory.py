"""``codistill.json``: what a group has to remember over its restarts.

It lies in the group's save directory, beside the checkpoints, so that it goes where the run goes.
Three facts cannot be told from anything else once a process has died: that this run has met its
exchange, so that an async restart may do without one for a while; that the group was to learn from
peers; and that it has had a live one.
"""

from __future__ import annotations

from pathlib import Path

from fairseq_codistill.records.guarded import read_object, write_file
from fairseq_codistill.records.log import get_logger

logger = get_logger(__name__)

NAME = "codistill.json"
FORMAT = 1


class Memory:
    """What one group of one run remembers.  Only the group's leader makes one.

    A fact that cannot be written is kept in memory, and is written with the next one.

    Args:
        directory: the group's save directory; None to remember nothing beyond this process.
        run_id: of the run; what another run has left there means nothing.
        group: the group's index; nor does what another group has left.
        exchange: where the run's snapshots are; a new address has to be met anew.
    """

    def __init__(self, directory: Path | None, run_id: str, group: int, exchange: str) -> None:
        self._path = None if directory is None else directory / NAME
        self._key = {"format": FORMAT, "run_id": run_id, "group": group}
        self._exchange = exchange
        before = self._read()
        self.met = before.get("met") == exchange and exchange != ""
        self.had_peer = before.get("had_peer") is True
        self.expected_peer = before.get("expected_peer") is True

    def note_met(self) -> None:
        """Remember that the exchange has been met."""
        if not self.met:
            self.met = True
            self._write()

    def note_expected(self) -> None:
        """Remember that the group is to learn from peers, as its alpha is above 0."""
        if not self.expected_peer:
            self.expected_peer = True
            self._write()

    def note_peer(self) -> None:
        """Remember that the group has had a live peer."""
        if not self.had_peer:
            self.had_peer = True
            self._write()

    def _read(self) -> dict[str, object]:
        if self._path is None:
            return {}
        try:
            content = read_object(self._path)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read, and is not used: %s", self._path, error)
            return {}
        found = [(name, content.get(name)) for name in self._key]
        # The type too: True equals 1.
        ours = all(type(v) is type(self._key[n]) and v == self._key[n] for n, v in found)
        return content if ours else {}

    def _write(self) -> None:
        if self._path is None:
            return
        content: dict[str, object] = {**self._key, "met": self._exchange if self.met else None}
        content |= {"expected_peer": self.expected_peer, "had_peer": self.had_peer}
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._path, content)
        except OSError as error:
            logger.warning(
                "%s cannot be written (%s); a restart will not know that the exchange was met or "
                "that there was a peer",
                self._path,
                error,
            )
