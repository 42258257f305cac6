"""A teacher: a peer that never changes, as in ordinary distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation.config import ConfigError
from fairseq_codistill.codistillation.peer import PEER_DTYPES


class Teacher:
    """A trained model, in eval mode.

    Args:
        name: what to call it in errors.
        module: the model, which is this teacher's now.
        like: a parameter of the student; the teacher is on its device.
        dtype: a key of ``PEER_DTYPES``.

    Raises:
        ConfigError: if it holds numbers that are not finite in what it computes in.
    """

    # It is of no update of anybody's, and so never stale.
    update: None = None

    def __init__(self, name: str, module: nn.Module, like: Tensor, *, dtype: str) -> None:
        own = PEER_DTYPES[dtype] or like.dtype
        self.module = module.to(device=like.device, dtype=own).eval().requires_grad_(False)
        for key, tensor in module.state_dict().items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise ConfigError(
                    f"--codistill-teachers {name}: its tensor {key!r:.80} holds numbers that are "
                    f"not finite as {tensor.dtype}; name another checkpoint"
                )
