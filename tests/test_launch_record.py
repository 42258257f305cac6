"""What a run keeps of itself: launch.json and the lock."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from written_records import write_record

from fairseq_codistill.errors import UserError
from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.launch import record, run
from fairseq_codistill.launch.commands import Plan, Worker, exchange_address
from fairseq_codistill.launch.devices import Devices
from fairseq_codistill.launch.dialects import recognise


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
            "s3://bucket/x",
        )
        assert record.identity(tmp_path, 2) == who
    text = (tmp_path / "launch.json").read_text()
    assert "hush" not in text
    written = json.loads(text)
    assert written["groups"] == [[{"argv": ["x", "3"], "env": {"CODISTILL_NONCE": "n"}}]]
    assert written["options"] == ["--groups", "2"]
    assert written["exchange"] == "s3://bucket/x"
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
    record.write(tmp_path, record.identity(tmp_path, 2), ["x"], workers(tmp_path, "x"), [], None)
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
with record.only_launch(Path({str(out)!r}), print):
    pass
"""
    with record.only_launch(out, print):
        refused = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        assert "in use by another launch" in refused.stderr
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_record_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    # Otherwise a power cut leaves an empty file under a name that is obeyed.
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        size = os.fstat(descriptor).st_size
        calls.append((f"sync {kind}", size if kind == "file" else 0))
        fsync(descriptor)

    def renamed(*names, **options):
        calls.append(("rename", 0))
        replace(*names, **options)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    record.write(tmp_path, record.Identity("r", ("n",)), ["x"], workers(tmp_path, "x"), [], None)
    size = (tmp_path / "launch.json").stat().st_size
    assert calls == [("sync file", size), ("rename", 0), ("sync directory", 0)]


def test_others_can_write_neither_out_nor_the_record(tmp_path):
    out = tmp_path / "some/out"
    before = os.umask(0)
    try:
        with record.only_launch(out, print):
            record.write(out, record.Identity("r", ("n",)), ["x"], workers(out, "x"), [], None)
    finally:
        os.umask(before)
    for path in (out, out / "launch.json", out / "launch.lock"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o022 == 0, path


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        *[({"format": True}, "format"), ({"format": "1"}, "format"), ({"run_id": 7}, "run_id")],
        *[({"run_id": ""}, "run_id"), ({"run_id": "a\ud800"}, "run_id"), ({"time": 1}, "time")],
        *[({"time": "soon"}, "time"), ({"time": "0001-01-01T00:00:00+23:59"}, "time")],
        *[({"nonces": "ab"}, "nonces"), ({"nonces": [1]}, "nonces"), ({"groups": []}, "groups")],
        *[({"groups": [[{"argv": "x", "env": {}}]]}, "groups"), ({"groups": {}}, "groups")],
        *[({"groups": [[{"argv": []}]]}, "groups"), ({"groups": [[]] * 10_001}, "groups")],
        ({"groups": [[{"argv": ["x"], "env": {"A": 1}}]]}, "groups"),
        *[({"history": {}}, "history"), ({"history": [1]}, "history")],
        ({"history": [{"groups": 1}]}, "entry 0 of its history: its field groups"),
        *[({"versions": []}, "versions"), ({"versions": {"torch": 2}}, "versions")],
        *[({"files": value}, "files") for value in ([], {"a": 1}, {"a": {"b": 1}})],
        ({"files": {"a": {"b": "\0"}}}, "files"),
        *[({"options": "--groups"}, "options"), ({"command": None}, "command")],
        *[({"directory": 1}, "directory"), ({"directory": "a\0b"}, "directory")],
        *[({"exchange": 1}, "exchange"), ({"exchange": "a\0"}, "exchange")],
        *[({"git_commit": 1}, "git_commit"), ({"nonces": None}, "nonces")],
    ],
)
def test_every_field_is_checked(tmp_path, fields, says):
    write_record(tmp_path, **fields)
    with pytest.raises(UserError, match=says) as refused:
        record.read(tmp_path)
    assert len(str(refused.value)) < 1000


@pytest.mark.parametrize("name", ["run_id", "nonces", "time", "groups", "history"])
def test_a_field_that_is_missing(tmp_path, name):
    write_record(tmp_path, **{name: ...})
    with pytest.raises(UserError, match=f"lacks {name}"):
        record.read(tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        *[b"[" * 100_000, b'{"x":' * 800 + b"1" + b"}" * 800, b'{"format": ' + b"[" * 900],
        *[b'{"format": 1' + b"0" * 5000 + b"}", b'{"' + b"1" * 5000 + b'": 1}', b"\xff\xfe"],
        *[b'{"format": NaN}', b'{"format": 1, "format": 1}', b'{"x": "\\ud800"}'],
    ],
)
def test_odd_json_is_a_sentence(tmp_path, text):
    (tmp_path / "launch.json").write_bytes(text)
    with pytest.raises(UserError, match=r"launch\.json is not of this version's making"):
        record.read(tmp_path)


@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "nowhere", "terabyte"])
def test_what_is_no_file_is_neither_read_nor_waited_for(tmp_path, kind):
    path = tmp_path / "launch.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "terabyte":
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to("/dev/zero" if kind == "link" else "nowhere")
    with pytest.raises(UserError, match=r"launch\.json is not of this version's making"):
        within(60, lambda: record.read(tmp_path))


@pytest.mark.parametrize("kind", ["pipe", "directory", "link"])
def test_a_lock_that_is_no_file(tmp_path, kind):
    path, other = tmp_path / "launch.lock", tmp_path / "other"
    other.write_text("mine")
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(other)

    said = []

    def take():
        with record.only_launch(tmp_path, said.append):
            pass

    within(60, take)
    (warning,) = said
    assert "launch.lock cannot be locked" in warning
    assert other.read_text() == "mine"


def test_a_directory_that_is_not_utf8(tmp_path, monkeypatch):
    place = tmp_path / os.fsdecode(b"\xff\n")
    place.mkdir()
    monkeypatch.chdir(place)
    who = record.Identity("r", ("n",))
    for _ in range(2):
        record.write(place, who, ["x"], workers(place, str(place)), [], str(place / "exchange"))
    written = record.read(place)
    assert written["exchange"] == str(place / "exchange")
    assert len(written["history"]) == 1


def test_the_oldest_launches_give_way_before_the_record_is_too_large(tmp_path):
    who = record.Identity("r", ("n",))
    entry = {"command": ["x" * 1_000_000], "time": "2026-01-01T00:00:00+00:00"}
    write_record(tmp_path, history=[{**entry, "options": [str(n)]} for n in range(15)])
    record.write(tmp_path, who, ["y"], workers(tmp_path, "y"), [], None)
    history = record.read(tmp_path)["history"]
    assert 5 < len(history) < 15
    assert [one.get("options") for one in history[-3:-1]] == [["13"], ["14"]]


@pytest.mark.parametrize(
    ("groups", "said", "own", "expected"),
    [
        (1, ["--codistill-dir", "x"], [], None),
        (2, [], [], "OUT/exchange"),
        (2, ["--codistill-dir", "x"], [], "HERE/x"),
        (2, ["--codistill-dir=~/x"], [], "HOME/x"),
        (2, ["--codistill-dir", "file:///data/x"], [], "/data/x"),
        (2, ["--codistill-dir", "s3://bucket/x"], [], "s3://bucket/x"),
        (2, ["--codistill-dir", "x"], ["--codistill-dir", "/mnt/x"], "/mnt/x"),
    ],
)
def test_the_exchange_that_is_recorded(tmp_path, monkeypatch, groups, said, own, expected):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "out"
    plan = Plan(
        dialect=recognise(["fairseq-train", "d", *said]),
        groups=groups,
        devices=Devices(workers=1, gpus=(), cores=1),
        out=out,
        run_id="r",
        nonces=("n",) * groups,
        flags={0: own},
    )
    for name, place in {"OUT": out, "HERE": tmp_path, "HOME": tmp_path / "home"}.items():
        if expected is not None and expected.startswith(name):
            expected = str(Path(place, expected.removeprefix(f"{name}/")))
    assert exchange_address(plan) == expected


def test_an_exchange_that_a_yaml_names_is_recorded_as_launch_understands_it(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH", "/mnt/scratch")
    yaml = "task:\n  codistill_dir: ${oc.env:SCRATCH}/x\n"
    (tmp_path / "my.yaml").write_text(yaml)
    command = ["fairseq-hydra-train", "--config-dir", str(tmp_path), "--config-name", "my"]
    cpu = Devices(workers=1, gpus=(), cores=1)
    plan = Plan(recognise(command), 2, cpu, tmp_path / "out", "r", ("n", "m"))
    assert exchange_address(plan) == "/mnt/scratch/x"
