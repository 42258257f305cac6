"""Manifests of both formats: what earlier versions wrote is read, and signed as it was."""

import hashlib
import hmac
import json
import struct

import pytest
import torch
from test_exchange import draft, paths, rewrite

from fairseq_codistill.exchange import (
    Exchange,
    Manifest,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
)
from fairseq_codistill.status.places import Place
from fairseq_codistill.status.survey import Survey

KEY = b"a key that both groups have had for long"
VOCABULARY = hashlib.sha256(b"<s>\n<pad>\n</s>\n<unk>\nHund\nMann").hexdigest()
SOURCE = hashlib.sha256(b"<s>\n<pad>\n</s>\n<unk>\ndog\nman").hexdigest()

# A tensor file by hand: two numbers of bfloat16 and one of 64 bits.
HEADER = (
    b'{"steps":{"dtype":"I64","shape":[],"data_offsets":[0,8]},'
    b'"decoder.embed":{"dtype":"BF16","shape":[1,2],"data_offsets":[8,12]}}'
)
HEADER += b" " * (-len(HEADER) % 8)
TENSORS = struct.pack("<Q", len(HEADER)) + HEADER + struct.pack("<qHH", 7, 0x3F80, 0xC000)
SHAPES = '[["decoder.embed", [1, 2]], ["decoder.out", [1, 2]], ["steps", []]]'

# A manifest by hand, as commit 3971bee wrote them.
FORMAT_1 = f"""{{
 "aliases": {{
  "decoder.out": "decoder.embed"
 }},
 "bytes": {len(TENSORS)},
 "dtype": "bfloat16",
 "epoch": 3,
 "format": 1,
 "group": 1,
 "model": {{
  "arch": "transformer",
  "dropout": 0.1
 }},
 "run_id": "of last year",
 "seed": 1000004,
 "sha256": "{hashlib.sha256(TENSORS).hexdigest()}",
 "shapes": "{hashlib.sha256(SHAPES.encode()).hexdigest()}",
 "time": 1767225600.25,
 "update": 2500,
 "vocabulary": "{VOCABULARY}"
}}"""
# What this version writes has one field more, or none for images.
FORMAT_2 = FORMAT_1.replace('"format": 1', '"format": 2')
WITH_SOURCE = FORMAT_2.replace(' "time"', f' "source_vocabulary": "{SOURCE}",\n "time"')
FORMATS = {"1": FORMAT_1, "2": WITH_SOURCE, "2 without source": FORMAT_2}


def signed(manifest: str, key: bytes = KEY) -> str:
    """Sign a manifest as README says."""
    fields = json.loads(manifest)
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    return json.dumps(fields | {"hmac": hmac.new(key, content, hashlib.sha256).hexdigest()})


@pytest.fixture
def put(tmp_path):
    """Put a manifest and its tensor file into an exchange."""

    def write(manifest):
        folder = tmp_path / "group-1"
        folder.mkdir(exist_ok=True)
        (folder / "0000002500.safetensors").write_bytes(TENSORS)
        (folder / "0000002500.json").write_text(manifest)

    return write


def reader(tmp_path, key=None, run_id="of last year"):
    exchange = Exchange(Store(str(tmp_path)), run_id, key)
    return Reader(exchange, seed=1, vocabulary=VOCABULARY, source_vocabulary=SOURCE)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("key", [None, KEY], ids=["unsigned", "signed"])
def test_both_formats_are_read(tmp_path, put, name, key):
    manifest = FORMATS[name]
    put(manifest if key is None else signed(manifest, key))
    snapshot = reader(tmp_path, key).newest(1, above=-1)
    assert snapshot is not None
    embed = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    assert snapshot.tensors.keys() == {"decoder.embed", "decoder.out", "steps"}
    for tensor in (snapshot.tensors["decoder.embed"], snapshot.tensors["decoder.out"]):
        assert torch.equal(tensor, embed)
    assert snapshot.tensors["steps"].item() == 7
    said = snapshot.manifest
    assert (said.group, said.seed, said.update, said.epoch) == (1, 1000004, 2500, 3)
    assert said.model == {"arch": "transformer", "dropout": 0.1}
    assert said.source_vocabulary == (SOURCE if name == "2" else None)
    # Written again it is what it was.
    assert json.loads(said.to_json()) == json.loads(paths(tmp_path, 2500)[1].read_text())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "changes",
    [{"epoch": 4}, {"format": 2}, {"format": 1}, {"source_vocabulary": "0" * 64}, {"time": 1.0}],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_of_both_is_signed(tmp_path, put, name, changes):
    put(signed(FORMATS[name]))
    manifest = paths(tmp_path, 2500)[1]
    before = json.loads(manifest.read_text())
    if before | changes == before:
        pytest.skip("it says so already")
    rewrite(manifest, **changes)
    with pytest.raises(SnapshotRejected, match="signed with another|should not have, the fields"):
        reader(tmp_path, KEY).read(1, 2500)


def test_a_source_vocabulary_cannot_be_taken_out_of_what_is_signed(tmp_path, put):
    put(signed(WITH_SOURCE))
    manifest = paths(tmp_path, 2500)[1]
    fields = json.loads(manifest.read_text())
    del fields["source_vocabulary"]
    manifest.write_text(json.dumps(fields))
    with pytest.raises(SnapshotRejected, match="signed with another CODISTILL_KEY"):
        reader(tmp_path, KEY).read(1, 2500)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format": 0}, "has format 0, and this version of fairseq_codistill reads 1 and 2"),
        ({"format": 3}, "has format 3, and this version of fairseq_codistill reads 1 and 2"),
        ({"format": "2"}, "has format '2'"),
        ({"format": [2]}, "has format \\[2\\]"),
        ({"format": True}, "field format is True"),
        ({"format": 2.0}, "field format is 2.0"),
        ({"format": 1, "source_vocabulary": SOURCE}, "should not have, the fields source_vocabul"),
        ({"format": 2, "source_vocabulary": None}, "field source_vocabulary is None"),
        ({"format": 2, "source_vocabulary": ""}, "field source_vocabulary is ''"),
        ({"format": 2, "source": SOURCE}, "should not have, the fields source"),
    ],
)
def test_other_formats_and_fields_are_refused(changes, reason):
    content = json.dumps(json.loads(FORMAT_1) | changes).encode()
    with pytest.raises(SnapshotRejected, match=reason):
        Manifest.from_json(content)


@pytest.mark.parametrize("source", [SOURCE, None])
def test_this_version_writes_format_2(tmp_path, source):
    exchange = Exchange(Store(str(tmp_path)), "run", KEY)
    exchange.publish(draft(2500, source_vocabulary=source))
    written = json.loads(paths(tmp_path, 2500)[1].read_text())
    expected = set(json.loads(FORMAT_1)) | {"hmac"} | ({"source_vocabulary"} if source else set())
    assert written.keys() == expected
    assert (written["format"], written.get("source_vocabulary")) == (2, source)
    del written["hmac"]
    assert json.loads(signed(json.dumps(written))) == json.loads(
        paths(tmp_path, 2500)[1].read_text()
    )


def test_status_reads_both_formats(tmp_path, put):
    put(FORMAT_1)
    Exchange(Store(str(tmp_path)), "of last year").publish(draft(5000, group=2))
    (run,) = Survey(Place(str(tmp_path))).look().runs
    newest = {member.group: member.snapshot.update for member in run.members if member.snapshot}
    assert newest == {1: 2500, 2: 5000}


def test_a_run_goes_on_in_an_exchange_that_an_earlier_version_wrote(tmp_path, put):
    """The same weights are no conflict, others are, and pruning counts both formats."""
    put(FORMAT_1)
    exchange = Exchange(Store(str(tmp_path)), "of last year")
    embed = torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16)
    weights = {"decoder.embed": embed, "decoder.out": embed, "steps": torch.tensor(7)}
    same = exchange.publish(draft(2500, dtype="bfloat16", tensors=weights))
    assert same is not None
    assert same.format == 1
    other = {"decoder.embed": -embed, "decoder.out": embed, "steps": torch.tensor(7)}
    assert exchange.publish(draft(2500, dtype="bfloat16", tensors=other)) is None
    assert paths(tmp_path, 2500)[1].read_text() == FORMAT_1
    exchange.publish(draft(5000))
    exchange.prune(1, keep=2)
    assert exchange.updates(1) == [5000, 2500]
    exchange.prune(1, keep=1)
    assert exchange.updates(1) == [5000]
    with pytest.raises(SnapshotMissing):
        exchange.manifest(1, 2500)
