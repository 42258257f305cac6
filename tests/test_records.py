"""Small files that others can write, text that others can choose, and lines that they must not."""

import dataclasses
import json
import logging
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fairseq_codistill.records import (
    Alive,
    Ended,
    Memory,
    Unreadable,
    get_logger,
    guarded,
    is_plain,
    is_text,
    is_whole,
    parse_alive,
    parse_object,
    printable,
    read_alive_file,
    read_ended,
    read_file,
    read_object,
    write_ended,
    write_file,
)

# Nothing here may wait for anybody.
pytestmark = pytest.mark.timeout(60)


def mounted(folder: Path, size: str) -> bool:
    """Mount a small file system there, if that is allowed."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


# read_file


def link(path: Path) -> None:
    (path.parent / "target").write_text("{}")
    path.symlink_to(path.parent / "target")


def link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero
    except PermissionError:
        pytest.skip("making a device needs root")


def socket_file(path: Path) -> None:
    os.chdir(path.parent)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)


@pytest.mark.parametrize(
    "make", [link, link_to_device, pipe, device, socket_file, Path.mkdir], ids=lambda f: f.__name__
)
def test_only_a_regular_file_is_read(make, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "x.json")
    for reader in (read_file, read_object):
        with pytest.raises(Unreadable, match=r"x\.json is not a regular file"):
            reader(tmp_path / "x.json")


def test_devices_by_their_own_names_are_not_read():
    for name in ("/dev/zero", "/dev/tty", "/dev/null", "/dev/stdin"):
        if os.path.lexists(name):
            with pytest.raises(Unreadable, match="is not a regular file"):
                read_file(Path(name))


@pytest.mark.parametrize(
    ("make", "error"), [(pipe, Unreadable), (device, Unreadable), (link, OSError)]
)
def test_a_file_that_is_exchanged_after_it_was_looked_at(make, error, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    path.write_text("{}")
    real = os.lstat

    def exchanged(name, **kwargs):
        status = real(name, **kwargs)
        if name == path:
            path.unlink()
            make(path)
        return status

    monkeypatch.setattr(guarded.os, "lstat", exchanged)
    with pytest.raises(error) as caught:
        read_file(path)
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_file_that_vanishes_is_not_found(tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    with pytest.raises(FileNotFoundError):
        read_file(path)
    path.write_text("{}")
    real = os.lstat

    def vanishing(name, **kwargs):
        status = real(name, **kwargs)
        path.unlink()
        return status

    monkeypatch.setattr(guarded.os, "lstat", vanishing)
    with pytest.raises(FileNotFoundError):
        read_object(path)


@pytest.mark.parametrize("size", [0, 1, 99, 100])
def test_a_file_up_to_the_limit_is_read_as_it_is(size, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(range(size)))
    assert read_file(path, 100) == bytes(range(size))


def test_a_file_above_the_limit_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(bytes(101))
    with pytest.raises(Unreadable, match="has 101 bytes, more than 100"):
        read_file(path, 100)
    # A terabyte of holes: its size is enough.
    os.truncate(path, 1 << 40)
    with pytest.raises(Unreadable, match=f"has {1 << 40} bytes"):
        read_file(path)


def test_a_file_that_grows_while_it_is_read_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_bytes(b"a" * 100)
    real = os.fstat

    def growing(descriptor):
        status = real(descriptor)
        with path.open("ab") as file:
            file.write(b"b" * 10_000)
        return status

    monkeypatch.setattr(guarded.os, "fstat", growing)
    with pytest.raises(Unreadable, match="more than 100"):
        read_file(path, 100)
    data = read_file(path, 100_000)
    assert data == b"a" * 100 + b"b" * (len(data) - 100)
    assert 10_100 <= len(data) <= 100_000


# read_object and parse_object


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "Expecting value"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is no number"),
        (b'{"a": Infinity}', "Infinity is no number"),
        (b'{"a": [-Infinity]}', "-Infinity is no number"),
        (b'{"a": 1e999}', "too large a number"),
        (b'{"a": -1e999}', "too large a number"),
        (b'{"a": 1e' + b"9" * 5000 + b"}", "too large a number"),
        (b'{"a": ' + b"9" * 400 + b".5}", "too large a number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "too long a number"),
        (b'{"a": -' + b"9" * 5000 + b"}", "too long a number"),
        (b'{"a": ' + b"0" * 5000 + b"}", "delimiter"),
        (b'{"a": 1, "a": 1}', "the key 'a' is there more than once"),
        (b'{"b": {"\\u001b[2J": 1, "\\u001b[2J": 2}}', r"the key '\\x1b\[2J' is there more"),
        (b'{"a": "\xff"}', "can't decode byte 0xff"),
        (b'{"a": "\xed\xa0\x80"}', "can't decode"),
        (b'\xef\xbb\xbf{"a": 1}', "BOM"),
        ('{"a": 1}'.encode("utf-16"), "can't decode"),
        (b'{"a": 1} {"b": 2}', "Extra data"),
        (b'{"a": 1,}', "Illegal trailing comma|Expecting property name"),
        (b'{"a": "\n"}', "Invalid control character"),
        (b'{"a": 1', "delimiter"),
        (b"\0" * 1000, "Expecting value"),
        (b"[]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (b'"text"', "not a JSON object"),
        (b"1", "not a JSON object"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_json_is_read_strictly(data, reason, tmp_path):
    with pytest.raises(ValueError, match=reason) as error:
        parse_object(data)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 300
    (tmp_path / "x.json").write_bytes(data)
    with pytest.raises(Unreadable, match=rf"x\.json is malformed: .*({reason})"):
        read_object(tmp_path / "x.json")


def test_numbers_as_long_as_the_largest_record_do_not_hold_it_up():
    digits = "9" * (guarded.LARGEST - 20)
    with pytest.raises(ValueError, match="too long a number"):
        parse_object(f'{{"a": {digits}}}'.encode())
    assert parse_object(f'{{"a": 0.{digits}}}'.encode()) == {"a": 1.0}
    assert parse_object(f'{{"a": {digits}e-{len(digits)}}}'.encode()) == {"a": 1.0}


def test_json_that_is_right_is_read(tmp_path):
    content = {"a": [1, -2.5, 1e300, True, None, "ä\U0001f600", {}], "b": 10**39, "": "\ud800"}
    assert parse_object(json.dumps(content).encode()) == content
    assert parse_object(b" \n\t{}\r\n ") == {}


def test_kinds_of_values():
    assert is_text("a", 1, 1)
    assert not any(is_text(value, 1, 3) for value in ("", "abcd", "\ud800", b"a", 1, None, ["a"]))
    assert is_whole(0, 0, 0)
    assert not any(is_whole(value, 0, 5) for value in (-1, 6, True, 1.0, "1", None))
    assert is_plain({"a": [1, "b", None, True, 1.5]}, 2, 1)
    for value in ({"a": [1]}, {"ab": 1}, ["\ud800"], [2**63], [-(2**63)], [b"a"], {1: {2: 3}}):
        assert not is_plain(value, 1, 1), value


# write_file


READ_ON = """
import sys
from pathlib import Path
from fairseq_codistill.records import read_object
path, seen = Path(sys.argv[1]), set()
print("ready", flush=True)
while (content := read_object(path))["n"] < 200:
    assert content["text"] == str(content["n"]) * 5000, content["n"]
    seen.add(content["n"])
print(len(seen), flush=True)
"""


def test_a_reader_sees_a_whole_file_at_any_time(tmp_path):
    path = tmp_path / "x.json"
    write_file(path, {"n": 0, "text": "0" * 5000})
    with subprocess.Popen(
        [sys.executable, "-c", READ_ON, path], stdout=subprocess.PIPE, text=True
    ) as reader:
        assert reader.stdout.readline() == "ready\n"
        for n in range(1, 201):
            write_file(path, {"n": n, "text": str(n) * 5000})
        seen, _ = reader.communicate(timeout=50)
    assert reader.returncode == 0
    # It did read while they were written; how often is the scheduler's.
    assert int(seen) >= 1
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_writers_at_the_same_time_do_not_mix(tmp_path):
    path = tmp_path / "x.json"
    errors = []

    def write(n: int) -> None:
        try:
            for _ in range(20):
                write_file(path, {"n": n, "text": str(n) * 5000})
        except BaseException as error:
            errors.append(error)
            raise

    threads = [threading.Thread(target=write, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    content = read_object(path)
    assert content["text"] == str(content["n"]) * 5000
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
def test_others_cannot_write_a_record(mask, tmp_path):
    path = tmp_path / "x.json"
    before = os.umask(mask)
    try:
        write_file(path, {})
        # One that was writable is replaced by one that is not.
        path.chmod(0o666)
        write_file(path, {})
    finally:
        os.umask(before)
    mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == 0o644 & ~mask
    assert guarded.why_not_trusted(path) is None


def test_what_is_obeyed_belongs_to_the_caller_alone(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("{}")
    assert guarded.why_not_trusted(path) is None
    for place, mode in ((path, 0o664), (path, 0o646), (tmp_path, 0o770), (tmp_path, 0o1777)):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        assert guarded.why_not_trusted(path) == f"others can write {place} (mode {mode:o})"
        place.chmod(before)
    with pytest.raises(FileNotFoundError):
        guarded.why_not_trusted(tmp_path / "y.json")
    if os.geteuid() == 0:
        os.chown(path, 12345, -1)
        assert guarded.why_not_trusted(path) == f"{path} belongs to another user"


@pytest.mark.parametrize("function", ["replace", "fsync"])
def test_a_failed_write_leaves_the_file_before_and_nothing_else(function, tmp_path, monkeypatch):
    path = tmp_path / "x.json"
    write_file(path, {"n": 1})

    def failing(*args: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(guarded.os, function, failing)
    with pytest.raises(OSError, match="Input/output error"):
        write_file(path, {"n": 2})
    assert read_object(path) == {"n": 1}
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


def test_a_directory_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    real = os.open

    def no_directories(path, flags, *rest):
        if Path(path) == tmp_path:
            raise OSError(22, "Invalid argument")
        return real(path, flags, *rest)

    monkeypatch.setattr(guarded.os, "open", no_directories)
    write_file(tmp_path / "x.json", {"n": 1})
    assert read_object(tmp_path / "x.json") == {"n": 1}


def test_what_is_no_json_is_not_written(tmp_path):
    for content in ({"n": float("nan")}, {"n": {1, 2}}):
        with pytest.raises((ValueError, TypeError)):
            write_file(tmp_path / "x.json", content)
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_leaves_the_file_before(tmp_path):
    folder = tmp_path / "small"
    if not mounted(folder, "64k"):
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        write_file(folder / "x.json", {"n": 1})
        with pytest.raises(OSError, match="No space left on device"):
            write_file(folder / "x.json", {"n": "2" * 200_000})
        assert read_object(folder / "x.json") == {"n": 1}
        assert [one.name for one in folder.iterdir()] == ["x.json"]
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("make", [link, link_to_device, pipe], ids=lambda f: f.__name__)
def test_what_is_in_the_place_of_a_record_is_replaced_and_not_followed(make, tmp_path):
    path = tmp_path / "x.json"
    make(path)
    write_file(path, {"n": 1})
    assert not path.is_symlink()
    assert read_object(path) == {"n": 1}
    if (tmp_path / "target").exists():
        assert (tmp_path / "target").read_text() == "{}"


def test_a_folder_in_the_place_of_a_record_is_an_error(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_file(tmp_path / "x.json", {})
    assert [one.name for one in tmp_path.iterdir()] == ["x.json"]


# printable


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a b-ä\U0001f600", "a b-ä\U0001f600"),
        ("a\nb\r\n\t", "a\\nb\\r\\n\\t"),
        ("\x1b[31mred\x1b]0;title\x07", "\\x1b[31mred\\x1b]0;title\\x07"),
        ("\x9b31m\x7f\x00", "\\x9b31m\\x7f\\x00"),
        ("\ud800", "\\ud800"),
        ("a\u202eb\u2066c\u200bd", "a\\u202eb\\u2066c\\u200bd"),
        ("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg", "a\\u2028b\\u2029c\\x85d\\x0be\\x0cf\\x1cg"),
        ("\ufeff\ufffe\U000e0041", "\\ufeff\\ufffe\\U000e0041"),
        (b"\xff\n", "b'\\xff\\n'"),
        (None, "None"),
        (1.5, "1.5"),
        (ValueError("a\nb"), "a\\nb"),
    ],
)
def test_text_from_outside_is_made_printable(text, expected):
    assert printable(text) == expected
    assert expected.isprintable()


@pytest.mark.parametrize("text", ["x" * 501, "x" * 10_000_000, "\n" * 500, "\U000e0041" * 499])
def test_long_text_is_cut(text):
    shown = printable(text)
    assert len(shown) == 500
    assert shown.endswith("...")
    assert shown.isprintable()
    assert printable("x" * 500) == "x" * 500
    assert printable("x" * 11, 10) == "x" * 7 + "..."


def test_what_has_no_text_is_printable_too():
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert printable(10**5000) == "<int that cannot be shown>"
    assert printable(Odd()) == "<Odd that cannot be shown>"


# get_logger


FORGED = 'x\n2026-01-01 00:00:00 | INFO | train_inner | {"num_updates": "9"}\x1b[2J'


@pytest.fixture
def lines(tmp_path) -> Callable[[], list[str]]:
    """The lines that a logger of the package has written to a file."""
    logger = get_logger("fairseq_codistill.test_records")
    handler = logging.FileHandler(tmp_path / "log.txt")
    handler.setFormatter(logging.Formatter("%(levelname)s | %(message)s"))
    logger.addHandler(handler)
    yield lambda: (tmp_path / "log.txt").read_text().splitlines()
    logger.removeHandler(handler)
    handler.close()


@pytest.mark.parametrize(
    "arguments",
    [
        ("peer: %s", FORGED),
        ("peer: %r", FORGED),
        ("peer: %-5s of %d", FORGED, 3),
        ("peer: %(run)s", {"run": FORGED}),
        ("peer: %s", ValueError(FORGED)),
        ("peer: %s", [FORGED]),
        ("peer: %s", {FORGED: FORGED}),
        (FORGED,),
        (ValueError(FORGED),),
        ("%s", FORGED.encode()),
    ],
)
def test_a_value_cannot_begin_a_line_of_the_log(arguments, lines):
    get_logger("fairseq_codistill.test_records").warning(*arguments)
    [line] = lines()
    assert line.startswith("WARNING | ")
    assert line.isprintable()
    assert "train_inner" in line


def test_an_exception_cannot_begin_a_line_of_the_log(lines):
    try:
        raise ValueError(FORGED)
    except ValueError:
        get_logger("fairseq_codistill.test_records").exception("it failed")
    assert lines()[0] == "ERROR | it failed"
    assert all(line.isprintable() for line in lines())
    assert [line for line in lines() if line.startswith("2026")] == []
    assert any("train_inner" in line for line in lines())


def test_numbers_in_a_message_stay_numbers(lines):
    numpy = pytest.importorskip("numpy")
    get_logger("fairseq_codistill.test_records").warning(
        "%d %.2f %d %5.1f %s 100%%", 3, 1.234, numpy.int64(4), numpy.float32(2), True
    )
    get_logger("fairseq_codistill.test_records").warning("100%")
    assert lines() == ["WARNING | 3 1.23 4   2.0 True 100%", "WARNING | 100%"]


def test_a_logger_is_guarded_once_and_long_values_are_cut(lines):
    for _ in range(3):
        logger = get_logger("fairseq_codistill.test_records")
    assert len(logger.filters) == 1
    logger.warning("%s %s", "x" * 1_000_000, "y")
    [line] = lines()
    assert len(line) < 2100
    assert line.endswith("... y")


# alive.json


ALIVE = Alive("run", "nonce", 7, 1.5, False, True, 3, "digest", 1, 2, {"1": 5})


def alive_with(**changes: object) -> bytes:
    return json.dumps(dataclasses.asdict(ALIVE) | changes).encode()


def test_a_heartbeat_is_read():
    assert parse_alive(alive_with()) == ALIVE
    assert parse_alive(alive_with(more="ignored")) == ALIVE
    least = {"run_id": "r", "nonce": "n", "update": 1, "time": 2, "finished": True}
    assert parse_alive(json.dumps(least).encode()) == Alive("r", "n", 1, 2, True, running=False)


@pytest.mark.parametrize("name", ["run_id", "nonce", "update", "time", "finished"])
def test_a_heartbeat_lacks_nothing(name):
    fields = dataclasses.asdict(ALIVE)
    del fields[name]
    with pytest.raises(ValueError, match=f"it lacks {name}$"):
        parse_alive(json.dumps(fields).encode())


WHOLE = [None, True, 1.0, "1", [], {}, -1, 2**63 + 1, 10**39]
TEXTS = [None, True, 1, [], {}, "\ud800", "x" * 4097]
FLAGS = [None, 0, 1, "true", [], {}]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[(name, value) for name in ("update", "restarts", "epoch") for value in WHOLE],
        *[(name, value) for name in ("run_id", "nonce") for value in TEXTS],
        *[("vocabulary", value) for value in TEXTS[1:]],
        *[(name, value) for name in ("finished", "running") for value in FLAGS],
        *[("time", value) for value in (None, True, "1", [], -1, -0.1, 2**40, 1e300, 10**39)],
        *[("seed", value) for value in (True, 1.0, "1", [], 2**64, -(2**63) - 1)],
        *[("peers", value) for value in (None, [], "x", 1, {"1": None}, {"1": "2"}, {"1": -1})],
        *[("peers", {key: 1}) for key in ("", "-1", "a", "1.0", " 1", "٣", "1234567", "9" * 5000)],
        ("peers", {"1": True}),
        ("peers", {"\n": 1}),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_each_field_of_a_heartbeat_is_checked(name, value):
    with pytest.raises(ValueError, match="of another kind, or out of its range"):
        parse_alive(alive_with(**{name: value}))


@pytest.mark.parametrize("make", [link, link_to_device, pipe, Path.mkdir], ids=lambda f: f.__name__)
def test_a_heartbeat_that_is_no_file_says_nothing(make, tmp_path):
    path = tmp_path / "alive.json"
    assert read_alive_file(path) is None
    path.write_bytes(alive_with())
    assert read_alive_file(path) == ALIVE
    path.unlink()
    make(path)
    assert read_alive_file(path) is None


# ended.json


ENDED = Ended("run", "nonce", 9, "max-update", False, True)


def test_the_evidence_of_an_end_is_read(tmp_path):
    assert read_ended(tmp_path) is None
    before = time.time()
    write_ended(tmp_path / "new", ENDED)
    found = read_ended(tmp_path / "new")
    assert before <= found.time <= time.time()
    assert dataclasses.replace(found, time=0.0) == ENDED
    assert found.missed_its_peers
    assert not dataclasses.replace(ENDED, had_peer=True).missed_its_peers
    assert not dataclasses.replace(ENDED, expected_peer=False).missed_its_peers


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Ended)])
def test_the_evidence_of_an_end_lacks_nothing(field, tmp_path):
    content = dataclasses.asdict(ENDED)
    del content[field]
    write_file(tmp_path / "ended.json", content)
    with pytest.raises(Unreadable, match=rf"ended\.json lacks {field}$"):
        read_ended(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("update", value) for value in WHOLE],
        *[(name, value) for name in ("run_id", "nonce") for value in TEXTS],
        *[("reason", value) for value in (None, 1, "", "x" * 101, "\ud800", [])],
        *[(name, value) for name in ("had_peer", "expected_peer") for value in FLAGS],
        *[("time", value) for value in (None, True, "1", [])],
        *[("format", value) for value in (None, True, 1.0, "1", [])],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_each_field_of_the_evidence_of_an_end_is_checked(name, value, tmp_path):
    write_file(tmp_path / "ended.json", dataclasses.asdict(ENDED) | {name: value})
    with pytest.raises(Unreadable, match="has a field of another kind, or out of its range"):
        read_ended(tmp_path)


# codistill.json


def remembered(folder: Path, run_id: str = "run", group: int = 1, exchange: str = "/x") -> tuple:
    memory = Memory(folder, run_id, group, exchange)
    return memory.met, memory.had_peer


def test_a_group_remembers_over_a_restart(tmp_path):
    folder = tmp_path / "group-1"
    memory = Memory(folder, "run", 1, "/x")
    assert (memory.met, memory.had_peer) == (False, False)
    memory.note_peer()
    assert remembered(folder) == (False, True)
    memory.note_met()
    assert remembered(folder) == (True, True)
    # What is remembered once is not written again.
    (folder / "codistill.json").unlink()
    memory.note_met()
    memory.note_peer()
    assert not (folder / "codistill.json").exists()


def test_what_another_run_or_group_remembers_means_nothing(tmp_path):
    memory = Memory(tmp_path, "run", 1, "/x")
    memory.note_met()
    memory.note_peer()
    assert remembered(tmp_path, run_id="other") == (False, False)
    assert remembered(tmp_path, group=0) == (False, False)
    # Another exchange has not been met; that there was a peer stays true.
    assert remembered(tmp_path, exchange="/y") == (False, True)
    assert remembered(tmp_path, exchange="") == (False, True)
    write_file(
        tmp_path / "codistill.json", read_object(tmp_path / "codistill.json") | {"format": 2}
    )
    assert remembered(tmp_path) == (False, False)


def test_a_run_without_a_folder_remembers_in_the_process(tmp_path):
    memory = Memory(None, "run", 1, "/x")
    memory.note_met()
    memory.note_peer()
    assert (memory.met, memory.had_peer) == (True, True)
    assert remembered(None) == (False, False)


KEY = {"format": 1, "run_id": "run", "group": 1}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\0" * 2_000_000,
        json.dumps(KEY | {"met": True, "had_peer": 1}).encode(),
        json.dumps(KEY | {"met": ["/x"], "had_peer": "true"}).encode(),
        json.dumps(KEY | {"group": True, "met": "/x", "had_peer": True}).encode(),
        json.dumps(KEY | {"format": True, "met": "/x", "had_peer": True}).encode(),
        json.dumps({"met": "/x", "had_peer": True}).encode(),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_memory_that_is_malformed_is_not_used_and_written_anew(content, tmp_path):
    (tmp_path / "codistill.json").write_bytes(content)
    memory = Memory(tmp_path, "run", 1, "/x")
    assert (memory.met, memory.had_peer) == (False, False)
    memory.note_met()
    memory.note_peer()
    assert remembered(tmp_path) == (True, True)


@pytest.mark.parametrize("make", [link, pipe], ids=lambda f: f.__name__)
def test_a_memory_that_is_no_file_is_not_followed(make, tmp_path, caplog):
    make(tmp_path / "codistill.json")
    assert remembered(tmp_path) == (False, False)
    assert "is not a regular file" in caplog.text


def test_a_folder_that_cannot_be_written_is_said_and_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "group-1").write_text("a file is in the way")
    memory = Memory(tmp_path / "group-1", "run", 1, "/x")
    memory.note_met()
    memory.note_peer()
    assert (memory.met, memory.had_peer) == (True, True)
    assert "cannot be written" in caplog.text
    # It is written once that is possible, with all that is known by then.
    (tmp_path / "group-1").unlink()
    late = Memory(tmp_path / "group-1", "run", 1, "/x")
    late.note_met()
    assert remembered(tmp_path / "group-1") == (True, False)


def test_the_package_of_records_needs_neither_torch_nor_fairseq():
    code = (
        "import sys, fairseq_codistill.records as r; print({'torch', 'fairseq'} & set(sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout == "set()\n"
