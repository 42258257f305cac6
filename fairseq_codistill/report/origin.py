"""How a run was made: its command and its versions, from what launch has written down."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fairseq_codistill.records import printable

# Characters of a command, and of what is told of a version.
LONGEST, LONGEST_VERSION, MOST_VERSIONS = 100_000, 100, 50

# A file's URI; another URI, which names no place of this machine; an absolute path.
_PLACES = re.compile(
    r"file:/+(?P<file>[^\s:=,'\"]+)|[A-Za-z][\w+.-]{0,30}://[^\s:=,'\"]*"
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


def of(written: Mapping[str, Any], groups: int) -> Origin | None:
    """Give what ``launch.json`` says; None if it says nothing of it.

    Args:
        written: its content.
        groups: how many it names.

    Raises:
        ValueError: if what it says is not of the kind that launch writes; the message is its name.
    """
    if "command" not in written or "versions" not in written:
        return None
    # Launch has not always kept its options; their place is marked then.
    if "options" in written:
        options = shlex.join(shortened(_words(written, "options")))
    else:
        options = f"--groups {groups} ..."
    # Each word by itself: a quote of the shell's own is no part of a path.
    command = shlex.join(shortened(_words(written, "command")))
    return Origin(f"codistill launch {options} -- {command}", _versions(written["versions"]))


def _words(written: Mapping[str, Any], name: str) -> list[str]:
    words = written[name]
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(name)
    if sum(map(len, words)) + len(words) > LONGEST:
        raise ValueError(name)
    return [printable(word, LONGEST) for word in words]


def _versions(versions: object) -> dict[str, str | None]:
    if not isinstance(versions, dict) or len(versions) > MOST_VERSIONS:
        raise ValueError("versions")
    if not all(value is None or isinstance(value, str) for value in versions.values()):
        raise ValueError("versions")
    return {
        printable(name, LONGEST_VERSION): value and printable(value, LONGEST_VERSION)
        for name, value in versions.items()
    }


def shortened(words: Sequence[str]) -> list[str]:
    """Give the words of a command with the last component alone of each absolute path."""
    return [_PLACES.sub(_last, word) for word in words]


def _last(match: re.Match[str]) -> str:
    path = match["file"] or match["path"]
    return match[0] if path is None else path.rstrip("/").rpartition("/")[2]
