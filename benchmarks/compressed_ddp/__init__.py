"""A fairseq --user-dir whose --ddp-backend pytorch_ddp sends compressed gradients, on CPUs too.

With --ddp-comm-hook fp16 by torch's hook for float16, without it by its PowerSGD hook.
"""

from typing import Any

from fairseq import models
from fairseq.distributed import ModuleProxyWrapper
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

# torch's defaults, but that compression begins at once: a benchmark is short.
RANK, FIRST_UPDATES_WHOLE = 1, 10
ONE_BUCKET = 100_000  # MiB


def compressed(args: Any, model: Any, process_group: Any, device: Any) -> Any:
    """Wrap a model as fairseq does, but for the hook, and for devices that it names on CPUs too."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        return model.to(device)  # a criterion
    # In one bucket: the hooks of several send from several threads, and gloo mixes them up.
    wrapped = DistributedDataParallel(
        model.to(device),
        process_group=process_group,
        bucket_cap_mb=ONE_BUCKET,
        broadcast_buffers=args.broadcast_buffers,
    )
    if args.ddp_comm_hook == "fp16":
        wrapped.register_comm_hook(process_group, fp16_compress_hook)
    else:
        state = PowerSGDState(
            process_group,
            matrix_approximation_rank=RANK,
            start_powerSGD_iter=FIRST_UPDATES_WHOLE,
        )
        wrapped.register_comm_hook(state, powerSGD_hook)
    return ModuleProxyWrapper(wrapped)


models.DistributedFairseqModel = compressed
