"""What launch takes for the end of a group, and who says later that it trained alone."""

import dataclasses
import json
from pathlib import Path

import pytest
from supervised import nonce
from test_launch_supervise import run
from written_records import write_record
from written_runs import Writer

from fairseq_codistill import cli
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import State
from fairseq_codistill.records import Alive, Ended, write_ended


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
