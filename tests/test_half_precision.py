"""Half precision as fairseq has it, run on the CPU: overflows, workers, export, restarts."""

import signal
import subprocess
import sys
from pathlib import Path

import half_precision
import pytest
import torch
from half_precision import BACKENDS, CASES, Trained, on_the_cpu
from harness import CODISTILL, LOCKSTEP, TINY, Run, column, distance, environment, equal, eventually
from ports import free_port
from test_adapter import Student

from fairseq_codistill import cli
from fairseq_codistill.exchange import Exchange, Store

PRECISIONS = {
    "fp16": ["--fp16"],
    # It does not go with SGD.
    "memory-efficient-fp16": ["--memory-efficient-fp16", "--optimizer", "adam", "--lr", "0.01"],
    "amp": ["--amp"],
    "bf16": ["--bf16"],
}
# A gradient by a logit is at most 1, and float16 ends at 65504.
TOO_LARGE = 2.0**19

PROGRAM = Path(half_precision.__file__)


class Other:
    """Another group, which this process publishes for."""

    def __init__(self, corpus, directory, update=0):
        self.exchange = Exchange(Store(str(directory)), "default")
        self.student = Student(corpus, seed=101)
        self.update = update
        self.publish(update)

    def publish(self, update):
        self.student.publish(self.exchange, group=1, update=update)


def sharing(tmp_path, *flags):
    """The flags of a group that shares with another one."""
    shared = ["--codistill-dir", str(tmp_path / "exchange"), "--codistill-num-groups", "2"]
    return [*shared, "--save-dir", str(tmp_path / "saved"), "--codistill-interval", "2", *flags]


@pytest.fixture
def watched(corpus, tmp_path, monkeypatch):
    """Make one group beside another; what it does at boundaries is noted."""
    made = []
    published = []
    publish = Exchange.publish

    def noted(self, draft):
        if draft.group == 0:
            published.append(draft.update)
        return publish(self, draft)

    monkeypatch.setattr(Exchange, "publish", noted)

    def make(*flags):
        other = Other(corpus, tmp_path / "exchange")
        one = Trained(corpus, *sharing(tmp_path, *flags))
        made.append(one)
        boundaries, at_boundary, changed = [], one.side.at_boundary, one.side._changed
        one.stalled, one.happened = 0.0, dict.fromkeys(one.side.changes, 0)

        def noting(update, epoch):
            before = one.side.stall
            boundaries.append((update, epoch))
            at_boundary(update, epoch)
            one.stalled += one.side.stall - before

        def noting_change(change, line):
            one.happened[change] += 1
            changed(change, line)

        one.side.at_boundary, one.side._changed = noting, noting_change
        one.boundaries, one.published = boundaries, published
        return one, other

    with on_the_cpu():
        yield make
        for one in made:
            one.side.abandon()


def through_overflows(one, logged, overflow=True):
    """Make one update, at first with an overflow; what is logged is added up.

    Returns:
        How many batches came to nothing.
    """
    failed = 0
    if overflow:
        one.scale(TOO_LARGE)
    while (meters := one.batch()) is None:
        failed += 1
        assert failed < 30
    assert meters["gnorm"].avg > 0
    for name in (*one.happened, "stall"):
        logged[name] = logged.get(name, 0) + meters[f"codistill_{name}"].sum
    return failed


@pytest.mark.parametrize("precision", PRECISIONS)
def test_overflows_repeat_no_boundary_and_lose_no_counter(watched, precision):
    overflows = precision != "bf16"
    one, other = watched(*PRECISIONS[precision], "--codistill-max-staleness", "1000")
    logged, failed = {}, 0

    def happened(change, times):
        nonlocal failed
        failed += through_overflows(one, logged, overflows)
        return one.happened[change] >= times

    eventually(lambda: happened("first_seen", 1), "the peer was not seen")
    for newest in (1, 2):
        other.publish(newest)
        eventually(lambda times=newest: happened("refreshed", times), "the peer was not refreshed")
    # In an epoch's last batch: the next epoch begins at the same update.
    if overflows:
        one.scale(TOO_LARGE)
        assert one.batch() is None
    one.trainer.begin_epoch(2)
    failed += through_overflows(one, logged, overflow=False)

    # Each update begins with an overflow; AMP repeats a batch by itself.
    assert not overflows or failed >= (one.updates - 1 if precision != "amp" else 1)
    one.happened["skipped"] = one.side._membership.skipped
    assert one.happened["first_seen"] == 1
    assert one.happened["refreshed"] == 2
    assert {name: logged[name] for name in one.happened} == one.happened
    assert logged["stall"] == pytest.approx(one.stalled, rel=1e-6)
    due = [(update, 1) for update in range(one.updates)]
    assert one.boundaries == [*(due if overflows else due[:-1]), (one.updates - 1, 2)]
    eventually(lambda: one.side._membership._publisher.wait(0), "a snapshot is not published")
    assert len(set(one.published)) == len(one.published)
    assert set(one.published) <= set(range(2, one.updates, 2))
    assert one.published


def start(corpus, log, *flags):
    """Start fairseq-train in half precision; its log is added to."""
    command = [sys.executable, str(PROGRAM), str(corpus), *TINY, *CODISTILL, *flags]
    with open(log, "a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment())


def ended(process, folder, log):
    process.wait(timeout=300)
    return Run(folder, log.read_text(), process.returncode)


def all_but(default):
    """Every precision; those but one are long."""
    marks = {name: [] if name == default else [pytest.mark.full] for name in PRECISIONS}
    return [pytest.param(name, marks=marks[name]) for name in PRECISIONS]


@pytest.mark.parametrize("precision", all_but("fp16"))
def test_two_workers_go_through_overflows_and_what_they_train_is_exported(
    corpus, tmp_path, precision
):
    Other(corpus, tmp_path / "exchange")
    flags = sharing(tmp_path, *LOCKSTEP, "--codistill-interval", "1000", *PRECISIONS[precision])
    flags += ["--fp16-init-scale", str(int(TOO_LARGE)), "--distributed-world-size", "2"]
    flags += ["--distributed-init-method", f"tcp://localhost:{free_port()}"]
    flags += ["--distributed-backend", "gloo", "--distributed-no-spawn"]
    logs = [tmp_path / f"log-{rank}.txt" for rank in (0, 1)]
    workers = [
        start(corpus, log, *flags, "--distributed-rank", str(rank)) for rank, log in enumerate(logs)
    ]
    folder = tmp_path / "saved"
    runs = [ended(worker, folder, log) for worker, log in zip(workers, logs, strict=True)]
    for run in runs:
        assert run.status == 0, run.log[-3000:]
    run, lines = runs[0], runs[0].lines()
    assert ("overflow detected" in run.log) == (precision != "bf16")
    assert column(lines, "num_updates") == list(range(1, 21))
    assert column(lines, "codistill_peers") == [1] * 20
    assert all(norm > 0 for norm in column(lines, "gnorm"))
    assert sum(column(lines, "codistill_first_seen")) == 1
    assert all(divergence > 0 for divergence in column(lines, "codistill_loss"))
    published = sorted((tmp_path / "exchange" / "group-0").glob("0*.json"))
    assert [int(path.stem) for path in published] == [0, 20]

    new = tmp_path / "exported" / "model.pt"
    assert cli.main(["export", str(folder / "checkpoint_last.pt"), str(new)]) == 0
    weights, exported = run.weights(), Run(new.parent, "").weights(new.name)
    assert equal(exported, weights)
    assert {name: t.dtype for name, t in exported.items()} == {
        name: t.dtype for name, t in weights.items()
    }


@pytest.mark.parametrize("precision", all_but("fp16"))
def test_killed_and_resumed_it_goes_on(corpus, tmp_path, precision):
    other = Other(corpus, tmp_path / "exchange")
    flags = sharing(tmp_path, *PRECISIONS[precision], "--fp16-init-scale", "128")
    flags += ["--save-interval-updates", "100", "--save-interval", "1000", "--disable-validation"]
    log, folder = tmp_path / "log.txt", tmp_path / "saved"
    first = start(corpus, log, *flags, "--max-update", "100000")
    try:
        eventually(lambda: "Saved checkpoint" in log.read_text(), "no checkpoint is there", 200)
    finally:
        first.send_signal(signal.SIGKILL)
        before = ended(first, folder, log)
    assert before.status == -signal.SIGKILL, before.log[-3000:]
    saved = int(before.checkpoint()["optimizer_history"][-1]["num_updates"])
    assert saved >= 100
    other.publish(7)
    log = tmp_path / "log-again.txt"
    again = start(corpus, log, *flags, "--max-update", str(saved + 60))
    run = ended(again, folder, log)
    assert run.status == 0, run.log[-3000:]
    lines = run.lines()
    assert column(lines, "num_updates") == list(range(saved + 1, saved + 61))
    assert column(lines, "nll_loss")[0] < column(before.lines(), "nll_loss")[0]


@pytest.mark.parametrize("precision", all_but("fp16"))
def test_killed_and_resumed_in_lockstep_it_goes_on_or_says_why_not(corpus, tmp_path, precision):
    other = Other(corpus, tmp_path / "exchange")
    for update in (20, 40, 60):
        other.publish(update)
    flags = sharing(tmp_path, *LOCKSTEP, "--codistill-interval", "20", *PRECISIONS[precision])
    flags += ["--save-interval-updates", "50", "--save-interval", "1000", "--disable-validation"]
    flags += ["--max-update", "90", "--fp16-init-scale", "128"]
    log, folder = tmp_path / "log.txt", tmp_path / "saved"
    first = start(corpus, log, *flags)
    try:
        # It waits for the other's snapshot of the same update.
        newest = tmp_path / "exchange" / "group-0" / f"{80:010d}.json"
        eventually(newest.exists, "no snapshot of update 80 is there", 200)
    finally:
        first.send_signal(signal.SIGKILL)
        before = ended(first, folder, log)
    assert before.status == -signal.SIGKILL, before.log[-3000:]
    other.publish(80)
    log = tmp_path / "log-again.txt"
    run = ended(start(corpus, log, *flags), folder, log)
    if run.status == 0:
        assert column(run.lines(), "num_updates") == list(range(51, 91))
    else:
        assert "this run has published other weights of group 0 for update 60" in run.log
        assert "go on from that run's checkpoints" in run.log
        assert "Traceback" not in run.log


@pytest.fixture(scope="module")
def backends(corpus, tmp_path_factory):
    """The weights of two workers by gloo, trained with each backend."""
    out = tmp_path_factory.mktemp("backends")
    Other(corpus, out / "exchange")
    port = str(free_port())
    logs = [out / f"log-{rank}.txt" for rank in (0, 1)]
    workers = []
    for rank, log in enumerate(logs):
        command = [sys.executable, str(PROGRAM), "backends", str(corpus), str(rank), port, str(out)]
        with open(log, "w") as file:
            workers.append(subprocess.Popen(command, stdout=file, stderr=file, env=environment()))
    try:
        for worker, log in zip(workers, logs, strict=True):
            assert worker.wait(timeout=500) == 0, log.read_text()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
    return torch.load(out / "weights.pt", weights_only=True)


@pytest.mark.parametrize("case", CASES)
def test_pytorchs_backend_trains_as_the_legacy_one(backends, case):
    legacy, pytorch = (backends[case, backend] for backend in BACKENDS)
    assert all(tensor.isfinite().all() for tensor in legacy.values())
    assert equal(legacy, pytorch)


def test_the_fused_loss_trains_as_the_usual_one_with_either_backend(backends):
    usual = {name: t.double() for name, t in backends["float32", "legacy_ddp"].items()}
    for backend in BACKENDS:
        for form in ("factored", "fused"):
            assert distance(backends[f"float32, {form}", backend], usual) < 1e-5
