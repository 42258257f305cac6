"""The plain part of a pickle, read without executing any of it.

The opcodes are followed on a stack of our own: dictionaries with text as keys, lists, text and
whole numbers come out as they are, and everything else, whatever it would call or build, as
``OTHER``.  Nothing is imported, called or allocated by size, so that any bytes may be given.
"""

from __future__ import annotations

import itertools
import pickletools
from typing import Any, Final

# A checkpoint has 30 opcodes a tensor; so many take 3 s.
MOST_OPCODES = 4_000_000


class _Other:
    """The kind of ``OTHER``."""


class _Mark(_Other):
    """The kind of the mark that a variable number of operands begins with."""


OTHER: Final = _Other()
_MARK: Final = _Mark()

_VALUES = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
}


class Malformed(ValueError):
    """The bytes are not a pickle, or one that is too long."""


def read_plain(data: bytes) -> Any:
    """Return the plain part of a pickle.

    Args:
        data: the pickle.

    Raises:
        Malformed: if it is not one.
    """
    reader = _Reader()
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(data), MOST_OPCODES):
            if opcode.name == "STOP":
                return reader.pop()
            reader.follow(opcode, argument)
    except (ValueError, LookupError) as error:
        raise Malformed(f"it is not a pickle: {error}") from error
    raise Malformed("it has too many opcodes")


class _Reader:
    """The stack and the memo of a pickle machine."""

    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Return the top of the stack, and remove it."""
        return self._stack.pop()

    def follow(self, opcode: pickletools.OpcodeInfo, argument: Any) -> None:
        """Do what an opcode does, as far as plain values go.

        Raises:
            LookupError: if the stack or the memo lacks something.
        """
        stack = self._stack
        match opcode.name:
            case name if name in _VALUES:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "MARK":
                stack.append(_MARK)
            case "DICT":
                stack.append(_fill({}, self._pop_to_mark()))
            case "LIST":
                stack.append(self._pop_to_mark())
            case "SETITEM" | "APPEND":
                count = len(opcode.stack_before) - 1
                items = [stack.pop() for _ in range(count)][::-1]
                _fill(stack[-1], items)
            case "SETITEMS" | "APPENDS":
                items = self._pop_to_mark()
                _fill(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "DUP":
                stack.append(stack[-1])
            case _:
                self._build_other(opcode)

    def _build_other(self, opcode: pickletools.OpcodeInfo) -> None:
        operands = opcode.stack_before
        if pickletools.markobject in operands:
            self._pop_to_mark()
            operands = operands[: operands.index(pickletools.markobject)]
        for _ in operands:
            self._stack.pop()
        self._stack.extend(OTHER for _ in opcode.stack_after)

    def _pop_to_mark(self) -> list[Any]:
        items = []
        while (item := self._stack.pop()) is not _MARK:
            items.append(item)
        return items[::-1]


def _fill(container: Any, items: list[Any]) -> Any:
    """Put items into a list, or keys and values into a dictionary; OTHER has none."""
    if isinstance(container, list):
        container.extend(items)
    elif isinstance(container, dict):
        pairs = zip(items[::2], items[1::2], strict=False)
        container.update((key, value) for key, value in pairs if isinstance(key, str))
    return container
