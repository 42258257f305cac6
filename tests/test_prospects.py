"""Lockstep: a final bad state of a peer stops the others soon, with a sentence that names it."""

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import start_launch
from harness import CODISTILL, LOCKSTEP, SEED_STEP, eventually, finish, start
from test_exchange import VOCABULARY, draft, not_finite, paths, state, truncate
from test_sources import Meeting, Worker

from fairseq_codistill.codistillation import membership, prospects
from fairseq_codistill.codistillation.prospects import Led, NeverComes
from fairseq_codistill.codistillation.sources import LockstepSource
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import (
    Alive,
    Exchange,
    ExchangeError,
    Presence,
    Reader,
    SnapshotRejected,
    Store,
    presence,
    read_alive,
    reader,
)

# In place of the seconds that are waited for real.
GONE = 0.4


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(prospects, "GONE_SECONDS", GONE)
    monkeypatch.setattr(prospects, "UNSEEN_SECONDS", GONE)
    monkeypatch.setattr(presence, "HEARTBEAT_SECONDS", 0.05)


@pytest.fixture
def exchange(tmp_path):
    return Exchange(Store(str(tmp_path)), "run")


def lockstep(exchange, timeout=60.0, own=None, workers=None, interval=10, start=None):
    looks = Reader(exchange, seed=1, vocabulary=VOCABULARY)
    workers = workers or Workers(timeout=10)
    return LockstepSource(looks, workers, [1], interval, timeout, own, start)


@pytest.fixture
def peer(exchange):
    """Makes the heartbeat of group 1, at some update."""
    made = []

    def begin(update=10, **says):
        alive = Alive("run", "its nonce", **says)
        one = Presence(exchange.store, 1, alive, lambda: {"update": one.at})
        one.at = update
        one.claim()
        made.append(one)
        return one

    yield begin
    for one in made:
        one.release(finished=False)


@pytest.fixture
def stops(exchange):
    """What a group in lockstep says when it stops, well within the time that it would wait."""

    def take(source, update=10):
        begun = time.monotonic()
        with pytest.raises(ExchangeError) as raised:
            source.take(update)
        assert time.monotonic() - begun < 30, "it has waited for what could not come"
        return str(raised.value)

    return take


def test_a_peer_that_is_gone_is_waited_for_only_a_moment(exchange, peer, stops):
    source, gone = lockstep(exchange), peer(7)
    gone.release(finished=False)
    said = stops(source)
    assert re.match(r"peer 1 has said at update 7 that it is gone, and has not come back", said)
    assert "its snapshot of update 10 will not come" in said


def test_a_peer_that_somebody_starts_again_is_waited_for(exchange, peer):
    # As long as --codistill-timeout says, and no constant: a scheduler may take its time.
    source, gone = lockstep(exchange, timeout=4 * GONE), peer(7, returns=True)
    gone.release(finished=False)
    with pytest.raises(ExchangeError, match=r"--codistill-timeout .*: no snapshot of peer 1"):
        source.take(10)


@pytest.mark.parametrize("says", [{"failure": "it has diverged"}, {}])
def test_a_peer_that_ended_for_good_before_this_process_began(exchange, peer, stops, says):
    """Killed while it loaded, and started again: the peer's end is of the same start of the run."""
    ended = peer(7, start="one", **says)
    ended.release(finished=False)
    said = stops(lockstep(exchange, start="one"))
    assert said.startswith("peer 1 stops for good" if says else "peer 1 has said at update 7 that")


def test_a_killed_peer_with_a_damaged_snapshot_may_come_back(exchange, peer, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "PAUSES", (0.0,))
    exchange.publish(draft(10))
    truncate(*paths(tmp_path))
    killed = peer(10)
    killed._stop.set()  # what SIGKILL leaves: it says that it runs
    killed._thread.join()
    data = (tmp_path / "group-1/alive.json").read_text()
    (tmp_path / "group-1/alive.json").write_text(
        data.replace('"running": false', '"running": true')
    )
    with pytest.raises(ExchangeError, match=r"--codistill-timeout .*: no snapshot of peer 1"):
        lockstep(exchange, timeout=4 * GONE).take(10)


def test_a_worker_does_not_believe_what_its_leader_said_in_a_former_start(exchange, peer):
    ended = Presence(exchange.store, 0, Alive("run", "n", start="old"), dict)
    ended.claim()
    ended.note_failure("it had diverged")
    ended.release(finished=False)
    Led(exchange, 0, "new").check_published()
    with pytest.raises(NeverComes, match="it had diverged"):
        Led(exchange, 0, "old").check_published()


@pytest.mark.parametrize("start", ["another", None])
def test_what_a_peer_said_in_a_former_start_counts_for_nothing(exchange, peer, start):
    ended = peer(7, start=start, failure="it had diverged")
    ended.release(finished=False)
    source = lockstep(exchange, timeout=2 * GONE, start="one")
    with pytest.raises(ExchangeError, match=r"--codistill-timeout .*: no snapshot of peer 1"):
        source.take(10)


def test_what_could_not_be_read_at_first_is_of_a_former_start(exchange, peer, monkeypatch):
    peer(10).release(finished=True)
    read = Store.read

    def fails(self, name, limit):
        raise OSError("slow down")

    monkeypatch.setattr(Store, "read", fails)
    source = lockstep(exchange, timeout=2 * GONE)
    monkeypatch.setattr(Store, "read", read)
    with pytest.raises(ExchangeError, match=r"--codistill-timeout .*: no snapshot of peer 1"):
        source.take(20)


def test_a_peer_that_comes_back_in_time_is_used(exchange, peer, monkeypatch):
    monkeypatch.setattr(prospects, "GONE_SECONDS", 20.0)
    source, gone = lockstep(exchange), peer(7)
    gone.release(finished=False)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(source.take, 10)
        eventually(lambda: 1 in source._prospects._against, "it is not noticed that it is gone")
        peer(7)
        eventually(lambda: 1 not in source._prospects._against, "its return is not noticed")
        exchange.publish(draft(10))
        assert [snapshot.manifest.update for snapshot in taking.result(timeout=60)] == [10]


def test_a_peer_that_ends_for_good_is_not_waited_for(exchange, peer, stops, monkeypatch):
    """Even while it is still running: its other workers may keep it up."""
    monkeypatch.setattr(prospects, "GONE_SECONDS", 3600.0)
    source, ill = lockstep(exchange), peer(10, returns=True)
    ill.note_failure("the snapshot of group 1 at update 10 cannot be published (not finite)")
    said = stops(source)
    assert said == (
        "peer 1 stops for good at update 10: the snapshot of group 1 at update 10 cannot be "
        "published (not finite)"
    )
    alive = read_alive(exchange.store, 1)
    assert (alive.running, alive.returns) == (True, False)


def test_what_a_peer_gives_as_its_reason_is_one_line(exchange, peer, tmp_path, stops):
    source = lockstep(exchange)
    silent = peer(10)
    silent._stop.set()
    silent._thread.join()
    file = tmp_path / "group-1" / "alive.json"
    forged = "x\n2026-01-01 | INFO | fairseq | done training\x1b[2J" + "y" * 3000
    fields = json.loads(file.read_text()) | {"failure": forged, "time": 1.0}
    file.write_text(json.dumps(fields))
    said = stops(source)
    assert said.isprintable()
    assert len(said) < 600


def test_a_former_life_that_ended_for_good_says_nothing_of_this_one(exchange, peer, stops):
    """All groups are started again: the others may come later than this one."""
    ill = peer(10)
    ill.note_failure("it was ill")
    eventually(lambda: read_alive(exchange.store, 1).failure == "it was ill", "not said")
    # As long as it gives signs of life it is no former one.
    assert stops(lockstep(exchange)).startswith("peer 1 stops for good at update 10: it was ill")
    ill.release(finished=False)
    with pytest.raises(ExchangeError, match=r"--codistill-timeout .*: no snapshot of peer 1"):
        lockstep(exchange, timeout=3 * GONE).take(10)


def test_a_snapshot_that_is_not_finite_stops_lockstep_and_is_said_once(
    exchange, peer, stops, tmp_path, caplog
):
    exchange.publish(draft(10))
    not_finite(*paths(tmp_path))
    read = []
    fetch, exchange.fetch = exchange.fetch, lambda m: read.append(m.update) or fetch(m)
    source = lockstep(exchange)
    peer(10)
    said = stops(source)
    assert said.startswith(
        "the snapshot of peer 1 at update 10 can never be used: its tensor 'bias' holds numbers "
        "that are not finite in float32; see the log of group 1"
    )
    assert read == [10]
    assert [line for line in caplog.messages if "rejected" in line] == [
        "peer 1: snapshot of update 10 rejected: its tensor 'bias' holds numbers that are not "
        "finite in float32"
    ]


def test_a_snapshot_that_stays_in_part_stops_lockstep_after_a_few_looks(
    exchange, peer, stops, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(reader, "PAUSES", (0.0, 0.05, 0.1))
    exchange.publish(draft(10))
    truncate(*paths(tmp_path))
    source = lockstep(exchange)
    peer(12)
    assert "the snapshot of peer 1 at update 10 can never be used: its tensor file has" in (
        stops(source)
    )
    assert caplog.text.count("rejected") == 1


def test_a_rejected_snapshot_of_a_peer_that_is_not_there_yet_is_a_missing_one(exchange, tmp_path):
    """A group that comes back publishes anew what is damaged."""
    exchange.publish(draft(10))
    not_finite(*paths(tmp_path))
    source = lockstep(exchange)
    with ThreadPoolExecutor(1) as pool:
        taking = pool.submit(source.take, 10)
        time.sleep(3 * GONE)
        exchange.publish(draft(10))
        (snapshot,) = taking.result(timeout=60)
    assert snapshot.tensors["bias"].equal(state(10)["bias"])


class Own:
    """A leader's side, whose snapshot turns out to be unsound; says so by its heartbeat."""

    def __init__(self, presence):
        self.presence = presence

    def check_published(self):
        raise NeverComes(self.presence.note_failure("this group's weights are not finite"))

    def note_failure(self, failure):
        self.presence.note_failure(failure)


def test_no_worker_waits_for_peers_when_its_own_leader_cannot_publish(exchange):
    """The peers wait for this group, and so never come either."""
    leader = Presence(exchange.store, 0, Alive("run", "own"), lambda: {})
    leader.claim()
    meeting = Meeting(2)
    sides = [Own(leader), Led(exchange, 0)]
    sources = [
        lockstep(exchange, timeout=600, own=own, workers=Worker(rank, meeting))
        for rank, own in enumerate(sides)
    ]
    said = {}

    def take(rank):
        try:
            sources[rank].take(10)
        except ExchangeError as error:
            said[rank] = str(error)

    threads = [threading.Thread(target=take, args=(rank,), daemon=True) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    leader.release(finished=False)
    assert said == {
        0: "this group's weights are not finite",
        1: "this group ends for good: this group's weights are not finite",
    }


def test_what_does_not_fit_the_model_is_final_too(exchange):
    noted = []
    own = Own(None)
    own.check_published, own.note_failure = lambda: None, noted.append
    exchange.publish(draft(10))
    source = lockstep(exchange, own=own)
    (snapshot,) = source.take(10)
    with pytest.raises(ExchangeError, match="peer 1 at update 10 cannot be used: it is odd"):
        source.refuse(snapshot, SnapshotRejected("it is odd"))
    assert noted == ["the snapshot of peer 1 at update 10 cannot be used: it is odd"]


@pytest.mark.parametrize(
    ("environ", "returns"),
    [
        ({}, False),
        ({"CODISTILL_NONCE": "n"}, False),  # a line of launch --print, by hand
        ({"CODISTILL_NONCE": "n", "CODISTILL_RESTARTS_LEFT": "1"}, True),
        ({"CODISTILL_NONCE": "n", "CODISTILL_RESTARTS_LEFT": "0"}, False),
    ],
)
def test_a_group_knows_whether_it_will_be_started_again(environ, returns):
    assert membership._is_started_again(environ) is returns


# Real groups.

# After one update its weights are finite, and too large for float16.
DIVERGES = "--lr 1e12 --codistill-snapshot-dtype float16"


def test_launch_stops_both_groups_when_one_has_diverged(corpus, tmp_path):
    """Neither is started again, as it would end in the same way; the default time is 1,800 s."""
    flags = [*LOCKSTEP, "--codistill-interval", "1", "--disable-validation", "--no-save"]
    flags += ["--codistill-timeout", "1800", "--dropout", "0"]
    process = start_launch(
        corpus, tmp_path, *flags, options=["--group", f"1: {DIVERGES}", "--max-restarts", "3"]
    )
    assert process.wait(timeout=300) == 1
    logs = [tmp_path / f"group-{i}" / "log.txt" for i in (0, 1)]
    healthy, ill = [log.read_text() for log in logs]
    said = (
        "the snapshot of group 1 at update 1 cannot be published (its tensor '{}' holds numbers "
        "that are not finite in float16)"
    )
    name = re.search(r"its tensor '([^']+)' holds numbers that are not finite", ill)[1]
    said = said.format(name)
    assert f"this group ends for good: {said}" in ill
    assert f"codistill: error: {said}; in lockstep the other groups wait for it" in ill
    assert f"codistill: error: peer 1 stops for good at update 1: {said}" in healthy
    assert abs(logs[0].stat().st_mtime - logs[1].stat().st_mtime) < 30
    # The last snapshot that is sound is still there.
    found = sorted(path.stem for path in (tmp_path / "exchange" / "group-1").glob("0*.json"))
    assert found == ["0000000000"]
    told = (tmp_path / "launch.txt").read_text()
    assert told.count("for good: gave up") == 2
    assert "; restart " not in told


def test_launch_stops_both_groups_when_training_ends_of_numbers_that_are_not_finite(
    corpus, tmp_path
):
    """Before a snapshot is due, so that there is none that would be refused."""
    flags = [*LOCKSTEP, "--codistill-interval", "8", "--disable-validation", "--no-save"]
    flags += ["--codistill-timeout", "1800", "--dropout", "0"]
    process = start_launch(
        corpus, tmp_path, *flags, options=["--group", "1: --lr 1e30", "--max-restarts", "3"]
    )
    assert process.wait(timeout=300) == 1
    logs = [tmp_path / f"group-{i}" / "log.txt" for i in (0, 1)]
    healthy, ill = [log.read_text() for log in logs]
    said = re.search(
        r"this group ends for good: (training of group 1 has diverged at update \d "
        r"\(gradients are Nan/Inf\); give a lower --lr or --codistill-alpha)$",
        ill,
        re.M,
    )[1]
    assert re.search(
        rf"^codistill: error: peer 1 stops for good at update \d: {re.escape(said)}$", healthy, re.M
    )
    assert logs[0].stat().st_mtime - logs[1].stat().st_mtime < 30
    told = (tmp_path / "launch.txt").read_text()
    assert told.count("for good: gave up") == 2
    assert "; restart " not in told


@pytest.mark.full
def test_groups_started_by_hand_stop_when_one_is_stopped(corpus, tmp_path):
    flags = [*CODISTILL, *LOCKSTEP, "--codistill-num-groups", "2", "--codistill-interval", "1"]
    flags += ["--codistill-dir", str(tmp_path / "exchange"), "--codistill-timeout", "1800"]
    flags += ["--max-update", "100000", "--disable-validation", "--no-save"]
    other = ["--codistill-group", "1", "--seed", str(1 + SEED_STEP)]
    processes = [
        start(corpus, tmp_path / "0", *flags),
        start(corpus, tmp_path / "1", *flags, *other),
    ]
    alive = tmp_path / "exchange" / "group-1" / "alive.json"
    eventually(
        lambda: alive.exists() and json.loads(alive.read_text())["update"] > 3, "no training", 120
    )
    processes[1].terminate()
    finish(processes[1], tmp_path / "1", status=143)
    gone = time.monotonic()
    run = finish(processes[0], tmp_path / "0", status=1)
    assert time.monotonic() - gone < 30
    assert re.search(r"codistill: error: peer 1 has said at update \d+ that it is gone", run.log)
