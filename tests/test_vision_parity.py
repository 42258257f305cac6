"""Without a peer's term, training is a plain loop of torchvision's kind, digit for digit."""

import math
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from harness import LOCKSTEP, SEED_STEP, column, equal
from vision_harness import launch, run_workers, train, write_images
from vision_plain_ddp import ARCH

REPO = Path(__file__).parent.parent
MINI = REPO.parent / "shared/data/cifar10/cifar10-mini.tar.xz"
LR, SIDE = "0.05", 32
FLAGS = [
    *["--arch", ARCH, "--image-size", str(SIDE), "--augmentation", "cifar", "--nesterov"],
    *["--lr", LR, "--lr-milestones", "1", "--epochs", "2", "--weight-decay", "1e-4"],
    *["--validate-interval", "2"],
]


def plain(data: Path, folder: Path, batch_size: int) -> dict:
    script = Path(__file__).parent / "vision_plain_ddp.py"
    command = [sys.executable, script, data, folder / "plain.pt", SIDE, batch_size, LR]
    run_workers([str(part) for part in command], workers=2)
    return torch.load(folder / "plain.pt", weights_only=True)


def assert_the_same(data: Path, folder: Path, batch_size: int) -> None:
    truth = plain(data, folder, batch_size)
    flags = [*FLAGS, "--batch-size", str(batch_size)]
    run = train(data, folder / "run", *flags, workers=2)
    assert equal(run.weights(), truth["model"])
    losses = [loss / math.log(2) for loss in truth["losses"]]
    assert column(run.lines(), "loss") == [float(f"{loss:.6g}") for loss in losses]
    assert column(run.lines(), "nll_loss") == column(run.lines(), "loss")
    assert not any(key.startswith("codistill_") for line in run.lines() for key in line)


def test_one_group_of_two_workers_is_a_plain_loop(tmp_path):
    # 43 images a class: what does not make a batch is left out.
    assert_the_same(write_images(tmp_path / "data", train=43, side=SIDE), tmp_path, 8)


@pytest.mark.full
@pytest.mark.skipif(
    not MINI.exists(), reason="cifar10-mini is not beside the project in ../shared/data"
)
def test_on_cifar10_mini(tmp_path):
    with tarfile.open(MINI) as archive:
        archive.extractall(tmp_path, filter="data")
    (train_folder,) = tmp_path.rglob("train")
    assert_the_same(train_folder.parent, tmp_path, 32)


@pytest.mark.parametrize("mode", ["async", pytest.param("lockstep", marks=pytest.mark.full)])
def test_alpha_0_is_training_alone_for_each_group(tmp_path, mode):
    data = write_images(tmp_path / "data")
    flags = [*LOCKSTEP, "--codistill-mode", mode, "--codistill-interval", "2"]
    runs = launch(data, tmp_path / "out", *flags, "--codistill-alpha", "0")
    for run, seed in zip(runs, ("1", str(1 + SEED_STEP)), strict=True):
        alone = train(data, tmp_path / seed, "--seed", seed)
        assert equal(run.weights(), alone.weights())
        assert column(run.lines(), "loss") == column(alone.lines(), "loss")
        assert set(column(run.lines(), "codistill_peers")) == {0}
