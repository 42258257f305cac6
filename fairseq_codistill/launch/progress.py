"""How far each group is, from its log, and one live line a group on the terminal."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field

from fairseq_codistill.records.lines import LineReader
from fairseq_codistill.records.training_log import Numbers, as_texts, parse_numbers, split_prefix

# Keys of fairseq's training lines, in the order of the live line, and what to call them there.
SHOWN = {
    "epoch": "epoch",
    "num_updates": "update",
    "loss": "loss",
    "nll_loss": "nll",
    "valid_loss": "valid",
    "codistill_peers": "peers",
    "codistill_staleness": "staleness",
}

# Loggers whose lines say how far training is.
KINDS = ("train", "train_inner", "valid")


@dataclass
class Progress:
    """What a log has said so far.

    Attributes:
        values: the newest value of each key of ``SHOWN`` that was seen.
        trained: whether training has shown any result since the last ``restart``.
        update: the newest update in the log, or None.
        reached: the highest since the last ``restart``.
        lines: lines so far, without those of the plugin itself, some of which come from threads
            that go on while training hangs.
    """

    values: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    lines: int = 0
    update: int | None = None
    reached: int | None = None

    def restart(self) -> None:
        """Take what follows for a new start of the same group."""
        self.trained = False
        self.reached = None

    def read_line(self, line: str) -> None:
        """Take in one line of fairseq's log, of ``--log-format`` simple or json."""
        kind, message = split_prefix(line)
        self.lines += not kind.startswith("fairseq_codistill.")
        if kind.endswith("checkpoint_utils") and message.startswith("Saved checkpoint"):
            self.trained = True
        elif kind in KINDS:
            self.trained = True
            try:
                numbers = parse_numbers(message.strip())
            except ValueError:
                # A line of another worker may have fallen into this one.
                return
            if numbers is not None:
                self._take(kind, numbers)

    def _take(self, kind: str, numbers: Numbers) -> None:
        if numbers.update is not None:
            self.update = numbers.update
            self.reached = max(self.update, self.reached or 0)
            self.values["num_updates"] = str(self.update)
        for name, value in as_texts(numbers.values).items():
            if kind == "valid" and name == "loss":
                name = "valid_loss"
            elif kind == "valid" and name != "epoch":
                continue
            if name in SHOWN:
                self.values[name] = value


class LogReader:
    """Reads what a worker adds to its log, through a descriptor of the file it writes to.

    Args:
        descriptor: of the log; it is closed with the reader.
        position: where to begin, in bytes.
        progress: takes in each line.

    Attributes:
        readable: whether the last attempt to read has succeeded.
    """

    def __init__(self, descriptor: int, position: int, progress: Progress) -> None:
        self.readable = True
        self._descriptor = descriptor
        self._progress = progress
        self._lines = LineReader(position)

    def __del__(self) -> None:
        """Close the log."""
        with suppress(OSError):
            os.close(self._descriptor)

    def poll(self) -> None:
        """Read the lines that are complete by now.  Never raises."""
        try:
            if os.fstat(self._descriptor).st_size < self._lines.position:
                # Truncated; what is there now came after.
                self._lines.restart()
            for line in self._lines.read(self._descriptor):
                self._progress.read_line(line.decode(errors="replace"))
        except OSError:
            self.readable = False
        else:
            self.readable = True


def live_line(name: str, state: str, restarts: int, progress: Progress) -> str:
    """Give the live line of one group."""
    values = progress.values
    said = [f"{short} {values[key]}" for key, short in SHOWN.items() if key in values]
    if restarts:
        said.append(f"restarts {restarts}")
    return "  ".join([f"{name}: {state:<9}", *said]).rstrip()
