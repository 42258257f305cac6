"""The workers of one group agreeing on small integers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta

import torch
from torch import distributed as dist

from fairseq_codistill.exchange import ExchangeError


class Workers:
    """The workers that train this group's model: the whole of torch.distributed's world, or one.

    Making one is a collective: all workers of the group do it at the same point.

    Args:
        timeout: seconds that the slowest worker may lag behind the others.

    Raises:
        ExchangeError: if the workers cannot reach each other.
    """

    def __init__(self, timeout: float) -> None:
        self._process_group: dist.ProcessGroup | None = None
        self.rank, self.size = 0, 1
        # Seconds that this worker has waited for others of its group.
        self.waited = 0.0
        if dist.is_available() and dist.is_initialized():
            self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size > 1:
            # Apart from the gradients' process group and on the CPU, so that agreeing neither
            # waits for a GPU nor mixes with the framework's collectives.
            try:
                group = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout))
            except RuntimeError as error:
                said = " ".join(str(error).split())
                raise ExchangeError(
                    "the workers of this group cannot reach each other over gloo, with which they "
                    f"agree on swaps ({said:.200}); on each node name the network interface that "
                    "the others can reach in GLOO_SOCKET_IFNAME, as in NCCL_SOCKET_IFNAME"
                ) from error
            # An integer is what a rank outside the group is given, and there is none.
            assert not isinstance(group, int)
            self._process_group = group

    @property
    def leader(self) -> bool:
        """Whether this worker acts for the group in the exchange."""
        return self.rank == 0

    def least(self, numbers: Sequence[int]) -> list[int]:
        """Give, for each place, the least of all workers' numbers.  A collective."""
        if self._process_group is None or not numbers:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.int64)
        start = time.perf_counter()
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN, group=self._process_group)
        self.waited += time.perf_counter() - start
        return [int(number) for number in tensor]

    def close(self) -> None:
        """End; there is nothing left to agree on."""
        if self._process_group is not None:
            dist.destroy_process_group(self._process_group)
            self._process_group = None
