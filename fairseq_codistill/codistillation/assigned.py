"""A worker of ``codistill launch`` that was given GPUs trains on them or not at all.

Launch asks torch before the first start.  A GPU can be lost later: the group dies, launch starts
it again, and torch then sees no device.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from fairseq_codistill.codistillation.config import ConfigError


def refuse_lost_gpus(environ: Mapping[str, str] = os.environ) -> None:
    """Refuse to train on the CPU where launch has given this process GPUs.

    Raises:
        ConfigError: if it has, and torch can use none.
    """
    # Launch gives an empty list to what trains on the CPU.
    given = environ.get("CUDA_VISIBLE_DEVICES")
    if "CODISTILL_NONCE" in environ and given and not torch.cuda.is_available():
        raise ConfigError(
            f"codistill launch gave this group CUDA_VISIBLE_DEVICES={given}, and torch can use "
            "none of them any more; see what codistill doctor says, and launch again, on the CPU "
            "with --cpu (hydra: common.cpu=true)"
        )
