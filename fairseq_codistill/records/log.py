"""Loggers whose lines nobody outside can forge."""

from __future__ import annotations

import logging
import numbers
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from fairseq_codistill.records.printable import printable

# An error of a store may quote a whole answer.
LONGEST_VALUE = 2000
LONGEST_MESSAGE = 20_000


def get_logger(name: str) -> logging.Logger:
    """Return the logger of that name, whose lines hold printable characters alone.

    The values of a message may come from an exchange: a run id with a newline would begin a line
    of its own, which ``codistill launch`` and ``report`` would take for training.  The text of an
    exception may, too, and so may a message that has no values, as it may be an exception's.

    Args:
        name: of the module.
    """
    logger = logging.getLogger(name)
    if not any(isinstance(one, _Printable) for one in logger.filters):
        logger.addFilter(_Printable())
    return logger


class _Printable(logging.Filter):
    """Make the values of a message printable; numbers stay what they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass."""
        if not record.args:
            record.msg = printable(record.msg, LONGEST_MESSAGE)
        elif isinstance(record.args, Mapping):
            record.args = {name: _plain(value) for name, value in record.args.items()}
        else:
            record.args = tuple(map(_plain, record.args))
        if record.exc_info and record.exc_info[1] is not None:
            # The formatter takes this in place of its own text.
            record.exc_text = "\n".join(_lines(record.exc_info[1]))
        return True


def _plain(value: Any) -> Any:
    return value if isinstance(value, numbers.Number) else printable(value, LONGEST_VALUE)


def _lines(error: BaseException) -> Iterator[str]:
    """Yield the lines of a traceback, each exception's own text on one."""
    for entry in traceback.format_exception(error):
        # A frame is two lines or three, all of them from source files.
        parts = entry.split("\n") if entry.startswith("  File ") else [entry.strip("\n")]
        yield from (printable(part, LONGEST_VALUE) for part in parts if part)
