"""What else torch's restricted unpickler must know to read fairseq's checkpoints.

From torch 2.6 on ``torch.load`` reads tensors and plain containers only.  A fairseq checkpoint
holds the command line as an ``argparse.Namespace``, and of a run with ``--eval-bleu`` the counts of
n-grams as numpy arrays, in the state of its meters.  All of these are plain data.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def allowed() -> list[Any]:
    """Give them, as ``torch.serialization.add_safe_globals`` and ``safe_globals`` take them."""
    array, number = np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]
    # Under the names of numpy 2 and of numpy 1, whichever wrote the checkpoint.
    modules = ("numpy._core.multiarray", "numpy.core.multiarray")
    return [
        argparse.Namespace,
        *[(array, f"{module}._reconstruct") for module in modules],
        *[(number, f"{module}.scalar") for module in modules],
        np.ndarray,
        np.dtype,
        *[type(np.dtype(kind)) for kind in ("bool", "int32", "int64", "float32", "float64")],
    ]


@contextmanager
def allowing(kinds: Sequence[Any]) -> Iterator[None]:
    """Let torch's restricted unpickler know more for a while, and leave its list as it was.

    ``torch.serialization.safe_globals`` alone would remove what was in the list before.
    """
    before = torch.serialization.get_safe_globals()
    try:
        with torch.serialization.safe_globals(list(kinds)):
            yield
    finally:
        torch.serialization.add_safe_globals(before)
