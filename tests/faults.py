"""Faults for groups that train, and a look from outside at how they fare."""

import math
import os
import re
import signal
import subprocess
import threading
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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
    corpus: Path,
    out: Path,
    *flags: str,
    groups: int = 2,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    output: int | None = None,
) -> subprocess.Popen:
    """Start ``codistill launch`` with one worker a group.

    Its output goes to the descriptor ``output``, which is closed here, or to ``out/launch.txt``.
    """
    out.mkdir(parents=True, exist_ok=True)
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", str(groups), "--out", str(out)],
        *["--workers-per-group", "1", *options, "--"],
        *["fairseq-train", str(corpus), *SLOW_MODEL, *SETTINGS, *CODISTILL, *flags],
    ]
    with open(out / "launch.txt" if output is None else output, "ab") as log:
        return subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment(**(env or {}))
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
    """Reads the lines that are added to a file, which need not be there yet.

    It goes on with a file that is renamed or deleted, as who writes to it does, and with the one
    that comes in its place; and at the beginning of one that was truncated.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: list[BinaryIO] = []
        self._rest = b""

    def __del__(self) -> None:
        """Close what is open."""
        for file in self._files:
            file.close()

    def lines(self) -> list[str]:
        """The whole lines that came since the last call."""
        self._open_new()
        new = b""
        for file in self._files:
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
                self._rest = b""
            new += file.read()
        *lines, self._rest = (self._rest + new).split(b"\n")
        return [line.decode(errors="replace") for line in lines]

    def _open_new(self) -> None:
        with suppress(FileNotFoundError):
            there = os.stat(self._path)
            if not any(os.path.samestat(there, os.fstat(f.fileno())) for f in self._files):
                self._files.append(self._path.open("rb", buffering=0))


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


@dataclass(frozen=True)
class Event:
    """A line of a group's log that says what happened to it.

    Attributes:
        time: when the line was seen, by this machine's monotonic clock.
        group: whose log it is.
        kind: a key of ``_EVENTS``.
        fields: the numbers and words of the line.
    """

    time: float
    group: int
    kind: str
    fields: tuple[str, ...]


_EVENTS = {
    "update": _TRAINED,
    "start": re.compile(re.escape(_START)),
    "published": re.compile(r"published snapshot of update (\d+)(?:, sha256 ([0-9a-f]{16}))?"),
    "swap": re.compile(
        r"\| peer (\d+) (?:first seen|refreshed): update (\d+), sha256 ([0-9a-f]{16}), "
        r"from update (\d+) on"
    ),
    "rejected": re.compile(r"\| peer (\d+): snapshot of update (\d+) rejected: (.*)"),
    "loss": re.compile(r'\| train_inner \| \{.*"codistill_loss": "([^"]+)"'),
    "stale": re.compile(r"\| peer (\d+) stale\b.* from update (\d+) on"),
    "back": re.compile(r"\| peer (\d+) back\b.*update (\d+), from update (\d+) on"),
    "valid": re.compile(
        r'\| valid \| \{.*"valid_nll_loss": "([\d.]+)".*"valid_num_updates": "(\d+)"'
    ),
    # Of launch's own output.
    "said": re.compile(r"^group \d+: "),
    "shown": re.compile(r"^group (\d+): \w+ .*\bupdate (\d+)"),
    "unmarked": re.compile(r"^the mark that group (\d+) has finished cannot be written"),
}


class Watch(threading.Thread):
    """Reads the groups' logs as they grow, and notes when each line came.

    fairseq's own time stamps are whole seconds.

    Args:
        logs: of each group.
    """

    def __init__(self, logs: Mapping[int, Path]) -> None:
        super().__init__(name="watch", daemon=True)
        self._tails = {group: Tail(path) for group, path in logs.items()}
        self._events: dict[tuple[int, str], list[Event]] = defaultdict(list)
        self._over = threading.Event()

    def run(self) -> None:
        """Read until told to stop, and then once more."""
        over = False
        while not over:
            over = self._over.wait(0.02)
            for group, tail in self._tails.items():
                lines = tail.lines()
                now = time.monotonic()
                for line in lines:
                    self._note(now, group, line)

    def stop(self) -> None:
        """Have read everything."""
        self._over.set()
        self.join()

    def of(self, group: int, kind: str, since: float = -math.inf) -> list[Event]:
        """The events of one kind in one group's log, of a time and later."""
        events = self._events[group, kind]
        return events[bisect_left(events, since, key=lambda event: event.time) :]

    def update(self, group: int, at: float = math.inf) -> int:
        """The last update a group had made, now or at a certain time; 0 if none."""
        events = self._events[group, "update"]
        position = bisect_right(events, at, key=lambda event: event.time)
        return int(events[position - 1].fields[0]) if position else 0

    def wait_for(
        self, condition: Callable[[], bool], processes: Sequence[subprocess.Popen]
    ) -> None:
        """Wait until something has been seen, as long as the processes run."""
        deadline = time.monotonic() + 300
        while not condition():
            for process in processes:
                assert process.poll() is None, f"{process.args} ended before what was waited for"
            assert time.monotonic() < deadline, "what was waited for has not come"
            time.sleep(0.02)

    def _note(self, now: float, group: int, line: str) -> None:
        for kind, pattern in _EVENTS.items():
            found = pattern.search(line)
            if found:
                self._events[group, kind].append(Event(now, group, kind, tuple(found.groups())))
