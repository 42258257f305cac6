"""Algorithm 1 for images in one process, in float64, plainly: what real runs are held against.

Nothing of fairseq_codistill is used: the network resnet8_cifar is written out here by the
formulas, images are read with Pillow and put in order with NumPy.  Only the weights it begins with
come from outside.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from harness import SEED_STEP
from PIL import Image
from torch.nn import functional as F

ARCH = "resnet8_cifar"
State = dict[str, torch.Tensor]


def images_of(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """All images of a folder of classes, normalised, and their classes' numbers."""
    pixels, targets = [], []
    for number, name in enumerate(sorted(path.name for path in folder.iterdir())):
        for path in sorted((folder / name).iterdir()):
            pixels.append(np.asarray(Image.open(path).convert("RGB")) / 255)
            targets.append(number)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normal = (np.stack(pixels) - mean) / std
    return torch.tensor(normal).permute(0, 3, 1, 2), torch.tensor(targets)


def permutation(seed: int, epoch: int, images: int) -> np.ndarray:
    """The order of a group's images in an epoch, from 1."""
    return np.random.default_rng(np.random.SeedSequence([0, seed, epoch])).permutation(images)


def batch_norm(x: torch.Tensor, state: State, name: str, running: State | None) -> torch.Tensor:
    """With the batch's statistics, noted in ``running``; with the state's if that is None."""
    if running is None:
        mean, var = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    else:
        mean, var = x.mean(dim=(0, 2, 3)), x.var(dim=(0, 2, 3), unbiased=False)
        unbiased = x.detach().var(dim=(0, 2, 3), unbiased=True)
        for key, new in (("mean", mean.detach()), ("var", unbiased)):
            old = running.get(f"{name}.running_{key}", state[f"{name}.running_{key}"])
            running[f"{name}.running_{key}"] = 0.9 * old + 0.1 * new
    normal = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
    return normal * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]


def resnet8(x: torch.Tensor, state: State, running: State | None) -> torch.Tensor:
    """Logits; in training if ``running`` is there to note statistics in."""

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return batch_norm(x, state, name, running)

    x = norm(F.conv2d(x, state["conv1.weight"], padding=1), "bn1").relu()
    for block, stride in enumerate((1, 2, 2)):
        at = f"blocks.{block}"
        y = F.conv2d(x, state[f"{at}.conv1.weight"], stride=stride, padding=1)
        y = F.conv2d(norm(y, f"{at}.bn1").relu(), state[f"{at}.conv2.weight"], padding=1)
        if block > 0:
            x = F.conv2d(x, state[f"{at}.shortcut.0.weight"], stride=stride)
            x = norm(x, f"{at}.shortcut.1")
        x = (norm(y, f"{at}.bn2") + x).relu()
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def algorithm_1(
    data: Path,
    initial: list[State],
    updates: int,
    workers: int,
    update_freq: int,
    batch_size: int,
    alpha: float,
    gamma: float,
    lr: float,
    predictions: bool = False,
    every: int = 1,
    ring: bool = False,
    teachers: Sequence[State] = (),
) -> tuple[list[State], list[list[dict[str, float]]]]:
    """Train n models from their initial states; gives their last ones, and each one's losses.

    Peers are run in eval mode, or, if it is predictions that are swapped, in training mode on the
    batches of the first model, which are everyone's.  In a ring each listens to the one before.
    Teachers are peers of everyone that never change.
    """
    images, targets = images_of(data / "train")
    n = len(initial)
    listens_to = [[(i - 1) % n] if ring else [j for j in range(n) if j != i] for i in range(n)]
    models = [{k: v.double() for k, v in state.items()} for state in initial]
    frozen = [{k: v.double() for k, v in state.items()} for state in teachers]
    trained = [name for name in models[0] if name.endswith(("weight", "bias"))]
    per_update = workers * update_freq * batch_size
    per_epoch = len(images) // per_update

    losses: list[list[dict[str, float]]] = [[] for _ in range(n)]
    for k in range(updates):
        epoch, step = k // per_epoch + 1, k % per_epoch
        alpha_k = alpha * gamma ** (epoch - 1)
        moved = []
        for i in range(n):  # for i = 1, ..., n
            order = permutation(1 + SEED_STEP * i * (not predictions), epoch, len(images))
            mine = order[step * per_update : (step + 1) * per_update]
            leaves = {name: models[i][name].clone().requires_grad_() for name in trained}
            # Each worker normalises its own batches; the first one's running statistics count.
            statistics: list[State] = [{} for _ in range(workers)]
            cross_entropy = divergence = torch.zeros(())
            for micro_batches in mine.reshape(update_freq, workers, batch_size):
                for running, part in zip(statistics, micro_batches, strict=True):
                    x, y = images[part], targets[part]
                    student = resnet8(x, models[i] | leaves, running)
                    nll = F.cross_entropy(student, y)
                    cross_entropy = cross_entropy + nll / (workers * update_freq)
                    others = [*(models[j] for j in listens_to[i]), *frozen]
                    for other in others:
                        peer = resnet8(x, other, {} if predictions else None)
                        mse = (peer - student).square().mean() / len(others)
                        divergence = divergence + mse / (workers * update_freq)
            # With the divergence at every K-th update only, it counts K times there.
            weight = 0 if k % every else every * alpha_k
            loss = cross_entropy + weight * divergence
            gradients = torch.autograd.grad(loss, list(leaves.values()))
            steps = zip(trained, gradients, strict=True)
            moved.append(
                models[i] | statistics[0] | {name: models[i][name] - lr * g for name, g in steps}
            )
            losses[i].append(
                {
                    "loss": loss.item() / np.log(2),
                    "nll_loss": cross_entropy.item() / np.log(2),
                    "codistill_loss": divergence.item(),
                    "codistill_alpha": alpha_k,
                }
            )
        models = moved  # all right-hand sides used update k
    return models, losses
