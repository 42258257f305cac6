"""The manifest of a snapshot: what it is, so that a reader can check it before it reads it."""

from __future__ import annotations

import builtins
import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from fairseq_codistill.exchange.errors import SnapshotRejected

FORMAT = 1

# A manifest is a few kilobytes, most of them the model configuration.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Manifest:
    """One snapshot, described.

    Attributes:
        run_id: the run it belongs to.
        group: the publishing group's index.
        seed: that group's seed.
        update: updates the model had made.
        epoch: the epoch, from 1, that training was in.
        dtype: of the floating-point tensors in the file.
        bytes: size of the tensor file.
        sha256: of the tensor file.
        shapes: digest of all names and shapes (``tensors.shapes_digest``).
        aliases: tied tensors, other name -> name in the file.
        vocabulary: digest of the target vocabulary.
        model: configuration from which the adapter builds the model; plain JSON.
        time: seconds since the epoch of Unix.
        format: version of this layout.
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

    def to_json(self) -> builtins.bytes:
        """Give the file's content."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def from_json(cls, data: builtins.bytes) -> Manifest:
        """Read a file's content.

        Raises:
            SnapshotRejected: if it is not JSON, or a field is missing, unknown or of another kind.
        """
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise SnapshotRejected(f"its manifest is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise SnapshotRejected("its manifest is not a JSON object")
        if fields.get("format") != FORMAT:
            raise SnapshotRejected(
                f"its manifest has format {fields.get('format')!r}, and this version of "
                f"fairseq_codistill reads {FORMAT}"
            )
        if fields.keys() != _KINDS.keys():
            odd = ", ".join(sorted(fields.keys() ^ _KINDS.keys()))
            raise SnapshotRejected(f"its manifest lacks, or should not have, the fields {odd}")
        for name, kind in _KINDS.items():
            value = fields[name]
            # A bool is an int to isinstance, and none of these fields is one.
            if not isinstance(value, kind) or isinstance(value, bool):
                raise SnapshotRejected(f"its manifest's field {name} is {value!r:.80}")
        if not all(isinstance(name, str) for name in fields["aliases"].values()):
            raise SnapshotRejected("its manifest's field aliases does not map names to names")
        return cls(**fields)


_KINDS: dict[str, Any] = {
    "run_id": str,
    "group": int,
    "seed": int,
    "update": int,
    "epoch": int,
    "dtype": str,
    "bytes": int,
    "sha256": str,
    "shapes": str,
    "aliases": dict,
    "vocabulary": str,
    "model": dict,
    "time": (int, float),
    "format": int,
}
