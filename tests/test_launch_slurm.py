"""The Slurm example, run with a stand-in for Slurm, its fairseq-train line read by fairseq."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from harness import BIN, SEED_STEP, environment

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task

REPO = Path(__file__).parent.parent
STAND_IN = f"""#!{sys.executable}
import json, os, sys
names = ("CODISTILL_NONCE", "CODISTILL_RESTARTS")
said = [os.path.basename(sys.argv[0]), sys.argv[1:], {{name: os.environ[name] for name in names}}]
with open(os.environ["RECORD"], "a") as record:
    record.write(json.dumps(said) + "\\n")
if said[0] == "srun":
    status = int(os.environ["SRUN_STATUS"])
    print(os.environ.get("SRUN_SAYS", "| train_inner | {{}}"), file=sys.stderr)
    folder = sys.argv[sys.argv.index("--save-dir") + 1]
    if status == 0 and os.environ.get("TRAINS", "yes") == "yes":
        open(folder + "/ended.json", "w").write("{{}}")
    sys.exit(status)
if said[0] == "squeue":
    print(os.environ.get("JOB_STATE", "RUNNING"))
if sys.argv[1:2] == ["requeue"]:
    sys.exit(int(os.environ.get("REQUEUE_STATUS", "0")))
if sys.argv[1:3] == ["show", "hostnames"]:
    print("node7\\nnode8")
"""
ARRAY = 4100
LAST_TASK = 1
JOB = {
    "SLURM_ARRAY_JOB_ID": str(ARRAY),
    "SLURM_ARRAY_TASK_COUNT": str(LAST_TASK + 1),
    "SLURM_NNODES": "2",
    "SLURM_GPUS_ON_NODE": "8",
    "SLURM_CPUS_PER_TASK": "32",
    "SLURM_SUBMIT_DIR": str(REPO),
}


def job_id(index: int) -> int:
    """The job of an array task, as Slurm numbers them: the last task's is the array's own."""
    return ARRAY if index == LAST_TASK else ARRAY + 1 + index


def means(job: str) -> set[int]:
    """The array tasks that a command of Slurm takes ``job`` for: the array's number means all."""
    array, _, index = job.partition("_")
    if index:
        return {int(index)} if int(array) == ARRAY else set()
    if int(array) == ARRAY:
        return set(range(LAST_TASK + 1))
    return {i for i in range(LAST_TASK + 1) if job_id(i) == int(array)}


@pytest.fixture
def submit(tmp_path):
    """Runs the batch file for one array task; gives its status and what srun and scontrol got."""
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    for name in ("srun", "scontrol", "squeue"):
        (stubs / name).write_text(STAND_IN)
        (stubs / name).chmod(0o755)
    record = tmp_path / "record"

    def run(
        index: int,
        status: int = 0,
        words: tuple[str, ...] = ("wmt16_big",),
        complains: str = "",
        **more: str | None,
    ):
        record.write_text("")
        task = {"SLURM_ARRAY_TASK_ID": str(index), "SLURM_JOB_ID": str(job_id(index))}
        path = f"{stubs}:{BIN}:{os.environ['PATH']}"
        said = {"RECORD": str(record), "SRUN_STATUS": str(status), "PATH": path}
        done = subprocess.run(
            ["bash", str(REPO / "examples" / "slurm" / "train.sbatch"), *words],
            cwd=tmp_path,
            env=environment(
                **{k: v for k, v in (JOB | task | said | more).items() if v is not None}
            ),
            capture_output=True,
            text=True,
        )
        assert complains in done.stderr if complains else done.stderr == ""
        said = [json.loads(line) for line in record.read_text().splitlines()]
        return done.returncode, [one for one in said if one[0] != "squeue"]

    return run


def parse(arguments: list[str]):
    """The arguments of srun as fairseq-train understands them."""
    assert arguments[:3] == ["--kill-on-bad-exit=1", "--cpus-per-task=32", "fairseq-train"]
    return options.parse_args_and_arch(options.get_training_parser(), arguments[3:])


def test_every_array_task_is_a_group(submit, tmp_path):
    ports, nonces = set(), set()
    for index in (0, 1):
        status, [(program, arguments, variables)] = submit(index)
        assert (status, program) == (0, "srun")
        args = parse(arguments)
        assert (args.codistill_num_groups, args.codistill_group) == (2, index)
        assert args.codistill_run_id == "4100"
        assert args.codistill_dir == f"{tmp_path}/runs/4100/exchange"
        assert args.save_dir == f"{tmp_path}/runs/4100/group-{index}"
        assert args.seed == 1 + SEED_STEP * index
        assert (args.distributed_world_size, args.update_freq) == (16, [4])
        assert args.restore_file == "checkpoint_last.pt"
        assert variables["CODISTILL_RESTARTS"] == "0"
        ports.add(args.distributed_port)
        nonces.add(variables["CODISTILL_NONCE"])
    assert len(ports) == len(nonces) == 2
    assert min(ports) > 1024


@pytest.mark.parametrize(
    ("words", "seed"),
    [(["--seed", "2"], 2), (["--", "--seed", "3"], 3), (["--seed", "2", "--", "--seed=4"], 4)],
)
def test_the_seed_is_the_one_given(submit, words, seed):
    for index in (0, 1):
        _, [(_, arguments, _)] = submit(index, words=("wmt16_big", *words))
        assert parse(arguments).seed == seed + SEED_STEP * index


@pytest.mark.parametrize("recipe", ["wmt16_big", "iwslt14_big"])
@pytest.mark.parametrize("all_reduce", [False, True])
def test_the_recipe_is_that_of_one_machine(submit, recipe, all_reduce, tmp_path):
    """Two groups, or one, on two GPUs in all: what fairseq is given is what launch gives it."""
    share = {"SLURM_ARRAY_TASK_COUNT": "1" if all_reduce else "2", "SLURM_NNODES": "1"}
    share["SLURM_GPUS_ON_NODE"] = "2" if all_reduce else "1"
    twin = ["--all-reduce"] if all_reduce else []
    _, [(_, arguments, _)] = submit(0, words=(recipe, *twin), **share)
    line = ["bash", str(REPO / "examples" / f"{recipe}.sh"), "--gpus", "2", "--dry-run", *twin]
    shown = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    words = shlex.split(next(x for x in shown.splitlines() if x.startswith("codistill launch")))
    single = options.parse_args_and_arch(
        options.get_training_parser(), words[words.index("fairseq-train") + 1 :]
    )
    cluster = vars(parse(arguments))
    different = {key for key, value in vars(single).items() if cluster[key] != value}
    # What launch adds to the line of one machine.
    added = {"codistill_num_groups", "codistill_dir", "codistill_run_id", "save_dir"}
    placed = {"distributed_world_size", "distributed_port"}
    assert different <= added | placed
    assert cluster["distributed_world_size"] == (2 if all_reduce else 1)


@pytest.mark.parametrize(
    ("words", "more", "says"),
    [
        ((), {}, "name a recipe of examples/"),
        (("bert",), {}, "name a recipe of examples/"),
        (("wmt16_big",), {"SLURM_GPUS_ON_NODE": "3"}, "--gpus 12 does not divide 128 workers"),
        (("wmt16_big",), {"SLURM_ARRAY_TASK_COUNT": "1"}, "--groups 1 has nobody to learn from"),
        (("wmt16_big", "--gpus", "8"), {}, "leave --gpus out: a job's groups are those of --array"),
        (("wmt16_big", "--seed", "2", "--out", "x"), {}, "leave --out out"),
        (("wmt16_big", "--dry-run"), {}, "leave --dry-run out"),
        (("wmt16_big",), {"SLURM_GPUS_ON_NODE": None}, "the job has no GPUs; submit with"),
        (("wmt16_big", "--cpu"), {"SLURM_GPUS_ON_NODE": "0"}, "the job has no GPUs; submit with"),
        (("wmt16_big",), {"SLURM_ARRAY_JOB_ID": None}, "this is no task of a job array"),
        (("wmt16_big",), {"SLURM_ARRAY_TASK_ID": None}, "this is no task of a job array"),
    ],
)
def test_what_cannot_be_is_not_requeued(submit, words, more, says, tmp_path):
    assert submit(0, words=words, complains=says, **more) == (2, [])
    assert not (tmp_path / "runs").exists()


def test_a_trial_on_cpu_needs_no_gpus(submit):
    more = {"SLURM_GPUS_ON_NODE": None, "SLURM_NNODES": "1"}
    status, [(_, arguments, _)] = submit(0, words=("iwslt14_big", "--cpu"), **more)
    args = parse(arguments)
    assert (status, args.cpu, args.distributed_world_size) == (0, True, 1)


def test_fairseq_finds_its_nodes(submit, monkeypatch, tmp_path):
    """What fairseq makes of the line on the second node of a group, with 8 GPUs each."""
    _, [(_, arguments, _)] = submit(1)
    cfg = convert_namespace_to_omegaconf(parse(arguments)).distributed_training
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setenv("PATH", str(tmp_path / "stubs"), prepend=os.pathsep)
    for name, value in {
        "SLURM_STEP_NODELIST": "node[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_NODEID": "1",
        "RECORD": str(tmp_path / "ignored"),
        "CODISTILL_NONCE": "",
        "CODISTILL_RESTARTS": "",
    }.items():
        monkeypatch.setenv(name, value)
    distributed_utils.infer_init_method(cfg)
    assert cfg.distributed_init_method == f"tcp://node7:{cfg.distributed_port}"
    assert (cfg.distributed_world_size, cfg.distributed_rank) == (16, 8)
    assert cfg.distributed_num_procs == 8


def test_a_requeued_group_is_the_same_and_goes_on(submit, tmp_path):
    _, [(_, _, before)] = submit(1)
    folder = tmp_path / "runs/4100/group-1"
    torch.save({}, folder / "checkpoint_1_500.pt")
    (folder / "checkpoint_last.pt").write_bytes(b"PK torn")
    _, [(_, arguments, after)] = submit(1, SLURM_RESTART_COUNT="3")
    assert after["CODISTILL_NONCE"] == before["CODISTILL_NONCE"]
    assert after["CODISTILL_RESTARTS"] == "3"
    assert parse(arguments).restore_file == str(folder / "checkpoint_1_500.pt")
    assert (folder / "checkpoint_last.pt.torn").exists()


def test_a_new_array_job_goes_on_with_the_run(submit, tmp_path):
    _, [(_, arguments, _)] = submit(1, RUN_ID="999", GROUPS_OF_RUN="4")
    args = parse(arguments)
    assert (args.codistill_run_id, args.codistill_num_groups) == ("999", 4)
    assert args.save_dir == f"{tmp_path}/runs/999/group-1"


def requeued(said) -> set[int]:
    """The array tasks that the batch file has requeued."""
    calls = [one[1] for one in said if one[0] == "scontrol"]
    assert all(arguments[0] == "requeue" for arguments in calls)
    return set().union(*(means(arguments[1]) for arguments in calls))


@pytest.mark.parametrize("index", [0, LAST_TASK])
def test_a_group_that_died_is_requeued_alone(submit, index):
    for status in (1, 137):
        ended, said = submit(index, status)
        assert (ended, requeued(said)) == (status, {index})
    assert submit(index)[1][1:] == []


def test_a_group_is_requeued_so_often_whatever_preempted_it_meanwhile(submit, tmp_path):
    for death in range(3):
        _, said = submit(0, 1, RESTARTS="3", SLURM_RESTART_COUNT=str(20 + death))
        assert requeued(said) == {0}
    ended, said = submit(0, 1, RESTARTS="3", complains="died 4 times, the last time with status 1")
    assert (ended, requeued(said)) == (1, set())
    # A new array job that goes on with the run begins to count anew.
    more = {"RUN_ID": "4100", "SLURM_ARRAY_JOB_ID": "5000", "RESTARTS": "3"}
    _, said = submit(0, 1, **more)
    assert said[-1][1] == ["requeue", "5000_0"]
    assert len((tmp_path / "runs/4100/group-0/deaths.txt").read_text().splitlines()) == 5


def test_a_group_that_never_trains_is_requeued_once(submit):
    says = {"SRUN_SAYS": "FileNotFoundError: no data"}
    assert requeued(submit(0, 1, **says)[1]) == {0}
    assert requeued(submit(0, 1, **says, complains="has died 2 times")[1]) == set()
    assert requeued(submit(1, 1, **says, RESTARTS="0", complains="has died 1 times")[1]) == set()


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "COMPLETING", "PREEMPTED", ""])
def test_a_group_that_slurm_ends_is_not_requeued(submit, tmp_path, state):
    ended, said = submit(1, 143, JOB_STATE=state)
    assert (ended, requeued(said)) == (143, set())
    assert not (tmp_path / "runs/4100/group-1/deaths.txt").exists()


def test_a_requeue_that_fails_is_told(submit):
    told = "could not be requeued; to bring it back: sbatch --array=1 --export=ALL,RUN_ID=4100,"
    ended, _ = submit(1, 1, REQUEUE_STATUS="1", complains=told)
    assert ended == 1


def test_a_status_of_0_without_training_is_no_success(submit, tmp_path):
    """fairseq ends with 0 where it sees no GPU.  What an earlier end has left does not count."""
    assert submit(0)[0] == 0
    ended, said = submit(0, TRAINS="no", complains="ended with status 0 and has not trained")
    assert (ended, requeued(said)) == (1, set())


def test_a_log_that_cannot_be_written_ends_nothing(submit, tmp_path):
    tee = tmp_path / "stubs" / "tee"
    tee.write_text("#!/bin/sh\ncat\necho 'tee: No space left on device' >&2\nexit 1\n")
    tee.chmod(0o755)
    ended, said = submit(0, complains="No space left on device")
    assert (ended, requeued(said)) == (0, set())


def test_wrong_settings_of_several_gpus_are_not_requeued(submit, tmp_path):
    """fairseq's own process ends with 1; what those that it has spawned said is in the log."""
    said = "torch.multiprocessing.spawn.ProcessExitedException: process 3 terminated with exit code"
    ended, calls = submit(0, 1, SRUN_SAYS=f"{said} 2")
    assert (ended, len(calls)) == (2, 1)
    log = tmp_path / "runs/4100/group-0/log.txt"
    assert log.read_text() == f"{said} 2\n"
    # What an earlier attempt said does not count, and neither does another status.
    ended, calls = submit(0, 1, SRUN_SAYS=f"{said} 23")
    assert (ended, requeued(calls)) == (1, {0})
    assert log.read_text() == f"{said} 2\n{said} 23\n"
