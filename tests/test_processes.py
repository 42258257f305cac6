"""Real groups and what can be wrong between them."""

import hashlib
import json
import os
import signal
import time

import pytest
from harness import CODISTILL, LOCKSTEP, SEED_STEP, column, equal, finish, start, train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

OTHER_SEED = ["--codistill-group", "1", "--seed", str(1 + SEED_STEP)]


def two_groups(exchange, *flags):
    return [
        *[*CODISTILL, "--codistill-num-groups", "2", "--codistill-interval", "5"],
        *["--codistill-dir", str(exchange), *flags],
    ]


@pytest.fixture
def waiting_group(corpus, tmp_path_factory):
    """Group 0 in lockstep, alive and waiting for group 1; gives the flags of its run.

    One for each test: it ends once a group that was refused has said that it is gone.
    """
    folder = tmp_path_factory.mktemp("waiting")
    flags = two_groups(folder / "exchange", *LOCKSTEP, "--codistill-timeout", "500")
    process = start(corpus, folder, *flags)
    alive = folder / "exchange" / "group-0" / "alive.json"
    deadline = time.monotonic() + 60
    while not alive.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield flags
    process.send_signal(signal.SIGKILL)
    process.wait()


def refused(run, says):
    (line,) = [line for line in run.log.splitlines() if line.startswith("codistill: error: ")]
    assert says in line
    assert not run.lines(), "it trained"
    assert "Traceback" not in run.log


def test_a_second_live_process_of_one_index_is_refused(corpus, tmp_path, waiting_group):
    run = finish(start(corpus, tmp_path, *waiting_group, "--seed", "5"), tmp_path, status=2)
    refused(run, "--codistill-group 0: another live process has this index")


def test_two_groups_with_one_seed_are_refused(corpus, tmp_path, waiting_group):
    flags = [*waiting_group, "--codistill-group", "1"]
    run = finish(start(corpus, tmp_path, *flags), tmp_path, status=2)
    refused(run, "--seed 1 is that of group 0 too; give every group a seed of its own")


def test_lockstep_with_another_vocabulary_is_refused(other_vocabulary, tmp_path, waiting_group):
    process = start(other_vocabulary, tmp_path, *waiting_group, *OTHER_SEED)
    run = finish(process, tmp_path, status=2)
    refused(run, "group 0 has another target vocabulary")


def test_lockstep_ends_with_the_name_of_the_peer_it_waited_for(corpus, tmp_path):
    flags = two_groups(tmp_path / "exchange", *LOCKSTEP, "--codistill-timeout", "2")
    run = finish(start(corpus, tmp_path, *flags), tmp_path, status=1)
    refused(run, "--codistill-timeout 2: no snapshot of peer 1 at update 0")
    alive = json.loads((tmp_path / "exchange" / "group-0" / "alive.json").read_text())
    assert (alive["running"], alive["finished"]) == (False, False)


def test_an_exchange_that_cannot_be_written_is_named(corpus, tmp_path):
    (tmp_path / "file").write_text("")
    flags = two_groups(tmp_path / "file")
    run = finish(start(corpus, tmp_path / "0", *flags), tmp_path / "0", status=1)
    refused(run, "cannot be used")


def test_a_ddp_backend_of_sharded_weights_is_refused(corpus, tmp_path):
    """Before fairseq makes the model, for which it would ask for a package that nobody needs."""
    flags = [*CODISTILL, "--ddp-backend", "fully_sharded"]
    run = finish(start(corpus, tmp_path, *flags), tmp_path, status=2)
    assert "codistill: error: --ddp-backend fully_sharded is not supported" in run.log


def test_an_unknown_kind_of_exchange_is_named(corpus, tmp_path):
    flags = two_groups("carrier-pigeon://loft")
    run = finish(start(corpus, tmp_path, *flags), tmp_path, status=2)
    refused(run, "--codistill-dir carrier-pigeon://loft cannot be opened")


@pytest.fixture(scope="module")
def finished_peer(corpus, tmp_path_factory):
    """Group 1 trained alone to its end; its newest snapshot was damaged since.  The exchange."""
    folder = tmp_path_factory.mktemp("peer")
    # In lockstep no snapshot is skipped, however slow the disk; nobody is waited for in a burn-in.
    alone = ["--codistill-mode", "lockstep", "--codistill-burn-in", "20", "--codistill-keep", "3"]
    train(corpus, folder, *two_groups(folder / "exchange"), *alone, *OTHER_SEED)
    group = folder / "exchange" / "group-1"
    assert sorted(os.listdir(group)) == [
        *["0000000010.json", "0000000010.safetensors", "0000000015.json"],
        *["0000000015.safetensors", "0000000020.json", "0000000020.safetensors", "alive.json"],
    ]
    os.truncate(group / "0000000020.safetensors", 1000)
    return folder / "exchange"


def test_async_uses_the_newest_sound_snapshot(corpus, tmp_path, finished_peer):
    run = train(corpus, tmp_path, *two_groups(finished_peer), "--max-update", "60")
    assert run.log.count("peer 1: snapshot of update 20 rejected: its tensor file has 1000 b") == 1
    assert run.log.count("peer 1 first seen: update 15") == 1
    lines = [line for line in run.lines() if line["codistill_peers"] == 1]
    assert len(lines) > 10
    assert column(lines, "codistill_staleness") == [
        line["num_updates"] - 1 - 15 for line in lines
    ], "staleness is the own update minus the snapshot's"
    assert min(column(lines, "codistill_loss")) > 0


def test_tensorboard_has_the_values_of_the_log(corpus, tmp_path, finished_peer):
    logdir = ["--tensorboard-logdir", str(tmp_path / "T"), "--max-update", "60"]
    run = train(corpus, tmp_path, *two_groups(finished_peer), *logdir)
    events = EventAccumulator(str(tmp_path / "T/train_inner")).Reload()
    for key in ("nll_loss", "codistill_alpha", "codistill_peers", "codistill_loss"):
        there = {e.step: e.value for e in events.Scalars(key)}
        logged = {line["num_updates"]: line[key] for line in run.lines() if key in line}
        assert there == pytest.approx(logged, rel=1e-6), key
        assert len(there) > 10
    valid = EventAccumulator(str(tmp_path / "T/valid")).Reload()
    assert not [tag for tag in valid.Tags()["scalars"] if "codistill" in tag]


def test_a_manifest_tells_both_vocabularies(corpus, finished_peer):
    said = json.loads((finished_peer / "group-1" / "0000000015.json").read_text())
    for field, language in (("source_vocabulary", "de"), ("vocabulary", "en")):
        lines = (corpus / f"dict.{language}.txt").read_text().splitlines()
        # As fairseq begins each of its dictionaries.
        symbols = ["<s>", "<pad>", "</s>", "<unk>", *(line.rsplit(" ", 1)[0] for line in lines)]
        assert said[field] == hashlib.sha256("\n".join(symbols).encode()).hexdigest()


def test_files_of_another_run_are_never_used(corpus, tmp_path, finished_peer):
    flags = [*two_groups(finished_peer), "--codistill-run-id", "mine"]
    run = train(corpus, tmp_path / "0", *flags)
    assert set(column(run.lines(), "codistill_peers")) == {0}
    alone = train(corpus, tmp_path / "1", *CODISTILL)
    assert equal(run.weights(), alone.weights())


def test_async_leaves_a_peer_with_another_vocabulary_out(other_vocabulary, tmp_path, finished_peer):
    run = train(other_vocabulary, tmp_path, *two_groups(finished_peer), "--max-update", "40")
    said = [line for line in run.log.splitlines() if "another target vocabulary" in line]
    assert len(said) == 1
    assert "| ERROR |" in said[0]
    assert set(column(run.lines(), "codistill_peers")) == {0}


def test_burn_in_neither_runs_nor_waits_for_a_peer(corpus, tmp_path):
    flags = [*two_groups(tmp_path / "exchange", *LOCKSTEP), "--codistill-burn-in", "20"]
    run = train(corpus, tmp_path / "0", *flags)
    assert set(column(run.lines(), "codistill_alpha")) == {0}
    alone = train(corpus, tmp_path / "1", *CODISTILL)
    assert equal(run.weights(), alone.weights())
