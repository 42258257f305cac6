"""What a fairseq log says: its training and validation lines, its settings, its restarts.

A log is read in linear time and in bounded memory, whatever is in it; ``thinning`` tells what
becomes of a long one.
"""

from __future__ import annotations

import os
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.records.guarded import Unreadable, open_regular
from fairseq_codistill.records.lines import LineReader
from fairseq_codistill.records.training_log import (
    TRAIN,
    TRAIN_INNER,
    as_floats,
    parse_numbers,
    split_prefix,
)
from fairseq_codistill.report.thinning import MOST, SHOWN, Line, thin

# Of a line with more characters or more numbers, or after so many lines, only what the report shows
# is kept.
LONGEST_NUMBERS = 4096
MOST_NUMBERS = 64
LINES_OF_ALL = 1000
# Settings are some 20 kilobytes; what is longer is taken for unknown.
LONGEST_SETTINGS = 128 * 1024

# What is in every line that counts.
_COUNTER, _CONFIGURED, _LAUNCHED = "num_updates", "{'_name': None, 'common': {", "codistill.launch"
_MARKS = tuple(mark.encode() for mark in (_COUNTER, _CONFIGURED, _LAUNCHED))


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
            if _COUNTER in line:
                self._read_numbers(split_prefix(line.strip())[1])
            elif _CONFIGURED in line or _LAUNCHED in line:
                self._read_start(*split_prefix(line.strip()))
        for some in (self.inner, self.epochs, self.valid):
            if some and some[0].merged is not None:
                # Evenly, so that the newest do not count for more in a picture.
                thin(some, recent=1, validation=some is self.valid)

    def _read_start(self, logger: str, message: str) -> None:
        if logger == _LAUNCHED:
            self._launched += 1
        elif message.startswith("{"):
            self._configured += 1
            self.settings = message if len(message) <= LONGEST_SETTINGS else ""

    def _read_numbers(self, message: str) -> None:
        try:
            found = parse_numbers(message)
        except ValueError:
            self.torn += 1
            return
        if found is None or found.update is None:
            return
        values = found.values
        if (
            len(self.inner) >= LINES_OF_ALL
            or len(message) > LONGEST_NUMBERS
            or len(values) > MOST_NUMBERS
        ):
            values = {name: values[name] for name in SHOWN if name in values}
        self._take(found.kind, Line(found.update, as_floats(values)))

    def _take(self, kind: str, line: Line) -> None:
        if kind not in (TRAIN_INNER, TRAIN):
            self._subset = self._subset or kind
            if kind != self._subset:
                return
        if kind == TRAIN_INNER and self.inner and line.update < self.inner[-1].update:
            self._went_back += 1
        for some in (self.inner, self.epochs, self.valid):
            if some and some[-1].update > line.update:
                del some[bisect_right(some, line.update, key=_update) :]
        lines = {TRAIN_INNER: self.inner, TRAIN: self.epochs}.get(kind, self.valid)
        if lines and lines[-1].update == line.update:
            # The same update once more: the later line wins.
            del lines[bisect_left(lines, line.update, key=_update) :]
        lines.append(line)
        if len(lines) > MOST:
            thin(lines, validation=lines is self.valid)


def read(path: Path) -> Log:
    """Read a log; of one that grows, what is there when it is opened.

    Raises:
        UserError: if it cannot be read.
    """
    log = Log()
    try:
        with open_regular(path, follow=True) as file:
            log.read(_lines(log, file.fileno()))
    except Unreadable:
        raise UserError(f"{path} cannot be read: it is not a regular file") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return log


def _lines(log: Log, descriptor: int) -> Iterator[str]:
    """Yield the lines that count, and count those that are too long."""
    reader = LineReader(returns=True)
    numbers, configured, launched = _MARKS
    for line in reader.read(descriptor, os.fstat(descriptor).st_size):
        if numbers in line or configured in line or launched in line:
            yield line.decode(errors="replace")
    yield reader.take_rest().decode(errors="replace")
    log.torn += reader.skipped


def _update(line: Line) -> int:
    return line.update
