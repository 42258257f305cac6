"""Faults of launch itself and of its files: none may end, restart or keep up a group.

Some of them come with the death of a group: what launch is to do about it is what it might fail at
just then.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import random
import signal
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from faults import send, workers

from fairseq_codistill.records import Ended

if TYPE_CHECKING:
    from chaos_run import Fault, Run

# As whose log the output of launch itself is watched.
LAUNCH = -1

# How often each comes, of the faults of a run; 0 for once.
FAULTS = {
    "launch stopped": 3,
    "launch.log blocked": 2,
    "launch.json blocked": 0,
    "finished.json blocked": 0,
    "log.txt truncated": 2,
    "log.txt renamed": 2,
    "log.txt deleted": 2,
    "checkpoint damaged": 4,
    "alive.json replaced": 4,
    "ended.json forged": 3,
}
# These depend on where the output goes.
ON_DISK = {"output on a full disk": 3}
IN_PIPE = {"output's reader leaves": 3, "output is not read": 2, "umlauts in last words": 3}

# For launch and all that it starts, in the runs whose directory has an umlaut in its name.
ASCII = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
LAST_WORDS = (
    "Traceback (most recent call last):\n"
    '  File "Größe.py", line 1, in <module>\n'
    "RuntimeError: Maße passen nicht \x1b[31m: 你\n"
).encode() + "UnicodeError: müde\n".encode("latin-1")


class LaunchFaults:
    """Does these faults to a run.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._rng = run.rng
        self._out = run.out
        self._blocked: list[tuple[int, Path, Fault]] = []
        self._acts: dict[str, Callable[[Fault], None]] = {
            "launch stopped": self._stop_launch,
            "launch.log blocked": self._block_announcements,
            "finished.json blocked": self._block_mark,
            "log.txt truncated": self._take_log_away,
            "log.txt renamed": self._take_log_away,
            "log.txt deleted": self._take_log_away,
            "checkpoint damaged": self._damage_checkpoint,
            "alive.json replaced": self._replace_heartbeat,
            "ended.json forged": self._forge_evidence,
            "umlauts in last words": self._die_with_umlauts,
            "output on a full disk": self._disturb_output,
            "output's reader leaves": self._disturb_output,
            "output is not read": self._disturb_output,
        }

    def __contains__(self, kind: str) -> bool:
        return kind in self._acts

    def do(self, fault: Fault) -> None:
        """Do a fault, of the kind that it says."""
        self._acts[fault.kind](fault)

    def look(self) -> None:
        """Mend what is to be mended once launch has met it."""
        for group, mark, fault in list(self._blocked):
            complaints = self._run.watch.of(LAUNCH, "unmarked")
            if any(int(complaint.fields[0]) == group for complaint in complaints):
                mark.rmdir()
                fault.end = time.monotonic()
                self._blocked.remove((group, mark, fault))

    # Launch itself and its output.

    def _stop_launch(self, fault: Fault) -> None:
        seconds = self._rng.uniform(2, 13)
        fault.begin = time.monotonic()
        self._run.launch.send_signal(signal.SIGSTOP)
        try:
            fault.what = f"for {seconds:.1f} s"
            if self._rng.random() < 0.5:
                self._kill(fault)
            self._run.sleep(seconds)
        finally:
            self._run.launch.send_signal(signal.SIGCONT)
        fault.end = time.monotonic()
        if not fault.victims:
            fault.recovered = lambda: self._speaks(fault.end)

    def _disturb_output(self, fault: Fault) -> None:
        """While its output is in trouble launch has to say that a group has died."""
        fault.begin = time.monotonic()
        fault.what = "until it has started again what died meanwhile:"
        with self._run.output.trouble(fault.kind):
            victim = self._kill(fault)
            self._wait_for_start(victim, fault.begin)
        fault.end = time.monotonic()

        def recovered() -> float | None:
            times = (self._run.resumed(fault, victim), self._speaks(fault.end))
            return None if None in times else max(time for time in times if time is not None)

        fault.recovered = recovered

    def _block_announcements(self, fault: Fault) -> None:
        log, kept = self._out / "launch.log", self._out / "launch.log.kept"
        fault.begin = time.monotonic()
        if log.exists():
            log.rename(kept)
        how = self._rng.choice(["a full disk", "a directory", "a FIFO"])
        if how == "a full disk":
            log.symlink_to("/dev/full")
        elif how == "a directory":
            log.mkdir()
        else:
            os.mkfifo(log)
        fault.what = f"{how} in its place;"
        try:
            self._wait_for_start(self._kill(fault), fault.begin)
        finally:
            log.rmdir() if how == "a directory" else log.unlink()
            if kept.exists():
                kept.rename(log)
        fault.end = time.monotonic()

    def _die_with_umlauts(self, fault: Fault) -> None:
        victim = self._rng.choice(self._run.up())
        for process in workers(self._out, victim)[:1]:
            # Its log, whatever has become of the name.
            with open(f"/proc/{process}/fd/1", "ab", buffering=0) as log:
                log.write(LAST_WORDS)
        fault.begin = fault.end = time.monotonic()
        self._kill(fault, victim)

    # Launch's files.

    def _block_mark(self, fault: Fault) -> None:
        """Block the mark of the group that is ahead; ``look`` mends it."""
        watch = self._run.watch
        group = max(self._run.up(), key=watch.update)
        mark = self._out / f"group-{group}" / "finished.json"
        mark.mkdir()
        fault.begin = time.monotonic()
        fault.what = f"group {group}: a directory in its place"
        self._blocked.append((group, mark, fault))
        fault.recovered = first_time(mark.is_file)

    def _take_log_away(self, fault: Fault) -> None:
        there = [g for g in self._run.up() if self._log(g).exists()]
        # All may have been taken away already.
        group = self._rng.choice(there or self._run.up())
        log = self._log(group)
        fault.what = f"group {group}"
        update = self._run.watch.update(group)
        with contextlib.suppress(FileNotFoundError):
            if fault.kind == "log.txt truncated":
                os.truncate(log, 0)
            elif fault.kind == "log.txt renamed":
                log.rename(log.with_name(f"log.txt.{len(list(log.parent.glob('log.txt.*'))) + 1}"))
            else:
                log.unlink()
        fault.begin = fault.end = time.monotonic()
        fault.recovered = lambda: self._shows(group, update, fault.end)

    def _damage_checkpoint(self, fault: Fault) -> None:
        """Damage what a group that has just died would be started from."""
        folder = self._out / f"group-{(victim := self._rng.choice(self._run.up()))}"
        fault.begin = time.monotonic()
        self._kill(fault, victim)
        while workers(self._out, victim):
            time.sleep(0.001)
        newest = sorted(folder.glob("checkpoint_*_*.pt"), key=lambda p: int(p.stem.split("_")[2]))
        # One stays as it is, if there are as many.
        targets = [folder / "checkpoint_last.pt", *newest[1:][-1:]]
        chosen = self._rng.sample(targets, self._rng.randint(1, len(targets)))
        for path in chosen if newest else []:
            with contextlib.suppress(FileNotFoundError):
                at, size = damage_directory(path, self._rng)
                fault.what += f"; {path.name}: byte {at} of {size}"
        fault.end = time.monotonic()
        afresh = not newest

        def recovered() -> float | None:
            starts = self._run.watch.of(victim, "start", since=fault.begin)
            updates = self._run.watch.of(victim, "update", since=starts[0].time) if starts else []
            resumed = bool(updates) and (afresh or int(updates[0].fields[0]) > 1)
            return updates[0].time if resumed else None

        fault.recovered = recovered

    def _replace_heartbeat(self, fault: Fault) -> None:
        group = self._rng.choice(self._run.up())
        vandal = self._run.vandal
        ours = vandal.alive(group)
        fault.begin = time.monotonic()
        fault.what = vandal.replace_alive(group, self._rng)
        fault.end = time.monotonic()

        def genuine() -> bool:
            alive = vandal.alive(group)
            if alive is None or alive.update > self._run.settings.updates:
                return False
            # It may have been none of its own that was replaced.
            return ours is None or (alive.run_id, alive.nonce) == (ours.run_id, ours.nonce)

        fault.recovered = first_time(genuine, every=0.5)

    def _forge_evidence(self, fault: Fault) -> None:
        """Forge it before a group dies, and again for its end."""
        victim = self._rng.choice(self._run.up())
        alive = self._run.vandal.alive(victim)
        run_id, nonce = ("", "") if alive is None else (alive.run_id, alive.nonce)
        updates = self._run.settings.updates
        forged = {
            "another process's": Ended(run_id, "f" * 32, updates, "max-update", True, True),
            "another run's": Ended("another", nonce, updates, "max-update", True, True),
            "one of too small an update": Ended(run_id, nonce, 1, "max-update", True, True),
            "nonsense": None,
            "a FIFO": None,
        }
        how = self._rng.choice([*forged])
        place = self._out / f"group-{victim}" / "ended.json"

        def plant() -> None:
            place.unlink(missing_ok=True)
            if how == "a FIFO":
                os.mkfifo(place)
            elif (ended := forged[how]) is None:
                place.write_bytes(b'{"format": ' + b"[" * 50_000)
            else:
                place.write_text(_json(ended))

        fault.begin = time.monotonic()
        fault.what = f"{how};"
        plant()
        self._kill(fault, victim)
        self._wait_for_start(victim, fault.begin)
        plant()
        fault.end = time.monotonic()

    # What they have in common.

    def _kill(self, fault: Fault, victim: int | None = None) -> int:
        """Kill a group that trains; the fault is recovered from when it trains again."""
        group = self._rng.choice(self._run.up()) if victim is None else victim
        fault.victims = (group,)
        update = self._run.watch.update(group)
        fault.what = f"{fault.what} group {group} killed at update {update}".strip()
        send(self._out, group, signal.SIGKILL)
        fault.recovered = lambda: self._run.resumed(fault, group)
        return group

    def _wait_for_start(self, group: int, since: float) -> None:
        """Wait until launch has started a group, but not for ever."""
        deadline = time.monotonic() + 60
        while not self._run.watch.of(group, "start", since) and time.monotonic() < deadline:
            self._run.sleep(0.05)

    def _log(self, group: int) -> Path:
        return self._out / f"group-{group}" / "log.txt"

    def _speaks(self, since: float) -> float | None:
        """When launch first said anything."""
        said = self._run.watch.of(LAUNCH, "said", since)
        return said[0].time if said else None

    def _shows(self, group: int, update: int, since: float) -> float | None:
        """When launch first showed that a group is beyond an update."""
        for event in self._run.watch.of(LAUNCH, "shown", since):
            if int(event.fields[0]) == group and int(event.fields[1]) > update:
                return event.time
        return None


def first_time(condition: Callable[[], bool], every: float = 0.0) -> Callable[[], float | None]:
    """Return a function that tells when a condition was first seen to hold.

    Args:
        condition: is looked at when that function is called.
        every: seconds from one look to the next, at least.
    """
    found: float | None = None
    next_look = 0.0

    def when() -> float | None:
        nonlocal found, next_look
        now = time.monotonic()
        if found is None and now >= next_look:
            next_look = now + every
            found = now if condition() else None
        return found

    return when


@contextlib.contextmanager
def unwritable(folder: Path) -> Iterator[bool]:
    """Let nothing be added to a directory for a while; False if this machine does not let us."""

    def switch(writable: bool) -> bool:
        if os.geteuid():
            folder.chmod(0o755 if writable else 0o555)
            return True
        # No permissions hold root.
        command = ["chattr", "-i" if writable else "+i", str(folder)]
        try:
            return subprocess.run(command, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False

    switched = switch(False)
    try:
        yield switched
    finally:
        if switched:
            switch(True)


def damage_directory(path: Path, rng: random.Random) -> tuple[int, int]:
    """Change one byte of a zip archive's directory; return which, and the archive's size."""
    data = bytearray(path.read_bytes())
    start = struct.unpack("<I", data[-6:-2])[0] if len(data) >= 22 else 0
    # A copy that was interrupted has no directory.
    at = rng.randrange(start if start < len(data) else 0, len(data))
    data[at] ^= rng.randrange(1, 256)
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data[at : at + 1])
    return at, len(data)


def _json(ended: Ended) -> str:
    return json.dumps(dataclasses.asdict(dataclasses.replace(ended, time=time.time())))


def is_over(fault: Fault) -> bool:
    """Whether the cause of a fault has ended."""
    return fault.end < math.inf
