"""A group has finished on evidence alone: ended.json, as real runs leave it and launch takes it."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, MODEL, PLUGIN, SETTINGS, environment, finish, start, train
from ports import free_port

from fairseq_codistill.records import Ended, read_ended

SHARED = [*MODEL, "--share-all-embeddings", *SETTINGS, *CODISTILL]
TWO = ["--codistill-num-groups", "2", "--codistill-interval", "5"]


def launch(corpus: Path, out: Path, *flags: str, options=(), groups: int = 2):
    """Run ``codistill launch``, however it ends."""
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", str(groups), "--out", str(out)],
        *["--workers-per-group", "1", *options],
        *["--", "fairseq-train", str(corpus), *SHARED, *flags],
    ]
    return subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=300, check=False
    )


def log(out: Path, group: int = 0) -> str:
    return (out / f"group-{group}" / "log.txt").read_text()


# What a real end leaves.


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "max-update"),
        (["--max-update", "0", "--max-epoch", "1"], "max-epoch"),
        (["--max-update", "0", "--patience", "1", "--lr", "1e-30"], "patience"),
        (["--max-update", "0", "--stop-min-lr", "0.6"], "stop-min-lr"),
        (["--max-update", "0", "--stop-time-hours", "1e-9"], "stop-time-hours"),
    ],
)
def test_the_reason_of_an_end(corpus, tmp_path, flags, reason):
    done = train(corpus, tmp_path, *CODISTILL, *flags)
    ended = read_ended(tmp_path)
    updates = max([int(line["num_updates"]) for line in done.lines("train_inner")], default=0)
    assert ended == Ended(
        run_id="default",
        nonce="",
        update=updates,
        reason=reason,
        had_peer=False,
        expected_peer=False,
        time=ended.time,
    )
    assert time.time() - ended.time < 300


def test_logging_that_is_switched_off_hides_no_end(corpus, tmp_path):
    """As hydra/job_logging=disabled does."""
    quiet = tmp_path / "quiet"
    quiet.mkdir()
    (quiet / "sitecustomize.py").write_text("import logging; logging.disable(logging.CRITICAL)\n")
    folder = tmp_path / "run"
    folder.mkdir()
    env = environment(PYTHONPATH=f"{quiet}:{PLUGIN.parent}")
    command = ["fairseq-train", str(corpus), *SHARED, "--save-dir", str(folder)]
    command[0] = str(BIN / command[0])
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert "done training" not in done.stdout + done.stderr
    assert read_ended(folder).update == 20


def test_a_crash_leaves_nothing(corpus, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    done = finish(start(corpus, broken, *CODISTILL, "--arch", "no_such_arch"), broken, status=None)
    assert done.status != 0
    assert not (broken / "ended.json").exists()


def test_by_hand_a_group_that_never_had_a_peer_is_warned_and_ends_with_0(corpus, tmp_path):
    exchange = tmp_path / "exchange"
    flags = [*CODISTILL, *TWO, "--codistill-dir", str(exchange), "--codistill-group", "1"]
    done = train(corpus, tmp_path / "run", *flags)
    ended = read_ended(tmp_path / "run")
    assert (ended.had_peer, ended.expected_peer, ended.missed_its_peers) == (False, True, True)
    assert "this group never had a live peer" in done.log
    # With alpha 0 it was to have none.
    done = train(corpus, tmp_path / "plain", *flags, "--codistill-alpha", "0")
    assert not read_ended(tmp_path / "plain").missed_its_peers
    assert "never had a live peer" not in done.log


# What launch takes for an end.


def test_launch_finishes_and_does_not_train_again(corpus, tmp_path):
    out = tmp_path / "out"
    first = launch(corpus, out, "--codistill-interval", "5", "--codistill-mode", "lockstep")
    assert first.returncode == 0, first.stdout + first.stderr + log(out)
    for group in (0, 1):
        ended = read_ended(out / f"group-{group}")
        assert (ended.update, ended.reason, ended.had_peer) == (20, "max-update", True)
        assert ended.run_id == json.loads((out / "launch.json").read_text())["run_id"]
    before = log(out)
    again = launch(corpus, out, "--codistill-interval", "5", "--codistill-mode", "lockstep")
    assert again.returncode == 0
    assert log(out) == before


def test_launch_says_3_if_no_snapshot_could_ever_pass(corpus, tmp_path):
    """Two exchanges, by mistake; said again, without training, by the same line."""
    out = tmp_path / "out"
    options = ["--group", f"1: --codistill-dir {tmp_path / 'elsewhere'}"]
    first = launch(corpus, out, "--codistill-interval", "5", options=options)
    said = first.stdout + first.stderr
    assert first.returncode == 3, said
    assert "group 0, group 1 never had a live peer" in said
    before = log(out), log(out, 1)
    again = launch(corpus, out, "--codistill-interval", "5", options=options)
    assert again.returncode == 3
    assert "group 0, group 1 never had a live peer" in again.stdout
    assert (log(out), log(out, 1)) == before


def test_an_interval_that_no_update_reaches_is_told_at_the_start(corpus, tmp_path):
    flags = ["--codistill-dir", str(tmp_path / "x"), "--codistill-num-groups", "2"]
    done = train(corpus, tmp_path / "a", *CODISTILL, *flags, "--codistill-interval", "21")
    warning = "--codistill-interval 21 is more than the 20 updates of this run"
    assert done.log.index(warning) < done.log.index("train_inner")
    assert "train_inner" not in done.log[: done.log.index(warning)]
    done = train(corpus, tmp_path / "b", *CODISTILL, *flags, "--codistill-interval", "20")
    assert "is more than the" not in done.log


def test_a_peer_that_is_rejected_for_ever_is_no_peer(corpus, other_vocabulary, tmp_path):
    flags = [*CODISTILL, *TWO, "--codistill-dir", str(tmp_path / "x")]
    train(other_vocabulary, tmp_path / "b", *flags, "--codistill-group", "1", "--seed", "7")
    # Long enough to look at what the other has left.
    one = train(corpus, tmp_path / "a", *flags, "--max-update", "300")
    assert "peer 1 is left out" in one.log
    assert read_ended(tmp_path / "a").missed_its_peers


@pytest.mark.parametrize(
    ("address", "status", "sentence"),
    [
        ("s3://no-such-bucket/x", 1, "--codistill-dir s3://no-such-bucket/x cannot be used"),
        ("memory://x", 2, "--codistill-dir memory://x cannot be an exchange"),
        ("s3://key:hush@bucket/x", 2, "--codistill-dir s3://"),
        ("dir::file:///tmp/x", 2, "is a chain of stores"),
    ],
)
def test_an_exchange_that_cannot_be_used_is_never_trained_without(
    corpus, tmp_path, monkeypatch, address, status, sentence
):
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    out = tmp_path / "out"
    done = launch(corpus, out, "--codistill-dir", address, "--codistill-interval", "5")
    said = done.stdout + done.stderr
    assert done.returncode == status, said
    assert sentence in said
    assert "hush" not in said
    for file in out.rglob("*"):
        assert not file.is_file() or "hush" not in file.read_text(errors="replace")
    if status == 1:
        # A restart met it as the first start did.
        assert log(out).count("codistill.launch") == 2
        assert "train_inner" not in log(out)
    else:
        assert not (out / "group-0/log.txt").exists()


@pytest.mark.parametrize("word", ["-m", "--multirun", "--multi", "hydra.mode=MULTIRUN"])
def test_hydra_multirun_is_refused(tmp_path, word):
    command = [str(BIN / "codistill"), "launch", "--groups", "1", "--out", str(tmp_path / "out")]
    command += ["--", "fairseq-hydra-train", "--config-dir", ".", "--config-name", "x", word]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), check=False, timeout=60
    )
    assert done.returncode == 2
    assert "multirun" in done.stderr
    assert word.partition("=")[2] in done.stderr
