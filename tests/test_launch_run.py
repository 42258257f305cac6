"""`codistill launch` with real training: faults, continuing, one launch at a time."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from harness import BIN, CODISTILL, TINY, environment


def start(out: Path, corpus: Path, *flags: str, options: tuple[str, ...] = ()) -> subprocess.Popen:
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), *options, "--"],
        *["fairseq-train", str(corpus), *TINY, *CODISTILL, "--codistill-interval", "10"],
        *["--save-interval-updates", "10", "--disable-validation", *flags],
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment()
    )


def workers(out: Path, group: int) -> list[int]:
    """The processes that train a group."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out / f"group-{group}").encode() in arguments:
            found.append(int(process.name))
    return found


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
