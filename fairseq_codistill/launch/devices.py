"""Where the groups run: this machine's GPUs divided evenly, or its CPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from fairseq_codistill.errors import UserError


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


def find_gpus(environ: Mapping[str, str]) -> list[str]:
    """Give the GPUs that a process with this environment sees, without importing torch."""
    tool = shutil.which("nvidia-smi", path=environ.get("PATH"))
    if tool is None:
        return []
    answer = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    # A line "GPU 0: ..." for each, followed by indented lines for its MIG slices.
    count = sum(line.startswith("GPU ") for line in answer.stdout.splitlines())
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if count == 0 or visible is None:
        return [str(index) for index in range(count)]
    return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]


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
