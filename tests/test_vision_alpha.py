"""The first alpha of images where the user gives none: min(1, sqrt(classes / 1000))."""

import math

import pytest
from vision_harness import CLASSES, TINY, launch, train, write_images

from fairseq_codistill.vision.__main__ import main
from fairseq_codistill.vision.flags import parse

COMMON = ["--data", "D", "--codistill-num-groups", "2", "--codistill-dir", "E"]
ALPHA_OF_FIVE = math.sqrt(5 / 1000)


@pytest.mark.parametrize(
    ("classes", "alpha"),
    [(1, 0.0316228), (10, 0.1), (250, 0.5), (999, 0.9995), (1000, 1.0), (21841, 1.0)],
)
def test_by_the_number_of_classes(classes, alpha):
    config = parse(COMMON).for_classes(classes)
    assert config.codistill_alpha == pytest.approx(alpha, rel=1e-5)
    assert config.alpha_schedule()(1, 0) == config.codistill_alpha


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_what_the_user_gives_stays(alpha):
    config = parse([*COMMON, "--codistill-alpha", str(alpha)]).for_classes(5)
    assert config.codistill_alpha == alpha


def test_a_recipe_gives_it_too(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("codistill_alpha: 1.0\n")
    assert parse([*COMMON, "--config", str(recipe)]).for_classes(5).codistill_alpha == 1.0


def test_a_real_run_of_two_groups_takes_it_and_says_so(tmp_path):
    data = write_images(tmp_path / "data", train=8, valid=2, classes=CLASSES[:5])
    flags = "--codistill-mode lockstep --codistill-interval 2 --max-update 6".split()
    flags += ["--codistill-alpha-schedule", "constant"]
    for run in launch(data, tmp_path / "out", *flags):
        assert "--codistill-alpha is not given: 0.0707107, for 5 classes" in run.log
        alphas = {line["codistill_alpha"] for line in run.lines("train_inner")}
        assert {round(float(alpha), 6) for alpha in alphas} == {round(ALPHA_OF_FIVE, 6)}


def test_alone_nothing_is_said(tmp_path):
    data = write_images(tmp_path / "data", train=4, valid=2)
    assert "--codistill-alpha" not in train(data, tmp_path / "run", "--max-update", "1").log


@pytest.mark.parametrize(
    ("classes", "alpha", "said"),
    [(0, None, "alpha by classes, "), (5, None, "alpha 0.0707107, "), (5, "0.3", "alpha 0.3, ")],
)
def test_a_dry_run_says_it(tmp_path, capsys, classes, alpha, said):
    data = tmp_path / "data"
    if classes:
        write_images(data, train=4, valid=2, classes=CLASSES[:classes])
    flags = ["--codistill-num-groups", "2", "--codistill-dir", str(tmp_path / "exchange")]
    flags += ["--codistill-alpha", alpha] if alpha else []
    assert main([*TINY, "--data", str(data), *flags, "--dry-run", "1"]) == 0
    told = capsys.readouterr().out
    assert said in told
    assert ("--codistill-alpha is not given" in told) == (classes > 0 and alpha is None)
