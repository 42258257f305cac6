"""The core without a framework: two groups of a linear model in one process."""

import dataclasses
import json
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from harness import eventually
from test_exchange import draft
from torch import nn

from fairseq_codistill.codistillation import (
    Codistillation,
    CodistillationConfig,
    ConfigError,
    Group,
    Teacher,
    Wants,
    meeting,
    membership,
)
from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.exchange import (
    Exchange,
    ExchangeError,
    SnapshotRejected,
    Store,
    prefetcher,
    presence,
    publisher,
)
from fairseq_codistill.objective import Head, Hidden


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    monkeypatch.setattr(prefetcher, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(presence, "HEARTBEAT_SECONDS", 0.3)


@pytest.fixture
def join(tmp_path):
    """Make one group's side, with the model it has at hand as ``.model``."""
    made = []

    def make(
        group,
        seed=None,
        vocabulary="v",
        source_vocabulary=None,
        model=None,
        described=None,
        build=None,
        teachers=(),
        directory=None,
        **settings,
    ):
        settings = {
            "codistill_dir": str(tmp_path),
            "codistill_num_groups": 2,
            "codistill_group": group,
            "codistill_interval": 2,
            "codistill_mode": "lockstep",
            "codistill_snapshot_dtype": "float32",
            "codistill_timeout": 60.0,
        } | settings
        config = CodistillationConfig(**settings)
        config.check()
        torch.manual_seed(group)
        model = model or nn.Linear(3, 5)
        who = Group(
            seed=group if seed is None else seed,
            vocabulary=vocabulary,
            source_vocabulary=source_vocabulary,
            model=described or {"classes": 5},
            build=build or (lambda config, tensors: nn.Linear(3, config["classes"])),
            like=next(model.parameters()),
        )
        side = Codistillation(config, who, model.state_dict, teachers, directory)
        side.model = model
        made.append(side)
        return side

    yield make
    for side in made:
        side.abandon()


def published(tmp_path, group):
    return Exchange(Store(str(tmp_path)), "default").updates(group)[::-1]


def both_at(sides, update, epoch=1):
    """Both groups at one boundary; the first publishes before it waits for the second."""
    sides[0]._membership.at_boundary(update, epoch)
    sides[1].at_boundary(update, epoch)
    sides[0].at_boundary(update, epoch)


def test_the_term_is_the_divergence_from_the_snapshot(join, tmp_path):
    sides = [join(0), join(1)]
    both_at(sides, 0)
    x = torch.randn(4, 3)
    stale = sides[1].model(x).detach()
    with torch.no_grad():
        sides[1].model.weight.add_(1)  # what the peer does since is not seen
    student = sides[0].model(x)
    rows = sides[0].term(student, lambda peer: peer(x))
    assert torch.allclose(rows, (stale - student).square().mean(dim=1))
    rows.sum().backward()
    assert sides[0].model.weight.grad.abs().max() > 0
    assert published(tmp_path, 0) == [0]


def test_a_peer_does_not_compute_in_float16_on_a_cpu(join):
    with pytest.raises(ConfigError, match="--codistill-peer-dtype float16 needs a GPU, on a CPU"):
        join(0, codistill_peer_dtype="float16")


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_whole_numbers_are_no_weights(join, dtype):
    class Whole(nn.Linear):
        def state_dict(self, *args, **kwargs):
            state = super().state_dict(*args, **kwargs)
            return {name: tensor.to(dtype) for name, tensor in state.items()}

    sides = [join(0), join(1, model=Whole(3, 5))]
    with pytest.raises(ExchangeError, match="'weight' is of .*, where its model has torch.float32"):
        both_at(sides, 0)


def test_a_snapshot_of_int8_has_nearly_the_peers_logits(join):
    sides = [join(i, codistill_snapshot_dtype="int8") for i in (0, 1)]
    both_at(sides, 0)
    x = torch.randn(4, 3)
    truth, stale = sides[1].model(x), sides[0].peers[0].module(x)
    assert 0 < (stale - truth).abs().max() < 0.02 * truth.abs().max()


def test_a_peer_keeps_its_layout_in_memory_from_snapshot_to_snapshot(join):
    def convolution() -> nn.Conv2d:
        return nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)

    sides = [
        join(i, model=convolution(), build=lambda config, tensors: convolution()) for i in (0, 1)
    ]
    for update in range(0, 8, 2):
        both_at(sides, update)
        now = sides[0].peers[0].module.weight
        assert now.stride() == sides[1].model.weight.stride() == convolution().weight.stride()
        assert now.equal(sides[1].model.weight)
        with torch.no_grad():
            sides[1].model.weight.add_(1)


def logged(side):
    """What has changed since it was last logged; now it is."""
    changes = side.changes
    side.note_logged()
    return changes


def test_staleness_is_the_own_update_minus_the_snapshots(join):
    sides = [join(0), join(1)]
    both_at(sides, 0)
    assert sides[0].staleness == 0
    sides[0].at_boundary(1, 1)
    assert sides[0].staleness == 1
    assert sides[0].stall > 0
    sides[0].note_logged()
    assert sides[0].stall == 0


def test_alpha_follows_epoch_and_burn_in(join):
    side = join(0, codistill_mode="async", codistill_burn_in=3, codistill_alpha_growth=2.0)
    seen = []
    for update, epoch in [(0, 1), (2, 1), (3, 2), (4, 3)]:
        side.at_boundary(update, epoch)
        seen.append(side.alpha)
    assert seen == [0, 0, 2, 4]


def test_async_publishes_at_multiples_of_t_and_at_the_end(join, tmp_path):
    side = join(0, codistill_mode="async", codistill_keep=0)
    for update in range(5):
        side.at_boundary(update, 1)
        side._membership._publisher.wait()  # or these quick updates would find it busy, and skip
    side.finish(5)
    assert published(tmp_path, 0) == [2, 4, 5], "not 0: nobody wants to learn from random weights"
    alive = json.loads((tmp_path / "group-0" / "alive.json").read_text())
    assert (alive["finished"], alive["running"], alive["update"]) == (True, False, 5)


def test_a_resumed_group_publishes_where_it_resumes(join, tmp_path):
    side = join(0, codistill_mode="async")
    side.at_boundary(7, 2)
    side.finish(7)
    assert published(tmp_path, 0) == [7]


def begin(side, update=0):
    """Make the first update of a process, and have it looked for a former life of its group."""
    side.at_boundary(update, 1)
    for thread in threading.enumerate():
        if thread.name == "codistill-former-life":
            thread.join(60)
            assert not thread.is_alive(), "a former life was looked for in vain for 60 s"
    side._membership._publisher.wait(60)


def lived(join, *updates, **settings):
    """Leave what a group leaves that was ended after it has published at these updates."""
    side = join(0, codistill_mode="async", codistill_keep=0, **settings)
    for update in updates:
        side.at_boundary(update, 1)
        side._membership._publisher.wait(60)
    side.abandon()
    return side


def test_a_group_that_starts_over_removes_the_snapshots_of_its_former_life(join, tmp_path, caplog):
    lived(join, 2, 4, 900)
    other = join(1, codistill_mode="async")
    other.finish(900)
    elsewhere = Exchange(Store(str(tmp_path)), "another")
    elsewhere.publish(draft(update=1000, group=0))
    assert "removed" not in caplog.text
    again = join(0, codistill_mode="async")
    begin(again)
    # Of another group, and of another run, they stay.
    assert published(tmp_path, 0) == [1000]
    assert published(tmp_path, 1) == [900]
    says = "removed 3 snapshot(s) of this group above update 0, where it starts, up to update 900"
    assert caplog.text.count(says) == 1
    assert not list((tmp_path / "group-0").glob("0000000900.*"))
    again.at_boundary(2, 1)
    again._membership._publisher.wait(60)
    assert published(tmp_path, 0) == [2, 1000]
    assert caplog.text.count("removed") == 1
    again.abandon()
    caplog.clear()
    begin(join(0, codistill_mode="async", codistill_run_id="a third"))
    assert "removed" not in caplog.text


@pytest.mark.parametrize("theirs", [{"seed": 7}, {"vocabulary": "another"}])
def test_the_snapshots_of_another_training_stay(join, tmp_path, caplog, theirs):
    """Of the same run id, as of all runs that were given none, in an exchange named by mistake."""
    exchange = Exchange(Store(str(tmp_path)), "default")
    mine = join(0, codistill_mode="async")
    for update in (1000, 2000):
        of_group = {"group": 0, "seed": mine._membership._group.seed, "vocabulary": "v"} | theirs
        assert exchange.publish(dataclasses.replace(draft(update), **of_group))
    begin(mine)
    assert published(tmp_path, 0) == [1000, 2000]
    assert "2 snapshot(s) of group 0 of another training with the same --codistill-run-id" in (
        caplog.text
    )


def test_a_peer_that_has_the_old_snapshot_takes_the_new_ones(join):
    lived(join, 2, 900)
    waiting = join(1, codistill_mode="async", codistill_interval=999)
    refreshed_at(waiting, 4, live=1)
    assert waiting.staleness == 4 - 900
    again = join(0, codistill_mode="async")
    begin(again)
    waiting.at_boundary(5, 1)
    # Until there is a new one, the old one is better than none.
    assert (len(waiting.peers), waiting.staleness) == (1, 5 - 900)
    again.at_boundary(2, 1)

    def new():
        waiting.at_boundary(6, 1)
        return waiting.staleness == 4

    eventually(new, "the peer goes on with a snapshot that is there no more")


@pytest.mark.parametrize(("start", "left"), [(2, [2]), (3, [2, 3]), (4, [2, 4]), (9, [2, 4, 9])])
def test_what_a_checkpoint_covers_stays(join, tmp_path, start, left):
    lived(join, 2, 4)
    begin(join(0, codistill_mode="async", codistill_keep=0), start)
    assert published(tmp_path, 0) == left


def test_a_group_that_has_nothing_to_do_removes_nothing(join, tmp_path):
    lived(join, 2, 4)
    join(0, codistill_mode="async", codistill_keep=0).finish(4)
    assert published(tmp_path, 0) == [2, 4]


def test_a_former_life_is_removed_once_the_exchange_answers(join, tmp_path, monkeypatch, caplog):
    lived(join, 2, 900)
    again = join(0, codistill_mode="async")
    candidates, away = Exchange.candidates, True

    def sometimes(self, group):
        if away:
            raise OSError("no route to host")
        return candidates(self, group)

    monkeypatch.setattr(Exchange, "candidates", sometimes)
    monkeypatch.setattr(publisher, "FIRST_RETRY_SECONDS", 0.02)
    begin(again)
    assert "above update 0 is not known (no route to host)" in caplog.text
    again.at_boundary(2, 1)
    away = False
    eventually(lambda: "removed 2 snapshot(s)" in caplog.text, "the old ones are not removed")
    assert again._membership._publisher.wait(60)
    assert published(tmp_path, 0) == [2]
    assert caplog.text.count("removed 2 snapshot(s)") == 1


def test_training_does_not_wait_for_a_former_life_to_be_removed(join, tmp_path, monkeypatch):
    lived(join, 2, 900)
    again = join(0, codistill_mode="async")
    candidates, answer = Exchange.candidates, threading.Event()

    def hangs(self, group):
        answer.wait(60)
        return candidates(self, group)

    monkeypatch.setattr(Exchange, "candidates", hangs)
    for update in range(5):
        again.at_boundary(update, 1)
    assert again._membership.skipped == 1
    answer.set()
    assert again._membership._publisher.wait(60)
    assert published(tmp_path, 0) == [2]


def test_in_lockstep_a_former_life_stays_and_is_replayed(join, tmp_path, caplog):
    sides = [join(0), join(1)]
    for update in (0, 2):
        both_at(sides, update)
    sides[0].abandon()
    join(0, model=sides[0].model)._membership.at_boundary(0, 1)
    assert published(tmp_path, 0) == [0, 2]
    assert "removed" not in caplog.text


def test_in_lockstep_the_replay_must_match(join, tmp_path, caplog):
    sides = [join(0), join(1)]
    for update in (0, 2, 4):
        both_at(sides, update)
    sides[0].abandon()
    before = [Exchange(Store(str(tmp_path)), "default").manifest(0, u).sha256 for u in (0, 2, 4)]
    again = join(0, model=sides[0].model)
    again.at_boundary(0, 1)
    again.at_boundary(2, 1)
    # Not trained as before.
    again.model.weight.data += 1.0
    again.at_boundary(4, 1)
    with pytest.raises(ConfigError) as refused:
        again.at_boundary(6, 1)
    says = "has published other weights of group 0 for update 4 than this process has, which began"
    assert says in str(refused.value)
    assert f"{tmp_path}/group-0" in str(refused.value)
    now = [Exchange(Store(str(tmp_path)), "default").manifest(0, u).sha256 for u in (0, 2, 4)]
    assert now == before


@pytest.mark.parametrize("start", [0, 2])
def test_on_a_gpu_only_the_beginning_must_match(join, start):
    """There the same computation may give other bits."""
    sides = [join(0), join(1)]
    for update in (0, 2, 4):
        both_at(sides, update)
    sides[0].abandon()
    again = join(0, model=sides[0].model)
    membership = again._membership
    membership._group = dataclasses.replace(membership._group, like=torch.empty(1, device="meta"))
    if start == 2:
        again.model.weight.data += 1.0
        with pytest.raises(ConfigError, match="other weights of group 0 for update 2 than"):
            membership.at_boundary(start, 1)
        return
    membership.at_boundary(0, 1)
    again.model.weight.data += 1.0
    for update in (2, 4, 6):
        membership.at_boundary(update, 1)


@pytest.mark.parametrize(
    ("settings", "start", "said"),
    [
        ({}, 0, True),
        ({"codistill_burn_in": 1}, 0, True),
        ({"codistill_burn_in": 2}, 0, False),
        ({"codistill_interval": 1}, 0, False),
        ({"codistill_alpha": 0.0}, 0, False),
        ({"codistill_mode": "async"}, 0, False),
        ({}, 2, False),
        ({}, 1, True),
    ],
)
def test_lockstep_says_that_it_learns_from_random_peers(join, caplog, settings, start, said):
    caplog.set_level("INFO")
    side = join(0, **settings)
    for update in (start, start + 2):
        side._membership.at_boundary(update, 1)
    says = "--codistill-interval 2 in lockstep: up to update 2 this group learns from peers"
    assert caplog.text.count(says) == int(said)
    assert caplog.text.count("--codistill-burn-in 2 leaves them out") == int(said)


def test_lockstep_refuses_to_go_on_from_other_weights(join):
    sides = [join(0), join(1)]
    both_at(sides, 0)
    sides[0].abandon()
    other = join(0, model=nn.Linear(3, 5))
    with pytest.raises(ConfigError, match="--codistill-run-id default: this run has published ot"):
        other.at_boundary(0, 1)


def test_lockstep_stops_if_its_own_snapshot_could_not_be_published(join, tmp_path, monkeypatch):
    sides = [join(0), join(1)]
    both_at(sides, 0)

    def full(self, name, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Store, "write", full)
    monkeypatch.setattr(publisher, "FIRST_RETRY_SECONDS", 100.0)  # more than there is time
    sides[1]._membership.at_boundary(2, 1)
    sides[1]._membership._publisher.wait(60)
    with pytest.raises(ExchangeError, match=r"could not be published .*\[Errno 28\]"):
        sides[1].at_boundary(3, 1)


def test_an_end_without_the_last_snapshot_is_not_called_finished(join, tmp_path, monkeypatch):
    side = join(0, codistill_mode="async")
    write = Store.write

    def full_for_tensors(self, name, data):
        if name.endswith(".safetensors"):
            raise OSError(28, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Store, "write", full_for_tensors)
    monkeypatch.setattr(membership, "FAILING_SECONDS", 0.2)
    side.finish(5)
    alive = json.loads((tmp_path / "group-0" / "alive.json").read_text())
    assert (alive["finished"], alive["running"]) == (False, False)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seed": 0}, "--seed 0 is that of group 0 too"),
        ({"vocabulary": "w"}, "group 0 has another target vocabulary"),
    ],
)
def test_groups_that_do_not_go_together_are_refused(join, changes, says):
    join(0)
    with pytest.raises(ConfigError, match=says):
        join(1, **changes)


class Clock:
    """The time module on a host whose clock is off."""

    sleep = staticmethod(time.sleep)

    def __init__(self, off):
        self.time = lambda: time.time() + off
        self.monotonic = time.monotonic


@pytest.mark.parametrize("off", [-90, 7200])
def test_groups_that_do_not_go_together_are_refused_whatever_their_clocks_say(
    join, monkeypatch, off
):
    monkeypatch.setattr(presence, "time", Clock(off))
    join(0)
    with pytest.raises(ConfigError, match="--seed 0 is that of group 0 too"):
        join(1, seed=0)


@pytest.mark.parametrize("off", [0, -90, 7200])
def test_a_group_that_was_killed_does_not_count_whatever_its_clock_said(join, tmp_path, off):
    join(0).abandon()
    path = tmp_path / "group-0" / "alive.json"
    alive = json.loads(path.read_text()) | {"running": True, "time": time.time() + off}
    path.write_text(json.dumps(alive))
    join(1, seed=0)


def test_a_group_that_has_finished_keeps_its_seed_and_one_that_died_does_not(join, tmp_path):
    join(0, codistill_mode="async").finish(5)
    with pytest.raises(ConfigError, match="--seed 0 is that of group 0 too"):
        join(1, seed=0, codistill_mode="async")
    path = tmp_path / "group-0" / "alive.json"
    alive = json.loads(path.read_text())
    path.write_text(json.dumps(alive | {"finished": False}))
    join(1, seed=0, codistill_mode="async")


def refreshed_at(side, update, live):
    """Stand at one boundary until so many peers are live."""

    def refreshed():
        side.at_boundary(update, 1)
        return len(side.peers) == live

    eventually(refreshed, f"there were not {live} live peer(s)")


def with_dropout(config=None, tensors=None):
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 5))


@pytest.mark.parametrize("dropout", [False, True])
def test_peers_drop_out_if_told_to(join, dropout):
    sides = [
        join(i, model=with_dropout(), build=with_dropout, codistill_peer_dropout=dropout)
        for i in (0, 1)
    ]
    both_at(sides, 0)
    x, student = torch.randn(4, 3), torch.zeros(4, 5)
    before = torch.random.get_rng_state()
    (peer,) = sides[0].peers
    statistics = peer.module[1].running_mean.clone()
    rows = [sides[0].term(student, lambda peer: peer(x)) for _ in range(2)]
    # The student's own randomness, and the peer, stay as they were.
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(peer.module[1].running_mean, statistics)
    torch.rand(1)
    rows.append(sides[0].term(student, lambda peer: peer(x)))
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[0], rows[2]) is not dropout
    kept = (peer.module[:3](x) != 0).float().mean().item()
    assert (kept < 1) is dropout


def test_a_peer_that_falls_behind_is_left_out_and_taken_back(join, caplog):
    caplog.set_level("INFO")
    waiting = join(0, codistill_mode="async", codistill_max_staleness=6, codistill_interval=99)
    peer = join(1, codistill_mode="async")
    peer.at_boundary(2, 1)
    # It may be seen before the publisher is done with it, which would skip the next one.
    assert peer._membership._publisher.wait(60)
    refreshed_at(waiting, 4, live=1)
    waiting.at_boundary(8, 1)
    assert (len(waiting.peers), waiting.staleness) == (1, 6)
    waiting.at_boundary(9, 1)
    assert (len(waiting.peers), waiting.staleness) == (0, None)
    logits = waiting.model(torch.randn(4, 3))
    assert waiting.term(logits, lambda module: logits) is None
    waiting.at_boundary(10, 1)
    peer.at_boundary(4, 1)
    refreshed_at(waiting, 10, live=1)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("peer 1")]
    assert [line.split(",")[0] for line in told] == [
        "peer 1 first seen: update 2",
        "peer 1 stale: its snapshot of update 2 is 7 updates old",
        "peer 1 refreshed: update 4",
        "peer 1 back: update 4",
    ]
    counted = {"first_seen": 1, "refreshed": 1, "stale": 1, "back": 1, "rejected": 0, "skipped": 0}
    # They stay until they are logged: the update may come to nothing, and its line with it.
    assert waiting.changes == counted
    assert logged(waiting) == counted
    assert set(waiting.changes.values()) == {0}


def test_rejected_and_skipped_snapshots_are_counted(join, tmp_path):
    waiting = join(0, codistill_mode="async")
    peer = join(1, codistill_mode="async")
    peer.at_boundary(2, 1)
    peer.finish(2)
    os.truncate(tmp_path / "group-1" / "0000000002.safetensors", 10)

    def rejected():
        waiting.at_boundary(1, 1)
        return logged(waiting)["rejected"] == 1

    eventually(rejected, "the snapshot was not rejected")
    publishing = waiting._membership._publisher
    publishing.wait(60)  # for the snapshot of where it began
    shutil.rmtree(tmp_path / "group-0")
    (tmp_path / "group-0").write_text("in the way of the group's folder")
    waiting.at_boundary(2, 1)
    eventually(lambda: publishing.failure is not None, "publishing did not fail")
    waiting.at_boundary(4, 1)
    assert waiting.changes["skipped"] == 1


def test_a_restart_does_not_need_the_exchange(join, tmp_path, monkeypatch, caplog):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("no folder")
    settings = {"codistill_mode": "async", "codistill_dir": str(in_the_way / "exchange")}
    settings["directory"] = tmp_path / "group-0"
    for restarts in ("0", "1"):
        # However often it was started: the exchange has never been met.
        monkeypatch.setenv("CODISTILL_RESTARTS", restarts)
        with pytest.raises(ExchangeError, match="cannot be used"):
            join(0, **settings)
    in_the_way.unlink()
    join(0, **settings).abandon()
    shutil.rmtree(in_the_way)
    in_the_way.write_text("no directory")
    side = join(0, **settings)
    assert "training goes on without it until it can be" in caplog.text
    side.at_boundary(2, 1)
    assert side.peers == []
    with pytest.raises(ExchangeError, match="cannot be used"):
        join(1, **settings | {"codistill_mode": "lockstep"})


def test_what_peers_have_tied_stays_one_tensor(join):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight

    sides = [join(i, model=Tied(), build=lambda config, tensors: Tied()) for i in (0, 1)]
    both_at(sides, 0)
    module = sides[0].peers[0].module
    assert torch.equal(module.second.weight, sides[1].model.first.weight)
    assert module.second.weight.data_ptr() == module.first.weight.data_ptr()
    assert not module.second.weight.requires_grad


class TiedOutOfOrder(nn.Module):
    """Its tied weight is registered under a name that is not the first in sorted order."""

    def __init__(self, value):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight
        with torch.no_grad():
            self.encoder.weight.fill_(value)


@pytest.mark.parametrize("sound", [True, False], ids=["sound", "rejected"])
def test_preparing_the_next_snapshot_leaves_the_peer_alone(join, sound):
    published = TiedOutOfOrder(1.0)
    dtype = torch.float16 if not sound else torch.float32

    def build(config, tensors):
        return TiedOutOfOrder(0.0).to(dtype)

    sides = [join(0, model=build({}, {}), build=build), join(1, model=published, build=build)]
    both_at(sides, 0)
    peer = sides[0].peers[0]
    for update, value in ((2, 2.0), (4, 3.0), (6, 4.0)):
        in_use = peer.module.encoder.weight.clone()
        with torch.no_grad():
            published.encoder.weight.fill_(value if sound else 1e30)
        sides[1]._membership.at_boundary(update, 1)
        sides[1]._membership._publisher.wait()
        if not sound:
            with pytest.raises(SnapshotRejected, match="too large"):
                sides[0]._reader.read(1, update)
            assert torch.equal(peer.module.encoder.weight, in_use)
            return
        snapshot = sides[0]._reader.read(1, update)
        assert torch.equal(peer.module.encoder.weight, in_use)
        assert peer.module.decoder.weight.data_ptr() == peer.module.encoder.weight.data_ptr()
        peer.load(snapshot)
        assert torch.equal(peer.module.decoder.weight, torch.full((3, 3), value))


class Hanging(Store):
    """A folder that takes no tensors while ``closed``: it refuses them, or keeps the caller."""

    closed = None

    def write(self, name, data):
        if name.endswith(".safetensors") and self.closed == "full":
            raise OSError(28, "No space left on device")
        while name.endswith(".safetensors") and self.closed == "hangs":
            time.sleep(0.01)
        super().write(name, data)


@pytest.fixture
def hanging(monkeypatch):
    monkeypatch.setattr(Hanging, "closed", None)
    monkeypatch.setattr(meeting, "Store", Hanging)
    return Hanging


def test_the_end_of_lockstep_waits_for_what_peers_wait_for(join, tmp_path, hanging, monkeypatch):
    monkeypatch.setattr(publisher, "FIRST_RETRY_SECONDS", 0.05)
    sides = [join(0), join(1)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda side: side.at_boundary(0, 1), sides))
        side = sides[1]._membership
        hanging.closed = "full"
        side.at_boundary(2, 1)
        ending = pool.submit(side.finish, 3, 1)
        time.sleep(0.3)
        assert not ending.done()
        hanging.closed = None
        ending.result()
    assert published(tmp_path, 1) == [0, 2, 3]


@pytest.mark.parametrize("how", ["full", "hangs"])
@pytest.mark.parametrize("when", ["next", "end"])
def test_lockstep_says_that_its_snapshot_is_not_published(join, hanging, how, when):
    sides = [join(0), join(1)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda side: side.at_boundary(0, 1), sides))
    side = sides[1]._membership
    # Only now: a busy machine may take longer for the start.
    side._config.codistill_timeout = side._publisher._patience = 0.5
    hanging.closed = how
    side.at_boundary(2, 1)
    act = (lambda: side.at_boundary(4, 1)) if when == "next" else (lambda: side.finish(3, 1))
    with pytest.raises(ExchangeError, match="the snapshot of update 2"):
        act()
    hanging.closed = None


def test_the_start_of_lockstep_does_not_wait_for_ever(join, hanging):
    hanging.closed = "hangs"
    with pytest.raises(ExchangeError, match="--codistill-timeout 0.3: the snapshot of update 0"):
        join(0, codistill_timeout=0.3).at_boundary(0, 1)
    hanging.closed = None


def test_what_the_students_dtype_cannot_hold_is_rejected(join):
    torch.manual_seed(0)
    large = nn.Linear(3, 5)
    with torch.no_grad():
        large.weight[2, 1] = 1e38
    sides = [join(0, model=nn.Linear(3, 5).half()), join(1, model=large)]
    # A bad snapshot is waited for as a missing one is; publishing may take longer.
    sides[0]._source._timeout = 0.3
    with pytest.raises(ExchangeError, match=r"'weight' holds numbers too large for .*float16"):
        both_at(sides, 0)
    assert sides[0]._reader.rejections == 1


def test_a_group_learns_from_those_it_listens_to_alone(tmp_path, join, caplog):
    """A chain: 0 trains alone, 1 listens to 0, and 2 to 0 and 1."""
    chain = tmp_path / "chain.txt"
    chain.write_text("0:\n1: 0\n2: 0 1\n")
    settings = {"codistill_num_groups": 3, "codistill_topology": str(chain)}
    caplog.set_level("INFO")
    sides = [join(i, **settings) for i in range(3)]
    # In this order nobody waits for what is not there yet.
    for side in sides:
        side.at_boundary(0, 1)
    assert [[peer.group for peer in side.peers] for side in sides] == [[], [0], [0, 1]]
    x = torch.ones(2, 3)
    logits = [side.model(x) for side in sides]
    terms = [side.term(z, lambda peer: peer(x)) for side, z in zip(sides, logits, strict=True)]
    mse = [[(a - b).square().mean(dim=-1) for a in logits] for b in logits]
    assert terms[0] is None
    torch.testing.assert_close(terms[1], mse[1][0])
    torch.testing.assert_close(terms[2], (mse[2][0] + mse[2][1]) / 2)
    said = [line for line in caplog.messages if "topology" in line]
    assert said == [f"topology {chain}: listens to {who}" for who in ("nobody", "0", "0, 1")]


def test_a_group_of_another_vocabulary_is_refused_by_those_alone_who_listen(join, tmp_path):
    chain = tmp_path / "chain.txt"
    chain.write_text("0:\n1: 0\n2: 1\n")
    settings = {"codistill_num_groups": 3, "codistill_topology": str(chain)}
    join(1, vocabulary="other", **settings)
    join(0, **settings)
    with pytest.raises(ConfigError, match="group 1 has another target vocabulary"):
        join(2, **settings)


@pytest.mark.parametrize("theirs", ["other", "own", None])
def test_lockstep_with_another_source_vocabulary_is_refused(join, theirs):
    join(1, source_vocabulary=theirs)
    if theirs == "other":
        with pytest.raises(ConfigError, match="group 1 has another source vocabulary and cannot"):
            join(0, source_vocabulary="own")
    else:
        join(0, source_vocabulary="own")


def test_async_leaves_a_peer_with_another_source_vocabulary_out(join, tmp_path, caplog):
    sides = [
        join(i, source_vocabulary=f"words {i}", codistill_mode="async", codistill_interval=1)
        for i in (0, 1)
    ]
    for update in (0, 1):
        sides[1].at_boundary(update, 1)
    said = "peer 1 is left out: group 1 was trained with another source vocabulary (words 1..."
    deadline = time.monotonic() + 60
    while said not in caplog.text:
        sides[0].at_boundary(1, 1)
        assert time.monotonic() < deadline, "nothing is said of it"
        time.sleep(0.01)
    assert sides[0].peers == []
    manifest = json.loads((tmp_path / "group-1" / "0000000001.json").read_text())
    assert manifest["source_vocabulary"] == "words 1"


class Counting(nn.Linear):
    """Has a buffer of numbers that no snapshot holds."""

    def __init__(self):
        super().__init__(3, 5)
        self.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"described": {"classes": 5, "note": "x" * 5000}}, "its manifest's field model is"),
        ({"model": Counting()}, "its tensor 'phase' has dtype C64"),
    ],
    ids=["configuration", "tensor"],
)
@pytest.mark.parametrize("mode", ["async", "lockstep"])
def test_a_model_that_could_never_be_published_does_not_train(join, mode, settings, reason):
    with pytest.raises(ConfigError, match=f"no peer would take the snapshots of group 1: {reason}"):
        join(1, codistill_mode=mode, **settings)


def diverge(side):
    with torch.no_grad():
        side.model.weight[2, 1] = float("nan")


def test_async_publishes_nothing_that_is_not_finite_and_counts_it(join, tmp_path, caplog):
    side = join(1, codistill_mode="async", codistill_interval=1, codistill_keep=1)
    publisher = side._membership._publisher
    side.at_boundary(0, 1)
    side.at_boundary(1, 1)
    assert publisher.wait(timeout=60)
    diverge(side)
    for update in (2, 3):
        side.at_boundary(update, 1)
        assert publisher.wait(timeout=60)
    assert published(tmp_path, 1) == [1]
    # Counted from the next boundary on.
    side.at_boundary(3, 1)
    assert side.changes["skipped"] == 2
    side.finish(4)
    assert published(tmp_path, 1) == [1]
    assert [line for line in caplog.messages if "no peer would take it" in line] == [
        f"snapshot of update {update} skipped, {n} so far: no peer would take it (its tensor "
        "'weight' holds numbers that are not finite in float32); the last sound one stays"
        for n, update in enumerate((2, 3, 4), 1)
    ]
    assert "the exchange did not take the last snapshot, of update 4" in caplog.text
    alive = json.loads((tmp_path / "group-1" / "alive.json").read_text())
    assert (alive["running"], alive["finished"], alive["failure"]) == (False, False, None)


@pytest.mark.parametrize("when", ["waiting", "training", "ending"])
def test_lockstep_ends_for_good_with_what_cannot_be_published(join, tmp_path, when):
    """While it waits for its peers, in the middle of an interval, and when training fails."""
    sides = [join(0), join(1)]
    both_at(sides, 0)
    diverge(sides[1])
    ill = sides[1]._membership
    ill.at_boundary(2, 1)
    assert ill._publisher.wait(timeout=60)
    reason = (
        "the snapshot of group 1 at update 2 cannot be published (its tensor 'weight' holds "
        "numbers that are not finite in float32)"
    )
    if when != "ending":
        with pytest.raises(ExchangeError) as raised:
            # Group 0 has not published at 2 either, and waits for this group.
            sides[1]._source.take(2) if when == "waiting" else sides[1].at_boundary(3, 1)
        assert str(raised.value).startswith(f"{reason}; in lockstep the other groups wait for it")
    sides[1].abandon()
    alive = json.loads((tmp_path / "group-1" / "alive.json").read_text())
    assert (alive["running"], alive["failure"]) == (False, reason)
    begun = time.monotonic()
    with pytest.raises(ExchangeError) as raised:
        sides[0].at_boundary(2, 1)
    assert time.monotonic() - begun < 30
    reached = 3 if when == "training" else 2
    assert str(raised.value) == f"peer 1 stops for good at update {reached}: {reason}"
    # Whoever listens to group 0 is told in its turn.
    sides[0].abandon()
    alive = json.loads((tmp_path / "group-0" / "alive.json").read_text())
    assert alive["failure"] == str(raised.value)


class Constant(nn.Module):
    """Gives the same logits for whatever it is shown."""

    def __init__(self, value):
        super().__init__()
        self.logits = nn.Parameter(torch.full((5,), float(value)))

    def forward(self, x):
        return self.logits.expand(len(x), 5)


def teacher(value, dtype="student"):
    return Teacher("t.pt", Constant(value), torch.zeros(1), dtype=dtype)


def test_one_group_with_teachers_needs_no_exchange(join, tmp_path):
    settings = {"codistill_num_groups": 1, "codistill_dir": None, "codistill_teachers": "a:b"}
    side = join(0, teachers=[teacher(1), teacher(3)], **settings)
    side.at_boundary(0, 1)
    assert len(side.peers) == 2
    student = torch.zeros(4, 5, requires_grad=True)
    term = side.term(student, lambda module: module(torch.ones(4, 3)))
    torch.testing.assert_close(term, torch.full((4,), (1.0 + 9.0) / 2))
    assert side.staleness is None
    assert set(side.changes.values()) == {0}
    side.finish(1)
    assert list(tmp_path.iterdir()) == []


def test_a_teacher_counts_as_one_more_peer(join):
    sides = [join(0, teachers=[teacher(2)], codistill_teachers="t.pt"), join(1)]
    both_at(sides, 0)
    sides[0].at_boundary(0, 1)
    assert [getattr(one, "group", "teacher") for one in sides[0].peers] == [1, "teacher"]
    sides[0].at_boundary(1, 1)
    # The peer's snapshot is of update 0; a teacher has no age.
    assert sides[0].staleness == 1
    x = torch.ones(2, 3)
    student = sides[0].model(x)
    term = sides[0].term(student, lambda module: module(x))
    peer = (student - sides[1].model(x)).square().mean(dim=-1)
    torch.testing.assert_close(term, (peer + (student - 2).square().mean(dim=-1)) / 2)


def test_a_burn_in_asks_no_teacher(join):
    settings = {"codistill_num_groups": 1, "codistill_dir": None, "codistill_burn_in": 2}
    side = join(0, teachers=[teacher(1)], codistill_teachers="a", **settings)
    side.at_boundary(1, 1)
    assert side.peers == []
    side.at_boundary(2, 1)
    assert len(side.peers) == 1


def test_a_teacher_is_constant_and_of_the_students_kind():
    module = Constant(1).train()
    made = Teacher("t.pt", module, torch.zeros(1, dtype=torch.float64), dtype="student")
    assert made.module.logits.dtype == torch.float64
    assert not made.module.training
    assert not made.module.logits.requires_grad
    assert teacher(1, dtype="bfloat16").module.logits.dtype == torch.bfloat16


@pytest.mark.parametrize(("value", "dtype"), [(float("nan"), "student"), (1e6, "float16")])
def test_a_teacher_of_no_finite_numbers_is_refused(value, dtype):
    with pytest.raises(ConfigError, match=r"--codistill-teachers t.pt: its tensor 'logits'"):
        teacher(value, dtype)


def test_lockstep_says_that_a_snapshot_is_gone_instead_of_waiting_for_it(
    tmp_path, join, monkeypatch
):
    """Who listens to nobody may be far ahead of who listens to it."""
    chain = tmp_path / "chain.txt"
    chain.write_text("0:\n1: 0\n")
    settings = {"codistill_topology": str(chain), "codistill_keep": 2, "codistill_interval": 1}
    late = join(1, **settings)
    ahead = join(0, **settings)
    for update in range(6):
        ahead.at_boundary(update, 1)
    eventually(lambda: 0 not in published(tmp_path, 0), "the first snapshot was not deleted")
    with pytest.raises(ExchangeError, match="peer 0 is at update 5 and keeps its snapshot of upd"):
        late.at_boundary(0, 1)


def test_a_peer_may_be_so_many_times_larger_than_the_student_and_no_more(join, monkeypatch):
    """A snapshot that is too large would take the memory that training needs."""
    monkeypatch.setattr(meeting, "SMALL_BYTES", 0)
    # The student has 20 numbers of 4 bytes.  A file begins with the tensors' names and shapes.
    for classes, fits in ((60, True), (80, False)):
        run = {"codistill_run_id": f"{classes} classes"}
        build = {"build": lambda config, tensors: nn.Linear(3, len(tensors["bias"]))}
        sides = [join(0, **build, **run), join(1, model=nn.Linear(3, classes), **build, **run)]
        if fits:
            both_at(sides, 0)
            assert sides[0].peers[0].module.bias.shape == (classes,)
            for side in sides:
                side.abandon()
            continue
        sides[0]._source._timeout = 0.3
        with pytest.raises(ExchangeError, match="and this group reads no more than 1280"):
            both_at(sides, 0)


def test_small_peers_are_read_whatever_the_students_size(join):
    build = {"build": lambda config, tensors: nn.Linear(3, len(tensors["bias"]))}
    sides = [join(0, **build), join(1, model=nn.Linear(3, 5000), **build)]
    both_at(sides, 0)
    assert sides[0].peers[0].module.bias.shape == (5000,)


@pytest.mark.parametrize("divergence", ["logit-mse", "centered-logit-mse"])
def test_the_factored_form_follows_student_and_peer(join, divergence):
    settings = {"codistill_head": "factored", "codistill_divergence": divergence}
    sides = [join(i, **settings) for i in (0, 1)]
    x = torch.randn(4, 3)

    def output(module):
        return Hidden(x, Head(module.weight, module.bias))

    assert sides[0].wants(4, 3, 5) is Wants.HIDDEN
    for update in range(5):
        both_at(sides, update)
        own, peer = (m(x).double() for m in (sides[0].model, sides[0].peers[0].module))
        difference = own - peer
        if divergence == "centered-logit-mse":
            difference = difference - difference.mean(dim=1, keepdim=True)
        rows = sides[0].term(output(sides[0].model), output)
        torch.testing.assert_close(
            rows.double(), difference.square().mean(dim=1), rtol=1e-4, atol=0
        )
        for side in sides:
            with torch.no_grad():
                side.model.weight.add_(torch.randn(5, 3))
                side.model.bias.add_(torch.randn(5))


def test_every_kth_update_asks_the_peers_and_counts_k_times(join):
    settings = {"codistill_num_groups": 1, "codistill_dir": None, "codistill_teachers": "a"}
    side = join(0, teachers=[teacher(1)], codistill_every=3, codistill_alpha=0.5, **settings)
    asked, weights, terms = [], [], []

    def forward(module):
        asked.append(side.update)
        return module(torch.ones(4, 3))

    for update in range(4):
        side.at_boundary(update, 1)
        weights.append(side.weight)
        terms.append(side.term(torch.zeros(4, 5), forward) is not None)
    assert weights == [1.5, 0, 0, 1.5]
    assert terms == [True, False, False, True]
    assert asked == [0, 3]


def test_a_peer_is_asked_without_a_graph(join):
    sides = [join(0), join(1)]
    both_at(sides, 0)
    graphs = []

    def forward(module):
        graphs.append(torch.is_grad_enabled())
        return module(torch.ones(2, 3))

    assert sides[0].term(sides[0].model(torch.ones(2, 3)), forward).requires_grad
    assert graphs == [False]


def snapshot_of(exchange, module, update, **config):
    """A snapshot of group 1 as it is read."""
    exchange.publish(draft(update, tensors=module.state_dict(), model=config))
    return exchange.fetch(exchange.manifest(1, update))


def test_a_peer_becomes_what_its_snapshot_says(tmp_path):
    """Its group may have been started again with another model."""
    exchange = Exchange(Store(str(tmp_path)), "run")
    made = {
        "linear": lambda: nn.Linear(3, 5),
        "relu": lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 5)),
        # The same tensors as those of the one before.
        "tanh": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 5)),
    }
    peer = Peer(1, lambda config, tensors: made[config["kind"]](), torch.zeros(1))
    x = torch.randn(4, 3)
    for update, kind in enumerate(["linear", "relu", "tanh", "tanh", "linear"]):
        published = made[kind]()
        torch.manual_seed(7)
        drawn = torch.random.get_rng_state()
        peer.load(peer.prepare(snapshot_of(exchange, published, update, kind=kind)))
        assert torch.equal(torch.random.get_rng_state(), drawn)
        assert peer.update == update
        assert torch.equal(peer.module(x), published(x))
        assert not peer.module.training
        assert not any(p.requires_grad for p in peer.module.parameters())


def test_a_snapshot_whose_model_has_other_tensors_leaves_the_peer_what_it_was(tmp_path):
    exchange = Exchange(Store(str(tmp_path)), "run")
    peer = Peer(1, lambda config, tensors: nn.Linear(3, 5), torch.zeros(1))
    first = nn.Linear(3, 5)
    peer.load(peer.prepare(snapshot_of(exchange, first, 10)))
    x = torch.randn(4, 3)
    for update, other in ((20, nn.Linear(3, 6)), (30, nn.Linear(3, 5, bias=False))):
        snapshot = peer.prepare(snapshot_of(exchange, other, update))
        with pytest.raises(SnapshotRejected, match="names and shapes are not those of its model"):
            peer.load(snapshot)
        assert peer.update == 10
        assert torch.equal(peer.module(x), first(x))
