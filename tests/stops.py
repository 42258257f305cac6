"""A lockstep run that is stopped and killed again and again ends with the bits of one that is not.

    python tests/stops.py --stops 20 --kills 20 --out DIR --json FILE

Real groups, started by ``codistill launch`` on the CPU, two of them, with one and two workers.  A
run of each setting is left alone; another one is stopped in order and killed at random updates, and
goes on with the same line each time.  The settings lie on both sides of every threshold by which
``--codistill-head auto`` chooses a form of the divergence on a CPU, and batches of a run above a
threshold lie on both sides of it too, but for the two most expensive ones (2^27 logits, and the
same with a width that makes the naive form the cheaper one), whose batches are smaller than the
settings allow.

An orderly stop is SIGTERM or SIGINT to launch, or a smaller ``--max-update``; a kill is SIGKILL to
one group, which launch starts again, or to launch and all groups, after which it is launched again.

Prints a table.  The exit status is 0 only if each run took the form that its setting is there for,
every stop and kill came while it trained, and the final checkpoints of all groups (weights, and the
optimizer's state) and all snapshots are those of the run that was left alone, bit for bit.

Run again with the same --out it goes on where it was stopped.  Some 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from conftest import write_corpus
from faults import send
from harness import CODISTILL, LOCKSTEP, Run, equal, published
from long_runs import Found, Results, end, log_of, start, table

STOPS = ("SIGTERM", "SIGINT", "--max-update")
KILLS = ("SIGKILL, a group", "SIGKILL, all")
SECONDS = 900.0
TRAINED = re.compile(r'\| train_inner \| \{.*"num_updates": "(\d+)"')

COMMON = """
    --arch transformer --encoder-layers 1 --decoder-layers 1 --share-all-embeddings
    --encoder-attention-heads 2 --decoder-attention-heads 2
    --encoder-ffn-embed-dim 256 --decoder-ffn-embed-dim 256 --dropout 0.1
    --lr 0.001 --log-interval 1 --log-format json --no-epoch-checkpoints --keep-interval-updates 2
    --disable-validation --num-workers 0 --data-buffer-size 0 --seed 1 --cpu
    --required-batch-size-multiple 1
""".split()


@dataclass(frozen=True)
class Setting:
    """What a run is, and what it is there for.

    Attributes:
        name: of it.
        form: that ``--codistill-head auto`` chooses.
        tokens: ``--max-tokens``.
        width: of the model.
        classes: words of the dictionary; None for those of the corpus.
        flags: others.
        updates: of the whole run.
        interval: T.
        saved: every how many updates there is a checkpoint.
        workers: how many a group has, of each of its runs.
        spans: whether its batches lie on both sides of the threshold.
        weight: its share of the stops.
    """

    name: str
    form: str
    tokens: int
    width: int = 64
    classes: int | None = None
    flags: tuple[str, ...] = ()
    updates: int = 50
    interval: int = 5
    saved: int = 4
    workers: tuple[int, ...] = (1, 2)
    weight: int = 4

    def command(self, corpus: Path) -> list[str]:
        """Return the command of a group."""
        width = str(self.width)
        return [
            *["fairseq-train", str(corpus), *CODISTILL, *LOCKSTEP, *COMMON, *self.flags],
            *["--encoder-embed-dim", width, "--decoder-embed-dim", width],
            *["--max-tokens", str(self.tokens), "--codistill-interval", str(self.interval)],
            *["--save-interval-updates", str(self.saved)],
        ]


ADAM = ("--optimizer", "adam")
KL = (*ADAM, "--codistill-divergence", "kl")
WIDE = 580_000
# Of the last two the embeddings are 9 and 40 million numbers: few updates, and no momentum.
HEAVY = {"updates": 12, "interval": 4, "saved": 3, "weight": 2}
SENTENCES = ("--batch-size", "10")
SETTINGS = (
    Setting("4 d, below", "naive", 250, flags=ADAM),
    Setting("4 d, above", "factored", 290, flags=ADAM),
    Setting("kl, few logits", "naive", 290, flags=KL, workers=(1,)),
    Setting("kl, fused", "chunked", 290, flags=(*KL, "--codistill-fused-ce"), workers=(2,)),
    Setting(
        "fused, below 4 d", "factored", 250, flags=(*ADAM, "--codistill-fused-ce"), workers=(2,)
    ),
    Setting(
        "3.5 d, 2^25 logits, below", "naive", 63, width=16, classes=530_000, flags=ADAM, **HEAVY
    ),
    Setting("3.5 d, 2^25 logits, above", "factored", 63, 16, WIDE, ADAM, **HEAVY),
    Setting(
        "kl, 2^27 logits, below",
        *("naive", 230, 16, WIDE, (*KL, *SENTENCES)),
        **HEAVY | {"workers": (1,)},
    ),
    Setting(
        "kl, 2^27 logits, above",
        *("chunked", 240, 16, WIDE, (*KL, *SENTENCES)),
        **HEAVY | {"workers": (1,)},
    ),
    Setting(
        "2^27 logits, below 3.5 d",
        *("factored", 240, 72, WIDE, ("--optimizer", "sgd", *SENTENCES)),
        **HEAVY | {"workers": (1,), "updates": 6, "interval": 2, "saved": 2},
    ),
)


def wide_corpus(corpus: Path, classes: int) -> Path:
    """Copy a corpus, with words in its dictionary that no sentence has."""
    wide = corpus.parent / f"wide-{classes}"
    if not wide.exists():
        making = wide.with_suffix(".tmp")
        shutil.rmtree(making, ignore_errors=True)
        shutil.copytree(corpus, making)
        words = (making / "dict.en.txt").read_text()
        # fairseq adds four of its own.
        more = classes - 4 - len(words.splitlines())
        words += "".join(f"word{i} 1\n" for i in range(more))
        for lang in ("de", "en"):
            (making / f"dict.{lang}.txt").write_text(words)
        making.rename(wide)
    return wide


def begin(
    setting: Setting, corpus: Path, out: Path, workers: int, updates: int
) -> subprocess.Popen[bytes]:
    """Launch a run, or go on with it."""
    options = ["--groups", "2", "--workers-per-group", str(workers), "--max-restarts", "10"]
    return start([*setting.command(corpus), "--max-update", str(updates)], out, options)


def lives(out: Path, group: int) -> list[str]:
    """Return what a group has logged in each of its lives."""
    return log_of(out, group).split("| codistill.launch |")[1:]


def update(life: str) -> int:
    """Return the last update that was logged in a life; 0 if none."""
    found = TRAINED.findall(life)
    return int(found[-1]) if found else 0


def wait(process: subprocess.Popen[bytes], out: Path) -> None:
    """Wait for a launch to end well."""
    status = process.wait(timeout=SECONDS)
    logs = "".join(log_of(out, group)[-2000:] for group in (0, 1))
    assert status == 0, (out / "launch.txt").read_text() + logs


def left_alone(setting: Setting, corpus: Path, workers: int, keep: Path, work: Path) -> Found:
    """Make the run that is not stopped; its checkpoints and digests go to ``keep``."""
    out = work / "out"
    wait(begin(setting, corpus, out, workers, setting.updates), out)
    keep.mkdir(parents=True, exist_ok=True)
    for group in (0, 1):
        last = out / f"group-{group}" / "checkpoint_last.pt"
        shutil.move(last, keep / f"{group}.pt")
    words = [line["wpb"] / workers for line in Run(out, log_of(out, 0)).lines()]
    forms = set(re.findall(r"computed in the (\w+) form", log_of(out, 0) + log_of(out, 1)))
    return {
        "snapshots": published(out),
        "forms": sorted(forms),
        "batches": [min(words), max(words)],
    }


class Broken:
    """A run that is stopped and killed.

    Args:
        begin: launches it, or goes on with it, up to an update.
        updates: of the whole run.
        out: its directory.
        rng: chooses the group that is looked at, or killed.
    """

    def __init__(
        self,
        begin: Callable[[int], subprocess.Popen[bytes]],
        updates: int,
        out: Path,
        rng: random.Random,
    ) -> None:
        self._begin = begin
        self._updates = updates
        self._out = out
        self._rng = rng
        self._process: subprocess.Popen[bytes] | None = None
        # How often a group has been started, once the present life has begun.
        self._starts = [0, 0]

    def interrupt(self, how: str, at: int) -> int:
        """Stop or kill it once it has made so many updates; return how many it had made."""
        if how == "--max-update":
            return self._stop_at(at)
        process = self._running()
        group = self._rng.randrange(2)
        self._reach(group, at, process)
        if how == "SIGKILL, a group":
            assert send(self._out, group, signal.SIGKILL), "there was nothing to kill"
            self._starts[group] += 1
            return update(lives(self._out, group)[-1])
        if how == "SIGKILL, all":
            process.kill()
            for one in (0, 1):
                send(self._out, one, signal.SIGKILL)
            process.wait()
        else:
            process.send_signal(signal.SIGTERM if how == "SIGTERM" else signal.SIGINT)
            status = process.wait(timeout=SECONDS)
            assert status > 128, f"launch ended with status {status}"
        self._process = None
        return update(lives(self._out, group)[-1])

    def finish(self) -> None:
        """Go on to the end."""
        wait(self._running(), self._out)

    def _running(self, updates: int | None = None) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._starts = [len(lives(self._out, group)) + 1 for group in (0, 1)]
            self._process = self._begin(updates or self._updates)
        return self._process

    def _stop_at(self, at: int) -> int:
        """Launch it with a smaller number of updates."""
        if self._process is not None:
            # The group that was killed last is just being started again.
            end(self._process)
            self._process = None
        made = [update(life) for group in (0, 1) for life in lives(self._out, group)]
        at = max([at, *(count + 1 for count in made)])
        wait(self._running(at), self._out)
        self._process = None
        return at

    def _reach(self, group: int, at: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            there = lives(self._out, group)
            if len(there) == self._starts[group] and update(there[-1]) >= at:
                return
            said = (self._out / "launch.txt").read_text()
            assert process.poll() is None, f"over before update {at}: {said}"
            assert time.monotonic() < deadline, f"update {at} never came: {said}"
            time.sleep(0.005)


def broken(
    setting: Setting,
    corpus: Path,
    workers: int,
    interruptions: Sequence[tuple[str, int]],
    alone: Found,
    keep: Path,
    work: Path,
) -> Found:
    """Make the run that is stopped and killed, and compare it with the one that is not."""
    out = work / "out"
    rng = random.Random(f"{setting.name} {workers}")
    run = Broken(partial(begin, setting, corpus, out, workers), setting.updates, out, rng)
    came = [run.interrupt(how, at) for how, at in interruptions]
    run.finish()
    logs = [log_of(out, group) for group in (0, 1)]
    same = [alike(out / f"group-{group}", keep / f"{group}.pt") for group in (0, 1)]
    again = published(out)
    other = [name for name, digest in alone["snapshots"].items() if again.get(name) != digest]
    return {
        "came": came,
        "starts": [len(lives(out, group)) for group in (0, 1)],
        "forms": sorted(set(re.findall(r"computed in the (\w+) form", "".join(logs)))),
        "resumed": [re.findall(r"\(epoch \d+ @ (\d+) updates\)", log) for log in logs],
        "same": all(same) and not other,
        "other": other,
        "checkpoints": same,
    }


def alike(folder: Path, kept: Path) -> bool:
    """Return whether a group's last checkpoint is one that was kept."""
    one = Run(folder, "").checkpoint()
    other = Run(kept.parent, "").checkpoint(kept.name)
    return equal(one["model"], other["model"]) and _same(
        one["last_optimizer_state"], other["last_optimizer_state"]
    )


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and (
            one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
        )
    if isinstance(one, list | tuple):
        return isinstance(other, list | tuple) and (
            len(one) == len(other) and all(map(_same, one, other))
        )
    return one == other


def deal(stops: int, kills: int, seed: int) -> Iterator[tuple[Setting, int, list[tuple[str, int]]]]:
    """Draw the stops and kills of each run: setting, workers, and (kind, update) in order."""
    rng = random.Random(seed)
    kinds = [STOPS[i % len(STOPS)] for i in range(stops)]
    kinds += [KILLS[i % len(KILLS)] for i in range(kills)]
    rng.shuffle(kinds)
    runs = [(setting, workers) for setting in SETTINGS for workers in setting.workers]
    room = [runs[i] for i in range(len(runs)) for _ in range(runs[i][0].weight)]
    # In proportion to the weights, the beginning of the list in full if there are fewer.
    places: list[list[str]] = [[] for _ in runs]
    order = sorted(range(len(room)), key=lambda i: (room[: i + 1].count(room[i]), i))
    for number, kind in enumerate(kinds):
        places[runs.index(room[order[number % len(room)]])].append(kind)
    for (setting, workers), some in zip(runs, places, strict=True):
        # The last updates are too late: by the time that one is logged the run may be over.
        last = setting.updates - max(2, setting.updates // 6)
        updates = sorted(rng.sample(range(1, last), min(len(some), last - 1)))
        yield setting, workers, list(zip(some, updates, strict=True))


def check(results: Results, out: Path, stops: int, kills: int, seed: int) -> tuple[list, list]:
    """Return a row for each stop and kill, and what is wrong."""
    small = out / "corpus" / "bin"
    if not small.exists():
        shutil.rmtree(small.parent, ignore_errors=True)
        write_corpus(small.parent)
    rows, problems = [], []
    for setting, workers, interruptions in deal(stops, kills, seed):
        if not interruptions:
            continue
        corpus = small if setting.classes is None else wide_corpus(small, setting.classes)
        name = f"{re.sub('[^a-z0-9]+', '-', setting.name)}-{workers}"
        keep = out / "kept" / name
        begun = time.monotonic()
        alone = results.get(f"alone-{name}", partial(left_alone, setting, corpus, workers, keep))
        found = results.get(
            f"broken-{name}-{seed}-{len(interruptions)}",
            partial(broken, setting, corpus, workers, interruptions, alone, keep),
        )
        print(
            f"{setting.name}, {workers}: {time.monotonic() - begun:.0f} s, {interruptions}, "
            f"{found}, batches of {alone['batches']}",
            flush=True,
        )
        if not found["same"]:
            problems.append(f"{setting.name}, {workers} worker(s): other bits ({found['other']})")
        if {*alone["forms"], *found["forms"]} != {setting.form}:
            problems.append(f"{setting.name}: took {alone['forms']} and {found['forms']}")
        least, most = alone["batches"]
        for (kind, wanted), came in zip(interruptions, found["came"], strict=True):
            if not wanted <= came < setting.updates:
                problems.append(f"{setting.name}: {kind} wanted at {wanted} came at {came}")
            rows.append(
                {
                    "setting": setting.name,
                    "tokens of a batch": f"{least:.0f} to {most:.0f} of {setting.tokens}",
                    "form": setting.form,
                    "workers": workers,
                    "stop": kind,
                    "update": f"{came} of {setting.updates}",
                    "same bits": "yes" if found["same"] else "NO",
                }
            )
    return rows, problems


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stops", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--kills", type=int, default=20, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of updates (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory for data and results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    options = parser.parse_args()
    out = options.out.absolute()
    rows, problems = check(Results(out), out, options.stops, options.kills, options.seed)
    print(f"\n{table(rows)}")
    print(*[f"PROBLEM: {problem}" for problem in problems], sep="\n")
    if options.json:
        document = {"rows": rows, "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print("stops: " + ("FAILED" if problems else "passed"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
