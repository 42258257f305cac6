"""How far each group is, from its log, and one live line a group on the terminal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

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

# "time | level | logger | message", or from hydra's logging "[time][logger][level] - message".
_LINE = re.compile(r"(?:[^|]* \| \w+ \| ([\w.]+) \| |\[[^]]*\]\[([\w.]+)\]\[\w+\] - )(.*)")
_EPOCH = re.compile(r"epoch (\d+)")
# "loss=5.9" in the middle of an epoch, "loss 5.9" at its end.
_PAIR = re.compile(r"([A-Za-z_]\w*)[= ](-?[\d.][\d.e+-]*|inf|nan)(?=,|\s|$)")


@dataclass
class Progress:
    """What a log has said so far.

    Attributes:
        values: the newest value of each key of ``SHOWN`` that was seen.
        trained: whether training has shown any result since the last ``restart``.
        reached: the highest update since the last ``restart``.
        lines: lines so far, without those of the plugin itself, some of which come from threads
            that go on while training hangs.
    """

    values: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    reached: int | None = None
    lines: int = 0

    @property
    def update(self) -> int | None:
        """The newest update in the log, or None."""
        text = self.values.get("num_updates", "")
        return int(text) if text.isdecimal() else None

    def restart(self) -> None:
        """Take what follows for a new start of the same group."""
        self.trained = False
        self.reached = None

    def read_line(self, line: str) -> None:
        """Take in one line of fairseq's log, of ``--log-format`` simple or json."""
        match = _LINE.match(line)
        if match is None:
            self.lines += 1
            return
        kind, message = match[1] or match[2], match[3]
        self.lines += not kind.startswith("fairseq_codistill.")
        if kind.endswith("checkpoint_utils") and message.startswith("Saved checkpoint"):
            self.trained = True
        elif kind in ("train", "train_inner", "valid"):
            self.trained = True
            self._take(kind, _parse(message))
            if self.update is not None:
                self.reached = max(self.update, self.reached or 0)

    def _take(self, kind: str, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            name = key.removeprefix("train_")
            if kind == "valid" and key in ("loss", "valid_loss"):
                name = "valid_loss"
            elif kind == "valid" and key not in ("epoch", "num_updates"):
                continue
            if name in SHOWN:
                self.values[name] = value


BLOCK = 1 << 20


class Lines:
    """Interim."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, block: bytes) -> list[str]:
        """Interim."""
        *lines, self._rest = (self._rest + block).split(b"\n")
        self._rest = self._rest[-65536:]
        return [line.decode(errors="replace") for line in lines]


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
        self._position = position
        self._progress = progress
        self._lines = Lines()

    def __del__(self) -> None:
        """Close the log."""
        with suppress(OSError):
            os.close(self._descriptor)

    def poll(self) -> None:
        """Read the lines that are complete by now.  Never raises."""
        try:
            if os.fstat(self._descriptor).st_size < self._position:
                # Truncated; what is there now came after.
                self._position, self._lines = 0, Lines()
            while block := os.pread(self._descriptor, BLOCK, self._position):
                self._position += len(block)
                for line in self._lines.feed(block):
                    self._progress.read_line(line)
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


def _parse(message: str) -> dict[str, str]:
    if message.lstrip().startswith("{"):
        try:
            return {key: str(value) for key, value in json.loads(message).items()}
        except ValueError:
            # A line of another worker may have fallen into this one.
            return {}
    epoch = _EPOCH.match(message)
    values = dict(_PAIR.findall(message))
    return {**values, "epoch": str(int(epoch[1]))} if epoch else values
