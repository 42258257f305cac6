"""Groups that train while everything around them breaks, at random moments.

    python tests/chaos.py --faults 200 --seed 1 --out DIR

Runs of three groups under ``codistill launch``, on CPU, in turn with a folder and with an S3
server as exchange, and faults until there have been as many as asked for: of the groups, of the
exchange, and of launch itself, its output and its files.  Before that, runs without faults to
compare with.  Prints a line for each fault, and then a table.  The exit status is
0 only if

- the unfaulted groups went on: no two of their updates are further apart than ``--longest-gap``;
- every fault was recovered from, or training was over before it could be;
- nothing but a kill and a stop past --hang-timeout made launch start a group again;
- every group reached its last update and left the evidence, and launch ended with status 0;
- every snapshot that was used has the digest of one that its group published, and no divergence
  was ever that of damaged weights; no pickle was run;
- the final NLL is that of runs without faults, within their spread.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import random
import signal
import statistics
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import conftest
import launch_faults
from chaos_run import Result, Settings, run

# How often each fault comes, of the faults of a run with a folder and with an object store; 0 for
# once.
FOLDER_FAULTS = {
    "kill": 13,
    "stop": 6,
    "stop past hang-timeout": 3,
    "truncate": 8,
    "overwrite": 9,
    "remove": 6,
    "fill the disk": 5,
    **launch_faults.FAULTS,
    **launch_faults.ON_DISK,
}
STORE_FAULTS = {
    "kill": 10,
    "stop": 4,
    "stop past hang-timeout": 2,
    "truncate": 3,
    "overwrite": 5,
    "remove": 4,
    "store refuses": 6,
    "store answers errors": 6,
    "store hangs": 6,
    "store is slow": 4,
    **launch_faults.FAULTS,
    **launch_faults.IN_PIPE,
}
# Those of launch itself.
LAUNCH_FAULTS = {**launch_faults.FAULTS, **launch_faults.ON_DISK, **launch_faults.IN_PIPE}
# The standard deviation of a group's final NLL, should a few groups happen to agree better: those
# of one run do, as they learn from each other.  Measured between runs: 0.013.
LEAST_SPREAD = 0.013


def deal(kind: str, count: int, rng: random.Random, without: Sequence[str] = ()) -> list[str]:
    """Draw the faults of a run: every kind once, if there is room, the rest in proportion."""
    weights = FOLDER_FAULTS if kind == "folder" else STORE_FAULTS
    names = [name for name in weights if name not in without]
    rng.shuffle(names)
    drawn = names[:count]
    drawn += rng.choices(names, [weights[name] for name in names], k=count - len(drawn))
    rng.shuffle(drawn)
    return drawn


def write_corpus(folder: Path) -> Path:
    """Write a corpus that cannot be learnt by heart: every fifth word is any word.

    Large, so that no run sees it often: peers that lag behind keep a group from overfitting, and
    runs with faults would be the better ones.
    """
    clear = conftest.sentence
    words = [
        word
        for some in (conftest.NOUNS, conftest.VERBS, conftest.ADJECTIVES, conftest.ADVERBS)
        for word in some.values()
    ]

    def noisy(rng: random.Random) -> tuple[str, str]:
        german, english = clear(rng)
        said = [rng.choice(words) if rng.random() < 0.2 else word for word in english.split()]
        return german, " ".join(said)

    with mock.patch.object(conftest, "sentence", noisy):
        return conftest.write_corpus(folder, pairs=40000)


def table(results: Sequence[Result]) -> str:
    """Give what there was of each kind of fault."""
    faults = [fault for result in results for fault in result.faults]
    lines = [
        f"{'fault':<24} {'times':>5}  {'others: longest gap':>19}  {'recovered after: median':>23}"
        f"  {'longest':>7}"
    ]
    for kind in dict.fromkeys([*FOLDER_FAULTS, *STORE_FAULTS]):
        some = [fault for fault in faults if fault.kind == kind]
        if not some:
            lines.append(f"{kind:<24} {0:>5}")
            continue
        gap = max(fault.gap for fault in some)
        after = [fault.recovery for fault in some if fault.recovery is not None] or [math.nan]
        lines.append(
            f"{kind:<24} {len(some):>5}  {gap:>17.2f} s  {statistics.median(after):>21.1f} s"
            f"  {max(after):>5.1f} s"
        )
    return "\n".join(lines)


def compare_nll(
    calm: Sequence[Sequence[float]], shaken: Sequence[Sequence[float]]
) -> tuple[str, list[str]]:
    """Compare the final NLL of runs without and with faults: of each run, that of its groups.

    The first runs of both kinds have the same seeds.
    """
    quiet, loud = [nll for run in calm for nll in run], [nll for run in shaken for nll in run]
    mean, mean_loud = statistics.mean(quiet), statistics.mean(loud)
    spread = statistics.stdev(quiet)
    text = (
        f"final NLL without faults: {mean:.4f} (standard deviation {spread:.4f}, "
        f"{min(quiet):.4f} to {max(quiet):.4f}, {len(quiet)} groups); with faults: "
        f"{mean_loud:.4f} ({min(loud):.4f} to {max(loud):.4f}, {len(loud)} groups)"
    )
    pairs = [
        with_faults - without
        for quiet_run, loud_run in zip(calm, shaken, strict=False)
        for without, with_faults in zip(quiet_run, loud_run, strict=True)
    ]
    differences = ", ".join(f"{pair:+.4f}" for pair in pairs)
    text += f"; differences of the same group with the same seed: {differences}"
    spread = max(spread, LEAST_SPREAD)
    # Five standard deviations for one group, as a few groups tell the spread only roughly.
    off = [nll for nll in loud if not abs(nll - mean) <= 5 * spread]
    problems = [f"a final NLL of {nll:.4f} is not within the noise of {mean:.4f}" for nll in off]
    # The groups of one run are much alike.
    error = spread * math.sqrt(1 / len(calm) + 1 / len(shaken))
    if not abs(mean_loud - mean) <= 4 * error:
        problems.append(f"the mean NLL with faults, {mean_loud:.4f}, is not {mean:.4f}")
    return text, problems


def chaos(
    corpus: Path,
    out: Path,
    plan: Sequence[tuple[str, int]],
    settings: Settings,
    seed: int,
    calm_runs: int,
    without: Sequence[str] = (),
    spare: int = 0,
) -> list[str]:
    """Do everything, print the figures, and give what should not have happened.

    Args:
        corpus: binarised.
        out: for all runs.
        plan: of each run, the kind of its exchange and how many faults.
        settings: of all runs.
        seed: of everything that is random.
        calm_runs: how many runs without faults to compare with.
        without: kinds of faults to leave out.
        spare: how many faults may be left out if they find no room; others get a further run.
    """
    start = time.monotonic()
    rng = random.Random(seed)
    calm, shaken = [], []
    for number in range(calm_runs):
        # The seed of a run with faults, so that both begin alike.
        result, _ = run(corpus, out / f"calm-{number}", "folder", [], settings, seed + number)
        calm.append(result)
        print(
            f"without faults: {result.seconds:.0f} s, longest gap {result.gap:.2f} s, "
            f"{result.swaps} swaps, final NLL {result.nll}",
            flush=True,
        )
    runs = deque((kind, deal(kind, count, rng, without)) for kind, count in plan)
    left_out: list[str] = []
    number = 0
    while runs:
        kind, faults = runs.popleft()
        print(f"run {number}: exchange in a {kind}, {len(faults)} faults", flush=True)
        result, left = run(corpus, out / f"run-{number}", kind, faults, settings, seed + number)
        shaken.append(result)
        number += 1
        print(
            f"run {number - 1}: {len(result.faults)} faults in {result.seconds:.0f} s, longest gap "
            f"of an unfaulted group {result.gap:.2f} s, {result.swaps} swaps, final NLL "
            f"{result.nll}; rejected: {dict(result.rejected)}",
            *[f"PROBLEM: {problem}" for problem in result.problems],
            sep="\n",
            flush=True,
        )
        if len(left_out) + len(left) > spare and number < 2 * len(plan):
            runs.append((kind, left))
        else:
            left_out += left
    problems = [problem for result in [*calm, *shaken] for problem in result.problems]
    total = sum(len(result.faults) for result in shaken)
    if left_out:
        print(f"found no room: {', '.join(left_out)}")
    if len(left_out) > spare:
        problems.append(f"{len(left_out)} fault(s) found no room; allow more --updates")
    print(table(shaken))
    print(
        f"{total} faults in {len(shaken)} runs; longest gap of an unfaulted group "
        f"{max(result.gap for result in shaken):.2f} s"
        + (f", without faults {max(result.gap for result in calm):.2f} s" if calm else "")
        + f"; {sum(result.swaps for result in shaken)} swaps, every digest checked "
        f"({sum(result.unlogged for result in shaken)} against a manifest alone); "
        f"{sum(sum(result.rejected.values()) for result in shaken)} snapshots rejected; "
        f"{time.monotonic() - start:.0f} s in all"
    )
    if calm and all(result.nll for result in [*calm, *shaken]):
        text, more = compare_nll([result.nll for result in calm], [r.nll for r in shaken])
        print(text)
        problems += more
    return problems


def main() -> int:
    """Run the script."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faults", type=int, default=200, help="in all (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=4, help="with faults (default: %(default)s)")
    parser.add_argument("--calm-runs", type=int, default=2, help="without (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", default=["folder", "S3 bucket"], help="of exchange")
    parser.add_argument("--without", nargs="*", default=[], help="kinds of faults to leave out")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True, help="a new folder")
    parser.add_argument("--updates", type=int, default=defaults.updates, help="of each group")
    parser.add_argument("--hang-timeout", type=float, default=defaults.hang_timeout)
    parser.add_argument("--longest-gap", type=float, default=defaults.longest_gap)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"--out {options.out} exists; name a new folder")
    settings = dataclasses.replace(
        defaults,
        updates=options.updates,
        hang_timeout=options.hang_timeout,
        longest_gap=options.longest_gap,
    )
    share, more = divmod(options.faults, options.runs)
    plan = [
        (options.kinds[i % len(options.kinds)], share + (i < more)) for i in range(options.runs)
    ]
    out = options.out.absolute()
    corpus = write_corpus(out / "corpus")
    os.environ["OMP_NUM_THREADS"] = "1"
    # As with Ctrl-C, launch and the servers are ended and the disk is taken away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    problems = chaos(corpus, out, plan, settings, options.seed, options.calm_runs, options.without)
    print(*[f"PROBLEM: {problem}" for problem in problems], sep="\n")
    print("chaos: " + ("FAILED" if problems else "passed"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
