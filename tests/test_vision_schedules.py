"""Learning rate and weight decay against numbers worked out by hand."""

import math

import pytest

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision.flags import parse
from fairseq_codistill.vision.schedules import LearningRate, WeightDecay
from fairseq_codistill.vision.settings import VisionConfig

# Goyal's schedule as the paper halves it, for batch 512, with 100 updates an epoch.
HALVED = LearningRate(
    "goyal", peak=0.2, start=0.1, warmup=2.5, milestones=(15, 30, 40), factor=0.1, epochs=45
)


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (0, 0.1),
        (125, 0.15),  # half of the warm-up
        (249, 0.1 + 0.1 * 249 / 250),
        (250, 0.2),
        (1499, 0.2),
        (1500, 0.02),
        (2999, 0.02),
        (3000, 0.002),
        (3999, 0.002),
        (4000, 0.0002),
        (4499, 0.0002),
    ],
)
def test_goyal(update, rate):
    assert HALVED(update, 100) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize(
    ("update", "rate"),
    [
        (0, 0.0),
        (50, 0.05),
        (100, 0.1),
        (300, 0.1 * 0.5 * (1 + math.cos(math.pi / 4))),
        (500, 0.05),
        (899, 0.1 * 0.5 * (1 + math.cos(math.pi * 799 / 800))),
    ],
)
def test_cosine(update, rate):
    schedule = LearningRate("cosine", peak=0.1, warmup=1, epochs=9)
    assert schedule(update, 100) == pytest.approx(rate, rel=1e-12, abs=1e-15)


def test_constant():
    assert {LearningRate("constant", peak=0.3)(update, 7) for update in range(700)} == {0.3}


def test_weight_decay_falls_at_the_milestones_and_the_last_one_stays():
    decay = WeightDecay(1e-4, (1e-5, 0.0), (18, 38, 44))
    updates = [0, 179, 180, 379, 380, 439, 440, 449]
    assert [decay(update, 10) for update in updates] == [
        *[1e-4, 1e-4, 1e-5, 1e-5],
        *[0, 0, 0, 0],
    ]


def test_milestones_within_epochs():
    decay = WeightDecay(1.0, (0.5,), (13.1,))
    # 13.1 * 10 is a little more than 131 in binary.
    assert [decay(update, 10) for update in (130, 131)] == [1.0, 0.5]


def test_the_learning_rate_grows_with_the_batch():
    config = VisionConfig(lr=0.1, lr_batch=256, warmup_epochs=5, warmup_init_lr=0.1)
    assert [config.learning_rate(images).peak for images in (128, 256, 2048)] == [0.05, 0.1, 0.8]
    # A small batch's warm-up does not begin above its peak.
    assert [config.learning_rate(images).start for images in (128, 2048)] == [0.05, 0.1]
    assert VisionConfig(lr=0.1).learning_rate(2048).peak == 0.1


def test_milestones_by_default_are_goyals_in_proportion():
    assert VisionConfig(epochs=90).milestones == pytest.approx([30, 60, 80])
    assert VisionConfig(epochs=45).milestones == pytest.approx([15, 30, 40])


def test_a_part_of_the_images_and_as_many_updates(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "epochs: 45\nwarmup_epochs: 2.5\nlr_milestones: [18, 38, 44]\n"
        "weight_decay_schedule: [1e-5, 0]\ncodistill_alpha_schedule: step\n"
        "codistill_alpha_milestones: [18, 38, 44]\nvalidate_interval: 2\ncodistill_alpha: 1\n"
    )
    common = ["--data", "D", "--config", str(recipe)]
    whole, part = parse(common), parse([*common, "--epochs-times", "4", "--data-fraction", "1/4"])
    # 100 updates an epoch, or 25.
    for update in range(0, 4500, 7):
        for schedule in ("weight_decays", "learning_rate"):
            images = [] if schedule == "weight_decays" else [256]
            one, other = (getattr(config, schedule)(*images) for config in (whole, part))
            assert other(update, 25) == pytest.approx(one(update, 100))
        one, other = (config.alpha_schedule() for config in (whole, part))
        # Epochs count from 1, and alpha changes between them.
        assert other(update // 25 + 1, update) == one(update // 100 + 1, update)
    assert (part.epochs, part.validate_interval) == (180, 8)


def test_alpha_that_grows_with_epochs_is_not_stretched():
    two = ["--codistill-num-groups", "2", "--codistill-dir", "E"]
    with pytest.raises(ConfigError, match="--epochs-times 4 does not go with"):
        parse(["--data", "D", "--epochs-times", "4", *two])
