"""One line of a training log: who wrote it, and its numbers.

Understood are ``--log-format`` json and simple, with the prefix of fairseq-train or of
fairseq-hydra-train, or with none, as in the file of ``--log-file``.  A line is data from outside:
every pattern here is bounded, so that a line costs time in proportion to its length, whatever is
in it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

TRAIN_INNER = ""  # every log interval
TRAIN = "train"  # every epoch

# Names and numbers have fewer characters.
LONGEST_NAME = 64
LONGEST_NUMBER = 40
LARGEST = 1e100
# float64 cannot tell larger updates apart.
MOST_UPDATES = 2**53

# "time | level | logger | message", from hydra "[time][logger][level] - message", or neither.
_PREFIX = re.compile(
    r"[^|{]{0,200} \| \w{1,20} \| ([\w.]{1,200}) \| "
    r"|\[[^]]{0,100}\]\[([\w.]{1,200})\]\[\w{1,20}\] - "
)
# The same of an error, and with the time that both begin with: in a line without a prefix, as in
# those of a traceback, what stands before " | " may have been written by somebody else.
_ERROR = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d{1,6})? \| ERROR \| ([\w.]{1,200}) \| "
    r"|\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:,\d{1,6})?\]\[([\w.]{1,200})\]\[ERROR\] - "
)
_SIMPLE = re.compile(r"epoch (\d{1,10})(?::| \| (?:valid on '([^']{1,100})' subset \| )?)")
# "loss=5.9" in the middle of an epoch, "loss 5.9" at its end.  A name begins at the beginning of a
# word, or every letter of a long word would be tried.
_PAIR = re.compile(
    rf"(?<!\w)([A-Za-z_]\w{{0,{LONGEST_NAME - 1}}})[= ]"
    rf"(-?[\d.][\d.e+-]{{0,{LONGEST_NUMBER - 2}}}|-?inf|nan)(?=,|\s|$)"
)
_COUNTER = "num_updates"


class Numbers(NamedTuple):
    """What a line of numbers says.

    Attributes:
        kind: ``TRAIN_INNER``, ``TRAIN``, or in validation the subset's name.
        update: updates so far; None if the line does not tell.
        values: numbers as logged, by fairseq's names without the prefix of their kind.  fairseq
            writes most of them as text; what is no number at all may be among them, so take
            them through ``as_float``, ``as_floats`` or ``as_texts``.
    """

    kind: str
    update: int | None
    values: dict[str, object]


def split_prefix(line: str) -> tuple[str, str]:
    """Return the logger that wrote a line, empty if the line does not tell, and the message."""
    found = _PREFIX.match(line)
    if found is None:
        return "", line
    return found[1] or found[2], line[found.end() :]


def error_in(line: str) -> tuple[str, str] | None:
    """Return the logger of an error and its message; None if the line is no whole record of one.

    A line counts only if it begins with the time, as ``fairseq-train`` and ``fairseq-hydra-train``
    write it: whatever is quoted within a line makes no record.
    """
    found = _ERROR.match(line)
    return None if found is None else (found[1] or found[2], line[found.end() :])


def parse_numbers(message: str) -> Numbers | None:
    """Return the numbers of a message; None if it is no line of numbers.

    Args:
        message: without prefix and without white space around it.

    Raises:
        ValueError: if it looks like one and cannot be read: a line of another process may have
            fallen into it, its end may be missing, or its update is no number of updates.
    """
    if message.startswith("{"):
        return _parse_json(message)
    found = _SIMPLE.match(message)
    if found is None:
        return None
    kind = TRAIN_INNER if message[found.end() - 1] == ":" else found[2] or TRAIN
    values: dict[str, object] = {"epoch": int(found[1])}
    values.update(_PAIR.findall(message, found.end()))
    return Numbers(kind, _as_update(values.pop(_COUNTER, None)), values)


def as_float(value: object) -> float | None:
    """Return the number that a logged value is, which may be infinite or NaN; None if it is none.

    A number of ``LARGEST`` or more is taken for infinite, so that sums and squares stay finite.
    """
    if not isinstance(value, str | int | float):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number * math.inf if abs(number) >= LARGEST else number


def as_floats(values: Mapping[str, object]) -> dict[str, float]:
    """Return the values that are numbers, by their names."""
    try:
        numbers = list(map(float, values.values()))  # type: ignore[arg-type]
        # Not so either, if the first number is NaN.
        ordinary = bool(numbers) and max(numbers) < LARGEST and min(numbers) > -LARGEST
    except (TypeError, ValueError):
        ordinary = False
    if ordinary:
        return dict(zip(values, numbers))  # noqa: B905 (they are as many, and this is faster)
    return {name: n for name, value in values.items() if (n := as_float(value)) is not None}


def as_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Return the values that are numbers as they were logged, fit for a terminal."""
    texts = {
        name: str(value).strip() for name, value in values.items() if as_float(value) is not None
    }
    return {name: text for name, text in texts.items() if len(text) <= LONGEST_NUMBER}


def _parse_json(message: str) -> Numbers:
    try:
        said, end = _DECODER.raw_decode(message)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if end != len(message):
        raise ValueError("something follows its end")
    # The name that every such line has tells its kind.
    if _COUNTER in said:
        kind, start = TRAIN_INNER, ""
    else:
        counter = next((name for name in said if name.endswith(f"_{_COUNTER}")), f"_{_COUNTER}")
        kind = counter.removesuffix(f"_{_COUNTER}")
        start = f"{kind}_" if kind else ""
        said = {name.removeprefix(start): value for name, value in said.items()}
    return Numbers(kind, _as_update(said.pop(_COUNTER, None)), said)


def _as_update(value: object) -> int | None:
    if isinstance(value, str) and len(value) < 16 and value.isdecimal():
        return int(value)  # as nearly always
    number = as_float(value)
    if number is None:
        return None
    if not 0 <= number <= MOST_UPDATES:
        raise ValueError(f"{number} is no number of updates")
    return int(number)


def _short(text: str) -> int:
    # Python needs quadratic time for the digits of a whole number.
    if len(text) > LONGEST_NUMBER:
        raise ValueError("one of its numbers is too long")
    return int(text)


_DECODER = json.JSONDecoder(parse_int=_short)
