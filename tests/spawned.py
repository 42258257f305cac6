"""fairseq-train as it runs on several GPUs, one spawned process each, here with CPU workers.

fairseq spawns only where it counts GPUs; this calls what it would call then.
"""

import sys

from fairseq_cli.train import main  # isort: skip - it sets up logging, and must be first to

import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed.utils import distributed_main

if __name__ == "__main__":
    args = options.parse_args_and_arch(options.get_training_parser(), sys.argv[1:])
    cfg = convert_namespace_to_omegaconf(args)
    cfg.distributed_training.distributed_rank = None
    workers = cfg.distributed_training.distributed_world_size
    torch.multiprocessing.spawn(
        distributed_main, args=(main, cfg, {"start_rank": 0}), nprocs=workers
    )
