"""Groups that swap logits are Algorithm 1 with every model's own predictions of the same batch."""

import pytest
import torch
from harness import SEED_STEP, Run, column, distance
from vision_harness import PROGRAM, TINY, refused, run_workers, write_images
from vision_reference import ARCH, algorithm_1

from fairseq_codistill.vision import models

UPDATES, LR, BATCH = 20, 0.05, 8


def train(data, folder, *flags, groups=2, workers=1) -> list[Run]:
    """Run groups, started together, to their end."""
    predictions = ["--codistill-exchange", "predictions", "--codistill-num-groups", str(groups)]
    command = [*PROGRAM, "--data", str(data), *TINY, "--save-dir", str(folder), *predictions]
    run_workers([*command, *flags], groups * workers)
    folders = [folder / f"group-{i}" for i in range(groups)]
    return [Run(one, (one / "log.txt").read_text()) for one in folders]


@pytest.mark.parametrize(
    ("groups", "workers", "update_freq", "every", "topology"),
    [
        (2, 1, 1, 2, "all"),
        pytest.param(2, 2, 2, 1, "all", marks=pytest.mark.full),
        pytest.param(3, 1, 1, 1, "ring", marks=pytest.mark.full),
    ],
)
def test_groups_equal_the_single_process_reference(
    tmp_path, groups, workers, update_freq, every, topology
):
    data = write_images(tmp_path / "data", train=20 * workers * update_freq)
    flags = [
        *["--arch", ARCH, "--augmentation", "none", "--lr", str(LR), "--lr-schedule", "constant"],
        *["--momentum", "0", "--weight-decay", "0", "--codistill-alpha", "0.7"],
        *["--codistill-every", str(every), "--codistill-topology", topology],
        *["--batch-size", str(BATCH), "--update-freq", str(update_freq)],
        *["--epochs", "9", "--max-update", str(UPDATES), "--validate-interval", "9"],
    ]
    runs = train(data, tmp_path / "out", *flags, groups=groups, workers=workers)
    initial = []
    for group in range(groups):
        # What torch draws for a model after it was told the group's seed.
        torch.manual_seed(1 + SEED_STEP * group)
        initial.append(models.student(models.describe(ARCH, 3, 4, 12)).state_dict())
    reference, losses = algorithm_1(
        data,
        initial=initial,
        updates=UPDATES,
        workers=workers,
        update_freq=update_freq,
        batch_size=BATCH,
        alpha=0.7,
        gamma=1.1,
        lr=LR,
        predictions=True,
        every=every,
        ring=topology == "ring",
    )
    for run, state, truth in zip(runs, reference, losses, strict=True):
        named = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
        off = distance(run.weights(), named)
        print(f"{workers=} {update_freq=}: ||w - ref|| / ||ref|| = {off:.1e}")
        assert off <= 1e-5
        lines = run.lines()
        assert len(lines) == UPDATES
        for key in ("loss", "nll_loss", "codistill_loss", "codistill_alpha"):
            # Between the updates with a divergence there is none to log.
            step = every if key == "codistill_loss" else 1
            ours, true = column(lines[::step], key), column(truth[::step], key)
            assert ours == pytest.approx(true, rel=2e-5), key
        assert set(column(lines[::every], "codistill_staleness")) == {0}
        assert set(column(lines, "codistill_peers")) == {1}
        assert lines[-1]["epoch"] > 1
        assert min(column(truth[::every], "codistill_loss")) > 1e-4


@pytest.mark.full
def test_a_run_in_two_parts_equals_one(tmp_path):
    data = write_images(tmp_path / "data")
    # 7 updates an epoch; the first part ends within one.
    whole = train(data, tmp_path / "whole", "--codistill-alpha", "0.2", "--lr", "0.01")
    flags = ["--codistill-alpha", "0.2", "--lr", "0.01"]
    train(data, tmp_path / "parts", *flags, "--max-update", "10")
    parts = train(data, tmp_path / "parts", *flags)
    for one, other in zip(whole, parts, strict=True):
        weights = one.weights()
        assert all(other.weights()[name].equal(weights[name]) for name in weights)
        assert other.lines()[-1]["loss"] == one.lines()[-1]["loss"]
    # The other group's own checkpoint is of another update.
    (tmp_path / "parts/group-1/checkpoint_last.pt").unlink()
    command = [*PROGRAM, "--data", str(data), *TINY, "--save-dir", str(tmp_path / "parts")]
    command += ["--codistill-exchange", "predictions", "--codistill-num-groups", "2"]
    with pytest.raises(AssertionError, match="the groups go on from updates 21, 0"):
        run_workers(command, 2)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("", "needs others; give --codistill-num-groups 2 or more"),
        ("--codistill-num-groups 2", "1 worker(s) were started, which do not divide"),
        ("--codistill-num-groups 2 --codistill-group 1", "start all groups together with torchrun"),
        ("--codistill-num-groups 2 --shard-data", "--shard-data: with"),
        ("--codistill-num-groups 2 --codistill-peer-dropout", "means nothing with"),
        ("--codistill-num-groups 2 --codistill-peer-dtype bfloat16", "means nothing with"),
        ("--codistill-num-groups 2 --codistill-teachers t.pt", "--codistill-teachers does not go"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(tmp_path, capfd, flags, says):
    predictions = ["--codistill-exchange", "predictions", *flags.split()]
    assert says in refused(capfd, "--data", tmp_path, "--save-dir", tmp_path / "new", *predictions)
    assert not list(tmp_path.iterdir())


def test_launch_is_the_wrong_way_to_start(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("CODISTILL_NONCE", "n")
    predictions = ["--codistill-exchange", "predictions", "--codistill-num-groups", "2"]
    said = refused(capfd, "--data", tmp_path, "--save-dir", tmp_path / "new", *predictions)
    assert "codistill launch starts each group by itself" in said
