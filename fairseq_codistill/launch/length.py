"""How long the command of a group trains, and whether an orderly end was the end of that.

fairseq, started again on a checkpoint that has all its updates, makes one update more.  So a group
that has ended is started again only if something that decides the length asks for more than it has
reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fairseq_codistill.launch.dialects import Dialect, FairseqHydraTrain
from fairseq_codistill.launch.settings import bare_flags, command_line, content_of, last_part
from fairseq_codistill.launch.values import numbers
from fairseq_codistill.records import Ended, printable

# For each reason of an end (``records.ended.REASONS``), the settings that decide it.
_DECIDES = {
    "max-update": ("max-update",),
    "max-epoch": ("max-epoch", "epochs", "epochs-times"),
    "patience": ("patience",),
    "stop-time-hours": ("stop-time-hours",),
    "stop-min-lr": ("stop-min-lr",),
}
_LENGTH = frozenset(name for names in _DECIDES.values() for name in names)
# Of hydra's sections, those in which they are.
_SECTIONS = ("optimization", "checkpoint")
# What decides the length may be in one of the files that hydra's file is composed of.
_COMPOSED = "defaults"
_LONGEST = 200

Limits = Mapping[str, str]


def limits_of(dialect: Dialect) -> dict[str, str]:
    """Return what decides how long a command line trains, by the flags' names.

    Args:
        dialect: the command line of one group.

    Returns:
        The settings as they are written in the command or the file that it names.  Under
        ``defaults`` the digests of the files that hydra's file is composed of, if it is.
    """
    said = command_line(dialect, bare_flags([dialect]))
    hydra = isinstance(dialect, FairseqHydraTrain)
    path = dialect.file()
    file = {} if path is None else content_of(path, hydra) or {}
    found = {}
    for name, value in {**file, **said}.items():
        section, dot, _ = name.rpartition(".")
        if last_part(name) in _LENGTH and (not dot or section in _SECTIONS):
            found[last_part(name)] = printable(value, _LONGEST)
    if hydra and _COMPOSED in file:
        digests = [f"{name} {value}" for name, value in file.items() if name.endswith(".yaml")]
        found[_COMPOSED] = "; ".join([printable(file[_COMPOSED], _LONGEST), *sorted(digests)])
    return found


def is_limits(value: Mapping[str, Any]) -> bool:
    """Tell whether an object from a file is what ``limits_of`` returns."""
    return all(isinstance(text, str) for text in value.values())


def covers(ended: Ended, then: Limits, now: Limits) -> bool:
    """Tell whether a group that has ended has reached all that it is asked for now.

    Training ends at the first of its limits.  So it has reached its end if it has made the updates
    that are asked for, or if the limit that ended it is no higher than it was.

    Args:
        ended: its end.
        then: the limits that it had.
        now: those that it has now.
    """
    updates = _number(now.get("max-update"))
    # 0 is none.
    if updates is not None and 0 < updates <= ended.update:
        return True
    names = _DECIDES.get(ended.reason)
    if names is None:
        return dict(then) == dict(now)
    before, after = [{name: one[name] for name in names if name in one} for one in (then, now)]
    if not before and not after:
        # A default, or what is said in a file that hydra's file is composed of.
        return then.get(_COMPOSED) == now.get(_COMPOSED)
    if before.keys() != after.keys():
        return False
    return all(_is_no_higher(name, before[name], after[name]) for name in before)


def _is_no_higher(name: str, before: str, after: str) -> bool:
    if before == after:
        return True
    was, is_now = _number(before), _number(after)
    if was is None or is_now is None:
        return False
    if name == "stop-min-lr":
        # Training ends when the learning rate has fallen so far.
        return is_now >= was
    return 0 < is_now <= was


def _number(text: str | None) -> float | None:
    told = None if text is None else numbers(text)
    return float(told[0]) if told is not None and len(told) == 1 else None
