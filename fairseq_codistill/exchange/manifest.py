"""The manifest of a snapshot: what it is, so that a reader can check it before it reads it."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairseq_codistill.exchange.errors import SnapshotIncomplete, SnapshotRejected
from fairseq_codistill.exchange.tensors import WIRE_DTYPES
from fairseq_codistill.records.strict_json import is_plain, is_text, is_whole, parse_object

# What is written, and what is read: 2 adds the source vocabulary.
FORMAT = 2
FORMATS = (1, 2)

LONGEST_RUN_ID = 200

# A manifest is a few kilobytes, most of them the model configuration and the aliases.
MAX_MANIFEST_BYTES = 1024 * 1024

# Ten digits: a snapshot is named by its update.
LAST_UPDATE = 9_999_999_999


@dataclass(frozen=True)
class Manifest:
    """One snapshot, described.

    Attributes:
        run_id: the run it belongs to.
        group: the publishing group's index.
        seed: that group's seed.
        update: updates the model had made.
        epoch: the epoch, from 1, that training was in.
        dtype: in what the floating-point tensors travel, a key of ``WIRE_DTYPES``.
        bytes: size of the tensor file.
        sha256: of the tensor file.
        shapes: digest of all names and shapes (``tensors.shapes_digest``).
        aliases: tied tensors, other name -> name in the file.
        vocabulary: digest of the target vocabulary.
        source_vocabulary: digest of the source vocabulary; None if there is none, or in format 1.
        model: configuration from which the adapter builds the model; plain JSON.
        time: seconds since the epoch of Unix.
        format: version of this layout.
        hmac: of ``signed_content``, under the groups' common key; None if they have none.
    """

    run_id: str
    group: int
    seed: int
    update: int
    epoch: int
    dtype: str
    bytes: int
    sha256: str
    shapes: str
    aliases: dict[str, str]
    vocabulary: str
    model: dict[str, Any]
    time: float
    format: int = FORMAT
    source_vocabulary: str | None = None
    hmac: str | None = None

    def to_json(self) -> builtins.bytes:
        """Give the file's content."""
        return json.dumps(self._fields(), indent=1, sort_keys=True).encode()

    def signed_content(self) -> builtins.bytes:
        """Give every field but ``hmac`` in the one form that is signed."""
        fields = self._fields()
        fields.pop("hmac", None)
        return json.dumps(fields, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: builtins.bytes) -> Manifest:
        """Read a file's content.

        Raises:
            SnapshotRejected: if it is not strict JSON, or a field is missing, unknown, of another
                kind or out of its range.
        """
        try:
            fields = parse_object(data)
        except ValueError as error:
            # Perhaps only a part of it is to be seen yet.
            raise SnapshotIncomplete(f"its manifest is not JSON as it must be ({error})") from error
        if fields.get("format") not in FORMATS:
            raise SnapshotRejected(
                f"its manifest has format {fields.get('format')!r:.80}, and this version of "
                f"fairseq_codistill reads {' and '.join(map(str, FORMATS))}"
            )
        optional = _OPTIONAL[fields["format"]]
        odd = (fields.keys() ^ (_FIELDS.keys() - _OPTIONAL[FORMAT])) - optional
        if odd:
            names = ", ".join(f"{name:.80}" for name in sorted(odd))
            raise SnapshotRejected(f"its manifest lacks, or should not have, the fields {names}")
        for name, value in fields.items():
            fits, kind = _FIELDS[name]
            if not fits(value):
                raise SnapshotRejected(
                    f"its manifest's field {name} is {value!r:.80}, which is not {kind}"
                )
        return cls(**fields)

    def _fields(self) -> dict[str, Any]:
        fields = dataclasses.asdict(self)
        # Left out where there is none, so that what is signed is what is in the file.
        for name in _OPTIONAL[FORMAT]:
            if fields[name] is None:
                del fields[name]
        return fields


def check_size(size: int) -> None:
    """Make sure that a manifest is no larger than one may be.

    Raises:
        SnapshotRejected: if it is.
    """
    if size > MAX_MANIFEST_BYTES:
        raise SnapshotRejected(f"its manifest is larger than {MAX_MANIFEST_BYTES} bytes")


def _whole(lowest: int, highest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_whole(value, lowest, highest), f"a number from {lowest} to {highest}"


def _text(longest: int) -> tuple[Callable[[Any], bool], str]:
    return lambda value: is_text(value, 1, longest), f"a text of 1 to {longest} characters"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_names_to_names(value: Any) -> bool:
    return isinstance(value, dict) and all(
        is_text(name, 1, 1000) for pair in value.items() for name in pair
    )


_DIGEST = (_is_digest, "64 lowercase hexadecimal digits")

# What each field must be, for a program and for a person.
_FIELDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run_id": _text(LONGEST_RUN_ID),
    "group": _whole(0, 999_999),
    "seed": _whole(-(2**63), 2**64 - 1),
    "update": _whole(0, LAST_UPDATE),
    "epoch": _whole(1, 2**31),
    "dtype": (lambda value: value in list(WIRE_DTYPES), f"one of {', '.join(WIRE_DTYPES)}"),
    "bytes": _whole(1, 2**60),
    "sha256": _DIGEST,
    "shapes": _DIGEST,
    "aliases": (_is_names_to_names, "names to names"),
    "vocabulary": _text(64),
    "source_vocabulary": _text(64),
    "model": (
        lambda value: isinstance(value, dict) and is_plain(value, depth=6, longest=4096),
        "a configuration of at most 6 levels, with texts of at most 4096 characters",
    ),
    "time": (
        lambda value: type(value) in (int, float) and 0 < value < 2**40,
        "a time in seconds",
    ),
    "format": _whole(min(FORMATS), max(FORMATS)),
    "hmac": _DIGEST,
}

# Fields that may be left out, by format.
_OPTIONAL = {1: {"hmac"}, 2: {"hmac", "source_vocabulary"}}
