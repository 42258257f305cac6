"""How good a model is on images that it does not train on, counted exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from fairseq_codistill.vision.data import batches_of, normalise
from fairseq_codistill.vision.world import World

Precision = Callable[[], AbstractContextManager]


@dataclass(frozen=True)
class Score:
    """What an evaluation found.

    Attributes:
        images: how many there were.
        nll: mean cross-entropy, to base 2.
        top1: percent whose class is the likeliest.
        top5: percent whose class is among the five likeliest.
    """

    images: int
    nll: float
    top1: float
    top5: float


def evaluate(
    model: nn.Module, loader: DataLoader, world: World, precision: Precision = nullcontext
) -> Score:
    """Evaluate on the images of all workers' loaders together.  A collective.

    Workers may have different numbers of images, none among them: nothing is exchanged before
    the end, when each adds its sums.

    Args:
        model: not wrapped for data parallelism; put back into its mode afterwards.
        loader: this worker's share of the images.
        world: the workers.
        precision: what to run the model in.
    """
    training = model.training
    world.share_buffers(model)
    model.eval()
    sums = torch.zeros(4, dtype=torch.float64, device=world.device)
    with torch.inference_mode():
        for images, targets in batches_of(loader, world.device):
            with precision():
                logits = model(normalise(images)).float()
            sums += _sums(logits, targets)
    model.train(training)
    images_seen, nll, top1, top5 = world.sum(sums).tolist()
    return Score(
        images=round(images_seen),
        nll=nll / images_seen / math.log(2),
        top1=100 * top1 / images_seen,
        top5=100 * top5 / images_seen,
    )


def _sums(logits: Tensor, targets: Tensor) -> Tensor:
    """Give images, cross-entropy in nats, hits and hits among the likeliest five."""
    nll = F.cross_entropy(logits, targets, reduction="none").double().sum()
    likeliest = logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]
    first, any_of_five = likeliest[:, 0].sum(), likeliest.sum()
    count = torch.tensor(float(len(targets)), dtype=torch.float64, device=logits.device)
    return torch.stack([count, nll, first.double(), any_of_five.double()])
