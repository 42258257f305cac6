"""Which images are trained on, in what order; evaluation counts each image once."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from harness import SEED_STEP
from vision_harness import CLASSES, launch, train, untrained, write_images
from vision_reference import images_of, permutation, resnet8

from fairseq_codistill.vision import data
from fairseq_codistill.vision.data import Order, part
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.train import order_of

IMAGES = np.arange(103)


def order(**other) -> Order:
    settings = {"seed": 3, "batch_size": 5, "workers": 2, "update_freq": 2}
    return Order(IMAGES, **{**settings, **other})


def test_an_epoch_shows_an_image_at_most_once_and_nearly_all():
    one = order()
    assert (one.images_per_update, one.updates_per_epoch) == (20, 5)
    seen = [key for rank in (0, 1) for batch in one.batches(rank, 0, 5) for key in batch]
    assert {epoch for epoch, _ in seen} == {1}
    indices = [index for _, index in seen]
    assert len(indices) == len(set(indices)) == 100
    later = [k for rank in (0, 1) for batch in one.batches(rank, 5, 10) for k in batch]
    assert {epoch for epoch, _ in later} == {2}
    # Other images are left out, and the order is another.
    assert {i for _, i in later} != set(indices)
    assert [i for _, i in later] != indices


@pytest.mark.parametrize("first", [1, 4, 5, 12])
def test_it_goes_on_anywhere(first):
    whole = [*order().batches(1, 0, 15)]
    assert [*order().batches(1, first, 15)] == whole[2 * first :]


def test_an_update_has_the_same_images_for_any_number_of_workers():
    def updates(**other):
        one = order(**other)
        found = []
        for update in range(7):
            per_worker = [one.batches(rank, update, update + 1) for rank in range(one.workers)]
            found.append({key for batches in per_worker for batch in batches for key in batch})
        return found

    assert (
        updates()
        == updates(workers=1, update_freq=4)
        == updates(batch_size=20, workers=1, update_freq=1)
    )


def test_groups_have_orders_of_their_own():
    assert [*order().batches(0, 0, 5)] != [*order(seed=1000006).batches(0, 0, 5)]


def test_fractions_lie_in_each_other_and_shards_do_not_meet():
    half, quarter = (set(part(103, Fraction(1, k)).tolist()) for k in (2, 4))
    assert (len(half), len(quarter)) == (51, 25)
    assert quarter < half
    assert part(103, Fraction(1)).tolist() == list(range(103))
    shards = [set(part(103, Fraction(1), 3, i).tolist()) for i in range(3)]
    assert [len(shard) for shard in shards] == [34, 34, 34]
    assert len(set().union(*shards)) == 102


def test_groups_share_out_the_images_if_told_to():
    def seen(**settings):
        groups = [VisionConfig(codistill_group=i, **settings) for i in range(3)]
        return [order_of(config, 102, workers=2).images.tolist() for config in groups]

    shards = seen(codistill_num_groups=3, shard_data=True)
    # Each image is one group's, and no image is two groups'.
    assert sorted(sum(shards, [])) == list(range(102))
    assert seen(codistill_num_groups=3) == [list(range(102))] * 3


def test_augmentation_depends_on_epoch_and_image_and_on_nothing_else(tmp_path):
    folders = data.find(str(write_images(tmp_path / "data")))
    transform, _ = data.transforms("cifar", 12)
    images = data.Images(folders.train, transform, seed=1)
    torch.manual_seed(5)
    first = images[1, 4][0]
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.rand(3).equal(drawn), "reading an image must not draw from the training's numbers"
    assert images[1, 4][0].equal(first)
    assert not all(images[epoch, 4][0].equal(first) for epoch in range(2, 9))
    cached = data.Images(folders.train, transform, seed=1, cached=range(5))
    assert cached[1, 4][0].equal(first)


@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_counts_each_image_once(tmp_path, workers):
    # 23 x 2 + ... images divide by neither workers nor batch.
    folder = write_images(tmp_path / "data", valid=7, train=16, classes=CLASSES[:6])
    (folder / "val/bee/000.png").unlink()
    flags = ["--epochs", "1", "--lr", "0.01"]
    run = train(folder, tmp_path / "run", *flags, workers=workers)
    (line,) = run.lines("valid")
    images, targets = images_of(folder / "val")
    assert line["images"] == len(images) == 41
    state = {k: v.double() for k, v in run.weights().items()}
    logits = resnet8(images, state, None)
    nll = torch.nn.functional.cross_entropy(logits, targets).item() / math.log(2)
    ranks = (logits > logits.gather(1, targets[:, None])).sum(dim=1)
    assert line["loss"] == line["nll_loss"] == pytest.approx(nll, rel=1e-5)
    assert line["top1"] == pytest.approx(100 * (ranks < 1).double().mean().item(), rel=1e-5)
    assert line["top5"] == pytest.approx(100 * (ranks < 5).double().mean().item(), rel=1e-5)
    assert line["top1"] < line["top5"] < 100


def test_shards_and_reading_processes(tmp_path):
    folder = write_images(tmp_path / "data", train=16)
    flags = ["--shard-data", "--codistill-interval", "2", "--epochs", "2", "--lr", "0.01"]
    flags += ["--augmentation", "none", "--num-workers", "1", "--codistill-mode", "lockstep"]
    runs = launch(folder, tmp_path / "out", *flags)
    # 48 images, half of them for each group, 8 an update.
    assert [len(run.lines()) for run in runs] == [6, 6]
    images, targets = images_of(folder / "train")
    # The cut is the same for all seeds.
    halves = np.random.default_rng(np.random.SeedSequence([3])).permutation(48).reshape(2, 24)
    for group, (run, half) in enumerate(zip(runs, halves, strict=True)):
        seed = 1 + SEED_STEP * group
        first = np.sort(half)[permutation(seed, 1, 24)[:8]]
        logits = resnet8(images[first], untrained(seed).state_dict(), {})
        nll = torch.nn.functional.cross_entropy(logits, targets[first]).item() / math.log(2)
        assert run.lines()[0]["nll_loss"] == pytest.approx(nll, rel=1e-5)
    alone = train(folder, tmp_path / "alone", "--epochs", "2", "--lr", "0.01")
    more = train(
        folder,
        tmp_path / "more",
        "--epochs",
        "2",
        "--lr",
        "0.01",
        "--num-workers",
        "2",
        "--cache-images",
        "--log-format",
        "simple",
    )
    assert all(alone.weights()[k].equal(more.weights()[k]) for k in alone.weights())
