"""The command and the environment of every worker: pure functions of the plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch import checkpoints
from fairseq_codistill.launch.checkpoints import Resume
from fairseq_codistill.launch.devices import Devices
from fairseq_codistill.launch.dialects import Dialect, Settings
from fairseq_codistill.records.address import check_address, resolved

# fairseq derives dropout from seed + update and shuffling from seed + epoch: neighbouring seeds
# would replay each other.
SEED_STRIDE = 1000003
FAIRSEQ_DEFAULT_SEED = 1

# Left by a surrounding torchrun or Slurm job, these would tell fairseq that its world is theirs.
MISLEADING_VARIABLES = (
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "LOCAL_WORLD_SIZE",
    "GROUP_RANK",
    "GROUP_WORLD_SIZE",
    "ROLE_RANK",
    "ROLE_WORLD_SIZE",
    "ROLE_NAME",
    "TORCHELASTIC_RUN_ID",
    "TORCHELASTIC_USE_AGENT_STORE",
    "SLURM_STEP_NODELIST",
    "SLURM_JOB_NODELIST",
)

_WORLD = "distributed_training."
# Which worker a process is: launch alone says so, whatever the command says.
_WORLD_KEYS = [
    _WORLD + name
    for name in (
        "distributed_world_size",
        "distributed_rank",
        "distributed_init_method",
        "distributed_port",
        "distributed_no_spawn",
        "device_id",
    )
]
# Settings of a run's beginning, with the values that switch them off.  A group that goes on from
# its checkpoint is not told of them.
BEGINNING: Settings = {
    "checkpoint.restore_file": checkpoints.LAST,
    "checkpoint.finetune_from_model": "null",
}
# What belongs to them.
RESET: Settings = {
    "checkpoint.reset_optimizer": False,
    "checkpoint.reset_lr_scheduler": False,
    "checkpoint.reset_meters": False,
    "checkpoint.reset_dataloader": False,
}
_NEUTRAL: Settings = {**BEGINNING, **RESET}


@dataclass(frozen=True)
class Worker:
    """A process to start.

    Attributes:
        argv: its command.
        env: what to set in its environment.
        log: where its output goes.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path


@dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        dialect: the user's command.
        groups: number of groups.
        devices: where they run.
        out: the run's folder, absolute.
        run_id: shared by all groups.
        nonces: for each group, what tells its processes from a second group of the same index.
        flags: for some groups, arguments of their own.
        keep_omp: whether the user has set OMP_NUM_THREADS.
    """

    dialect: Dialect
    groups: int
    devices: Devices
    out: Path
    run_id: str
    nonces: tuple[str, ...]
    flags: Mapping[int, Sequence[str]] = field(default_factory=dict)
    keep_omp: bool = False

    def folder(self, group: int) -> Path:
        """Give the folder of ``group``."""
        return self.out / f"group-{group}"

    def command(self, group: int) -> Dialect:
        """Return what the user asks ``group`` to run."""
        own = self.flags.get(group, ())
        return replace(self.dialect, arguments=(*self.dialect.arguments, *own))


def parse_group_flags(values: Sequence[str], groups: int) -> dict[int, list[str]]:
    """Parse the values of ``--group``, each ``'I: FLAGS'``.

    Raises:
        UserError: if one has another form or names a group that is not there.
    """
    flags: dict[int, list[str]] = {}
    for value in values:
        match = re.fullmatch(r"\s*(\d+)\s*:(.*)", value, re.DOTALL)
        if match is None:
            raise UserError(f"--group {value!r} has no index; write it as --group '1: --lr 0.001'")
        group = int(match[1])
        if group >= groups:
            raise UserError(
                f"--group {value!r} names group {group}, but --groups {groups} makes groups "
                f"0 to {groups - 1}; correct one of them"
            )
        try:
            flags.setdefault(group, []).extend(shlex.split(match[2]))
        except ValueError as error:
            raise UserError(f"--group {value!r} has an open quote; close it") from error
    return flags


def seeds(plan: Plan) -> list[int]:
    """Give the seed of every group.

    Raises:
        UserError: if a seed is no number, or two groups have the same one.
    """
    dialect = plan.dialect
    base = _as_seed(dialect.value("common.seed"))
    result: list[int] = []
    for group in range(plan.groups):
        own = dialect.read(plan.flags.get(group, ()), "common.seed")
        seed = base + SEED_STRIDE * group if own is None else _as_seed(own)
        if seed in result:
            raise UserError(
                f"--group '{group}: ...' gives groups {result.index(seed)} and {group} the same "
                f"seed {seed}, so they would train the same model; give each its own"
            )
        result.append(seed)
    return result


def workers_of(
    plan: Plan,
    group: int,
    port: int,
    resume: Resume | None = None,
    restarted: bool = False,
    starts: int = 0,
) -> list[Worker]:
    """Give the processes of ``group``, the first worker's first.

    Args:
        plan: the run.
        group: which group.
        port: a free port for the workers of this group to meet at.
        resume: what to continue from.
        restarted: whether the group has already run in this launch.
        starts: how often it has been started before, in whatever launch.
    """
    dialect, devices = plan.dialect, plan.devices
    resume = resume or Resume()
    own = list(plan.flags.get(group, ()))
    said = [*dialect.arguments, *own]
    outdated = _outdated(dialect, own, resume, restarted)
    left_out = [*_WORLD_KEYS, *outdated]
    identity: dict[str, str | int | bool] = {
        "task.codistill_group": group,
        "task.codistill_num_groups": plan.groups,
        "task.codistill_run_id": plan.run_id,
        "checkpoint.save_dir": str(plan.folder(group)),
        # What a file says cannot be left out, only overridden.
        **{key: _NEUTRAL[key] for key in outdated if dialect.read_default(key) is not None},
        **_restore(resume),
    }
    common = [
        *dialect.without(dialect.arguments, left_out),
        *dialect.write(_defaults(plan, group, own)),
        *dialect.without(own, left_out),
        *dialect.write(identity),
        *dialect.extra(plan.folder(group)),
    ]
    if dialect.like_torchrun:
        worlds = _torchrun_worlds(devices, port)
    else:
        keeps_backend = dialect.read(said, _WORLD + "ddp_backend") is not None
        worlds = [(settings, {}) for settings in _fairseq_worlds(devices, port, keeps_backend)]
    return [
        Worker(
            argv=(*dialect.program, *common, *dialect.write(settings)),
            env={**_environment(plan, group, starts), **place},
            log=plan.folder(group) / ("log.txt" if rank == 0 else f"log-worker-{rank}.txt"),
        )
        for rank, (settings, place) in enumerate(worlds)
    ]


def exchange_folder(plan: Plan, group: int) -> Path | None:
    """Give the exchange as ``group`` sees it; None if there is none, or it is no plain folder."""
    if plan.groups == 1:
        return None
    named = _named_exchange(plan, plan.flags.get(group, ()))
    if named is None:
        return plan.out / "exchange"
    return None if "://" in named or "::" in named else Path(named).expanduser()


def check_exchanges(plan: Plan) -> None:
    """Make sure that every group's exchange has an address that may be used and written down.

    Raises:
        UserError: if one has not.
    """
    for group in range(plan.groups):
        named = _named_exchange(plan, plan.flags.get(group, ()))
        if named is None or plan.groups == 1:
            continue
        try:
            check_address(named)
        except ValueError as error:
            raise UserError(f"--codistill-dir {error}") from None


def exchange_address(plan: Plan, group: int = 0) -> str | None:
    """Return a group's exchange, an absolute path or a URI; None if there is none."""
    if plan.groups == 1:
        return None
    named = _named_exchange(plan, plan.flags.get(group, ()))
    return str(plan.out / "exchange") if named is None else resolved(named)


def is_lockstep(plan: Plan) -> bool:
    """Tell whether groups wait for each other."""
    key = "task.codistill_mode"
    said = [plan.dialect.read(plan.flags.get(group, ()), key) for group in range(plan.groups)]
    return "lockstep" in (plan.dialect.value(key), *said)


def as_shell(worker: Worker, environ: Mapping[str, str]) -> str:
    """Give a line for a shell with the environment ``environ`` that does what launch would."""
    unset = [f"-u {name}" for name in MISLEADING_VARIABLES if name in environ]
    assignments = [f"{name}={shlex.quote(value)}" for name, value in worker.env.items()]
    prefix = ["env", *unset] if unset else []
    return " ".join([*prefix, *assignments, shlex.join(worker.argv)])


def _defaults(plan: Plan, group: int, own: Sequence[str]) -> Settings:
    """Give what launch derives and the group's own flags may still override."""
    settings: dict[str, str | int | bool] = {}
    if plan.dialect.read(own, "common.seed") is None:
        settings["common.seed"] = seeds(plan)[group]
    if plan.groups > 1 and _named_exchange(plan, own) is None:
        settings["task.codistill_dir"] = str(plan.out / "exchange")
    tensorboard = plan.dialect.value("common.tensorboard_logdir")
    if tensorboard is not None and plan.dialect.read(own, "common.tensorboard_logdir") is None:
        # In one folder the groups' curves would be one.
        settings["common.tensorboard_logdir"] = f"{tensorboard.rstrip('/')}/group-{group}"
    return settings


def _named_exchange(plan: Plan, own: Sequence[str]) -> str | None:
    key = "task.codistill_dir"
    return plan.dialect.read(own, key) or plan.dialect.value(key)


def _outdated(dialect: Dialect, own: Sequence[str], resume: Resume, restarted: bool) -> list[str]:
    """Give the settings that would keep a group from continuing its own checkpoint.

    ``--restore-file`` and ``--finetune-from-model`` say where a run begins; the reset flags belong
    to them, and in a restart they have done their work.
    """
    if resume.checkpoint is None:
        return []
    values = [dialect.read(own, key) or dialect.value(key) for key in BEGINNING]
    begins_elsewhere = any(value is not None for value in values)
    return [*BEGINNING, *(RESET if restarted or begins_elsewhere else {})]


def _restore(resume: Resume) -> Settings:
    if resume.checkpoint is None:
        return {}
    # Said even if it is fairseq's default: a YAML may name another.
    return {"checkpoint.restore_file": checkpoints.restore_file(resume)}


def _torchrun_worlds(devices: Devices, port: int) -> list[tuple[Settings, dict[str, str]]]:
    """Give, for each worker of a group, its settings and the variables torchrun would set."""
    settings: Settings = {"common.cpu": True} if devices.cpu else {}
    if devices.workers == 1:
        return [(settings, {})]
    size = str(devices.workers)
    meet = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    return [
        (
            settings,
            {
                **meet,
                **{"WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size},
                **{"RANK": str(rank), "LOCAL_RANK": str(rank)},
            },
        )
        for rank in range(devices.workers)
    ]


def _fairseq_worlds(devices: Devices, port: int, keeps_backend: bool) -> list[Settings]:
    """Give, for each process of a group, the settings that make its data-parallel world."""
    size: dict[str, str | int | bool] = {_WORLD + "distributed_world_size": devices.workers}
    # Not --distributed-port: outside Slurm fairseq takes a port alone for no distribution at all.
    meet = {_WORLD + "distributed_init_method": f"tcp://localhost:{port}"}
    if not devices.cpu:
        return [{**size, **meet} if devices.workers > 1 else size]
    cpu = {**size, "common.cpu": True}
    if devices.workers == 1:
        return [cpu]
    # fairseq spawns a process a GPU; on CPU each worker has to be started.
    backends = {_WORLD + "distributed_backend": "gloo"}
    if not keeps_backend:
        backends[_WORLD + "ddp_backend"] = "legacy_ddp"
    return [
        {
            **cpu,
            **backends,
            **meet,
            _WORLD + "distributed_rank": rank,
            _WORLD + "distributed_no_spawn": True,
        }
        for rank in range(devices.workers)
    ]


def _environment(plan: Plan, group: int, starts: int) -> dict[str, str]:
    env = {
        "CODISTILL_NONCE": plan.nonces[group],
        # The group says it in the exchange, for `codistill status` to show.
        "CODISTILL_RESTARTS": str(starts),
        "PYTHONUNBUFFERED": "1",
    }
    devices = plan.devices
    if devices.cpu and not plan.keep_omp:
        threads = devices.cores // (plan.groups * devices.workers)
        env["OMP_NUM_THREADS"] = str(max(1, threads))
    return env | devices.environment(group)


def _as_seed(text: str | None) -> int:
    if text is None:
        return FAIRSEQ_DEFAULT_SEED
    try:
        return int(text)
    except ValueError:
        raise UserError(f"--seed {text} is no whole number; give one") from None
