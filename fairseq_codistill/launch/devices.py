"""Where the groups run: this machine's GPUs divided evenly, or its CPU."""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from fairseq_codistill.errors import UserError

# NVIDIA's driver, AMD's, and either under WSL.
DEVICE_FILES = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/dxg")


@dataclass(frozen=True)
class Devices:
    """The devices of all groups.

    Attributes:
        gpus: for each group the names of its workers' GPUs; empty on CPU.
        workers: workers of a group.
        cores: CPU cores that all groups share.
    """

    gpus: tuple[tuple[str, ...], ...]
    workers: int
    cores: int

    @property
    def cpu(self) -> bool:
        """Whether the workers run on CPU."""
        return not self.gpus

    def __str__(self) -> str:
        """Say what each group has."""
        if self.cpu:
            return f"{self.workers} worker(s) on the CPU each"
        return f"{self.workers} GPU(s) each"


def find_gpus(environ: Mapping[str, str]) -> list[str]:
    """Give the GPUs that a process with this environment sees."""
    count = _listed(environ) or _seen_by_torch(environ)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if count == 0 or visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


def _listed(environ: Mapping[str, str]) -> int:
    """Count what ``nvidia-smi`` lists, whatever is visible of it."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return 0
    answer = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    # A line "GPU 0: ..." for each, followed by indented lines for its MIG slices.
    return sum(line.startswith("GPU ") for line in answer.stdout.splitlines())


def _seen_by_torch(environ: Mapping[str, str]) -> int:
    """Count what torch sees, if this machine looks as if it had GPUs: torch takes seconds to ask.

    Containers may lack ``nvidia-smi``, and other makers' GPUs are not in it.
    """
    if not any(glob.glob(pattern) for pattern in DEVICE_FILES):
        return 0
    ask = [sys.executable, "-c", "import torch; print(torch.cuda.device_count())"]
    answer = subprocess.run(ask, capture_output=True, text=True, check=False, env=dict(environ))
    # torch may not be installed here, or say more than that.
    last = answer.stdout.split()[-1:]
    return int(last[0]) if last and last[0].isdecimal() else 0


def divide(gpus: list[str], groups: int, workers: int | None) -> Devices:
    """Divide ``gpus`` evenly among ``groups``; no GPUs means CPU.

    Raises:
        UserError: if they do not divide, or there are fewer than ``workers`` for each group.
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
    return Devices(gpus=slices, workers=workers, cores=cores or 1)
