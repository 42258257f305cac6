"""Half precision where fairseq cannot train in it, which it says with a traceback."""

from importlib.util import find_spec

import torch

from fairseq_codistill.codistillation import ConfigError


def check(*, fp16: bool, flat: bool, tpu: bool) -> None:
    """Make sure that there is a device for the half precision that was asked for.

    Args:
        fp16: train in float16.
        flat: fairseq keeps its float32 copy of the weights in one tensor, of a GPU.
        tpu: train on a TPU.

    Raises:
        ConfigError: if there is none.
    """
    if tpu and find_spec("torch_xla") is None:
        raise ConfigError(
            "--bf16 and --memory-efficient-bf16 mean a TPU to fairseq-train, and torch_xla, which "
            "that needs, is not installed; leave them out, or on a GPU give --amp or start with "
            "fairseq-hydra-train and common.bf16=true"
        )
    if fp16 and flat and not _has_gpu():
        raise ConfigError(
            "--fp16 needs a GPU, and torch finds none; leave it out, or hand this process a GPU"
        )


def _has_gpu() -> bool:
    """Return whether torch gives what fairseq asks it for: the GPU of this process."""
    try:
        torch.cuda.current_device()
    except (RuntimeError, AssertionError):
        # The second is how a build of torch without CUDA says so.
        return False
    return True
