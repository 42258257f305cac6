"""One suite that every store passes: a folder, memory, and S3 from a real server process."""

import contextlib
import itertools
import multiprocessing
import os
import resource
import signal
import socket
import threading
import time
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from servers import proxy_to, s3_server
from test_exchange import VOCABULARY, draft, state

from fairseq_codistill.exchange import (
    Exchange,
    ExchangeError,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
    known,
    store,
)

MEGABYTE = 1 << 20
FORK = multiprocessing.get_context("fork")


class FaultyFiles(MemoryFileSystem):
    """fsspec's memory, which fails or is slow when told to; as no object store it gets renames."""

    protocol = "faulty"
    store: dict = {}
    pseudo_dirs = [""]
    mode = "ok"

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.removeprefix("faulty:"))

    def _suffer(self):
        if self.mode == "error":
            raise RuntimeError("this store is out of order")
        if self.mode == "slow":
            time.sleep(0.02)

    def ls(self, path, detail=True, **kwargs):
        self._suffer()
        return super().ls(path, detail, **kwargs)

    def info(self, path, **kwargs):
        self._suffer()
        return super().info(path, **kwargs)

    def cat_file(self, path, start=None, end=None, **kwargs):
        self._suffer()
        return super().cat_file(path, start, end, **kwargs)

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        # What a plain file system shows while it is written to.
        super().pipe_file(path, value[: len(value) // 2])
        time.sleep(0.002)
        self._suffer()
        super().pipe_file(path, value)

    def rm_file(self, path):
        self._suffer()
        super().rm_file(path)


fsspec.register_implementation("faulty", FaultyFiles, clobber=True)


@dataclass
class Place:
    """Somewhere to keep an exchange.

    Attributes:
        uri: names it.
        shared: other processes see the same.
        say: has it fail in some way (``servers.Proxy.say``); None if it cannot be told to.
        faults: the ways it knows.
    """

    uri: str
    shared: bool = True
    say: Callable[[str], None] | None = None
    faults: tuple[str, ...] = ()


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    with s3_server() as server, proxy_to(server.address, tmp_path_factory.mktemp("proxy")) as proxy:
        yield server, proxy


def s3_place(request) -> Iterator[Place]:
    server, proxy = request.getfixturevalue("s3")
    monkeypatch = request.getfixturevalue("monkeypatch")
    for name, value in server.environment(proxy.address).items():
        monkeypatch.setenv(name, value)
    uri = server.uri(f"runs/{uuid.uuid4().hex[:8]}")
    yield Place(uri, say=proxy.say, faults=("error", "refuse", "hang"))
    proxy.say("ok")


def faulty_place(request) -> Iterator[Place]:
    def say(mode):
        FaultyFiles.mode = mode

    yield Place(f"faulty://{uuid.uuid4().hex[:8]}", shared=False, say=say, faults=("error",))
    say("ok")


def folder_place(request) -> Iterator[Place]:
    # Neither the folder nor its parent is there before something is written.
    folder = request.getfixturevalue("tmp_path") / "runs" / "exchange"
    uri = {
        "folder": str(folder),
        "file-uri": folder.as_uri(),
        "chain": f"dir://exchange::{folder.parent.as_uri()}",
    }[request.param]
    yield Place(uri)


def memory_place(request) -> Iterator[Place]:
    yield Place(f"memory://{uuid.uuid4().hex[:8]}/exchange", shared=False)


PLACES = {
    "folder": folder_place,
    "file-uri": folder_place,
    "chain": folder_place,
    "memory": memory_place,
    "faulty": faulty_place,
    "s3": s3_place,
}


@pytest.fixture(params=PLACES)
def place(request):
    yield from PLACES[request.param](request)


@pytest.fixture
def at(place):
    return Store(place.uri)


@contextlib.contextmanager
def beside(place: Place, work: Callable[[Callable[[], bool]], None]) -> Iterator[None]:
    """Run ``work(stopped)`` at the same time: in a process of its own, if it sees the same there.

    The body runs once the work says, by its first call of ``stopped``, that it is under way.
    """
    kind = FORK if place.shared else threading
    begun, stop, done = kind.Event(), kind.Event(), kind.Event()

    def stopped():
        begun.set()
        return stop.is_set()

    def run():
        work(stopped)
        done.set()

    other = kind.Process(target=run) if place.shared else threading.Thread(target=run)
    other.start()
    try:
        assert begun.wait(60)
        yield
    finally:
        stop.set()
        other.join(60)
    assert done.is_set(), "what ran beside has failed"


def whole(data: bytes, size: int) -> bool:
    """Whether this is one of the payloads that ``b"x" * size`` stands for."""
    return len(data) == size and data == data[:1] * size


# What a store does.


@pytest.mark.parametrize("data", [b"", b"\0", bytes(range(256)) * 4096])
def test_what_was_written_is_read(at, data):
    at.write("group-0/file.bin", data)
    assert at.size("group-0/file.bin") == len(data)
    assert at.read("group-0/file.bin", limit=len(data)) == data
    assert at.read("group-0/file.bin", limit=len(data) + 1000) == data


def test_a_write_replaces_what_was_there(at, place):
    for data in (b"long before", b"short", b"", b"longer than all of these"):
        at.write("group-0/alive.json", data)
        assert Store(place.uri).read("group-0/alive.json", 100) == data
        assert at.names("group-0") == ["alive.json"], "and leaves nothing else behind"


def test_what_is_not_there_is_not_found(at):
    for name in ("alive.json", "group-0/alive.json", "group-0"):
        with pytest.raises(FileNotFoundError):
            at.size(name)
        with pytest.raises(FileNotFoundError):
            at.read(name, 100)
        at.delete(name)
    assert at.names("group-0") == at.names("") == []


def test_names_are_those_directly_in_the_folder_and_the_newest_truth(at, place):
    other = Store(place.uri)
    for name in ("group-1/b.json", "group-1/a.json", "group-10/c.json", "group-1/inner/d.json"):
        other.write(name, b"{}")
    assert at.names("group-1") == ["a.json", "b.json", "inner"]
    assert at.names("") == ["group-1", "group-10"]
    other.write("group-1/e.json", b"{}")
    other.delete("group-1/a.json")
    assert at.names("group-1") == ["b.json", "e.json", "inner"]
    with pytest.raises(FileNotFoundError):
        at.read("group-1/a.json", 100)


def test_more_than_the_limit_is_rejected_and_never_in_memory(at):
    at.write("group-0/big.bin", b"x" * 32 * MEGABYTE)
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotRejected, match="its file holds more than 123 bytes"):
            at.read("group-0/big.bin", limit=123)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * MEGABYTE
    with pytest.raises(SnapshotRejected):
        at.read("group-0/big.bin", limit=0)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "../x", "group-0/../../x", "/etc/passwd", "group-0//x", "group-0/", "./x"]
    + ["a b", "ä", "x\n", "x\0y", "a\\b", "~", "s3://x/y", "a:b", "a*", "a?versionId=1", "%2e%2e"],
)
def test_names_are_confined_to_the_exchange(at, name):
    uses = [at.size, at.delete, lambda n: at.read(n, 9), lambda n: at.write(n, b"")]
    for use in (*uses, *([at.names] if name else [])):
        with pytest.raises(ValueError, match="is no name in an exchange"):
            use(name)


def test_what_cannot_be_a_name_is_not_listed(at, place):
    at.write("group-0/good.json", b"{}")
    files, root = fsspec.core.url_to_fs(place.uri)
    for odd in ("a b", "ä.json", "x:y", "tilde~", ".nfs0000000000a1"):
        files.pipe_file(f"{root}/group-0/{odd}", b"{}")
    assert at.names("group-0") == ["good.json"]


# What an exchange in it does.


def test_snapshots_are_published_listed_fetched_and_retained(at):
    exchange = Exchange(at, "run")
    reader = Reader(exchange, seed=1, vocabulary=VOCABULARY)
    assert reader.newest(1, above=-1) is None
    for update in (5, 30, 200, 1000):
        assert exchange.publish(draft(update))
        exchange.prune(1, keep=2)
    assert exchange.updates(1) == [1000, 200]
    assert exchange.updates(0) == []
    assert len(at.names("group-1")) == 4
    snapshot = reader.newest(1, above=200)
    assert snapshot.manifest.update == 1000
    truth = state(1000)
    assert all(truth[name].equal(tensor) for name, tensor in snapshot.tensors.items())
    with pytest.raises(SnapshotMissing):
        reader.read(1, 30)
    at.write("group-1/0000002000.safetensors", b"half a snapsh")
    exchange.sweep(1)
    assert exchange.updates(1) == [1000, 200]
    assert len(at.names("group-1")) == 4


def test_what_another_run_left_is_looked_at_once_and_again_when_it_is_replaced(at, monkeypatch):
    other = Exchange(Store(at.uri), "other")
    for update in (10, 20, 30):
        other.publish(draft(update, tensors=state(3)))
    reader = Reader(Exchange(at, "run"), seed=1, vocabulary=VOCABULARY)
    assert reader.newest(1, above=-1) is None
    read, original = [], Store.read
    with monkeypatch.context() as watched:
        watched.setattr(Store, "read", lambda *args: read.append(args[1]) or original(*args))
        for _ in range(3):
            assert reader.newest(1, above=-1) is None
    assert read == []
    Exchange(Store(at.uri), "run").publish(draft(20))
    # Where listings do not tell one file from another it is looked at again after a while.
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 1e6)
    monkeypatch.setattr(known, "time", later)
    snapshot = reader.newest(1, above=-1)
    assert snapshot.manifest.update == 20
    assert snapshot.tensors["bias"].equal(state(20)["bias"])


def test_a_listing_tells_a_file_from_the_one_before(at, place):
    at.write("group-1/a.json", b"old")
    at.write("group-1/b.json", b"same")
    before = at.listing("group-1")
    assert list(before) == at.names("group-1") == ["a.json", "b.json"]
    assert at.listing("group-1") == before
    at.write("group-1/a.json", b"new")
    after = at.listing("group-1")
    assert after["b.json"] == before["b.json"]
    # Memory has no such mark; it says so, and what it lists is looked at again in time.
    marked = not place.uri.startswith(("memory:", "faulty:"))
    assert (after["a.json"] != before["a.json"]) == marked == (before["a.json"] is not None)
    assert at.listing("group-2") == {}


def test_groups_publish_at_the_same_time(place):
    groups, updates = (1, 2, 3), range(10, 70, 10)

    def publish(group):
        def work(stopped):
            stopped()
            exchange = Exchange(Store(place.uri), "run")
            for update in updates:
                assert exchange.publish(draft(update, group=group))
                exchange.prune(group, keep=3)

        return work

    exchange = Exchange(Store(place.uri), "run")
    reader = Reader(exchange, seed=1, vocabulary=VOCABULARY)
    seen = dict.fromkeys(groups, 0)
    with contextlib.ExitStack() as stack:
        for group in groups:
            stack.enter_context(beside(place, publish(group)))
        # Nothing but sound snapshots is seen meanwhile, and they only get newer.
        for group in itertools.cycle(groups):
            snapshot = reader.newest(group, above=seen[group])
            if snapshot is not None:
                assert snapshot.manifest.group == group
                assert snapshot.tensors["bias"].equal(state(snapshot.manifest.update)["bias"])
                seen[group] = snapshot.manifest.update
            if all(update == updates[-1] for update in seen.values()):
                break
    for group in groups:
        assert exchange.updates(group) == [60, 50, 40]
        assert len(exchange.store.names(f"group-{group}")) == 6
    assert reader.rejections == 0


# What others see of it meanwhile.


def test_a_reader_sees_the_old_or_the_new_and_never_a_part(at, place):
    size = 3 * MEGABYTE

    def overwrite(stopped):
        other = Store(place.uri)
        for letter in itertools.cycle((b"o", b"n")):
            other.write("group-0/file.bin", letter * size)
            if stopped():
                return

    at.write("group-0/file.bin", b"o" * size)
    seen = set()
    with beside(place, overwrite):
        for i in range(400):
            data = at.read("group-0/file.bin", size)
            assert whole(data, size)
            assert at.size("group-0/file.bin") == size
            seen.add(data[:1])
            if i > 20 and len(seen) == 2:
                break
    assert seen == {b"o", b"n"}


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
@pytest.mark.parametrize("after", [0.0, 0.005, 0.02, 0.05])
def test_a_writer_killed_in_the_middle_leaves_the_old_or_the_new(at, place, after):
    size = 8 * MEGABYTE
    at.write("group-0/file.bin", b"o" * size)
    writing = FORK.Event()

    def write():
        data = b"n" * size
        other = Store(place.uri)
        other.names("")  # connected
        writing.set()
        other.write("group-0/file.bin", data)
        signal.pause()

    process = FORK.Process(target=write)
    process.start()
    assert writing.wait(60)
    time.sleep(after)  # somewhere in the middle of it
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    # An object store may still be at the last bytes that it got: look more than once.
    for _ in range(5):
        data = at.read("group-0/file.bin", size)
        assert whole(data, size)
        assert data[:1] in (b"o", b"n")
    at.write("group-0/file.bin", b"again")
    assert at.read("group-0/file.bin", 5) == b"again"


def test_a_listing_goes_on_while_another_deletes(at, place):
    def come_and_go(stopped):
        other = Store(place.uri)
        while not stopped():
            for i in range(20):
                other.write(f"group-0/{i}.json", b"{}")
            for i in range(20):
                other.delete(f"group-0/{i}.json")

    at.write("group-0/stays.json", b"{}")
    lengths = set()
    with beside(place, come_and_go):
        end = time.monotonic() + 30
        while time.monotonic() < end and len(lengths) < 5:
            names = [name for name in at.names("group-0") if not name.endswith(".tmp")]
            assert "stays.json" in names
            lengths.add(len(names))
    assert len(lengths) >= 5, "nothing came or went"


def test_what_is_removed_while_it_is_read_is_whole_or_missing(place):
    exchange = Exchange(Store(place.uri), "run")

    def come_and_go(stopped):
        other = Exchange(Store(place.uri), "run")
        while not stopped():
            other.publish(draft(10))
            other.store.delete("group-1/0000000010.json")
            other.store.delete("group-1/0000000010.safetensors")

    manifest = None
    outcomes = {"whole": 0, "missing": 0}
    with beside(place, come_and_go):
        end = time.monotonic() + 30
        while time.monotonic() < end and min(outcomes.values()) < 5:
            try:
                # Once known, the manifest is taken on trust: it may have gone.
                manifest = manifest or exchange.manifest(1, 10)
                snapshot = exchange.fetch(manifest)
                assert snapshot.tensors["bias"].equal(state(10)["bias"])
                outcomes["whole"] += 1
            except SnapshotMissing:
                outcomes["missing"] += 1
    assert min(outcomes.values()) >= 5, outcomes


# What it does when it cannot.


@pytest.mark.parametrize("place", ["faulty", "s3"], indirect=True)
def test_a_store_that_fails_says_so_in_bounded_time_and_works_again(at, place, monkeypatch):
    at.write("group-0/file.bin", b"old")
    at.write("group-0/gone.bin", b"old")
    # Not these times are tested but that there is an end at all.
    monkeypatch.setattr(store, "OPERATION_SECONDS", 1.0)
    monkeypatch.setattr(store, "SLOWEST_BYTES_PER_SECOND", 32 * MEGABYTE)
    for fault in place.faults:
        place.say(fault)
        for use in (
            lambda: at.write("group-0/file.bin", b"n" * 16 * MEGABYTE),  # more than fits in a pipe
            lambda: at.size("group-0/file.bin"),
            lambda: at.read("group-0/file.bin", 100),
            lambda: at.names("group-0"),
            # The last of them, as what is given up may take effect all the same, and late.
            lambda: at.delete("group-0/gone.bin"),
        ):
            before = time.monotonic()
            with pytest.raises(OSError, match=".") as raised:  # an error has words
                use()
            assert not isinstance(raised.value, FileNotFoundError), fault
            assert time.monotonic() - before < 30
        place.say("ok")
        monkeypatch.setattr(store, "OPERATION_SECONDS", 60.0)
        assert at.read("group-0/file.bin", 100) == b"old"
        at.write("group-0/other.bin", b"new")
        assert "other.bin" in at.names("group-0")
        monkeypatch.setattr(store, "OPERATION_SECONDS", 1.0)


@pytest.mark.parametrize("place", ["faulty", "s3"], indirect=True)
def test_a_slow_store_is_only_slow(at, place):
    data = bytes(range(256)) * 200
    at.write("group-0/other.bin", b"new")
    place.say("slow" if place.uri.startswith("faulty") else "slow 50000")
    at.write("group-0/file.bin", data)
    assert at.read("group-0/file.bin", len(data)) == data
    assert at.names("group-0") == ["file.bin", "other.bin"]


def test_a_store_opened_before_a_fork_serves_both_sides(at, place):
    at.write("group-0/file.bin", b"data")

    def child(stopped):
        assert at.read("group-0/file.bin", 4) == b"data"
        at.write("group-0/child.bin", b"child")
        stopped()

    with beside(place, child):
        assert at.read("group-0/child.bin", 5) == b"child"


def test_one_store_serves_many_threads(at):
    failures = []

    def work(group):
        try:
            for i in range(10):
                at.write(f"group-{group}/alive.json", b"%d" % i)
                assert at.read(f"group-{group}/alive.json", 9) == b"%d" % i
        except Exception as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(group,)) for group in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_uris_that_cannot_be_opened_are_refused():
    for uri in ("nosuch://exchange", "dir://x::nosuch://exchange"):
        with pytest.raises(ExchangeError, match=f"--codistill-dir {uri} cannot be opened"):
            Store(uri)


def test_a_bucket_that_is_not_there_is_said_and_not_made(s3, monkeypatch):
    server, _ = s3
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    nowhere = Store(server.uri("run", bucket="tpyo"))
    for use in (lambda: nowhere.names("group-0"), lambda: nowhere.write("group-0/x", b"")):
        with pytest.raises(OSError, match="the bucket of s3://tpyo/run does not exist; create it"):
            use()
    with pytest.raises(FileNotFoundError):
        nowhere.read("group-0/x", 9)


def test_s3_without_keys_says_so(s3, monkeypatch):
    server, _ = s3
    for name, value in server.environment().items():
        if "KEY" not in name:
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    with pytest.raises(OSError, match="Unable to locate credentials"):
        Store(server.uri("run")).names("group-0")


# Folders: what a person, or a foe, may put there.


@pytest.fixture
def folder(tmp_path):
    """An exchange, with a snapshot of group 0 and a secret outside."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.json").write_text("secret")
    Store(str(tmp_path / "exchange")).write("group-0/mine.json", b"mine")
    return tmp_path / "exchange"


def plant_link(path):
    path.symlink_to(path.parents[2] / "outside" / "secret.json")


def plant_link_within(path):
    path.symlink_to("mine.json")


def plant_dangling_link(path):
    path.symlink_to("nowhere")


def plant_pipe(path):
    os.mkfifo(path)


def plant_folder(path):
    path.mkdir()


def plant_device(path):
    if os.geteuid():
        pytest.skip("only root makes devices")
    os.mknod(path, 0o644 | 0o020000, os.makedev(1, 5))  # /dev/zero: it has no end


def plant_socket(path):
    with socket.socket(socket.AF_UNIX) as one:
        there = os.getcwd()
        os.chdir(path.parent)  # the name of a socket must be short
        try:
            one.bind(path.name)
        finally:
            os.chdir(there)


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (plant_link, "is a link"),
        (plant_link_within, "is a link"),
        (plant_dangling_link, "is a link"),
        (plant_pipe, "is a pipe"),
        (plant_folder, "is a folder"),
        (plant_device, "is a device"),
        (plant_socket, "is a socket"),
    ],
)
def test_only_regular_files_are_read(folder, plant, reason):
    at = Store(str(folder))
    plant(folder / "group-0" / "file.json")
    assert "file.json" in at.names("group-0"), "it is listed, so that it is rejected with a reason"
    with pytest.raises(SnapshotRejected, match=reason):
        at.size("group-0/file.json")
    with pytest.raises(SnapshotRejected, match=reason):
        at.read("group-0/file.json", 100)
    if plant is plant_folder:
        return
    at.write("group-0/file.json", b"new")
    assert at.read("group-0/file.json", 100) == b"new"
    assert (folder / "group-0" / "mine.json").read_text() == "mine"
    assert (folder.parent / "outside" / "secret.json").read_text() == "secret"
    plant(folder / "group-0" / "gone.json")
    at.delete("group-0/gone.json")
    assert at.names("group-0") == ["file.json", "mine.json"]
    assert (folder.parent / "outside" / "secret.json").exists()


def test_a_linked_group_folder_is_neither_read_nor_written(folder):
    at = Store(str(folder))
    (folder / "group-1").symlink_to(folder.parent / "outside")
    with pytest.raises(SnapshotRejected, match="no link is followed"):
        at.read("group-1/secret.json", 100)
    with pytest.raises(SnapshotRejected, match="no link is followed"):
        at.size("group-1/secret.json")
    for use in (
        lambda: at.write("group-1/new.json", b"new"),
        lambda: at.delete("group-1/secret.json"),
        lambda: at.names("group-1"),
    ):
        with pytest.raises(OSError, match="no link is followed"):
            use()
    assert os.listdir(folder.parent / "outside") == ["secret.json"]


def test_the_exchange_itself_may_be_a_link(folder):
    (folder.parent / "link").symlink_to(folder)
    at = Store(str(folder.parent / "link"))
    assert at.read("group-0/mine.json", 100) == b"mine"
    at.write("group-0/more.json", b"more")
    assert at.names("group-0") == ["mine.json", "more.json"]


@pytest.mark.parametrize("plant", [plant_link, plant_pipe, plant_folder, plant_device])
def test_what_is_put_there_between_check_and_use_is_not_read(folder, plant, monkeypatch):
    victim = folder / "group-0" / "mine.json"
    look = os.stat

    def look_and_swap(*args, **kwargs):
        status = look(*args, **kwargs)
        monkeypatch.undo()
        victim.unlink()
        plant(victim)
        return status

    monkeypatch.setattr(os, "stat", look_and_swap)
    with pytest.raises(SnapshotRejected, match="is not a regular file|where only regular files"):
        Store(str(folder)).read("group-0/mine.json", 100)
    assert not victim.is_file() or victim.is_symlink()


def test_a_group_folder_that_becomes_a_link_and_back_is_not_followed(folder):
    """Somebody swaps the folder and a link as fast as they can."""
    outside = folder.parent / "outside"
    (outside / "mine.json").write_text("secret")
    real, victim = folder / "real", folder / "group-0"
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            os.rename(victim, real)
            os.symlink(outside, victim)
            os.unlink(victim)
            os.rename(real, victim)

    thread = threading.Thread(target=swap)
    thread.start()
    at = Store(str(folder))
    outcomes = {"read": 0, "rejected": 0, "missing": 0}
    try:
        end = time.monotonic() + 20
        while time.monotonic() < end and min(outcomes["read"], outcomes["rejected"]) < 50:
            try:
                assert at.read("group-0/mine.json", 100) == b"mine"
                outcomes["read"] += 1
            except SnapshotRejected:
                outcomes["rejected"] += 1
            except FileNotFoundError:
                outcomes["missing"] += 1
    finally:
        stop.set()
        thread.join()
    assert min(outcomes["read"], outcomes["rejected"]) >= 50, outcomes


def test_a_file_that_grows_or_lies_about_its_size_takes_no_more_memory_than_the_limit(folder):
    at = Store(str(folder))
    path = folder / "group-0" / "sparse.bin"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(SnapshotRejected, match="more than 1000 bytes"):
            at.read("group-0/sparse.bin", 1000)
        # The size that is told may be too small as well: /proc says 0.
        with pytest.raises(SnapshotRejected, match="more than 10 bytes"):
            Store("/proc/self").read("status", 10)
        # A limit that is far too large costs nothing where the file is small.
        assert at.read("group-0/mine.json", 1 << 40) == b"mine"
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEGABYTE
    assert Store("/proc/self").read("status", 1 << 20).startswith(b"Name:")


def test_a_full_disk_leaves_the_old_and_no_rest(folder):
    at = Store(str(folder))

    def write():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (MEGABYTE, MEGABYTE))
        with pytest.raises(OSError, match="File too large"):
            at.write("group-0/mine.json", b"n" * 4 * MEGABYTE)
        os._exit(7)

    process = FORK.Process(target=write)
    process.start()
    process.join(60)
    assert process.exitcode == 7
    assert at.names("group-0") == ["mine.json"]
    assert at.read("group-0/mine.json", 100) == b"mine"


def test_an_exchange_removed_in_the_middle_is_made_again(folder):
    at = Store(str(folder))
    os.unlink(folder / "group-0" / "mine.json")
    os.rmdir(folder / "group-0")
    os.rmdir(folder)
    assert at.names("group-0") == []
    at.write("group-0/mine.json", b"again")
    assert at.read("group-0/mine.json", 100) == b"again"


def test_nfs_errors_are_plain_errors_of_the_system(folder, monkeypatch):
    def stale(*args, **kwargs):
        raise OSError(116, "Stale file handle")

    at = Store(str(folder))
    monkeypatch.setattr(os, "open", stale)
    for use in (
        lambda: at.read("group-0/mine.json", 100),
        lambda: at.write("group-0/mine.json", b""),
        lambda: at.names("group-0"),
    ):
        with pytest.raises(OSError, match="Stale file handle"):
            use()
