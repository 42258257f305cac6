"""The workers of a group as torchrun, or launch in its stead, starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.codistillation.assigned import refuse_lost_gpus

# The first worker may write a checkpoint, or read a large folder, while the others wait for it.
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class World:
    """One group's workers, as one of them sees them.

    Attributes:
        rank: of this worker, from 0.
        size: how many there are.
        device: where this one computes.
        process_group: theirs; None for all the processes that were started together.
    """

    rank: int
    size: int
    device: torch.device
    process_group: dist.ProcessGroup | None = None

    @property
    def leader(self) -> bool:
        """Whether this worker writes logs and checkpoints."""
        return self.rank == 0

    def sum(self, tensor: Tensor) -> Tensor:
        """Give the sum over all workers; in place.  A collective."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self.process_group)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """Give every worker's value, a small one, to all of them.  A collective."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.process_group)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give all workers the leader's buffers, which are the model's.  A collective.

        In training each worker's batch norm sees other images.
        """
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, group=self.process_group, group_src=0)


@dataclass(frozen=True)
class Place:
    """Where a worker is if all groups were started together, as one world.

    Attributes:
        world: the workers of its group.
        group: which group.
        counterparts: the workers of the same rank, one of each group, in the groups' order.
    """

    world: World
    group: int
    counterparts: dist.ProcessGroup


def divided(world: World, groups: int, environ: Mapping[str, str] = os.environ) -> Place:
    """Divide all workers into groups, the first ones into the first group.  A collective.

    Raises:
        ConfigError: if they do not divide, or are of one group alone.
    """
    # What launch tells each of its groups.
    if "CODISTILL_NONCE" in environ:
        raise ConfigError(
            "--codistill-exchange predictions: codistill launch starts each group by itself, and "
            "these groups are one world; start the workers of all together, with torchrun"
        )
    if world.size % groups:
        raise ConfigError(
            f"--codistill-num-groups {groups}: {world.size} worker(s) were started, which do not "
            "divide into so many groups; with --codistill-exchange predictions start those of "
            "all groups together, with torchrun"
        )
    size = world.size // groups
    group, rank = divmod(world.rank, size)
    # Every process takes part in making every process group, and is given the one that it is in.
    own, _ = dist.new_subgroups_by_enumeration(
        [[size * g + r for r in range(size)] for g in range(groups)], timeout=PATIENCE
    )
    across, _ = dist.new_subgroups_by_enumeration(
        [[size * g + r for g in range(groups)] for r in range(size)], timeout=PATIENCE
    )
    # An integer is what a process outside all of them is given, and there is none.
    assert isinstance(own, dist.ProcessGroup)
    assert isinstance(across, dist.ProcessGroup)
    return Place(World(rank, size, world.device, own), group, across)


def size_of_world(environ: Mapping[str, str]) -> int:
    """Give how many workers were started.

    Raises:
        ConfigError: if what says so is no number.
    """
    return _number(environ, "WORLD_SIZE", 1)


@contextmanager
def joined(cpu: bool, environ: Mapping[str, str] = os.environ) -> Iterator[World]:
    """Be one of the group's workers; ``cpu`` keeps off the GPU.

    Raises:
        ConfigError: if torchrun's variables are not all there, or there are too few GPUs.
    """
    size, rank = size_of_world(environ), _number(environ, "RANK", 0)
    device = _device(cpu, _number(environ, "LOCAL_RANK", 0))
    if size == 1:
        yield World(0, 1, device)
        return
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        if name not in environ:
            raise ConfigError(
                f"WORLD_SIZE={size} without {name}: start workers with codistill launch or "
                "torchrun, or unset WORLD_SIZE"
            )
    backend = "gloo" if device.type == "cpu" else "nccl"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield World(rank, size, device)
    # Not after an error: NCCL would wait here for workers that wait for this one, and nobody would
    # read what is wrong.  The end of the process closes its connections.
    dist.destroy_process_group()


def _device(cpu: bool, local_rank: int) -> torch.device:
    if not cpu:
        refuse_lost_gpus()
    if cpu or not torch.cuda.is_available():
        return torch.device("cpu")
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"LOCAL_RANK={local_rank}: this machine has {torch.cuda.device_count()} GPU(s); start "
            "no more workers than that, or give --cpu"
        )
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device


def _number(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"{name}={text} is no number; torchrun or codistill launch sets it")
    return int(text)
