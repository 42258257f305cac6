"""Supervision of real processes, with real signals."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from supervised import groups

from fairseq_codistill.launch import pulse
from fairseq_codistill.launch.commands import Worker
from fairseq_codistill.launch.group import Patience, State
from fairseq_codistill.launch.guard import Guard
from fairseq_codistill.launch.process import LAST_BYTES
from fairseq_codistill.launch.pulse import Pulse
from fairseq_codistill.launch.supervise import supervise
from fairseq_codistill.launch.view import LiveView

TRAINED = "echo '2026-01-01 | INFO | train_inner | epoch 001:  1 / 2 loss=1, num_updates=1'; "
PATIENCE = Patience(max_restarts=2, backoff=0.05, grace=2.0)


def run(folder: Path, *commands, patience: Patience = PATIENCE, hang_timeout=0.0, lockstep=False):
    """Supervise groups of one worker (a string) or several (a list) to their end."""
    screen = io.StringIO()
    view = LiveView(screen)
    shells = [[command] if isinstance(command, str) else command for command in commands]
    guard = Guard()
    made = groups(folder, shells, patience, view, guard, hang_timeout)
    status = supervise(made, view, lockstep)
    guard.close()
    return status, [group.state for group in made], screen.getvalue()


class Supervisor:
    """The same in a process of its own."""

    def __init__(self, folder: Path, *commands: str) -> None:
        script = Path(__file__).parent / "supervised.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(folder), *commands],
            stdout=subprocess.PIPE,
            text=True,
        )

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


def wait_for(path: Path) -> str:
    """The text of a file that a worker is about to write."""
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)
    return path.read_text()


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not reaped does not."""
    stat = Path(f"/proc/{pid}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.02)


# A worker with a child of its own, as with data loaders, both noted in files.
WITH_CHILD = "sleep 60 & echo $! > $HOME/child; echo $$ > $HOME/worker; "


def pids(folder: Path, group: int = 0) -> list[int]:
    return [int(wait_for(folder / f"group-{group}" / name)) for name in ("child", "worker")]


def test_all_finish(tmp_path):
    status, states, _ = run(tmp_path, "echo hello", ["exit 0", "sleep 0.3"])
    assert status == 0
    assert states == [State.FINISHED] * 2
    assert "hello" in (tmp_path / "group-0/log.txt").read_text()


def test_a_group_that_has_finished_its_command_is_not_started_again(tmp_path):
    for last_command in ("echo there", "echo there", "echo more"):
        assert run(tmp_path, "echo here", last_command)[:2] == (0, [State.FINISHED] * 2)
    logs = [(tmp_path / f"group-{i}/log.txt").read_text().splitlines() for i in (0, 1)]
    assert [logs[0].count("here"), logs[1].count("there"), logs[1].count("more")] == [1, 1, 1]


def test_a_group_is_told_how_often_it_will_be_started_again(tmp_path):
    """In lockstep its peers wait for it accordingly."""
    left = 'echo "left: $CODISTILL_RESTARTS_LEFT"'
    assert run(tmp_path, [f"{TRAINED}{left}; exit 1", left])[1] == [State.GAVE_UP]
    for name in ("log.txt", "log-worker-1.txt"):
        log = (tmp_path / "group-0" / name).read_text()
        assert re.findall("^left: (.*)", log, re.M) == ["2", "1", "0"]


def test_restarts_belong_to_the_same_start_of_the_run(tmp_path):
    """In lockstep what peers have said in another one counts for nothing."""
    told = 'echo "start: $CODISTILL_START"'
    assert run(tmp_path, f"{TRAINED}{told}; exit 1", told)[1] == [State.GAVE_UP, State.FINISHED]
    logs = [(tmp_path / f"group-{i}/log.txt").read_text() for i in (0, 1)]
    first, second = (re.findall("^start: (.+)", log, re.M) for log in logs)
    assert len(first) == 3
    assert len({*first, *second}) == 1


# What a group says when it ends for good: in its heartbeat, and in its log.
HEARTBEAT = {
    **{"run_id": "run", "nonce": "nonce-0", "update": 7, "time": 1.0, "finished": False},
    "failure": "the snapshot of group 0 at update 5 cannot be published",
}
ENDS = f"this group ends for good: {HEARTBEAT['failure']}"
MEMBERSHIP = "fairseq_codistill.codistillation.membership"
# As fairseq-train and the image program write it, and as fairseq-hydra-train does.
LOG_FORMATS = {
    "train": "2026-01-01 00:00:00 | ERROR | {} | {}",
    "hydra": "[2026-01-01 00:00:00,000][{}][ERROR] - {}",
}


def logged(message: str = ENDS, logger: str = MEMBERSHIP, kind: str = "train") -> str:
    """Shell code that logs a message, without the line in the command, which is logged too."""
    line = LOG_FORMATS[kind].format(logger, message)
    written = "".join(f"\\{ord(letter):03o}" for letter in line)
    return f"printf '{written}\\n'; "


LOGGED = logged()


@pytest.mark.parametrize("kind", LOG_FORMATS)
@pytest.mark.parametrize("who", [0, 1])
def test_a_group_that_ends_for_good_is_not_started_again(tmp_path, who, kind):
    (tmp_path / "group-0").mkdir()
    (tmp_path / "group-0" / "alive.json").write_text(json.dumps(HEARTBEAT))
    # Whichever of its workers says so, and whichever of them is the first to fail.
    commands = [TRAINED + "sleep 60", "sleep 0.3; exit 1"]
    commands[who] = logged(kind=kind) + commands[who]
    status, states, said = run(tmp_path, commands)
    assert (status, states) == (1, [State.GAVE_UP])
    assert "group 0 ended with status 1, for good: gave up" in said
    assert "restart" not in said


@pytest.mark.parametrize("missing", ["heartbeat", "log", "reason"])
def test_one_of_two_testimonies_of_the_end_is_not_enough(tmp_path, missing):
    """Anybody who can write to the exchange can write the heartbeat."""
    (tmp_path / "group-0").mkdir()
    failure = {} if missing == "heartbeat" else {"failure": HEARTBEAT["failure"]}
    failure |= {"failure": ""} if missing == "reason" else {}
    heartbeat = json.dumps(HEARTBEAT | {"failure": None} | failure)
    (tmp_path / "group-0" / "alive.json").write_text(heartbeat)
    command = TRAINED + ("" if missing == "log" else LOGGED) + "test $RESTARTS -eq 1"
    assert run(tmp_path, command)[:2] == (0, [State.FINISHED])


PEER = "fairseq_codistill.exchange.reader"
FORGED = {
    "quoted by another logger": logged(f"peer 1 has format '{ENDS}'", PEER),
    "all that another logger says": logged(ENDS, PEER),
    "quoted by the same logger": logged(f"removed what says {ENDS}"),
    "not all of the line": logged(f"{ENDS}' is what it says"),
    "a whole record quoted": logged(f"x {LOG_FORMATS['train'].format(MEMBERSHIP, ENDS)}", PEER),
    "a record in a traceback": "printf 'odd.Error: %s\\n' \"$(" + LOGGED + ')"; ',
    "hydra's record in a traceback": "printf 'odd.Error: %s\\n' \"$("
    + logged(kind="hydra")
    + ')"; ',
    "no record": f"printf '%s\\n' '{ENDS}'; ",
    "a line that is cut off": (
        f"printf '%s\\n' \"odd: $({logged().rstrip('; ')})\"; "
        f"head -c {LAST_BYTES - len(LOG_FORMATS['train'].format(MEMBERSHIP, ENDS)) - 1} /dev/zero "
        "| tr '\\0' '\\n'; "
    ),
}


@pytest.mark.parametrize("forgery", FORGED)
def test_what_a_log_quotes_is_no_testimony(tmp_path, forgery):
    """Whoever can write to the exchange has groups quote it in their logs."""
    (tmp_path / "group-0").mkdir()
    (tmp_path / "group-0" / "alive.json").write_text(json.dumps(HEARTBEAT))
    script = tmp_path / "forgery.sh"
    script.write_text(FORGED[forgery])
    command = f"sh {script}; test $RESTARTS -eq 1"
    status, states, said = run(tmp_path, TRAINED + command)
    assert (status, states) == (0, [State.FINISHED]), said
    if forgery != "a line that is cut off":
        assert ENDS in (tmp_path / "group-0/log.txt").read_text()


def test_restarts_a_group_and_not_the_others(tmp_path):
    failing = TRAINED + "echo start $RESTARTS; test $RESTARTS -eq 2"
    status, states, said = run(tmp_path, failing, "echo once; sleep 1")
    assert status == 0
    assert states == [State.FINISHED] * 2
    log = (tmp_path / "group-0/log.txt").read_text()
    assert [line for line in log.splitlines() if line.startswith("start")] == [
        "start 0",
        "start 1",
        "start 2",
    ]
    assert (tmp_path / "group-1/log.txt").read_text().count("\nonce\n") == 1
    assert "restart 2 of 2" in said


def test_gives_up_with_the_end_of_the_log_and_lets_the_others_finish(tmp_path):
    status, states, said = run(tmp_path, TRAINED + "echo no luck; exit 1", "sleep 1.5")
    assert status == 1
    assert states == [State.GAVE_UP, State.FINISHED]
    assert "    no luck" in said


def test_one_dead_worker_ends_its_group(tmp_path):
    # The first worker would run for ever without the second.
    commands = ["test $RESTARTS -eq 1 || sleep 60", "test $RESTARTS -eq 1 || kill -9 $$"]
    status, states, said = run(tmp_path, commands)
    assert status == 0
    assert "was killed by SIGKILL" in said
    assert "log-worker-1.txt" in said


def test_wrong_settings_end_the_run_at_once(tmp_path):
    refused = "echo 'codistill: error: --codistill-alpha -1 is negative'; echo more; exit 2"
    begin = time.monotonic()
    status, states, said = run(tmp_path, refused, "sleep 60")
    assert status == 2
    assert states == [State.REFUSED, State.STOPPED]
    assert "codistill: error: --codistill-alpha -1 is negative" in said
    assert "restart" not in said
    assert time.monotonic() - begin < 30


def test_wrong_settings_of_spawned_workers(tmp_path):
    spawned = "echo 'ProcessExitedException: process 1 terminated with exit code 2'; exit 1"
    status, states, _ = run(tmp_path, spawned)
    assert (status, states) == (2, [State.REFUSED])


def test_the_same_death_before_training_is_not_tried_for_ever(tmp_path):
    patience = Patience(max_restarts=9, backoff=0.05)
    status, states, said = run(tmp_path, "echo no such data; exit 1", patience=patience)
    assert (status, states) == (1, [State.GAVE_UP])
    assert "restart 1 of 9" in said
    assert "restart 2 of 9" not in said


def test_the_pause_grows_until_there_is_training(tmp_path):
    # Three deaths in vain, each of another kind, one in training, and one more in vain.  From a
    # file: a command is in the log too, where its text would be read as training.
    line = '2026-01-01 00:00:00 | INFO | train_inner | {"update": "1"}'
    death = tmp_path / "death.sh"
    death.write_text(f"echo death $RESTARTS; test $RESTARTS = 3 && echo '{line}'; exit 1")
    patience = Patience(max_restarts=5, backoff=0.01)
    _, _, said = run(tmp_path, f"sh {death}", patience=patience)
    pauses = re.findall(r"restart \d of 5 in (\S+) s", said)
    assert pauses == ["0.01", "0.02", "0.04", "0.01", "0.01"]


def test_a_command_that_is_not_there_leaves_nothing_running(tmp_path):
    screen = LiveView(io.StringIO())
    guard = Guard()
    made = groups(tmp_path, [[WITH_CHILD + "sleep 60"], ["true"]], PATIENCE, screen, guard)

    def broken(_restarts):
        pids(tmp_path)
        return [Worker((str(tmp_path / "no-program"),), {}, tmp_path / "group-1/log.txt")]

    made[1]._start = broken
    assert supervise(made, screen) == 2
    assert [group.state for group in made] == [State.STOPPED, State.REFUSED]
    guard.close()
    for pid in pids(tmp_path):
        assert_gone(pid)


def test_a_child_that_outlives_its_worker(tmp_path):
    status, _, _ = run(tmp_path, WITH_CHILD + "true")
    assert status == 0
    for pid in pids(tmp_path):
        assert_gone(pid)


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_all_cleanly(tmp_path, number, expected):
    polite = "trap 'echo saved; exit 0' TERM; " + WITH_CHILD + "wait"
    supervisor = Supervisor(tmp_path, polite, polite)
    processes = pids(tmp_path, 0) + pids(tmp_path, 1)
    supervisor.send(number)
    status, _ = supervisor.end()
    assert status == expected
    for pid in processes:
        assert_gone(pid)
    assert "saved" in (tmp_path / "group-0/log.txt").read_text()


def test_who_ignores_sigterm_is_killed(tmp_path):
    supervisor = Supervisor(tmp_path, "trap '' TERM; " + WITH_CHILD + "wait; wait; sleep 60")
    processes = pids(tmp_path)
    supervisor.send(signal.SIGINT)
    assert supervisor.end()[0] == 130
    for pid in processes:
        assert_gone(pid)


def test_a_second_signal_kills_at_once(tmp_path):
    script = "trap 'echo asked > $HOME/asked' TERM; " + WITH_CHILD + "while :; do sleep 60; done"
    supervisor = Supervisor(tmp_path, script)
    processes = pids(tmp_path)
    supervisor.send(signal.SIGINT)
    wait_for(tmp_path / "group-0/asked")
    supervisor.send(signal.SIGINT)
    assert supervisor.end()[0] == 130
    for pid in processes:
        assert_gone(pid)


def test_a_group_that_waits_for_its_restart_can_be_stopped(tmp_path):
    guard = Guard()
    patience = Patience(backoff=1000.0)
    view = LiveView(io.StringIO())
    (group,) = groups(tmp_path, [[TRAINED + "exit 1"]], patience, view, guard)
    deadline = time.monotonic() + 60
    while (group.state, group.restarts) != (State.WAITING, 1):
        assert time.monotonic() < deadline, f"it is {group.state.value}, not waiting"
        group.step(time.monotonic())
        time.sleep(0.02)

    def started(_restarts):
        raise AssertionError("it was started again")

    group._start = started
    group.stop(time.monotonic())
    # By then its restart would be due.
    group.step(time.monotonic() + 2000)
    assert group.state is State.STOPPED
    guard.close()


def test_a_signal_when_a_group_has_just_died(tmp_path):
    supervisor = Supervisor(tmp_path, TRAINED + "echo x > $HOME/died; exit 1", "sleep 60")
    wait_for(tmp_path / "group-0/died")
    supervisor.send(signal.SIGTERM)
    assert supervisor.end()[0] == 143


def test_nothing_outlives_a_killed_launch(tmp_path):
    # A child that is told nothing by its worker's death, as a spawned worker or a data loader.
    supervisor = Supervisor(
        tmp_path, WITH_CHILD + "wait", "trap '' TERM INT HUP; " + WITH_CHILD + "wait"
    )
    processes = pids(tmp_path, 0) + pids(tmp_path, 1)
    supervisor.send(signal.SIGKILL)
    supervisor.end()
    for pid in processes:
        assert_gone(pid)


def test_what_has_ended_is_not_guarded_any_more(tmp_path):
    """Its number may be another process's by the time launch is killed."""
    guard = Guard()
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    guard.watch(other.pid)
    guard.release(other.pid)
    guard.close()
    assert is_alive(other.pid)
    second = Guard()
    second.watch(other.pid)
    second.close()
    assert other.wait(timeout=30) == -signal.SIGKILL


DEATHS = {
    "kill -9 $$": "was killed by SIGKILL",
    "kill -SEGV $$": "was killed by SIGSEGV",
    "exit 137": "ended with status 137",
    "exit 2": "ended with status 2",
    "ulimit -v 500000; exec python3 -c 'bytearray(10**9)'": "ended with status 1",
    "exec python3 -c 'raise MemoryError'": "ended with status 1",
}


@pytest.mark.parametrize("death", DEATHS)
def test_any_death_in_training_is_restarted(tmp_path, death):
    # The log is looked at ten times a second, and says that it has trained.
    dying = TRAINED + f"sleep 0.3; test $RESTARTS -eq 1 || {{ {death}; }}"
    status, states, said = run(tmp_path, dying, "sleep 1; echo once")
    assert (status, states) == (0, [State.FINISHED] * 2)
    assert f"group 0 {DEATHS[death]}; restart 1 of 2" in said
    assert (tmp_path / "group-1/log.txt").read_text().count("\nonce\n") == 1


def test_settings_that_a_group_has_trained_with_are_no_reason_to_stop_the_others(tmp_path):
    # Its data are away for a while, as on a file system that another machine serves.
    away = "echo 'codistill: error: --data /mnt/images is no folder'; exit 2"
    dying = f"case $RESTARTS in 0) {TRAINED} sleep 0.3; kill -KILL $$;; 1) {away};; esac"
    status, states, said = run(tmp_path, dying, "sleep 1; echo once")
    assert (status, states) == (0, [State.FINISHED] * 2)
    assert "group 0 ended with status 2; restart 2 of 2" in said
    assert (tmp_path / "group-1/log.txt").read_text().count("\nonce\n") == 1


def alive_json(update: object, run_id: str = "run") -> str:
    """A heartbeat of a group."""
    rest = '"nonce": "nonce-0", "time": 1.0, "finished": false'
    return f'{{"run_id": "{run_id}", {rest}, "update": {update}}}'


def updates(numbers: str, seconds: float = 0.2) -> str:
    """Shell code that makes updates, which only alive.json shows."""
    said = alive_json("$u").replace('"', '\\"')
    # Renamed, as the plugin does: what is half written says nothing.
    write = f'echo "{said}" > $HOME/alive.tmp; mv $HOME/alive.tmp $HOME/alive.json'
    return f"for u in {numbers}; do {write}; sleep {seconds}; done; "


ONCE = "test $RESTARTS -eq 1 || "


def test_a_group_that_hangs_is_restarted(tmp_path):
    hanging = TRAINED + updates("1 2 3") + ONCE + "{ echo $$ > $HOME/worker; kill -STOP $$; }"
    # Longer than the timeout, and all the time getting on: by its updates, by its log.
    busy = TRAINED + updates("1 2 3 4 5 6 7 8 9 10 11 12", 0.4)
    talking = TRAINED + "for u in 1 2 3 4 5 6 7 8 9 10 11 12; do echo validating; sleep 0.4; done"
    begin = time.monotonic()
    status, states, said = run(tmp_path, hanging, busy, talking, hang_timeout=2.5)
    assert (status, states) == (0, [State.FINISHED] * 3)
    assert "group 0 has made no update for 2.5 s; restart 1 of 2" in said
    assert said.count("restart 1 of 2;") + said.count("; restart") == 1
    assert time.monotonic() - begin < 60
    assert_gone(int((tmp_path / "group-0/worker").read_text()))


def test_a_group_that_hangs_and_ignores_sigterm(tmp_path):
    hanging = TRAINED + ONCE + "{ trap '' TERM; sleep 60 & sleep 60; sleep 60; }"
    status, _, said = run(tmp_path, hanging, hang_timeout=1.0)
    assert status == 0
    assert "has made no update for 1 s" in said


def test_the_plugins_own_threads_are_no_sign_of_progress(tmp_path):
    line = "2026-01-01 | WARNING | fairseq_codistill.exchange.presence | no sign of life"
    chatting = f"for i in $(seq 150); do echo '{line}'; sleep 0.1; done"
    status, _, said = run(tmp_path, TRAINED + ONCE + chatting, hang_timeout=1.0)
    assert status == 0
    assert "has made no update for 1 s" in said


def test_a_start_may_take_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(pulse, "START_SECONDS", 4.0)
    slow = "sleep 2; " + TRAINED
    hanging = ONCE + "sleep 60"
    status, _, said = run(tmp_path, slow, hanging, hang_timeout=1.0)
    assert status == 0
    assert "group 0" not in said.replace("group 0:", "")
    assert "group 1 has made no update" in said


def test_in_lockstep_nobody_is_killed_for_waiting(tmp_path):
    """Group 0 waits for update 9 of group 1, which hangs at 8 and begins again at 1."""
    there = tmp_path / "there"
    before = "1 2 3 4 5 6 7 8"
    waiting = TRAINED + updates(before + " 9", 0.05)
    waiting += f"while ! test -e {there}; do sleep 0.1; done"
    # Longer than the timeout in all, and each update much shorter.
    catching_up = f"{updates(before + ' 9', 0.5)} touch {there}"
    hanging = TRAINED + updates(before, 0.05) + ONCE + "kill -STOP $$; " + TRAINED + catching_up
    status, states, said = run(tmp_path, waiting, hanging, hang_timeout=4.0, lockstep=True)
    assert (status, states) == (0, [State.FINISHED] * 2)
    assert "group 1 has made no update for 4 s; restart 1 of 2" in said
    assert said.count("has made no update") == 1


def test_misleading_variables_do_not_reach_the_workers(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "a,b")
    monkeypatch.setenv("CODISTILL_KEY", "hush")
    status, _, _ = run(tmp_path, "echo rank=$RANK nodes=$SLURM_JOB_NODELIST key=$CODISTILL_KEY")
    assert status == 0
    assert "rank= nodes= key=hush" in (tmp_path / "group-0/log.txt").read_text()
    assert os.environ["RANK"] == "3"


def test_a_pulse_is_read_from_nothing_but_a_small_file(tmp_path):
    alive = tmp_path / "alive.json"
    pulse = Pulse(10.0, alive, "run")

    def told(at):
        pulse.look(at, 0, False, None)
        return pulse.update

    alive.write_text(alive_json(7))
    assert told(1.0) == 7
    alive.write_text(alive_json(8))
    assert told(2.0) == 8
    real = tmp_path / "real.json"
    real.write_text(alive_json(9))
    alive.unlink()
    alive.symlink_to(real)
    assert told(3.0) == 8, "a link was followed"
    alive.unlink()
    os.mkfifo(alive)
    begin = time.monotonic()
    assert told(4.0) == 8
    assert time.monotonic() - begin < 5
    alive.unlink()
    for nonsense in ("Infinity", "true", '"9"', "9" * 5000):
        alive.write_text(alive_json(nonsense))
        assert told(pulse._look_at + 1) == 8
