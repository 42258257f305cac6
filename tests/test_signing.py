"""CODISTILL_KEY: what is published without the key is not used, and nothing shows the key."""

import hashlib
import hmac
import json
import logging
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from harness import BIN, CODISTILL, LOCKSTEP, TINY, environment
from test_exchange import VOCABULARY, draft, paths, replace, rewrite, state

from fairseq_codistill.exchange import (
    Exchange,
    ExchangeError,
    Reader,
    SnapshotMissing,
    SnapshotRejected,
    Store,
    key_from,
    say_what_it_does,
)

KEY = b"a secret that nobody can guess"
OTHER = b"another secret, as good as that"


def exchange(folder, key=None, run_id="run"):
    return Exchange(Store(str(folder)), run_id, key)


def read(folder, key=None, update=10, group=1, run_id="run"):
    reader = Reader(exchange(folder, key, run_id), seed=1, vocabulary=VOCABULARY)
    return reader.read(group, update)


def sign(manifest_file, key=KEY):
    """Sign a file as the README says, without the code under test."""
    fields = json.loads(manifest_file.read_text())
    fields.pop("hmac", None)
    content = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()
    fields["hmac"] = hmac.new(key, content, hashlib.sha256).hexdigest()
    manifest_file.write_text(json.dumps(fields))


def test_the_key_is_that_of_the_environment():
    assert key_from({}) is None
    assert key_from({"CODISTILL_KEY": KEY.decode()}) == KEY
    assert key_from({"CODISTILL_KEY": "ä" * 16}) == ("ä" * 16).encode()


@pytest.mark.parametrize("key", ["", " ", "\n\t"])
def test_an_empty_key_is_refused_and_does_not_mean_unsigned(key):
    with pytest.raises(ExchangeError, match="CODISTILL_KEY is set, and is empty; give all groups"):
        key_from({"CODISTILL_KEY": key})


def test_the_log_says_whether_manifests_are_signed(caplog):
    caplog.set_level("INFO")
    say_what_it_does(None)
    say_what_it_does(KEY)
    assert caplog.messages == [
        "manifests are not signed: there is no CODISTILL_KEY",
        "manifests are signed with CODISTILL_KEY, and those that are not are refused",
    ]


@pytest.mark.parametrize("key", ["qz", "fifteen letters"])
def test_a_short_key_signs_with_a_warning_and_is_not_shown(key, caplog):
    say_what_it_does(key_from({}))
    say_what_it_does(KEY)
    assert not caplog.records
    found = key_from({"CODISTILL_KEY": key})
    assert found == key.encode()
    say_what_it_does(found)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "the key in CODISTILL_KEY is shorter than 16 characters" in record.getMessage()
    assert key not in record.getMessage()


def test_groups_with_one_key_read_each_other(tmp_path):
    exchange(tmp_path, KEY).publish(draft())
    snapshot = read(tmp_path, KEY)
    assert torch.equal(snapshot.tensors["bias"], state(10)["bias"])
    content = paths(tmp_path)[1].read_text()
    sign(paths(tmp_path)[1])
    assert json.loads(paths(tmp_path)[1].read_text()) == json.loads(content)


def test_a_group_without_a_key_reads_what_is_signed_and_writes_nothing_of_it(tmp_path):
    exchange(tmp_path, KEY).publish(draft())
    assert read(tmp_path).manifest.hmac is not None
    exchange(tmp_path).publish(draft(20))
    assert "hmac" not in json.loads(paths(tmp_path, 20)[1].read_text())


@pytest.mark.parametrize(
    ("key", "reason"),
    [(None, "its manifest is unsigned"), (OTHER, "signed with another CODISTILL_KEY")],
)
def test_a_group_with_a_key_refuses_others(tmp_path, key, reason):
    exchange(tmp_path, key).publish(draft())
    with pytest.raises(SnapshotRejected, match=reason):
        read(tmp_path, KEY)
    with pytest.raises(SnapshotRejected, match=reason):
        exchange(tmp_path, KEY).manifest(1, 10)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"epoch": 3},
        {"dtype": "bfloat16"},
        {"bytes": 1},
        {"sha256": "0" * 64},
        {"shapes": "0" * 64},
        {"aliases": {}},
        {"vocabulary": "v"},
        {"model": {"arch": "lstm"}},
        {"time": 1.0},
        {"hmac": "0" * 64},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_field_is_signed(tmp_path, changes):
    exchange(tmp_path, KEY).publish(draft())
    rewrite(paths(tmp_path)[1], **changes)
    with pytest.raises(SnapshotRejected, match="signed with another CODISTILL_KEY"):
        read(tmp_path, KEY)


def test_other_tensors_with_a_digest_of_their_own_are_refused(tmp_path):
    exchange(tmp_path, KEY).publish(draft())
    exchange(tmp_path / "mine").publish(draft(tensors=state(99)))
    replace(*paths(tmp_path), paths(tmp_path / "mine")[0].read_bytes())
    with pytest.raises(SnapshotRejected, match="signed with another CODISTILL_KEY"):
        read(tmp_path, KEY)


def replay(tmp_path, update=10, group=1):
    for source, target in zip(paths(tmp_path), paths(tmp_path, update, group), strict=True):
        target.parent.mkdir(exist_ok=True)
        shutil.copy(source, target)


@pytest.mark.parametrize("place", [{"update": 500}, {"group": 2}])
def test_a_replay_in_another_place_is_refused(tmp_path, place):
    exchange(tmp_path, KEY).publish(draft())
    replay(tmp_path, **place)
    with pytest.raises(SnapshotRejected, match="is that of group 1, update 10"):
        read(tmp_path, KEY, **place)
    rewrite(paths(tmp_path, **place)[1], **place)
    with pytest.raises(SnapshotRejected, match="signed with another CODISTILL_KEY"):
        read(tmp_path, KEY, **place)
    # That was for its signature: with the right one it passes.
    sign(paths(tmp_path, **place)[1])
    assert read(tmp_path, KEY, **place)


def test_a_replay_in_another_run_is_refused(tmp_path):
    exchange(tmp_path, KEY, "old run").publish(draft())
    with pytest.raises(SnapshotMissing, match="'old run'"):
        read(tmp_path, KEY)
    rewrite(paths(tmp_path)[1], run_id="run")
    with pytest.raises(SnapshotRejected, match="signed with another CODISTILL_KEY"):
        read(tmp_path, KEY)


@pytest.mark.parametrize("before", [None, OTHER])
def test_a_groups_own_snapshot_of_another_key_gives_way_and_is_deleted_in_its_turn(
    tmp_path, before
):
    for update in (10, 20, 30):
        exchange(tmp_path, before).publish(draft(update))
    own = exchange(tmp_path, KEY)
    assert own.newest_update(1) is None
    assert own.publish(draft(20, tensors=state(99)))
    assert torch.equal(read(tmp_path, KEY, 20).tensors["bias"], state(99)["bias"])
    own.publish(draft(40))
    own.prune(1, keep=1)
    assert own.updates(1) == [40]


def test_with_a_key_snapshots_are_as_immutable_as_without(tmp_path):
    own = exchange(tmp_path, KEY)
    assert own.publish(draft())
    before = paths(tmp_path)[1].read_bytes()
    assert own.publish(draft())
    assert not own.publish(draft(tensors=state(99)))
    assert paths(tmp_path)[1].read_bytes() == before


def test_a_configuration_is_signed_as_it_is_read(tmp_path):
    # JSON has lists and texts where Python also has tuples and numbers for keys.
    exchange(tmp_path, KEY).publish(draft(model={"a": (1, 2), "b": {2: 0.1, 10: 1e22}}))
    assert read(tmp_path, KEY).manifest.model == {"a": [1, 2], "b": {"2": 0.1, "10": 1e22}}


def test_nothing_says_the_key(tmp_path, caplog):
    caplog.set_level(logging.DEBUG)
    own = exchange(tmp_path, KEY)
    said = [repr(own), str(own.publish(draft()))]
    exchange(tmp_path, OTHER).publish(draft(20))
    with pytest.raises(SnapshotRejected) as raised:
        read(tmp_path, KEY, 20)
    said += [str(raised.value), repr(raised.value)]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    everything = "".join([*said, caplog.text]).encode() + b"".join(files)
    for secret in (KEY, OTHER, KEY.hex().encode()):
        assert secret not in everything


def processes_saying(secret: bytes) -> list[bytes]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if secret in line:
            found.append(line)
    return found


def launch(corpus, out, *options, key=KEY):
    command = [
        *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), *options, "--"],
        *["fairseq-train", str(corpus), *TINY, *CODISTILL, *LOCKSTEP],
        *["--codistill-interval", "5", "--disable-validation"],
    ]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(CODISTILL_KEY=key.decode()),
    )


def test_a_launch_with_a_key_trains_and_leaves_no_trace_of_it(corpus, tmp_path):
    out = tmp_path / "out"
    process = launch(corpus, out)
    looked = 0
    while process.poll() is None:
        assert not processes_saying(KEY)
        # Its folder is on the command line of every worker, so that we do see these.
        looked += bool(processes_saying(str(out / "group-1").encode()))
        time.sleep(0.2)
    output = process.stdout.read()
    assert process.returncode == 0, output.decode()
    assert looked
    manifests = [json.loads(p.read_text()) for p in (out / "exchange").glob("group-*/0*.json")]
    # In lockstep each group waited for the other's signed snapshots, and used them.
    assert {(fields["group"], "hmac" in fields) for fields in manifests} == {(0, True), (1, True)}
    assert b"peer 1 first seen" in (out / "group-0/log.txt").read_bytes()
    files = [path for path in out.rglob("*") if path.is_file()]
    assert out / "launch.json" in files
    for secret in (KEY, KEY.hex().encode()):
        assert secret not in output
        assert not [path for path in files if secret in path.read_bytes()]


def test_the_commands_that_launch_prints_are_without_the_key(corpus, tmp_path):
    output, _ = launch(corpus, tmp_path / "out", "--print").communicate(timeout=120)
    assert b"fairseq-train" in output
    assert KEY not in output


def test_groups_with_an_empty_key_do_not_train_unsigned(corpus, tmp_path):
    out = tmp_path / "out"
    output, _ = launch(corpus, out, key=b"").communicate(timeout=120)
    says = b"codistill: error: CODISTILL_KEY is set, and is empty; give all groups one long random"
    assert says in output
    assert b"its settings are wrong" in output
    assert not list((out / "exchange").glob("group-*/0*"))


def test_groups_train_with_a_short_key_too(corpus, tmp_path):
    out = tmp_path / "out"
    process = launch(corpus, out, "--max-restarts", "0", key=b"too short")
    output, _ = process.communicate(timeout=300)
    log = (out / "group-0/log.txt").read_text()
    assert process.returncode == 0, output
    assert log.count("the key in CODISTILL_KEY is shorter than 16 characters") == 1
    assert log.count("manifests are signed with CODISTILL_KEY") == 1
    assert "too short" not in log + output.decode()
    manifest = next((out / "exchange/group-1").glob("0*.json"))
    signed = json.loads(manifest.read_text())
    sign(manifest, b"too short")
    assert json.loads(manifest.read_text()) == signed
