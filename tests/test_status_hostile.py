"""`codistill status` before what others have put in an exchange, or in an OUT."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from harness import BIN, environment
from written_records import write_record

from fairseq_codistill import cli
from fairseq_codistill.exchange import Alive, Draft, Exchange, Store
from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.records import guarded
from fairseq_codistill.records.heartbeat import clock_of_this_host
from fairseq_codistill.status import limits, survey

ESCAPES = "\x1b]0;mine\x07\n2026-01-01 | INFO | train_inner | {}\r\u202e"

# Some of these waited for ever.
PATIENCE = 120


def status(capsys, *arguments: object) -> tuple[int, str, str]:
    """Run the command; give its status, its output and its errors, which hold no control."""
    code = within(PATIENCE, lambda: cli.main(["status", *map(str, arguments)]))
    out, err = capsys.readouterr()
    for text in (out, err):
        assert all(line.isprintable() for line in text.split("\n")), text
        assert "Traceback" not in text
    assert err.count("\n") <= 1
    return code, out, err


def document(capsys, place: object) -> dict:
    code, out, err = status(capsys, place, "--json")
    assert code == 0, err
    json.loads(out.encode("utf-8"))
    out.encode("utf-8")
    said = json.loads(out)
    json.dumps(said, ensure_ascii=False).encode("utf-8")  # no half of a surrogate pair
    return said


def say(folder: Path, group: int = 0, **fields: object) -> None:
    """Write a group's alive.json."""
    now = {"time": time.time(), "clock": clock_of_this_host()}
    alive = Alive(run_id="a", nonce="n", seed=group, vocabulary="v", **now)
    (folder / f"group-{group}").mkdir(parents=True, exist_ok=True)
    text = json.dumps({**vars(alive), **fields})
    (folder / f"group-{group}/alive.json").write_text(text)


def publish(folder: Path, run_id: str, group: int, update: int) -> None:
    fields = {"seed": group, "epoch": 2, "dtype": "float32", "vocabulary": "v", "model": {}}
    draft = Draft(
        group=group, update=update, tensors={"weight": torch.zeros(1)}, aliases={}, **fields
    )
    assert Exchange(Store(str(folder)), run_id).publish(draft)


def run_ids(said: dict) -> list[str]:
    return [run["run_id"] for run in said["runs"]]


@pytest.fixture
def trap(monkeypatch):
    """A port of this machine that nobody may connect to; gives its address."""
    monkeypatch.setenv("HUSH", "hUsH42")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        listener.listen()
        listener.setblocking(False)
        yield f"localhost:{listener.getsockname()[1]}"
        with pytest.raises(BlockingIOError):
            listener.accept()


@contextlib.contextmanager
def never_read(monkeypatch, name):
    """Fail if a file of this name is opened or looked at by the guarded reader."""
    read = guarded.read_file

    def refuse(path, *limit):
        assert path.name != name, f"{path} was read"
        return read(path, *limit)

    with monkeypatch.context() as patch:
        patch.setattr(guarded, "read_file", refuse)
        yield


def records(trap: str, tmp_path: Path) -> dict[str, dict]:
    """launch.json as an attacker would have it: each leads to an address of theirs."""
    yaml = tmp_path / "evil.yaml"
    yaml.write_text(f"task:\n  codistill_dir: http://{trap}/${{oc.env:HUSH}}\n")

    def told(*argv):
        worker = {"argv": list(argv), "env": {}}
        return {"groups": [[worker], [worker]], "exchange": ...}

    hydra = ("fairseq-hydra-train", "--config-dir", str(tmp_path), "--config-name", "evil")
    vision = ("python", "-m", "fairseq_codistill.vision", "--config", str(yaml))
    return {
        "recorded": {"exchange": f"http://{trap}/x"},
        "flag": told("fairseq-train", "d", "--codistill-dir", f"http://{trap}/x"),
        "chain": told("fairseq-train", "d", "--codistill-dir", f"simplecache::http://{trap}/x"),
        "hydra": told(*hydra),
        "vision": told(*vision),
    }


KINDS = ["recorded", "flag", "chain", "hydra", "vision"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_json_in_an_exchange_is_not_read(tmp_path, capsys, monkeypatch, trap, kind):
    exchange = tmp_path / "exchange"
    say(exchange, run_id="sound")
    write_record(exchange, run_id="forged", **records(trap, tmp_path)[kind])
    with never_read(monkeypatch, "launch.json"):
        said = document(capsys, exchange)
    assert (said["exchange"], run_ids(said)) == (str(exchange), ["sound"])
    assert (said["launch"], said["problems"]) == (None, [])


def test_so_it_is_where_only_snapshots_are(tmp_path, capsys, monkeypatch, trap):
    publish(tmp_path, "sound", 3, 100)
    write_record(tmp_path, **records(trap, tmp_path)["recorded"])
    with never_read(monkeypatch, "launch.json"):
        assert run_ids(document(capsys, tmp_path)) == ["sound"]


@pytest.mark.parametrize("kind", ["pipe", "directory", "link", "terabyte", "deep"])
@pytest.mark.parametrize("has", ["groups", "exchange", "nothing"])
def test_what_is_in_the_place_of_a_launch_json(tmp_path, capsys, kind, has):
    put(tmp_path / "launch.json", kind)
    if has == "nothing":
        code, _, err = status(capsys, tmp_path)
        assert code == 2
        assert "launch.json is not of this version's making" in err
        return
    say(tmp_path if has == "groups" else tmp_path / "exchange", run_id="sound")
    said = document(capsys, tmp_path)
    assert run_ids(said) == ["sound"]
    assert len(said["problems"]) == (has == "exchange")


def put(path: Path, kind: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one, contextlib.chdir(path.parent):
            one.bind(path.name)
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/dev/zero")
    elif kind == "terabyte":
        path.touch()
        os.truncate(path, 1 << 40)
    elif kind == "deep":
        path.write_bytes(b'{"a":' * 100_000)
    elif kind == "digits":
        path.write_text('{"update": ' + "1" * 5000 + "}")
    elif kind == "key":
        path.write_text('{"peers": {"' + "1" * 5000 + '": 1}}')
    else:
        path.write_bytes({"bytes": b"\xff\xfe\x00", "half": b'{"run_id": "\\ud800"}'}[kind])


ODD = ["pipe", "socket", "directory", "link", "terabyte", "deep", "digits", "key", "bytes", "half"]


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["alive.json", "0000000100.json"])
def test_what_is_in_the_place_of_a_file_of_the_contract(tmp_path, capsys, kind, name):
    publish(tmp_path, "sound", 1, 50)
    put(tmp_path / "group-1" / name, kind)
    said = document(capsys, tmp_path)
    assert run_ids(said) == ["sound"]
    assert said["runs"][0]["groups"][0]["snapshot"]["update"] == 50
    (problem,) = said["problems"]
    assert problem.startswith("group 1: ")
    code, out, _ = status(capsys, tmp_path)
    assert code == 0
    assert out.count("! group 1: ") == 1


@pytest.mark.parametrize("kind", ["pipe", "socket", "link", "terabyte"])
def test_what_is_in_the_place_of_a_group(tmp_path, capsys, kind):
    say(tmp_path, 1)
    put(tmp_path / "group-0", kind)
    said = document(capsys, tmp_path)
    assert [group["group"] for group in said["runs"][0]["groups"]] == [1]
    assert len(said["problems"]) == 1
    assert said["problems"][0].startswith("group 0: ")


@pytest.mark.parametrize("kind", ["pipe", "socket", "terabyte"])
def test_what_is_named_and_is_no_directory(tmp_path, capsys, kind):
    put(tmp_path / "there", kind)
    code, _, err = status(capsys, tmp_path / "there")
    assert (code, "is a file; name the --out of a launch" in err) == (2, True)


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb\x1b[2J", "", "\udcff", "~/nowhere"])
def test_odd_names_on_the_command_line(tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    code, _, err = status(capsys, name)
    assert code == 2
    assert err.startswith("codistill: error: ")
    assert len(err) < 3000


def test_odd_names_of_groups(tmp_path, capsys):
    say(tmp_path, 7)
    for name in ("group-" + "1" * 200, "group-07", "group-١", "group-7\n", "group--1", "group-"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "alive.json").write_text("{}")
    said = document(capsys, tmp_path)
    assert [group["group"] for group in said["runs"][0]["groups"]] == [7]
    assert said["problems"] == []


@pytest.mark.parametrize("field", ["run_id", "nonce", "vocabulary"])
def test_text_of_an_alive_json_writes_no_lines(tmp_path, capsys, field):
    say(tmp_path, **{field: ESCAPES})
    code, out, _ = status(capsys, tmp_path)
    assert code == 0
    assert len(out.splitlines()) == 5
    said = document(capsys, tmp_path)
    assert said["problems"] == []
    assert run_ids(said) == [ESCAPES if field == "run_id" else "a"]


def test_text_of_a_manifest_writes_no_lines(tmp_path, capsys):
    publish(tmp_path, ESCAPES, 0, 10)
    code, out, _ = status(capsys, tmp_path)
    assert (code, len(out.splitlines())) == (0, 5)
    path = tmp_path / "group-0/0000000010.json"
    said = json.loads(path.read_text())
    path.write_text(json.dumps({**said, ESCAPES: 1, "dtype": ESCAPES}))
    (problem,) = document(capsys, tmp_path)["problems"]
    assert "update 10" in problem
    assert problem.isprintable()


def test_a_manifest_that_lies_elsewhere(tmp_path, capsys):
    publish(tmp_path, "a", 0, 10)
    moved = tmp_path / "group-3/0000000099.json"
    moved.parent.mkdir()
    moved.write_bytes((tmp_path / "group-0/0000000010.json").read_bytes())
    said = document(capsys, tmp_path)
    assert [group["group"] for group in said["runs"][0]["groups"]] == [0]
    assert said["problems"] == [
        "group 3: snapshot of update 99: its manifest is that of group 0, update 10"
    ]


def test_more_than_anybody_reads(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(survey, "WATCH_SECONDS", 0.3)
    monkeypatch.setattr(survey, "LOOK_EVERY", 0.05)
    for name, most in {"MOST_GROUPS": 20, "MOST_RUNS": 5, "MOST_PROBLEMS": 10}.items():
        monkeypatch.setattr(survey, name, most)
    for group in range(50):
        say(tmp_path, group, run_id=f"run {group}", time=1000.0 + group)
        (tmp_path / f"group-{group}/0000000001.json").write_text("{")
    said = document(capsys, tmp_path)
    assert run_ids(said) == [f"run {group}" for group in (19, 18, 17, 16, 15)]
    problems = said["problems"]
    assert problems[:2] == [
        "30 more groups are there and are not read",
        "15 earlier runs are there and are not shown",
    ]
    assert len(problems) == 11
    assert problems[-1] == "and 12 more problems like these"


def test_groups_that_are_launched_are_shown_up_to_a_number(tmp_path, capsys):
    write_record(tmp_path, groups=[[]] * 10_000, nonces=[])
    (tmp_path / "exchange").mkdir()
    (run,) = document(capsys, tmp_path)["runs"]
    assert len(run["groups"]) == survey.MOST_GROUPS


def outs(tmp_path: Path) -> tuple[Path, Path]:
    """An OUT whose own exchange holds the run "inside", and a directory with the run "outside"."""
    out, other = tmp_path / "out", tmp_path / "other"
    say(out / "exchange", run_id="inside")
    say(other, run_id="outside")
    out.chmod(0o755)
    return out, other


def test_the_exchange_that_launch_has_recorded(tmp_path, capsys):
    out, other = outs(tmp_path)
    for recorded in (str(other), f"file://{other}", "../other"):
        write_record(out, exchange=recorded)
        said = document(capsys, out)
        assert (said["exchange"], run_ids(said)) == (str(other), ["a", "outside"])
        assert said["problems"] == []


@pytest.mark.parametrize("whose", ["directory", "file", "another's directory", "another's file"])
def test_a_record_that_others_can_write_is_not_obeyed(tmp_path, capsys, whose):
    out, other = outs(tmp_path)
    write_record(out, run_id="launched", exchange=str(other), time="2026-01-01T00:00:00+00:00")
    place = out if "directory" in whose else out / "launch.json"
    if "another" in whose:
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(place, 12345, -1)
        says = f"{place} belongs to another user"
    else:
        place.chmod(place.stat().st_mode | 0o020)
        says = f"others can write {place} (mode "
    said = document(capsys, out)
    assert said["exchange"] == str(out / "exchange")
    assert run_ids(said) == ["launched", "inside"]
    assert [group["state"] for group in said["runs"][0]["groups"]] == ["absent", "absent"]
    (problem,) = said["problems"]
    assert f"launch.json is not obeyed, as {says}" in problem
    assert "chmod go-w" in problem
    code, shown, _ = status(capsys, out)
    assert code == 0
    assert "! " in shown
    # Without an exchange of its own there is nothing to show.
    (out / "exchange").rename(tmp_path / "moved")
    code, _, err = status(capsys, out)
    assert code == 2
    assert "name the exchange itself" in err


@pytest.mark.parametrize("kind", KINDS)
def test_nor_is_anything_opened_for_it(tmp_path, capsys, trap, kind):
    out, _ = outs(tmp_path)
    write_record(out, **records(trap, tmp_path)[kind])
    out.chmod(0o777)
    assert "inside" in run_ids(document(capsys, out))


@pytest.mark.parametrize("kind", ["hydra", "vision"])
def test_a_file_that_a_record_names_is_not_read(tmp_path, capsys, trap, kind):
    out, _ = outs(tmp_path)
    write_record(out, **records(trap, tmp_path)[kind])
    said = document(capsys, out)
    assert said["exchange"] == str(out / "exchange")
    assert "is of an earlier version and does not tell where the exchange is" in said["problems"][0]


@pytest.mark.parametrize(
    "argv",
    [
        ["fairseq-train", "d", "--codistill-dir", "PLACE"],
        ["/usr/bin/python3", "-m", "fairseq_codistill.vision", "--codistill-dir=PLACE"],
        ["fairseq-hydra-train", "--config-name", "x", "++task.codistill_dir=PLACE"],
    ],
)
@pytest.mark.parametrize("place", ["absolute", "relative"])
def test_the_command_of_an_earlier_version(tmp_path, capsys, argv, place):
    out, other = outs(tmp_path)
    named = str(other) if place == "absolute" else "other"
    worker = {"argv": [word.replace("PLACE", named) for word in argv], "env": {}}
    groups = [[worker], [worker]]
    write_record(out, exchange=..., groups=groups, directory=str(tmp_path))
    assert document(capsys, out)["exchange"] == str(other)


@pytest.mark.parametrize(
    ("exchange", "says"),
    [
        ("reference::data:,%7B%7D", "chain of stores"),
        ("memory://x", "one process"),
        ("ftp://me:hUsH42@localhost/x", "holds a secret"),
        ("zip://x", "single file"),
    ],
)
def test_addresses_that_are_refused_wherever_they_come_from(tmp_path, capsys, exchange, says):
    write_record(tmp_path, exchange=exchange)
    for place in (tmp_path, exchange):
        code, out, err = status(capsys, place)
        assert (code, says in err) == (2, True), err
        assert "hUsH42" not in out + err


def test_an_out_whose_path_is_no_unicode(tmp_path, capsys):
    out = tmp_path / os.fsdecode(b"\xffa\x1b[2J\n")
    say(out / "exchange", run_id="inside")
    write_record(out)
    out.chmod(0o755)
    said = document(capsys, out)
    assert said["exchange"].endswith("/\\udcffa\x1b[2J\n/exchange")
    assert status(capsys, out)[0] == 0


def test_an_out_whose_name_looks_like_a_chain(tmp_path, capsys):
    out, other = tmp_path / "a::b", tmp_path / "other"
    say(other, run_id="outside")
    write_record(out, exchange=str(other))
    out.chmod(0o755)
    assert run_ids(document(capsys, out)) == ["a", "outside"]
    (out / "launch.json").unlink()
    say(out / "exchange")
    code, _, err = status(capsys, out)
    assert (code, "make a symbolic link to it and name that" in err) == (2, True)


@pytest.fixture
def hangs(monkeypatch):
    """Give what hangs until the test is over; and status is less patient than usual."""
    over = threading.Event()
    monkeypatch.setattr(limits, "ANSWER_SECONDS", 0.3)

    def hang(*_):
        over.wait(PATIENCE)
        raise OSError("at last")

    yield hang
    over.set()


def test_an_exchange_that_does_not_answer(tmp_path, capsys, monkeypatch, hangs):
    say(tmp_path)
    monkeypatch.setattr(Store, "names", hangs)
    code, _, err = status(capsys, tmp_path)
    assert code == 2
    assert "cannot be listed (TimeoutError: no answer within" in err
    monkeypatch.setattr(Store, "__init__", hangs)
    code, _, err = status(capsys, tmp_path)
    assert code == 2
    assert "cannot be opened (TimeoutError: no answer within" in err
    monkeypatch.setattr(os, "listdir", hangs)
    code, _, err = status(capsys, tmp_path)
    assert code == 2
    assert "cannot be looked at (no answer within" in err


def test_files_that_do_not_answer(tmp_path, capsys, monkeypatch, hangs):
    for group in range(100):
        say(tmp_path, group)
    read = Store.read

    def some_hang(self, name, limit):
        return hangs() if name > "group-5" else read(self, name, limit)

    monkeypatch.setattr(Store, "read", some_hang)
    begin = time.monotonic()
    said = document(capsys, tmp_path)
    # Not 100 times the limit: what does not answer is not asked again and again.
    assert time.monotonic() - begin < 100 * limits.ANSWER_SECONDS
    assert any("no answer within" in problem for problem in said["problems"])
    assert said["runs"][0]["groups"][0]["group"] == 0


def test_an_error_of_a_store_is_made_printable(tmp_path, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError(ESCAPES)

    monkeypatch.setattr(Store, "names", broken)
    code, _, err = status(capsys, tmp_path)
    assert (code, "RuntimeError: \\x1b]0;mine" in err) == (2, True)
    monkeypatch.setattr(Store, "__init__", broken)
    code, _, err = status(capsys, tmp_path)
    assert (code, "RuntimeError: \\x1b]0;mine" in err) == (2, True)


def test_ctrl_c_is_no_traceback(tmp_path, capsys, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    say(tmp_path)
    monkeypatch.setattr(survey.Survey, "look", interrupted)
    assert status(capsys, tmp_path) == (130, "", "")


def codistill(arguments: list[str], **options) -> subprocess.Popen:
    return subprocess.Popen(
        [str(BIN / "codistill"), *arguments], stderr=subprocess.PIPE, text=True, **options
    )


@pytest.mark.parametrize("arguments", [["--json"], [], ["--watch", "0.01"], ["--help"]])
def test_a_reader_that_has_enough(tmp_path, arguments):
    for group in range(50):
        say(tmp_path, group, peers={str(peer): peer for peer in range(100)})
    read, write = os.pipe()
    os.close(read)
    env = environment()
    with codistill(["status", str(tmp_path), *arguments], stdout=write, env=env) as process:
        os.close(write)
        _, err = process.communicate(timeout=PATIENCE)
    # argparse itself passes over an output that it cannot write.
    assert process.returncode in ((0, 141) if arguments == ["--help"] else (141,))
    assert err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", ["status", "status --json", "status --watch 1", "user-dir"])
def test_an_output_that_is_full(tmp_path, arguments, unbuffered):
    say(tmp_path)
    # Python itself writes what is left of it at its end, and has a status of its own for that.
    env = {**environment(), "PYTHONUNBUFFERED": unbuffered}
    subcommand, *options = arguments.split()
    place = [str(tmp_path)] if subcommand == "status" else []
    with (
        open("/dev/full", "w") as full,
        codistill([subcommand, *place, *options], stdout=full, env=env) as process,
    ):
        _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert err.startswith("codistill: error: the standard output cannot be written (No space left")
    assert err.count("\n") == 1


def test_an_output_that_is_ascii(tmp_path):
    say(tmp_path, run_id="Lauf für Ümläute")
    env = {**environment(), "PYTHONIOENCODING": "ascii"}
    with codistill(["status", str(tmp_path)], stdout=subprocess.PIPE, env=env) as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert (process.returncode, err) == (0, "")
    assert r"run Lauf f\xfcr \xdcml\xe4ute" in out


def test_help_imports_neither_torch_nor_fsspec():
    code = (
        "import sys\nfrom fairseq_codistill import cli\n"
        "try:\n    cli.main(['status', '--help'])\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'fairseq', 'fsspec'} & sys.modules.keys()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=environment(), stdout=-3)
