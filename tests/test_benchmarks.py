"""The scripts of benchmarks/ run, and write what they measured and on what."""

import json
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from fairseq_codistill.installed import fairseq_distributions

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"

# What each script, and each of its commands, is to say of its flags.
HELP = {
    ("equal_time",): ["--data", "--megabits", "--seconds", "--out"],
    ("gpu",): ["--only", "--json", "--wheels", "--readme", "--from"],
    ("exchange",): ["--data", "--intervals", "--idle-seconds", "--dtype", "--json"],
    ("head_accuracy",): ["--rows", "--width", "--classes", "--near", "--dtype", "--json"],
    ("long_log",): ["folder", "--megabytes", "--json"],
    ("loss_head",): ["--rows", "--width", "--classes", "--rounds", "--dtype", "--device", "--json"],
    ("memory",): ["--sizes", "--tokens", "--dtype", "--device", "--peer-dropout", "--json"],
    ("network",): ["--data", "--megabits", "--methods", "--seconds", "--rounds", "--json"],
    ("peer_forward",): ["--sizes", "--tokens", "--ways", "--rounds", "--device", "--json"],
    ("scaling",): ["--size", "--tokens", "--rounds", "--device", "--peer-dropout", "--json"],
    ("snapshot_dtypes",): ["runs", "--data", "--json"],
    ("stall",): ["quickstart", "large"],
    ("stall", "quickstart"): ["--data", "--updates", "--runs", "--json"],
    ("stall", "large"): ["--rounds", "--dtype", "--folder", "--device", "--json"],
    ("step_time",): ["--sizes", "--tokens", "--rounds", "--device", "--peer-dropout", "--json"],
    ("throughput_kept",): ["--pairs", "--phases", "--updates", "--every", "--cores", "--json"],
}


@pytest.fixture
def run(monkeypatch):
    """Run a script as if from the command line, in this process: torch is imported once."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()

    def act(script, *arguments):
        path = str(BENCHMARKS / f"{script}.py")
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")

    yield act
    torch.set_num_threads(threads)


def test_every_script_is_here():
    scripts = {path.stem for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text()}
    assert scripts == {script for script, *_ in HELP}


@pytest.mark.parametrize("command", HELP, ids=" ".join)
def test_help(run, capsys, command):
    if command == ("equal_time",):
        pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit) as end:
        run(*command, "--help")
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert not [flag for flag in HELP[command] if flag not in said]


TIMED = [command for command, flags in HELP.items() if "--rounds" in flags]


@pytest.mark.parametrize("command", TIMED, ids=" ".join)
@pytest.mark.parametrize("rounds", ["0", "-1", "1.5", "many"])
def test_no_round_is_no_measurement(run, capsys, command, rounds):
    with pytest.raises(SystemExit) as end:
        run(*command, "--rounds", rounds)
    assert end.value.code == 2
    assert f"--rounds: {rounds} is no whole number of at least 1" in capsys.readouterr().err


UPDATES = ["--sizes", "tiny", "--classes", "50", "--tokens", "100", "--device", "cpu"]
SMALL = {
    "step_time": [*UPDATES, "--rounds", "1", "--peer-dropout"],
    "memory": UPDATES,
    "loss_head": "--rows 20 --width 8 --classes 50 --rounds 1 --device cpu".split(),
}
RATIOS = {
    "step_time": ["auto", "naive", "fused", "fused, bfloat16 peers"],
    "memory": ["auto", "naive", "fused"],
    "loss_head": ["cross-entropy", "factored", "chunked", "fused, factored", "kl chunked / kl"],
}


@pytest.mark.parametrize("script", SMALL)
def test_a_small_run_writes_its_figures_and_the_machine(run, tmp_path, script):
    path = tmp_path / "figures.json"
    run(script, *SMALL[script], "--json", path)
    written = json.loads(path.read_text())

    machine = written["machine"]
    assert machine["cores"] >= 1
    assert machine["threads"] >= 1
    assert machine["cpu"]
    assert machine["torch"] == torch.__version__
    assert machine["python"]
    assert fairseq_distributions().items() <= machine.items()

    (row,) = written["rows"]
    for name in RATIOS[script]:
        numbers = [float(number) for number in re.findall(r"\d+\.\d+", row[name])]
        assert numbers, name
        assert min(numbers) > 0, name
    if script != "loss_head":
        assert row["peer dropout"] is ("--peer-dropout" in SMALL[script])


@pytest.mark.parametrize("peer_dropout", [False, True])
def test_peers_drop_out_if_asked(run, peer_dropout):
    import steps

    with (
        steps.plain("tiny", 50, torch.device("cpu")) as plain,
        steps.codistilled(plain, 50, peer_dropout=peer_dropout) as ours,
    ):
        (peer,) = ours.codistillation.peers
        assert peer.module.training is peer_dropout


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_pair_of_short_runs_tells_what_throughput_is_kept(run, tmp_path, capsys):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    path, out = tmp_path / "figures.json", tmp_path / "out"
    few = ["--pairs", "1", "--updates", "150", "--every", "60"]
    run("throughput_kept", *few, "--out", out, "--json", path)
    (row,) = json.loads(path.read_text())["rows"]
    assert row["first"] == "calm"
    assert row["faults"][0].startswith("killed at update ")
    (calm, calm_hit), (hit, hit_hit) = row["calm, updates/s"], row["hit, updates/s"]
    assert row["group 0 kept"] == pytest.approx(hit / calm)
    assert row["group 1 kept"] == pytest.approx(hit_hit / calm_hit)
    # No time is tested but this: what was killed stood still, and restarts take seconds.
    assert hit_hit < calm_hit
    said = capsys.readouterr().out
    assert re.search(r"^group 0 kept: [\d.]+ \(", said, re.M)
    for way, starts in (("calm", 1), ("hit", 2)):
        log = (out / f"pair-0-{way}" / "group-1" / "log.txt").read_text()
        assert log.count("| codistill.launch |") == starts


@pytest.mark.full
@pytest.mark.timeout(300)
def test_phases_with_faults_are_compared_with_the_calm_ones_beside_them(run, tmp_path, capsys):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    path = tmp_path / "figures.json"
    run("throughput_kept", *"--phases 1 --seconds 4 --every 60".split(), "--json", path)
    calm, hit, after = json.loads(path.read_text())["rows"]
    assert [row["calm"] for row in (calm, hit, after)] == [True, False, True]
    assert hit["faults"][0].startswith("killed at update ")
    kept = 100 * hit["rate"] / ((calm["rate"] + after["rate"]) / 2)
    assert f"group 0 kept: {kept:.1f} (" in capsys.readouterr().out


def test_the_interval_of_a_median(run):
    import throughput_kept

    # Of 20 values the 6th and the 15th (published tables of the sign test); of few, the range.
    assert throughput_kept.median_interval([*range(20, 0, -1)]) == (6, 15)
    assert throughput_kept.median_interval([*range(1, 10)]) == (2, 8)
    assert throughput_kept.median_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_what_is_kept_in_phases(run):
    import throughput_kept

    rates = [10.0, 9.0, 20.0, 25.0, 30.0]
    phases = [throughput_kept.Phase(rate, i % 2 == 0, []) for i, rate in enumerate(rates)]
    assert throughput_kept.kept_in_phases(phases) == pytest.approx([60.0, 100.0])


def test_the_forms_that_are_taken_are_the_exact_ones(run, tmp_path, capsys):
    path = tmp_path / "figures.json"
    few = "--rows 8 --width 8 --classes 300 --near 0.02".split()
    run("head_accuracy", *few, "--json", path)
    rows = json.loads(path.read_text())["rows"]
    assert [(row["dtype"], row["form"]) for row in rows] == [
        (dtype, form)
        for dtype in ("float16", "bfloat16")
        for form in ("naive", "chunked", "factored", "joint")
    ]
    # Too few rows for the factored form on a CPU; on a GPU so narrow a layer is factored.
    assert [row["form"] for row in rows if "CPU" in row["taken on"]] == ["joint", "joint"]
    assert [row["form"] for row in rows if "GPU" in row["taken on"]] == ["factored", "factored"]
    for naive, _, factored, joint in (rows[:4], rows[4:]):
        assert joint["by layer"] < naive["by layer"] / 3
        assert factored["by layer"] < naive["by layer"] / 3
    assert "| bfloat16 | 8, 8, 300 |" in capsys.readouterr().out
