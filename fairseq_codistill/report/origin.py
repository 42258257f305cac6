"""How a run was made: its command and its versions, from what launch has written down."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A file's URI; another URI, which names no place of this machine; an absolute path.
_PLACES = re.compile(
    r"file:/+(?P<file>[^\s:=,'\"]+)|[A-Za-z][\w+.-]*://[^\s:=,'\"]*"
    r"|(?<![\w./~*-])/+(?P<path>[^\s:=,'\"]+)"
)


@dataclass(frozen=True)
class Origin:
    """How a run was made; of several launches on one OUT, the newest.

    Attributes:
        command: as for a shell, of absolute paths the last component only.
        versions: of what its numbers may depend on.
    """

    command: str
    versions: dict[str, str | None]


def of(written: Mapping[str, Any]) -> Origin | None:
    """Give what ``launch.json`` says; None if it is not there or says nothing of it."""
    if "command" not in written or "versions" not in written:
        return None
    # Launch has not always kept its options; their place is marked then.
    known = ["--groups", str(len(written.get("groups", [])))]
    if "options" in written:
        options = shlex.join(shortened(written["options"]))
    else:
        options = f"{shlex.join(known)} ..."
    # Each word by itself: a quote of the shell's own is no part of a path.
    command = shlex.join(shortened(written["command"]))
    return Origin(f"codistill launch {options} -- {command}", dict(written["versions"]))


def shortened(words: Sequence[str]) -> list[str]:
    """Give the words of a command with the last component alone of each absolute path."""
    return [_PLACES.sub(_last, word) for word in words]


def _last(match: re.Match[str]) -> str:
    path = match["file"] or match["path"]
    return match[0] if path is None else path.rstrip("/").rpartition("/")[2]
