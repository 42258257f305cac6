"""JSON from strangers: one object, read strictly, so that no two readers can differ about it."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any


def parse_object(data: bytes) -> dict[str, Any]:
    """Read a JSON object: UTF-8, every key once, every number finite.

    Raises:
        ValueError: if ``data`` is anything else; the message is the reason.
    """
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_each_once,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError("it is not a JSON object")
    return value


def is_text(value: Any, shortest: int, longest: int) -> bool:
    """Whether ``value`` is a string of that many characters that UTF-8 can hold."""
    if not isinstance(value, str) or not shortest <= len(value) <= longest:
        return False
    # JSON can escape half of a surrogate pair, which nothing can print.
    return not any("\ud800" <= character <= "\udfff" for character in value)


def is_whole(value: Any, lowest: int, highest: int) -> bool:
    """Whether ``value`` is an integer in that range; a bool is none."""
    return type(value) is int and lowest <= value <= highest


def is_plain(value: Any, depth: int, longest: int) -> bool:
    """Whether ``value`` is JSON nested at most ``depth`` deep, its strings and numbers bounded."""
    if isinstance(value, str):
        return is_text(value, 0, longest)
    if type(value) is int:
        return abs(value) < 2**63
    if isinstance(value, (list, dict)):
        if depth == 0:
            return False
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return all(is_plain(part, depth - 1, longest) for part in parts)
    return value is None or isinstance(value, (bool, float))


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r:.80} is there more than once")
    return fields


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _short(text: str) -> int:
    # Python needs quadratic time for the digits of a number, and refuses more than 4,300.
    if len(text) > 40:
        raise ValueError(f"{text[:20]}... is too long a number")
    return int(text)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:20]} is too large a number")
    return number
