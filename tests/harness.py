"""Real fairseq-train processes, and what they left behind."""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fairseq_codistill.plain import allowing

PLUGIN = Path(__file__).parent.parent / "fairseq_codistill"
BIN = Path(sys.executable).parent
SEED_STEP = 1000003

MODEL = """
    --arch transformer --encoder-layers 1 --decoder-layers 1
    --encoder-embed-dim 16 --decoder-embed-dim 16
    --encoder-ffn-embed-dim 32 --decoder-ffn-embed-dim 32
    --encoder-attention-heads 2 --decoder-attention-heads 2 --dropout 0
""".split()
SETTINGS = """
    --optimizer sgd --lr 0.5 --max-tokens 300 --max-update 20
    --log-interval 1 --log-format json --no-epoch-checkpoints --num-workers 0 --seed 1 --cpu
    --data-buffer-size 0
""".split()  # No buffer: fairseq's thread that fills it can abort a process without the plugin.
TINY = [*MODEL, "--share-all-embeddings", *SETTINGS]
PLAIN = ["--task", "translation", "--criterion", "cross_entropy"]
CODISTILL = [
    *["--user-dir", str(PLUGIN), "--task", "codistill_translation"],
    *["--criterion", "codistill_cross_entropy"],
]
LOCKSTEP = [
    *["--codistill-mode", "lockstep", "--codistill-snapshot-dtype", "float32"],
    # Less than a test's patience: what is waited for in vain is in the log then.
    *["--codistill-timeout", "200"],
]


@dataclass
class Run:
    """One group's run: where its checkpoints are, and its log."""

    folder: Path
    log: str
    status: int = 0

    def lines(self, tag: str = "train_inner") -> list[dict]:
        """The JSON lines that fairseq logged under a tag, numbers as floats."""
        # The second form is how Hydra sets up logging.
        found = re.findall(rf"(?:\| {tag} \| |\[{tag}\]\[INFO\] - )(\{{.*\}})$", self.log, re.M)
        return [
            {
                key.removeprefix(f"{tag}_"): float(value)
                for key, value in json.loads(line).items()
                if value is not None
            }
            for line in found
        ]

    def checkpoint(self, name: str = "checkpoint_last.pt") -> dict:
        """A checkpoint, read as torch reads it by default."""
        with allowing([argparse.Namespace]):
            return torch.load(self.folder / name, weights_only=True)

    def weights(self, name: str = "checkpoint_last.pt") -> dict[str, torch.Tensor]:
        """The model in a checkpoint."""
        return self.checkpoint(name)["model"]


def eventually(condition: Callable[[], bool], why: str, seconds: float = 60) -> None:
    """Wait until a condition holds; ``why`` says what did not happen if it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{why} within {seconds:g} s"
        time.sleep(0.02)


def environment(**extra: str) -> dict[str, str]:
    """The environment of a training process: one thread, no GPU."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("CODISTILL_")}
    return env | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **extra}


def start(corpus: Path, folder: Path, *flags: str) -> subprocess.Popen:
    """Start one fairseq-train process; its log goes to ``folder/log.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "log.txt", "a") as log:
        return subprocess.Popen(
            [str(BIN / "fairseq-train"), str(corpus), *TINY, "--save-dir", str(folder), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
        )


def finish(process: subprocess.Popen, folder: Path, status: int | None = 0) -> Run:
    """Wait for a process from ``start``; ``status`` is what it must end with (None: anything)."""
    process.wait(timeout=300)
    run = Run(folder, (folder / "log.txt").read_text(), process.returncode)
    if status is not None:
        assert run.status == status, run.log[-3000:]
    return run


def train(corpus: Path, folder: Path, *flags: str) -> Run:
    """Run one fairseq-train process to its end."""
    return finish(start(corpus, folder, *flags), folder)


def launch(
    corpus: Path,
    out: Path,
    *flags: str,
    groups: int = 2,
    workers: int = 1,
    model: Sequence[str] = (*MODEL, "--share-all-embeddings"),
    options: Sequence[str] = (),
) -> list[Run]:
    """Run ``codistill launch`` and give what each group left behind."""
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", str(groups), "--out", str(out)],
        *["--workers-per-group", str(workers), "--max-restarts", "0", *options],
        *["--", "fairseq-train", str(corpus), *model, *SETTINGS, *CODISTILL, *flags],
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=500)
    folders = [out / f"group-{i}" for i in range(groups)]
    logs = [(f / "log.txt").read_text() if (f / "log.txt").exists() else "" for f in folders]
    told = done.stdout[-2000:] + done.stderr[-2000:] + "".join(log[-1500:] for log in logs)
    assert done.returncode == 0, told
    return [Run(folder, log) for folder, log in zip(folders, logs, strict=True)]


def published(out: Path) -> dict[str, str]:
    """The digest of every snapshot that the run has published; lockstep keeps all."""
    manifests = sorted((out / "exchange").glob("group-*/0*.json"))
    return {f"{p.parent.name}/{p.stem}": json.loads(p.read_text())["sha256"] for p in manifests}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two models are the same, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def distance(weights: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> float:
    """||w - ref|| / ||ref|| over all parameters."""
    difference = sum((weights[k].double() - reference[k]).square().sum() for k in reference)
    norm = sum(reference[k].square().sum() for k in reference)
    return float((difference / norm).sqrt())


def column(lines: Sequence[dict], key: str) -> list[float]:
    """One metric of all log lines."""
    return [line[key] for line in lines]


def keys(document: object) -> set[str]:
    """Every key of a JSON document, at any depth."""
    if isinstance(document, dict):
        return set(document).union(*map(keys, document.values()))
    return set().union(*map(keys, document)) if isinstance(document, list) else set()
