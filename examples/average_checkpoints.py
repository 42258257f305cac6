"""Average the weights of several fairseq checkpoints into one.

fairseq has a script for this in its source tree only, which no wheel installs; and it unpickles
whatever a checkpoint holds.  This one reads tensors and plain containers.  What is not a weight
comes from the newest checkpoint; the optimizer's state is left out.
"""

import argparse
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import torch

from fairseq_codistill import plain

UPDATE = re.compile(r"checkpoint_\d+_(\d+)\.pt")


def last(folder: Path, count: int) -> list[Path]:
    """Give the newest checkpoints of a folder that are named by update, the newest last.

    Raises:
        ValueError: if there are fewer than ``count``.
    """
    matches = [(UPDATE.fullmatch(path.name), path) for path in folder.glob("*.pt")]
    by_update = {int(match[1]): path for match, path in matches if match}
    if len(by_update) < count:
        raise ValueError(
            f"--last {count} asks for more than the {len(by_update)} checkpoint_EPOCH_UPDATE.pt in "
            f"{folder}; ask for fewer, or train with --save-interval-updates and "
            f"--keep-interval-updates {count}"
        )
    return [by_update[update] for update in sorted(by_update)[-count:]]


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint, unpickling nothing but plain data.

    Raises:
        ValueError: if it is none.
    """
    try:
        with plain.allowing(plain.allowed()):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} is torn or no checkpoint of fairseq's; give another") from error
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} holds no model; give a checkpoint of fairseq's")
    return state


def average(paths: list[Path]) -> dict[str, Any]:
    """Give the newest of some checkpoints, the last named, with the mean of all their weights.

    The mean is taken in float32 at least.  What is not floating-point is the newest's.

    Raises:
        ValueError: if their models are not of one shape.
    """
    state = load(paths[-1])
    newest = state["model"]
    total = {name: tensor.to(_wide(tensor), copy=True) for name, tensor in newest.items()}
    for path in paths[:-1]:
        model = load(path)["model"]
        if {name: t.shape for name, t in model.items()} != {n: t.shape for n, t in newest.items()}:
            raise ValueError(
                f"{path} has other weights than {paths[-1]}; only models of one architecture and "
                "vocabulary can be averaged"
            )
        for name, tensor in model.items():
            if tensor.is_floating_point():
                total[name] += tensor
    state["model"] = {
        name: tensor / len(paths) if tensor.is_floating_point() else tensor
        for name, tensor in total.items()
    }
    state["last_optimizer_state"] = None
    return state


def _wide(tensor: torch.Tensor) -> torch.dtype:
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return torch.float32 if half else tensor.dtype


def main(argv: list[str] | None = None) -> None:
    """Average the checkpoints that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("inputs", type=Path, nargs="+", help="checkpoints; with --last one folder")
    parser.add_argument("--last", type=int, metavar="N", help="the newest N of the folder")
    parser.add_argument("--output", type=Path, required=True, help="the checkpoint to write")
    args = parser.parse_args(argv)
    paths = args.inputs
    if args.last is not None:
        if args.last < 1 or len(paths) != 1:
            parser.error(f"--last {args.last} takes a number from 1 on, and one folder")
        paths = last(paths[0], args.last)
    state = average(paths)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    temporary = args.output.with_name(f"{args.output.name}.tmp")
    torch.save(state, temporary)
    os.replace(temporary, args.output)
    print(f"{args.output}: the mean of {', '.join(map(str, paths))}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"average_checkpoints.py: {error}")
