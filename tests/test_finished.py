"""What launch takes for the end of a group, and who says later that it trained alone."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, MODEL, SETTINGS, environment
from supervised import nonce
from test_launch_supervise import run
from written_records import write_record
from written_runs import Writer

from fairseq_codistill import cli
from fairseq_codistill.launch.dialects import recognise
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import State
from fairseq_codistill.launch.length import limits_of
from fairseq_codistill.records import Alive, Ended, read_ended, write_ended


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


LIMITS = {"max-update": "20"}
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
    finished = Finished(tmp_path, LIMITS, "run", nonce(0))
    write_ended(tmp_path, ended)
    missing = finished.missing(logged, heartbeat)
    assert missing == reason or reason in missing
    finished.note()
    assert Finished(tmp_path, LIMITS, "run", nonce(0)).reached is (reason is None)


def test_evidence_that_cannot_be_removed_is_told_from_new_one(tmp_path, monkeypatch):
    write_ended(tmp_path, ENDED)
    finished = Finished(tmp_path, LIMITS, "run", nonce(0))

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
    finished = Finished(tmp_path, LIMITS, "run", nonce(0))
    (tmp_path / "ended.json").write_bytes(data)
    (tmp_path / "finished.json").write_bytes(data)
    assert finished.missing(20, None)
    assert not finished.reached


def test_a_mark_of_an_earlier_version_is_no_evidence(tmp_path):
    (tmp_path / "finished.json").write_text('["command"]\n')
    assert not Finished(tmp_path, LIMITS, "run", nonce(0)).reached


def marked(folder: Path, ended: Ended = ENDED, limits: dict[str, str] = LIMITS) -> None:
    """Leave the mark of a group that has ended."""
    before = Finished(folder, limits, "run", nonce(0))
    write_ended(folder, ended)
    assert before.missing(ended.update, None) is None
    before.note()


TRAIN = "fairseq-train {} --cpu --max-update 20 --max-epoch 3 --patience 5"
ONE = "--stop-time-hours 1 --stop-min-lr 1e-5"
HYDRA = "fairseq-hydra-train --config-dir {here} --config-name tiny"
VISION = "python -m fairseq_codistill.vision --data x --epochs 3"


@pytest.mark.parametrize(
    ("before", "reason", "now", "finished"),
    [
        # What decides nothing of the length, or is the same in other words.
        (TRAIN, "max-update", TRAIN.replace("{}", "./{}"), True),
        (TRAIN, "max-update", f"{TRAIN} --seed 1 --log-interval 2 --lr 3", True),
        (TRAIN, "max-update", f"{TRAIN} --max-update 2e1", True),
        (TRAIN, "max-update", f"python -m fairseq_cli.train {TRAIN.partition(' ')[2]}", True),
        # More, less, no limit.
        (TRAIN, "max-update", f"{TRAIN} --max-update 21", False),
        (TRAIN, "max-update", f"{TRAIN} --max-update 7", True),
        (TRAIN, "max-update", f"{TRAIN} --max-update 0", False),
        (TRAIN, "max-update", "fairseq-train {} --max-epoch 3", False),
        # A limit that did not end it may be any; the one that did may not.
        (TRAIN, "max-update", f"{TRAIN} --max-epoch 9 --patience 9", True),
        (TRAIN, "max-epoch", f"{TRAIN} --max-update 900", True),
        (TRAIN, "max-epoch", f"{TRAIN} --max-update 900 --max-epoch 4", False),
        (TRAIN, "max-epoch", f"{TRAIN} --max-update 900 --max-epoch 0", False),
        (TRAIN, "patience", f"{TRAIN} --max-update 900 --patience=5", True),
        (TRAIN, "patience", f"{TRAIN} --max-update 900 --patience 6", False),
        (TRAIN, "patience", f"{TRAIN} --max-update 900 --patience -1", False),
        (f"{TRAIN} {ONE}", "stop-time-hours", f"{TRAIN} {ONE} --max-update 900", True),
        (f"{TRAIN} {ONE}", "stop-time-hours", f"{TRAIN} --max-update 900", False),
        (f"{TRAIN} {ONE}", "stop-min-lr", f"{TRAIN} {ONE} --max-update 900", True),
        (
            f"{TRAIN} {ONE}",
            "stop-min-lr",
            f"{TRAIN} {ONE} --max-update 900 --stop-min-lr 1e-6",
            False,
        ),
        # It has made the updates that are asked for now.
        ("fairseq-train {} --max-epoch 3", "max-epoch", TRAIN.replace("epoch 3", "epoch 9"), True),
        # hydra's keys, and what is in its file.
        (HYDRA, "max-update", f"{HYDRA} ++optimization.max_update=20", True),
        (HYDRA, "max-update", f"{HYDRA} optimization.max_update=21", False),
        (HYDRA, "max-epoch", f"{HYDRA} optimization.max_update=900", True),
        (
            HYDRA,
            "max-epoch",
            f"{HYDRA} optimization.max_update=9e2 optimization.max_epoch=4",
            False,
        ),
        (HYDRA, "max-update", f"{HYDRA} model.max_update=21 common.log_interval=3", True),
        (VISION, "max-epoch", f"{VISION} --num-workers 0 --epochs=3", True),
        (VISION, "max-epoch", f"{VISION} --epochs 4", False),
        (VISION, "max-epoch", f"{VISION} --epochs-times 2", False),
    ],
)
def test_it_goes_on_only_for_more_than_it_has_reached(tmp_path, before, reason, now, finished):
    (tmp_path / "tiny.yaml").write_text("optimization: {max_update: 20, max_epoch: 3}\n")
    limits = [
        limits_of(recognise(line.format("data", here=tmp_path).split())) for line in (before, now)
    ]
    marked(tmp_path, dataclasses.replace(ENDED, reason=reason), limits[0])
    assert Finished(tmp_path, limits[0], "run", nonce(0)).reached
    assert Finished(tmp_path, limits[1], "run", nonce(0)).reached is finished


def test_a_length_in_a_file_that_hydras_file_is_composed_of(tmp_path):
    (tmp_path / "optimization").mkdir()
    (tmp_path / "tiny.yaml").write_text("defaults: [{optimization: long}]\n")
    long = tmp_path / "optimization/long.yaml"
    dialect = recognise(HYDRA.format(here=tmp_path).split())
    long.write_text("max_update: 20\n")
    marked(tmp_path, ENDED, limits_of(dialect))
    assert Finished(tmp_path, limits_of(dialect), "run", nonce(0)).reached
    long.write_text("max_update: 30\n")
    assert not Finished(tmp_path, limits_of(dialect), "run", nonce(0)).reached


@pytest.mark.parametrize("field", ["run_id", "nonce"])
def test_the_mark_of_another_run_or_group(tmp_path, field):
    marked(tmp_path)
    for inner in (False, True):
        mark = json.loads((tmp_path / "finished.json").read_text())
        (mark["ended"] if inner else mark)[field] = "another"
        (tmp_path / "finished.json").write_text(json.dumps(mark))
        assert not Finished(tmp_path, LIMITS, "run", nonce(0)).reached
        marked(tmp_path)


def test_a_mark_with_a_command_in_it(tmp_path):
    """As launch wrote it before."""
    old = {"format": 1, "run_id": "run", "nonce": nonce(0), "missed_its_peers": False}
    command = "fairseq-train data --max-update 20".split()
    ended = dataclasses.asdict(ENDED)

    def leave(command):
        mark = json.dumps({**old, "command": command, "ended": ended})
        (tmp_path / "finished.json").write_text(mark)

    leave(command)
    assert Finished(tmp_path, {"max-update": "20.0"}, "run", nonce(0)).reached
    assert not Finished(tmp_path, {"max-update": "30"}, "run", nonce(0)).reached
    # What its file said then is not known.
    for odd in (HYDRA.format(here=tmp_path).split(), "fairseq-train", [], ["ls"], [{}], None):
        leave(odd)
        assert not Finished(tmp_path, {}, "run", nonce(0)).reached


def test_a_finished_run_that_is_launched_again_trains_nothing(corpus, tmp_path):
    """The directory of the data is written in another way, a default is spelled out, and so on."""

    def launch(data, *flags):
        command = [
            *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(tmp_path / "out")],
            *["--", "fairseq-train", str(data), *MODEL, *SETTINGS, *CODISTILL],
            *["--codistill-interval", "5", *flags],
        ]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=environment(),
            timeout=500,
            check=False,
            cwd=corpus.parent,
        )
        # 3: with so few updates a group may end before it has seen the other.
        assert done.returncode in (0, 3), done.stdout + done.stderr

    def left():
        """What a group that trains would change."""
        names = ("ended.json", "finished.json", "checkpoint_last.pt", "log.txt")
        files = [tmp_path / f"out/group-{group}" / name for group in (0, 1) for name in names]
        return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}

    launch(corpus)
    before = left()
    for group in (0, 1):
        assert read_ended(tmp_path / f"out/group-{group}").update == 20
    launch(corpus.name, "--seed", "1", "--log-interval", "2")
    assert left() == before
    launch(corpus, "--max-update", "23")
    for group in (0, 1):
        assert read_ended(tmp_path / f"out/group-{group}").update == 23


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
