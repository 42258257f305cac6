"""Lockstep with other settings: the snapshots that groups publish anew are removed before."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, LOCKSTEP, MODEL, SETTINGS, environment
from servers import s3_server
from test_exchange import draft, state
from test_launch_changed import launched

from fairseq_codistill import cli
from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.errors import UserError
from fairseq_codistill.exchange import Exchange, Store
from fairseq_codistill.launch import changed, probe, record, rewind, run
from fairseq_codistill.launch.checkpoints import Resume
from fairseq_codistill.launch.finished import Finished
from fairseq_codistill.launch.group import State
from fairseq_codistill.records import Ended, write_ended

LINE = "fairseq-train data --cpu --codistill-mode lockstep --codistill-interval 5"


def plan_of(line: str = LINE, groups: int = 2, group=(), out: Path = Path("out")):
    options = run.Options(groups, None, out.absolute(), 3, 0.0, group, line.split())
    return run.make_plan(options)


def at(update: int | None) -> Resume:
    """What a group goes on from."""
    return Resume(Path("checkpoint_last.pt"), update=update)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return plan_of()


@pytest.fixture
def exchange(plan):
    """The exchange of a run whose groups have published up to update 20."""
    exchange = Exchange(Store(str(plan.out / "exchange")), plan.run_id)
    publish(exchange)
    return exchange


def publish(exchange: Exchange, updates=(0, 5, 10, 14, 15, 20)) -> None:
    for group in (0, 1):
        for update in updates:
            exchange.publish(draft(update, group=group))


def updates(exchange: Exchange) -> list[list[int]]:
    return [sorted(exchange.updates(group)) for group in (0, 1)]


def test_those_from_each_groups_checkpoint_on_go(plan, exchange):
    """The snapshot of update 10 of group 0 is of its past: group 1 needs it, and nobody else."""
    told = rewind.rewind(plan, {0: at(14), 1: at(7)}, ["lr"])
    assert updates(exchange) == [[0, 5, 10], [0, 5]]
    address = plan.out / "exchange"
    assert told == [
        f"group 0: removed 3 snapshot(s) from update 14 on from {address}, to be published anew "
        "with the new settings",
        f"group 1: removed 4 snapshot(s) from update 7 on from {address}, to be published anew "
        "with the new settings",
    ]
    assert rewind.rewind(plan, {0: at(14), 1: at(7)}, ["lr"]) == []


def test_a_group_without_a_checkpoint_and_one_that_has_finished(plan, exchange):
    rewind.rewind(plan, {1: Resume()}, ["lr"])
    assert updates(exchange) == [[0, 5, 10, 14, 15, 20], []]


def test_those_of_other_runs_stay(plan, exchange):
    other = Exchange(exchange.store, "another run")
    other.publish(draft(17, group=0))
    rewind.rewind(plan, {0: at(5), 1: at(5)}, ["lr"])
    assert updates(exchange) == [[0, 17], [0]]
    assert other.manifest(0, 17).update == 17


def test_signed_ones_go_too(plan, monkeypatch):
    monkeypatch.setenv("CODISTILL_KEY", "a long secret")
    exchange = Exchange(Store(str(plan.out / "exchange")), plan.run_id, b"a long secret")
    publish(exchange)
    rewind.rewind(plan, {0: at(10), 1: at(10)}, ["lr"])
    assert updates(exchange) == [[0, 5], [0, 5]]


def test_each_group_has_its_exchange(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(group=["1: --codistill-dir file://" + str(tmp_path / "own")])
    for place in ("out/exchange", "own"):
        publish(Exchange(Store(str(tmp_path / place)), plan.run_id))
    rewind.rewind(plan, {0: at(10), 1: at(15)}, ["lr"])
    found = [
        updates(Exchange(Store(str(tmp_path / place)), plan.run_id))
        for place in ("out/exchange", "own")
    ]
    whole = [0, 5, 10, 14, 15, 20]
    assert found == [[[0, 5], whole], [whole, [0, 5, 10, 14]]]


def test_an_object_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with s3_server() as server:
        for name, value in server.environment(server.address).items():
            monkeypatch.setenv(name, value)
        plan = plan_of(f"{LINE} --codistill-dir {server.uri('run')}")
        exchange = Exchange(Store(server.uri("run")), plan.run_id)
        publish(exchange)
        told = rewind.rewind(plan, {0: at(14), 1: at(7)}, ["lr"])
        assert updates(exchange) == [[0, 5, 10], [0, 5]]
    assert f"from update 14 on from {server.uri('run')}, to be" in told[0]


def test_no_exchange_yet_and_none_at_all(plan, tmp_path):
    assert rewind.rewind(plan, {0: at(5), 1: Resume()}, ["lr"]) == []
    assert rewind.rewind(plan_of(groups=1, out=tmp_path / "one"), {0: at(5)}, ["lr"]) == []


def test_before_the_first_checkpoint_there_are_snapshots_too(tmp_path, monkeypatch):
    """All groups start at 0, and what they have published with the other settings is in the way."""
    monkeypatch.chdir(tmp_path)
    launched(f"{LINE} --lr 1", trained=False)
    plan = plan_of(f"{LINE} --lr 1")
    exchange = Exchange(Store(str(plan.out / "exchange")), plan.run_id)
    publish(exchange)
    monkeypatch.setattr(run, "supervise", lambda *_: 0)
    launch = ["launch", "--groups", "2", "--out", "out", "--", *LINE.split(), "--lr"]
    assert cli.main([*launch, "1.0"]) == 0
    assert updates(exchange) == [[0, 5, 10, 14, 15, 20]] * 2
    assert cli.main([*launch, "2"]) == 0
    assert updates(exchange) == [[], []]


def test_what_cannot_be_removed_is_told_and_nothing_starts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(f"{LINE} --codistill-dir nonsense://x")
    with pytest.raises(UserError) as refused:
        rewind.rewind(plan, {0: at(5), 1: Resume()}, ["lr"])
    said = str(refused.value)
    assert said.startswith(
        "the setting lr is another than before: in lockstep, groups then publish other snap"
    )
    assert "could not be removed (failed with status 1 (nonsense://x:" in said
    assert "those of nonsense://x/group-0 whose number is 5 or higher" in said
    assert "those of nonsense://x/group-1 whose number is 0 or higher" in said


@pytest.mark.parametrize(
    ("mode", "lr", "asked"),
    [("lockstep", "2", True), ("lockstep", "1", False), ("async", "2", False)],
)
def test_launch_asks_for_groups_that_start_and_before_it_starts_them(
    tmp_path, monkeypatch, mode, lr, asked
):
    """Group 0 has finished, and peers need its snapshots."""
    monkeypatch.chdir(tmp_path)
    line = f"{LINE} --codistill-mode {mode} --max-update 20"
    launched(f"{line} --lr 1", group=["1: --max-update 30"])
    who = record.read(Path("out"))
    folder = Path("out/group-0")
    ended = Ended(who["run_id"], who["nonces"][0], 20, "max-update", True, True)
    mark = Finished(folder, {"max-update": "20"}, who["run_id"], who["nonces"][0])
    write_ended(folder, ended)
    assert mark.missing(20, None) is None
    mark.note()
    done = []

    def noting(plan, starting, names):
        assert record.read(Path("out"))["history"] == []
        done.append((list(starting), list(names)))
        return ["it is done"]

    def supervise(groups, *_):
        done.append([group.state for group in groups])
        return 0

    monkeypatch.setattr(rewind, "rewind", noting)
    monkeypatch.setattr(run, "supervise", supervise)
    arguments = ["launch", "--groups", "2", "--out", "out", "--group", "1: --max-update 30"]
    arguments += ["--allow-changed", "lr", "--", *line.split(), "--lr", lr]
    assert cli.main(arguments) == 0
    states = [State.FINISHED, State.WAITING]
    assert done == ([([1], ["lr"])] if asked else []) + [states]


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        # Allowed or not, these make other weights of the same updates.
        ("--lr-scheduler cosine --max-update 9", "--lr-scheduler cosine --max-update 10", "max-up"),
        ("", "--ddp-backend legacy_ddp", "ddp-backend"),
        ("", "--codistill-alpha 2", "codistill-alpha"),
        # These do not.
        ("--max-update 9", "--max-update 10 --num-workers 3 --log-interval 5", None),
    ],
)
def test_what_makes_other_weights(tmp_path, monkeypatch, before, now, names):
    monkeypatch.chdir(tmp_path)
    launched(f"{LINE} {before}")
    plan = plan_of(f"{LINE} {now}")
    relaunch = changed.changes(plan, record.read(plan.out), ["codistill-alpha"])
    assert [name[:6] for name in relaunch.names] == ([] if names is None else [names[:6]])


def test_other_devices_for_the_same_batches_make_other_last_bits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    launched(LINE, workers=4)
    options = run.Options(
        2, 2, Path("out").absolute(), 3, 0.0, (), f"{LINE} --update-freq 2".split()
    )
    plan = run.make_plan(options)
    relaunch = changed.changes(plan, record.read(plan.out), ())
    assert relaunch == changed.Relaunch(names=("workers-per-group",))


@pytest.mark.parametrize("said", ["", "x", "[1]", '{"0": "x"}', "null"])
def test_an_answer_that_is_none(plan, monkeypatch, said):
    (plan.out / "exchange").mkdir(parents=True)
    monkeypatch.setattr(rewind, "ask", lambda *_: probe.Answer(said, ""))
    with pytest.raises(UserError, match="could not be removed .it gave no answer."):
        rewind.rewind(plan, {0: at(5)}, ["lr"])


def test_a_program_that_does_not_end(plan, monkeypatch):
    (plan.out / "exchange").mkdir(parents=True)
    monkeypatch.setattr(rewind, "_SECONDS", 0.0)
    with pytest.raises(UserError, match="could not be removed .did not end within 0 s.; mend"):
        rewind.rewind(plan, {0: at(5)}, ["lr"])


def test_a_checkpoint_that_does_not_tell_its_update(plan, exchange):
    before = updates(exchange)
    with pytest.raises(UserError, match="checkpoint_last.pt of group 1 does not tell"):
        rewind.rewind(plan, {0: at(5), 1: at(None)}, ["lr"])
    assert updates(exchange) == before


@pytest.mark.parametrize(
    ("names", "resumed", "waits_for"),
    [
        (["codistill-interval"], (10, 10), None),
        (["codistill-interval"], (12, 12), 10),
        (["codistill-interval"], (10, 15), 10),
        (["task.codistill_interval"], (12, 12), 10),
        (["lr", "codistill-mode"], (12, 12), 10),
        (["lr"], (12, 12), None),
        (["codistill-interval"], (None, None), None),
    ],
)
def test_another_interval_wants_snapshots_that_are_there(plan, names, resumed, waits_for):
    starting = {group: Resume() if u is None else at(u) for group, u in enumerate(resumed)}
    if waits_for is None:
        assert rewind.rewind(plan, starting, names) == []
        return
    with pytest.raises(UserError, match=f"wait for the snapshots of update {waits_for}, which"):
        rewind.rewind(plan, starting, names)


def test_the_interval_that_is_not_given():
    assert CodistillationConfig().codistill_interval == rewind.DEFAULT_INTERVAL


@pytest.mark.parametrize("arguments", [[], ["x"], ["x", "run", "1"], ["x", "run", "1:y"]])
def test_the_program_says_how_it_is_called(arguments, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", rewind.PROGRAM, *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=environment(),
    )
    # Without a group there is nothing to do.
    assert (done.returncode, done.stdout) in ((1, ""), (0, "{}\n"))
    assert done.returncode == 0 or "usage: python -m fairseq_codistill.forget" in done.stderr


def test_lockstep_goes_on_with_another_learning_rate(corpus, tmp_path):
    """From update 7, while the old snapshots go up to 20."""
    out = tmp_path / "out"

    def launch(*flags: str, options=(), status: int = 0) -> str:
        command = [
            *[str(BIN / "codistill"), "launch", "--groups", "2", "--out", str(out), *options],
            *["--max-restarts", "0", "--", "fairseq-train", str(corpus), *MODEL, *SETTINGS],
            *[*CODISTILL, *LOCKSTEP, "--codistill-interval", "5", "--save-interval-updates", "7"],
            *flags,
        ]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment(), timeout=500, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def snapshots() -> dict[Path, str]:
        manifests = sorted((out / "exchange").glob("group-*/0*.json"))
        return {path: json.loads(path.read_text())["sha256"] for path in manifests}

    launch()
    before = snapshots()
    assert before.keys() >= {out / f"exchange/group-1/{u:010d}.json" for u in (0, 5, 10, 15, 20)}
    for group in (0, 1):
        folder = out / f"group-{group}"
        (checkpoint,) = folder.glob("checkpoint_*_7.pt")
        kept = [checkpoint, folder / "log.txt"]
        for path in folder.iterdir():
            if path not in kept and path.is_file():
                path.unlink()
    said = launch("--lr", "0.25", options=["--allow-changed", "lr"])
    for group in (0, 1):
        assert f"group {group}: removed 3 snapshot(s) from update 7 on" in said
        assert said.index("snapshot(s)") < said.index("resumes at update 7")
    after = snapshots()
    changed = {path.stem for path in before if after.get(path) != before[path]}
    assert changed == {f"{update:010d}" for update in (10, 15, 20)}
    # The next launch with the same settings has nothing to remove.
    assert "snapshot(s)" not in launch("--lr", "0.25")


def test_weights_of_the_drafts_differ():
    # So that the tests above could fail.
    assert not state(5)["bias"].equal(state(10)["bias"])
