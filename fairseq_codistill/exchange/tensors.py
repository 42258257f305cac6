"""A model's state as bytes and back: tied tensors once, floating-point tensors in one dtype.

The bytes are safetensors: a header of names, dtypes and shapes, then the numbers.  Reading them
runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from fairseq_codistill.exchange.errors import SnapshotRejected
from fairseq_codistill.exchange.header import check_header
from fairseq_codistill.exchange.rows import pack, unpack

# What floating-point tensors are before they are encoded and after they are decoded.  As int8 only
# matrices travel, the rest being small and delicate.
WIRE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,
}


def encode(
    tensors: Mapping[str, Tensor], dtype: str, aliases: Mapping[str, str] | None = None
) -> bytes:
    """Give the safetensors bytes; equal tensors give equal bytes.

    Args:
        tensors: names -> CPU tensors; the floating-point ones are of ``WIRE_DTYPES[dtype]``.
        dtype: in what they travel.
        aliases: other name -> name in ``tensors``.

    Raises:
        ExchangeError: if ``decode`` would not take them, or a name cannot travel as int8.
    """
    packed = pack(tensors) if dtype == "int8" else dict(tensors)
    _accept(packed, aliases or {}, dtype)
    data = _saved(packed)
    check_header(data, dtype)
    return data


def emptied(tensors: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return empty CPU tensors in place of a model's, of the dtypes that they travel in.

    What can be known of a snapshot before its numbers are, ``encode`` tells of these.
    """
    wire = WIRE_DTYPES[dtype]
    return {
        name: torch.empty(0, dtype=wire if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in tensors.items()
    }


def decode(data: bytes, aliases: Mapping[str, str], dtype: str) -> dict[str, Tensor]:
    """Read safetensors bytes and put the aliases back.

    Args:
        data: the file; its sender is not trusted.
        aliases: other name -> name in the file.
        dtype: in what the floating-point tensors must have travelled, a key of ``WIRE_DTYPES``.

    Raises:
        SnapshotRejected: if the bytes are not the safetensors of a snapshot, an alias points
            nowhere or hides a tensor, or a number is not finite.
    """
    check_header(data, dtype)
    return _accept(_loaded(data), aliases, dtype)


def _accept(
    packed: Mapping[str, Tensor], aliases: Mapping[str, str], dtype: str
) -> dict[str, Tensor]:
    """Return the tensors of a sound file; what a reader asks for and a publisher makes sure of.

    Tensors are looked at in the order of their names, so that the reason is always the same one.

    Args:
        packed: names -> tensors, as they are in the file.
        aliases: other name -> name in the file.
        dtype: in what they travel.

    Raises:
        SnapshotRejected: if they are not those of a snapshot.
    """
    tensors = {name: packed[name] for name in sorted(packed)}
    _check_finite(tensors, dtype)
    if dtype == "int8":
        tensors = unpack(tensors)
        # A large scale times a whole number may be more than there is.
        _check_finite(tensors, dtype)
    for name, tensor in tensors.items():
        # torch computes nonsense with a bool that is neither 0 nor 1.
        if tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any()):
            raise SnapshotRejected(f"its tensor {name!r:.80} holds bools that are none")
    for alias, name in aliases.items():
        if name not in tensors or alias in tensors:
            raise SnapshotRejected(
                f"its alias {alias!r:.80} -> {name!r:.80} does not fit its tensors"
            )
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def _check_finite(tensors: Mapping[str, Tensor], dtype: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SnapshotRejected(
                f"its tensor {name!r:.80} holds numbers that are not finite in {dtype}"
            )


def largest_decoded(size: int, dtype: str) -> int:
    """Give the bytes that the tensors of a file of ``size`` bytes take at most once decoded."""
    return 4 * size if dtype == "int8" else size


def _saved(packed: Mapping[str, Tensor]) -> bytes:
    try:
        return _save(dict(packed))
    except MemoryError:
        raise
    except Exception as error:
        kinds = ", ".join(sorted({str(tensor.dtype) for tensor in packed.values()}))
        raise SnapshotRejected(
            f"safetensors does not take its tensors, of {kinds} ({type(error).__name__}: {error})"
        ) from error


def _loaded(data: bytes) -> dict[str, Tensor]:
    try:
        return _load(data)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - safetensors, numbers and torch raise what they like
        raise SnapshotRejected(f"its tensor file is not safetensors ({error})") from error
    except BaseException as error:
        # safetensors is written in Rust, whose panics are no Exception to Python.
        if type(error).__name__ != "PanicException":
            raise
        raise SnapshotRejected(f"its tensor file makes safetensors panic ({error})") from error


def shapes_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over all names, aliases among them, and their shapes."""
    lines = [[name, list(tensors[name].shape)] for name in sorted(tensors)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
