"""The optimizer of a group's model, and which of its parameters decay."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fairseq_codistill.vision.settings import VisionConfig

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def optimizer_of(model: nn.Module, config: VisionConfig) -> torch.optim.SGD:
    """Give SGD with a group of the parameters that decay, and one of the others, if there are any.

    Learning rate and weight decay are 0 in it: they are set before each update.

    Args:
        model: what it is to train.
        config: checked settings.
    """
    norms = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMS)
        for parameter in module.parameters(recurse=False)
    }
    decaying: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in model.parameters():
        exempt = id(parameter) in norms and not config.norm_weight_decay
        (others if exempt else decaying).append(parameter)
    groups: list[dict[str, Any]] = [{"params": decaying, "decays": True}]
    if others:
        groups.append({"params": others, "decays": False})
    return torch.optim.SGD(
        groups, lr=0.0, momentum=config.momentum, nesterov=config.nesterov, weight_decay=0.0
    )
