"""What a fairseq log says: its training and validation lines, its settings, its restarts.

Read are ``--log-format`` json and simple, with the prefix of fairseq-train or of
fairseq-hydra-train, or with none, as in the file of ``--log-file``.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_codistill.errors import UserError

TRAIN_INNER = ""  # every log interval
TRAIN = "train"  # every epoch

# "time | level | logger | message", from hydra "[time][logger][level] - message", or neither.
_PREFIX = re.compile(r"(?:[^|{]* \| \w+ \| ([\w.]+) \| |\[[^]]*\]\[([\w.]+)\]\[\w+\] - )?(.*)")
# The key that every such line has tells its kind: the prefix is empty in the middle of an epoch,
# train at its end, the subset's name in validation.
_KIND = re.compile(r'"(?:(\w+)_)?num_updates": ')
_SIMPLE = re.compile(r"epoch \d+(?::| \| (?:valid on '([^']+)' subset \| )?)")
# "loss=5.9" in the middle of an epoch, "loss 5.9" at its end.
_PAIR = re.compile(r"([A-Za-z_]\w*)[= ](-?[\d.][\d.e+-]*|-?inf|nan)(?=,|\s|$)")


@dataclass(frozen=True)
class Line:
    """One line of numbers.

    Attributes:
        update: updates so far.
        values: the numbers by fairseq's names, without the prefix of their kind.
    """

    update: int
    values: dict[str, float]


@dataclass
class Log:
    """What one process, over all its restarts, has logged.

    A restart takes up an earlier update again. What had been logged beyond it belongs to a model
    that is no more, and is dropped as soon as a line shows where training went on.

    Attributes:
        inner: training, every log interval.
        epochs: training, every epoch.
        valid: validation, of the first subset that was validated.
        settings: the newest line with fairseq's settings, as text; empty if there is none.
        restarts: how often it began anew.
        torn: lines that could not be read.
    """

    inner: list[Line] = field(default_factory=list)
    epochs: list[Line] = field(default_factory=list)
    valid: list[Line] = field(default_factory=list)
    settings: str = ""
    torn: int = 0
    _subset: str | None = None
    _launched: int = 0
    _configured: int = 0
    _went_back: int = 0

    @property
    def train(self) -> list[Line]:
        """The training lines: of every log interval or, if there are none, of every epoch."""
        return self.inner or self.epochs

    @property
    def restarts(self) -> int:
        """How often training began anew, by whichever sign of it there is."""
        return max(self._launched - 1, self._configured - 1, self._went_back)

    def read(self, lines: Iterable[str]) -> None:
        """Take in the lines of a log, in their order."""
        for line in lines:
            if "num_updates" in line:
                self._read_numbers(_split(line)[1])
            elif "{'_name': None, 'common': {" in line or "codistill.launch" in line:
                self._read_start(*_split(line))

    def _read_start(self, logger: str, message: str) -> None:
        if logger == "codistill.launch":
            self._launched += 1
        elif message.startswith("{"):
            self._configured += 1
            self.settings = message

    def _read_numbers(self, message: str) -> None:
        if message.startswith("{"):
            self._read_json(message)
            return
        match = _SIMPLE.match(message)
        if match is None:
            return
        inner = message[match.end() - 1] == ":"
        kind = TRAIN_INNER if inner else match[1] or TRAIN
        values = {key: float(value) for key, value in _numbers(_PAIR.findall(message))}
        self._take(kind, values)

    def _read_json(self, message: str) -> None:
        found = _KIND.search(message)
        try:
            said = json.loads(message)
        except ValueError:
            # A line of another process may have fallen into this one, or its end is not there.
            self.torn += 1
            return
        if found is None or not isinstance(said, dict):
            return
        kind = found[1] or TRAIN_INNER
        start = f"{kind}_" if kind else ""
        self._take(
            kind, {key.removeprefix(start): number for key, number in _numbers(said.items())}
        )

    def _take(self, kind: str, values: dict[str, float]) -> None:
        update = values.pop("num_updates", None)
        if update is None:
            return
        if kind not in (TRAIN_INNER, TRAIN):
            self._subset = self._subset or kind
            if kind != self._subset:
                return
        line = Line(int(update), values)
        if kind == TRAIN_INNER and self.inner and line.update < self.inner[-1].update:
            self._went_back += 1
        for lines in (self.inner, self.epochs, self.valid):
            del lines[bisect_right(lines, line.update, key=_update) :]
        lines = {TRAIN_INNER: self.inner, TRAIN: self.epochs}.get(kind, self.valid)
        # The same update once more: the later line wins.
        del lines[bisect_left(lines, line.update, key=_update) :]
        lines.append(line)


def read(path: Path) -> Log:
    """Read a log.

    Raises:
        UserError: if it cannot be read.
    """
    log = Log()
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            log.read(lines)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return log


def _split(line: str) -> tuple[str, str]:
    """Give who said it, if the line tells, and what."""
    match = _PREFIX.match(line.strip())
    if match is None:
        return "", ""
    return match[1] or match[2] or "", match[3]


def _numbers(pairs: Iterable[tuple[str, object]]) -> Iterator[tuple[str, float]]:
    """Leave out what is no number: fairseq writes most numbers as text, and a missing one null."""
    for key, value in pairs:
        if not isinstance(value, int | float | str):
            continue
        try:
            yield key, float(value)
        except ValueError:
            continue


def _update(line: Line) -> int:
    return line.update
