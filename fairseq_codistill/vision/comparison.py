"""Trained models side by side on the validation images."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision import checkpoint, data, models
from fairseq_codistill.vision.diagnostics import agreement
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.world import World


def compare(
    images: str,
    checkpoints: Sequence[Path],
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> list[dict[str, Any]]:
    """Tell how well each model does, and how alike each two of them answer.

    Args:
        images: the folder, as in training.
        checkpoints: of models for its classes.
        device: to run them on.
        batch_size: images of a forward pass.
        num_workers: processes that read images.

    Returns:
        For each model its top-1 in percent, for each pair agreement and churn, as shares.

    Raises:
        ConfigError: if a checkpoint or an image cannot be read, or the classes are others.
    """
    folders = data.find(images)
    world = World(0, 1, device)
    answers, groups, updates = {}, {}, {}
    for path in checkpoints:
        there = checkpoint.read(path, "CHECKPOINT")
        if list(there.classes) != list(folders.classes):
            raise ConfigError(
                f"--data {images} has other classes than CHECKPOINT {path}; name the data that "
                "it was trained on"
            )
        config = VisionConfig(
            data=images,
            batch_size=batch_size,
            num_workers=num_workers,
            augmentation=there.settings["augmentation"],
            image_size=there.settings["image_size"],
        )
        model = models.student(there.config).to(device)
        model.load_state_dict(there.model)
        loader = data.evaluation_loader(config, folders.valid, world)
        groups[path], updates[path] = there.run["group"], there.update
        answers[path] = _logits_on(model, data.batches_of(loader, device))
    said: list[dict[str, Any]] = []
    for path, (logits, targets) in answers.items():
        top1 = 100 * float((logits.argmax(dim=1) == targets).double().mean())
        about = {"checkpoint": str(path), "group": groups[path], "update": updates[path]}
        said.append({**about, "images": len(targets), "top1": top1})
    for one, other in itertools.combinations(answers, 2):
        same = agreement(answers[one][0], answers[other][0])
        both = {
            "checkpoints": [str(one), str(other)],
            "groups": [groups[one], groups[other]],
            "updates": [updates[one], updates[other]],
        }
        said.append({**both, "agreement": same, "churn": 1 - same})
    return said


def _logits_on(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Give a model's logits, (images, classes), and the true classes, (images,), on the CPU."""
    model.eval()
    logits, targets = [], []
    with torch.inference_mode():
        for images, target in batches:
            logits.append(model(data.normalise(images)).float().cpu())
            targets.append(target.cpu())
    return torch.cat(logits), torch.cat(targets)
