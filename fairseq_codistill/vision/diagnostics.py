"""The paper's diagnostics: how far a model has come, and how alike two models' answers are.

    python -m fairseq_codistill.vision.diagnostics --data IMAGEFOLDER CHECKPOINT CHECKPOINT...

compares trained models on the validation images: agreement, which is the share of images that
two models give the same class, and prediction churn, which is the rest (Anil et al. 2018).
``codistill report`` reads RUN/agreement.jsonl; lines that later checkpoints add there make a curve.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.sentences import errors_as_sentences
from fairseq_codistill.vision import checkpoint, data, models
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.world import World


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


def logits_on(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Give a model's logits, (images, classes), and the true classes, (images,), on the CPU."""
    model.eval()
    logits, targets = [], []
    with torch.inference_mode():
        for images, target in batches:
            logits.append(model(data.normalise(images)).float().cpu())
            targets.append(target.cpu())
    return torch.cat(logits), torch.cat(targets)


def parser() -> argparse.ArgumentParser:
    """Give what reads the command line."""
    flags = argparse.ArgumentParser(
        prog="python -m fairseq_codistill.vision.diagnostics", allow_abbrev=False
    )
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
    world = World(0, 1, torch.device("cuda" if on_gpu else "cpu"))
    with errors_as_sentences():
        folders = data.find(options.data)
        answers, groups, updates = {}, {}, {}
        for path in options.checkpoints:
            there = checkpoint.read(path, "CHECKPOINT")
            if list(there.classes) != list(folders.classes):
                raise ConfigError(
                    f"--data {options.data} has other classes than CHECKPOINT {path}; name the "
                    "data that it was trained on"
                )
            config = VisionConfig(
                data=options.data,
                batch_size=options.batch_size,
                num_workers=options.num_workers,
                augmentation=there.settings["augmentation"],
                image_size=there.settings["image_size"],
            )
            model = models.student(there.config).to(world.device)
            model.load_state_dict(there.model)
            loader = data.evaluation_loader(config, folders.valid, world)
            groups[path], updates[path] = there.run["group"], there.update
            answers[path] = logits_on(model, data.batches_of(loader, world.device))
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
    lines = "".join(json.dumps(line) + "\n" for line in said)
    sys.stdout.write(lines)
    if options.out is not None:
        with options.out.open("a") as file:
            file.write(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
