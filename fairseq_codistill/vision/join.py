"""Joining the other groups: what a group of images says of itself, and whom it learns from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fairseq_codistill import sigterm
from fairseq_codistill.codistillation import (
    BuildModel,
    Codistillation,
    CodistillationConfig,
    ConfigError,
    Group,
    PredictionExchange,
    Seam,
    Teacher,
    cuda_devices,
)
from fairseq_codistill.vision import checkpoint, models
from fairseq_codistill.vision.data import Folders
from fairseq_codistill.vision.settings import VisionConfig


def load_teachers(
    config: VisionConfig,
    folders: Folders,
    model: nn.Module,
    described: dict[str, Any],
    memory_format: torch.memory_format,
) -> list[Teacher]:
    """Give the teachers: models of checkpoints of this program's, for the same classes.

    Args: those of ``join``.

    Raises:
        ConfigError: if a checkpoint cannot be read, or does not fit.
    """
    like = next(model.parameters())
    build = _build(described, config.image_size, like, memory_format)
    dtype = config.codistill_peer_dtype
    return [
        Teacher(path, _load(path, folders, build), like, dtype=dtype) for path in config.teachers
    ]


def join(
    config: VisionConfig,
    folders: Folders,
    model: nn.Module,
    described: dict[str, Any],
    memory_format: torch.memory_format,
    teachers: Sequence[Teacher],
    counterparts: dist.ProcessGroup | None,
    update: int,
    updates: int,
) -> Seam | None:
    """Join the other groups; a collective of the group's workers.

    Args:
        config: checked settings.
        folders: the data.
        model: this group's.
        described: its configuration.
        memory_format: of the weights.
        teachers: from ``load_teachers``.
        counterparts: if groups swap predictions, the one worker of each that this one swaps with.
        update: updates made so far.
        updates: of the whole run.

    Returns:
        This group's side of codistillation, or None if there is nobody to learn from.

    Raises:
        ConfigError: if groups do not fit together.
        ExchangeError: if the exchange cannot be used.
    """
    settings = CodistillationConfig.of(config)
    if not settings.codistils:
        return None
    if counterparts is not None:
        return PredictionExchange(settings, counterparts, update)
    like = next(model.parameters())
    group = Group(
        seed=config.seed,
        vocabulary=folders.digest,
        model=described,
        build=_build(described, config.image_size, like, memory_format),
        like=like,
    )
    codistillation = Codistillation(
        settings, group, model.state_dict, teachers, Path(config.save_dir), updates
    )
    if codistillation.workers.leader:
        sigterm.end_in_order(codistillation.say_goodbye)
    return codistillation


def _build(
    described: dict[str, Any], image_size: int, like: Tensor, memory_format: torch.memory_format
) -> BuildModel:
    """Give what makes a model of a configuration."""
    return lambda config, tensors: models.peer(
        config, described, image_size, like, tensors, memory_format
    )


def _load(path: str, folders: Folders, build: BuildModel) -> nn.Module:
    """Give the model of a checkpoint."""
    flag = "--codistill-teachers"
    read = checkpoint.read(Path(path), flag)
    if read.classes != list(folders.classes):
        raise ConfigError(
            f"{flag} {path} was trained on other classes ({', '.join(read.classes):.80}) than this "
            f"data has ({', '.join(folders.classes):.80}); name another checkpoint"
        )
    try:
        # Building draws random numbers, which the student's training must not notice.
        with torch.random.fork_rng(devices=cuda_devices()):
            module = build(read.config, read.model)
    except ValueError as error:
        raise ConfigError(f"{flag} {path}: {error}; name another checkpoint") from error
    module.load_state_dict(read.model)
    return module
