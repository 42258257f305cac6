"""The paper's diagnostics: how far a model has come, and how alike two models' answers are.

    python -m fairseq_codistill.vision.diagnostics --data IMAGEFOLDER CHECKPOINT CHECKPOINT...

compares trained models on the validation images: agreement, which is the share of images that
two models give the same class, and prediction churn, which is the rest (Anil et al. 2018).
``codistill report`` reads RUN/agreement.jsonl; lines that later checkpoints add there make a curve.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.sentences import errors_as_sentences
from fairseq_codistill.vision.needs import check_torchvision

PROGRAM = "python -m fairseq_codistill.vision.diagnostics"


class Distance:
    """How far a model's parameters are from where they began (paper, Figure 1c).

    Args:
        model: as it was initialised.
    """

    def __init__(self, model: nn.Module) -> None:
        self._start = [parameter.detach().clone() for parameter in model.parameters()]

    def __call__(self, model: nn.Module) -> float:
        """Give the Euclidean norm of the difference over all parameters."""
        pairs = zip(model.parameters(), self._start, strict=True)
        squares = [(now.detach() - then).double().square().sum() for now, then in pairs]
        return float(torch.stack(squares).sum().sqrt())


def agreement(one: Tensor, other: Tensor) -> float:
    """Give the share of images that two models give the same class.

    Args:
        one: logits of shape (images, classes).
        other: the same, of another model on the same images.
    """
    return float((one.argmax(dim=1) == other.argmax(dim=1)).double().mean())


def parser() -> argparse.ArgumentParser:
    """Give what reads the command line."""
    flags = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False)
    flags.add_argument("--data", required=True, help="as in training")
    flags.add_argument("--batch-size", type=int, default=128, help="(default: %(default)s)")
    flags.add_argument("--num-workers", type=int, default=0, help="(default: %(default)s)")
    flags.add_argument("--cpu", action="store_true", help="even if there is a GPU")
    flags.add_argument("--out", type=Path, help="add the lines to this file too")
    flags.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare checkpoints; print a JSON object for each pair, and one for each model."""
    options = parser().parse_args(arguments)
    on_gpu = torch.cuda.is_available() and not options.cpu
    with errors_as_sentences():
        check_torchvision(PROGRAM)
        _check(options)
        # Only now: it imports torchvision.
        from fairseq_codistill.vision.comparison import compare

        said = compare(
            options.data,
            options.checkpoints,
            torch.device("cuda" if on_gpu else "cpu"),
            options.batch_size,
            options.num_workers,
        )
    lines = "".join(json.dumps(line) + "\n" for line in said)
    sys.stdout.write(lines)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(lines)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Look at what would otherwise end the program after all of its work.

    Raises:
        ConfigError: if a number is out of range, or --out cannot be written.
    """
    for flag, least in (("batch_size", 1), ("num_workers", 0)):
        given = getattr(options, flag)
        if given < least:
            name = flag.replace("_", "-")
            raise ConfigError(f"--{name} {given} is too small; give {least} or more")
    out = options.out
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise ConfigError(f"--out {out}: give a file in a folder that exists")


if __name__ == "__main__":
    sys.exit(main())
