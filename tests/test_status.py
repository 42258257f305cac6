"""`codistill status`: what it says of real runs and of odd exchanges, and that it never writes."""

import json
import os
import pty
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

import fsspec
import pytest
import torch
from harness import BIN, LOCKSTEP, SEED_STEP, environment, eventually, keys, launch
from servers import s3_server

from fairseq_codistill import cli
from fairseq_codistill.exchange import Alive, Draft, Exchange, Store
from fairseq_codistill.records.heartbeat import clock_of_this_host
from fairseq_codistill.status import survey, table
from fairseq_codistill.status.places import Place
from fairseq_codistill.status.survey import MANIFESTS_READ, Member, Newest, Report, Run, Survey

NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def soon_sure(monkeypatch):
    """Heartbeats that do not look new are watched for a moment only."""
    monkeypatch.setattr(survey, "WATCH_SECONDS", 0.3)
    monkeypatch.setattr(survey, "LOOK_EVERY", 0.05)


@pytest.fixture(scope="module")
def out(corpus, tmp_path_factory):
    """The OUT of two groups that have trained to their end, in lockstep: it is known with what."""
    folder = tmp_path_factory.mktemp("status") / "out"
    launch(corpus, folder, *LOCKSTEP, "--codistill-interval", "5", "--disable-validation")
    return folder


def status(*arguments: object) -> str:
    """Run the command in a process of its own; give what it printed."""
    done = subprocess.run(
        [str(BIN / "codistill"), "status", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def told(capsys, *arguments: object) -> str:
    """The same in this process, which is quicker."""
    assert cli.main(["status", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def document(capsys, place: object) -> dict:
    return json.loads(told(capsys, place, "--json"))


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder with its time and size: a file made and removed shows too."""
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_size)
        for path in [folder, *folder.rglob("*")]
    }


def publish(store: Store, run_id: str, group: int, update: int) -> None:
    draft = Draft(
        group=group,
        seed=group,
        update=update,
        epoch=2,
        dtype="float32",
        vocabulary="v",
        model={},
        tensors={"weight": torch.zeros(1)},
        aliases={},
    )
    assert Exchange(store, run_id).publish(draft)


def say(store: Store, group: int, **fields: object) -> None:
    """Write a group's alive.json as a process of this host does."""
    now = {"time": time.time(), "clock": clock_of_this_host()}
    alive = Alive(run_id="a", nonce="n", seed=group, vocabulary="v", **now)
    data = json.dumps({**vars(alive), **fields}).encode()
    store.write(f"group-{group}/alive.json", data)


def test_a_run_that_has_finished(out, capsys):
    before = tree(out)
    named = [document(capsys, place) for place in (out, out / "exchange", f"file://{out}/exchange")]
    assert tree(out) == before
    (run,) = named[0]["runs"]
    assert json.loads((out / "launch.json").read_text())["exchange"] == str(out / "exchange")
    assert run["run_id"] == json.loads((out / "launch.json").read_text())["run_id"]
    for index, group in enumerate(run["groups"]):
        assert group["group"] == index
        assert group["state"] == "finished"
        assert group["seed"] == 1 + SEED_STEP * index
        assert (group["update"], group["restarts"]) == (20, 0)
        assert group["snapshot"]["update"] == 20
        size = (out / f"exchange/group-{index}/0000000020.safetensors").stat().st_size
        assert group["snapshot"]["bytes"] == size
        assert 0 <= group["snapshot"]["age"] < 600
        # Updates 16 to 20 were made with the peer's snapshot of update 15, and none after it.
        assert group["peers"] == [{"group": 1 - index, "update": 15, "staleness": 5}]
    assert named[0]["launch"]["groups"] == 2
    assert [one["launch"] for one in named[1:]] == [None, None]
    assert [[run["run_id"] for run in one["runs"]] for one in named] == [[run["run_id"]]] * 3


def test_the_table_of_a_real_run(out):
    lines = status(out).splitlines()
    assert lines[0] == f"exchange {out / 'exchange'}"
    assert re.fullmatch(r"launched once, last on \d{4}-\d\d-\d\d \d\d:\d\d: 2 groups", lines[1])
    assert lines[4].split() == [
        *["group", "state", "update", "epoch", "restarts", "staleness", "newest", "size", "age"]
    ]
    for index, line in enumerate(lines[5:]):
        pattern = rf" +{index}  finished +20 +\d+ +0  {1 - index}: 5 +20  \d+ kB +\d+ (s|min)"
        assert re.fullmatch(pattern, line), line
    assert len(lines) == 7


def test_every_key_is_documented_in_help(out, capsys):
    found = keys(document(capsys, out))
    with pytest.raises(SystemExit):
        cli.main(["status", "--help"])
    described = capsys.readouterr().out
    assert len(found) > 20
    assert {key for key in found if not re.search(rf"\b{key}\b", described)} == set()


def test_it_needs_no_more_than_to_read(out, capsys, monkeypatch):
    def refuse(*_):
        raise PermissionError("read only")

    for name in ("write", "delete"):
        monkeypatch.setattr(Store, name, refuse)
    assert document(capsys, out)["runs"][0]["groups"][0]["state"] == "finished"


def test_states(tmp_path, capsys):
    store = Store(str(tmp_path))
    now = time.time()
    say(store, 0, update=50, peers={"1": 40, "2": 70})
    say(store, 1, time=now - 300)
    say(store, 2, running=False)
    say(store, 3, running=False, finished=True, restarts=2, epoch=7)
    say(store, 10)
    for update in (20, 40):
        publish(store, "a", 0, update)
    (run,) = document(capsys, tmp_path)["runs"]
    groups = run["groups"]
    assert [(group["group"], group["state"]) for group in groups] == [
        *[(0, "running"), (1, "silent"), (2, "stopped"), (3, "finished"), (10, "running")]
    ]
    assert groups[0]["peers"] == [
        {"group": 1, "update": 40, "staleness": 10},
        {"group": 2, "update": 70, "staleness": -20},
    ]
    assert groups[0]["snapshot"]["update"] == 40
    assert groups[1]["snapshot"] is None
    assert 299 < groups[1]["silence"] < 400
    assert (groups[3]["restarts"], groups[3]["epoch"]) == (2, 7)
    assert "1  silent 5 min" in told(capsys, tmp_path)


# Seconds by which another host's clock is off: behind, ahead, and as set by nobody.
OFF = [-90.0, 30.0, 7200.0, -1.7e9]


@pytest.mark.parametrize("off", [0.0, *OFF])
def test_a_group_that_runs_does_so_whatever_its_clock_says(tmp_path, monkeypatch, capsys, off):
    monkeypatch.setattr(survey, "WATCH_SECONDS", 60.0)
    store, stop = Store(str(tmp_path)), threading.Event()
    say(store, 0, time=time.time() + off, clock="another")

    def beat():
        while not stop.wait(0.1):
            say(store, 0, time=time.time() + off, clock="another")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        (run,) = document(capsys, tmp_path)["runs"]
    finally:
        stop.set()
        thread.join()
    (group,) = run["groups"]
    assert group["state"] == "running"
    # Of another clock's future no age can be told.
    assert (group["silence"] is None) == (off > 5)


@pytest.mark.parametrize("off", [0.0, *OFF])
def test_a_group_that_was_killed_is_silent_whatever_its_clock_said(tmp_path, capsys, off):
    store = Store(str(tmp_path))
    other = {"time": time.time() + off, "clock": "another"}
    say(store, 0, **other)
    say(store, 1, **other, running=False)
    # An earlier version does not tell which clock it is.
    say(store, 2, **other | {"clock": None})
    (run,) = document(capsys, tmp_path)["runs"]
    assert [group["state"] for group in run["groups"]] == ["silent", "stopped", "silent"]
    assert "silent" in told(capsys, tmp_path)


@pytest.mark.parametrize(("age", "state"), [(0, "running"), (40, "running"), (70, "silent")])
def test_a_heartbeat_of_this_host_tells_its_age(tmp_path, monkeypatch, capsys, age, state):
    if state == "running":
        monkeypatch.setattr(survey, "WATCH_SECONDS", 1e6)
    say(Store(str(tmp_path)), 0, time=time.time() - age)
    (run,) = document(capsys, tmp_path)["runs"]
    assert run["groups"][0]["state"] == state


def test_a_heartbeat_that_was_seen_to_change_is_believed_for_a_minute_only(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    say(store, 0, clock="another")
    monkeypatch.setattr(survey, "WATCH_SECONDS", 60.0)
    looks = Survey(Place(str(tmp_path)))
    # As time goes by; that it stands still by the other clock says nothing.
    monkeypatch.setattr(survey, "SILENT_SECONDS", 0.5)

    def state():
        return looks.look().runs[0].members[0].state

    timer = threading.Timer(0.2, say, (store, 0), {"clock": "another", "update": 7})
    timer.start()
    assert state() == "running"
    eventually(lambda: state() == "silent", "a heartbeat that stands still is believed")
    say(store, 0, clock="another", update=8)
    assert state() == "running"


def test_several_runs_the_last_one_first(tmp_path, capsys):
    store = Store(str(tmp_path))
    # The first run was the longer one: its last snapshots lie above the second's.
    for update in (10, 20, 30):
        publish(store, "first", 0, update)
        publish(store, "first", 1, update)
    publish(store, "second", 0, 10)
    say(store, 0, run_id="second", update=15)
    say(store, 1, run_id="first", update=30, running=False, time=time.time() - 100)
    runs = document(capsys, tmp_path)["runs"]
    assert [run["run_id"] for run in runs] == ["second", "first"]
    (own,) = runs[0]["groups"]
    assert (own["state"], own["snapshot"]["update"]) == ("running", 10)
    assert [(g["group"], g["state"], g["snapshot"]["update"]) for g in runs[1]["groups"]] == [
        *[(0, "past", 30), (1, "stopped", 30)]
    ]


def test_another_look_sees_what_another_run_has_put_in_the_place_of_the_first(tmp_path):
    store = Store(str(tmp_path))
    publish(store, "first", 0, 10)
    say(store, 0, run_id="first")
    survey = Survey(Place(str(tmp_path)))
    assert [run.run_id for run in survey.look().runs] == ["first"]
    publish(store, "second", 0, 10)
    say(store, 0, run_id="second")
    (run,) = survey.look().runs
    assert run.run_id == "second"
    assert run.members[0].snapshot is not None


def test_a_watch_reads_a_manifest_once(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    say(store, 0)
    for update in range(10, 510, 10):
        publish(store, "a", 0, update)
    survey, read, opened = Survey(Place(str(tmp_path))), Store.read, []

    def counting(self, name, limit):
        opened.append(name)
        return read(self, name, limit)

    monkeypatch.setattr(Store, "read", counting)
    survey.look()
    assert len(opened) == 1 + MANIFESTS_READ
    opened.clear()
    publish(store, "a", 0, 510)
    assert survey.look().runs[0].members[0].snapshot.update == 510
    assert set(opened) == {"group-0/alive.json", "group-0/0000000510.json"}


def test_groups_of_a_launch_that_have_not_come_forward(out, tmp_path, capsys):
    # As right after the start; and OUT was moved since, as its exchange was with it.
    moved = tmp_path / "elsewhere"
    (moved / "exchange").mkdir(parents=True)
    text = (out / "launch.json").read_text().replace(str(out), str(tmp_path / "gone"))
    (moved / "launch.json").write_text(text)
    said = document(capsys, moved)
    assert said["exchange"] == str(moved / "exchange")
    (run,) = said["runs"]
    assert [group["state"] for group in run["groups"]] == ["absent", "absent"]
    assert told(capsys, moved).count("not yet seen") == 2


def test_a_relative_exchange_of_a_launch(tmp_path, capsys):
    say(Store(str(tmp_path / "there")), 0)
    worker = {"argv": ["fairseq-train", "d", "--codistill-dir", "there"], "env": {}}
    record = {"format": 1, "run_id": "a", "nonces": ["n", "m"], "history": []}
    record |= {"groups": [[worker], [worker]], "time": "2026-01-01T00:00:00+00:00"}
    record |= {"directory": str(tmp_path)}
    (tmp_path / "out").mkdir()
    (tmp_path / "out/launch.json").write_text(json.dumps(record))
    (run,) = document(capsys, tmp_path / "out")["runs"]
    assert [group["state"] for group in run["groups"]] == ["running", "absent"]


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("group-0/0000000030.json", b"{torn", "snapshot of update 30: its manifest is not JSON"),
        ("group-0/alive.json", b"{torn", "its alive.json cannot be read"),
        ("group-0/alive.json", b"[" * 5000, "its alive.json cannot be read"),
        ("group-0/alive.json", b'{"peers": 1}', "its alive.json cannot be read"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, capsys, name, data, says):
    store = Store(str(tmp_path))
    say(store, 0)
    publish(store, "a", 0, 20)
    store.write(name, data)
    said = document(capsys, tmp_path)
    (problem,) = said["problems"]
    assert problem.startswith(f"group 0: {says}")
    assert said["runs"][0]["groups"][0]["snapshot"]["update"] == 20
    assert f"! {problem}"[:60] in told(capsys, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"update": "7"},
        {"peers": ["1"]},
        {"peers": {"x": 1}},
        {"peers": {"1": None}},
        {"run_id": 7},
        {"time": "now"},
        {"restarts": None},
    ],
)
def test_an_alive_json_of_odd_kinds(tmp_path, capsys, fields):
    say(Store(str(tmp_path)), 0, **fields)
    said = document(capsys, tmp_path)
    assert said["runs"] == []
    assert "alive.json" in said["problems"][0]


def test_a_run_id_cannot_command_the_terminal(tmp_path, capsys):
    say(Store(str(tmp_path)), 0, run_id="\x1b]0;mine\x07\nrun b")
    table = told(capsys, tmp_path)
    assert "\x1b" not in table
    assert r"run \x1b]0;mine\x07\nrun b" in table


@pytest.mark.parametrize(
    ("make", "place", "says"),
    [
        (None, "nowhere", "is not there; name the --out of a launch, or an exchange"),
        ("file", "file", "is a file; name the --out of a launch"),
        ("other/letter", "other", "is no exchange (it has no group-0/alive.json"),
        ("empty/", "empty", "there is nothing in"),
        ("broken/launch.json", "broken", "launch.json is not of this version's making"),
        (None, "pigeon://loft", "pigeon://loft cannot be opened (Protocol not known: pigeon)"),
        (None, "file:///nowhere/at/all", "there is nothing in file:///nowhere/at/all yet"),
    ],
)
def test_sentences_for_what_is_no_exchange(tmp_path, capsys, monkeypatch, make, place, says):
    monkeypatch.chdir(tmp_path)
    if make is not None:
        path = tmp_path / make
        (path if make.endswith("/") else path.parent).mkdir(exist_ok=True)
        if not make.endswith("/"):
            path.write_text("")
    assert cli.main(["status", place]) == 2
    error = capsys.readouterr().err
    assert error.startswith("codistill: error: ")
    assert says in error
    assert error.count("\n") == 1


def test_a_run_of_one_group_has_no_exchange(tmp_path, capsys):
    worker = {"argv": ["fairseq-train", "d"], "env": {}}
    record = {"format": 1, "run_id": "a", "nonces": ["n"], "groups": [[worker]], "history": []}
    (tmp_path / "launch.json").write_text(json.dumps({**record, "time": "2026-01-01T00:00:00"}))
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "has one group, and a single group exchanges nothing" in capsys.readouterr().err


def test_a_store_that_cannot_be_listed(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise OSError("no route to host")

    monkeypatch.setattr(Store, "names", broken)
    assert cli.main(["status", str(tmp_path)]) == 2
    assert "cannot be listed (OSError: no route to host); see to the" in capsys.readouterr().err


def test_a_table_of_great_numbers_fits_into_80_columns():
    snapshot = Newest(update=1234500, epoch=100, bytes=2_345_678_901, dtype="bfloat16", age=3e5)
    members = tuple(
        Member(
            group=group,
            state="silent" if group else "running",
            silence=86400.0 * 9,
            update=1234567,
            epoch=123,
            restarts=12,
            peers=tuple((peer, 1231000 + peer) for peer in range(9) if peer != group),
            snapshot=snapshot,
        )
        for group in range(9)
    )
    report = Report(Place("s3://bucket/run"), NOW, (Run("r" * 16, NOW - 5, members),), ("x " * 90,))
    lines = table.lines(report)
    print("\n".join(lines))
    assert max(map(len, lines)) <= 80
    assert "3559 to 3566" in lines[4]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.4, "0 s"), (99, "99 s"), (120, "2 min"), (7200, "2 h"), (86400 * 3, "3 d")],
)
def test_durations(seconds, said):
    assert table.duration(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [
        *[(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (17116, "17 kB"), (999_700, "1.0 MB")],
        *[(420_000_000, "420 MB"), (1_234_000_000, "1.2 GB"), (5 * 10**16, "50000 TB")],
    ],
)
def test_sizes(count, said):
    assert table.size(count) == said


def test_watch_redraws_in_place_until_ctrl_c(tmp_path):
    store = Store(str(tmp_path))
    say(store, 0, update=1)
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(BIN / "codistill"), "status", str(tmp_path), "--watch", "0.2"],
        stdout=terminal,
        stderr=subprocess.STDOUT,
        env=environment(),
    )
    os.close(terminal)
    shown = b""

    def wait_for(text: bytes) -> None:
        nonlocal shown
        deadline = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < deadline, shown
            shown += os.read(controller, 10000)

    wait_for(b"running       1")
    shown = b""
    say(store, 0, update=2)
    wait_for(b"running       2")
    # Up over all that was drawn, and clear from there.
    wait_for(b"\x1b[7F\x1b[J")
    (tmp_path / "group-0/alive.json").unlink()
    (tmp_path / "group-0").rmdir()
    wait_for(b"there is nothing in")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert b"Traceback" not in shown
    os.close(controller)


def test_watch_as_json_gives_a_document_a_line(tmp_path):
    say(Store(str(tmp_path)), 0)
    process = subprocess.Popen(
        [str(BIN / "codistill"), "status", "--json", str(tmp_path), "--watch", "0.1"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    documents = [json.loads(process.stdout.readline()) for _ in range(3)]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert documents[0]["time"] < documents[1]["time"] < documents[2]["time"]


def test_watch_wants_seconds_after_the_place(capsys):
    for arguments, says in [
        (["--watch", "out"], "'out' is no number of seconds; what to look at comes before"),
        (["out", "--watch", "0"], "0 seconds cannot be"),
    ]:
        with pytest.raises(SystemExit) as end:
            cli.main(["status", *arguments])
        assert end.value.code == 2
        assert says in capsys.readouterr().err


def test_an_exchange_in_s3(out, monkeypatch, capsys):
    with s3_server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        there, here = Store(server.uri("some/run")), out / "exchange"
        for path in here.rglob("*.*"):
            there.write(str(path.relative_to(here)), path.read_bytes())

        def objects() -> dict:
            store, root = fsspec.core.url_to_fs(there.uri, use_listings_cache=False)
            found = store.find(root, detail=True)
            assert len(found) > 8
            return {name: (entry["size"], entry["LastModified"]) for name, entry in found.items()}

        before = objects()
        # A process of its own knows the server by its environment alone.
        remote = json.loads(status(server.uri("some/run"), "--json"))
        assert objects() == before
        local = document(capsys, here)
        assert remote["exchange"] == "s3://exchange/some/run"
        for one in (remote, local):
            for group in one["runs"][0]["groups"]:
                group["silence"] = group["snapshot"]["age"] = 0
        assert remote["runs"] == local["runs"]
        assert cli.main(["status", server.uri("other")]) == 2
        assert "there is nothing in s3://exchange/other yet" in capsys.readouterr().err
