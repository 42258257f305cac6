"""Frozen teachers: ordinary distillation, alone or beside peers."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils, options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from harness import CODISTILL, MODEL, PLAIN, SETTINGS, column, distance, equal, finish, start, train
from omegaconf import OmegaConf
from reference import algorithm_1
from vision_harness import refused, write_images
from vision_harness import train as train_images
from vision_reference import ARCH
from vision_reference import algorithm_1 as algorithm_1_of_images

from fairseq_codistill import cli
from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.plain import allowing
from fairseq_codistill.tasks import (
    _safe_globals,
    _teachers,
    codistill_translation,  # noqa: F401 - registers the task, as --user-dir does
)
from fairseq_codistill.vision import models

UPDATES = 12
ALPHA = ["--codistill-alpha", "0.7", "--codistill-alpha-schedule", "constant"]


@pytest.fixture(autouse=True)
def safe_globals():
    """What importing the task registers, whatever another test has removed."""
    _safe_globals.register()


@pytest.fixture(scope="module")
def stock(corpus, tmp_path_factory) -> Path:
    """A checkpoint of fairseq's own translation task, of a wider model."""
    folder = tmp_path_factory.mktemp("stock")
    wide = ["--encoder-embed-dim", "24", "--decoder-embed-dim", "24", "--encoder-layers", "2"]
    train(corpus, folder, *PLAIN, *wide, "--max-update", "15", "--seed", "7")
    return folder / "checkpoint_last.pt"


def distil(corpus, folder, *flags, status=0):
    """Train one group with teachers."""
    return finish(start(corpus, folder, *CODISTILL, *ALPHA, *flags), folder, status)


def test_one_group_with_a_teacher_equals_the_reference(corpus, stock, tmp_path):
    flags = ["--codistill-teachers", str(stock), "--max-update", str(UPDATES)]
    run = distil(corpus, tmp_path / "out", *flags)
    (weights,), (truth,) = algorithm_1(
        corpus,
        updates=UPDATES,
        n=1,
        workers=1,
        update_freq=1,
        alpha=0.7,
        gamma=1.0,
        lr=0.5,
        teachers=[stock],
    )
    assert distance(run.weights(), weights) <= 1e-5
    lines = run.lines()
    assert len(lines) == UPDATES
    for key, places in {"loss": 3, "nll_loss": 3, "codistill_loss": 4}.items():
        tolerance = 0.51 * 10**-places + 1e-5
        assert column(lines, key) == pytest.approx(column(truth, key), abs=tolerance), key
    assert set(column(lines, "codistill_peers")) == {1}
    assert not any("codistill_staleness" in line for line in lines)
    assert min(column(truth, "codistill_loss")) > 1e-3
    # No exchange was made, and what was saved is the student alone.
    assert not list(tmp_path.rglob("group-*"))
    own = {tuple(tensor.shape) for tensor in run.weights().values()}
    assert not any(24 in shape for shape in own)


def test_a_teacher_that_does_not_fit_is_refused_before_the_first_update(
    corpus, other_vocabulary, stock, tmp_path
):
    both = f"{stock}:{tmp_path / 'none.pt'}"
    run = distil(corpus, tmp_path / "one", "--codistill-teachers", both, status=2)
    assert f"error: --codistill-teachers {tmp_path / 'none.pt'} is not there" in run.log
    assert not run.lines()
    run = distil(other_vocabulary, tmp_path / "two", "--codistill-teachers", str(stock), status=2)
    assert f"--codistill-teachers {stock} was trained with another source vocabulary" in run.log
    assert not run.lines()


def fairseqs(corpus, *flags):
    """The task, and an untrained model, that fairseq makes of a command line."""
    model = [] if "--arch" in flags else [*MODEL, "--share-all-embeddings"]
    line = [str(corpus), *model, *SETTINGS, *PLAIN, *flags]
    args = options.parse_args_and_arch(options.get_training_parser(), line)
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    return task, task.build_model(cfg.model), args, cfg


def saved(path, corpus, *flags, old=False):
    """A checkpoint of an untrained model, of the kind that fairseq writes now, or once wrote."""
    _, model, args, cfg = fairseqs(corpus, *flags)
    as_saved = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    once = {
        "optimizer_history": [
            {
                "criterion_name": "CrossEntropyCriterion",
                "optimizer_name": "SGD",
                "lr_scheduler_state": {},
                "num_updates": 3,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 3}},
        "last_optimizer_state": None,
    }
    settings = {"args": args if old else None, "cfg": None if old else as_saved}
    torch.save({**settings, "model": model.state_dict(), **once}, path)
    return path, model


@pytest.mark.parametrize(
    ("flags", "old"),
    [
        ([], False),
        ([], True),
        (["--arch", "lstm"], False),
        (["--arch", "fconv"], False),
        (["--encoder-learned-pos", "--max-source-positions", "2000"], False),
    ],
    ids=["transformer", "old", "lstm", "fconv", "learned-positions"],
)
def test_a_teacher_of_any_architecture_is_loaded(corpus, tmp_path, flags, old):
    path, model = saved(tmp_path / "teacher.pt", corpus, *flags, old=old)
    task, student, _, _ = fairseqs(corpus)
    state = torch.get_rng_state()
    teacher = _teachers.load(str(path), task, student)
    assert equal(teacher.state_dict(), model.state_dict())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_of_another_source_vocabulary_is_refused(corpus, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(corpus, copy)
    path, _ = saved(tmp_path / "teacher.pt", copy)
    words = (copy / "dict.de.txt").read_text().splitlines()
    (copy / "dict.de.txt").write_text("\n".join([*words[1:], words[0]]) + "\n")
    task, student, _, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match="was trained with another source vocabulary"):
        _teachers.load(str(path), task, student)
    shutil.rmtree(copy)
    _teachers.load(str(path), task, student)


def test_a_teacher_of_shorter_sentences_is_refused(corpus, tmp_path):
    flags = ["--decoder-learned-pos", "--max-target-positions", "50"]
    path, _ = saved(tmp_path / "teacher.pt", corpus, *flags)
    task, student, _, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match="its decoder has learned 50 positions, and sentences"):
        _teachers.load(str(path), task, student)


def test_a_teacher_with_adaptive_softmax_is_refused(corpus, tmp_path):
    path, _ = saved(tmp_path / "teacher.pt", corpus, "--adaptive-softmax-cutoff", "20")
    task, student, _, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match="its model has adaptive softmax, and so no plain"):
        _teachers.load(str(path), task, student)


def test_a_model_is_loaded_without_its_teachers(corpus, stock, tmp_path):
    teacher = tmp_path / "teacher.pt"
    shutil.copy(stock, teacher)
    run = distil(corpus, tmp_path / "out", "--codistill-teachers", str(teacher), "--max-update=2")
    teacher.unlink()
    last = run.folder / "checkpoint_last.pt"
    # As fairseq's own loader does it: with the settings in the checkpoint.
    with allowing([argparse.Namespace]):
        (model,), _, _ = checkpoint_utils.load_model_ensemble_and_task([str(last)])
    assert equal(model.state_dict(), run.weights())
    # What is exported of it can teach in its turn.
    exported = tmp_path / "exported.pt"
    assert cli.main(["export", str(last), str(exported)]) == 0
    task, student, _, _ = fairseqs(corpus)
    assert equal(_teachers.load(str(exported), task, student).state_dict(), run.weights())


@pytest.mark.parametrize("content", [{"weights": torch.ones(2)}, [1, 2], None])
def test_what_is_no_checkpoint_is_refused(corpus, tmp_path, content):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    task, student, _, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match=f"^--codistill-teachers {path} "):
        _teachers.load(str(path), task, student)


def test_a_torn_checkpoint_is_refused(corpus, stock, tmp_path):
    path = tmp_path / "torn.pt"
    path.write_bytes(stock.read_bytes()[:5000])
    task, student, _, _ = fairseqs(corpus)
    with pytest.raises(ConfigError, match=f"^--codistill-teachers {path} cannot be read"):
        _teachers.load(str(path), task, student)


def test_images_of_one_group_with_a_teacher_equal_the_reference(tmp_path):
    data = write_images(tmp_path / "data")
    flags = [*ALPHA, "--arch", ARCH, "--augmentation", "none", "--lr-schedule", "constant"]
    flags += ["--momentum", "0", "--weight-decay", "0", "--max-update", str(UPDATES)]
    teacher = train_images(data, tmp_path / "teacher", *flags, "--seed", "5")
    path = tmp_path / "teacher/checkpoint_last.pt"
    run = train_images(data, tmp_path / "out", *flags, "--codistill-teachers", str(path))
    torch.manual_seed(1)
    initial = models.student(models.describe(ARCH, 3, 4, 12)).state_dict()
    (state,), (truth,) = algorithm_1_of_images(
        data,
        initial=[initial],
        updates=UPDATES,
        workers=1,
        update_freq=1,
        batch_size=8,
        alpha=0.7,
        gamma=1.0,
        lr=0.05,
        teachers=[teacher.weights()],
    )
    named = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert distance(run.weights(), named) <= 1e-5
    for key in ("loss", "nll_loss", "codistill_loss", "codistill_alpha"):
        assert column(run.lines(), key) == pytest.approx(column(truth, key), rel=2e-5), key
    assert min(column(truth, "codistill_loss")) > 1e-4


def test_a_teacher_of_other_classes_is_refused(tmp_path, capfd):
    data = write_images(tmp_path / "data")
    train_images(data, tmp_path / "teacher", "--max-update", "1")
    path = tmp_path / "teacher/checkpoint_last.pt"
    more = write_images(tmp_path / "more", classes=("ape", "bee", "cow"))
    flags = ["--data", more, "--save-dir", tmp_path / "out"]
    said = refused(capfd, *flags, "--codistill-teachers", path)
    assert "was trained on other classes (ape, bee, cat) than this data has (ape, bee, cow)" in said
    said = refused(capfd, *flags, "--codistill-teachers", tmp_path / "none.pt")
    assert f"--codistill-teachers {tmp_path / 'none.pt'} is not there" in said
    assert not (tmp_path / "out").exists()
