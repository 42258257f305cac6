"""A run's last models and batches of its training data, for the scripts that look into them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils, utils
from torch import nn

from fairseq_codistill.tasks import codistill_translation  # noqa: F401 - registers the task


def load(
    run: Path, groups: Sequence[int], data: str, batches: int
) -> tuple[list[nn.Module], list[dict[str, Any]], int]:
    """Give the last model of each of these groups, batches, and the index of padding."""
    models, _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(run / f"group-{group}" / "checkpoint_last.pt") for group in groups],
        arg_overrides={"data": data, "codistill_num_groups": 1, "codistill_group": 0},
    )
    task.load_dataset("train")
    utils.set_torch_seed(1)
    iterator = task.get_batch_iterator(task.dataset("train"), max_tokens=400, seed=1)
    drawn = list(iterator.next_epoch_itr(shuffle=True))[:batches]
    return models, drawn, task.target_dictionary.pad()
