"""Snapshots on disk: what exists, what is refused and why, what is kept."""

import dataclasses
import hashlib
import json
import logging
import os
import pickle

import pytest
import torch

from fairseq_codistill.exchange import (
    WIRE_DTYPES,
    Draft,
    Exchange,
    PeerUnusable,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
    copy_out,
)

VOCABULARY = hashlib.sha256(b"words").hexdigest()


def state(seed=0):
    """A model's state with a tied tensor, an integer buffer, a scalar and an empty tensor."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(5, 3, generator=generator)
    return {
        "z.embedding": weight,
        "a.output": weight,
        "bias": torch.randn(5, generator=generator),
        "steps": torch.tensor(7),
        "scale": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        "part": torch.randn(4, 6, generator=generator).t()[1:],
    }


def draft(update=10, group=1, dtype="float32", tensors=None, **changes):
    tensors, aliases = copy_out(tensors or state(update), WIRE_DTYPES[dtype])
    fields = {
        "group": group,
        "seed": 1000004,
        "update": update,
        "epoch": 2,
        "dtype": dtype,
        "vocabulary": VOCABULARY,
        "model": {"arch": "transformer", "decoder_layers": 6},
        "tensors": tensors,
        "aliases": aliases,
    }
    return Draft(**(fields | changes))


@pytest.fixture
def exchange(tmp_path):
    return Exchange(Store(str(tmp_path)), "run")


@pytest.fixture
def reader(exchange):
    return Reader(exchange, seed=1, vocabulary=VOCABULARY)


def paths(tmp_path, update=10, group=1):
    stem = tmp_path / f"group-{group}" / f"{update:010d}"
    return stem.with_suffix(".safetensors"), stem.with_suffix(".json")


def test_what_is_damaged_is_published_anew(exchange, reader, tmp_path):
    for other_weights in (False, True):
        exchange.publish(draft(10))
        os.truncate(paths(tmp_path)[0], 100)
        again = draft(10, tensors=state(99)) if other_weights else draft(10)
        assert exchange.publish(again) is not None
        assert reader.read(1, 10).manifest.bytes > 100


def test_what_is_damaged_is_deleted_in_its_turn(exchange, tmp_path):
    for update in (1, 2, 3, 4):
        exchange.publish(draft(update))
    other = Exchange(exchange.store, "other")
    other.publish(draft(900))
    for update in (1, 4):
        paths(tmp_path, update)[1].write_text("no manifest")
    exchange.prune(1, keep=1)
    # 4 is no older than the one that is kept: a damaged one is not counted for a kept one.
    assert exchange.updates(1) == [900, 4, 3]
    assert not paths(tmp_path, 1)[0].exists()
    exchange.publish(draft(5))
    exchange.prune(1, keep=1)
    assert exchange.updates(1) == [900, 5]


def test_what_was_published_is_read(exchange, reader):
    assert exchange.publish(draft())
    snapshot = reader.read(1, 10)
    truth = state(10)
    assert snapshot.tensors.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(snapshot.tensors[name], tensor), name
        assert snapshot.tensors[name].dtype == tensor.dtype
    assert snapshot.manifest.epoch == 2
    assert snapshot.manifest.model["arch"] == "transformer"


def test_the_layout_on_disk_is_the_contract(exchange, tmp_path):
    exchange.publish(draft(update=2500))
    tensor_file, manifest_file = paths(tmp_path, 2500)
    manifest = json.loads(manifest_file.read_text())
    data = tensor_file.read_bytes()
    assert manifest["bytes"] == len(data)
    assert manifest["sha256"] == hashlib.sha256(data).hexdigest()
    assert manifest["aliases"] == {"z.embedding": "a.output"}
    assert sorted(os.listdir(tmp_path / "group-1")) == [manifest_file.name, tensor_file.name]
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert "z.embedding" not in header
    assert "a.output" in header


@pytest.mark.parametrize("dtype", WIRE_DTYPES)
def test_floating_point_tensors_travel_in_the_wire_dtype_and_others_in_their_own(
    exchange, reader, dtype
):
    exchange.publish(draft(dtype=dtype))
    tensors = reader.read(1, 10).tensors
    assert tensors["bias"].dtype == WIRE_DTYPES[dtype]
    assert torch.equal(tensors["bias"], state(10)["bias"].to(WIRE_DTYPES[dtype]))
    part = state(10)["part"]
    rounding = torch.finfo(WIRE_DTYPES[dtype]).eps if dtype != "int8" else 1 / 127
    torch.testing.assert_close(tensors["part"].float(), part, rtol=0, atol=rounding * 4)
    assert tensors["steps"].dtype == torch.int64


def test_the_copy_is_apart_from_the_model():
    model = state()
    tensors, _ = copy_out(model, torch.float32)
    model["bias"].add_(1)
    assert not torch.equal(tensors["bias"], model["bias"])


def test_snapshots_are_immutable(exchange, reader):
    assert exchange.publish(draft())
    assert exchange.publish(draft()), "the same weights again are no conflict"
    assert not exchange.publish(draft(tensors=state(99)))
    assert torch.equal(reader.read(1, 10).tensors["bias"], state(10)["bias"])


def test_the_newest_snapshot_is_found(exchange, reader):
    for update in (5, 30, 200):
        exchange.publish(draft(update))
    assert exchange.updates(1) == [200, 30, 5]
    assert reader.newest(1, above=-1).manifest.update == 200
    assert reader.newest(1, above=200) is None
    assert reader.newest(0, above=-1) is None


def test_the_newest_k_are_kept(exchange, tmp_path):
    for update in (5, 30, 200, 1000):
        exchange.publish(draft(update))
        exchange.prune(1, keep=2)
    assert exchange.updates(1) == [1000, 200]
    assert len(os.listdir(tmp_path / "group-1")) == 4
    exchange.prune(1, keep=0)
    assert exchange.updates(1) == [1000, 200]


def test_tensors_without_a_manifest_are_no_snapshot_and_are_swept(exchange, reader, tmp_path):
    exchange.publish(draft(5))
    exchange.publish(draft(10))
    paths(tmp_path)[1].unlink()
    (tmp_path / "group-1" / "0000000020.json.1234.tmp").write_bytes(b"{")
    assert exchange.updates(1) == [5]
    with pytest.raises(SnapshotMissing):
        reader.read(1, 10)
    exchange.sweep(1)
    assert sorted(os.listdir(tmp_path / "group-1")) == [p.name for p in paths(tmp_path, 5)[::-1]]


def test_what_a_group_starts_anew_without_is_removed_the_newest_last(exchange, reader, monkeypatch):
    for update in (5, 30, 200, 1000):
        exchange.publish(draft(update))
    seen, delete = [], Store.delete

    def watched(self, name):
        # What a peer would take that has the newest one.
        seen.append(reader.newest(1, above=1000))
        delete(self, name)

    monkeypatch.setattr(Store, "delete", watched)
    assert [manifest.update for manifest in exchange.above(1, 5)] == [1000, 200, 30]
    exchange.remove(1, [1000, 30, 200])
    assert seen[:-1] == [None] * 5
    assert exchange.updates(1) == [5]


def test_files_of_another_run_are_never_used_and_give_way(exchange, reader, tmp_path):
    other = Exchange(Store(str(tmp_path)), "other run")
    other.publish(draft(10, tensors=state(3)))
    other.publish(draft(900, tensors=state(3)))
    with pytest.raises(SnapshotMissing, match="'other run'"):
        reader.read(1, 10)
    assert reader.newest(1, above=-1) is None
    assert exchange.publish(draft(10))
    assert torch.equal(reader.newest(1, above=-1).tensors["bias"], state(10)["bias"])
    exchange.prune(1, keep=1)
    assert exchange.updates(1) == [900, 10], "another run's snapshots are not ours to delete"


def test_what_the_heartbeat_is_writing_is_not_swept(exchange, tmp_path):
    folder = tmp_path / "group-1"
    folder.mkdir()
    for name in ("alive.json.12345678.tmp", "0000000010.json.12345678.tmp"):
        (folder / name).write_bytes(b"{")
    exchange.sweep(1)
    assert os.listdir(folder) == ["alive.json.12345678.tmp"]


def test_what_was_rejected_is_not_read_again(exchange, reader, tmp_path, monkeypatch):
    exchange.publish(draft(10))
    exchange.publish(draft(20))
    not_finite(*paths(tmp_path, 20))
    read = []
    manifest = exchange.manifest
    monkeypatch.setattr(exchange, "manifest", lambda *of: read.append(of) or manifest(*of))
    for _ in range(3):
        assert reader.newest(1, above=-1).manifest.update == 10
    assert read.count((1, 20)) == 1
    assert reader.rejections == 1


def test_an_alias_hides_no_tensor(exchange, reader, tmp_path):
    # Of one shape, so that the digest of names and shapes tells nothing.
    exchange.publish(draft(10, tensors={"a": torch.zeros(2), "b": torch.ones(2)}))
    rewrite(paths(tmp_path)[1], aliases={"b": "a"})
    with pytest.raises(SnapshotRejected, match="alias 'b' -> 'a' does not fit its tensors"):
        reader.read(1, 10)


def test_whole_numbers_times_their_scale_are_finite(exchange, reader, tmp_path):
    from safetensors.torch import save

    exchange.publish(draft(10, dtype="int8", tensors={"w": torch.ones(2, 2)}))
    large = {"w": torch.full((2, 2), 127, dtype=torch.int8), "w:scale": torch.full((2,), 3e38)}
    replace(*paths(tmp_path), save(large))
    with pytest.raises(SnapshotRejected, match="'w' holds numbers that are not finite"):
        reader.read(1, 10)


@pytest.mark.parametrize("sizes", [(3, 2), (6,), (2, 3, 1)])
def test_tensors_of_other_sizes_than_the_manifests_are_rejected(exchange, reader, tmp_path, sizes):
    from safetensors.torch import save

    exchange.publish(draft(10, tensors={"a": torch.zeros(2, 3)}))
    replace(*paths(tmp_path), save({"a": torch.zeros(sizes)}))
    with pytest.raises(SnapshotRejected, match="names and shapes"):
        reader.read(1, 10)


@pytest.mark.parametrize("place", [(1, 20), (2, 10)])
def test_a_manifest_in_the_place_of_another_is_rejected(exchange, reader, tmp_path, place):
    exchange.publish(draft(10))
    group, update = place
    for source, target in zip(paths(tmp_path), paths(tmp_path, update, group), strict=True):
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(source.read_bytes())
    with pytest.raises(SnapshotRejected, match="is that of group 1, update 10"):
        reader.read(group, update)


def truncate(tensor_file, manifest_file):
    os.truncate(tensor_file, tensor_file.stat().st_size - 4)


def alter(tensor_file, manifest_file):
    data = bytearray(tensor_file.read_bytes())
    data[-1] ^= 1
    tensor_file.write_bytes(data)


def rewrite(manifest_file, **changes):
    fields = json.loads(manifest_file.read_text()) | changes
    manifest_file.write_text(json.dumps(fields))


def replace(tensor_file, manifest_file, data):
    tensor_file.write_bytes(data)
    rewrite(manifest_file, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())


def not_safetensors(tensor_file, manifest_file):
    replace(tensor_file, manifest_file, b"these are not the tensors you look for")


class Trap:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return (os.mkdir, ("trapped",))


def a_pickle(tensor_file, manifest_file):
    replace(tensor_file, manifest_file, pickle.dumps(Trap()))


def other_tensors(tensor_file, manifest_file):
    from safetensors.torch import save

    replace(tensor_file, manifest_file, save({"bias": torch.zeros(3)}))


def not_finite(tensor_file, manifest_file):
    from safetensors.torch import load, save

    tensors = load(tensor_file.read_bytes())
    tensors["bias"][0] = float("nan")
    replace(tensor_file, manifest_file, save(tensors))


def alias_to_nowhere(tensor_file, manifest_file):
    rewrite(manifest_file, aliases={"z.embedding": "nowhere"})


def not_json(tensor_file, manifest_file):
    manifest_file.write_text("{")


def not_an_object(tensor_file, manifest_file):
    manifest_file.write_text("[]")


def field_missing(tensor_file, manifest_file):
    fields = json.loads(manifest_file.read_text())
    del fields["sha256"]
    manifest_file.write_text(json.dumps(fields))


def field_of_another_kind(tensor_file, manifest_file):
    rewrite(manifest_file, bytes="many")


def later_format(tensor_file, manifest_file):
    rewrite(manifest_file, format=3)


def misplaced(tensor_file, manifest_file):
    rewrite(manifest_file, update=11)


def huge_manifest(tensor_file, manifest_file):
    rewrite(manifest_file, model={"x": "x" * 5_000_000})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (truncate, "bytes where its manifest says"),
        (alter, "SHA-256"),
        (not_safetensors, "not safetensors"),
        (a_pickle, "not safetensors"),
        (other_tensors, "alias 'z.embedding' -> 'a.output' does not fit"),
        (not_finite, "'bias' holds numbers that are not finite"),
        (alias_to_nowhere, "alias 'z.embedding' -> 'nowhere' does not fit"),
        (not_json, "not JSON"),
        (not_an_object, "not a JSON object"),
        (field_missing, "the fields sha256"),
        (field_of_another_kind, "field bytes is 'many'"),
        (later_format, "has format 3"),
        (misplaced, "is that of group 1, update 11"),
        (huge_manifest, "is larger than"),
    ],
)
def test_a_damaged_snapshot_is_rejected_once_with_its_reason(
    exchange, reader, tmp_path, caplog, monkeypatch, damage, reason
):
    monkeypatch.chdir(tmp_path)
    exchange.publish(draft(5))
    exchange.publish(draft(10))
    damage(*paths(tmp_path))
    with pytest.raises(SnapshotRejected, match=reason):
        reader.read(1, 10)
    # The one before is used in its place, and the log has one line however often one looks.
    for _ in range(3):
        assert reader.newest(1, above=-1).manifest.update == 5
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert reason in caplog.text
    assert not (tmp_path / "trapped").exists()


def test_other_shapes_than_the_manifests_are_rejected(exchange, reader, tmp_path):
    exchange.publish(draft(10))
    rewrite(paths(tmp_path)[1], shapes="0" * 64)
    with pytest.raises(SnapshotRejected, match="names and shapes"):
        reader.read(1, 10)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"vocabulary": "f" * 64}, "another target vocabulary"), ({"seed": 1}, "--seed 1")],
)
def test_a_peer_that_can_never_be_used_is_one_error_line(exchange, reader, caplog, changes, reason):
    for update in (10, 20):
        exchange.publish(draft(update, **changes))
        with pytest.raises(PeerUnusable, match=reason):
            reader.read(1, update)
        assert reader.newest(1, above=-1) is None
    assert [r.levelname for r in caplog.records] == ["ERROR"]


def test_a_snapshot_deleted_while_it_is_read_is_missing(exchange, reader, tmp_path):
    exchange.publish(draft(10))
    manifest = exchange.manifest(1, 10)
    paths(tmp_path)[0].unlink()
    with pytest.raises(SnapshotMissing):
        exchange.fetch(manifest)


def test_equal_drafts_are_equal_bytes(exchange, tmp_path):
    exchange.publish(draft(10, group=0))
    exchange.publish(draft(10, group=1))
    ours, theirs = (paths(tmp_path, 10, group)[0].read_bytes() for group in (0, 1))
    assert ours == theirs
    assert dataclasses.replace(exchange.manifest(0, 10), group=1, time=0.0) == dataclasses.replace(
        exchange.manifest(1, 10), time=0.0
    )


def with_header(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(dtype="F32", shape=(1,), offsets=(0, 4), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **more}


# Most of these are sound to safetensors.
ODD_FILES = {
    "empty": (b"", "bytes is 0"),
    "cut": (b"\x01", "header is cut short"),
    "huge header": (b"\xff" * 7 + b"\x7f" + b"{}", "header is cut short"),
    "large header": (with_header(b"{" + b" " * 2**22 + b"}"), "header of more than 4194304 bytes"),
    "nothing": (with_header({}), "holds no tensor"),
    "name twice": (
        with_header(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
        "'a' is there more than once",
    ),
    "metadata": (with_header({"__metadata__": {}, "a": entry()}, bytes(4)), "has metadata"),
    "unknown field": (with_header({"a": entry(more=1)}, bytes(4)), "describes 'a' as"),
    "list": (with_header({"a": ["F32", [1], [0, 4]]}, bytes(4)), "describes 'a' as"),
    "space first": (with_header(b" " + json.dumps({"a": entry()}).encode(), bytes(4)), "otherwise"),
    "no name": (with_header({"": entry()}, bytes(4)), "names a tensor ''"),
    "half a pair": (with_header({"\ud800": entry()}, bytes(4)), "names a tensor"),
    "float64": (with_header({"a": entry("F64", (1,), (0, 8))}, bytes(8)), "dtype F64"),
    "bfloat16": (with_header({"a": entry("BF16", (2,))}, bytes(4)), "dtype BF16"),
    "float8": (with_header({"a": entry("F8_E4M3", (4,))}, bytes(4)), "dtype F8_E4M3"),
    "complex": (with_header({"a": entry("C64", (1,), (0, 8))}, bytes(8)), "dtype C64"),
    "no bool": (with_header({"a": entry("BOOL", (4,))}, b"\0\1\2\1"), "bools that are none"),
    "overlap": (
        with_header({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6)),
        "not safetensors",
    ),
    "hole": (with_header({"a": entry(), "b": entry(offsets=(8, 12))}, bytes(12)), "safetensors"),
    "tail": (with_header({"a": entry()}, bytes(8)), "not safetensors"),
    "overflow": (
        with_header({"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}),
        "describes 'a' as",
    ),
    # Found by the fuzzer, after 65,303 cases: this one torch does make.
    "huge and empty": (
        with_header({"a": entry(shape=(2**40, 0, 2**40), offsets=(0, 0))}),
        "describes 'a' as",
    ),
    "many dimensions": (with_header({"a": entry(shape=[1] * 17)}, bytes(4)), "describes 'a' as"),
    "deep": (with_header(b'{"a":' * 100_000), "nested too deeply"),
    "minus nothing": (
        with_header(b'{"a":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
        "-0",
    ),
}


@pytest.mark.parametrize("odd", ODD_FILES)
def test_an_odd_tensor_file_is_rejected(exchange, reader, tmp_path, odd):
    data, reason = ODD_FILES[odd]
    exchange.publish(draft(10, tensors={"a": torch.zeros(1)}))
    replace(*paths(tmp_path), data)
    with pytest.raises(SnapshotRejected, match=reason):
        reader.read(1, 10)


def test_a_panic_of_safetensors_is_a_rejection(exchange, reader, monkeypatch):
    class PanicException(BaseException):
        pass

    def panic(data):
        raise PanicException("index out of bounds")

    exchange.publish(draft(10))
    monkeypatch.setattr("fairseq_codistill.exchange.tensors._load", panic)
    with pytest.raises(SnapshotRejected, match="makes safetensors panic"):
        reader.read(1, 10)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("run_id", v) for v in ("", "x" * 201, "\ud800", 1)],
        *[("group", v) for v in (-1, 10**6, True, 1.0)],
        *[("seed", v) for v in (2**64, "1", None)],
        *[("update", v) for v in (-1, 10**10)],
        *[("epoch", v) for v in (0, 2**31 + 1)],
        *[("dtype", v) for v in ("float64", "F32", ["float32"])],
        *[("bytes", v) for v in (0, -1, 2**60 + 1, 1e3)],
        *[(name, v) for name in ("sha256", "shapes", "hmac") for v in ("0" * 63, "F" * 64, None)],
        ("sha256", "0" * 64 + "\n"),
        *[("aliases", v) for v in ([], {"a": 1}, {"": "a"}, {"a": "x" * 1001})],
        *[("vocabulary", v) for v in ("", "x" * 65)],
        *[("model", v) for v in ([], {"a": 2**63}, {"a": "x" * 5000}, {"a": [[[[[[[]]]]]]]})],
        *[("time", v) for v in (0, -1.0, 2.0**41, True, "now")],
        *[("format", v) for v in (True, 1.0, 0, None)],
    ],
)
def test_a_field_out_of_its_range_is_rejected(exchange, reader, tmp_path, field, value):
    exchange.publish(draft(10))
    rewrite(paths(tmp_path)[1], **{field: value})
    with pytest.raises(SnapshotRejected, match=f"field {field} is|has format"):
        reader.read(1, 10)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-1] + ', "group": 1}', "'group' is there more than once"),
        (lambda text: text.replace('"epoch": 2', '"epoch": NaN'), "NaN is no number"),
        (lambda text: text.replace('"epoch": 2', '"epoch": 1e999'), "1e999 is too large"),
        (lambda text: text.replace('"epoch": 2', '"epoch": ' + "9" * 5000), "not JSON"),
        (lambda text: text.replace('"epoch": 2', '"epoch": ' + "[" * 100_000), "too deeply"),
        (lambda text: text[:-1] + ', "more": 1}', "should not have, the fields more"),
        (lambda text: text + " " * 2**20, "larger than 1048576 bytes"),
    ],
)
def test_json_that_is_not_strict_is_rejected(exchange, reader, tmp_path, change, reason):
    exchange.publish(draft(10))
    manifest_file = paths(tmp_path)[1]
    manifest_file.write_text(change(manifest_file.read_text()))
    with pytest.raises(SnapshotRejected, match=reason):
        reader.read(1, 10)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig", "utf-32-le"])
def test_a_manifest_is_utf_8(exchange, reader, tmp_path, encoding):
    exchange.publish(draft(10))
    manifest_file = paths(tmp_path)[1]
    manifest_file.write_text(manifest_file.read_text(), encoding=encoding)
    with pytest.raises(SnapshotRejected, match="not JSON"):
        reader.read(1, 10)


def test_of_workers_that_read_the_same_one_says_what_was_rejected(exchange, tmp_path, caplog):
    exchange.publish(draft(10))
    paths(tmp_path)[0].write_bytes(b"x")
    for quiet, said in ((True, []), (False, ["WARNING"])):
        caplog.clear()
        with pytest.raises(SnapshotRejected):
            Reader(exchange, 1, VOCABULARY, quiet=quiet).read(1, 10)
        assert [r.levelname for r in caplog.records if r.levelno >= logging.INFO] == said


def test_a_file_too_large_for_the_group_is_not_read(exchange, tmp_path, monkeypatch):
    exchange.publish(draft(10))
    size = paths(tmp_path)[0].stat().st_size
    assert Reader(exchange, 1, VOCABULARY, largest=size).read(1, 10)
    read = exchange.store.read
    names = []
    monkeypatch.setattr(exchange.store, "read", lambda n, limit: names.append(n) or read(n, limit))
    with pytest.raises(SnapshotRejected, match=f"may take {size} bytes, and this group reads no"):
        Reader(exchange, 1, VOCABULARY, largest=size - 1).read(1, 10)
    # Nor one that takes more once it is unpacked.
    exchange.publish(draft(20, dtype="int8"))
    size = paths(tmp_path, 20)[0].stat().st_size
    with pytest.raises(SnapshotRejected, match=f"may take {4 * size} bytes"):
        Reader(exchange, 1, VOCABULARY, largest=4 * size - 1).read(1, 20)
    # Nor one that has another size than its manifest says.
    paths(tmp_path)[0].write_bytes(b"x" * 10**6)
    with pytest.raises(SnapshotRejected, match="has 1000000 bytes where its manifest says"):
        Reader(exchange, 1, VOCABULARY).read(1, 10)
    assert names == [f"group-1/00000000{update}.json" for update in (10, 20, 10)]


def test_a_reason_is_one_line_whatever_a_peer_writes(exchange, reader, tmp_path, caplog):
    exchange.publish(draft(10))
    forged = "x\n2026-01-01 | INFO | fairseq_codistill | peer 1 is fine\x1b[2J\u2028\ud800"
    rewrite(paths(tmp_path)[1], **{forged: 1, "y" * 10_000: 2})
    with pytest.raises(SnapshotRejected) as raised:
        reader.read(1, 10)
    (record,) = caplog.records
    for text in (str(raised.value), record.getMessage()):
        assert text.isprintable()
        assert len(text) < 700


def test_what_peers_would_refuse_is_not_published(exchange, tmp_path):
    with pytest.raises(SnapshotRejected, match="field vocabulary is ''"):
        exchange.publish(draft(10, vocabulary=""))
    with pytest.raises(SnapshotRejected, match="Infinity is no number"):
        exchange.publish(draft(10, model={"dropout": float("inf")}))
    with pytest.raises(SnapshotRejected, match="its manifest is larger"):
        exchange.publish(draft(10, model={str(i): "x" * 4000 for i in range(300)}))
    assert not (tmp_path / "group-1").exists()
