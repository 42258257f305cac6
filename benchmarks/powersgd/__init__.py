"""A fairseq --user-dir that compresses the gradients of pytorch_ddp with torch's PowerSGD hook."""

from typing import Any

from fairseq import models
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook

# torch's defaults, but that compression begins at once: a benchmark is short.
RANK, FIRST_UPDATES_WHOLE = 1, 10

_plain = models.DistributedFairseqModel


def compressed(args: Any, model: Any, process_group: Any, device: Any) -> Any:
    """Wrap a model as fairseq does, and register the hook."""
    wrapped = _plain(args, model, process_group, device)
    if any(parameter.requires_grad for parameter in model.parameters()):
        state = PowerSGDState(
            process_group,
            matrix_approximation_rank=RANK,
            start_powerSGD_iter=FIRST_UPDATES_WHOLE,
        )
        wrapped.module.register_comm_hook(state, powerSGD_hook)
    return wrapped


models.DistributedFairseqModel = compressed
