"""The header of a tensor file, checked before anything is made of it.

safetensors checks that the tensors fill the file without gaps and overlaps.  What it lets pass is
refused here: a name that is there twice, metadata, fields it does not know, and dtypes that no
snapshot has.
"""

from __future__ import annotations

import math
from typing import Any

from fairseq_codistill.exchange.errors import SnapshotRejected
from fairseq_codistill.records.strict_json import is_text, is_whole, parse_object

# Some hundred bytes a tensor.  Python takes several times this to hold it parsed.
MAX_HEADER_BYTES = 4 * 1024 * 1024

# As int8, the scales and the tensors of fewer than two dimensions.
FLOATING = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "int8": "F32"}
OTHERS = {"BOOL", "I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64"}

MAX_DIMENSIONS = 16

# Of one tensor, a size of 0 counted as 1: beyond this, torch's own arithmetic overflows.
MAX_NUMBERS = 2**60


def check_header(data: bytes, dtype: str) -> None:
    """Make sure that a file declares tensors as a snapshot has them, and nothing else.

    Args:
        data: the file.
        dtype: what its floating-point tensors must be, a key of ``FLOATING``.

    Raises:
        SnapshotRejected: if it does not.
    """
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise SnapshotRejected("its tensor file is not safetensors (its header is cut short)")
    if size > MAX_HEADER_BYTES:
        raise SnapshotRejected(
            f"its tensor file has a header of more than {MAX_HEADER_BYTES} bytes"
        )
    text = data[8 : 8 + size]
    if not text.startswith(b"{"):
        raise SnapshotRejected("its tensor file is not safetensors (its header begins otherwise)")
    try:
        header = parse_object(text)
    except ValueError as error:
        raise SnapshotRejected(f"its tensor file is not safetensors ({error})") from error
    if not header:
        raise SnapshotRejected("its tensor file holds no tensor")
    allowed = OTHERS | {FLOATING[dtype]}
    for name, entry in header.items():
        if name == "__metadata__":
            raise SnapshotRejected("its tensor file has metadata, which no snapshot has")
        if not is_text(name, 1, 1000):
            raise SnapshotRejected(f"its tensor file names a tensor {name!r:.80}")
        if not _is_entry(entry):
            raise SnapshotRejected(
                f"its tensor file is not safetensors (it describes {name!r:.80} as {entry!r:.80})"
            )
        if entry["dtype"] not in allowed:
            raise SnapshotRejected(
                f"its tensor {name!r:.80} has dtype {entry['dtype']:.20}, and its manifest says "
                f"{dtype}"
            )


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and entry.keys() == {"dtype", "shape", "data_offsets"}
        and is_text(entry["dtype"], 1, 20)
        and _is_sizes(entry["shape"])
        and len(entry["shape"]) <= MAX_DIMENSIONS
        and math.prod(max(size, 1) for size in entry["shape"]) <= MAX_NUMBERS
        and _is_sizes(entry["data_offsets"])
        and len(entry["data_offsets"]) == 2
    )


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(is_whole(size, 0, 2**60) for size in value)
