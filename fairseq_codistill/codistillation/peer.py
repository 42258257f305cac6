"""A peer's model: constant, in eval mode (unless told to drop out), stale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_codistill.exchange import (
    ExchangeError,
    Snapshot,
    SnapshotRejected,
    ready_to_use,
    shapes_digest,
)

# Gives a model of a configuration, on the student's device, whose names and shapes are those of the
# tensors; its weights may be anything.
BuildModel = Callable[[dict[str, Any], Mapping[str, Tensor]], nn.Module]

# What a peer may compute in; None is for what the student does.
PEER_DTYPES = {"student": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Peer:
    """Another group's model as this group sees it.

    Args:
        group: whose model it is.
        build: makes the model of a configuration found in a manifest.
        like: a parameter of the student.
        dtype: a key of ``PEER_DTYPES``.
        dropout: whether the model drops out as it does in training; its batch norms are in eval
            mode even then.
    """

    def __init__(
        self,
        group: int,
        build: BuildModel,
        like: Tensor,
        *,
        dtype: str = "student",
        dropout: bool = False,
    ) -> None:
        self.group = group
        self.update: int | None = None
        self._build = build
        self._config: dict[str, Any] | None = None
        self._module: nn.Module | None = None
        self._like = like.new_empty(0, dtype=PEER_DTYPES[dtype])
        self._dropout = dropout
        # What the model was before, on the CPU: to give much memory back takes as long as a copy.
        self._spare: Mapping[str, Tensor] = {}

    @property
    def module(self) -> nn.Module:
        """The model; there is one once a snapshot has been loaded."""
        assert self._module is not None, f"peer {self.group} has no snapshot yet"
        return self._module

    def prepare(self, snapshot: Snapshot) -> Snapshot:
        """Do in the background what ``load`` would take time for; any thread, one at a time.

        Raises:
            SnapshotRejected: if the peer's dtype cannot hold its numbers.
        """
        if self._like.is_cuda:
            # Of this thread: pinned memory is the device's, and a thread begins with the first one.
            torch.cuda.set_device(self._like.device)
        spare, self._spare = self._spare, {}
        tensors = ready_to_use(snapshot.tensors, self._like, spare)
        for name, tensor in tensors.items():
            # float16 holds less than bfloat16 and float32 do.
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise SnapshotRejected(
                    f"its tensor {name!r:.80} holds numbers too large for what the peer computes "
                    f"in, {tensor.dtype}"
                )
        return replace(snapshot, tensors=tensors)

    def load(self, snapshot: Snapshot) -> None:
        """Become the model of a snapshot from ``prepare``, whose tensors are this peer's now.

        Raises:
            SnapshotRejected: if its configuration cannot be built or its tensors do not fit; the
                peer then stays what it was.
            ExchangeError: if the device has no room for it.  Not a rejection: the other workers
                of the group have room, perhaps, and would go on with another loss.
        """
        module, config = self._module, snapshot.manifest.model
        if module is None or config != self._config:
            module = self._built(snapshot)
        if shapes_digest(module.state_dict()) != snapshot.manifest.shapes:
            raise SnapshotRejected("its tensors' names and shapes are not those of its model")
        for name, place in module.state_dict().items():
            tensor = snapshot.tensors[name]
            if tensor.is_floating_point() != place.is_floating_point():
                raise SnapshotRejected(
                    f"its tensor {name!r:.80} is of {tensor.dtype}, where its model has "
                    f"{place.dtype}"
                )
        self._spare = _adopt(module, snapshot.tensors)
        self._module, self._config = module, config
        self.update = snapshot.manifest.update

    def _built(self, snapshot: Snapshot) -> nn.Module:
        # Building draws random numbers, which the student's training must not notice.
        with torch.random.fork_rng(devices=cuda_devices()):
            try:
                module = self._build(snapshot.manifest.model, snapshot.tensors)
                module.to(self._like.dtype)
            except torch.OutOfMemoryError as error:
                raise ExchangeError(
                    f"the device has no room for the model of peer {self.group}; lower "
                    "the batch (--max-tokens, --batch-size), or train with fewer groups"
                ) from error
            except Exception as error:
                raise SnapshotRejected(f"its model cannot be built ({error})") from error
        if self._dropout:
            _drop_out(module)
        else:
            module.eval()
        return module.requires_grad_(False)


def _drop_out(module: nn.Module) -> None:
    """Put a model into training mode, but for what would change it or mix its examples."""
    for part in module.train().modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            part.eval()


def _adopt(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a module tensors of its own names and shapes, made by ``ready_to_use``.

    This is the training thread: on the CPU the tensors are taken over as they are, and to a GPU
    they are sent without waiting.

    Returns:
        What the module held before, tied tensors once, under the first of their names in sorted
        order: memory that serves nobody any more.
    """
    before: dict[str, Tensor] = {}
    state = module.state_dict(keep_vars=True)
    done = set()
    for name in sorted(state):
        place, tensor = state[name], tensors[name]
        if id(place) in done:
            # Tied: it holds the new numbers already.
            continue
        done.add(id(place))
        if place.is_cuda:
            place.data.copy_(tensor, non_blocking=True)
        else:
            before[name] = place.data
            tensor = tensor.to(place.dtype)
            if tensor.stride() != place.stride():
                # channels_last: other kernels would run.  The next one finds its layout in what
                # this one leaves behind.
                tensor = torch.empty_like(place).copy_(tensor)
            place.data = tensor
    return before


def cuda_devices() -> list[int]:
    """Devices whose random state must be kept apart, besides the CPU."""
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
