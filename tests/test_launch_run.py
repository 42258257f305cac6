"""`codistill launch` with real training: faults, continuing, one launch at a time."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from faults import workers
from harness import BIN, CODISTILL, TINY, environment


def start(
    out: Path,
    corpus: Path,
    *flags: str,
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> subprocess.Popen:
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), *options, "--"],
        *["fairseq-train", str(corpus), *TINY, *CODISTILL, "--codistill-interval", "10"],
        *["--save-interval-updates", "10", "--disable-validation", *flags],
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**(env or {})),
    )


def processes(out: Path) -> dict[int, str]:
    """All that a launch has started, directly or not, with their command lines."""
    nonces = json.loads((out / "launch.json").read_text())["nonces"]
    marks = [f"CODISTILL_NONCE={nonce}".encode() for nonce in nonces]
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            variables = (process / "environ").read_bytes().split(b"\0")
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if command and any(mark in variables for mark in marks):
            found[int(process.name)] = command
    return found


def assert_nothing_runs(out: Path) -> None:
    deadline = time.monotonic() + 30
    while left := processes(out):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.02)


def starts(out: Path, group: int) -> int:
    return (out / f"group-{group}/log.txt").read_text().count("| codistill.launch |")


def test_a_killed_group_goes_on_from_its_newest_loadable_checkpoint(tmp_path, corpus):
    out = tmp_path / "out"
    launch = start(out, corpus, "--max-update", "250")
    wait_for(out / "group-1/checkpoint_1_20.pt", launch)
    (victim,) = workers(out, 1)
    os.kill(victim, signal.SIGSTOP)
    # Torn as by a kill in the middle of the copy; and no newer one is whole.
    for name in ("checkpoint_last.pt", "checkpoint_1_20.pt"):
        (out / "group-1" / name).write_bytes(b"PK torn")
    os.kill(victim, signal.SIGKILL)
    output, _ = launch.communicate(timeout=300)
    assert launch.returncode == 0, output
    assert "group 1 was killed by SIGKILL; restart 1 of 3" in output
    assert (starts(out, 0), starts(out, 1)) == (1, 2)
    log = (out / "group-1/log.txt").read_text()
    resumed = re.search(r"Loaded checkpoint \S*/(checkpoint\S+\.pt) \(epoch \d+ @ (\d+)", log)
    assert resumed is not None
    assert resumed[1] == "checkpoint_1_10.pt" or int(resumed[2]) > 20
    assert (out / "group-1/checkpoint_last.pt.torn").exists()
    assert '"num_updates": "250"' in log
    assert not workers(out, 0) + workers(out, 1)


def test_ctrl_c_then_the_same_command_goes_on(tmp_path, corpus):
    out = tmp_path / "out"
    launch = start(out, corpus, "--max-update", "2000")
    wait_for(out / "group-0/checkpoint_1_10.pt", launch)
    wait_for(out / "group-1/checkpoint_1_10.pt", launch)
    second = start(out, corpus, "--max-update", "2000")
    assert "in use by another launch" in second.communicate(timeout=60)[0]
    assert second.returncode == 2
    launch.send_signal(signal.SIGINT)
    output, _ = launch.communicate(timeout=60)
    assert launch.returncode == 130, output
    assert not workers(out, 0) + workers(out, 1)
    # They have said goodbye: who looks now does not take them for groups that train.
    for group in (0, 1):
        alive = json.loads((out / f"exchange/group-{group}/alive.json").read_text())
        assert (alive["running"], alive["finished"]) == (False, False)
    before = json.loads((out / "launch.json").read_text())
    done = len(list((out / "group-0").glob("checkpoint_*_*.pt"))) * 10

    again = start(out, corpus, "--max-update", str(done + 30))
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    record = json.loads((out / "launch.json").read_text())
    assert (record["run_id"], record["nonces"]) == (before["run_id"], before["nonces"])
    assert len(record["history"]) == 1
    assert [starts(out, group) for group in (0, 1)] == [2, 2]
    assert "Loaded checkpoint" in (out / "group-0/log.txt").read_text()
    # Published under the same run id, by owners that the exchange still knows.
    manifests = list((out / "exchange/group-0").glob("0*.json"))
    assert {json.loads(path.read_text())["run_id"] for path in manifests} == {record["run_id"]}

    # Once more: there is nothing left to do, and nothing is started.
    once_more = start(out, corpus, "--max-update", str(done + 30))
    output, _ = once_more.communicate(timeout=60)
    assert once_more.returncode == 0, output
    assert [starts(out, group) for group in (0, 1)] == [2, 2]
    assert output.count("finished") == 2


def test_wrong_settings_are_told_once(tmp_path, corpus):
    launch = start(tmp_path / "out", corpus, "--codistill-alpha", "-1")
    output, _ = launch.communicate(timeout=120)
    assert launch.returncode == 2
    assert "codistill: error: --codistill-alpha" in output
    assert "restart" not in output
    assert starts(tmp_path / "out", 0) == 1


@pytest.mark.full
def test_what_print_shows_runs_as_it_stands(tmp_path, corpus):
    command = [
        *[
            str(BIN / "codistill"),
            "launch",
            "--groups",
            "2",
            "--out",
            str(tmp_path / "a b"),
            "--print",
        ],
        *["--", "fairseq-train", str(corpus), *TINY, *CODISTILL, "--codistill-interval", "5"],
        *["--disable-validation", "--codistill-alpha-milestones", "3,5"],
    ]
    # Not the tests' own environment: a shell in which somebody else's job has left its traces.
    env = environment(PATH=f"{BIN}:{os.environ['PATH']}", RANK="3", WORLD_SIZE="4")
    env |= {"MASTER_ADDR": "nowhere", "MASTER_PORT": "1"}
    shown = subprocess.run(command, capture_output=True, text=True, env=env, check=True).stdout
    assert not (tmp_path / "a b").exists()
    lines = [line for line in shown.splitlines() if not line.startswith("#")]
    assert len(lines) == 2
    shells = [
        subprocess.Popen(
            ["bash", "-c", line],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=env,
        )
        for line in lines
    ]
    told = [shell.communicate(timeout=300)[0] for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], told
    alive = [
        json.loads((tmp_path / f"a b/exchange/group-{group}/alive.json").read_text())
        for group in (0, 1)
    ]
    assert [(one["update"], one["finished"]) for one in alive] == [(20, True)] * 2
    assert alive[0]["run_id"] == alive[1]["run_id"]


@pytest.fixture
def spawning(tmp_path) -> dict[str, str]:
    """An environment whose fairseq-train spawns two workers, as it does on GPUs."""
    program = tmp_path / "bin" / "fairseq-train"
    program.parent.mkdir()
    spawned = Path(__file__).parent / "spawned.py"
    program.write_text(f"""#!{sys.executable}
import os, socket, sys
with socket.socket() as probe:
    probe.bind(("localhost", 0))
    place = f"tcp://localhost:{{probe.getsockname()[1]}}"
world = ["--distributed-world-size", "2", "--distributed-init-method", place]
world += ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
os.execv(sys.executable, [sys.executable, {str(spawned)!r}, *sys.argv[1:], *world])
""")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=lambda s: s.name)
def test_nothing_outlives_launch_and_the_run_goes_on(tmp_path, corpus, spawning, number):
    """Two groups of two spawned workers, each with data loaders."""
    out = tmp_path / "out"
    flags = ["--num-workers", "2", "--max-update"]
    launch = start(out, corpus, *flags, "5000", env=spawning)
    for group in (0, 1):
        wait_for(out / f"group-{group}/checkpoint_1_10.pt", launch)
    there = processes(out)
    print("\n".join(f"{pid} {command:.150}" for pid, command in sorted(there.items())))
    # Of each group: fairseq-train, two workers, and of these two data loaders each.
    assert len(there) >= 2 * (1 + 2 + 4)
    launch.send_signal(number)
    launch.communicate(timeout=60)
    assert_nothing_runs(out)
    for group in (0, 1):
        alive = json.loads((out / f"exchange/group-{group}/alive.json").read_text())
        # Spawned workers say goodbye too, if they are asked to end.
        assert alive["running"] is (number == signal.SIGKILL)
    before = json.loads((out / "launch.json").read_text())["run_id"]
    done = len(list((out / "group-0").glob("checkpoint_*_*.pt"))) * 10

    again = start(out, corpus, *flags, str(done + 30), env=spawning)
    output, _ = again.communicate(timeout=300)
    assert again.returncode == 0, output
    assert json.loads((out / "launch.json").read_text())["run_id"] == before
    assert "Loaded checkpoint" in (out / "group-0/log.txt").read_text()
    alive = json.loads((out / "exchange/group-0/alive.json").read_text())
    assert (alive["finished"], alive["restarts"]) == (True, 1)
    assert_nothing_runs(out)


class Watcher(threading.Thread):
    """Notes when the update counter in a log was seen to move."""

    def __init__(self, log: Path) -> None:
        super().__init__(daemon=True)
        self.log = log
        self.moves: list[tuple[float, int]] = []

    def run(self) -> None:
        last = 0
        while last < LAST_UPDATE:
            time.sleep(0.02)
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - 2000))
                found = re.findall(rb'"num_updates": "(\d+)"', log.read())
            if found and int(found[-1]) != last:
                last = int(found[-1])
                self.moves.append((time.monotonic(), last))

    @property
    def longest_gap(self) -> float:
        return max(b[0] - a[0] for a, b in pairwise(self.moves))


LAST_UPDATE = 3000


@pytest.mark.full
def test_a_group_is_killed_and_stopped_and_the_other_never_pauses(tmp_path, corpus):
    out = tmp_path / "out"
    flags = ["--save-interval-updates", "100", "--max-update", str(LAST_UPDATE)]
    flags += ["--codistill-alpha", "0.1", "--codistill-alpha-schedule", "constant"]
    launch = start(out, corpus, *flags, options=("--hang-timeout", "10"))
    for group in (0, 1):
        wait_for(out / f"group-{group}/checkpoint_last.pt", launch)
    other = Watcher(out / "group-0/log.txt")
    other.start()
    faults = [signal.SIGKILL, signal.SIGSTOP, signal.SIGKILL]
    for count, fault in enumerate(faults, 1):
        (victim,) = workers(out, 1)
        os.kill(victim, fault)
        while not trains(out, 1, starts=count + 1):
            assert launch.poll() is None, launch.communicate()[0]
            time.sleep(0.1)
        print(f"{fault.name}: group 1 trains again, group 0 is at {other.moves[-1][1]}")
    assert other.moves[-1][1] < LAST_UPDATE, "group 0 was through before the faults were"
    output, _ = launch.communicate(timeout=400)
    other.join(timeout=60)
    print(f"longest gap between two updates of group 0: {other.longest_gap:.2f} s")
    assert launch.returncode == 0, output
    assert other.moves[-1][1] == LAST_UPDATE
    assert other.longest_gap < 10
    assert output.count("group 1 was killed by SIGKILL; restart") == 2
    assert "group 1 has made no update for 10 s; restart 2 of 3" in output
    assert (starts(out, 0), starts(out, 1)) == (1, 4)
    alive = [json.loads((out / f"exchange/group-{i}/alive.json").read_text()) for i in (0, 1)]
    assert [one["update"] for one in alive] == [LAST_UPDATE] * 2
    assert [one["finished"] for one in alive] == [True] * 2
    assert [one["restarts"] for one in alive] == [0, 3]
    assert_nothing_runs(out)


def trains(out: Path, group: int, starts: int) -> bool:
    """Whether a group has made an update since its so-many-th start."""
    parts = (out / f"group-{group}/log.txt").read_text().split("| codistill.launch |")
    return len(parts) > starts and "| train_inner |" in parts[starts]
