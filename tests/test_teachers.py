"""Frozen teachers: ordinary distillation, alone or beside peers."""

from pathlib import Path

import pytest
import torch
from harness import CODISTILL, PLAIN, column, distance, finish, start, train
from reference import algorithm_1
from vision_harness import refused, write_images
from vision_harness import train as train_images
from vision_reference import ARCH
from vision_reference import algorithm_1 as algorithm_1_of_images

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.tasks import _teachers
from fairseq_codistill.vision import models

UPDATES = 12
ALPHA = ["--codistill-alpha", "0.7", "--codistill-alpha-schedule", "constant"]


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
    assert set(column(lines, "codistill_staleness")) == {0}
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
    assert f"--codistill-teachers {stock} was trained with another target vocabulary" in run.log
    assert not run.lines()


def test_what_is_no_checkpoint_is_refused(stock, tmp_path):
    """It is read before the task is asked for anything."""
    torn = tmp_path / "torn.pt"
    torn.write_bytes(stock.read_bytes()[:5000])
    other = tmp_path / "other.pt"
    torch.save({"weights": torch.ones(2)}, other)
    for path in (torn, other):
        with pytest.raises(ConfigError, match=f"^--codistill-teachers {path} cannot be read"):
            _teachers.load(str(path), None, None)


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
