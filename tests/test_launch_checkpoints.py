"""Which checkpoint a group continues from."""

import argparse
import collections
import contextlib
import errno
import os
import pickle
import random
import resource
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fairseq_codistill import plain
from fairseq_codistill.launch.checkpoints import Resume, find, is_loadable, prepare
from fairseq_codistill.launch.pickled import OTHER, Malformed, read_plain


def fairseq_state(update: int) -> dict:
    """What fairseq writes, in small: history of two runs, of which the last counts."""
    return {
        "args": None,
        "cfg": {"model": argparse.Namespace(num_updates=1), "update": 77},
        "model": collections.OrderedDict(w=torch.arange(100.0)),
        "optimizer_history": [{"num_updates": 10**6}, {"num_updates": update, "lr": None}],
        "last_optimizer_state": {"state": {0: {"step": 3, "exp_avg": torch.ones(100)}}},
    }


def save(path: Path, time: int, keep: float = 1.0, state: dict | None = None) -> Path:
    """A checkpoint with a time stamp, of which only the part ``keep`` was written."""
    path.parent.mkdir(exist_ok=True)
    torch.save(state or {"model": {"w": torch.arange(1000.0)}}, path)
    os.truncate(path, int(path.stat().st_size * keep))
    os.utime(path, (time, time))
    return path


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_a_torn_file_is_not_loadable(tmp_path, keep):
    assert is_loadable(save(tmp_path / "whole.pt", 1))
    assert not is_loadable(save(tmp_path / "torn.pt", 1, keep))
    assert not is_loadable(tmp_path / "absent.pt")


def test_a_flipped_byte_is_found(tmp_path):
    path = save(tmp_path / "checkpoint_last.pt", 1)
    data = bytearray(path.read_bytes())
    # In the middle lie the weights.
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert not is_loadable(path)


def test_nothing_to_continue_from(tmp_path):
    assert prepare(tmp_path / "absent").checkpoint is None


def test_takes_the_last_one(tmp_path):
    save(tmp_path / "checkpoint1.pt", 10)
    last = save(tmp_path / "checkpoint_last.pt", 10)
    save(tmp_path / "checkpoint.avg10.pt", 99)
    assert prepare(tmp_path).checkpoint == last


def test_moves_a_torn_last_one_aside_and_takes_the_next(tmp_path):
    save(tmp_path / "checkpoint1.pt", 10)
    newest = save(tmp_path / "checkpoint_1_20.pt", 20)
    save(tmp_path / "checkpoint_best.pt", 25, 0.5)
    last = save(tmp_path / "checkpoint_last.pt", 30, 0.5)
    torn_bytes = last.read_bytes()
    assert find(tmp_path).checkpoint == newest
    assert last.exists()
    resume = prepare(tmp_path)
    assert resume.checkpoint == newest
    assert resume.torn == tmp_path / "checkpoint_last.pt.torn"
    assert resume.torn.read_bytes() == torn_bytes
    # Nothing is ever lost, not even a torn file.
    save(tmp_path / "checkpoint_last.pt", 40, 0.2)
    assert prepare(tmp_path).torn == tmp_path / "checkpoint_last.pt.torn-2"
    assert resume.torn.read_bytes() == torn_bytes
    assert prepare(tmp_path).torn is None


def test_a_process_killed_before_the_copy(tmp_path):
    last = save(tmp_path / "checkpoint_last.pt", 10)
    newer = save(tmp_path / "checkpoint_2_40.pt", 20)
    resume = prepare(tmp_path)
    assert resume.checkpoint == newer
    assert last.exists()


def loads(path: Path) -> bool:
    with plain.allowing(plain.allowed()):
        try:
            torch.load(path, weights_only=True)
        except (RuntimeError, ValueError, EOFError, pickle.UnpicklingError):
            return False
    return True


def test_any_damaged_byte_gets_an_answer_that_torch_agrees_with(tmp_path):
    """Every byte of the zip directory and its end, and some of the rest, by several bits."""
    path = save(tmp_path / "checkpoint_last.pt", 1, state=fairseq_state(5))
    whole = path.read_bytes()
    rng = random.Random(1)
    accepted = 0
    places = [*range(len(whole) - 1200, len(whole)), *rng.sample(range(len(whole) - 1200), 100)]
    for place in places:
        for flip in (0x01, rng.randrange(2, 256)):
            data = bytearray(whole)
            data[place] ^= flip
            path.write_bytes(data)
            if is_loadable(path):
                accepted += 1
                assert loads(path), (place - len(whole), flip)
                assert find(tmp_path).update == 5
            else:
                assert find(tmp_path) == Resume()
    # Times and versions of members mean nothing; all else does.
    assert 0 < accepted < len(places)


def test_cut_anywhere_it_is_not_loadable(tmp_path):
    path = save(tmp_path / "checkpoint_last.pt", 1, state=fairseq_state(5))
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert not is_loadable(path)
    path.write_bytes(whole + b"\0")
    assert not is_loadable(path)


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_directory(path: Path) -> None:
    path.mkdir()


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_terminal(path: Path) -> None:
    path.symlink_to("/dev/tty")


def make_encrypted(path: Path) -> None:
    save(path, 1)
    data = path.read_bytes()
    # The flags of the first entry of the directory.
    at = data.index(b"PK\1\2") + 8
    path.write_bytes(data[:at] + bytes([data[at] | 1]) + data[at + 1 :])


def make_compressed(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        archive.writestr("archive/version", "3")


def make_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({}))
        with archive.open("archive/version", "w") as member:
            for _ in range(64):
                member.write(bytes(1 << 20))


def make_overlap(path: Path) -> None:
    """A thousand members that all lie in the same megabyte."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 20))
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    entry = data[start : data.index(b"PK\5\6")]
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1000, 1000, 1000 * len(entry), start, 0)
    path.write_bytes(data[:start] + entry * 1000 + end)


def make_huge_directory(path: Path) -> None:
    """A sparse file that says that 60 GB of it are the directory."""
    size = 60 * 10**9
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(struct.pack("<4sQ2H2I4Q", b"PK\6\6", 44, 45, 45, 0, 0, 10**9, 10**9, size, 0))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, size, 1))
        file.write(struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, *[0xFFFF] * 2, *[2**32 - 1, 0], 0))


def make_far_away(path: Path) -> None:
    """A member that begins at 2**63."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    data = path.read_bytes()
    start = data.index(b"PK\1\2")
    entry = bytearray(data[start : data.index(b"PK\5\6")])
    entry[42:46] = b"\xff" * 4
    entry[30:32] = struct.pack("<H", 12)
    entry += struct.pack("<2HQ", 1, 8, 2**63)
    end = struct.pack("<4s4H2IH", b"PK\5\6", 0, 0, 1, 1, len(entry), start, 0)
    path.write_bytes(data[:start] + entry + end)


def make_other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes/readme.txt", "hello")


@pytest.mark.parametrize(
    "make",
    [
        *[make_pipe, make_directory, make_loop, make_device, make_terminal, make_encrypted],
        *[make_compressed, make_bomb, make_overlap, make_huge_directory, make_far_away],
        make_other_zip,
    ],
)
def test_whatever_the_file_is_the_group_goes_on_from_another(tmp_path, make):
    whole = save(tmp_path / "checkpoint1.pt", 10, state=fairseq_state(3))
    last = tmp_path / "checkpoint_last.pt"
    make(last)
    assert not is_loadable(last)
    assert find(tmp_path) == Resume(whole, update=3)
    resume = prepare(tmp_path)
    assert resume == Resume(whole, tmp_path / "checkpoint_last.pt.torn", 3)
    assert not os.path.lexists(last)


def test_a_probe_needs_little_memory(tmp_path):
    """Of files that say that they are large, and of one that is: 384 MB of zeros."""
    make_huge_directory(tmp_path / "checkpoint1.pt")
    make_bomb(tmp_path / "checkpoint2.pt")
    with zipfile.ZipFile(tmp_path / "checkpoint3.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"update": 4}, protocol=2))
        archive.writestr("archive/version", "3")
        with archive.open("archive/data/0", "w") as member:
            for _ in range(6):
                member.write(bytes(1 << 26))
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from fairseq_codistill.launch.checkpoints import find\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({1 << 28}, {1 << 28}))\n"
        "print(find(Path(sys.argv[1])).update)"
    )
    assert resource.getrlimit(resource.RLIMIT_AS)[1] == resource.RLIM_INFINITY
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("4\n", "")


def test_a_file_that_vanishes_after_the_directory_was_listed(tmp_path, monkeypatch):
    other = save(tmp_path / "checkpoint1.pt", 10, state=fairseq_state(3))
    names = ["checkpoint_best.pt", "checkpoint1.pt", "checkpoint_last.pt"]
    monkeypatch.setattr(os, "listdir", lambda _: names)
    assert prepare(tmp_path) == Resume(other, update=3)


def test_what_cannot_be_read_is_told_and_left_where_it_is(tmp_path, monkeypatch):
    other = save(tmp_path / "checkpoint1.pt", 10, state=fairseq_state(3))
    last = save(tmp_path / "checkpoint_last.pt", 20, state=fairseq_state(9))
    really_open = os.open

    def refuse(path, *arguments, **keywords):
        if path == last:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return really_open(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    resume = prepare(tmp_path)
    assert (resume.checkpoint, resume.update, resume.torn) == (other, 3, None)
    # An error of the disk may pass; the file is not torn.
    assert f"{last} cannot be read" in resume.problem
    assert last.exists()
    other.unlink()
    assert f"{last} cannot be read" in prepare(tmp_path).problem


def test_a_torn_one_that_cannot_be_moved_is_told(tmp_path, monkeypatch):
    other = save(tmp_path / "checkpoint1.pt", 10, state=fairseq_state(3))
    last = save(tmp_path / "checkpoint_last.pt", 20, 0.5)

    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "rename", refuse)
    resume = prepare(tmp_path)
    assert (resume.checkpoint, resume.torn) == (other, None)
    assert resume.problem.startswith(f"{last} is torn and cannot be moved away (")


def test_a_directory_that_cannot_be_listed_is_told(tmp_path, monkeypatch):
    def refuse(_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "listdir", refuse)
    resume = prepare(tmp_path)
    assert resume.checkpoint is None
    assert "cannot be listed" in resume.problem


def test_the_highest_update_counts_and_not_the_newest_time(tmp_path):
    """After `touch` or `cp -r` times mean nothing."""
    run = tmp_path / "run"
    save(run / "checkpoint_best.pt", 900, state=fairseq_state(20))
    save(run / "checkpoint_1_40.pt", 800, state=fairseq_state(40))
    epoch = save(run / "checkpoint3.pt", 10, state=fairseq_state(60))
    save(run / "checkpoint_last.pt", 700, state=fairseq_state(50))
    assert find(run) == Resume(epoch, update=60)
    copy = tmp_path / "copy"
    shutil.copytree(run, copy, copy_function=shutil.copyfile)
    assert find(copy) == Resume(copy / "checkpoint3.pt", update=60)


def test_of_equal_updates_the_newer_one_and_then_the_last(tmp_path):
    first = save(tmp_path / "checkpoint_1_40.pt", 10, state=fairseq_state(40))
    last = save(tmp_path / "checkpoint_last.pt", 10, state=fairseq_state(40))
    assert find(tmp_path) == Resume(last, update=40)
    os.utime(first, (11, 11))
    assert find(tmp_path) == Resume(first, update=40)


def test_the_image_program_tells_its_update_too(tmp_path):
    save(tmp_path / "checkpoint_best.pt", 99, state={"format": 1, "update": 7, "model": {}})
    last = save(tmp_path / "checkpoint_last.pt", 9, state={"format": 1, "update": 8, "model": {}})
    assert find(tmp_path) == Resume(last, update=8)


def test_an_update_that_the_content_does_not_tell(tmp_path):
    """The name may; else the time decides, among those that tell nothing."""
    named = save(tmp_path / "checkpoint_2_30.pt", 10)
    save(tmp_path / "checkpoint_last.pt", 99)
    assert find(tmp_path) == Resume(named, update=30)
    told = save(tmp_path / "checkpoint1.pt", 5, state=fairseq_state(31))
    assert find(tmp_path) == Resume(told, update=31)
    for state in ({"update": True}, {"update": -1}, {"update": "9"}, {"optimizer_history": []}):
        odd = save(tmp_path / "odd" / "checkpoint_last.pt", 1, state=state)
        assert find(odd.parent) == Resume(odd)


class Touch:
    """Executes something when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_is_read_and_not_executed(tmp_path, protocol):
    shared = {"num_updates": 3}
    value = {
        "bomb": Touch(tmp_path / "executed"),
        "many": [shared, shared, *range(2000)],
        "nested": {"a": {"b": ["c", 2**70, -1]}, 5: "not text"},
        "rest": (None, 1.5, b"bytes", {1, 2}, frozenset("x"), Path),
        "end": "of it",
    }
    plain = read_plain(pickle.dumps(value, protocol))
    assert not (tmp_path / "executed").exists()
    assert plain["many"] == value["many"]
    assert plain["nested"] == {"a": value["nested"]["a"]}
    assert (plain["end"], plain["bomb"]) == ("of it", OTHER)
    assert list(plain) == list(value)


def test_bytes_that_are_no_pickle(tmp_path):
    rng = random.Random(2)
    data = pickle.dumps({"update": 3, "x": [1, (2, "y")], "z": argparse.Namespace(a=1)}, 2)
    for _ in range(3000):
        damaged = bytearray(data)
        for _ in range(rng.randrange(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        with contextlib.suppress(Malformed):
            read_plain(bytes(damaged))
    for malformed in (b"", b".", b"N", b"r\xff\xff\xff\xff.", rng.randbytes(99)):
        with pytest.raises(Malformed):
            read_plain(malformed)


def test_the_command_line_says_what_to_restore(tmp_path):
    save(tmp_path / "checkpoint1.pt", 10, state=fairseq_state(3))
    (tmp_path / "checkpoint_last.pt").mkdir()
    command = [sys.executable, "-m", "fairseq_codistill.launch.checkpoints", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{tmp_path}/checkpoint1.pt\n", "")
    assert (tmp_path / "checkpoint_last.pt.torn").is_dir()
