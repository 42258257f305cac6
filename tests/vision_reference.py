"""Algorithm 1 for images in one process, in float64, plainly: what real runs are held against.

Nothing of fairseq_codistill is used.  The network is torchvision's, the images are read with
Pillow and put in order with NumPy, the weights are those of torch's generator at each seed.
"""

import copy
from pathlib import Path

import numpy as np
import torch
import torchvision
from harness import SEED_STEP
from PIL import Image
from torch.nn import functional as F

# Much batch norm, and small.
ARCH = "shufflenet_v2_x0_5"


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


def initial(seed: int, classes: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torchvision.models.get_model(ARCH, num_classes=classes)


def algorithm_1(
    data: Path,
    updates: int,
    n: int,
    workers: int,
    update_freq: int,
    batch_size: int,
    alpha: float,
    gamma: float,
    lr: float,
) -> tuple[list[dict[str, torch.Tensor]], list[list[dict[str, float]]]]:
    """Train n models; gives their weights and buffers, and each one's losses at each update."""
    images, targets = images_of(data / "train")
    classes = int(targets.max()) + 1
    models = [initial(1 + SEED_STEP * i, classes).double() for i in range(n)]
    per_update = workers * update_freq * batch_size
    per_epoch = len(images) // per_update

    losses: list[list[dict[str, float]]] = [[] for _ in range(n)]
    for k in range(updates):
        epoch, step = k // per_epoch + 1, k % per_epoch
        alpha_k = alpha * gamma ** (epoch - 1)
        peers = [copy.deepcopy(model).eval() for model in models]
        gradients = []
        for i in range(n):  # for i = 1, ..., n
            order = permutation(1 + SEED_STEP * i, epoch, len(images))
            mine = order[step * per_update : (step + 1) * per_update]
            parts = mine.reshape(update_freq, workers, batch_size)
            # Each worker normalises its own batches; the first one's running statistics count.
            replicas = [models[i], *(copy.deepcopy(models[i]) for _ in range(workers - 1))]
            total = cross_entropy = divergence = 0.0
            gradient = None
            for micro_batches in parts:
                for replica, part in zip(replicas, micro_batches, strict=True):
                    x, y = images[part], targets[part]
                    student = replica.train()(x)
                    nll = F.cross_entropy(student, y)
                    distance = sum(
                        (peers[j](x).detach() - student).square().mean(dim=1).mean() / (n - 1)
                        for j in range(n)
                        if j != i
                    )
                    loss = (nll + alpha_k * distance) / len(replicas) / update_freq
                    share = torch.autograd.grad(loss, list(replica.parameters()))
                    gradient = (
                        share
                        if gradient is None
                        else [a + b for a, b in zip(gradient, share, strict=True)]
                    )
                    total += loss.item()
                    cross_entropy += nll.item() / len(replicas) / update_freq
                    divergence += distance.item() / len(replicas) / update_freq
            gradients.append(gradient)
            losses[i].append(
                {
                    "loss": total / np.log(2),
                    "nll_loss": cross_entropy / np.log(2),
                    "codistill_loss": divergence,
                    "codistill_alpha": alpha_k,
                }
            )
        with torch.no_grad():  # all right-hand sides used update k
            for model, gradient in zip(models, gradients, strict=True):
                for parameter, g in zip(model.parameters(), gradient, strict=True):
                    parameter -= lr * g
    return [model.state_dict() for model in models], losses
