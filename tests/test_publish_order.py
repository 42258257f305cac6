"""The order in which a snapshot comes to exist and goes: what has a manifest is whole."""

import os

import pytest
from test_exchange import draft, state

from fairseq_codistill.exchange import Exchange, Store

RUNS = ("run", "other run")


class Recorded(Store):
    """A folder that notes what is written and deleted, and may fail before one of these calls.

    Attributes:
        calls: of each the operation and the name, in order.
        look: called after each of them.
        failing: the number of the call, from 0, that fails, and all after it; None for none.
    """

    def __init__(self, uri):
        super().__init__(uri)
        self.calls = []
        self.look = lambda: None
        self.failing = None

    def write(self, name, data):
        self._note("write", name)
        super().write(name, data)
        self.look()

    def delete(self, name):
        self._note("delete", name)
        super().delete(name)
        self.look()

    def _note(self, operation, name):
        if self.failing is not None and len(self.calls) >= self.failing:
            raise OSError(5, "Input/output error")
        self.calls.append((operation, name.removeprefix("group-1/")))


@pytest.fixture
def store(tmp_path):
    return Recorded(str(tmp_path))


@pytest.fixture
def exchange(store):
    return Exchange(store, "run")


def whole_snapshots(uri):
    """The run and update of every manifest there is; fails if one's tensors are not as it says."""
    found = set()
    for run in RUNS:
        exchange = Exchange(Store(uri), run)
        for update in exchange.updates(1):
            manifest = exchange._own_manifest(1, update)
            if manifest is not None:
                # Raises if the tensors are missing, or others.
                exchange.fetch(manifest)
                found.add((run, update))
    return found


def test_a_manifest_is_written_after_its_tensors(exchange, store):
    exchange.publish(draft(10))
    assert store.calls[-2:] == [
        ("write", "0000000010.safetensors"),
        ("write", "0000000010.json"),
    ]


def test_a_manifest_is_deleted_before_its_tensors(exchange, store):
    for update in (10, 20, 30):
        exchange.publish(draft(update))
    store.calls.clear()
    exchange.prune(1, keep=1)
    # The older ones last or first, but of each the manifest first.
    assert sorted(store.calls[::2]) == [("delete", f"00000000{u}.json") for u in (10, 20)]
    for (_, manifest), (_, tensors) in zip(store.calls[::2], store.calls[1::2], strict=True):
        assert tensors == manifest.replace(".json", ".safetensors")


@pytest.mark.parametrize("run", RUNS)
def test_an_old_manifest_goes_before_its_tensors_are_replaced(exchange, store, tmp_path, run):
    Exchange(store, run).publish(draft(10, tensors=state(99)))
    if run == "run":
        # Of this run, only what is damaged gives way.
        os.truncate(tmp_path / "group-1" / "0000000010.safetensors", 100)
    store.calls.clear()
    exchange.publish(draft(10))
    assert store.calls == [
        ("delete", "0000000010.json"),
        ("write", "0000000010.safetensors"),
        ("write", "0000000010.json"),
    ]


def life(exchange, other):
    """What a group does to an exchange that another run has used."""
    other.publish(draft(20, tensors=state(99)))
    for update in (10, 20, 30, 40):
        exchange.publish(draft(update))
        exchange.prune(1, keep=2)


def test_at_every_moment_what_has_a_manifest_is_whole(exchange, store, tmp_path):
    seen = []
    store.look = lambda: seen.append(whole_snapshots(str(tmp_path)))
    life(exchange, Exchange(store, "other run"))
    assert seen[-1] == {("run", 30), ("run", 40)}
    assert {("other run", 20)} in seen
    assert {("run", 10), ("run", 20)} in seen


def test_whatever_call_fails_what_has_a_manifest_is_whole(tmp_path):
    store = Recorded(str(tmp_path / "counted"))
    life(Exchange(store, "run"), Exchange(store, "other run"))
    calls = len(store.calls)
    assert calls > 10
    for failing in range(calls):
        folder = str(tmp_path / str(failing))
        store = Recorded(folder)
        store.failing = failing
        with pytest.raises(OSError, match="Input/output error"):
            life(Exchange(store, "run"), Exchange(store, "other run"))
        whole_snapshots(folder)
        # A process that takes over gets on with it.
        store.failing = None
        exchange = Exchange(store, "run")
        exchange.sweep(1)
        exchange.publish(draft(50))
        exchange.prune(1, keep=1)
        assert ("run", 50) in whole_snapshots(folder)


def test_bytes_are_on_the_disk_before_they_have_their_name(tmp_path, monkeypatch):
    """After a power cut there would be a name with nothing under it."""
    fsync, replace, opened = os.fsync, os.replace, os.open
    files, order = {}, []

    def noted_open(path, *args, **options):
        descriptor = opened(path, *args, **options)
        files[descriptor] = str(path)
        return descriptor

    def noted_fsync(descriptor):
        fsync(descriptor)
        order.append(("on disk", files[descriptor], os.fstat(descriptor).st_size))

    def noted_replace(source, target, **options):
        order.append(("named", source, target))
        replace(source, target, **options)

    monkeypatch.setattr(os, "open", noted_open)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    Store(str(tmp_path)).write("group-1/some.json", b"four")
    (first, partial, size), (second, source, target) = order
    assert (first, size, second, target) == ("on disk", 4, "named", "some.json")
    assert partial == source
