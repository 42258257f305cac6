"""Exactly the same, again: kill -9 at a random update in lockstep changes no bit of the result."""

import random
import re
import shutil
import signal
from pathlib import Path

import pytest
from faults import kill_at_update, lives, send, start_launch, wait_until
from harness import LOCKSTEP, Run, equal, published

UPDATES = 60
SAVED_EVERY = 10
# Adam and dropout, so that a restarted group needs all of its state.  The end of the first epoch,
# at update 23, writes a checkpoint too, with the place in the data.
FLAGS = [
    *[*LOCKSTEP, "--codistill-interval", "5", "--max-update", str(UPDATES)],
    *["--save-interval-updates", str(SAVED_EVERY), "--keep-interval-updates", "2"],
    *"--optimizer adam --lr 0.001 --dropout 0.1".split(),
]


def random_kills() -> list[tuple[int, int]]:
    """(group, update): ten random updates, but for the last ones, which a kill could miss.

    The first is before there is a checkpoint, the second in a later epoch.
    """
    rng = random.Random(20)
    updates = [rng.randrange(1, 7), rng.randrange(32, UPDATES - 10)]
    updates += [rng.randrange(1, UPDATES - 5) for _ in range(8)]
    return [(rng.randrange(2), update) for update in updates]


KILLS = [
    pytest.param(*kill, id=f"group-{kill[0]}-at-{kill[1]}", marks=[pytest.mark.full] * (i > 0))
    for i, kill in enumerate(random_kills())
]


def finish(launch, out: Path) -> list[Run]:
    launch.wait(timeout=400)
    folders = [out / f"group-{group}" for group in (0, 1)]
    runs = [Run(folder, (folder / "log.txt").read_text()) for folder in folders]
    said = (out / "launch.txt").read_text()
    assert launch.returncode == 0, said + "".join(run.log[-2000:] for run in runs)
    return runs


@pytest.fixture(scope="module")
def unkilled(corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled")
    runs = finish(start_launch(corpus, out, *FLAGS), out)
    assert [lives(run.log) for run in runs] == [[[*range(1, UPDATES + 1)]]] * 2
    snapshots = published(out)
    assert len(snapshots) == 2 * (UPDATES // 5 + 1)
    return [run.weights() for run in runs], snapshots


def assert_the_same(out: Path, runs: list[Run], unkilled) -> None:
    weights, snapshots = unkilled
    differing = [group for group in (0, 1) if not equal(runs[group].weights(), weights[group])]
    # A resumed group publishes where it resumes, which may be between two multiples of T.
    again = published(out)
    others = [name for name, digest in snapshots.items() if again.get(name) != digest]
    assert not differing, f"the weights of {differing} differ; snapshots that do: {others}"
    assert not others
    # The checkpoints of many runs would fill a small disk.
    shutil.rmtree(out)


@pytest.mark.parametrize(("group", "update"), KILLS)
def test_a_kill_at_a_random_update_changes_no_bit(corpus, tmp_path, unkilled, group, update):
    out = tmp_path / "out"
    launch = start_launch(corpus, out, *FLAGS)
    kill_at_update(out, group, update, launch)
    runs = finish(launch, out)
    before, after = lives(runs[group].log)
    assert len(lives(runs[1 - group].log)) == 1, "the other group was started again too"
    # The line of the last update may have come before or after the signal.
    came, resumed = before[-1], after[0] - 1
    print(f"group {group}: kill wanted at update {update}, came at {came}; resumed at {resumed}")
    assert update <= came < UPDATES
    assert after == [*range(resumed + 1, UPDATES + 1)]
    if update < SAVED_EVERY:
        assert came < SAVED_EVERY, "the kill came too late: there may have been a checkpoint"
        assert resumed == 0
    else:
        assert 0 < resumed <= came
    assert_the_same(out, runs, unkilled)


@pytest.mark.full
@pytest.mark.parametrize(
    ("moment", "resumes_at"), [("written", 23), ("copied to best", 30), ("copied to last", 30)]
)
def test_a_kill_while_a_checkpoint_is_written_changes_no_bit(
    corpus, tmp_path, unkilled, moment, resumes_at
):
    # fairseq writes checkpoint_2_30.pt.tmp, renames it, and copies it to checkpoint_best and _last.
    out = tmp_path / "out"
    launch = start_launch(corpus, out, *FLAGS)
    folder = out / "group-1"
    written, last = folder / "checkpoint_2_30.pt", folder / "checkpoint_last.pt"
    wait_until((folder / "checkpoint_1_20.pt").exists, launch, out)
    if moment == "written":
        wait_until((folder / "checkpoint_2_30.pt.tmp").exists, launch, out)
    else:
        wait_until(written.exists, launch, out)
    if moment == "copied to last":
        wait_until(lambda: last.stat().st_mtime_ns > written.stat().st_mtime_ns, launch, out)
    assert send(out, 1, signal.SIGKILL)
    left = {p.name: p.stat().st_size for p in sorted(folder.glob("checkpoint*"))}
    runs = finish(launch, out)
    before, after = lives(runs[1].log)
    torn = re.findall(r"group 1: checkpoint_last.pt is torn.*", (out / "launch.txt").read_text())
    print(f"killed at update {before[-1]}, resumed at {after[0] - 1}; {torn}; left behind: {left}")
    assert before[-1] == 30
    assert after[0] - 1 == resumes_at
    assert_the_same(out, runs, unkilled)
