"""Which snapshots a group uses: async agrees among its workers, lockstep waits or stops."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import eventually
from test_exchange import VOCABULARY, draft, state
from torch import distributed as dist
from torch import multiprocessing

from fairseq_codistill.codistillation import sources
from fairseq_codistill.codistillation.sources import AsyncSource, LockstepSource
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import (
    Alive,
    Exchange,
    ExchangeError,
    PeerUnusable,
    Prefetcher,
    Presence,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
    prefetcher,
)


@pytest.fixture
def exchange(tmp_path):
    return Exchange(Store(str(tmp_path)), "run")


@pytest.fixture(autouse=True)
def quick_look(monkeypatch):
    monkeypatch.setattr(prefetcher, "POLL_SECONDS", 0.02)


def reader(exchange):
    return Reader(exchange, seed=1, vocabulary=VOCABULARY)


def taken_within(source, seconds=60.0, update=50):
    """Ask at boundary after boundary until something is given."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if taken := source.take(update):
            return [(s.manifest.group, s.manifest.update) for s in taken]
        time.sleep(0.01)
    return []


def test_async_gives_the_newest_and_never_an_older_one(exchange):
    exchange.publish(draft(10))
    exchange.publish(draft(20))
    source = AsyncSource(reader(exchange), Workers(timeout=10), [1, 2])
    assert taken_within(source) == [(1, 20)]
    exchange.publish(draft(15))
    assert taken_within(source, seconds=0.3) == []
    exchange.publish(draft(7, group=2))
    exchange.publish(draft(30))
    assert sorted(taken_within(source) + taken_within(source, 3)) == [(1, 30), (2, 7)]


def test_async_goes_on_with_what_it_had_when_a_snapshot_does_not_fit(exchange, caplog):
    exchange.publish(draft(10))
    source = AsyncSource(reader(exchange), Workers(timeout=10), [1])
    snapshot = []
    while not snapshot:
        snapshot = source.take(11)
    source.refuse(snapshot[0], SnapshotRejected("its tensors do not fit"))
    assert "peer 1: snapshot of update 10 rejected: its tensors do not fit" in caplog.text
    assert taken_within(source, seconds=0.2) == []


def test_async_gets_over_an_exchange_that_cannot_be_read_for_a_while(exchange, monkeypatch, caplog):
    caplog.set_level("INFO")
    exchange.publish(draft(10))
    everything = reader(exchange)
    newest = everything.newest
    failures = iter([OSError("no route"), OSError("no route")])

    def fails_twice(*args):
        for failure in failures:
            raise failure
        return newest(*args)

    monkeypatch.setattr(everything, "newest", fails_twice)
    source = AsyncSource(everything, Workers(timeout=10), [1])
    assert taken_within(source) == [(1, 10)]
    source.stop()  # it has said all by then
    failed = "looking for snapshots of peer 1 failed (OSError: no route); trying again in"
    assert [line for line in caplog.messages if "of peer 1" in line] == [
        f"{failed} 0.02 s",
        f"{failed} 0.04 s",
        "the snapshots of peer 1 can be read again",
    ]


def test_the_longer_nothing_comes_the_rarer_it_is_looked_for(exchange, monkeypatch):
    monkeypatch.setattr(prefetcher, "LATE", 0.5)
    looked = []
    everything = reader(exchange)
    newest = everything.newest
    monkeypatch.setattr(
        everything, "newest", lambda *a: looked.append(time.monotonic()) or newest(*a)
    )
    source = AsyncSource(everything, Workers(timeout=10), [1])
    assert taken_within(source, seconds=2) == []
    # Each pause is half of what was waited already; without that there were a hundred.
    assert 3 <= len(looked) <= 30
    exchange.publish(draft(10))
    assert taken_within(source) == [(1, 10)]
    # From now on it is looked for as often as at first.
    looked.clear()
    exchange.publish(draft(20))
    start = time.monotonic()
    assert taken_within(source) == [(1, 20)]
    assert looked[0] - start < 0.5


def test_what_is_no_longer_asked_for_is_not_held(exchange, monkeypatch):
    """The training thread may ask for something else while the background reads."""
    for group in (1, 2, 3):
        exchange.publish(draft(10, group=group))
    everything = reader(exchange)
    newest, reading, go_on = everything.newest, threading.Event(), threading.Event()

    def slow(peer, above):
        found = newest(peer, above)
        if peer < 3:
            reading.set()
            go_on.wait(60)
        return found

    monkeypatch.setattr(everything, "newest", slow)
    background = Prefetcher(everything)
    background.start()
    for peer, meanwhile in [(1, background.rest), (2, lambda peer: background.look(peer, 10))]:
        reading.clear()
        go_on.clear()
        background.look(peer, above=-1)
        assert reading.wait(60)
        meanwhile(peer)
        go_on.set()
        # One after the other: with this one it is done with the one before.
        background.look(3, above=-1)
        eventually(lambda: background.held(3) is not None, "the next peer was not looked at")
        assert background.held(peer) is None
        background.rest(3)
    background.stop()


def lockstep(exchange, peers=(1,), interval=10, timeout=0.3):
    workers = Workers(timeout=10)
    return LockstepSource(reader(exchange), workers, list(peers), interval, timeout)


def test_lockstep_gives_exactly_the_last_multiple(exchange):
    for update in (0, 10, 20):
        exchange.publish(draft(update))
    source = lockstep(exchange)
    given = {u: [s.manifest.update for s in source.take(u)] for u in (0, 1, 9, 10, 25, 29)}
    assert given == {0: [0], 1: [], 9: [], 10: [10], 25: [20], 29: []}


def test_lockstep_names_the_peer_that_did_not_come(exchange):
    exchange.publish(draft(10))
    with pytest.raises(ExchangeError, match="--codistill-timeout 0.3: no snapshot of peer 2 at up"):
        lockstep(exchange, peers=(1, 2)).take(13)


def test_lockstep_takes_a_bad_snapshot_for_a_missing_one(exchange, tmp_path):
    exchange.publish(draft(10))
    (tmp_path / "group-1" / "0000000010.safetensors").write_bytes(b"x")
    with pytest.raises(ExchangeError, match=r"no snapshot of peer 1 .* \(its tensor file has 1 by"):
        lockstep(exchange).take(10)


def test_lockstep_stops_at_once_for_another_vocabulary(exchange):
    exchange.publish(draft(10, vocabulary="f" * 64))
    start = time.monotonic()
    with pytest.raises(PeerUnusable, match="another target vocabulary"):
        lockstep(exchange, timeout=60).take(10)
    assert time.monotonic() - start < 30


def test_lockstep_does_not_wait_for_a_peer_that_has_finished(exchange):
    alive = Alive("run", "one", 2, VOCABULARY)
    presence = Presence(exchange.store, 1, alive, lambda: {"update": 15})
    source = lockstep(exchange, timeout=60)
    presence.claim()
    presence.release(finished=True)
    with pytest.raises(ExchangeError, match="peer 1 finished at update 15"):
        source.take(20)
    # For a group that starts later that is a former life of the peer, which may start again too.
    with pytest.raises(ExchangeError, match="no snapshot of peer 1 at update 20"):
        lockstep(exchange).take(20)


def test_lockstep_does_not_wait_for_an_exchange_that_hangs(exchange, monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(sources, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(Reader, "read", lambda *_: answer.wait(60))
    with pytest.raises(ExchangeError, match="peer 1 at update 10 .* be read: no answer within"):
        lockstep(exchange, timeout=0.1).take(10)
    answer.set()


def agree(rank, size, meet, folder, queue):
    """One worker of a group: takes at boundary after boundary, in step with the others."""
    prefetcher.POLL_SECONDS = 0.02
    exchange = Exchange(Store(folder), "run")
    # What the leader sees of update 20 the other workers never do.
    prefetcher.PATIENCE_SECONDS = 0.3
    if rank > 0:
        original = exchange.manifest

        def manifest(group, update):
            return original(group, 999 if update == 20 else update)

        exchange.manifest = manifest
    dist.init_process_group("gloo", init_method=meet, world_size=size, rank=rank)
    source = AsyncSource(reader(exchange), Workers(timeout=30), [1, 2])
    swaps = []
    for boundary in range(300):
        # The slower worker is slower by far.
        time.sleep(0.002 + 0.008 * rank)
        swaps += [
            (boundary, s.manifest.group, s.manifest.update, s.manifest.sha256)
            for s in source.take(boundary)
        ]
        if rank == 0 and boundary == 100:
            exchange.publish(draft(30))
        dist.barrier()
    source.stop()
    queue.put((rank, swaps))
    dist.destroy_process_group()


def by_workers(act, size, folder):
    """What each of a group's workers says of itself."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    meet = f"file://{folder}/meet"
    processes = [
        context.Process(target=act, args=(rank, size, meet, str(folder), queue), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    said = dict(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join()
    return said


def test_workers_swap_to_the_same_file_at_the_same_boundary(exchange, tmp_path):
    exchange.publish(draft(10, group=2))
    exchange.publish(draft(20, group=1))
    swaps = by_workers(agree, 3, tmp_path)
    assert swaps[0] == swaps[1] == swaps[2]
    # Update 20 of peer 1 could not be read by all, so nobody used it.
    assert [swap[1:3] for swap in swaps[0]] == [(2, 10), (1, 30)]


class Meeting:
    """Where the workers of one group meet, each on a thread of its own."""

    def __init__(self, size):
        self._barrier = threading.Barrier(size, timeout=60)
        self._votes = {}
        self._pool = ThreadPoolExecutor(size)

    def least(self, rank, numbers):
        self._votes[rank] = numbers
        self._barrier.wait()
        found = [min(votes) for votes in zip(*self._votes.values(), strict=True)]
        self._barrier.wait()
        return found

    def boundary(self, all_sources, update=50):
        """What each of them takes at one boundary."""
        taken = list(self._pool.map(lambda source: source.take(update), all_sources))
        return [[(s.manifest.update, s.manifest.sha256) for s in snapshots] for snapshots in taken]


class Worker(Workers):
    """One of them."""

    def __init__(self, rank, meeting):
        super().__init__(timeout=10)
        self.rank, self._meeting = rank, meeting

    def least(self, numbers):
        return self._meeting.least(self.rank, numbers)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_that_read_different_files_of_one_update_use_neither(tmp_path, workers, caplog):
    """A damaged snapshot was published anew, say, after the leader had read it."""
    exchanges = [Exchange(Store(str(tmp_path / str(i))), "run") for i in range(workers)]
    for i, exchange in enumerate(exchanges):
        last = i == workers - 1
        exchange.publish(draft(20, tensors=state(99) if last else None))
    meeting = Meeting(workers)
    group = [
        AsyncSource(reader(exchange), Worker(i, meeting), [1])
        for i, exchange in enumerate(exchanges)
    ]
    deadline = time.monotonic() + 60
    while "rejected" not in caplog.text:
        assert meeting.boundary(group) == [[]] * workers
        assert time.monotonic() < deadline, "nobody said that the files differ"
    said = "peer 1: snapshot of update 20 rejected: the workers of this group read different files"
    assert [line for line in caplog.messages if "rejected" in line] == [said]
    # It is not the last one that they use of this peer.
    for exchange in exchanges:
        exchange.publish(draft(30))
    taken = [[]] * workers
    while not any(taken):
        taken = meeting.boundary(group)
        assert time.monotonic() < deadline, "the next snapshot was not used either"
    for source in group:
        source.stop()
    assert taken == [[(30, exchanges[0].manifest(1, 30).sha256)]] * workers


def wait_in_lockstep(rank, size, meet, folder, queue):
    """One worker of a group; the second of them sees no snapshot."""
    dist.init_process_group("gloo", init_method=meet, world_size=size, rank=rank)
    source = lockstep(Exchange(Store(folder), "run"))

    def nothing(peer, update):
        raise SnapshotMissing(f"of peer {peer}, at update {update}")

    if rank == 1:
        source._reader.read = nothing
    try:
        said = f"took {len(source.take(10))} snapshots"
    except ExchangeError as error:
        said = str(error)
    queue.put((rank, said))
    dist.destroy_process_group()


def test_no_worker_goes_on_in_lockstep_without_one_that_cannot_read(exchange, tmp_path):
    exchange.publish(draft(10))
    said = by_workers(wait_in_lockstep, 2, tmp_path)
    assert said[0] == "another worker could not read the snapshots of update 10"
    assert said[1].startswith("--codistill-timeout 0.3: no snapshot of peer 1 at update 10")
