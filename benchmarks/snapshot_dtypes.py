"""What snapshots weigh in each dtype, and what it does to the peers that are made of them.

python benchmarks/snapshot_dtypes.py --data DATA_BIN RUN...

For each run of two groups the last checkpoint of group 0 travels in each dtype.  The numbers are:
the tensor file's bytes; the mean squared change of the logits on the validation set, in parts of
the mean squared distance between the two groups' logits, which is what training works with; and
the validation NLL (bits) of the model that arrives.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import measure
import torch
from fairseq import checkpoint_utils
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_codistill.exchange import WIRE_DTYPES, copy_out
from fairseq_codistill.exchange.tensors import decode, encode
from fairseq_codistill.tasks import codistill_translation  # noqa: F401 - registers the task

COLUMNS = ["run", "dtype", "bytes", "of float32", "change, in parts of D", "NLL"]


def load(run: Path, group: int, data: Path) -> tuple[nn.Module, list[dict], int]:
    """Give a group's last model, the validation set in batches, and padding's index."""
    own = {"data": str(data), "codistill_num_groups": 1, "codistill_group": 0}
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(run / f"group-{group}" / "checkpoint_last.pt")], arg_overrides=own
    )
    task.load_dataset("valid")
    iterator = task.get_batch_iterator(task.dataset("valid"), max_tokens=4000)
    batches = list(iterator.next_epoch_itr(shuffle=False))
    return model.eval(), batches, task.target_dictionary.pad()


@torch.no_grad()
def outputs(model: nn.Module, batches: list[dict], pad: int) -> tuple[list[Tensor], float]:
    """Give the logits of all target tokens by batch, and the NLL in bits."""
    found, nll, tokens = [], 0.0, 0
    for sample in batches:
        real = sample["target"] != pad
        found.append(model(**sample["net_input"])[0][real])
        target = sample["target"][real]
        nll += F.cross_entropy(found[-1], target, reduction="sum").item()
        tokens += len(target)
    return found, nll / tokens / math.log(2)


def distance(ours: list[Tensor], others: list[Tensor]) -> float:
    """Mean over tokens and classes of the squared difference."""
    pairs = list(zip(ours, others, strict=True))
    total = sum((a - b).square().sum(dtype=torch.float64).item() for a, b in pairs)
    return total / sum(a.numel() for a in ours)


def travelled(model: nn.Module, dtype: str) -> int:
    """Put a model's weights through a snapshot; give the file's bytes."""
    tensors, aliases = copy_out(model.state_dict(), WIRE_DTYPES[dtype])
    data = encode(tensors, dtype)
    model.load_state_dict(decode(data, aliases, dtype))
    return len(data)


def measured(run: Path, data: Path) -> list[dict[str, object]]:
    """Measure one run; give its rows of the table."""
    model, batches, pad = load(run, 0, data)
    exact, _ = outputs(model, batches, pad)
    other, _ = outputs(load(run, 1, data)[0], batches, pad)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    whole = sum(parameter.numel() * 4 for parameter in model.parameters())
    rows: list[dict[str, object]] = []
    for dtype in WIRE_DTYPES:
        model.load_state_dict(weights)
        size = travelled(model, dtype)
        found, nll = outputs(model, batches, pad)
        change = distance(found, exact) / distance(other, exact)
        row: dict[str, object] = {"run": run.name, "dtype": dtype, "bytes": size}
        row |= {"of float32": f"{size / whole:.2f}", "change, in parts of D": f"{change:.1e}"}
        rows.append(row | {"NLL": f"{nll:.4f}"})
    return rows


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    measure.say_machine()
    rows = [row for run in options.runs for row in measured(run, options.data)]
    measure.write(options.json, rows)
    print(measure.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
