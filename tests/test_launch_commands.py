"""What launch starts: pure functions, no process."""

import subprocess
from dataclasses import replace

import pytest

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.checkpoints import Resume
from fairseq_codistill.launch.commands import (
    SEED_STRIDE,
    Plan,
    as_shell,
    parse_group_flags,
    seeds,
    workers_of,
)
from fairseq_codistill.launch.devices import Devices, divide
from fairseq_codistill.launch.dialects import FairseqHydraTrain, FairseqTrain, recognise

CPU = Devices(gpus=(), workers=1, cores=8)
PORT = 1234


def plan(tmp_path, *command, groups=2, devices=CPU, flags=None):
    return Plan(
        dialect=recognise(command),
        groups=groups,
        devices=devices,
        out=tmp_path / "out",
        run_id="run",
        nonces=tuple(f"nonce{i}" for i in range(groups)),
        flags=flags or {},
    )


def last(worker, flag):
    """The value argparse would take."""
    argv = worker.argv
    return argv[max(i for i, argument in enumerate(argv) if argument == flag) + 1]


def overrides(worker):
    """The overrides as hydra reads them: it has the last word on its own grammar."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    arguments = [a for a in worker.argv if "=" in a and not a.startswith("--")]
    parsed = OverridesParser.create().parse_overrides(arguments)
    return {override.key_or_group: override.value() for override in parsed}


@pytest.mark.parametrize(
    ("command", "kind", "program"),
    [
        (["fairseq-train", "d"], FairseqTrain, 1),
        (["/opt/env/bin/fairseq-train", "d"], FairseqTrain, 1),
        (["python", "-m", "fairseq_cli.train", "d"], FairseqTrain, 3),
        (["/usr/bin/python3.11", "-u", "-m", "fairseq_cli.train", "d"], FairseqTrain, 4),
        (["fairseq-hydra-train", "d"], FairseqHydraTrain, 1),
        (["python3", "-m", "fairseq_cli.hydra_train", "d"], FairseqHydraTrain, 3),
    ],
)
def test_recognises(command, kind, program):
    dialect = recognise(command)
    assert type(dialect) is kind
    assert len(dialect.program) == program
    assert dialect.arguments == ("d",)


@pytest.mark.parametrize(
    "command",
    [[], ["torchrun", "x"], ["python", "train.py"], ["python", "-m"], ["python", "x", "-m", "y"]],
)
def test_refuses_other_commands(command):
    with pytest.raises(UserError):
        recognise(command)


def test_appends_what_differs(tmp_path):
    the_plan = plan(tmp_path, "fairseq-train", "d", "--seed", "5", "--save-dir", "mine")
    for group in (0, 1):
        (worker,) = workers_of(the_plan, group, PORT)
        assert last(worker, "--codistill-group") == str(group)
        assert last(worker, "--codistill-num-groups") == "2"
        assert last(worker, "--codistill-run-id") == "run"
        assert last(worker, "--codistill-dir") == str(tmp_path / "out/exchange")
        assert last(worker, "--save-dir") == str(tmp_path / f"out/group-{group}")
        assert last(worker, "--seed") == str(5 + SEED_STRIDE * group)
        assert "--cpu" in worker.argv
        assert worker.log == tmp_path / f"out/group-{group}/log.txt"
        assert worker.env["CODISTILL_NONCE"] == f"nonce{group}"
        assert worker.env["OMP_NUM_THREADS"] == "4"


def test_seed_of_fairseq_by_default(tmp_path):
    assert seeds(plan(tmp_path, "fairseq-train", "d")) == [1, 1 + SEED_STRIDE]
    assert seeds(plan(tmp_path, "fairseq-train", "d", "--seed=9")) == [9, 9 + SEED_STRIDE]


def test_each_group_has_a_tensorboard_folder_of_its_own(tmp_path):
    flags = {1: ["--tensorboard-logdir", "mine"]}
    made = plan(tmp_path, "fairseq-train", "d", "--tensorboard-logdir", "tb/", flags=flags)
    folders = [last(workers_of(made, i, PORT)[0], "--tensorboard-logdir") for i in (0, 1)]
    assert folders == ["tb/group-0", "mine"]


def test_one_group_has_no_exchange(tmp_path):
    (worker,) = workers_of(plan(tmp_path, "fairseq-train", "d", groups=1), 0, PORT)
    assert "--codistill-dir" not in worker.argv


def test_exchange_of_the_user(tmp_path):
    the_plan = plan(tmp_path, "fairseq-train", "d", "--codistill-dir=s3://bucket/x")
    (worker,) = workers_of(the_plan, 1, PORT)
    assert "--codistill-dir" not in worker.argv
    the_plan = plan(tmp_path, "fairseq-train", "d", flags={1: ["--codistill-dir", "there"]})
    assert last(workers_of(the_plan, 0, PORT)[0], "--codistill-dir").endswith("exchange")
    assert last(workers_of(the_plan, 1, PORT)[0], "--codistill-dir") == "there"


def test_group_flags_override_the_command_but_not_who_the_group_is(tmp_path):
    flags = parse_group_flags(["1: --lr 0.5 --seed 8", "1: --save-dir 'my dir'"], 2)
    the_plan = plan(tmp_path, "fairseq-train", "d", "--lr", "0.1", "--seed", "3", flags=flags)
    assert seeds(the_plan) == [3, 8]
    (worker,) = workers_of(the_plan, 1, PORT)
    assert last(worker, "--lr") == "0.5"
    assert last(worker, "--seed") == "8"
    assert last(worker, "--save-dir") == str(tmp_path / "out/group-1")
    (other,) = workers_of(the_plan, 0, PORT)
    assert last(other, "--lr") == "0.1"


@pytest.mark.parametrize("value", ["--lr 1", "x: --lr 1", "2: --lr 1", "1: --lr '1"])
def test_bad_group_flags(value):
    with pytest.raises(UserError, match="--group"):
        parse_group_flags([value], 2)


def test_two_groups_with_one_seed(tmp_path):
    with pytest.raises(UserError, match="same seed 1"):
        seeds(plan(tmp_path, "fairseq-train", "d", flags={1: ["--seed", "1"]}))
    with pytest.raises(UserError, match="--seed x"):
        seeds(plan(tmp_path, "fairseq-train", "d", "--seed", "x"))


def test_several_workers_on_cpu(tmp_path):
    devices = Devices(gpus=(), workers=2, cores=2)
    command = ["fairseq-train", "d", "--distributed-rank", "7", "--distributed-no-spawn", "--fp16"]
    workers = workers_of(plan(tmp_path, *command, devices=devices), 1, PORT)
    assert [last(worker, "--distributed-rank") for worker in workers] == ["0", "1"]
    assert [worker.log.name for worker in workers] == ["log.txt", "log-worker-1.txt"]
    for worker in workers:
        assert last(worker, "--distributed-world-size") == "2"
        assert last(worker, "--distributed-init-method") == f"tcp://localhost:{PORT}"
        assert last(worker, "--distributed-backend") == "gloo"
        assert last(worker, "--ddp-backend") == "legacy_ddp"
        assert "--fp16" in worker.argv
        assert "7" not in worker.argv
        assert worker.argv.count("--distributed-no-spawn") == 1
        assert worker.env["OMP_NUM_THREADS"] == "1"
        assert worker.env["CUDA_VISIBLE_DEVICES"] == ""


def test_keeps_the_users_backend_and_threads(tmp_path):
    devices = Devices(gpus=(), workers=2, cores=2)
    command = ["fairseq-train", "d", "--ddp-backend", "pytorch_ddp"]
    the_plan = replace(plan(tmp_path, *command, devices=devices), keep_omp=True)
    (first, _) = workers_of(the_plan, 0, PORT)
    assert last(first, "--ddp-backend") == "pytorch_ddp"
    assert "OMP_NUM_THREADS" not in first.env


def test_gpus(tmp_path):
    devices = divide(["0", "1", "2", "3"], groups=2, workers=None)
    (worker,) = workers_of(plan(tmp_path, "fairseq-train", "d", devices=devices), 1, PORT)
    assert worker.env["CUDA_VISIBLE_DEVICES"] == "2,3"
    assert "OMP_NUM_THREADS" not in worker.env
    assert last(worker, "--distributed-world-size") == "2"
    assert last(worker, "--distributed-init-method") == f"tcp://localhost:{PORT}"
    assert "--cpu" not in worker.argv
    # fairseq takes a port without an init method, outside Slurm, for no distribution.
    assert "--distributed-port" not in worker.argv


def test_amds_gpus(tmp_path):
    devices = replace(divide(["0", "1", "2", "3"], groups=2, workers=None), rocm=True)
    # ROCR_VISIBLE_DEVICES comes first: the other two count within what it leaves.
    rocr = replace(divide(["4", "5", "6", "7"], groups=2, workers=None), rocm=True, rocr=True)
    for given, cuda, hip, first in (
        (devices, "2,3", "2,3", None),
        (rocr, "0,1", "0,1", "6,7"),
    ):
        (worker,) = workers_of(plan(tmp_path, "fairseq-train", "d", devices=given), 1, PORT)
        assert worker.env["CUDA_VISIBLE_DEVICES"] == cuda
        assert worker.env["HIP_VISIBLE_DEVICES"] == hip
        assert worker.env.get("ROCR_VISIBLE_DEVICES") == first


@pytest.mark.parametrize(
    ("flags", "on"), [("", True), ("--no-cpu", False), ("--no-cpu --cpu", True)]
)
def test_what_stands_beside_a_recipe_wins(tmp_path, flags, on):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("cpu: true\n")
    command = ["python", "-m", "fairseq_codistill.vision", "--config", str(recipe), *flags.split()]
    assert plan(tmp_path, *command).dialect.is_on("common.cpu") is on


def test_dividing_gpus():
    assert divide(["0", "1", "2", "3"], 2, 1).gpus == (("0",), ("2",))
    assert divide(["GPU-a", "GPU-a"], 2, None).gpus == (("GPU-a",), ("GPU-a",))
    assert divide([], 2, None).workers == 1
    with pytest.raises(UserError, match="--groups 3"):
        divide(["0", "1"], 3, None)
    with pytest.raises(UserError, match="--workers-per-group 2"):
        divide(["0", "1"], 2, 2)


def test_hydra(tmp_path):
    folder = tmp_path / "a folder, it's = here"
    (tmp_path / "tiny.yaml").write_text("common: {seed: 7, cpu: true}\n")
    command = ["fairseq-hydra-train", "--config-dir", str(tmp_path), "--config-name", "tiny"]
    the_plan = plan(folder, *command, devices=Devices((), 2, 2), flags={1: ["++common.fp16=true"]})
    assert the_plan.dialect.is_on("common.cpu")
    _, worker = workers_of(the_plan, 1, PORT)
    said = overrides(worker)
    assert said["common.seed"] == 7 + SEED_STRIDE
    assert said["task.codistill_group"] == 1
    assert said["task.codistill_dir"] == str(folder / "out/exchange")
    assert said["checkpoint.save_dir"] == str(folder / "out/group-1")
    assert said["distributed_training.distributed_rank"] == 1
    assert said["distributed_training.distributed_no_spawn"] is True
    assert said["common.cpu"] is True
    assert said["common.fp16"] is True
    assert said["hydra.run.dir"] == str(folder / "out/group-1/hydra")


@pytest.mark.parametrize("run_id", ["12e4567890123456", "1234567890123456", "inf"])
def test_a_run_id_that_looks_like_a_number_is_text_for_hydra(tmp_path, run_id):
    (tmp_path / "tiny.yaml").write_text("common: {seed: 7, cpu: true}\n")
    command = ["fairseq-hydra-train", "--config-dir", str(tmp_path), "--config-name", "tiny"]
    the_plan = replace(plan(tmp_path, *command, devices=Devices((), 1, 2)), run_id=run_id)
    (worker,) = workers_of(the_plan, 0, PORT)
    said = overrides(worker)["task.codistill_run_id"]
    assert (said, type(said)) == (run_id, str)


def test_seed_of_hydra(tmp_path):
    (tmp_path / "tiny.yaml").write_text("common:\n  seed: 7\n")
    (tmp_path / "none.yaml").write_text("task: {_name: codistill_translation}\n")

    def seed(*arguments):
        return seeds(plan(tmp_path, "fairseq-hydra-train", *arguments))[0]

    assert seed(f"-cd={tmp_path}", "-cn=tiny") == 7
    assert seed("-cd", str(tmp_path), "-cn", "tiny.yaml", "common.seed=3") == 3
    assert seed("--config-dir", str(tmp_path), "--config-name", "tiny", "++common.seed='4'") == 4
    assert seed("-cd", str(tmp_path), "-cn", "none") == 1
    assert seed() == 1


def test_continues_from_its_own_checkpoint(tmp_path):
    command = ["fairseq-train", "d", "--restore-file", "pre.pt", "--reset-optimizer", "--lr", "1"]
    the_plan = plan(tmp_path, *command)
    (fresh,) = workers_of(the_plan, 0, PORT)
    assert last(fresh, "--restore-file") == "pre.pt"
    folder = the_plan.folder(0)
    (again,) = workers_of(the_plan, 0, PORT, Resume(folder / "checkpoint_last.pt"))
    assert last(again, "--restore-file") == "checkpoint_last.pt"
    assert "pre.pt" not in again.argv
    assert "--reset-optimizer" not in again.argv
    assert last(again, "--lr") == "1"
    (other,) = workers_of(the_plan, 0, PORT, Resume(folder / "checkpoint3.pt"), restarted=True)
    assert last(other, "--restore-file") == str(folder / "checkpoint3.pt")


def test_a_new_launch_may_reset_its_own_checkpoint_but_a_restart_does_not(tmp_path):
    the_plan = plan(tmp_path, "fairseq-train", "d", "--reset-lr-scheduler")
    resume = Resume(the_plan.folder(0) / "checkpoint_last.pt")
    assert "--reset-lr-scheduler" in workers_of(the_plan, 0, PORT, resume)[0].argv
    assert "--reset-lr-scheduler" not in workers_of(the_plan, 0, PORT, resume, True)[0].argv


def test_hydra_file_that_restores(tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "checkpoint: {finetune_from_model: pre.pt, reset_optimizer: true}\n"
    )
    the_plan = plan(tmp_path, "fairseq-hydra-train", "-cd", str(tmp_path), "-cn", "tiny")
    (fresh,) = workers_of(the_plan, 0, PORT)
    assert "checkpoint.finetune_from_model" not in overrides(fresh)
    resume = Resume(the_plan.folder(0) / "checkpoint3.pt")
    said = overrides(workers_of(the_plan, 0, PORT, resume)[0])
    assert said["checkpoint.finetune_from_model"] is None
    assert said["checkpoint.reset_optimizer"] is False
    assert said["checkpoint.restore_file"] == str(resume.checkpoint)


def test_the_printed_line_does_what_launch_does(tmp_path):
    the_plan = plan(tmp_path / "a b", "fairseq-train", "d'x")
    (worker,) = workers_of(the_plan, 0, PORT)
    # A stand-in of that name on PATH prints what it is given.
    tool = tmp_path / "fairseq-train"
    tool.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\necho "$CODISTILL_NONCE $RANK $CODISTILL_KEY"\n'
    )
    tool.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin", "RANK": "3", "CODISTILL_KEY": "hush"}
    line = as_shell(worker, environ)
    assert "hush" not in line
    result = subprocess.run(
        ["sh", "-c", line], env=environ, capture_output=True, text=True, check=True
    )
    assert result.stdout.splitlines() == [*worker.argv[1:], "nonce0  hush"]
