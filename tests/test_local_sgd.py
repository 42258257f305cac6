"""T13 of results/translation: LocalSGD, its settings, its averages, and its runs cut off."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from harness import BIN, PLUGIN, Run, environment
from printed import REPO, launched, printed
from test_examples import TINY

sys.path.insert(0, str(REPO / "results" / "translation"))

import best  # noqa: E402

RUN_SH = "results/translation/run.sh"
LINE = f"{RUN_SH} --text TEXT --only T13"
# The plugin, and a record of the batches and weights of each worker: in each training step before
# the update, and in validation.
SPY = """
import hashlib, json, os
import torch.distributed as dist
from fairseq_codistill.tasks.codistill_translation import CodistillTranslationTask

def spy(name):
    plain = getattr(CodistillTranslationTask, name)
    def step(self, sample, model, *args, **kwargs):
        digest = hashlib.sha256()
        for parameter in model.parameters():
            digest.update(parameter.detach().numpy().tobytes())
        seen = {"step": name, "ids": sample["id"].tolist(), "weights": digest.hexdigest()}
        seen["ids"] = [] if kwargs.get("ignore_grad") else seen["ids"]
        with open(f"{os.environ['SPIED']}-{dist.get_rank()}", "a") as file:
            file.write(json.dumps(seen) + "\\n")
        return plain(self, sample, model, *args, **kwargs)
    setattr(CodistillTranslationTask, name, step)

spy("train_step")
spy("valid_step")
"""


def commands(line: str, tmp_path: Path) -> dict[str, list[str]]:
    """Each training command that the script prints, by the name of its run."""
    found = [words for words in printed(line, tmp_path) if words[:2] == ["codistill", "launch"]]
    return {Path(words[words.index("--out") + 1]).name: words for words in found}


# --- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("trial", [False, True])
def test_every_run_averages_and_saves_only_after_an_average(trial, tmp_path, monkeypatch, capsys):
    found = commands(f"{LINE} --trial" if trial else LINE, tmp_path)
    local = {name: words for name, words in found.items() if "localsgd" in name}
    assert len(local) == (6 if trial else 10)
    for name, words in local.items():
        (args,) = launched(words, monkeypatch, capsys)
        every = args.global_sync_iter
        assert f"-localsgd{every}-dropout{args.dropout}-seed{args.seed}" in name
        # The default warm-up of 500 averages nothing; momentum 0 leaves the mean of the weights.
        assert (args.use_bmuf, args.warmup_iterations, args.block_momentum) == (True, 0, 0)
        assert args.max_update % every == 0
        assert args.max_update >= 2 * every
        assert args.save_interval_updates % every == 0
        assert args.validate_interval_updates % every == 0
        # No end of an epoch saves or validates.
        assert min(args.save_interval, args.validate_interval) > args.max_update
        assert args.no_epoch_checkpoints
        # A restart would go on from a checkpoint of one worker's optimizer state.
        assert words[words.index("--max-restarts") + 1] == "0"


def test_the_twins_differ_in_the_average_and_dropout_only(tmp_path, monkeypatch, capsys):
    found = commands(LINE, tmp_path)
    assert {"T1", "T13"} <= set(sections())
    first = commands(f"{RUN_SH} --text TEXT --only T1", tmp_path)
    twin = "plain-all-reduce-smoothed-seed1"
    assert found[twin] == first[twin]
    (one,) = launched(found[twin], monkeypatch, capsys)

    def differences(other: Namespace) -> set[str]:
        known = {*vars(one), *vars(other)} - fixed
        return {key for key in known if vars(one).get(key) != vars(other).get(key)}

    # What the parser has with --use-bmuf only, at its defaults.
    fixed = {"block_lr", "use_nbm", "average_sync"}
    averages = {"use_bmuf", "global_sync_iter", "warmup_iterations", "block_momentum"}
    saving = {f"{verb}_interval{of}" for verb in ("save", "validate") for of in ("", "_updates")}
    per_run = {"save_dir", "codistill_dir", "codistill_run_id", "distributed_init_method"}
    for interval in (100, 500):
        for dropout in (0.1, 0.2, 0.3):
            words = found[f"plain-localsgd{interval}-dropout{dropout}-seed1"]
            (other,) = launched(words, monkeypatch, capsys)
            assert other.distributed_world_size == 2
            own = averages | saving | ({"dropout"} if dropout != one.dropout else set())
            assert differences(other) - per_run == own


def sections() -> list[str]:
    text = (REPO / "results" / "translation" / "README.md").read_text()
    return [part.split(":")[0] for part in text.split("\n## ")[1:]]


# --- real averages -------------------------------------------------------------------------------


def train(name: str, words: list[str], corpus: Path, tmp_path: Path) -> list[list[dict]]:
    """Run a command of the script on a tiny model; return what each worker was seen to do."""
    user_dir = tmp_path / f"spy_{name}"
    user_dir.mkdir()
    (user_dir / "__init__.py").write_text(SPY)
    words = [*words, *TINY, "--dropout", "0.1", "--max-update", "8", "--log-interval", "1"]
    # An epoch ends within the 8 updates, and with less than a batch for each worker.
    words += ["--max-tokens", "600", "--save-interval-updates", "4", "--keep-interval-updates", "9"]
    words[words.index("--out") + 1] = str(tmp_path / name)
    words[words.index("--user-dir") + 1] = str(user_dir)
    words[words.index("fairseq-train") + 1] = str(corpus)
    done = subprocess.run(
        [str(BIN / words[0]), *words[1:]],
        cwd=tmp_path,
        env=environment(
            PATH=f"{BIN}:{os.environ['PATH']}",
            SPIED=str(tmp_path / f"{name}-seen"),
            PYTHONPATH=str(PLUGIN.parent),
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )
    log = tmp_path / name / "group-0" / "log.txt"
    told = log.read_text()[-2000:] if log.exists() else ""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + told
    files = [tmp_path / f"{name}-seen-{rank}" for rank in (0, 1)]
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def test_the_workers_are_alike_after_an_average_and_only_then(corpus, tmp_path):
    found = commands(f"{LINE} --trial", tmp_path)
    seen = train("local", found["plain-localsgd4-dropout0.3-seed1"], corpus, tmp_path)
    alone = train("together", found["plain-all-reduce-smoothed-seed1"], corpus, tmp_path)

    def steps(workers: list[list[dict]], kind: str, what: str) -> list[list]:
        return [[step[what] for step in worker if step["step"] == kind] for worker in workers]

    # The batches are those of all_reduce's workers, and no worker has the other's.
    assert steps(seen, "train_step", "ids") == steps(alone, "train_step", "ids")
    first, second = steps(seen, "train_step", "ids")
    assert len(first) == len(second) == 8
    assert [] in second
    assert all(not set(one) & set(two) for one, two in zip(first, second, strict=True))
    # The learning rate of the first update is 0; before update 4 comes the first average.
    one, two = steps(seen, "train_step", "weights")
    assert [a == b for a, b in zip(one, two, strict=True)] == [
        *[True, True, False, False],
        *[True, False, False, False],
    ]
    one, two = steps(alone, "train_step", "weights")
    assert one == two
    # Both validations are of averaged weights, and nothing is saved but after them.
    one, two = (set(worker) for worker in steps(seen, "valid_step", "weights"))
    assert one == two
    assert len(one) == 2
    log = (tmp_path / "local" / "group-0" / "log.txt").read_text()
    run = Run(tmp_path / "local" / "group-0", log)
    assert [line["num_updates"] for line in run.lines("valid")] == [4, 8]
    saved = {path.name for path in run.folder.glob("checkpoint_*_*.pt")}
    assert {name.split("_")[-1] for name in saved} <= {"4.pt", "8.pt"}


# --- cut off, and chosen -------------------------------------------------------------------------


def log_of(folder: Path, *nll: float) -> None:
    """Write the log of a run whose validations have come to these."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ['| INFO | train_inner | {"num_updates": "1", "loss": "9", "nll_loss": "9"}']
    for update, value in enumerate(nll, start=1):
        said = {"valid_nll_loss": str(value), "valid_num_updates": str(update)}
        lines.append(f"| INFO | valid | {json.dumps(said)}")
    (folder / "log.txt").write_text("".join(f"2026-01-01 00:00:00 {line}\n" for line in lines))


@pytest.mark.parametrize("finished", [False, True])
def test_a_run_cut_off_starts_again_and_a_finished_one_is_kept(finished, tmp_path):
    out, stubs = tmp_path / "out", tmp_path / "stubs"
    for stage in ("text", "pieces", "data-bin"):
        (out / "data" / "400" / stage).mkdir(parents=True)
    run = out / "plain-localsgd2-dropout0.3-seed1"
    (run / "group-0").mkdir(parents=True)
    (run / "group-0" / "checkpoint_last.pt").write_text("of the run that was cut off")
    if finished:
        (run / "group-0" / "finished.json").write_text("[]")
    # In place of training: note what is there, and end.
    stubs.mkdir()
    (stubs / "codistill").write_text(
        f"#!/bin/sh\nls {run}/group-0 >{tmp_path}/there 2>&1\nexit 7\n"
    )
    (stubs / "codistill").chmod(0o755)
    done = subprocess.run(
        ["bash", str(REPO / RUN_SH), "--text", str(tmp_path), "--only", "T13", "--trial"]
        + ["--out", str(out)],
        env=environment(PATH=f"{stubs}:{BIN}:{os.environ['PATH']}"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "plain-localsgd2-dropout0.3-seed1 failed" in done.stderr
    assert ("checkpoint_last.pt" in (tmp_path / "there").read_text()) == finished
    assert run.exists() == finished


def test_the_best_is_the_run_with_the_lowest_nll_at_any_validation(tmp_path, capsys):
    log_of(tmp_path / "a" / "group-0", 4.0, 3.5, 3.6)
    log_of(tmp_path / "b" / "group-0", 4.0, 3.4, 3.9)
    # Two models, whose mean counts.
    log_of(tmp_path / "c" / "group-0", 3.0)
    log_of(tmp_path / "c" / "group-1", 4.2)
    log_of(tmp_path / "d" / "group-0")
    assert best.main(["--in", str(tmp_path), "a", "b", "c"]) == 0
    assert capsys.readouterr().out == "b\n"
    assert best.main(["--in", str(tmp_path), "a", "c"]) == 0
    assert capsys.readouterr().out == "a\n"
    for name, says in [("d", "without a validation NLL"), ("nowhere", "is not there")]:
        assert best.main(["--in", str(tmp_path), "a", name]) == 1
        told = capsys.readouterr()
        assert (told.out, says in told.err) == ("", True)
