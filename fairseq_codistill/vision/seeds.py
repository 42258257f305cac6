"""Random numbers as pure functions of where they are used.

Nothing depends on what was drawn before, so that a resumed run draws what an unbroken one does, on
any number of reading processes, and no state of a generator needs saving.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


class Use(enum.IntEnum):
    """What a stream of random numbers is for; each use has its own."""

    ORDER = 0
    AUGMENTATION = 1
    UPDATE = 2
    PART = 3


def stream(use: Use, *numbers: int) -> np.random.SeedSequence:
    """Give the stream for a use and the numbers, >= 0, that tell one such use from another."""
    return np.random.SeedSequence([int(use), *numbers])


def seed(use: Use, *numbers: int) -> int:
    """Give a seed for torch, of 63 bits."""
    return int(stream(use, *numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def drawing(number: int) -> Iterator[None]:
    """Let torch's CPU generator draw from a seed, and afterwards as if nothing had been drawn."""
    generator = torch.default_generator
    before = generator.get_state()
    generator.manual_seed(number)
    try:
        yield
    finally:
        generator.set_state(before)
