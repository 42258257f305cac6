"""Three groups under launch, what is done to them and to their exchange, and how they fare."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from faults import Watch, send, start_launch, workers
from launch_faults import ASCII, LAUNCH, LaunchFaults, first_time, is_over, unwritable
from launch_output import InPipe, OnDisk, Output
from servers import Proxy
from vandal import OVERWRITES, Record, Vandal, exchange

from fairseq_codistill.exchange import prefetcher
from fairseq_codistill.records import read_ended

GROUPS = 3
INTERVAL = 25
TRAINING = """
    --optimizer adam --lr 0.002 --dropout 0.1 --codistill-alpha-schedule constant
    --save-interval-updates 50 --keep-interval-updates 2 --save-interval 1000000
    --validate-interval 1000000
""".split()

# Damage to one snapshot; the others keep the exchange for that.
DAMAGE = ("truncate", "overwrite")
# Updates that a group makes while nothing is wrong, and uses a snapshot that is there.
SOON = 4 * INTERVAL
# Divergences are around 0.1; with damaged weights they have many digits.
WORST_DIVERGENCE = 100.0
# What differs between two rejections for one reason.
_NUMBERS = re.compile(r"'.*'|\(.*\)|\b[\da-f]{12}\.\.\.|\d+")


@dataclass
class Settings:
    """What a run is like.

    Attributes:
        updates: of each group.
        hang_timeout: launch's, in seconds.
        longest_gap: between two updates of an unfaulted group, in seconds.
        trouble: shortest and longest trouble of a store or a disk, in seconds.
        patience: seconds until a run is given up.
    """

    updates: int = 3000
    hang_timeout: float = 20.0
    longest_gap: float = 5.0
    trouble: tuple[float, float] = (2.0, 8.0)
    patience: float = 1800.0


@dataclass
class Fault:
    """One fault.

    Attributes:
        kind: as ``chaos`` deals them.
        begin: when it was done.
        what: it, in words.
        victims: groups whose own training it stops.
        owner: whose snapshot it damages, if it does.
        update: of that snapshot.
        end: when its cause was over.
        recovered: gives when all was as before; None if it is not yet.
        recovery: seconds from ``end`` to then; None if training was over before.
        gap: the longest time between two updates of another group, around the fault.
    """

    kind: str
    begin: float
    what: str = ""
    victims: tuple[int, ...] = ()
    owner: int | None = None
    update: int = 0
    end: float = math.inf
    recovered: Callable[[], float | None] = lambda: None
    recovery: float | None = None
    gap: float = 0.0


@dataclass
class Result:
    """What a run showed.

    Attributes:
        faults: in order.
        nll: final validation NLL of each group.
        gap: longest time between two updates of a group that was not itself faulted.
        swaps: how many snapshots of peers were used, each with its digest checked.
        unlogged: of those, how many were known from their manifest alone.
        rejected: why snapshots were not used, and how often.
        problems: what should not have happened.
        seconds: how long the run took.
    """

    faults: list[Fault] = field(default_factory=list)
    nll: list[float] = field(default_factory=list)
    gap: float = 0.0
    swaps: int = 0
    unlogged: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Over(Exception):
    """Training is over, or too nearly so for another fault."""


class Run:
    """One run and what is done to it.

    Args:
        out: its folder.
        vandal: damages its exchange.
        launch: the process.
        settings: what it is like.
        rng: for all that is random.
        proxy: before the store, if it is one.
        output: of launch.
    """

    def __init__(
        self,
        out: Path,
        vandal: Vandal,
        launch: subprocess.Popen,
        settings: Settings,
        rng: random.Random,
        proxy: Proxy | None,
        output: Output,
    ) -> None:
        self.out = out
        self.faults: list[Fault] = []
        logs = {group: out / f"group-{group}" / "log.txt" for group in range(GROUPS)}
        self.watch = Watch({**logs, LAUNCH: out / "launch.txt"})
        self.vandal = vandal
        self.launch = launch
        self.settings = settings
        self.rng = rng
        self.output = output
        self._proxy = proxy
        self._launch_faults = LaunchFaults(self)
        self._start = time.monotonic()
        self._unreported: list[Fault] = []
        self._record = Record(vandal, GROUPS)
        self.watch.start()
        self._record.start()

    # The course of a run.

    def suffer(self, kinds: Sequence[str]) -> list[str]:
        """Do faults at random moments of the training; gives the kinds that found no room."""
        left = deque(kinds)
        with contextlib.suppress(Over):
            self._until(lambda: all(self.watch.of(g, "published") for g in range(GROUPS)))
            first, last = self._leader(), 0.8 * self.settings.updates
            for moment in sorted(self.rng.uniform(first, last) for _ in kinds):
                self._until(lambda m=moment: self._leader() >= m and len(self.up()) > 1)
                self._do(left.popleft())
                self.sleep(self.rng.uniform(0.2, 1.0))
        return list(left)

    def begin_unwritable(self, over: Callable[[], None]) -> None:
        """Count it as a fault that launch could not write ``launch.json`` until all trained.

        Args:
            over: makes an end of that.
        """
        record = self.out / "launch.json"
        fault = Fault("launch.json blocked", self._start, "from the start")
        self.faults.append(fault)
        self._unreported.append(fault)
        fault.recovered = first_time(record.is_file)
        with contextlib.suppress(Over):
            self._until(lambda: all(self.watch.update(group) for group in range(GROUPS)))
        if record.exists():
            fault.what += ": was written all the same"
        over()
        fault.end = time.monotonic()

    def finish(self) -> Result:
        """Wait for the end of training, and look at everything."""
        deadline = self._start + self.settings.patience
        problems = []
        while self.launch.poll() is None:
            if time.monotonic() > deadline:
                problems.append(f"the run did not end within {self.settings.patience:g} s")
                self.launch.send_signal(signal.SIGINT)
                self.launch.wait(60)
                break
            self._report()
            time.sleep(0.05)
        self.watch.stop()
        self._record.stop()
        self._report(over=True)
        result = Result(self.faults, seconds=time.monotonic() - self._start, problems=problems)
        if self.launch.returncode != 0:
            said = (self.out / "launch.txt").read_text()[-2000:]
            problems.append(f"launch ended with status {self.launch.returncode}:\n{said}")
        result.gap = self._longest_gap(-math.inf, math.inf, range(GROUPS))
        if result.gap > self.settings.longest_gap:
            problems.append(f"an unfaulted group made no update for {result.gap:.1f} s")
        for group in range(GROUPS):
            problems += self._check_end(group, result)
            problems += self._check_starts(group)
            problems += self._check_swaps(group, result)
            problems += self._check_divergence(group)
        problems += [
            f"not recovered from: {fault.what}" for fault in self.faults if self._is_open(fault)
        ]
        if (self.out / "pickle-ran").exists():
            problems.append("a pickle from the exchange was run")
        return result

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = self._start + self.settings.patience
        while not condition():
            nearly_over = self._leader() > 0.95 * self.settings.updates
            if self.launch.poll() is not None or nearly_over or time.monotonic() > deadline:
                raise Over
            self._report()
            time.sleep(0.02)

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._report()
            time.sleep(0.02)

    # The state of the groups.

    def _leader(self) -> int:
        return max(map(self.watch.update, range(GROUPS)))

    def _finished(self, group: int) -> bool:
        return self.watch.update(group) >= self.settings.updates

    def up(self) -> list[int]:
        """The groups that train at this moment."""
        now = time.monotonic()
        return [
            group
            for group in range(GROUPS)
            if not self._finished(group)
            and self.watch.update(group) > 0
            and not any(begin <= now < end for begin, end in self._disturbed(group))
        ]

    def _disturbed(self, group: int) -> list[tuple[float, float]]:
        """From when to when a group did not train because a fault was done to itself."""
        times = [(f.begin, self.resumed(f, group)) for f in self.faults if group in f.victims]
        return [(begin, math.inf if end is None else end) for begin, end in times]

    def resumed(self, fault: Fault, group: int) -> float | None:
        """When a group made its first update after a fault that was done to itself."""
        since = fault.end
        if fault.kind != "stop":
            starts = self.watch.of(group, "start", since=fault.begin)
            if not starts:
                return None
            since = starts[0].time
        updates = self.watch.of(group, "update", since=since)
        return updates[0].time if updates else None

    def _longest_gap(self, begin: float, end: float, groups: Sequence[int]) -> float:
        """Longest time between two updates of a group that began before ``end`` and ended later
        than ``begin``, without those that were done to itself."""
        longest = 0.0
        for group in groups:
            disturbed = self._disturbed(group)
            times = [event.time for event in self.watch.of(group, "update")]
            if times and not self._finished(group) and self.launch.poll() is None:
                times.append(time.monotonic())
            for before, after in zip(times, times[1:], strict=False):
                around = before < end and after > begin and after - before > longest
                if around and not any(b < after and before < e for b, e in disturbed):
                    longest = after - before
        return longest

    # Faults.

    def _do(self, kind: str) -> None:
        fault = Fault(kind, time.monotonic())
        # At once on the list: who dies or is stopped does not count as unfaulted.
        self.faults.append(fault)
        try:
            if kind in ("kill", "stop", "stop past hang-timeout"):
                self._do_to_a_group(fault)
            elif kind in DAMAGE:
                self._damage_a_snapshot(fault)
            elif kind == "remove":
                self._remove(fault)
            elif kind in self._launch_faults:
                self._launch_faults.do(fault)
            else:
                self._trouble(fault)
        except Over:
            self.faults.remove(fault)
            raise
        self._unreported.append(fault)

    def _do_to_a_group(self, fault: Fault) -> None:
        up = self.up()
        victim = self.rng.choice(up)
        starting = [g for g in range(GROUPS) if g not in up and not self._finished(g)]
        if fault.kind == "kill" and starting and self.rng.random() < 0.3:
            running = [g for g in starting if workers(self.out, g)]
            victim = running[0] if running else victim
        fault.begin = time.monotonic()
        fault.victims = (victim,)
        fault.what = f"group {victim} at update {self.watch.update(victim)}"
        fault.recovered = lambda: self.resumed(fault, victim)
        if fault.kind == "kill":
            send(self.out, victim, signal.SIGKILL)
            fault.end = fault.begin
            return
        send(self.out, victim, signal.SIGSTOP)
        if fault.kind == "stop":
            pause = self.rng.uniform(1, 0.4 * self.settings.hang_timeout)
            fault.what += f" for {pause:.1f} s"
            self.sleep(pause)
            send(self.out, victim, signal.SIGCONT)
            fault.end = time.monotonic()
        else:
            # launch ends it.
            fault.end = fault.begin

    def _damage_a_snapshot(self, fault: Fault) -> None:
        """Damage a snapshot that has just been published, before others have read it."""
        owner = self.rng.choice(self.up())
        update, older = self._next_snapshot(owner)
        stem = f"group-{owner}/{update:010d}"
        tensors = self.rng.random() < 0.8
        name = stem + (".safetensors" if tensors else ".json")
        with contextlib.suppress(FileNotFoundError):
            if fault.kind == "truncate":
                fault.what = self.vandal.truncate(name, self.rng)
            else:
                how = self.rng.choice([*OVERWRITES, "a well-formed file of huge numbers"])
                model = f"group-{owner}/{older:010d}" + name.removeprefix(stem)
                fault.what = self.vandal.overwrite(name, model, self.rng, how)
        fault.what = fault.what or f"{name} was to be damaged, but had gone"
        fault.owner, fault.update = owner, update
        fault.begin = fault.end = time.monotonic()
        fault.recovered = lambda: self._used_again(owner, update, fault.end)

    def _next_snapshot(self, owner: int) -> tuple[int, int]:
        """Wait for a group's next snapshot, but not for long; its update, and an older one."""
        before = self.vandal.updates(owner)
        deadline = time.monotonic() + 10
        while True:
            there = self.vandal.updates(owner)
            new = [update for update in there if update not in before]
            if new or (there and time.monotonic() > deadline):
                return (new or there)[-1], there[0]
            if self.launch.poll() is not None or time.monotonic() > deadline + 30:
                raise Over
            time.sleep(0.01 if self._proxy is None else 0.1)

    def _used_again(self, owner: int, update: int, since: float) -> float | None:
        """When another group first used a later snapshot of a group."""
        times = [
            event.time
            for group in range(GROUPS)
            for event in self.watch.of(group, "swap", since=since)
            if int(event.fields[0]) == owner and int(event.fields[1]) > update
        ]
        return min(times, default=None)

    def _remove(self, fault: Fault) -> None:
        group = self.rng.choice(self.up())
        there = self.vandal.updates(group)
        choices = ["", f"group-{group}"]
        if there:
            stem = f"group-{group}/{there[-1]:010d}"
            choices += [f"{stem}.safetensors", f"{stem}.json"]
        fault.begin = time.monotonic()
        fault.what = self.vandal.remove(self.rng.choice(choices))
        fault.end = time.monotonic()
        fault.recovered = lambda: self._all_published(fault)

    def _trouble(self, fault: Fault) -> None:
        seconds = self.rng.uniform(*self.settings.trouble)
        if fault.kind == "store hangs":
            # Who waits for it begins to when the next snapshot is due.
            seconds = 2 * self.settings.longest_gap + self.rng.uniform(1, 3)
        fault.begin = time.monotonic()
        with self._full_disk() if fault.kind == "fill the disk" else self._sick(fault.kind):
            fault.what = f"for {seconds:.1f} s"
            self.sleep(seconds)
        fault.end = time.monotonic()
        fault.recovered = lambda: self._all_published(fault)

    @contextlib.contextmanager
    def _full_disk(self) -> Iterator[None]:
        filler = self.out / "disk" / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def _sick(self, kind: str) -> Iterator[None]:
        modes = {
            "store refuses": "refuse",
            "store answers errors": "error",
            "store hangs": "hang",
            "store is slow": f"slow {self.rng.choice([2000, 20000, 200000])}",
        }
        assert self._proxy is not None
        self._proxy.say(modes[kind])
        try:
            yield
        finally:
            self._proxy.say("ok")

    def _all_published(self, fault: Fault) -> float | None:
        """When every group that trained at a fault's end had published a snapshot again."""
        times = []
        for group in range(GROUPS):
            if self.watch.update(group, at=fault.end) >= self.settings.updates:
                continue
            published = self.watch.of(group, "published", since=fault.end)
            if not published:
                return None
            times.append(published[0].time)
        return max(times, default=fault.end)

    # What they came to.

    def _is_open(self, fault: Fault) -> bool:
        """Whether a fault should have been recovered from and was not."""
        if fault.recovered() is not None or not is_over(fault):
            return False
        if fault.owner is not None:
            return self._passed_over(fault.owner, fault.update)
        return True

    def _passed_over(self, owner: int, update: int) -> bool:
        """Whether a later snapshot of a group was there when nothing was wrong any more, and
        another group went on training without it."""
        # Who could not read a store looks at it more rarely for a while.
        rarely = prefetcher.LONGEST_PAUSE_SECONDS
        calm = max(
            f.end + (rarely if f.kind.startswith("store") else 0) for f in self.faults if is_over(f)
        )
        later = [
            event.time
            for event in self.watch.of(owner, "published", since=calm)
            if int(event.fields[0]) > update
        ]
        return bool(later) and any(
            len(self.watch.of(group, "update", since=later[0])) >= SOON
            for group in range(GROUPS)
            if group != owner
        )

    def _report(self, over: bool = False) -> None:
        self._launch_faults.look()
        now = time.monotonic()
        for fault in list(self._unreported):
            recovered = fault.recovered()
            settled = recovered is not None and now > max(recovered, fault.end) + 3
            if not settled and not over:
                continue
            self._unreported.remove(fault)
            others = [group for group in range(GROUPS) if group not in fault.victims]
            fault.gap = self._longest_gap(fault.begin, fault.end + 3, others)
            after = "training was over before it could be recovered from"
            if recovered is not None:
                fault.recovery = max(0.0, recovered - fault.end)
                after = f"recovered after {fault.recovery:.1f} s"
            elif self._is_open(fault):
                after = "NOT RECOVERED"
            print(
                f"{self.faults.index(fault) + 1:4d}  {fault.begin - self._start:6.1f} s  "
                f"{fault.kind}: {fault.what}; others' longest gap {fault.gap:.2f} s; {after}",
                flush=True,
            )

    def _check_end(self, group: int, result: Result) -> Iterator[str]:
        updates = self.settings.updates
        if self.watch.update(group) != updates:
            yield f"group {group} ended at update {self.watch.update(group)}, not {updates}"
            return
        valid = [e for e in self.watch.of(group, "valid") if int(e.fields[1]) == updates]
        if valid:
            result.nll.append(float(valid[-1].fields[0]))
        else:
            yield f"group {group} was not validated after its last update"
        try:
            alive = json.loads(self.vandal.read(f"group-{group}/alive.json"))
            manifest = json.loads(self.vandal.read(f"group-{group}/{updates:010d}.json"))
            tensors = self.vandal.read(f"group-{group}/{updates:010d}.safetensors")
        except FileNotFoundError as error:
            yield f"group {group} left no last snapshot ({error})"
            return
        if not alive["finished"]:
            yield f"group {group} does not say that it has finished"
        if hashlib.sha256(tensors).hexdigest() != manifest["sha256"]:
            yield f"the last snapshot of group {group} is damaged"
        ended = read_ended(self.out / f"group-{group}")
        evidence = None if ended is None else (ended.run_id, ended.nonce, ended.update)
        if evidence != (alive["run_id"], alive["nonce"], updates):
            yield f"group {group} left {ended} as evidence of its end"

    def _check_starts(self, group: int) -> Iterator[str]:
        starts = len(self.watch.of(group, "start"))
        deadly = [f for f in self.faults if group in f.victims and f.kind != "stop"]
        if starts > 1 + len(deadly):
            yield f"group {group} was started {starts} times, after {len(deadly)} deadly fault(s)"

    def _check_swaps(self, group: int, result: Result) -> Iterator[str]:
        for event in self.watch.of(group, "swap"):
            peer, update, digest, _ = event.fields
            published = {e.fields for e in self.watch.of(int(peer), "published")}
            result.swaps += 1
            if (update, digest) in published:
                continue
            # Its publisher may have been killed before it could say so.
            if (int(peer), int(update), digest) in self._record.seen:
                result.unlogged += 1
                continue
            yield (
                f"group {group} used a snapshot of group {peer}, update {update}, sha256 "
                f"{digest}, that group {peer} has not published"
            )
        for event in self.watch.of(group, "rejected"):
            result.rejected[_NUMBERS.sub("_", event.fields[2])] += 1

    def _check_divergence(self, group: int) -> Iterator[str]:
        divergences = [abs(float(event.fields[0])) for event in self.watch.of(group, "loss")]
        if not divergences:
            yield f"group {group} never had a peer"
        elif not max(divergences) < WORST_DIVERGENCE:
            yield (
                f"group {group} had a divergence of {max(divergences):g}: damaged weights were used"
            )


def run(
    corpus: Path, out: Path, kind: str, faults: Sequence[str], settings: Settings, seed: int
) -> tuple[Result, list[str]]:
    """Run three groups to their end, with faults of these kinds; gives those that found no room."""
    rng = random.Random(seed)
    if kind != "folder":
        # Launch cannot show this in the locale that it gets.
        out = out.with_name(f"{out.name}-Läufe")
    with contextlib.ExitStack() as stack:
        uri, vandal, env, proxy = stack.enter_context(exchange(kind, out))
        output: Output = OnDisk(out) if kind == "folder" else InPipe(out)
        stack.callback(output.close)
        not_here = []
        if not os.path.ismount(out / "disk"):
            not_here.append("fill the disk")
        if isinstance(output, OnDisk) and not output.mounted:
            not_here.append("output on a full disk")
        blocked = contextlib.ExitStack()
        stack.callback(blocked.close)
        blocks = "launch.json blocked" in faults
        if blocks:
            for group in range(GROUPS):
                (out / f"group-{group}").mkdir()
            if not blocked.enter_context(unwritable(out)):
                not_here.append("launch.json blocked")
                blocks = False
        for fault in sorted({*not_here} & {*faults}):
            print(f"skipped: {fault} (no right to do that here)")
        faults = [f for f in faults if f not in (*not_here, "launch.json blocked")]
        launch = start_launch(
            corpus,
            out,
            *[*TRAINING, "--seed", str(seed), "--max-update", str(settings.updates)],
            *["--lr-scheduler", "polynomial_decay", "--total-num-update", str(settings.updates)],
            *["--codistill-dir", uri, "--codistill-interval", str(INTERVAL)],
            groups=GROUPS,
            options=[
                *["--max-restarts", "1000", "--hang-timeout", f"{settings.hang_timeout:g}"],
            ],
            env=env if kind == "folder" else {**env, **ASCII},
            output=output.descriptor(),
        )
        try:
            here = Run(out, vandal, launch, settings, rng, proxy, output)
            if blocks:
                here.begin_unwritable(blocked.close)
            left = here.suffer(faults)
            return here.finish(), left
        finally:
            if launch.poll() is None:
                launch.terminate()
                launch.wait(60)
