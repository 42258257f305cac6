"""What counts as time spent on the exchange, and what a group says that cannot end in order."""

import math
import time

import pytest
import torch
from torch import nn

from fairseq_codistill.codistillation import Codistillation, CodistillationConfig, Group
from fairseq_codistill.codistillation import workers as workers_module
from fairseq_codistill.codistillation.membership import Membership
from fairseq_codistill.exchange import ExchangeError, Store, read_alive
from fairseq_codistill.vision.logs import Meters
from fairseq_codistill.vision.world import World


@pytest.fixture
def join(tmp_path):
    """Make group 0 of two."""
    made = []

    def make(**settings):
        config = CodistillationConfig(
            codistill_dir=str(tmp_path), codistill_num_groups=2, codistill_interval=2, **settings
        )
        config.check()
        model = nn.Linear(3, 5)
        like = next(model.parameters())
        group = Group(seed=1, vocabulary="v", model={}, build=lambda *_: nn.Linear(3, 5), like=like)
        made.append(Codistillation(config, group, model.state_dict))
        return made[-1]

    yield make
    for side in made:
        side.abandon()


@pytest.fixture
def late(monkeypatch):
    """Give a side a second worker, which lets it wait for 0.3 s whenever they are to agree."""

    def act(side):
        def all_reduce(tensor, **_):
            time.sleep(0.3)

        monkeypatch.setattr(workers_module.dist, "all_reduce", all_reduce)
        monkeypatch.setattr(side.workers, "_process_group", object())

    return act


def test_waiting_for_ones_own_workers_is_no_stall(join, late):
    side = join(codistill_mode="async")
    side.at_boundary(0, 1)
    side.note_logged()
    late(side)
    start = time.perf_counter()
    side.at_boundary(1, 1)
    took = time.perf_counter() - start
    assert took >= 0.3
    assert 0 <= side.stall <= took - 0.3


def test_in_lockstep_the_workers_wait_for_the_exchange_with_their_leader(join, late):
    side = join(codistill_mode="lockstep", codistill_burn_in=10)
    side.at_boundary(0, 1)
    side.note_logged()
    late(side)
    side.at_boundary(1, 1)
    assert side.stall >= 0.3


def test_a_group_that_cannot_end_in_order_says_that_it_no_longer_runs(join, monkeypatch, tmp_path):
    side = join(codistill_mode="lockstep", codistill_burn_in=10)
    side.at_boundary(0, 1)
    store = Store(str(tmp_path))
    assert read_alive(store, 0).running

    def away(_):
        raise ExchangeError("the exchange is away")

    monkeypatch.setattr(Membership, "_await_published", away)
    with pytest.raises(ExchangeError, match="the exchange is away"):
        side.finish(3)
    said = read_alive(store, 0)
    assert not said.running
    assert not said.finished


class Two(World):
    """Two workers that have added up the same."""

    def sum(self, tensor):
        return tensor.mul_(2)


def test_images_log_the_stall_of_a_worker_and_not_their_sum(join):
    side = join(codistill_mode="async")
    side.at_boundary(0, 1)
    meters = Meters(Two(rank=0, size=2, device=torch.device("cpu")), codistils=True)
    for seconds in (1.0, 0.5):
        side._stall = seconds
        meters.sums.add_batch(*torch.ones(3), images=4, divergence=None)
        meters.sums.add_update(side)
    values = meters.inner()
    assert values["codistill_stall"] == pytest.approx(1.5)
    assert values["loss"] == pytest.approx(1 / 4 / math.log(2))
