"""One live process per group index."""

import itertools
import json
import threading
import time
from dataclasses import asdict

import pytest

from fairseq_codistill.exchange import Alive, ExchangeError, Presence, Store, presence, read_alive
from fairseq_codistill.records.heartbeat import clock_of_this_host


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


@pytest.fixture(autouse=True)
def quick_heartbeat(monkeypatch):
    monkeypatch.setattr(presence, "HEARTBEAT_SECONDS", 0.2)


def make(store, nonce, update=lambda: 0):
    alive = Alive(run_id="run", nonce=nonce, seed=1, vocabulary="v")
    return Presence(store, 0, alive, lambda: {"update": update(), "epoch": 2, "peers": {"1": 2}})


def test_the_heartbeat_tells_how_far_the_group_is(store):
    at = 3
    first = make(store, "one", lambda: at)
    first.claim()
    alive = read_alive(store, 0)
    assert (alive.update, alive.epoch, alive.peers, alive.restarts) == (3, 2, {"1": 2}, 0)
    at = 8
    deadline = time.monotonic() + 60
    while (alive := read_alive(store, 0)).update != 8:
        assert time.monotonic() < deadline, "the heartbeat tells nothing new"
        time.sleep(0.02)
    assert (alive.update, alive.running, alive.finished) == (8, True, False)
    # Its own clock, and which that is.
    assert abs(time.time() - alive.time) < 60
    assert alive.clock == clock_of_this_host()
    first.release(finished=True)
    alive = read_alive(store, 0)
    assert (alive.finished, alive.running) == (True, False)


class Watched(Store):
    """Another process gives a sign of life whenever this one looks again."""

    def __init__(self, uri, other):
        super().__init__(uri)
        self.other, self.looked = other, False

    def read(self, name, limit):
        if self.looked:
            self.other._write()
        self.looked = True
        return super().read(name, limit)


def test_a_second_live_process_is_refused(store):
    first = make(store, "one")
    first.claim()
    with pytest.raises(ExchangeError, match="--codistill-group 0: another live process"):
        make(Watched(store.uri, first), "two").claim()
    first.release(finished=False)
    again = make(store, "two")
    again.claim()
    again.release(finished=False)


# Seconds by which another host's clock is off: behind, ahead, and as set by nobody.
OFF = [-90.0, 7200.0, -1.7e9]


class Elsewhere:
    """The time module on a host whose clock is off, or stands still."""

    sleep = staticmethod(time.sleep)
    monotonic = staticmethod(time.monotonic)

    def __init__(self, off: float, stands: bool = False) -> None:
        self.off = off
        self.stood = time.time() if stands else None

    def time(self) -> float:
        return (self.stood or time.time()) + self.off


@pytest.mark.parametrize("off", OFF)
def test_a_live_process_is_refused_whatever_its_clock_says(store, monkeypatch, off):
    monkeypatch.setattr(presence, "time", Elsewhere(off))
    first = make(store, "one")
    first.claim()
    with pytest.raises(ExchangeError, match="--codistill-group 0: another live process"):
        make(Watched(store.uri, first), "two").claim()
    first.release(finished=False)


def test_a_live_process_whose_clock_stands_still_gets_on_all_the_same(store, monkeypatch):
    monkeypatch.setattr(presence, "time", Elsewhere(0.0, stands=True))
    updates = itertools.count()
    first = make(store, "one", lambda: next(updates))
    first.claim()
    with pytest.raises(ExchangeError, match="--codistill-group 0: another live process"):
        make(Watched(store.uri, first), "two").claim()
    first.release(finished=False)


@pytest.mark.parametrize("off", [0.0, *OFF])
def test_a_dead_process_is_replaced_whatever_its_clock_said(store, monkeypatch, off):
    with monkeypatch.context() as patch:
        patch.setattr(presence, "time", Elsewhere(off))
        killed = make(store, "one")
        killed.claim()
        killed._stop.set()
        killed._thread.join()
    left = asdict(read_alive(store, 0)) | {"running": True}
    store.write("group-0/alive.json", json.dumps(left).encode())
    successor = make(store, "two")
    successor.claim()
    assert read_alive(store, 0).nonce == "two"
    successor.release(finished=False)


def test_a_process_that_said_it_ended_is_not_watched(store, monkeypatch):
    first = make(store, "one")
    first.claim()
    first.release(finished=False)
    monkeypatch.setattr(presence, "HEARTBEAT_SECONDS", 1000.0)
    again = make(store, "two")
    again.claim()
    again.release(finished=False)


def test_a_restart_with_the_same_nonce_is_not_refused(store):
    first, restart = make(store, "one"), make(store, "one")
    first.claim()
    restart.claim()
    first.release(finished=False)
    restart.release(finished=False)


def test_a_process_killed_a_moment_ago_is_observed_and_then_replaced(store):
    killed = make(store, "one")
    killed.claim()
    killed._stop.set()  # what SIGKILL leaves: a heartbeat, and none after it
    killed._thread.join()
    assert read_alive(store, 0).running
    successor = make(store, "two")
    successor.claim()
    assert read_alive(store, 0).nonce == "two"
    successor.release(finished=False)


def test_a_live_process_whose_heartbeats_take_long_to_write_is_seen(store, monkeypatch):
    """A slow store holds each beat up by two more."""
    write = Store.write

    def slowly(self, name, data):
        time.sleep(2 * presence.HEARTBEAT_SECONDS)
        write(self, name, data)

    first = make(store, "one")
    first.claim()
    monkeypatch.setattr(Store, "write", slowly)
    for _ in range(5):
        assert presence.lives(store, 0, read_alive(store, 0)) is not None
    first.release(finished=False)
    assert presence.lives(store, 0, read_alive(store, 0)) is None


def test_an_exchange_that_cannot_be_written_is_no_claim(tmp_path):
    (tmp_path / "exchange").write_text("a file, not a folder")
    with pytest.raises(OSError, match="Not a directory|File exists"):
        make(Store(str(tmp_path / "exchange")), "one").claim()


def test_an_exchange_that_does_not_answer_holds_nobody_up(store, monkeypatch, caplog):
    answer, read = threading.Event(), Store.read

    def hangs(self, *args):
        answer.wait(60)
        return read(self, *args)

    monkeypatch.setattr(presence, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(Store, "read", hangs)
    with pytest.raises(TimeoutError, match="no answer within"):
        make(store, "one").claim()
    restart = make(store, "one")
    restart.claim(needed=False)
    answer.set()
    assert "(TimeoutError: no answer within" in caplog.text
    assert "training goes on without it" in caplog.text
    restart.release(finished=False)


def test_nothing_comes_after_the_farewell(store, monkeypatch):
    first = make(store, "one")
    first.claim()
    slow, write = threading.Event(), Store.write

    def slowly(self, name, data):
        slow.set()
        time.sleep(0.5)
        write(self, name, data)

    monkeypatch.setattr(Store, "write", slowly)
    slow.wait()
    first.release(finished=True)
    assert read_alive(store, 0).finished
    time.sleep(1.5)
    assert read_alive(store, 0).finished


def test_nonsense_is_no_sign_of_life(store, tmp_path):
    assert read_alive(store, 0) is None
    (tmp_path / "group-0").mkdir()
    whole = asdict(Alive("run", "one"))
    odd = [{"time": "now"}, {"time": float("inf")}, {"peers": {"²": 1}}, {"update": True}]
    odd += [{"seed": ""}, {"vocabulary": 0}, {"running": None}, {"time": 10**400}, {"update": -5}]
    odd += [{"run_id": "\ud800"}, {"peers": {"1": 0.5}}]
    for nonsense in ("", "{", "[]", '{"nonce": 1}', *(json.dumps(whole | part) for part in odd)):
        (tmp_path / "group-0" / "alive.json").write_text(nonsense)
        assert read_alive(store, 0) is None


@pytest.mark.parametrize("finished", [False, True])
def test_a_sign_of_life_may_say_no_more_than_it_must(store, tmp_path, finished):
    (tmp_path / "group-0").mkdir()
    said = {"run_id": "run", "nonce": "n", "update": 7, "time": time.time(), "finished": finished}
    (tmp_path / "group-0" / "alive.json").write_text(json.dumps(said))
    alive = read_alive(store, 0)
    assert (alive.update, alive.running, alive.finished) == (7, not finished, finished)
    assert (alive.seed, alive.vocabulary) == (None, None)
    for name in said:
        less = {key: value for key, value in said.items() if key != name}
        (tmp_path / "group-0" / "alive.json").write_text(json.dumps(less))
        assert read_alive(store, 0) is None
