"""No failure of launch's own output, marks, logs or locks ends, restarts or keeps up a group."""

import errno
import fcntl
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from harness import eventually
from supervised import groups
from test_launch_supervise import ONCE, TRAINED, run, wait_for

from fairseq_codistill.launch import group as group_module
from fairseq_codistill.launch import record
from fairseq_codistill.launch import retry as retry_module
from fairseq_codistill.launch import supervise as supervise_module
from fairseq_codistill.launch.group import Patience, State
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.retry import Retry
from fairseq_codistill.launch.supervise import supervise
from fairseq_codistill.launch.view import LiveView

SCRIPT = Path(__file__).parent / "supervised.py"
PATIENCE = Patience(max_restarts=2, backoff=0.05, grace=2.0)
# A group that dies once, and whose death is told with what no ascii terminal can show.
DIES_ONCE = TRAINED + "sleep 0.5; echo 'Gr\u00fc\u00dfe \udcff \x1b[31m'; " + ONCE + "exit 1"


def supervisor(folder: Path, *commands: str, **options) -> subprocess.Popen:
    options = {"stderr": subprocess.PIPE, "text": True} | options
    arguments = [sys.executable, str(SCRIPT), str(folder), *commands]
    return subprocess.Popen([os.fsencode(a) for a in arguments], **options)


def assert_all_finished(folder: Path, count: int = 2) -> None:
    for index in range(count):
        assert (folder / f"group-{index}" / "ended.json").exists()


def test_a_pipe_whose_reader_has_gone(tmp_path):
    process = supervisor(tmp_path, DIES_ONCE, "sleep 2", stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert process.stderr.read() == ""
    assert_all_finished(tmp_path)


def test_a_pipe_that_nobody_reads(tmp_path):
    reading, writing = os.pipe()
    # It is full from the start.
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while True:
            os.write(writing, b"x" * 4096)
    os.set_blocking(writing, True)
    process = supervisor(tmp_path, DIES_ONCE, "sleep 2", stdout=writing)
    os.close(writing)
    assert process.wait(timeout=60) == 0, process.stderr.read()
    os.close(reading)
    assert_all_finished(tmp_path)


def test_a_full_disk_under_the_output(tmp_path):
    with open("/dev/full", "w") as full:
        process = supervisor(tmp_path, DIES_ONCE, "sleep 2", stdout=full)
        assert process.wait(timeout=60) == 0, process.stderr.read()
    assert process.stderr.read() == ""
    assert_all_finished(tmp_path)


def test_no_output_at_all(tmp_path):
    command = f"exec {sys.executable} {SCRIPT} {tmp_path} 'sleep 1' >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], timeout=60, check=False).returncode == 0
    assert_all_finished(tmp_path, 1)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_an_encoding_without_the_letters(tmp_path, encoding):
    env = {**os.environ, "PYTHONIOENCODING": encoding}
    dying = TRAINED + "sleep 0.5; echo 'Gr\u00fc\u00dfe \x1b[31m \u4f60'; exit 1"
    process = supervisor(tmp_path, dying, "sleep 1", stdout=subprocess.PIPE, env=env, text=False)
    said, complaints = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"gave up" in said
    assert "Gr\u00fc\u00dfe".encode(encoding, "backslashreplace") in said
    assert "\u4f60".encode(encoding, "backslashreplace") in said
    assert b"an error of launch itself" not in said
    assert b"\x1b[31m" not in said
    assert complaints == b""
    assert_all_finished(tmp_path / "..", 0)
    assert (tmp_path / "group-1/ended.json").exists()


@pytest.mark.parametrize("ignored", [True, False])
def test_a_terminal_that_is_closed(tmp_path, ignored):
    """With nohup the run goes on; without, it ends as after Ctrl-C."""
    leader, follower = pty.openpty()

    def in_a_session_of_its_own():
        os.setsid()
        fcntl.ioctl(0, 0x540E, 0)  # TIOCSCTTY: the terminal is this process's
        signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)

    process = supervisor(
        tmp_path,
        DIES_ONCE,
        "echo $$ > $HOME/worker; sleep 2" if ignored else "echo $$ > $HOME/worker; sleep 60",
        stdin=follower,
        stdout=follower,
        preexec_fn=in_a_session_of_its_own,
    )
    os.close(follower)
    worker = int(wait_for(tmp_path / "group-1/worker"))
    os.close(leader)
    assert process.wait(timeout=60) == (0 if ignored else 129), process.stderr.read()
    if ignored:
        assert_all_finished(tmp_path)
    else:
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.parametrize("change", ["mv log.txt log.txt.1", "rm log.txt", ": > log.txt"])
def test_a_log_that_is_rotated_is_no_sign_of_hanging(tmp_path, change):
    """Its exchange is out of reach, so that the log is all that launch has."""
    home = tmp_path / "group-0"
    talking = "echo $$ > $HOME/worker; cd $HOME; for u in $(seq 12); do echo $u; sleep 0.4; done"
    talking = f"{TRAINED} sleep 0.5; {change}; {talking}".replace("cd $HOME; ", "", 1)
    status, states, said = run(tmp_path, f"cd {home}; {talking}", hang_timeout=2.0)
    assert (status, states) == (0, [State.FINISHED])
    assert "has made no update" not in said


def test_a_mark_that_cannot_be_set(tmp_path):
    in_the_way = tmp_path / "group-0/finished.json"
    in_the_way.mkdir(parents=True)
    (in_the_way / "x").touch()
    status, states, said = run(tmp_path, "true", "sleep 1")
    assert (status, states) == (0, [State.FINISHED] * 2)
    assert said.count("group 0 has finished cannot be written") == 1


def test_a_mark_that_can_be_set_later(tmp_path):
    done, said = [], []

    def act():
        if len(done) < 2:
            done.append("failed")
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append("written")

    retry = Retry("the mark", act, said.append)
    for now in (0.0, 0.5, 1.0, 2.0, 3.0, 3.5, 100.0):
        retry.try_now(now)
    assert done == ["failed", "failed", "written"]
    assert len(said) == 2
    assert "No space left on device" in said[0]
    assert retry.done


def test_a_group_whose_log_cannot_be_opened_for_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(group_module, "_START_AGAIN_SECONDS", 0.2)
    home = tmp_path / "group-0"
    (home / "log.txt").mkdir(parents=True)
    screen = io.StringIO()
    guard = Guard()
    (group,) = groups(tmp_path, [["true"]], PATIENCE, LiveView(screen), guard)

    def over():
        group.step(time.monotonic())
        if "cannot be started" in screen.getvalue() and (home / "log.txt").is_dir():
            (home / "log.txt").rmdir()
        return group.over

    eventually(over, "the group did not end")
    guard.close()
    assert group.state is State.FINISHED
    assert group.restarts == 0
    assert screen.getvalue().count("cannot be started") == 1


def test_an_error_of_launch_itself_costs_no_group(tmp_path):
    screen = io.StringIO()
    guard = Guard()
    made = groups(tmp_path, [["sleep 1"], ["sleep 1"]], PATIENCE, LiveView(screen), guard)
    step, failures = made[0].step, []

    def failing(now):
        if len(failures) < 3:
            failures.append(now)
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "a surprise")
        step(now)

    made[0].step = failing
    assert supervise(made, LiveView(screen)) == 0
    guard.close()
    assert screen.getvalue().count("an error of launch itself") == 1


@pytest.mark.parametrize("unsupported", [("flock",), ("flock", "lockf")])
def test_a_file_system_without_locks(tmp_path, monkeypatch, unsupported):
    for name in unsupported:

        def no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, name, no_locks)
    said = []
    with record.only_launch(tmp_path / "out", said.append):
        assert (tmp_path / "out").is_dir()
    assert len(said) == ("lockf" in unsupported)


def test_an_unknown_signal_is_told_by_its_number(tmp_path):
    status, _, said = run(tmp_path, TRAINED + "sleep 0.3; kill -40 $$", patience=Patience(0))
    assert status == 1
    assert "signal 40" in said


def test_announcements_are_kept_in_a_file(tmp_path):
    log = tmp_path / "launch.log"
    view = LiveView(None, log=log)
    view.announce("group 0 was killed\nby \x1b[31mSIGKILL")
    first, second = log.read_text().splitlines()
    assert first.endswith(" group 0 was killed")
    assert second.endswith(" by \\x1b[31mSIGKILL")
    screen = io.StringIO()
    view = LiveView(screen, log=tmp_path)
    view.announce("one")
    view.announce("two")
    assert screen.getvalue().splitlines() == [
        "one",
        f"{tmp_path} cannot be written: Is a directory",
        "two",
    ]


def test_nothing_is_held_against_a_group_of_which_nothing_can_be_read(tmp_path):
    pulse = Pulse(2.0, tmp_path / "alive.json", "run")
    pulse.look(0.0, lines=5, trained=True, logged_update=7)
    for now in (1.0, 5.0, 9.0):
        pulse.look(now, lines=5, trained=True, logged_update=7, readable=False)
        assert not pulse.hangs(now)
    # It can be read again, and does not move.
    for now in (10.0, 12.5):
        pulse.look(now, lines=5, trained=True, logged_update=7, readable=True)
    assert pulse.hangs(12.5)


def test_time_in_which_launch_itself_was_stopped_is_no_hang(tmp_path, monkeypatch):
    """A scheduler suspends a whole job, and a laptop sleeps: the groups stood still with it."""
    monkeypatch.setattr(supervise_module, "_ASLEEP", 1.0)
    screen = io.StringIO()
    guard = Guard()
    quiet = TRAINED + "until [ -e $HOME/go ]; do sleep 0.05; done"
    (group,) = groups(tmp_path, [[quiet]], PATIENCE, LiveView(screen), guard, hang_timeout=3.0)
    stopped = []
    # The group outlives the stop by a second, in which it could be found to hang.
    go = threading.Timer(1.0, (tmp_path / "group-0/go").touch)

    def stop():
        if not group.progress.trained:
            raise OSError("not yet")
        stopped.append(time.sleep(4.0))
        go.start()

    monkeypatch.setattr(retry_module, "LONGEST_SECONDS", 0.1)
    chore = Retry("a stop", stop, lambda _: None)
    assert supervise([group], LiveView(screen), chores=[chore]) == 0
    guard.close()
    assert stopped
    assert "has made no update" not in screen.getvalue()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("in_the_way", ["a FIFO", "a FIFO that is full", "a directory"])
def test_what_is_in_place_of_the_announcements_keeps_nobody_waiting(tmp_path, in_the_way):
    path = tmp_path / "launch.log"
    path.mkdir() if in_the_way == "a directory" else os.mkfifo(path)
    shown = io.StringIO()
    view = LiveView(shown, log=path)
    if in_the_way == "a FIFO that is full":
        reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writing = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        with suppress(BlockingIOError):
            while True:
                os.write(writing, b"x")
        os.close(writing)
    view.announce("one")
    view.announce("two")
    if in_the_way == "a FIFO that is full":
        os.close(reading)
    assert shown.getvalue().count(f"{path} cannot be written") == 1
    assert shown.getvalue().startswith("one\n")
    assert shown.getvalue().endswith("two\n")
    path.rmdir() if in_the_way == "a directory" else path.unlink()
    view.announce("three")
    assert path.read_text().endswith(" three\n")
