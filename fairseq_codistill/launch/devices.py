"""Where the groups run: this machine's GPUs divided evenly, or its CPU.

What the driver lists and what the environment names are only a plan. Before anything starts,
torch is asked how many devices it sees with each group's own list. Nothing falls back to the CPU
unless the user asks for it or the machine shows no sign of a GPU.
"""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.probe import ask
from fairseq_codistill.launch.torch_devices import (
    Count,
    Interpreter,
    count_devices,
    interpreter_of,
)
from fairseq_codistill.records import printable

# NVIDIA's driver, the same on its small boards, AMD's, and either under WSL.
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/nvhost-gpu", "/dev/kfd", "/dev/dxg")
ROCM_FILE = "/dev/kfd"
# Seconds for nvidia-smi, which wakes the driver if nothing else keeps it awake.
PATIENCE = 30.0

CUDA, HIP, ROCR = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"
REMEDY = (
    "make the driver, torch and the list of GPUs agree (codistill doctor shows them), or train on "
    f"the CPU: --cpu (hydra: common.cpu=true) in the command, or {CUDA}= before it"
)


class Unusable(UserError):
    """There are GPUs, or there should be, and torch cannot use them.

    Args:
        problem: what is wrong, a clause.
        remedy: what to do about it.
    """

    def __init__(self, problem: str, remedy: str = REMEDY) -> None:
        super().__init__(f"{problem}; {remedy}")
        self.problem = problem
        self.remedy = remedy


@dataclass(frozen=True)
class Found:
    """The GPUs that the groups may use.

    Attributes:
        names: as the variable for visible devices names them; none means the CPU.
        why: where that is from, a clause.
        rocr: whether they are named as ``ROCR_VISIBLE_DEVICES`` names them.
    """

    names: tuple[str, ...]
    why: str
    rocr: bool = False


@dataclass(frozen=True)
class Devices:
    """The devices of all groups.

    Attributes:
        gpus: for each group the names of its workers' GPUs; empty on CPU.
        workers: workers of a group.
        cores: CPU cores that all groups share.
        why: what they were found by, a clause; empty if the user asked for the CPU.
        rocm: whether the variables of AMD's ROCm are set too.
        rocr: whether ``ROCR_VISIBLE_DEVICES`` is the variable that is divided.
    """

    gpus: tuple[tuple[str, ...], ...]
    workers: int
    cores: int
    why: str = ""
    rocm: bool = False
    rocr: bool = False

    @property
    def cpu(self) -> bool:
        """Whether the workers run on CPU."""
        return not self.gpus

    def __str__(self) -> str:
        """Say what each group has."""
        each = f"{self.workers} worker(s) on the CPU" if self.cpu else f"{self.workers} GPU(s)"
        return f"{each} each ({self.why})" if self.why else f"{each} each"

    def environment(self, group: int) -> dict[str, str]:
        """Return the variables that show the workers of ``group`` their devices and no others."""
        if self.cpu:
            # With --cpu fairseq still touches a GPU that it sees. To ROCm an empty list is none.
            return {CUDA: "", **({HIP: "-1"} if self.rocm else {})}
        names = ",".join(self.gpus[group])
        if self.rocr:
            # ROCm applies this one first; the others count within what it leaves.
            within = ",".join(str(index) for index in range(len(self.gpus[group])))
            return {CUDA: within, HIP: within, ROCR: names}
        return {CUDA: names, **({HIP: names} if self.rocm else {})}


@dataclass(frozen=True)
class Listing:
    """What ``nvidia-smi`` lists.

    Attributes:
        gpus: how many, whatever is visible of them; None if there is no such program.
        trouble: what is wrong with the answer; empty if nothing is.
    """

    gpus: int | None
    trouble: str = ""


def find_devices(
    environ: Mapping[str, str],
    program: Sequence[str],
    cpu: bool,
    groups: int,
    workers: int | None,
) -> Devices:
    """Return the devices of all groups, which torch has still to confirm (``check``).

    Args:
        environ: the environment of launch.
        program: the words that start the command.
        cpu: whether the command says that it trains on the CPU.
        groups: how many.
        workers: of each; None for as many as it has GPUs.

    Raises:
        UserError: if the GPUs cannot be used or do not divide.
    """
    found = Found((), "") if cpu else find_gpus(environ, program)
    return assign(found, environ, groups, workers)


def assign(found: Found, environ: Mapping[str, str], groups: int, workers: int | None) -> Devices:
    """Divide what was found among the groups.

    Raises:
        UserError: as ``divide`` does.
    """
    return replace(
        divide(found.names, groups, workers),
        why=found.why,
        rocm=HIP in environ or ROCR in environ or os.path.exists(ROCM_FILE),
        rocr=found.rocr,
    )


def find_gpus(environ: Mapping[str, str], program: Sequence[str] = ()) -> Found:
    """Return the GPUs that a process with this environment is to use.

    They are those that ``CUDA_VISIBLE_DEVICES`` or ``HIP_VISIBLE_DEVICES`` names, otherwise those
    that nvidia-smi lists, that ``ROCR_VISIBLE_DEVICES`` names or that torch counts. torch, which
    takes seconds, is asked only if this machine looks as if it had GPUs.

    Args:
        environ: the environment.
        program: the words that start the command whose torch is asked.

    Raises:
        UserError: if the lists are malformed, or torch has no device where there should be one.
    """
    cuda, hip, rocr = (named(environ, variable) for variable in (CUDA, HIP, ROCR))
    if cuda == ():
        return Found((), f"{CUDA} hides every GPU")
    if cuda and hip and cuda != hip:
        raise UserError(
            f"{CUDA}={environ[CUDA]} and {HIP}={environ[HIP]} name different GPUs; unset the one "
            "that torch does not use, or set both to the same"
        )
    for variable, names in ((CUDA, cuda), (HIP, hip)):
        if names:
            return Found(names, f"{variable} names {len(names)} GPU(s)")
    listing = list_gpus(environ)
    if listing.gpus:
        return Found(_indices(listing.gpus), f"nvidia-smi lists {listing.gpus} GPU(s)")
    if hip == ():
        return Found((), f"{HIP} hides every GPU")
    if rocr:
        return Found(rocr, f"{ROCR} names {len(rocr)} GPU(s)", rocr=True)
    files = [path for pattern in DEVICE_FILES for path in sorted(glob.glob(pattern))]
    signs = [listing.trouble] if listing.trouble else [f"there is {path}" for path in files[:1]]
    if not signs:
        return Found((), "no sign of a GPU on this machine")
    return _counted_by_torch(signs[0], environ, program)


def named(environ: Mapping[str, str], variable: str) -> tuple[str, ...] | None:
    """Return the GPUs that ``variable`` names; None if it is not set.

    Raises:
        UserError: if names follow one at which CUDA stops reading.
    """
    value = environ.get(variable)
    if value is None:
        return None
    names = [name.strip() for name in value.split(",")]
    ends = [name == "" or name.startswith("-") for name in names]
    known = ends.index(True) if True in ends else len(names)
    if not all(ends[known:]):
        raise UserError(
            f"{variable}={printable(value)} has {names[known]!r} before other names, where CUDA "
            "stops reading; leave it out"
        )
    return tuple(names[:known])


def list_gpus(environ: Mapping[str, str]) -> Listing:
    """Ask ``nvidia-smi`` for the GPUs of this machine, within a limit of time."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return Listing(None)
    answer = ask([tool, "-L"], environ, PATIENCE)
    if answer.trouble:
        return Listing(0, f"nvidia-smi {answer.trouble}")
    # A line "GPU 0: ..." for each, followed by indented lines for its MIG slices.
    return Listing(sum(line.startswith("GPU ") for line in answer.out.splitlines()))


def divide(gpus: Sequence[str], groups: int, workers: int | None) -> Devices:
    """Divide ``gpus`` evenly among ``groups``; no GPUs means CPU.

    Raises:
        UserError: if they do not divide, there are fewer than ``workers`` for each group, or CUDA
            would not show a group all that it is given.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if not gpus:
        return Devices(gpus=(), workers=workers or 1, cores=cores or 1)
    if len(gpus) % groups != 0:
        raise UserError(
            f"--groups {groups} does not divide {len(gpus)} GPU(s) evenly; set "
            "CUDA_VISIBLE_DEVICES to a multiple of it (a GPU named twice is shared), "
            "or train on CPU with --cpu (hydra: common.cpu=true) in the command"
        )
    share = len(gpus) // groups
    if workers is not None and workers > share:
        raise UserError(
            f"--workers-per-group {workers} is more than the {share} GPU(s) of each group; "
            "choose fewer workers or fewer groups"
        )
    workers = workers or share
    slices = tuple(tuple(gpus[i * share :][:workers]) for i in range(groups))
    for group, names in enumerate(slices):
        _check_names(group, names)
    return Devices(gpus=slices, workers=workers, cores=cores or 1)


def check(devices: Devices, program: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Compare torch's count of devices, for each group's own list, with the group's workers.

    Args:
        devices: those of all groups.
        program: the words that start the command, whose torch is asked.
        environ: the environment of launch, which each group's variables are added to.

    Returns:
        Sentences for the user: what could not be compared, and what is odd.

    Raises:
        Unusable: if torch sees fewer devices than a group has workers.
    """
    if devices.cpu:
        return []
    interpreter = interpreter_of(program, environ)
    counts = count_by_torch(devices, interpreter, environ)
    notes = []
    for group, count in enumerate(counts):
        given = _given(devices, group)
        if count.devices is None and count.no_torch and not interpreter.told:
            return [
                f"torch is not installed for {interpreter}, so whether the command's torch sees "
                "these GPUs was not compared"
            ]
        if count.devices is None:
            raise Unusable(
                f"{given}, but torch could not be asked for its count: {interpreter} {count.why}"
            )
        if count.devices < devices.workers:
            because = f" ({count.why})" if count.why else ""
            raise Unusable(
                f"{given}, but torch of {interpreter} counts {count.devices} device(s) "
                f"there{because}"
            )
        if count.devices > devices.workers:
            notes.append(
                f"{given}, but torch counts {count.devices} device(s) there: it does not keep to "
                "the list, and groups may share a GPU"
            )
    return notes


def count_by_torch(
    devices: Devices, interpreter: Interpreter, environ: Mapping[str, str]
) -> list[Count]:
    """Return torch's count of devices for each group, asked with the group's variables."""
    lists = [devices.environment(group) for group in range(len(devices.gpus))]
    # Groups that share a GPU have the same list.
    distinct = [shown for i, shown in enumerate(lists) if shown not in lists[:i]]
    counts = count_devices(interpreter, [{**environ, **shown} for shown in distinct])
    return [counts[distinct.index(shown)] for shown in lists]


def _given(devices: Devices, group: int) -> str:
    """Say what a group is given, and where that is from."""
    shown = devices.environment(group)
    given = f"group {group} has {devices.workers} worker(s) on {CUDA}={shown[CUDA]}"
    if devices.rocr:
        given += f" of {ROCR}={shown[ROCR]}"
    return f"{devices.why}, and {given}" if devices.why else given


def _counted_by_torch(sign: str, environ: Mapping[str, str], program: Sequence[str]) -> Found:
    interpreter = interpreter_of(program, environ)
    (count,) = count_devices(interpreter, [environ])
    if count.devices is None:
        raise Unusable(f"{sign}, and torch could not be asked: {interpreter} {count.why}")
    if count.devices == 0:
        because = f" ({count.why})" if count.why else ""
        raise Unusable(f"{sign}, but torch of {interpreter} counts 0 devices{because}")
    return Found(_indices(count.devices), f"{sign}; torch counts {count.devices} GPU(s)")


def _check_names(group: int, names: Sequence[str]) -> None:
    """Refuse what CUDA would show none or one of.

    Raises:
        Unusable: for a GPU twice in a group, and for several MIG slices.
    """
    twice = sorted({name for name in names if names.count(name) > 1})
    listed = printable(",".join(names))
    if twice:
        raise Unusable(
            f"group {group} would have GPU {printable(twice[0])} more than once ({listed}), and "
            "then torch counts 0 devices for its "
            f"{len(names)} worker(s)",
            "name each GPU once for a group (groups get consecutive names, so two groups that "
            f"share GPUs 0 and 1 are {CUDA}=0,1,0,1), or give a smaller --workers-per-group",
        )
    if sum(name.startswith("MIG-") for name in names) > 1:
        raise Unusable(
            f"group {group} would have {len(names)} MIG slices ({listed}), and CUDA shows a "
            "process only one",
            f"name as many slices in {CUDA} as there are groups, or give --workers-per-group 1",
        )


def _indices(count: int) -> tuple[str, ...]:
    return tuple(str(index) for index in range(count))
