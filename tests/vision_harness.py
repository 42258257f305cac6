"""Real processes of the vision entry point, and small folders of images for them."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import BIN, Run, environment
from PIL import Image
from ports import free_port

from fairseq_codistill.vision import models
from fairseq_codistill.vision.__main__ import main

# Names sort as their numbers do not.
CLASSES = ("ape", "bee", "cat", "doe", "elk", "fox")
SIDE = 12

PROGRAM = [sys.executable, "-m", "fairseq_codistill.vision"]
MODEL = ["--arch", "resnet8_cifar", "--width", "4"]
DATA = ["--image-size", str(SIDE), "--augmentation", "cifar", "--num-workers", "0"]
TINY = [*MODEL, *DATA, *"--batch-size 8 --epochs 3 --lr 0.05 --log-interval 1 --cpu".split()]


def write_images(
    folder: Path,
    train: int = 20,
    valid: int = 5,
    classes: Sequence[str] = CLASSES[:3],
    side: int = SIDE,
    seed: int = 0,
) -> Path:
    """Write a folder of images, so many of each class; a class has its colour, and much noise."""
    rng = np.random.default_rng(seed)
    colours = rng.integers(60, 196, size=(len(classes), 3))
    for split, count in (("train", train), ("val", valid)):
        for name, colour in zip(classes, colours, strict=True):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                noise = rng.normal(0, 50, size=(side, side, 3))
                pixels = np.clip(colour + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i:03d}.png")
    return folder


def worlds(workers: int) -> list[dict[str, str]]:
    """What torchrun would set for each worker."""
    if workers == 1:
        return [{}]
    port = str(free_port())
    meet = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "WORLD_SIZE": str(workers)}
    return [{**meet, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(workers)]


def run_workers(command: Sequence[str], workers: int, timeout: float = 300) -> list[str]:
    """Run a command once for each worker; gives what each wrote, once all have ended well."""
    processes = [
        subprocess.Popen(
            command,
            env=environment(**place),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for place in worlds(workers)
    ]
    said = [process.communicate(timeout=timeout)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * workers, said[0][-3000:]
    return said


def train(data: Path, folder: Path, *flags: str, workers: int = 1) -> Run:
    """Run one group to its end; a single worker within this process, which saves a start."""
    arguments = ["--data", str(data), *TINY, "--save-dir", str(folder), *flags]
    if workers > 1:
        return Run(folder, run_workers([*PROGRAM, *arguments], workers)[0])
    said = io.StringIO()
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(said):
        assert main(arguments) == 0
    return Run(folder, said.getvalue())


def untrained(seed: int = 1) -> torch.nn.Module:
    """The model of ``TINY`` as a group with this seed begins with it."""
    torch.manual_seed(seed)
    model = models.student(models.describe("resnet8_cifar", 3, 4, SIDE))
    return model.double().requires_grad_(False)


def launch_command(
    data: Path, out: Path, *flags: str, groups: int = 2, workers: int = 1, options=()
) -> list[str]:
    return [
        *[str(BIN / "codistill"), "launch", "--groups", str(groups), "--out", str(out)],
        *["--workers-per-group", str(workers), "--max-restarts", "0", *options, "--"],
        *[*PROGRAM, "--data", str(data), *TINY, *flags],
    ]


def launch(data: Path, out: Path, *flags: str, groups: int = 2, **more) -> list[Run]:
    """Run ``codistill launch`` to its end and give what each group left behind."""
    command = launch_command(data, out, *flags, groups=groups, **more)
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=200)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    folders = [out / f"group-{i}" for i in range(groups)]
    return [Run(folder, (folder / "log.txt").read_text()) for folder in folders]


def the_error(text: str) -> str:
    """The one line that tells what is wrong."""
    (line,) = re.findall(r"^codistill: error: (.*)$", text, re.M)
    return line


def refused(capfd, *flags: object) -> str:
    """Run the program within this process; gives the one line with which it refuses."""
    with pytest.raises(SystemExit) as end:
        main([*TINY, *map(str, flags)])
    assert end.value.code == 2
    return the_error(capfd.readouterr().err)


def files(folder: Path) -> list[str]:
    """All that is in a folder."""
    return sorted(os.path.relpath(path, folder) for path in folder.rglob("*"))
