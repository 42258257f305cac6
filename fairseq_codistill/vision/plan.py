"""What a command will do, in numbers: batches, updates, schedules."""

from __future__ import annotations

from fairseq_codistill.vision.settings import VisionConfig


def describe(config: VisionConfig, workers: int, updates_per_epoch: int | None) -> list[str]:
    """Say it in lines for people.

    Args:
        config: checked settings.
        workers: of each group.
        updates_per_epoch: None if the images are not at hand to be counted.
    """
    groups = config.codistill_num_groups
    images = config.batch_size * workers * config.update_freq
    lines = [
        f"effective batch: {workers} worker(s) x {config.batch_size} images x --update-freq "
        f"{config.update_freq} = {images} images an update for each model, {images * groups} for "
        f"{groups} group(s)"
    ]
    if updates_per_epoch is not None:
        end = updates_in_all(config, updates_per_epoch)
        lines.append(f"updates: {updates_per_epoch} an epoch, {end} in all for each model")
    rate = config.learning_rate(images)
    said = f"learning rate: {config.lr_schedule}, {rate.peak:g}"
    if config.warmup_epochs:
        said += f" after {config.warmup_epochs:g} epochs of warm-up from {rate.start:g}"
    if config.lr_schedule == "goyal":
        falls = ", ".join(f"{m:g}" for m in config.milestones)
        said += f", times {config.lr_drop:g} after epochs {falls}"
    lines.append(f"{said}; {config.epochs} epochs")
    decays = config.weight_decays()
    said = f"weight decay: {decays.first:g}"
    for epoch, decay in zip(decays.milestones, decays.then, strict=False):
        said += f", {decay:g} after epoch {epoch:g}"
    lines.append(said)
    if config.codistils:
        how = f"{config.codistill_mode}, every {config.codistill_interval} updates"
        if config.swaps_predictions:
            how = "predictions of the same batches, every update"
        if groups == 1:
            how = "no peers"
        elif config.codistill_topology != "all":
            how += f", topology {config.codistill_topology}"
        if config.teachers:
            how += f"; teachers: {', '.join(config.teachers)}"
        alpha = "by classes" if config.codistill_alpha is None else f"{config.codistill_alpha:g}"
        lines.append(f"codistillation: {how}; alpha {alpha}, {config.codistill_alpha_schedule}")
    return lines


def chosen_alpha(config: VisionConfig, classes: int) -> str:
    """Say what --codistill-alpha is where the user gave none."""
    return (
        f"--codistill-alpha is not given: {config.codistill_alpha:g}, for {classes} classes "
        "(min(1, sqrt(classes / 1000)))"
    )


def updates_in_all(config: VisionConfig, updates_per_epoch: int) -> int:
    """Give the updates that a model makes from its beginning to its end."""
    end = config.epochs * updates_per_epoch
    return end if config.max_update is None else min(end, config.max_update)


def why_it_ends(config: VisionConfig, updates_per_epoch: int) -> str:
    """Return what ends training: one of ``records.ended.REASONS``."""
    ends_early = updates_in_all(config, updates_per_epoch) < config.epochs * updates_per_epoch
    return "max-update" if ends_early else "max-epoch"
