"""Real groups in lockstep with T = 1 are Algorithm 1 of the paper."""

import pytest
from harness import LOCKSTEP, column, distance, launch
from reference import algorithm_1

UPDATES = 24
CHANGES = ("first_seen", "refreshed", "stale", "back", "rejected", "skipped")

FACTORED = ["--codistill-head", "factored"]
STAR = {0: [1, 2], 1: [0], 2: [0]}


@pytest.mark.parametrize(
    ("n", "workers", "update_freq", "every", "form", "listens_to"),
    [
        (2, 1, 1, 1, [], None),
        (2, 2, 1, 1, [*FACTORED, "--codistill-fused-ce"], None),
        (2, 1, 2, 3, [], None),
        (3, 1, 1, 1, [*FACTORED, "--codistill-topology", "star"], STAR),
        pytest.param(3, 1, 1, 1, FACTORED, None, marks=pytest.mark.full),
    ],
)
def test_real_groups_equal_the_single_process_reference(
    corpus, tmp_path, n, workers, update_freq, every, form, listens_to
):
    flags = [*LOCKSTEP, "--codistill-interval", "1", "--codistill-alpha", "0.7", *form]
    flags += ["--codistill-every", str(every)]
    flags += ["--max-update", str(UPDATES), "--update-freq", str(update_freq)]
    runs = launch(corpus, tmp_path, *flags, groups=n, workers=workers)
    reference, losses = algorithm_1(
        corpus,
        updates=UPDATES,
        n=n,
        workers=workers,
        update_freq=update_freq,
        alpha=0.7,
        gamma=1.1,
        lr=0.5,
        every=every,
        listens_to=listens_to,
    )
    for i, (run, weights, truth) in enumerate(zip(runs, reference, losses, strict=True)):
        off = distance(run.weights(), weights)
        print(f"{n=} {workers=} {update_freq=}: ||w - ref|| / ||ref|| = {off:.1e}")
        assert off <= 1e-5
        lines = run.lines()
        assert len(lines) == UPDATES
        for key, places in {
            "loss": 3,
            "nll_loss": 3,
            "codistill_loss": 4,
            "codistill_alpha": 5,
        }.items():
            # fairseq rounds what it logs to that many places.
            tolerance = 0.51 * 10**-places + 1e-5
            # Between the updates with a divergence there is none to log.
            step = every if key == "codistill_loss" else 1
            ours, true = column(lines[::step], key), column(truth[::step], key)
            assert ours == pytest.approx(true, abs=tolerance), key
        assert set(column(lines[::every], "codistill_staleness")) == {0}
        peers = len(listens_to[i]) if listens_to else n - 1
        assert set(column(lines[::every], "codistill_peers")) == {peers}
        # An update that asks no peer tells nothing of peers.
        silent = [line for at, line in enumerate(lines) if at % every]
        assert not any({"codistill_peers", "codistill_staleness"} & line.keys() for line in silent)
        # Every f_j is there before the first update and another one before each that follows,
        # whatever the number of workers and of micro-batches.
        happened = {change: sum(column(lines, f"codistill_{change}")) for change in CHANGES}
        expected = {"first_seen": peers, "refreshed": peers * (UPDATES - 1)}
        assert happened == dict.fromkeys(CHANGES, 0) | expected
        # Each of them was waited for and read.
        assert sum(column(lines, "codistill_stall")) > 0
        # The run spans several epochs, so that a growing alpha was compared, and D was not 0.
        assert lines[-1]["epoch"] > 1
        assert min(column(truth[::every], "codistill_loss")) > 1e-3
