"""Whether two values of a setting mean the same, each written in a launch from some directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import PurePath

from fairseq_codistill.launch.settings import LONGEST_VALUE, OFF, ON
from fairseq_codistill.records import printable
from fairseq_codistill.records.address import resolved

# Characters of a value that are shown.
SHOWN = 160
# Settings that may name files, several of them with a colon between.
_PATHS = frozenset(
    "data user-dir config config-dir config-path restore-file finetune-from-model codistill-dir "
    "codistill-teachers codistill-topology".split()
)
_PLUGIN = "fairseq_codistill"
# A number for each epoch; the last one is for all that follow.
_FOR_EACH_EPOCH = frozenset({"update-freq", "lr"})
_SWITCHED = ({ON, "yes", "on", "1"}, {OFF, "no", "off", "0"})


@dataclass(frozen=True)
class Move:
    """How a run has been moved or copied, with all that lies about it.

    Attributes:
        old: the directory that has been moved.
        new: where it is now.
    """

    old: str
    new: str

    def applied(self, place: str) -> str:
        """Return where a place of former times is now."""
        if place != self.old and not place.startswith(os.path.join(self.old, "")):
            return place
        return os.path.normpath(os.path.join(self.new, os.path.relpath(place, self.old)))


def move(old: str, new: str) -> Move | None:
    """Return how a directory has been moved, the outermost one that has; None if it has not.

    Args:
        old: the absolute path of a directory.
        new: that of the same directory now.
    """
    parts = [list(PurePath(os.path.realpath(path)).parts) for path in (old, new)]
    if parts[0] == parts[1]:
        return None
    while min(map(len, parts)) > 1 and parts[0][-1] == parts[1][-1]:
        parts = [part[:-1] for part in parts]
    return Move(*(os.path.join(*part) for part in parts))


def same(
    setting: str,
    old: str | None,
    new: str | None,
    old_from: str,
    new_from: str,
    moved: Move | None = None,
) -> bool:
    """Tell whether two values of a setting mean the same.

    Args:
        setting: its flag without dashes.
        old: one value, or None if it is not given.
        new: the other one.
        old_from: the directory that ``old``, if it is a relative path, is relative to.
        new_from: that of ``new``.
        moved: how the run has been moved in between, if it has.
    """
    if old is None or new is None:
        return old is new
    if setting == "user-dir" and {PurePath(old).name, PurePath(new).name} == {_PLUGIN}:
        # It may have been installed anew, in another place, or be of another clone.
        return True
    if old == new and setting not in _PATHS:
        return True
    if any({old.lower(), new.lower()} <= spellings for spellings in _SWITCHED):
        return True
    told = _numbers_for(setting, old)
    if told is not None and told == _numbers_for(setting, new):
        return True
    was, is_now = _places(old, old_from), _places(new, new_from)
    if was == is_now:
        return True
    if moved is not None and [moved.applied(place) for place in was] == is_now:
        return setting != "data" or all(map(_looks_copied, was, is_now))
    # What named no file is a word.  If the file is there no more, the run was moved with its
    # files, or is looked at from another machine.
    return old == new and not any(os.path.lexists(place) for place in was)


def differs(before: str | None, now: str | None) -> str:
    """Return what to say of a value that was another one before; None is for one not given."""
    was = "was not given" if before is None else f"was {printable(before, SHOWN)}"
    is_now = "is not given" if now is None else f"is {printable(now, SHOWN)}"
    return f"{was} and {is_now} now"


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


def for_each_epoch(told: Sequence[Decimal]) -> list[Decimal]:
    """Return numbers, one for each epoch, without those at the end that repeat the one before."""
    found = list(told)
    while len(found) > 1 and found[-1] == found[-2]:
        found.pop()
    return found


def _numbers_for(setting: str, value: str) -> list[Decimal] | None:
    told = numbers(value)
    return for_each_epoch(told) if told is not None and setting in _FOR_EACH_EPOCH else told


def _looks_copied(old: str, new: str) -> bool:
    """Tell whether a directory may be a copy of another one, by the names and sizes in it.

    One that is there no more has been moved.
    """
    try:
        return _listed(old) == _listed(new)
    except OSError:
        return not os.path.lexists(old)


def _listed(place: str) -> dict[str, int | None]:
    """Return what is directly in a directory: its names, with the sizes of files.

    Raises:
        OSError: if it cannot be listed.
    """
    with os.scandir(place) as entries:
        return {entry.name: entry.stat().st_size if entry.is_file() else None for entry in entries}


def _places(value: str, directory: str) -> list[str]:
    """Return the places that a value names, if it names any: paths without links, or a URI."""
    if "\0" in value:
        return [value]
    if "://" in value:
        place = resolved(value, directory)
        if "://" in place:
            # A store takes both for the same.
            return [place.rstrip("/")]
        return [os.path.realpath(place)]
    return [os.path.realpath(resolved(part, directory)) for part in value.split(":")]
