"""Faults for groups that train, and a look from outside at how they fare."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from harness import BIN, CODISTILL, SETTINGS, environment

# Its updates take some 30 ms, so that a signal comes at the update that was meant, and its
# checkpoints some megabytes, so that a signal can come while one is being written.
SLOW_MODEL = """
    --arch transformer --encoder-layers 2 --decoder-layers 2
    --encoder-embed-dim 64 --decoder-embed-dim 64
    --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512
    --encoder-attention-heads 2 --decoder-attention-heads 2 --share-all-embeddings
""".split()

# The line that launch writes to a log whenever it starts the group.
_START = "| codistill.launch |"
_TRAINED = re.compile(r'\| train_inner \| \{.*"num_updates": "(\d+)"')


def start_launch(
    corpus: Path, out: Path, *flags: str, groups: int = 2, options: tuple[str, ...] = ()
) -> subprocess.Popen:
    """Start ``codistill launch`` with one worker a group; its output goes to ``out/launch.txt``."""
    out.mkdir(parents=True, exist_ok=True)
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", str(groups), "--out", str(out)],
        *["--workers-per-group", "1", *options, "--"],
        *["fairseq-train", str(corpus), *SLOW_MODEL, *SETTINGS, *CODISTILL, *flags],
    ]
    with open(out / "launch.txt", "a") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment())


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


def send(out: Path, group: int, number: int) -> bool:
    """Send a signal to all processes of a group; gives whether there was one."""
    found = workers(out, group)
    for process in found:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            found = []
    return bool(found)


class Tail:
    """Reads the lines that are added to a file, which need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._rest = b""

    def lines(self) -> list[str]:
        """The whole lines that came since the last call."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._position)
            new = file.read()
        self._position += len(new)
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in lines]


def update_of(line: str) -> int | None:
    """The update that a line of a group's log says was made just now."""
    trained = _TRAINED.search(line)
    return int(trained[1]) if trained else None


def wait_until(condition: Callable[[], bool], launch: subprocess.Popen, out: Path) -> None:
    """Look without a pause, so that what follows comes as soon as it can."""
    deadline = time.monotonic() + 200
    while not condition():
        said = (out / "launch.txt").read_text()
        assert launch.poll() is None, f"the run ended before the fault could come:\n{said}"
        assert time.monotonic() < deadline, f"the moment for the fault did not come:\n{said}"
        time.sleep(0.0005)


def kill_at_update(out: Path, group: int, update: int, launch: subprocess.Popen) -> None:
    """kill -9 the group as soon as its log says that it has made so many updates."""
    tail = Tail(out / f"group-{group}" / "log.txt")

    def reached() -> bool:
        return any((update_of(line) or 0) >= update for line in tail.lines())

    wait_until(reached, launch, out)
    assert send(out, group, signal.SIGKILL), "there was nothing to kill"


def lives(log: str) -> list[list[int]]:
    """The updates that a group has logged, for each time it was started."""
    return [
        [int(update) for update in map(update_of, life.splitlines()) if update is not None]
        for life in log.split(_START)[1:]
    ]
