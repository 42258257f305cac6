"""The chaos script: a short version of it, and the full one."""

import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import chaos
import pytest
import torch
from chaos_run import SOON, Fault, Run
from faults import Tail, Watch
from harness import eventually
from launch_faults import damage_directory
from launch_output import InPipe, OnDisk

SCRIPT = Path(__file__).parent / "chaos.py"


@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    "hit", ["groups and exchange", pytest.param("launch", marks=pytest.mark.full)]
)
def test_some_twenty_faults_cost_the_others_nothing(tmp_path, capsys, hit):
    corpus = chaos.write_corpus(tmp_path / "corpus")
    settings = chaos.Settings(
        updates=800, hang_timeout=15, longest_gap=5, trouble=(1, 4), patience=500
    )
    others = {*chaos.FOLDER_FAULTS, *chaos.STORE_FAULTS} - {*chaos.LAUNCH_FAULTS}
    without = others if hit == "launch" else chaos.LAUNCH_FAULTS
    # Every kind of fault at least once.  No run without faults: that of the full version is worth
    # the time, for there the NLL at the end can tell something.
    plan = [
        ("folder", len(chaos.FOLDER_FAULTS.keys() - without)),
        ("S3 bucket", len(chaos.STORE_FAULTS.keys() - without)),
    ]
    with capsys.disabled():
        print()
        problems = chaos.chaos(
            corpus, tmp_path, plan, settings, seed=1, calm_runs=0, without=[*without], spare=2
        )
    assert not problems


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_two_hundred_faults_cost_the_others_nothing(tmp_path):
    command = [sys.executable, str(SCRIPT), "--faults", "200", "--out", str(tmp_path / "out")]
    assert subprocess.run(command).returncode == 0


def test_nll_within_the_spread_is_told_from_nll_that_is_not():
    calm = [[1.31, 1.30, 1.31], [1.34, 1.33, 1.33]]
    assert chaos.compare_nll(calm, [[1.30, 1.31, 1.30], [1.35, 1.34, 1.34]])[1] == []
    assert "1.4100 is not within the noise" in chaos.compare_nll(calm, [[1.30, 1.32, 1.41]])[1][0]
    text, problems = chaos.compare_nll(calm, [[1.39, 1.39, 1.39], [1.38, 1.39, 1.39]])
    assert "same seed: +0.0800, +0.0900" in text
    assert ["the mean NLL with faults, 1.3883" in problem for problem in problems] == [True]


@pytest.mark.parametrize(
    ("published", "used", "updates", "is_open"),
    [
        (75, None, SOON, True),
        (75, 50, SOON, True),
        (75, 75, SOON, False),
        (50, None, SOON, False),  # nobody could use a later one
        (75, None, SOON - 1, False),  # training was over before it could be
    ],
)
def test_after_damage_to_a_snapshot_later_ones_are_used(published, used, updates, is_open):
    run = object.__new__(Run)
    run.watch = Watch({})
    fault = Fault("truncate", begin=10, end=10, owner=1, update=50)
    fault.recovered = lambda: run._used_again(1, 50, since=10)
    run.faults = [fault]
    digest = 16 * "a"
    run.watch._note(11, 1, f"| published snapshot of update {published}, sha256 {digest}")
    if used is not None:
        line = f"| peer 1 refreshed: update {used}, sha256 {digest}, from update 80 on"
        run.watch._note(12, 2, line)
    for update in range(updates):
        run.watch._note(13, 0, f'| train_inner | {{"num_updates": "{update}"}}')
    assert run._is_open(fault) is is_open
    # Nobody is to blame for what was not used while the store was in trouble.
    run.faults.append(Fault("store refuses", begin=9, end=12))
    assert not run._is_open(fault)


@pytest.mark.parametrize("kind", ["folder", "S3 bucket"])
def test_every_kind_of_fault_is_dealt(kind):
    weights = chaos.FOLDER_FAULTS if kind == "folder" else chaos.STORE_FAULTS
    rng = random.Random(3)
    dealt = chaos.deal(kind, len(weights), rng)
    assert sorted(dealt) == sorted(weights)
    many = Counter(chaos.deal(kind, 1000, rng))
    assert many["kill"] == max(many.values())
    assert "kill" not in chaos.deal(kind, 20, rng, without=["kill"])


@pytest.mark.parametrize("fate", ["truncated", "renamed", "deleted"])
def test_a_log_is_followed_whatever_becomes_of_its_name(tmp_path, fate):
    path = tmp_path / "log.txt"
    tail = Tail(path)
    assert tail.lines() == []
    with path.open("ab", buffering=0) as log:
        log.write(b"one\ntw")
        assert tail.lines() == ["one"]
        if fate == "truncated":
            os.truncate(path, 0)
            log.write(b"b\n")
            assert tail.lines() == ["b"]
            return
        path.unlink() if fate == "deleted" else path.rename(tmp_path / "log.txt.1")
        log.write(b"o\nthree\n")
        assert tail.lines() == ["two", "three"]
        path.write_bytes(b"four\n")
        log.write(b"late\n")
        assert tail.lines() == ["late", "four"]
    assert tail.lines() == []


@pytest.mark.parametrize("kind", [InPipe, OnDisk])
def test_output_in_trouble_fails_as_it_is_to(tmp_path, kind):
    output = kind(tmp_path)
    if kind is OnDisk and not output.mounted:
        output.close()
        pytest.skip("no right to mount a small disk here")
    writer = output.descriptor()
    os.write(writer, b"before\n")
    if kind is InPipe:
        eventually(lambda: (tmp_path / "launch.txt").read_bytes() == b"before\n", "not read")
        os.set_blocking(writer, False)
        with output.trouble("output's reader leaves"), pytest.raises(BrokenPipeError):
            os.write(writer, b"x")
        with output.trouble("output is not read"), pytest.raises(BlockingIOError):
            os.write(writer, b"x")
        os.set_blocking(writer, True)
    else:
        with output.trouble(""), pytest.raises(OSError, match="No space left"):
            os.write(writer, b"x")
    os.write(writer, b"after\n")
    os.close(writer)
    output.close()
    said = (tmp_path / "launch.txt").read_text()
    assert said.split() == ["before", "after"]


def test_the_directory_of_a_checkpoint_is_what_is_damaged(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"weights": torch.zeros(1000)}, path)
    before = path.read_bytes()
    for seed in range(50):
        at, size = damage_directory(path, random.Random(seed))
        after = path.read_bytes()
        assert [i for i in range(size) if before[i] != after[i]] == [at]
        assert before[:at].rfind(b"PK\1\2") > 0 or before[at:].startswith(b"PK\1\2")
        path.write_bytes(before)
