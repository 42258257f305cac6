"""The Slurm example on a real cluster of two nodes, all on this machine (``slurm_cluster``)."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import slurm_cluster
from harness import BIN, MODEL, eventually
from slurm_cluster import Cluster

REPO = Path(__file__).parent.parent
UPDATES = 600
# Other tests may have the processors meanwhile.
PATIENCE = 400
SHORT = f"""
    --share-all-embeddings --max-tokens 300 --max-update {UPDATES} --log-interval 5 --num-workers 0
    --data-buffer-size 0 --save-interval-updates 20 --keep-interval-updates 2 --disable-validation
    --codistill-interval 20
""".split()

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.running(tmp_path_factory.mktemp("slurm")) as started:
        yield started


class Job:
    """A job array of two groups, and what it has left under ``out``."""

    def __init__(self, cluster: Cluster, out: Path, data: Path, *options: str) -> None:
        self.cluster = cluster
        self.out = out
        out.mkdir()
        variables = {
            "OUT": str(out),
            "PATH": f"{BIN}:{cluster.environment()['PATH']}",
            "OMP_NUM_THREADS": "1",
        }
        self.number = cluster.submit(
            REPO,
            *["--nodes=1", "--gpus-per-node=1", "--cpus-per-task=1", "--array=0-1", *options],
            f"--output={out}/slurm-%a.log",
            *["examples/slurm/train.sbatch", "iwslt14_big", "--cpu", "--data", str(data)],
            *["--", *MODEL, *SHORT],
            **variables,
        )

    def said(self, group: int, key: str) -> str:
        """One field of what Slurm knows of a group."""
        task = self.cluster.tasks(self.number).get(group, {})
        return task.get(key, "not split from the array yet")

    def log(self, group: int) -> str:
        """What a group has logged and its batch file has said, in all its starts."""
        file = self.out / f"slurm-{group}.log"
        return file.read_text() if file.exists() else ""

    def training(self, group: int) -> list[int]:
        """The processes of a group that train."""
        return [
            process
            for process in self.cluster.processes(
                SLURM_ARRAY_JOB_ID=str(self.number), SLURM_ARRAY_TASK_ID=str(group)
            )
            if is_training(process)
        ]

    def has_checkpoint(self, group: int) -> bool:
        """Whether a group has written one that was not there when it was started."""
        return any((self.out / f"group-{group}").glob("checkpoint_*_*.pt"))

    def wait(self, condition: Callable[[], bool], why: str) -> None:
        """Wait for something; show both logs if it does not come."""
        try:
            eventually(condition, why, PATIENCE)
        except AssertionError as error:
            logs = "".join(self.log(group)[-2000:] for group in (0, 1))
            raise AssertionError(f"{error}\n{self.cluster.tasks(self.number)}\n{logs}") from None

    def wait_for_end(self, group: int) -> str:
        """Wait until a group has ended for good; gives Slurm's word for how."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"}
        self.wait(lambda: self.said(group, "JobState") in over, f"group {group} did not end")
        return self.said(group, "JobState")


def is_training(process: int) -> bool:
    """Whether a process is Python that runs fairseq-train, and not srun that waits for it."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"python" in words[0] and any(word.endswith(b"fairseq-train") for word in words)


@pytest.fixture
def start(cluster, tmp_path) -> Iterator[Callable[..., Job]]:
    """Submits a job; nothing of it is left after the test."""
    jobs = []

    def submit(data: Path, *options: str) -> Job:
        jobs.append(Job(cluster, tmp_path / "out", data, *options))
        return jobs[-1]

    yield submit
    for job in jobs:
        cluster.call("scancel", str(job.number))
    eventually(lambda: not cluster.call("squeue", "--noheader").strip(), "jobs did not end", 60)


def test_a_killed_group_requeues_itself_alone(start, corpus):
    """Of the group whose job has the array's own number, which for Slurm names all of the array."""
    job = start(corpus)
    job.wait(lambda: job.has_checkpoint(1) and job.has_checkpoint(0), "no checkpoint was written")
    assert job.said(1, "JobId") == str(job.number)
    (victim,), (other,) = job.training(1), job.training(0)
    os.kill(victim, signal.SIGKILL)
    job.wait(lambda: job.said(1, "Restarts") == "1", "the killed group was not requeued")
    # The other one has not noticed.
    assert job.said(0, "Restarts") == "0"
    assert job.training(0) == [other] or job.said(0, "JobState") == "COMPLETED"
    assert [job.wait_for_end(group) for group in (0, 1)] == ["COMPLETED", "COMPLETED"], job.log(1)
    assert [job.said(group, "Restarts") for group in (0, 1)] == ["0", "1"]
    assert [job.log(group).count("| fairseq_cli.train | {") for group in (0, 1)] == [1, 2]
    resumed = re.findall(r"Loaded checkpoint \S+ \(epoch \d+ @ (\d+) updates\)", job.log(1))
    assert len(resumed) == 1
    assert int(resumed[0]) >= 20
    for group in (0, 1):
        assert f'"num_updates": "{UPDATES}"' in job.log(group)
        assert (job.out / f"group-{group}/ended.json").exists()
    assert not (job.out / "group-0/deaths.txt").exists()
    (death,) = (job.out / "group-1/deaths.txt").read_text().splitlines()
    assert death.endswith("status 137")


def test_cancelled_and_preempted_groups_have_not_died(start, cluster, corpus, tmp_path):
    job = start(corpus)
    job.wait(lambda: job.has_checkpoint(0) and job.has_checkpoint(1), "no checkpoint was written")
    cluster.call("scancel", f"{job.number}_1")
    assert job.wait_for_end(1) == "CANCELLED"
    # It takes all of both nodes.
    urgent = ["--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent.log"]
    cluster.submit(tmp_path, *urgent, "--wrap", "true")
    job.wait(lambda: job.said(0, "Restarts") == "1", "the group was not preempted")
    assert job.wait_for_end(0) == "COMPLETED"
    assert "Loaded checkpoint" in job.log(0)
    assert (job.said(1, "JobState"), job.said(1, "Restarts")) == ("CANCELLED", "0")
    assert not list(job.out.glob("group-*/deaths.txt"))


def test_a_group_that_cannot_train_is_not_requeued_for_ever(start, tmp_path):
    job = start(tmp_path / "no-data-here")
    for group in (0, 1):
        assert job.wait_for_end(group) == "FAILED"
        assert job.said(group, "Restarts") == "1"
        assert "has died 2 times" in job.log(group)
        assert "unbound variable" not in job.log(group)
