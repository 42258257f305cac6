"""A model's state as bytes and back: tied tensors once, floating-point tensors in one dtype.

The bytes are safetensors: a header of names, dtypes and shapes, then the numbers.  Reading them
runs no code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load
from safetensors.torch import save as _save
from torch import Tensor

from fairseq_codistill.exchange.errors import SnapshotRejected

WIRE_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def copy_out(
    state: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy a model's state to the CPU, apart from the model.

    Args:
        state: names -> tensors, as ``module.state_dict()`` gives them.
        dtype: what floating-point tensors become; others keep theirs.

    Returns:
        The tensors, tied ones once under the first of their names in sorted order, and the
        aliases: other name -> that first name.
    """
    first_names: dict[tuple, str] = {}
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    for name in sorted(state):
        tensor = state[name].detach()
        # Two names are tied if they are views of the same numbers in the same layout.
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and place in first_names:
            aliases[name] = first_names[place]
            continue
        first_names[place] = name
        wire = dtype if tensor.is_floating_point() else tensor.dtype
        tensors[name] = tensor.to("cpu", wire, copy=True).contiguous()
    return tensors, aliases


def encode(tensors: Mapping[str, Tensor]) -> bytes:
    """Give the safetensors bytes; equal tensors give equal bytes."""
    return _save(dict(tensors))


def decode(data: bytes, aliases: Mapping[str, str]) -> dict[str, Tensor]:
    """Read safetensors bytes and put the aliases back.

    Raises:
        SnapshotRejected: if the bytes are not safetensors, an alias points nowhere or hides a
            tensor, or a number is not finite.
    """
    try:
        tensors = _load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError, TypeError) as error:
        raise SnapshotRejected(f"its tensor file is not safetensors ({error})") from error
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise SnapshotRejected(f"its tensor {name} holds numbers that are not finite")
    for alias, name in aliases.items():
        if name not in tensors or alias in tensors:
            raise SnapshotRejected(f"its alias {alias} -> {name} does not fit its tensors")
    return tensors | {alias: tensors[name] for alias, name in aliases.items()}


def shapes_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over all names, aliases among them, and their shapes."""
    lines = [[name, list(tensors[name].shape)] for name in sorted(tensors)]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
