"""Snapshots on disk: what exists, what is refused and why, what is kept."""

import dataclasses
import hashlib
import json
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
    rewrite(manifest_file, format=2)


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
        (later_format, "has format 2"),
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
