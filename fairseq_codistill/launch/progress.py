"""How far each group is, from its log, and one live line a group on the terminal."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

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
        lines: lines so far, without those of the plugin itself, some of which come from threads
            that go on while training hangs.
    """

    values: dict[str, str] = field(default_factory=dict)
    trained: bool = False
    lines: int = 0

    @property
    def update(self) -> int | None:
        """The newest update in the log, or None."""
        text = self.values.get("num_updates", "")
        return int(text) if text.isdecimal() else None

    def restart(self) -> None:
        """Take what follows for a new start of the same group."""
        self.trained = False

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

    def _take(self, kind: str, values: Mapping[str, str]) -> None:
        for key, value in values.items():
            name = key.removeprefix("train_")
            if kind == "valid" and key in ("loss", "valid_loss"):
                name = "valid_loss"
            elif kind == "valid" and key not in ("epoch", "num_updates"):
                continue
            if name in SHOWN:
                self.values[name] = value


class LogReader:
    """Reads what is appended to a log, and only that.

    Args:
        path: the log; it need not be there yet.
        progress: takes in each line.
    """

    def __init__(self, path: Path, progress: Progress) -> None:
        self._path = path
        self._progress = progress
        self._position = path.stat().st_size if path.exists() else 0
        self._rest = b""

    def poll(self) -> None:
        """Read the lines that are complete by now."""
        if not self._path.exists():
            return
        with self._path.open("rb") as log:
            log.seek(self._position)
            new = log.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        for line in lines:
            self._progress.read_line(line.decode(errors="replace"))


class LiveView:
    """One line a group: redrawn in place on a terminal, otherwise printed now and then.

    Args:
        stream: where to.
        every: seconds between two looks; the default suits the kind of stream.
    """

    def __init__(self, stream: TextIO, every: float | None = None) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._every = every if every is not None else (1.0 if self._terminal else 10.0)
        self._next = 0.0
        self._drawn: list[str] = []

    def announce(self, text: str) -> None:
        """Print ``text`` for good, above the live lines."""
        self._clear()
        self._stream.write(text.rstrip("\n") + "\n")
        if self._terminal:
            self._write(self._drawn)
        self._stream.flush()

    def show(self, lines: Sequence[str], now: float, final: bool = False) -> None:
        """Bring the live lines up to date if it is time to, or ``final``."""
        if now < self._next and not final:
            return
        self._next = now + self._every
        if self._terminal:
            self._clear()
            width = shutil.get_terminal_size().columns
            self._drawn = [line[: width - 1] for line in lines]
            self._write(self._drawn)
        else:
            self._write([line for line in lines if line not in self._drawn])
            self._drawn = list(lines)
        self._stream.flush()

    def _write(self, lines: Sequence[str]) -> None:
        self._stream.writelines(line + "\n" for line in lines)

    def _clear(self) -> None:
        if self._terminal and self._drawn:
            # Up to the first live line, and clear from there to the end of the screen.
            self._stream.write(f"\x1b[{len(self._drawn)}F\x1b[J")


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
