"""Publishing in the background, and what happens when it cannot."""

import logging
import threading
import time

import pytest
from test_exchange import draft

from fairseq_codistill.exchange import Exchange, Publisher, Store, publisher


class Faulty(Store):
    """A folder whose disk is full while ``full`` is set, and that is slow until ``go`` is."""

    full = False

    def __init__(self, uri):
        super().__init__(uri)
        self.go, self.writing = threading.Event(), threading.Event()
        self.go.set()

    def write(self, name, data):
        self.writing.set()
        self.go.wait()
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(name, data)


@pytest.fixture
def store(tmp_path):
    return Faulty(str(tmp_path))


def test_drafts_are_published_and_pruned_in_order(store):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=2, patience=None)
    for update in (10, 20, 30):
        publisher.submit(draft(update))
        assert publisher.wait()
    assert exchange.updates(1) == [30, 20]
    assert publisher.failure is None
    assert publisher.skipped == 0


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(publisher, "FIRST_RETRY_SECONDS", 0.02)
    monkeypatch.setattr(publisher, "LONGEST_RETRY_SECONDS", 0.1)


def test_a_failure_is_told_and_tried_again(store, caplog, quick):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0, patience=None)
    store.full = True
    publisher.submit(draft(10))
    deadline = time.monotonic() + 60
    while caplog.text.count("is not published") < 5:
        assert time.monotonic() < deadline, f"it was not tried five times: {caplog.text}"
        assert not publisher.wait(timeout=0.02)
    assert isinstance(publisher.failure, OSError)
    told = [m for m in caplog.messages if "is not published" in m]
    assert "snapshot of update 10 is not published (OSError: [Errno 28]" in told[0]
    pauses = [message.rsplit("again in ")[1] for message in told]
    assert pauses[:5] == ["0.02 s", "0.04 s", "0.08 s", "0.1 s", "0.1 s"]
    store.full = False
    assert publisher.wait()
    assert publisher.failure is None
    assert exchange.updates(1) == [10]


def test_a_draft_that_cannot_be_published_makes_room_for_a_newer_one(store, caplog):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0, patience=None)
    store.full = True
    publisher.submit(draft(10))
    assert not publisher.wait(failing=0.01)
    store.full = False
    assert publisher.make_room()
    publisher.submit(draft(20))
    assert publisher.wait()
    assert exchange.updates(1) == [20]
    assert publisher.skipped == 1
    assert "snapshot of update 10 skipped, 1 so far" in caplog.text


def test_there_is_no_room_while_a_draft_is_being_written(store):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0, patience=None)
    store.go.clear()
    publisher.submit(draft(10))
    store.writing.wait()
    assert not publisher.make_room()
    assert publisher.skipped == 1
    store.go.set()
    assert publisher.wait()
    assert publisher.make_room()
    assert exchange.updates(1) == [10]


def test_patience_ends(store, caplog, quick):
    publisher = Publisher(Exchange(store, "run"), keep=0, patience=0.2)
    store.full = True
    publisher.submit(draft(10))
    assert publisher.wait()
    assert isinstance(publisher.failure, OSError)
    assert [r.levelno for r in caplog.records][-1] == logging.ERROR
    assert "given up" in caplog.text
    assert publisher.given_up


def test_a_folder_in_the_place_of_a_file_does_not_stop_publishing(store, tmp_path, caplog):
    (tmp_path / "group-1" / "0000000005.safetensors").mkdir(parents=True)
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0, patience=None)
    publisher.submit(draft(10))
    assert publisher.wait(timeout=20)
    assert exchange.updates(1) == [10]
    assert "group-1/0000000005.safetensors cannot be removed" in caplog.text


def test_what_cannot_be_deleted_does_not_count_against_what_is_published(store, tmp_path, caplog):
    exchange = Exchange(store, "run")
    exchange.publish(draft(5))
    publisher = Publisher(exchange, keep=1, patience=None)
    in_the_way = tmp_path / "group-1" / "0000000005.safetensors"
    in_the_way.unlink()
    in_the_way.mkdir()
    publisher.submit(draft(10))
    assert publisher.wait(timeout=20)
    assert publisher.failure is None
    assert "snapshots that have had their time stay for now" in caplog.text


def test_nothing_is_tried_again_after_the_end(store):
    publisher = Publisher(Exchange(store, "run"), keep=0, patience=None)
    store.full = True
    publisher.submit(draft(10))
    assert not publisher.wait(failing=0)
    publisher.close()
    assert publisher.wait(timeout=10)
    assert isinstance(publisher.failure, OSError)


def test_a_draft_is_read_only_once_it_is_ready(store):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0, patience=None)
    early, late = draft(10), draft(10, tensors=draft(99).tensors)

    def ready():
        for name, tensor in early.tensors.items():
            tensor.copy_(late.tensors[name])

    publisher.submit(early, ready)
    assert publisher.wait()
    assert exchange.publish(late) is not None, "what was read is not what was ready"


def test_other_weights_for_a_published_update_are_told(store, caplog):
    publisher = Publisher(Exchange(store, "run"), keep=0, patience=None)
    publisher.submit(draft(10))
    publisher.wait()
    assert publisher.agreed
    publisher.submit(draft(10, tensors=draft(99).tensors))
    publisher.wait()
    assert not publisher.agreed
    assert "the exchange holds other weights of group 1 for update 10; they stay" in caplog.text
