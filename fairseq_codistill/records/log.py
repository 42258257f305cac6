"""Loggers whose lines nobody outside can forge."""

from __future__ import annotations

import logging
from typing import Any

from fairseq_codistill.records.printable import printable

# An error of a store may quote a whole answer.
LONGEST_VALUE = 2000


def get_logger(name: str) -> logging.Logger:
    """Return the logger of that name, whose lines hold printable characters alone.

    The values of a message may come from an exchange: a run id with a newline would begin a line
    of its own, which ``codistill launch`` and ``report`` would take for training.

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
        if isinstance(record.args, tuple):
            record.args = tuple(map(_plain, record.args))
        return True


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else printable(value, LONGEST_VALUE)
