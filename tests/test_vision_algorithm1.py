"""Real groups of images in lockstep with T = 1 are Algorithm 1 of the paper."""

import pytest
from harness import LOCKSTEP, column, distance
from safetensors.torch import load_file
from vision_harness import launch, write_images
from vision_reference import ARCH, algorithm_1

UPDATES, LR = 20, 0.05


@pytest.mark.parametrize(
    ("n", "workers", "update_freq"),
    [(2, 1, 1), pytest.param(2, 2, 2, marks=pytest.mark.full)],
)
def test_real_groups_equal_the_single_process_reference(tmp_path, n, workers, update_freq):
    batch_size = 8
    data = write_images(tmp_path / "data", train=20 * workers * update_freq)
    flags = [
        *[*LOCKSTEP, "--codistill-interval", "1", "--codistill-alpha", "0.7"],
        *["--arch", ARCH, "--augmentation", "none", "--lr", str(LR), "--lr-schedule", "constant"],
        *["--momentum", "0", "--weight-decay", "0"],
        *["--batch-size", str(batch_size), "--update-freq", str(update_freq)],
        *["--epochs", "9", "--max-update", str(UPDATES), "--validate-interval", "9"],
    ]
    runs = launch(data, tmp_path / "out", *flags, groups=n, workers=workers)
    # Snapshots are float32 here, and lockstep keeps all: the first is the model before training.
    first = [tmp_path / f"out/exchange/group-{i}/0000000000.safetensors" for i in range(n)]
    reference, losses = algorithm_1(
        data,
        initial=[load_file(path) for path in first],
        updates=UPDATES,
        workers=workers,
        update_freq=update_freq,
        batch_size=batch_size,
        alpha=0.7,
        gamma=1.1,
        lr=LR,
    )
    for run, state, truth in zip(runs, reference, losses, strict=True):
        weights = run.weights()
        assert weights.keys() == state.keys()
        for kind in ("parameters", "statistics"):
            named = [k for k in state if ("running" in k) == (kind == "statistics")]
            of_kind = {k: state[k] for k in named if not k.endswith("num_batches_tracked")}
            off = distance(weights, of_kind)
            print(f"{n=} {workers=} {update_freq=}: {kind}: ||w - ref|| / ||ref|| = {off:.1e}")
            assert off <= 1e-5, kind
        lines = run.lines()
        assert len(lines) == UPDATES
        for key in ("loss", "nll_loss", "codistill_loss", "codistill_alpha"):
            # Six digits are logged.
            assert column(lines, key) == pytest.approx(column(truth, key), rel=2e-5), key
        assert set(column(lines, "codistill_staleness")) == {0}
        assert set(column(lines, "codistill_peers")) == {n - 1}
        # Before the first update every peer is met, before each later one it is another; counted
        # once, whatever the number of workers.
        assert column(lines, "codistill_first_seen") == [n - 1] + [0] * (UPDATES - 1)
        assert column(lines, "codistill_refreshed") == [0] + [n - 1] * (UPDATES - 1)
        for change in ("stale", "back", "rejected", "skipped"):
            assert column(lines, f"codistill_{change}") == [0] * UPDATES, change
        assert min(column(lines, "codistill_stall")) > 0
        # The run spans several epochs, so that a growing alpha was compared, and D was not 0.
        assert lines[-1]["epoch"] > 1
        assert min(column(truth, "codistill_loss")) > 1e-4


def test_peers_in_bfloat16_teach_nearly_the_same(tmp_path):
    data = write_images(tmp_path / "data", train=16)
    seen = {}
    for dtype in ("student", "bfloat16"):
        flags = [*LOCKSTEP, "--codistill-interval", "1", "--codistill-peer-dtype", dtype]
        flags += ["--arch", ARCH, "--batch-size", "8", "--epochs", "1", "--lr", "0.05"]
        (run, _) = launch(data, tmp_path / dtype, *flags, groups=2)
        seen[dtype] = column(run.lines(), "codistill_loss")
    assert len(seen["student"]) == 6
    assert seen["bfloat16"] == pytest.approx(seen["student"], rel=0.02)
    assert seen["bfloat16"] != seen["student"]
