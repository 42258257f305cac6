"""What a run keeps of itself: launch.json and the lock."""

import json
import os
import subprocess
import sys

import pytest

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import record, run
from fairseq_codistill.launch.commands import Worker


def workers(tmp_path, *argv):
    return [[Worker(argv, {"CODISTILL_NONCE": "n"}, tmp_path / "log.txt")]]


def test_a_second_launch_goes_on_with_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setenv("CODISTILL_KEY", "hush")
    who = record.identity(tmp_path, 2)
    assert len({who.run_id, *who.nonces}) == 3
    for number in ("1", "2", "3"):
        record.write(
            tmp_path,
            who,
            ["fairseq-train", number],
            workers(tmp_path, "x", number),
            ["--groups", "2"],
        )
        assert record.identity(tmp_path, 2) == who
    text = (tmp_path / "launch.json").read_text()
    assert "hush" not in text
    written = json.loads(text)
    assert written["groups"] == [[{"argv": ["x", "3"], "env": {"CODISTILL_NONCE": "n"}}]]
    assert written["options"] == ["--groups", "2"]
    assert [entry["command"][1] for entry in written["history"]] == ["1", "2"]
    assert all("history" not in entry for entry in written["history"])
    assert {"python", "torch", "fairseq_codistill"} < set(written["versions"])
    assert written["git_commit"] is None or len(written["git_commit"]) == 40
    assert sorted(os.listdir(tmp_path)) == ["launch.json"]


def test_the_options_that_decide_what_is_trained(tmp_path):
    places = {"out": tmp_path, "max_restarts": 3, "hang_timeout": 0.0, "command": ["x"]}
    bare = run.Options(groups=2, workers_per_group=None, group_flags=[], **places)
    assert bare.for_the_record() == ["--groups", "2"]
    full = run.Options(groups=3, workers_per_group=4, group_flags=["0: -a", "1: -b"], **places)
    assert full.for_the_record() == [
        *["--groups", "3", "--workers-per-group", "4", "--group", "0: -a", "--group", "1: -b"],
    ]


def test_another_number_of_groups(tmp_path):
    record.write(tmp_path, record.identity(tmp_path, 2), ["x"], workers(tmp_path, "x"), [])
    with pytest.raises(UserError, match="--groups 3"):
        record.identity(tmp_path, 3)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99}'])
def test_a_file_that_is_not_ours(tmp_path, text):
    (tmp_path / "launch.json").write_text(text)
    with pytest.raises(UserError, match=r"launch\.json"):
        record.identity(tmp_path, 2)


def test_one_launch_at_a_time(tmp_path):
    out = tmp_path / "out"
    code = f"""
from pathlib import Path
from fairseq_codistill.launch import record
with record.only_launch(Path({str(out)!r})):
    pass
"""
    with record.only_launch(out):
        refused = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "in use by another launch" in refused.stderr
    subprocess.run([sys.executable, "-c", code], check=True)
