"""How much sharper a model's logits are in eval mode than with dropout, on the training data.

python results/translation/sharpness.py --data DATA_BIN RUN...

Prints for the last checkpoint of each run's first model: the variance of the eval-mode logits
within a token, and the factor by which the logits with dropout are smaller (the slope of the one
on the other; 1 if dropout only added noise).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import trained
from torch import Tensor, nn

BATCHES = 40


def centred(logits: Tensor) -> Tensor:
    """Take off each row's mean, which the softmax does not see."""
    return logits - logits.mean(dim=1, keepdim=True)


def sharpness(model: nn.Module, batches: list[dict], pad: int) -> tuple[float, float]:
    """Give the variance of the logits in eval mode, and the slope."""
    square = product = count = 0.0
    with torch.no_grad():
        for sample in batches:
            real = sample["target"] != pad
            quiet = centred(model.eval()(**sample["net_input"])[0][real])
            dropping = centred(model.train()(**sample["net_input"])[0][real])
            square += quiet.square().sum().item()
            product += (quiet * dropping).sum().item()
            count += quiet.numel()
    return square / count, product / square


def main() -> None:
    """Print a row for each run."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    print("| run | variance of the eval-mode logits | with dropout, in parts of them |")
    print("|---|---|---|")
    for run in options.runs:
        (model,), batches, pad = trained.load(run, [0], options.data, BATCHES)
        variance, slope = sharpness(model, batches, pad)
        print(f"| {run.name} | {variance:.1f} | {slope:.2f} |", flush=True)


if __name__ == "__main__":
    main()
