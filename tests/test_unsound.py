"""What no peer would take is not published; what was seen too early is looked at again."""

import dataclasses
import json
import os
from collections import Counter

import pytest
import torch
from harness import eventually
from safetensors.torch import load, save
from test_exchange import VOCABULARY, draft, not_finite, paths, replace, state

from fairseq_codistill.exchange import (
    WIRE_DTYPES,
    Exchange,
    PeerUnusable,
    Prefetcher,
    Publisher,
    Reader,
    SnapshotIncomplete,
    SnapshotRejected,
    Store,
    Unpublishable,
    prefetcher,
    reader,
)
from fairseq_codistill.exchange.tensors import decode

NAN, INF = float("nan"), float("inf")
OWN_SOURCE, OTHER_SOURCE = "a" * 64, "b" * 64


class Counted(Store):
    """Counts what it is asked for: operations, and operations with the ending of the name."""

    def __init__(self, uri):
        super().__init__(uri)
        self.asked = Counter()

    def size(self, name):
        self.asked["size"] += 1
        return super().size(name)

    def read(self, name, limit):
        self.asked["read"] += 1
        self.asked[f"read {name.rpartition('.')[2]}"] += 1
        return super().read(name, limit)

    def names(self, folder):
        self.asked["list"] += 1
        return super().names(folder)

    def listing(self, folder):
        self.asked["list"] += 1
        return super().listing(folder)


@pytest.fixture
def store(tmp_path):
    return Counted(str(tmp_path))


@pytest.fixture
def exchange(store):
    return Exchange(store, "run")


@pytest.fixture
def readers(exchange):
    """Makes a reader that has seen nothing yet."""
    return lambda **more: Reader(exchange, seed=1, vocabulary=VOCABULARY, **more)


# The publisher.


@pytest.mark.parametrize(
    ("dtype", "numbers"),
    [
        ("bfloat16", [1.0, NAN]),
        ("bfloat16", [1.0, INF]),
        # Finite in the model: the largest float32 is none of bfloat16's.
        ("bfloat16", [1.0, 3.4028235e38]),
        ("float16", [1.0, 1e5]),
        ("float16", [-65520.0, 1.0]),
        ("float32", [-INF, 1.0]),
        ("int8", [[1.0, NAN]]),
        ("int8", [[1.0, INF]]),
        # Of fewer than two dimensions, so it travels as float32.
        ("int8", [1.0, NAN]),
    ],
)
def test_what_is_not_finite_on_the_wire_is_not_published_and_the_last_good_one_stays(
    exchange, readers, tmp_path, caplog, dtype, numbers
):
    publisher = Publisher(exchange, keep=1, patience=None)

    def publish(update, numbers):
        tensors = {"w": torch.tensor(numbers), "sound": torch.ones(2)}
        publisher.submit(draft(update, dtype=dtype, tensors=tensors))
        assert publisher.wait(timeout=60), "it is tried again and again"

    publish(10, [0.5, 2.0])
    files = sorted(os.listdir(tmp_path / "group-1"))
    for update in (20, 30, 40):
        publish(update, numbers)
        assert isinstance(publisher.failure, Unpublishable)
        assert publisher.given_up
    assert sorted(os.listdir(tmp_path / "group-1")) == files
    assert readers().newest(1, above=-1).manifest.update == 10
    assert publisher.skipped == 3
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    name = "w:scale" if (dtype, type(numbers[0])) == ("int8", list) else "w"
    assert lines == [
        f"snapshot of update {update} skipped, {n} so far: no peer would take it (its tensor "
        f"'{name}' holds numbers that are not finite in {dtype}); the last sound one stays"
        for n, update in enumerate((20, 30, 40), 1)
    ]
    # When the weights are sound again, so are the snapshots.
    publish(50, [0.5, 2.0])
    assert readers().newest(1, above=10).manifest.update == 50
    assert publisher.failure is None


@pytest.mark.parametrize(("dtype", "number"), [("float16", 65504.0), ("bfloat16", 3.3e38)])
def test_the_largest_numbers_of_a_dtype_are_published(exchange, readers, dtype, number):
    exchange.publish(draft(10, dtype=dtype, tensors={"w": torch.tensor([number, -number])}))
    tensors = readers().read(1, 10).tensors
    assert torch.equal(tensors["w"], torch.tensor([number, -number]).to(WIRE_DTYPES[dtype]))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        # No reader takes complex numbers, and safetensors not even all of them.
        ({"tensors": {"w": torch.ones(2, dtype=torch.complex64)}}, "'w' has dtype C64"),
        ({"tensors": {"w": torch.ones(2, dtype=torch.complex128)}}, "torch.complex128"),
        ({"tensors": {"w:scale": torch.ones(2)}, "dtype": "int8"}, "'w:scale' has a name that"),
        ({"tensors": {"n" * 1001: torch.ones(2)}}, "its tensor file names a tensor 'nnn"),
        ({"model": {"words": "x" * 5000}}, "its manifest's field model is"),
        ({"source_vocabulary": "x" * 65}, "its manifest's field source_vocabulary is"),
    ],
    ids=["complex64", "complex128", "scale", "long name", "configuration", "source"],
)
def test_what_could_never_be_published_is_known_before_training(
    exchange, tmp_path, changes, reason
):
    for act in (exchange.rehearse, exchange.publish):
        with pytest.raises(Unpublishable, match=reason):
            act(draft(10, **changes))
    assert not (tmp_path / "group-1").exists()
    # What is not finite yet says nothing about later.
    exchange.rehearse(draft(10, tensors={"w": torch.tensor([NAN])}))


def test_a_run_id_that_no_manifest_holds_is_known_before_training(store):
    with pytest.raises(Unpublishable, match="its manifest's field run_id is"):
        Exchange(store, "r" * 201).rehearse(draft(10))
    Exchange(store, "r" * 200).rehearse(draft(10))


# What was seen too early, or too late.


def cut(path):
    path.write_bytes(path.read_bytes()[:50])


def holes(path):
    # A network file system may show a file's size before its content.
    path.write_bytes(bytes(path.stat().st_size))


EARLY = [(0, cut), (0, holes), (0, os.unlink), (1, cut), (1, holes)]
EARLY_IDS = ["tensors cut", "tensors of zeros", "no tensors", "manifest cut", "manifest of zeros"]


@pytest.mark.parametrize(("which", "spoil"), EARLY, ids=EARLY_IDS)
def test_what_was_seen_too_early_is_looked_at_again(
    exchange, readers, tmp_path, caplog, which, spoil
):
    caplog.set_level("INFO")
    exchange.publish(draft(5))
    exchange.publish(draft(10))
    file = paths(tmp_path)[which]
    whole = file.read_bytes()
    spoil(file)
    looks = readers()
    assert looks.newest(1, above=-1).manifest.update == 5
    file.write_bytes(whole)
    assert looks.newest(1, above=5).manifest.update == 10
    assert looks.rejections == 1
    before, after = caplog.messages
    assert before.startswith("peer 1: snapshot of update 10 rejected: its ")
    assert after == "peer 1: snapshot of update 10 is whole"


@pytest.mark.parametrize(("which", "spoil"), EARLY, ids=EARLY_IDS)
def test_what_stays_in_part_is_read_a_few_times_and_said_once(
    store, exchange, readers, tmp_path, monkeypatch, caplog, which, spoil
):
    monkeypatch.setattr(reader, "PAUSES", (0.0, 0.0, 0.0))
    exchange.publish(draft(10))
    spoil(paths(tmp_path)[which])
    looks = readers()
    kinds = []
    for _ in range(30):
        assert looks.newest(1, above=-1) is None
        with pytest.raises(SnapshotRejected) as raised:
            looks.read(1, 10)
        kinds.append(type(raised.value))
    assert kinds[0] is SnapshotIncomplete
    assert kinds[-1] is SnapshotRejected
    assert store.asked["read safetensors"] <= 1 + 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert looks.rejections == 1


def test_between_two_looks_some_time_passes(store, exchange, readers, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "PAUSES", (0.0, 3600.0))
    exchange.publish(draft(10))
    holes(paths(tmp_path)[0])
    looks = readers()
    for _ in range(20):
        assert looks.newest(1, above=-1) is None
    assert store.asked["read safetensors"] == 2


def test_a_worker_that_is_to_get_a_snapshot_waits_for_it_to_be_whole(
    exchange, readers, tmp_path, monkeypatch
):
    monkeypatch.setattr(prefetcher, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(reader, "PAUSES", (0.0, 0.05, 3600.0))
    exchange.publish(draft(10))
    exchange.publish(draft(20))
    files = [paths(tmp_path, update)[0] for update in (10, 20)]
    whole = files[0].read_bytes()
    for file in files:
        cut(file)
    looks = readers()
    background = Prefetcher(looks)
    background.start()
    background.get(1, 10)
    eventually(lambda: looks.rejections == 1, "it was not looked at")
    files[0].write_bytes(whole)
    eventually(lambda: background.held(1) is not None, "it was not looked at again")
    assert background.given_up(1) is None
    # One that never is whole is given up in the end.
    monkeypatch.setattr(reader, "PAUSES", (0.0, 0.0))
    background.get(1, 20)
    eventually(lambda: background.given_up(1) == 20, "it was not given up")
    background.stop()


# What was rejected.


def test_what_is_unsound_is_read_once_however_often_it_is_asked_for(
    store, exchange, readers, tmp_path, caplog
):
    exchange.publish(draft(10))
    not_finite(*paths(tmp_path))
    looks = readers()
    for _ in range(30):
        with pytest.raises(SnapshotRejected, match="'bias' holds numbers that are not finite"):
            looks.read(1, 10)
    assert store.asked["read safetensors"] == 1
    assert (looks.rejections, len(caplog.records)) == (1, 1)


def test_what_takes_the_place_of_what_was_rejected_is_read(exchange, readers, tmp_path):
    """A group that was started again publishes anew what no peer can use."""
    exchange.publish(draft(10))
    not_finite(*paths(tmp_path))
    looks = readers()
    with pytest.raises(SnapshotRejected):
        looks.read(1, 10)
    assert exchange.publish(draft(10))
    assert torch.equal(looks.read(1, 10).tensors["bias"], state(10)["bias"])


def test_of_many_reasons_it_is_always_the_same_one(exchange, readers, tmp_path):
    tensors = {f"layer.{i}": torch.ones(2) for i in range(20)}
    exchange.publish(draft(10, tensors=tensors))
    data = paths(tmp_path)[0].read_bytes()
    # safetensors gives them in another order each time.
    assert len({tuple(load(data)) for _ in range(50)}) > 1
    replace(*paths(tmp_path), save({name: torch.tensor([1.0, NAN]) for name in tensors}))
    reasons = set()
    for _ in range(20):
        with pytest.raises(SnapshotRejected) as raised:
            readers().read(1, 10)
        reasons.add(str(raised.value))
    assert reasons == {"its tensor 'layer.0' holds numbers that are not finite in float32"}


def test_publisher_and_reader_have_one_opinion(exchange, tmp_path):
    """What the publisher passes is read, and what it refuses, put there by force, is not."""
    for dtype in WIRE_DTYPES:
        for number in (1.0, 6e4, 1e5, 3e38, 3.4028235e38, INF, NAN):
            if dtype == "int8" and number == 3.4028235e38:
                # Its scale is rounded up, perhaps, and 127 times that is infinite.
                continue
            numbers = torch.tensor([[number, 1.0], [0.5, -number]])
            one = draft(10, dtype=dtype, tensors={"w": numbers})
            try:
                published = exchange.publish(one) is not None
            except Unpublishable:
                published = False
            whole = one.tensors["w"]
            forced = {"w": whole}
            if dtype == "int8":
                scale = whole.abs().amax(1) / 127
                forced = {"w": (whole / scale[:, None]).round().to(torch.int8), "w:scale": scale}
            try:
                decode(save(forced), {}, dtype)
                readable = True
            except SnapshotRejected:
                readable = False
            assert published == readable == bool(torch.isfinite(whole).all()), (dtype, number)
            for file in paths(tmp_path):
                file.unlink(missing_ok=True)


# Another source dictionary.


@pytest.mark.parametrize(
    ("own", "theirs", "fits"),
    [
        (OWN_SOURCE, OWN_SOURCE, True),
        (OWN_SOURCE, OTHER_SOURCE, False),
        # Images have none, and a peer of an earlier version does not tell.
        (OWN_SOURCE, None, True),
        (None, OTHER_SOURCE, True),
    ],
    ids=["the same", "others", "not told", "images"],
)
def test_a_peer_that_reads_other_words_is_one_error_line(
    exchange, readers, caplog, own, theirs, fits
):
    for update in (10, 20):
        exchange.publish(draft(update, source_vocabulary=theirs))
    looks = readers(source_vocabulary=own)
    if fits:
        assert looks.newest(1, above=-1).manifest.source_vocabulary == theirs
        assert not caplog.records
        return
    for update in (10, 20):
        with pytest.raises(PeerUnusable, match="trained with another source vocabulary"):
            looks.read(1, update)
    assert looks.newest(1, above=-1) is None
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.getMessage() == (
        "peer 1 is left out: group 1 was trained with another source vocabulary (bbbbbbbbbbbb... "
        "against aaaaaaaaaaaa...), and reads other words than this group; train all groups on data "
        "prepared with one dictionary"
    )


# What another run left.


def test_what_another_run_left_is_looked_at_once(store, exchange, readers):
    old = Exchange(Store(store.uri), "old")
    for update in range(1, 31):
        old.publish(draft(100 * update))
    looks = readers()
    assert looks.newest(1, above=-1) is None
    store.asked.clear()
    for _ in range(5):
        assert looks.newest(1, above=-1) is None
    assert store.asked == {"list": 5}
    # Nor does the group that publishes beside them look at them each time.
    publisher = Publisher(Exchange(store, "run"), keep=1, patience=None)
    costs = []
    for update in (10, 20, 30):
        store.asked.clear()
        publisher.submit(draft(update))
        assert publisher.wait(timeout=60)
        costs.append(store.asked["size"] + store.asked["read"])
    assert costs[0] > 60
    assert costs[1:] == [costs[2]] * 2
    assert costs[2] < 10
    assert looks.newest(1, above=-1).manifest.update == 30


def test_what_takes_the_place_of_another_runs_is_seen_at_the_next_look(exchange, readers, tmp_path):
    old = Exchange(Store(str(tmp_path)), "old")
    for update in (10, 20):
        old.publish(draft(update, tensors=state(3)))
    looks = readers()
    for _ in range(3):
        assert looks.newest(1, above=-1) is None
    # By another process, which has its own view of the exchange.
    Exchange(Store(str(tmp_path)), "run").publish(draft(10))
    assert torch.equal(looks.newest(1, above=-1).tensors["bias"], state(10)["bias"])


def test_another_runs_snapshots_that_cannot_be_read_are_not_remembered_as_such(
    exchange, readers, tmp_path
):
    old = Exchange(Store(str(tmp_path)), "old")
    old.publish(draft(10))
    manifest = paths(tmp_path)[1]
    fields = json.loads(manifest.read_text())
    cut(manifest)
    looks = readers()
    assert looks.newest(1, above=-1) is None
    manifest.write_text(json.dumps(fields | {"run_id": "run"}))
    assert looks.newest(1, above=-1).manifest.update == 10


def test_what_takes_the_place_of_a_rejected_snapshot_is_read(exchange, readers, tmp_path):
    reader = readers()
    exchange.publish(draft(10))
    not_finite(*paths(tmp_path))
    assert reader.newest(1, above=-1) is None
    exchange.remove(1, [10])
    exchange.publish(draft(10))
    assert reader.newest(1, above=-1).manifest.update == 10


def test_a_peer_that_was_mended_is_used_at_once(exchange, readers):
    reader = readers()
    for update in (10, 20, 30):
        exchange.publish(dataclasses.replace(draft(update), vocabulary="other"))
    assert reader.newest(1, above=-1) is None
    exchange.remove(1, [10, 20, 30])
    for update in (10, 20, 30):
        exchange.publish(draft(update))
        assert reader.newest(1, above=-1).manifest.update == update
