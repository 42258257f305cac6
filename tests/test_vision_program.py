"""The program as a user meets it: what launch gives each group, plans, switches, diagnostics."""

import itertools
import json
import math
import re
import shlex

import pytest
import torch
from harness import SEED_STEP, column
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from vision_harness import CLASSES, TINY, train, untrained, write_images
from vision_reference import images_of, permutation, resnet8

from fairseq_codistill import cli
from fairseq_codistill.vision import diagnostics
from fairseq_codistill.vision.__main__ import main
from fairseq_codistill.vision.flags import parse
from fairseq_codistill.vision.optimizer import optimizer_of
from fairseq_codistill.vision.settings import VisionConfig

PROGRAM = ["python", "-m", "fairseq_codistill.vision"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images") / "data")


def test_launch_gives_each_worker_its_place(tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("seed: 7\ncpu: true\ntensorboard_logdir: T\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    command = [*PROGRAM, "--data", "D", "--config", str(recipe)]
    options = ["--groups", "2", "--workers-per-group", "2", "--out", str(tmp_path / "out")]
    options += ["--group", "1: --lr 0.3", "--print"]
    assert cli.main(["launch", *options, "--", *command]) == 0
    shown = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert len(shown) == 4
    ports = set()
    for place, line in enumerate(shown):
        group, rank = divmod(place, 2)
        words = shlex.split(line)
        variables = dict(
            word.split("=", 1) for word in words[: words.index("python")] if "=" in word
        )
        assert (variables["RANK"], variables["LOCAL_RANK"]) == (str(rank), str(rank))
        assert variables["WORLD_SIZE"] == "2"
        ports.add((group, variables["MASTER_PORT"]))
        config = parse(words[words.index("fairseq_codistill.vision") + 1 :])
        assert (config.codistill_group, config.codistill_num_groups) == (group, 2)
        assert config.seed == 7 + SEED_STEP * group
        assert config.save_dir == str(tmp_path / f"out/group-{group}")
        assert config.tensorboard_logdir == f"T/group-{group}"
        assert config.codistill_dir == str(tmp_path / "out/exchange")
        assert config.lr == (0.3 if group else 0.1)
    assert len(ports) == 2


@pytest.mark.parametrize("text", ["- a\n- b\n", "seed: [", None])
def test_launch_leaves_a_bad_recipe_to_the_program(text, tmp_path, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    if text is not None:
        recipe.write_text(text)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = ["--groups", "2", "--out", str(tmp_path / "out"), "--print", "--"]
    assert cli.main(["launch", *options, *PROGRAM, "--config", str(recipe)]) == 0
    assert f"--seed {1 + SEED_STEP} " in capsys.readouterr().out


def test_a_dry_run_says_what_so_many_workers_do(data, tmp_path, capsys):
    flags = ["--save-dir", tmp_path / "run", "--batch-size", 5, "--update-freq", 2, "--lr-batch", 8]
    flags += ["--weight-decay-schedule", "1e-5,0", "--dry-run", 3]
    assert main([*TINY, "--data", str(data), *map(str, flags)]) == 0
    said = capsys.readouterr().out
    # 60 images.
    assert "3 worker(s) x 5 images x --update-freq 2 = 30 images an update for each model" in said
    assert "2 an epoch, 6 in all for each model" in said
    assert "learning rate: goyal, 0.1875, times 0.1 after epochs 1, 2, 2.66667; 3 epochs" in said
    assert "weight decay: 0.0001, 1e-05 after epoch 1, 0 after epoch 2" in said
    assert not (tmp_path / "run").exists()


def test_schedules_are_those_that_are_set(data, tmp_path):
    # 7 updates an epoch.
    flags = ["--lr", "0.07", "--warmup-epochs", "1", "--lr-milestones", "2"]
    run = train(data, tmp_path, *flags, "--weight-decay", "4e-4", "--weight-decay-schedule", "1e-4")
    rates = [0.01 * update for update in range(7)] + [0.07] * 7 + [0.007] * 7
    assert column(run.lines(), "lr") == pytest.approx(rates, rel=1e-5)
    assert column(run.lines(), "weight_decay") == pytest.approx([4e-4] * 14 + [1e-4] * 7)
    # 8 images an update.
    speeds = [8 * ups for ups in column(run.lines(), "ups")]
    assert column(run.lines(), "images_per_second") == pytest.approx(speeds, rel=1e-4)


def test_diagnostics_of_training_are_what_they_are_called(data, tmp_path):
    # More images than there are: all 60 of training.
    flags = ["--augmentation", "none", "--label-smoothing", "0.1", "--eval-train-images", "99"]
    run = train(data, tmp_path, *flags, "--epochs", "2")
    images, targets = images_of(data / "train")
    model = untrained()

    # Six digits are logged.
    first = permutation(1, 1, 60)[:8]
    surprise = -resnet8(images[first], model.state_dict(), {}).log_softmax(dim=1) / math.log(2)
    nll = surprise[range(8), targets[first]].mean().item()
    smoothed = 0.9 * nll + 0.1 * surprise.mean().item()
    assert run.lines()[0]["nll_loss"] == pytest.approx(nll, rel=1e-5)
    assert run.lines()[0]["loss"] == pytest.approx(smoothed, rel=1e-5)

    line = run.lines("train")[-1]
    state = {name: tensor.double() for name, tensor in run.weights().items()}
    # Of what is trained; statistics of batch norm go farther.
    squares = [(state[k] - start).square().sum() for k, start in model.named_parameters()]
    assert line["distance"] == pytest.approx(math.sqrt(sum(squares)), rel=1e-5)
    logits = resnet8(images, state, None)
    nll = torch.nn.functional.cross_entropy(logits, targets).item() / math.log(2)
    assert line["eval_nll_loss"] == pytest.approx(nll, rel=1e-5)
    top1 = 100 * (logits.argmax(dim=1) == targets).double().mean().item()
    assert line["eval_top1"] == pytest.approx(top1, rel=1e-5)


def test_the_best_checkpoint_is_the_first_with_the_best_validation(tmp_path):
    # Two classes are soon told apart; 7 updates an epoch.
    data = write_images(tmp_path / "data", train=30, classes=CLASSES[:2])
    flags = ["--augmentation", "none", "--epochs", "8", "--max-update"]
    # Going on, it remembers what was the best.
    parts = [train(data, tmp_path / "run", *flags, update) for update in ("14", "28")]
    lines = [line for part in parts for line in part.lines("valid")]
    top1 = column(lines, "top1")
    best = top1.index(max(top1))
    assert top1[best] in top1[best + 1 :], "no later one is as good"
    saved = parts[1].checkpoint("checkpoint_best.pt")
    assert saved["update"] == lines[best]["num_updates"]
    assert saved["best"] == pytest.approx(max(top1), rel=1e-5)
    assert column(lines, "best_top1") == list(itertools.accumulate(top1, max))


def test_norms_decay_unless_told_otherwise_and_all_else_does(data, tmp_path):
    flags = ["--max-update", "1", "--lr", "0.05", "--weight-decay", "0.5"]
    all_decay = train(data, tmp_path / "all", *flags).weights()
    others_decay = train(data, tmp_path / "others", *flags, "--no-norm-weight-decay").weights()
    for name, weight in all_decay.items():
        is_norm = bool(re.search(r"(bn\d|shortcut\.1)\.weight$", name))
        # Weights of norms begin at 1, their biases at 0.
        decayed = 0.05 * 0.5 * is_norm * torch.ones(weight.shape)
        torch.testing.assert_close(
            (others_decay[name] - weight).float(), decayed, rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("norms", [True, False])
def test_norms_without_weight_decay(norms):
    config = VisionConfig(norm_weight_decay=norms)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    decaying = [group["decays"] for group in optimizer_of(model, config).param_groups]
    sizes = [len(group["params"]) for group in optimizer_of(model, config).param_groups]
    assert (decaying, sizes) == (([True], [4]) if norms else ([True, False], [2, 2]))


def test_the_switches_go_together(data, tmp_path):
    flags = ["--amp", "bf16", "--channels-last", "--update-freq", "2", "--zero-init-gamma"]
    flags += ["--label-smoothing", "0.1", "--no-norm-weight-decay", "--nesterov", "--data-fraction"]
    flags += ["0.5", "--eval-train-images", "10", "--lr-schedule", "cosine", "--epochs", "4"]
    run = train(data, tmp_path, *flags)
    lines = run.lines("train")
    assert [line["num_updates"] for line in lines] == [1, 2, 3, 4]
    # The loss is the smoothed one.
    assert all(line["loss"] != line["nll_loss"] for line in lines)
    assert "eval_nll_loss" in lines[-1]
    assert run.weights()["conv1.weight"].dtype == torch.float32


@pytest.mark.full
def test_compiled_it_learns_the_same(data, tmp_path):
    plain = train(data, tmp_path / "plain", "--epochs", "1")
    compiled = train(data, tmp_path / "compiled", "--epochs", "1", "--compile")
    losses = column(compiled.lines(), "loss")
    assert losses == pytest.approx(column(plain.lines(), "loss"), rel=1e-3)
    assert compiled.weights().keys() == plain.weights().keys()


def test_tensorboard_has_the_values_of_the_log(data, tmp_path):
    run = train(data, tmp_path / "run", "--tensorboard-logdir", str(tmp_path / "T"))
    events = EventAccumulator(str(tmp_path / "T/valid")).Reload()
    values = [event.value for event in events.Scalars("top1")]
    assert values == pytest.approx(column(run.lines("valid"), "top1"), rel=1e-5)


def test_agreement_of_two_models(tmp_path, capsys):
    data = write_images(tmp_path / "data", train=12, valid=9, classes=CLASSES[:4])
    paths = []
    for seed in ("1", "2"):
        run = train(data, tmp_path / seed, "--seed", seed, "--augmentation", "none")
        paths.append(run.folder / "checkpoint_last.pt")
    out = tmp_path / "out.jsonl"
    flags = ["--data", str(data), "--cpu", "--out", str(out), *map(str, paths)]
    assert diagnostics.main(flags) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert out.read_text() in capsys.readouterr().out
    images, targets = images_of(data / "val")
    answers = []
    for path, line in zip(paths, lines, strict=False):
        state = torch.load(path, weights_only=True)["model"]
        state = {name: tensor.double() for name, tensor in state.items()}
        answers.append(resnet8(images, state, None).argmax(dim=1))
        top1 = 100 * (answers[-1] == targets).double().mean().item()
        about = {"checkpoint": str(path), "group": 0, "update": 18, "images": 36}
        assert line == {**about, "top1": pytest.approx(top1)}
    same = (answers[0] == answers[1]).double().mean().item()
    assert 0 < same < 1
    assert lines[2]["agreement"] == pytest.approx(same)
    assert lines[2]["churn"] == pytest.approx(1 - same)
    assert (lines[2]["groups"], lines[2]["updates"]) == ([0, 0], [18, 18])
    # What is there already stays.
    once = out.read_text()
    assert diagnostics.main(flags) == 0
    assert out.read_text() == 2 * once


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batch-size 0", "--batch-size 0 is too small; give 1 or more"),
        ("--num-workers -1", "--num-workers -1 is too small; give 0 or more"),
        ("--out nowhere/out.jsonl", "--out nowhere/out.jsonl: give a file in a folder that exists"),
        ("--out .", "--out .: give a file in a folder that exists"),
    ],
)
def test_diagnostics_complain_before_they_begin(flags, said, capsys):
    with pytest.raises(SystemExit) as ended:
        diagnostics.main(["--data", "nothing", *flags.split(), "nothing.pt"])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"codistill: error: {said}\n")


def test_the_help_names_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    flags = set(re.findall(r"--[a-z0-9-]+", said))
    names = {f"--{name.replace('_', '-')}" for name in vars(VisionConfig())}
    assert names <= flags


def test_the_time_that_a_resumed_run_has_taken_goes_on(data, tmp_path):
    train(data, tmp_path, "--max-update", "2")
    last = tmp_path / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    assert 0 < state["seconds"] < 600
    torch.save(state | {"seconds": 5000.25}, last)
    resumed = train(data, tmp_path, "--max-update", "4")
    assert [5000 <= line["wall"] < 5600 for line in resumed.lines()] == [True, True]
    # One of a version that did not keep it.
    torch.save({key: value for key, value in state.items() if key != "seconds"}, last)
    resumed = train(data, tmp_path, "--max-update", "4")
    assert [line["wall"] < 600 for line in resumed.lines()] == [True, True]


def test_updates_that_ask_no_peer_tell_nothing_of_peers(data, tmp_path):
    flags = ["--codistill-num-groups", "2", "--codistill-mode", "async"]
    flags += ["--codistill-dir", str(tmp_path / "exchange"), "--codistill-interval", "1"]
    flags += ["--codistill-alpha", "1", "--max-update", "1"]
    train(data, tmp_path / "b", *flags, "--codistill-group", "1", "--seed", "2")
    flags += ["--codistill-every", "2", "--max-update", "30", "--epochs", "20"]
    lines = train(data, tmp_path / "a", *flags, "--save-dir", str(tmp_path / "a")).lines()
    ages = [line.get("codistill_staleness") for line in lines]
    assert [age is None for age in ages] == [line.get("codistill_loss") is None for line in lines]
    assert ages[1::2] == [None] * 15
    assert ages[28] == 27
    assert [line["codistill_peers"] for line in lines[28:]] == [1, 1]
