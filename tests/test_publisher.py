"""Publishing in the background, and what happens when it cannot."""

import pytest
from test_exchange import draft

from fairseq_codistill.exchange import Exchange, Publisher, Store


class Faulty(Store):
    """A folder whose disk is full while ``full`` is set."""

    full = False

    def write(self, name, data):
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(name, data)


@pytest.fixture
def store(tmp_path):
    return Faulty(str(tmp_path))


def test_drafts_are_published_and_pruned_in_order(store):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=2)
    for update in (10, 20, 30):
        publisher.submit(draft(update))
    publisher.wait()
    assert not publisher.busy
    assert exchange.updates(1) == [30, 20]
    assert publisher.failure is None


def test_a_failure_is_told_and_does_not_end_publishing(store, caplog):
    exchange = Exchange(store, "run")
    publisher = Publisher(exchange, keep=0)
    store.full = True
    publisher.submit(draft(10))
    publisher.wait()
    assert "snapshot of update 10 was not published: [Errno 28]" in caplog.text
    assert isinstance(publisher.failure, OSError)
    store.full = False
    publisher.submit(draft(20))
    publisher.wait()
    assert publisher.failure is None
    assert exchange.updates(1) == [20]


def test_other_weights_for_a_published_update_are_told(store, caplog):
    publisher = Publisher(Exchange(store, "run"), keep=0)
    publisher.submit(draft(10))
    publisher.submit(draft(10, tensors=draft(99).tensors))
    publisher.wait()
    assert "the exchange holds other weights of group 1 for update 10; they stay" in caplog.text
