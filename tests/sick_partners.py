"""A group that is sick hurts no other one, and a sound one is never left out.

    python tests/sick_partners.py --seeds 3 --out DIR --json FILE

Real groups, started by ``codistill launch`` on the CPU.  It trains

- for each seed, in async mode, a group alone, and the same group beside a sound partner, and
  beside sick ones: with a learning rate that is much too large, with finite weights whose forward
  pass overflows, with one that dies of NaN, and with one that publishes NaN as no group of this
  version does;
- in lockstep two groups of which one is each of these partners, to see how soon both end;
- in async mode with T = 1 twenty pairs of sound groups, of translation and of images, with
  different seeds, sizes and architectures, and every divergence.

Prints tables.  The exit status is 0 only if

- the mean difference of the healthy group's validation NLL from training alone, with the same
  seed, is within two standard errors of 0 for each partner, but for the sound one and the one
  whose learning rate is multiplied with 300: with this model and Adam it does not diverge, and is
  a peer as others are (its NLL is in the table);
- in lockstep both groups end with status 1 within 30 seconds of the first bad state, and a
  sentence in the log names the peer;
- no log of a sound run says that a peer was left out or a snapshot rejected, and each group had a
  peer.

Run again with the same --out it goes on where it was stopped.  Some 20 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest import mock

import conftest
import vision_harness
from faults import Tail
from harness import CODISTILL, LOCKSTEP, Run
from long_runs import Found, Results, end, log_of, start, table
from sick_group import user_dir

UPDATES = 200
INTERVAL = 20
LR = 0.002
# Two standard errors; in lockstep, seconds.
ERRORS, SECONDS = 2.0, 30.0

SIZE = """
    --encoder-layers {0} --decoder-layers {0} --encoder-embed-dim {1} --decoder-embed-dim {1}
"""
TRANSFORMER = f"--arch transformer {SIZE} --share-all-embeddings " + (
    "--encoder-ffn-embed-dim {2} --decoder-ffn-embed-dim {2} "
    "--encoder-attention-heads 2 --decoder-attention-heads 2"
)
MODEL = TRANSFORMER.format(2, 64, 256)
COMMON = """
    --dropout 0.1 --max-tokens 300 --log-interval 1 --log-format json --no-epoch-checkpoints
    --no-save --num-workers 0 --data-buffer-size 0 --cpu
""".split()
ADAM = f"--optimizer adam --lr {LR} --lr-scheduler inverse_sqrt --warmup-updates 50".split()
# Without a limit on the steps a learning rate that is too large soon ends in infinite numbers.
SGD = "--optimizer sgd --lr 0.5 --lr-scheduler inverse_sqrt --warmup-updates 1".split()
TRANSLATION = [*CODISTILL, *COMMON]


@dataclass(frozen=True)
class Partner:
    """A sick partner.

    Attributes:
        factor: what its learning rate is multiplied with.
        lr: its learning rate in place of that.
        publishes: a kind of ``sick_group.infect``; None if it publishes its own weights.
    """

    factor: float = 1.0
    lr: float | None = None
    publishes: str | None = None

    def flags(self, lr: float, work: Path, first: int) -> str:
        """Return the flags of its group, beside those of both."""
        own = lr * self.factor if self.lr is None else self.lr
        flags = f"{MODEL} --lr {own:g}" + ("" if own == lr else " --warmup-updates 1")
        if self.publishes is not None:
            flags += f" --user-dir {user_dir(work / 'sick', self.publishes, first)}"
        return flags


CONTROL, MILD = "sound", "lr x 300"
PARTNERS = {
    CONTROL: Partner(),
    MILD: Partner(factor=300.0),
    "--lr 300": Partner(lr=300.0),
    "--lr 1e8": Partner(lr=1e8),
    "finite weights that overflow": Partner(publishes="overflow"),
    "NaN in training": Partner(lr=1e38),
    "NaN published": Partner(publishes="NaN"),
}


def write_corpus(folder: Path) -> Path:
    """Write a corpus of some 1,200 words; with few classes an alpha of 1 is a very large one."""
    sizes = {"NOUNS": 600, "VERBS": 300, "ADJECTIVES": 200, "ADVERBS": 100}
    words = {
        kind: {f"{kind.lower()}-{i}": f"{kind[:-1].lower()}-{i}" for i in range(size)}
        for kind, size in sizes.items()
    }
    with mock.patch.multiple(conftest, **words):
        return conftest.write_corpus(folder, pairs=20000)


def final_nll(log: str) -> float:
    """Return the validation NLL of a group's last update."""
    last = Run(Path(), log).lines("test")[-1]
    assert last["num_updates"] == UPDATES
    return last["nll_loss"]


def train_async(corpus: Path, seed: int, partner: Partner | None, work: Path) -> Found:
    """Train group 0, alone or beside a sick partner."""
    flags = [*TRANSLATION, *ADAM, "--seed", str(seed), "--max-update", str(UPDATES)]
    flags += ["--codistill-mode", "async", "--codistill-interval", str(INTERVAL)]
    flags += ["--valid-subset", "test"]
    options = ["--groups", "1" if partner is None else "2", "--workers-per-group", "1"]
    options += ["--max-restarts", "1", "--group", f"0: {MODEL}"]
    if partner is not None:
        options += ["--group", f"1: {partner.flags(LR, work, first=1)}"]
    out = work / "out"
    process = start(["fairseq-train", str(corpus), *flags], out, options)
    ended = out / "group-0" / "ended.json"
    deadline = time.monotonic() + 900
    while process.poll() is None and not ended.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    # What the partner still has to do is of no interest.
    end(process)
    log, sick = log_of(out, 0), log_of(out, 1)
    assert ended.exists(), (out / "launch.txt").read_text() + log[-3000:]
    used = [line["codistill_loss"] for line in Run(out, log).lines() if "codistill_loss" in line]
    return {
        "nll": final_nll(log),
        "seen": len(re.findall(r"\| peer 1 (?:first seen|refreshed): ", log)),
        "left_out": len(re.findall(r"\| peer 1 left out: ", log)),
        "rejected": len(re.findall(r"\| peer 1: snapshot of update \d+ rejected", log)),
        "updates_with_peer": sum(loss > 0 for loss in used),
        "partners_nll": [line["nll_loss"] for line in Run(out, sick).lines()][-1:],
        "died": len(re.findall(r"FloatingPointError", sick)) > 0,
    }


def compare_async(results: Results, corpus: Path, seeds: int) -> tuple[list[Found], list[str]]:
    """Return a row for each partner, and what is wrong."""
    rows, problems = [], []
    alone = {}
    for seed in range(1, seeds + 1):
        alone[seed] = results.get(f"async-alone-{seed}", partial(train_async, corpus, seed, None))[
            "nll"
        ]
        print(f"async, alone, seed {seed}: {alone[seed]}", flush=True)
    for name, partner in PARTNERS.items():
        found = {}
        for seed in alone:
            found[seed] = results.get(
                f"async-{name.replace(' ', '-')}-{seed}",
                partial(train_async, corpus, seed, partner),
            )
            print(f"async, {name}, seed {seed}: {found[seed]}", flush=True)
        differences = [found[seed]["nll"] - alone[seed] for seed in alone]
        mean = statistics.mean(differences)
        error = statistics.stdev(differences) / math.sqrt(seeds) if seeds > 1 else math.nan
        passed = mean == 0 or abs(mean) <= ERRORS * error or name in (CONTROL, MILD)
        one = list(found.values())
        if not passed:
            problems.append(f"beside {name} the NLL differs by {mean:+.4f} ± {error:.4f}")
        if any(f["seen"] + f["rejected"] == 0 and not f["died"] for f in one):
            problems.append(f"a group never met its partner: {name}")
        rows.append(
            {
                "partner": name,
                "NLL": ", ".join(f"{f['nll']:.3f}" for f in one),
                "alone": ", ".join(f"{nll:.3f}" for nll in alone.values()),
                "difference": f"{mean:+.4f} ± {error:.4f}",
                "snapshots loaded": ", ".join(str(f["seen"]) for f in one),
                "left out": ", ".join(str(f["left_out"]) for f in one),
                "rejected": ", ".join(str(f["rejected"]) for f in one),
                "updates that used it": ", ".join(str(f["updates_with_peer"]) for f in one),
                "partner's training NLL": ", ".join(
                    f"{nll:.4g}" for f in one for nll in f["partners_nll"]
                ),
                "within": "not asked" if name in (CONTROL, MILD) else "yes" if passed else "NO",
            }
        )
    return rows, problems


# In the log of the group that is sick, or of the one that cannot use what it publishes.
BAD = re.compile(
    r'"loss": "(?:nan|inf)"|FloatingPointError|Nan/Inf|NaN or Inf|cannot be published|'
    r"not finite|snapshot of update \d+ rejected"
)


def train_lockstep(corpus: Path, partner: Partner, work: Path) -> Found:
    """Train two groups in lockstep of which one is sick, until both have ended."""
    flags = [*TRANSLATION, *SGD, *LOCKSTEP, "--codistill-timeout", "1800", "--dropout", "0"]
    flags += ["--max-update", "2000", "--codistill-interval", "10", "--disable-validation"]
    options = ["--groups", "2", "--workers-per-group", "1", "--group", f"0: {MODEL}"]
    options += ["--group", f"1: {partner.flags(0.5, work, first=INTERVAL)}"]
    out = work / "out"
    process = start(["fairseq-train", str(corpus), *flags], out, options)
    tails = [Tail(out / f"group-{group}" / "log.txt") for group in (0, 1)]
    bad, line, deadline = None, "", time.monotonic() + 600
    spoilt = out / "exchange" / "group-1" / f"{INTERVAL:010d}.json"
    while (status := process.poll()) is None and time.monotonic() < deadline:
        for group, tail in enumerate(tails):
            for new in tail.lines():
                if bad is None and BAD.search(new):
                    bad, line = time.monotonic(), f"group {group}: {new[:200]}"
        if bad is None and partner.publishes is not None and spoilt.exists():
            bad, line = time.monotonic(), "group 1: the snapshot is there"
        time.sleep(0.02)
    over = time.monotonic()
    end(process)
    logs = [log_of(out, group) for group in (0, 1)]
    errors = [re.findall(r"^codistill: error: (.*)$", log, re.M) for log in logs]
    return {
        "status": status,
        "seconds": None if bad is None else over - bad,
        "bad": line,
        "errors": [found[-1] if found else "" for found in errors],
        "restarts": (out / "launch.txt").read_text().count("; restart "),
        "ends": [log[-700:] for log in logs],
    }


def compare_lockstep(results: Results, corpus: Path) -> tuple[list[Found], list[str]]:
    """Return a row for each partner, and what is wrong."""
    rows, problems = [], []
    for name, partner in PARTNERS.items():
        if name == CONTROL:
            continue
        found = results.get(
            f"lockstep-{name.replace(' ', '-')}", partial(train_lockstep, corpus, partner)
        )
        print(f"lockstep, {name}: {found}", flush=True)
        seconds, said = found["seconds"], found["errors"][0]
        named = re.search(r"\b(?:peer|group) 1\b", said) is not None
        if found["status"] != 1 or seconds is None or seconds > SECONDS or not named:
            problems.append(f"lockstep, {name}: status {found['status']}, {seconds} s, {said!r}")
        rows.append(
            {
                "partner": name,
                "status of launch": found["status"],
                "seconds": "-" if seconds is None else f"{seconds:.1f}",
                "restarts": found["restarts"],
                "what group 0 said": said[:160],
            }
        )
    return rows, problems


T1 = "--codistill-alpha 0.001 --codistill-alpha-growth 1.5 --codistill-alpha-max 0.66"
DIVERGENCES = ("logit-mse", "kl", "centered-logit-mse")
# What group 1 is; group 0 is MODEL.
TRANSLATORS = {
    "the same": MODEL,
    "a larger one": TRANSFORMER.format(3, 128, 256),
    "a smaller one": TRANSFORMER.format(1, 16, 32),
    "lstm": f"--arch lstm {SIZE.format(1, 64)} --decoder-out-embed-dim 64 --share-all-embeddings",
    "lightconv": "--arch lightconv --encoder-embed-dim 64 --decoder-embed-dim 64 "
    "--encoder-ffn-embed-dim 128 --decoder-ffn-embed-dim 128 --encoder-layers 2 "
    "--decoder-layers 2 --encoder-kernel-size-list [3,7] --decoder-kernel-size-list [3,7] "
    "--encoder-attention-heads 2 --decoder-attention-heads 2 --share-all-embeddings",
}
# V2's learning rate falls at two milestones, and its weight decay with it.
V2 = """
    --batch-size 16 --epochs 12 --lr-schedule goyal --lr-milestones 6,10 --warmup-epochs 1
    --momentum 0.9 --weight-decay 5e-3 --weight-decay-schedule 5e-4,0
    --weight-decay-milestones 5,11 --log-interval 5
""".split()
NETWORKS = {
    "the same": "--arch resnet8_cifar --width 8",
    "a deeper one": "--arch resnet14_cifar --width 8",
    "a wider one": "--arch resnet8_cifar --width 16",
    "a narrower one": "--arch resnet8_cifar --width 4",
}


def train_sound(
    command: Sequence[str], seed: int, peers: Sequence[str], divergence: str, work: Path
) -> Found:
    """Train two sound groups with T = 1."""
    flags = [*command, "--seed", str(seed), "--codistill-divergence", divergence]
    flags += ["--codistill-mode", "async", "--codistill-interval", "1"]
    options = ["--groups", "2", "--workers-per-group", "1", "--max-restarts", "0"]
    for group, model in enumerate(peers):
        options += ["--group", f"{group}: {model}"]
    out = work / "out"
    process = start(flags, out, options)
    status = process.wait(timeout=900)
    logs = [log_of(out, group) for group in (0, 1)]
    assert status == 0, (out / "launch.txt").read_text() + "".join(log[-2000:] for log in logs)
    return {
        "swaps": [len(re.findall(r"\| peer \d (?:first seen|refreshed)", log)) for log in logs],
        "updates": [int(Run(out, log).lines()[-1]["num_updates"]) for log in logs],
        "left_out": [line for log in logs for line in re.findall(r".*left out: .*", log)],
        "rejected": [line for log in logs for line in re.findall(r".*\d rejected: .*", log)],
    }


def check_sound(
    results: Results, corpus: Path, images: Path, runs: int
) -> tuple[list[Found], list[str]]:
    """Return a row for each run, and what is wrong."""
    rows, problems = [], []
    for number in range(runs):
        seed, divergence = number + 1, DIVERGENCES[number % 3]
        if number % 5 < 3:
            kinds = list(TRANSLATORS.items())
            peer, model = kinds[number % len(kinds)] if number % 5 else kinds[number // 5 % 5]
            command = ["fairseq-train", str(corpus), *TRANSLATION, *ADAM, "--max-update", "120"]
            command += [*T1.split(), "--codistill-peer-dropout"] if number % 2 else []
            name, models, alpha = "translation", (MODEL, model), "T1's" if number % 2 else "1"
        else:
            peer, model = list(NETWORKS.items())[number // 5 % 4]
            command = [*vision_harness.PROGRAM, "--data", str(images), *vision_harness.DATA]
            command += ["--cpu", "--lr", "0.05", *V2]
            command += ["--codistill-alpha", "1"] if number % 5 == 3 else []
            name, models = "images", (NETWORKS["the same"], model)
            alpha = "1" if number % 5 == 3 else "default"
        found = results.get(
            f"sound-{number}", partial(train_sound, command, seed, models, divergence)
        )
        wrong = found["left_out"] + found["rejected"]
        print(f"sound {number}, {name}, {peer}, {divergence}: {found}", flush=True)
        problems += [f"sound run {number}: {line}" for line in wrong]
        if min(found["swaps"]) == 0:
            problems.append(f"sound run {number}: a group had no peer")
        rows.append(
            {
                "run": number,
                "of": name,
                "peer": peer,
                "divergence": divergence,
                "alpha": alpha,
                "updates": ", ".join(map(str, found["updates"])),
                "swaps": ", ".join(map(str, found["swaps"])),
                "left out": len(wrong),
            }
        )
    return rows, problems


def main() -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--sound", type=int, default=20, help="runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, help="directory for data and results")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parts = ("async", "lockstep", "sound")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    options = parser.parse_args()
    out = options.out.absolute()
    corpus, images = out / "corpus" / "bin", out / "images"
    if not corpus.exists():
        write_corpus(corpus.parent)
    if not images.exists():
        vision_harness.write_images(images, train=40, valid=10, classes=vision_harness.CLASSES)
    results = Results(out)
    tables, problems = {}, []
    if "lockstep" in options.only:
        tables["lockstep"], wrong = compare_lockstep(results, corpus)
        problems += wrong
    if "async" in options.only:
        tables["async"], wrong = compare_async(results, corpus, options.seeds)
        problems += wrong
    if "sound" in options.only:
        tables["sound"], wrong = check_sound(results, corpus, images, options.sound)
        problems += wrong
    for name, rows in tables.items():
        print(f"\n{name}\n\n{table(rows)}")
    print(*[f"PROBLEM: {problem}" for problem in problems], sep="\n")
    if options.json:
        document = {"tables": tables, "problems": problems}
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    print("sick partners: " + ("FAILED" if problems else "passed"))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
