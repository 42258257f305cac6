"""What ``python -m fairseq_codistill.vision`` does: it trains, or tells what training would do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from fairseq_codistill.vision import data, models, plan
from fairseq_codistill.vision.flags import parse
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.train import Trainer, order_of
from fairseq_codistill.vision.world import divided, joined, size_of_world


def run(arguments: Sequence[str]) -> None:
    """Train, or tell what training would do.

    Raises:
        ConfigError: if settings, data and checkpoint are not as they should be.
        ExchangeError: if something else goes wrong between groups.
        SystemExit: with status 2, after argparse's message, if a flag is unknown.
    """
    config = parse(arguments)
    if config.dry_run is not None:
        _tell(config, config.dry_run or size_of_world(os.environ))
        return
    with joined(config.cpu) as world:
        if config.swaps_predictions:
            place = divided(world, config.codistill_num_groups)
            config = config.of_group(place.group)
            Trainer(config, place.world, place.counterparts).run()
        else:
            Trainer(config, world).run()


def _tell(config: VisionConfig, workers: int) -> None:
    """Check settings, and data if there are any; print what so many workers would do."""
    # For its check of the name: a dry run may come before the data.
    described = models.describe(config.arch, 1, config.width, config.image_size)
    models.check_image_size(described, config.image_size)
    updates = None
    chosen = []
    if Path(config.data).exists():
        folders = data.find(config.data)
        classes = len(folders.classes)
        if config.codistils and config.codistill_alpha is None:
            config = config.for_classes(classes)
            chosen = [plan.chosen_alpha(config, classes)]
        order = order_of(config, len(folders.train), workers)
        order.check()
        updates = order.updates_per_epoch
    else:
        print(f"--data {config.data} is not there, so updates are not counted")
    if config.codistils:
        config.listens_to()  # It says what is wrong with the topology.
    print("\n".join([*plan.describe(config, workers, updates), *chosen]))
