"""Whether two values of a setting mean the same, each written in a launch from some directory."""

from __future__ import annotations

import os
from decimal import Decimal, InvalidOperation
from pathlib import PurePath

from fairseq_codistill.launch.settings import LONGEST_VALUE, OFF, ON
from fairseq_codistill.records.address import resolved

# Settings that may name files, several of them with a colon between.
_PATHS = frozenset(
    "data user-dir config config-dir config-path restore-file finetune-from-model codistill-dir "
    "codistill-teachers codistill-topology".split()
)
_PLUGIN = "fairseq_codistill"


def same(setting: str, old: str | None, new: str | None, old_from: str, new_from: str) -> bool:
    """Tell whether two values of a setting mean the same.

    Args:
        setting: its flag without dashes.
        old: one value, or None if it is not given.
        new: the other one.
        old_from: the directory that ``old``, if it is a relative path, is relative to.
        new_from: that of ``new``.
    """
    if old is None or new is None:
        return old is new
    if old == new:
        return setting not in _PATHS or not _is_elsewhere(old, old_from, new_from)
    if {old.lower(), new.lower()} in ({ON}, {OFF}):
        return True
    told = numbers(old)
    if told is not None and told == numbers(new):
        return True
    if setting == "user-dir" and {PurePath(old).name, PurePath(new).name} == {_PLUGIN}:
        # It may have been installed anew, in another place.
        return True
    return _places(old, old_from) == _places(new, new_from)


def elsewhere(value: str, directory: str) -> str:
    """Return the absolute paths that a value means in a directory."""
    return ":".join(_places(value, directory))


def numbers(value: str) -> list[Decimal] | None:
    """Return the numbers of ``0.1``, ``[1,2]`` or ``(0.9, 0.98)``, or None if it is another."""
    if len(value) > LONGEST_VALUE:
        return None
    try:
        found = [Decimal(part.strip()) for part in value.strip("()[] ").split(",") if part]
    except InvalidOperation:
        return None
    return found if found and all(number.is_finite() for number in found) else None


def _is_elsewhere(value: str, old_from: str, new_from: str) -> bool:
    """Tell whether a relative path names another file now.

    What named no file is a word.  If the file is there no more, the run was moved with its files,
    or is looked at from another machine.
    """
    old, new = _places(value, old_from), _places(value, new_from)
    return old != new and any(os.path.lexists(place) for place in old)


def _places(value: str, directory: str) -> list[str]:
    """Return the places that a value names, if it names any: paths without links, or a URI."""
    if "\0" in value:
        return [value]
    if "://" in value:
        place = resolved(value, directory)
        return [place if "://" in place else os.path.realpath(place)]
    return [os.path.realpath(resolved(part, directory)) for part in value.split(":")]
