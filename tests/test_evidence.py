"""A group has finished on evidence alone: ended.json, as real runs leave it and launch takes it."""

import dataclasses
import json
import subprocess
import time
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, MODEL, PLUGIN, SETTINGS, environment, finish, start, train
from ports import free_port
from supervised import nonce
from test_launch_supervise import run
from written_records import write_record
from written_runs import Writer

from fairseq_codistill import cli
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import State
from fairseq_codistill.records import Alive, Ended, read_ended, write_ended

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
    other = start(other_vocabulary, tmp_path / "b", *flags, "--codistill-group", "1", "--seed", "7")
    one = start(corpus, tmp_path / "a", *flags, "--codistill-group", "0")
    finish(other, tmp_path / "b")
    assert "peer 1 is left out" in finish(one, tmp_path / "a").log
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


# Without fairseq: what a process may leave, or not.


def test_status_0_alone_is_no_end(tmp_path):
    for _ in range(2):
        status, states, said = run(tmp_path, "NOTHING=1; true", "sleep 1")
        assert (status, states) == (1, [State.UNPROVEN, State.FINISHED])
        assert "group 0 ended with status 0, but it has left no" in said
    log = (tmp_path / "group-0/log.txt").read_text()
    # Not restarted, and not taken for finished by the same line.
    assert log.count("codistill.launch") == 2
    assert (tmp_path / "group-1/log.txt").read_text().count("codistill.launch") == 1


def test_one_group_alone_gives_3_now_and_later(tmp_path):
    for _ in range(2):
        status, states, said = run(tmp_path, "ALONE=alone; true", "true")
        assert (status, states) == (3, [State.FINISHED] * 2)
        assert "group 0 never had a live peer" in said
    assert (tmp_path / "group-0/log.txt").read_text().count("codistill.launch") == 1


def test_what_an_earlier_process_left_is_no_evidence(tmp_path):
    assert run(tmp_path, "true", "true")[0] == 0
    # Another command, of which the mark says nothing, and which trains nothing.
    status, states, _ = run(tmp_path, "NOTHING=1; true", "true")
    assert (status, states) == (1, [State.UNPROVEN, State.FINISHED])


ENDED = Ended("run", nonce(0), 20, "max-update", had_peer=True, expected_peer=True)


def alive(**changes) -> Alive:
    return dataclasses.replace(Alive("run", nonce(0), update=20), **changes)


@pytest.mark.parametrize(
    ("ended", "logged", "heartbeat", "reason"),
    [
        (ENDED, 20, alive(), None),
        (ENDED, None, None, None),
        # The exchange did not take the last heartbeat.
        (ENDED, 18, alive(update=15, running=True), None),
        (dataclasses.replace(ENDED, run_id="other"), 20, None, "another run"),
        (dataclasses.replace(ENDED, nonce="other"), 20, None, "another run or process"),
        (ENDED, 21, None, "the log has update 21"),
        (ENDED, 20, alive(update=21), "alive.json says 21"),
        (ENDED, 20, alive(update=21, nonce="another"), None),
    ],
)
def test_log_and_heartbeat_must_not_contradict_it(tmp_path, ended, logged, heartbeat, reason):
    finished = Finished(tmp_path, ["command"], "run", nonce(0))
    write_ended(tmp_path, ended)
    missing = finished.missing(logged, heartbeat)
    assert missing == reason or reason in missing
    finished.note()
    assert Finished(tmp_path, ["command"], "run", nonce(0)).reached is (reason is None)


def test_evidence_that_cannot_be_removed_is_told_from_new_one(tmp_path, monkeypatch):
    write_ended(tmp_path, ENDED)
    finished = Finished(tmp_path, ["command"], "run", nonce(0))

    def failing(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", failing)
    finished.forget()
    monkeypatch.undo()
    assert "has left no" in finished.missing(20, None)
    write_ended(tmp_path, ENDED)
    assert finished.missing(20, None) is None


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"format": 1}', b"[" * 100_000, b'{"x": "\xed\xa0\x80"}']
)
def test_evidence_and_marks_that_are_nonsense(tmp_path, data):
    finished = Finished(tmp_path, ["command"], "run", nonce(0))
    (tmp_path / "ended.json").write_bytes(data)
    (tmp_path / "finished.json").write_bytes(data)
    assert finished.missing(20, None)
    assert not finished.reached


def test_a_mark_of_an_earlier_version_is_no_evidence(tmp_path):
    (tmp_path / "finished.json").write_text('["command"]\n')
    assert not Finished(tmp_path, ["command"], "run", nonce(0)).reached


# Those who look at it later.

ALONE = dataclasses.replace(ENDED, run_id="a", had_peer=False)


def test_status_says_who_trained_alone(tmp_path, capsys):
    write_record(tmp_path)
    (tmp_path / "exchange").mkdir()
    write_ended(tmp_path / "group-0", ALONE)
    write_ended(tmp_path / "group-1", dataclasses.replace(ALONE, run_id="of another run"))
    assert cli.main(["status", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "group 0 never had a live peer: trained alone to the end" in said
    assert "group 1 never" not in said
    assert cli.main(["status", str(tmp_path), "--json"]) == 0
    one, other = json.loads(capsys.readouterr().out)["runs"][0]["groups"]
    assert (one["trained_alone"], one["ended"]["reason"]) == (True, "max-update")
    assert (other["trained_alone"], other["ended"]) == (None, None)


def test_report_says_who_trained_alone(tmp_path, capsys):
    write_record(tmp_path)
    for group in (0, 1):
        Writer().start(groups=2).inner(10, loss=2).to(tmp_path / f"group-{group}/log.txt")
        ended = dataclasses.replace(ALONE, had_peer=group == 1)
        write_ended(tmp_path / f"group-{group}", ended)
    assert cli.main(["report", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    said = capsys.readouterr().out
    assert f"note: {tmp_path}: group 0 never had a live peer" in said
    assert "group 1 never" not in said
