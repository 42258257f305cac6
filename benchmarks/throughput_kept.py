"""How fast a group goes on while another one dies and is restarted, in parts of a calm run.

python benchmarks/throughput_kept.py --pairs 5
python benchmarks/throughput_kept.py --phases 20

Two groups on CPU under `codistill launch`, each on a core of its own.  In one run of a pair group 1
is hit every few seconds: killed with all its processes, its newest snapshot damaged, its log
renamed, its place in the exchange taken away for three seconds; the other run is without faults.
The runs of a pair follow each other, in alternating order, with the same seed.

Measured are updates a second by the lines of the groups' logs, as this script sees them come.  The
time begins when both groups have made a tenth of their updates and group 0 has a peer, and ends
when group 0 has made 95 % of them; the faults last from then to then.  Of group 1, what counts is
how far it is at the end of that time: its restarts, and the updates that it makes a second time,
are included.  launch may run on any core, this script on that of group 1.

Where the machine is not this script's alone, runs that follow each other differ by what its other
tenants do.  With ``--phases N`` there is one run, in which N phases with faults alternate with
N + 1 calm ones: what group 0 keeps in a phase with faults is in parts of the mean of the two calm
ones beside it.  Each phase begins once both groups make updates.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import fsspec
import measure

# The groups, their corpus and their faults are those of the tests.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import conftest
from faults import Watch, send, start_launch, workers
from harness import BIN
from vandal import Vandal

GROUPS = (0, 1)
HIT = 1
INTERVAL = 25
TRAINING = f"""
    --optimizer adam --lr 0.002 --dropout 0.1 --codistill-alpha-schedule constant
    --save-interval-updates 100 --keep-interval-updates 2 --save-interval 1000000
    --validate-interval 1000000 --disable-validation --codistill-interval {INTERVAL}
""".split()
# In this order, again and again.
FAULTS = ("kill", "damage", "kill", "log", "kill", "away")
AWAY_SECONDS = 3.0
PATIENCE_SECONDS = 3600.0

PIN = """#!{python} -IS
import os, sys
group = int(sys.argv[sys.argv.index("--codistill-group") + 1])
os.sched_setaffinity(0, {{{cores}[group]}})
os.execv({program!r}, [{program!r}, *sys.argv[1:]])
"""


@dataclasses.dataclass
class Measured:
    """What a run showed.

    Attributes:
        seconds: how long was measured.
        rates: updates a second of each group.
        faults: in order.
        restarts: of the group that is hit, in the time measured.
    """

    seconds: float
    rates: list[float]
    faults: list[str]
    restarts: int


@dataclasses.dataclass
class Phase:
    """What a phase of a run showed.

    Attributes:
        rate: updates a second of group 0, from its first to its last in the phase.
        calm: whether it was one without faults.
        faults: in order.
    """

    rate: float
    calm: bool
    faults: list[str]


def write_pinned(folder: Path, cores: Sequence[int]) -> Path:
    """Write a fairseq-train that runs on its group's core; return its directory."""
    folder.mkdir()
    program = folder / "fairseq-train"
    text = PIN.format(python=sys.executable, cores=tuple(cores), program=str(BIN / program.name))
    program.write_text(text)
    program.chmod(0o755)
    return folder


@contextlib.contextmanager
def training(
    corpus: Path, out: Path, path: str, cores: Sequence[int], updates: int, seed: int
) -> Iterator[Run]:
    """Start two groups, look on from group 1's core, and end them, whatever happens."""
    flags = [*TRAINING, "--seed", str(seed), "--max-update", str(updates)]
    options = ["--max-restarts", "1000"]
    launch = start_launch(corpus, out, *flags, options=options, env={"PATH": path})
    allowed = os.sched_getaffinity(0)
    try:
        # Of this thread, and of those that it starts.
        os.sched_setaffinity(0, {cores[HIT]})
        yield Run(out, launch, cores, updates, random.Random(seed))
    finally:
        os.sched_setaffinity(0, allowed)
        if launch.poll() is None:
            launch.send_signal(signal.SIGTERM)
            launch.wait(60)


class Run:
    """A run, what is done to group 1, and how fast both are.

    Args:
        out: its directory.
        launch: the process.
        cores: of each group.
        updates: of each group.
        rng: for the damage.
    """

    def __init__(
        self,
        out: Path,
        launch: subprocess.Popen,
        cores: Sequence[int],
        updates: int,
        rng: random.Random,
    ) -> None:
        self._out = out
        self._launch = launch
        self._cores = cores
        self._updates = updates
        self._rng = rng
        self._vandal = Vandal(fsspec.filesystem("file"), str(out / "exchange"), out / "pickle-ran")
        self._watch = Watch({group: out / f"group-{group}" / "log.txt" for group in GROUPS})
        self._watch.start()
        self._deadline = time.monotonic() + PATIENCE_SECONDS

    def measure(self, every: float | None) -> Measured:
        """Wait for its end, with a fault every so many seconds, or without."""
        first, last = max(2 * INTERVAL, self._updates // 10), int(0.95 * self._updates)
        self._wait(lambda: all(self._watch.update(group) >= first for group in GROUPS))
        self._wait(lambda: bool(self._watch.of(0, "swap")))
        self._check_cores()
        begin = self._watch.of(0, "update")[-1].time
        faults = []
        due = time.monotonic()
        kinds = itertools.cycle(FAULTS)
        while self._watch.update(0) < last:
            self._check()
            if every is not None and time.monotonic() >= due:
                due += every
                faults.append(self._do(next(kinds)))
            time.sleep(0.02)
        end = next(e.time for e in self._watch.of(0, "update") if int(e.fields[0]) >= last)
        while self._launch.poll() is None:
            self._check()
            time.sleep(0.05)
        # Read to the end before it is judged.
        self._watch.stop()
        self._check()
        rates = [self._rate(group, begin, end) for group in GROUPS]
        starts = self._watch.of(HIT, "start", since=begin)
        return Measured(end - begin, rates, faults, sum(start.time <= end for start in starts))

    def alternate(self, phases: int, seconds: float, every: float) -> list[Phase]:
        """Measure calm phases and phases with faults in turns; calm ones first and last."""
        self._wait(lambda: all(self._watch.update(group) >= 2 * INTERVAL for group in GROUPS))
        self._wait(lambda: bool(self._watch.of(0, "swap")))
        self._check_cores()
        kinds = itertools.cycle(FAULTS)
        found = []
        for number in range(2 * phases + 1):
            calm = number % 2 == 0
            # After its last restart group 1 loads libraries and data first.
            since = time.monotonic()
            self._wait(lambda since=since: bool(self._watch.of(HIT, "update", since=since)))
            begin = due = time.monotonic()
            faults = []
            while (now := time.monotonic()) < begin + seconds:
                self._check()
                if not calm and now >= due:
                    due += every
                    faults.append(self._do(next(kinds)))
                time.sleep(0.02)
            made = [event.time for event in self._watch.of(0, "update", since=begin)]
            rate = (len(made) - 1) / (made[-1] - made[0])
            found.append(Phase(rate, calm, faults))
            print(f"{'calm' if calm else 'faults'}: {rate:.2f} updates/s of group 0", flush=True)
        return found

    def _rate(self, group: int, begin: float, end: float) -> float:
        start, reached = self._watch.update(group, begin), self._watch.update(group, end)
        later = self._watch.of(group, "update", since=end)
        if later:
            # What it has lost, if it was down at the end.
            reached = min(reached, int(later[0].fields[0]))
        if reached == self._updates:
            # It has finished earlier.
            end = min(end, self._watch.of(group, "update")[-1].time)
        return (reached - start) / (end - begin)

    def _do(self, kind: str) -> str:
        if kind == "kill":
            update = self._watch.update(HIT)
            return f"killed at update {update}" if send(self._out, HIT, signal.SIGKILL) else "down"
        if kind == "damage":
            snapshots = self._vandal.updates(HIT)
            if not snapshots:
                return "no snapshot to damage"
            name = f"group-{HIT}/{snapshots[-1]:010d}.safetensors"
            with contextlib.suppress(FileNotFoundError):
                return self._vandal.overwrite(name, name, self._rng, "itself but for one bit")
            return f"{name} was to be damaged, but had gone"
        if kind == "log":
            log = self._out / f"group-{HIT}" / "log.txt"
            with contextlib.suppress(FileNotFoundError):
                log.rename(log.with_name(f"log.txt.{time.monotonic_ns()}"))
            return "log renamed"
        place = self._out / "exchange" / f"group-{HIT}"
        aside = place.with_name("aside")
        with contextlib.suppress(FileNotFoundError):
            place.rename(aside)
            place.touch()
            time.sleep(AWAY_SECONDS)
            place.unlink()
            aside.rename(place)
        return f"its place in the exchange away for {AWAY_SECONDS:g} s"

    def _check_cores(self) -> None:
        for group, core in enumerate(self._cores):
            for process in workers(self._out, group):
                with contextlib.suppress(ProcessLookupError):
                    if os.sched_getaffinity(process) != {core}:
                        sys.exit(f"group {group} is not held to core {core}")

    def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._check()
            time.sleep(0.02)

    def _check(self) -> None:
        """Make sure that the run is well, or that it has ended well."""
        status = self._launch.poll()
        late = time.monotonic() > self._deadline
        finished = all(self._watch.update(group) >= self._updates for group in GROUPS)
        # While the logs are read, launch may be ahead of what was seen of them.
        well = status is None or (status == 0 and (finished or self._watch.is_alive()))
        if late or not well:
            said = (self._out / "launch.txt").read_text()[-2000:]
            sys.exit(f"the run in {self._out} {'is late' if late else 'failed'}:\n{said}")


def pair(
    corpus: Path,
    out: Path,
    path: str,
    cores: Sequence[int],
    options: argparse.Namespace,
    number: int,
) -> dict[str, Measured]:
    """Run without faults and with faults, in the order that is this pair's turn."""
    found = {}
    ways = {"calm": None, "hit": options.every}
    for way in sorted(ways, reverse=number % 2 == 1):
        place = out / f"pair-{number}-{way}"
        seed = options.seed + number
        with training(corpus, place, path, cores, options.updates, seed) as run:
            found[way] = run.measure(ways[way])
    return found


def row_of(number: int, found: dict[str, Measured]) -> measure.Row:
    """Give what a pair showed, as it is printed and written."""
    calm, hit = found["calm"], found["hit"]
    return {
        "pair": number + 1,
        "first": next(iter(found)),
        "calm, updates/s": calm.rates,
        "hit, updates/s": hit.rates,
        "group 0 kept": hit.rates[0] / calm.rates[0],
        "group 1 kept": hit.rates[1] / calm.rates[1],
        "both kept": sum(hit.rates) / sum(calm.rates),
        "seconds": [calm.seconds, hit.seconds],
        "faults": hit.faults,
        "restarts": hit.restarts,
    }


def say(row: measure.Row) -> None:
    """Print a pair."""
    rates = {
        way: " and ".join(f"{rate:.2f}" for rate in row[f"{way}, updates/s"])
        for way in ("calm", "hit")
    }
    kept = ", ".join(f"{name} {100 * row[f'{name} kept']:.1f} %" for name in KEPT)
    print(
        f"pair {row['pair']} ({row['first']} first, {row['seconds'][0]:.0f} and "
        f"{row['seconds'][1]:.0f} s measured): updates/s of groups 0 and 1 {rates['calm']}, with "
        f"{len(row['faults'])} faults and {row['restarts']} restarts of group 1 {rates['hit']}; "
        f"kept: {kept}",
        flush=True,
    )


KEPT = ("group 0", "group 1", "both")


def kept_in_phases(phases: Sequence[Phase]) -> list[float]:
    """Return what group 0 keeps in each phase with faults, in percent of those beside it."""
    rates = [phase.rate for phase in phases]
    return [
        100 * rates[i] / statistics.fmean((rates[i - 1], rates[i + 1]))
        for i in range(1, len(rates), 2)
    ]


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return a 95 % confidence interval of the median, from order statistics alone.

    Of n values the k-th smallest and the k-th largest enclose the median with a probability of
    1 - 2 P(Binomial(n, 1/2) < k); with fewer than 6 values none do with 95 %, and it is the range.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.0, 0
    while below + math.comb(n, k) / 2**n <= 0.025:
        below += math.comb(n, k) / 2**n
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[n - k]


def say_phases(phases: Sequence[Phase]) -> None:
    """Print what a run with phases showed."""
    kept = kept_in_phases(phases)
    low, high = median_interval(kept)
    print(
        f"group 0 kept: {measure.spread(kept, 1)} % of its updates a second over {len(kept)} "
        f"phases with faults; 95 % interval of the median {low:.1f} to {high:.1f} %"
    )
    calm = [phase.rate for phase in phases if phase.calm]
    steps = [100 * abs(b / a - 1) for a, b in itertools.pairwise(calm)]
    print(
        f"calm phases: {measure.spread(calm)} updates/s; from one to the next "
        f"{measure.spread(steps, 1)} % apart"
    )


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=measure.count, default=5, help="(default: %(default)s)")
    parser.add_argument(
        "--updates", type=measure.count, default=2500, help="of each group (default: %(default)s)"
    )
    parser.add_argument(
        "--every", type=float, default=7.0, help="seconds between faults (default: %(default)s)"
    )
    parser.add_argument(
        "--phases", type=measure.count, help="with faults, in one run, in place of pairs of runs"
    )
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="of a phase (default: %(default)s)"
    )
    parser.add_argument("--cores", type=int, nargs=2, help="of groups 0 and 1 (default: the first)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, help="a new directory (default: a temporary one)")
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    allowed = sorted(os.sched_getaffinity(0))
    cores = options.cores or allowed[:2]
    if len(cores) < 2:
        parser.error("this process may use one core only; two are needed")
    if not set(cores) <= set(allowed) or cores[0] == cores[1]:
        parser.error(f"--cores {cores[0]} {cores[1]}: give two of {allowed}")
    if options.every <= AWAY_SECONDS:
        parser.error(f"--every {options.every:g}: must be above {AWAY_SECONDS:g}")
    if options.out is not None and options.out.exists():
        parser.error(f"--out {options.out} exists; name a new directory")
    measure.say_machine()
    print(f"groups 0 and 1 on cores {cores[0]} and {cores[1]}, one thread each")
    with contextlib.ExitStack() as stack:
        if options.out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "out"
        else:
            out = options.out.absolute()
        corpus = conftest.write_corpus(out / "corpus", pairs=10000)
        path = f"{write_pinned(out / 'bin', cores)}{os.pathsep}{os.environ['PATH']}"
        if options.phases is not None:
            with training(corpus, out / "phases", path, cores, 10**6, options.seed) as run:
                phases = run.alternate(options.phases, options.seconds, options.every)
            say_phases(phases)
            measure.write(options.json, [dataclasses.asdict(phase) for phase in phases])
            return
        rows = []
        for number in range(options.pairs):
            rows.append(row_of(number, pair(corpus, out, path, cores, options, number)))
            say(rows[-1])
    for name in KEPT:
        kept = [100 * row[f"{name} kept"] for row in rows]
        print(f"{name} kept: {measure.spread(kept, 1)} % of its updates a second")
    measure.write(options.json, rows)


if __name__ == "__main__":
    main()
