"""How much of the divergence of two groups is an offset of all logits, which the softmax ignores.

python results/translation/offset.py --data DATA_BIN RUN...

Prints for the last checkpoints of each run's first two models, in eval mode, on the training data:
the mean squared difference of their logits, the part of it that is a difference of the means over
the vocabulary, and these means.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
import trained
from torch import nn

BATCHES = 20


def parts(models: Sequence[nn.Module], batches: list[dict], pad: int) -> list[float]:
    """Give D, the offset's part of it, and each model's mean logit, as means over the tokens."""
    sums, tokens = torch.zeros(4), 0
    with torch.no_grad():
        for sample in batches:
            real = sample["target"] != pad
            first, second = (model.eval()(**sample["net_input"])[0][real] for model in models)
            difference, means = first - second, [first.mean(dim=1), second.mean(dim=1)]
            offset = difference.mean(dim=1).square()
            rows = [difference.square().mean(dim=1), offset, *means]
            sums += torch.stack([row.sum() for row in rows])
            tokens += len(difference)
    return (sums / tokens).tolist()


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    print("| run | D | of it the offset | mean logit of each model |")
    print("|---|---|---|---|")
    for run in options.runs:
        d, offset, one, two = parts(*trained.load(run, [0, 1], options.data, BATCHES))
        print(f"| {run.name} | {d:.2f} | {offset:.3f} | {one:.2f}, {two:.2f} |", flush=True)


if __name__ == "__main__":
    main()
