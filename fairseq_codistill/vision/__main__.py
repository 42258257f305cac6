"""``python -m fairseq_codistill.vision``: from the command line to the exit status."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_codistill.sentences import errors_as_sentences
from fairseq_codistill.vision import data, models, plan
from fairseq_codistill.vision.flags import parse
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.train import Trainer, order_of
from fairseq_codistill.vision.world import divided, joined, size_of_world


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, or tell what training would do; give the exit status."""
    with errors_as_sentences():
        config = parse(sys.argv[1:] if arguments is None else arguments)
        if config.dry_run is not None:
            _tell(config, config.dry_run or size_of_world(os.environ))
            return 0
        with joined(config.cpu) as world:
            if config.swaps_predictions:
                place = divided(world, config.codistill_num_groups)
                config = config.of_group(place.group)
                Trainer(config, place.world, place.counterparts).run()
            else:
                Trainer(config, world).run()
    return 0


def _tell(config: VisionConfig, workers: int) -> None:
    """Check settings, and data if there are any; print what so many workers would do."""
    # For its check of the name: a dry run may come before the data.
    models.describe(config.arch, 1, config.width, config.image_size)
    updates = None
    if Path(config.data).exists():
        order = order_of(config, len(data.find(config.data).train), workers)
        order.check()
        updates = order.updates_per_epoch
    else:
        print(f"--data {config.data} is not there, so updates are not counted")
    if config.codistils:
        config.listens_to()  # It says what is wrong with the topology.
    print("\n".join(plan.describe(config, workers, updates)))


if __name__ == "__main__":
    sys.exit(main())
