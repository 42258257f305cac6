"""Copies between a model and CPU memory, at the least cost to the thread that trains."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def first_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Tell which names are one tensor.

    Args:
        state: names -> tensors, as ``module.state_dict()`` gives them.

    Returns:
        Each name, in sorted order -> the first name of the same tensor, which may be itself.
    """
    found: dict[tuple, str] = {}
    names = {}
    for name in sorted(state):
        tensor = state[name]
        # Two names are tied if they are views of the same numbers in the same layout.
        place = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        names[name] = found.setdefault(place, name) if tensor.numel() else name
    return names


class CopyOut:
    """Copies a model's state to CPU memory, which it uses again from one snapshot to the next.

    New memory costs more than the copy: the system clears each page of it first.  On CUDA the
    memory is pinned, and the transfer runs on a stream of its own while training goes on.

    Args:
        dtype: what floating-point tensors become; others keep theirs.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._buffers: dict[str, Tensor] = {}
        self._stream: torch.cuda.Stream | None = None

    def __call__(
        self, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, str], Callable[[], None]]:
        """Copy a state; nobody may use the copy made before any more.

        Args:
            state: names -> tensors.

        Returns:
            The tensors, tied ones once under the first of their names in sorted order; the
            aliases, other name -> that first name; and what to call, on any thread, before the
            tensors are read.
        """
        firsts = first_names(state)
        aliases = {name: first for name, first in firsts.items() if name != first}
        sources = {name: state[name].detach() for name in firsts if name not in aliases}
        tensors = {name: self._buffer(name, source) for name, source in sources.items()}
        self._buffers = tensors
        on_cuda = [name for name, source in sources.items() if source.is_cuda]
        for name in sources.keys() - set(on_cuda):
            tensors[name].copy_(sources[name])
        ready = self._transfer({name: (sources[name], tensors[name]) for name in on_cuda})
        return tensors, aliases, ready

    def _buffer(self, name: str, source: Tensor) -> Tensor:
        dtype = self._dtype if source.is_floating_point() else source.dtype
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != source.shape or buffer.dtype != dtype:
            buffer = torch.empty(source.shape, dtype=dtype, pin_memory=source.is_cuda)
        return buffer

    def _transfer(self, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> Callable[[], None]:
        if not pairs:
            return lambda: None
        try:
            # A copy on the device first: the next update may change the weights at once.
            staged = [(s.to(buffer.dtype, copy=True), buffer) for s, buffer in pairs.values()]
        except torch.OutOfMemoryError:
            # No room for it: one tensor after the other, and training waits.
            for source, buffer in pairs.values():
                buffer.copy_(source)
            return lambda: None
        if self._stream is None:
            self._stream = torch.cuda.Stream(device=staged[0][0].device)
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            for copy, buffer in staged:
                buffer.copy_(copy, non_blocking=True)
                # Its memory must not be given to others before the transfer has read it.
                copy.record_stream(self._stream)
            done = self._stream.record_event()
        return done.synchronize


def copy_out(
    state: Mapping[str, Tensor], dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Copy a state once, and wait for the copy: see ``CopyOut``."""
    tensors, aliases, ready = CopyOut(dtype)(state)
    ready()
    return tensors, aliases


def ready_to_use(
    tensors: Mapping[str, Tensor], like: Tensor, spare: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Do in the background what would cost time where the tensors are used.

    Args:
        tensors: names -> CPU tensors; names of one tensor stay names of one tensor.
        like: floating-point tensors become its dtype; for a CUDA device all become pinned.
        spare: tensors whose memory may be used again, where name, shape and dtype fit.

    Returns:
        names -> CPU tensors, aligned as torch likes them.
    """
    firsts = first_names(tensors)
    made: dict[str, Tensor] = {}
    for name, first in firsts.items():
        if name == first:
            tensor = tensors[name]
            dtype = like.dtype if tensor.is_floating_point() else tensor.dtype
            target = spare.get(name)
            if target is None or target.shape != tensor.shape or target.dtype != dtype:
                target = torch.empty(tensor.shape, dtype=dtype, pin_memory=like.is_cuda)
            made[name] = target.copy_(tensor)
    return {name: made[first] for name, first in firsts.items()}
