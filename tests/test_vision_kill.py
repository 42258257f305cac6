"""Exactly the same, again: kill -9 at a random update in lockstep changes no bit of the result."""

import errno
import multiprocessing
import os
import random
import resource
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from faults import kill_at_update, lives, send, wait_until
from harness import LOCKSTEP, Run, environment, equal, published
from vision_harness import launch_command, train, write_images

from fairseq_codistill.launch import checkpoints
from fairseq_codistill.vision import checkpoint
from fairseq_codistill.vision.checkpoint import LAST, Checkpoint

# 7 updates an epoch, so that checkpoints fall within epochs and at their ends.
UPDATES = 42
FLAGS = [
    *[*LOCKSTEP, "--codistill-interval", "2", "--epochs", "6", "--save-interval-updates", "5"],
    *["--codistill-alpha", "0.2", "--lr", "0.01", "--codistill-timeout", "60"],
    *["--warmup-epochs", "1", "--weight-decay-schedule", "1e-3,0", "--log-interval", "1"],
    "--channels-last",
]


def start(data: Path, out: Path) -> subprocess.Popen:
    out.mkdir(parents=True)
    command = launch_command(data, out, *FLAGS, options=["--max-restarts", "1"])
    with open(out / "launch.txt", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())


def finish(launch: subprocess.Popen, out: Path) -> list[Run]:
    try:
        launch.wait(timeout=150)
    finally:
        launch.terminate()
    folders = [out / f"group-{group}" for group in (0, 1)]
    runs = [Run(folder, (folder / "log.txt").read_text()) for folder in folders]
    assert launch.returncode == 0, (out / "launch.txt").read_text() + runs[0].log[-2000:]
    return runs


def assert_the_same(run: Run, truth: Run) -> None:
    now, then = run.checkpoint(), truth.checkpoint()
    assert equal(now["model"], then["model"])
    momenta = [state["optimizer"]["state"] for state in (now, then)]
    assert all(
        momenta[0][i]["momentum_buffer"].equal(momenta[1][i]["momentum_buffer"]) for i in momenta[1]
    )
    # Of the lines that were logged twice the last ones count, and those of epochs cover all of it.
    for kind in ("train_inner", "train", "valid"):
        clocks = {
            "wall",
            "ups",
            "images_per_second",
            "codistill_stall",
            "codistill_first_seen",
            "codistill_refreshed",
        }
        lines, others = (
            {
                line["num_updates"]: {k: v for k, v in line.items() if k not in clocks}
                for line in which.lines(kind)
            }
            for which in (run, truth)
        )
        assert lines == others, kind


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data", side=24)


@pytest.fixture(scope="module")
def unkilled(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled") / "out"
    runs = finish(start(data, out), out)
    assert [lives(run.log) for run in runs] == [[[*range(1, UPDATES + 1)]]] * 2
    return runs, published(out)


RNG = random.Random(5)
KILLS = [
    pytest.param(
        RNG.randrange(2), RNG.randrange(6, UPDATES - 4), marks=[pytest.mark.full] * (i > 0)
    )
    for i in range(5)
]


@pytest.mark.parametrize(("group", "update"), KILLS)
def test_a_kill_at_a_random_update_changes_no_bit(data, tmp_path, unkilled, group, update):
    out = tmp_path / "out"
    launch = start(data, out)
    kill_at_update(out, group, update, launch)
    runs = finish(launch, out)
    before, after = lives(runs[group].log)
    print(f"group {group}: killed at update {before[-1]}, resumed at {after[0] - 1}")
    assert update <= before[-1] < UPDATES
    assert 0 < after[0] - 1 <= before[-1]
    assert after == [*range(after[0], UPDATES + 1)]
    for run, truth in zip(runs, unkilled[0], strict=True):
        assert_the_same(run, truth)
    again = published(out)
    # A resumed group publishes where it resumes, which may be between two multiples of T.
    assert all(again[name] == digest for name, digest in unkilled[1].items())


@pytest.mark.full
def test_a_torn_checkpoint_is_noticed_by_launch(data, tmp_path, unkilled):
    out = tmp_path / "out"
    launch = start(data, out)
    last = out / "group-1/checkpoint_last.pt"
    wait_until(lambda: last.exists(), launch, out)
    kill_at_update(out, 1, 12, launch)
    last.write_bytes(last.read_bytes()[:2000])
    runs = finish(launch, out)
    assert "checkpoint_last.pt is torn" in (out / "launch.txt").read_text()
    for run, truth in zip(runs, unkilled[0], strict=True):
        assert equal(run.weights(), truth.weights())


# Dropout, and two workers with statistics of their own; both stopped within an epoch.
@pytest.mark.parametrize(
    ("arch", "workers"),
    [("squeezenet1_1", 1), pytest.param("resnet8_cifar", 2, marks=pytest.mark.full)],
)
def test_a_run_in_two_parts_equals_one(data, tmp_path, arch, workers):
    flags = ["--arch", arch, "--image-size", "24", "--batch-size", "4", "--epochs", "2"]
    flags += ["--eval-train-images", "7", "--save-interval-updates", "3", "--lr", "0.01"]
    flags += ["--augmentation", "imagenet"]
    whole = train(data, tmp_path / "whole", *flags, workers=workers)
    updates = len(whole.lines())
    train(data, tmp_path / "parts", *flags, "--max-update", "4", workers=workers)
    rest = train(data, tmp_path / "parts", *flags, workers=workers)
    assert [line["num_updates"] for line in rest.lines()] == [*range(5, updates + 1)]
    assert equal(rest.weights(), whole.weights())
    assert rest.lines("valid")[-1]["loss"] == whole.lines("valid")[-1]["loss"]
    for key in ("distance", "eval_nll_loss", "top1"):
        assert rest.lines("train")[-1][key] == whole.lines("train")[-1][key]
    again = train(data, tmp_path / "parts", *flags, workers=workers)
    assert f"nothing to do: update {updates} is the last one" in again.log
    assert equal(again.weights(), whole.weights())


def test_a_checkpoint_is_whole_from_when_it_has_its_name(data, tmp_path):
    out = tmp_path / "out"
    launch = start(data, out)
    wait_until((out / "group-0/checkpoint_last.pt").exists, launch, out)
    assert send(out, 0, signal.SIGKILL)
    assert Run(out / "group-0", "").checkpoint()["update"] > 0
    launch.terminate()
    launch.wait(timeout=60)


def after(update: int) -> Checkpoint:
    """A checkpoint of 40 kB."""
    model = {"weight": torch.full((10000,), float(update))}
    return Checkpoint(update, run={}, config={}, classes=[], model=model, optimizer={})


def no_room(path: Path) -> None:
    """Write in vain: the file may not grow beyond 10 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10000, hard))
    try:
        with pytest.raises((OSError, RuntimeError)):
            checkpoint.write(after(2), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def no_room_when_it_is_flushed(path: Path) -> None:
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            checkpoint.write(after(2), path)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in(write, *arguments) -> None:
    """Kill -9 a process that writes a file, just before the file takes its name."""
    process = multiprocessing.get_context("fork").Process(target=write, args=(*arguments, die))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def killed(path: Path) -> None:
    kill_in(checkpoint.write, after(2), path)


@pytest.mark.parametrize("fail", [no_room, no_room_when_it_is_flushed, killed])
def test_a_write_that_fails_leaves_the_checkpoint_before(tmp_path, fail):
    path = tmp_path / LAST
    # What is left is no checkpoint, to the program and to launch.
    fail(path)
    assert checkpoint.to_resume_from(LAST, tmp_path) is None
    assert checkpoints.find(tmp_path).checkpoint is None
    checkpoint.write(after(1), path)
    fail(path)
    assert checkpoint.to_resume_from(LAST, tmp_path) == path
    assert checkpoints.find(tmp_path).checkpoint == path
    assert checkpoint.read(path).update == 1
    # Nor is it in the way of the next one.
    checkpoint.write(after(3), path)
    assert checkpoint.read(path).model["weight"].equal(torch.full((10000,), 3.0))


def test_a_kill_between_two_names_does_not_tie_them(tmp_path):
    best, last = tmp_path / checkpoint.BEST, tmp_path / LAST
    checkpoint.write(after(1), last)
    checkpoint.write(after(2), best)
    kill_in(checkpoint.copy, best, last)
    assert checkpoint.read(last).update == 1
    checkpoint.write(after(3), last)
    assert (checkpoint.read(best).update, checkpoint.read(last).update) == (2, 3)
