"""What only a GPU can show, each check in a process of its own: see tests/gpu.sh."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import gpu_runner
import torch
from gpu_runner import Job

DESCRIPTION = "Check on a machine with a GPU what only a GPU can show."


def of_tensors(name: str, **more: Any) -> Any:
    """Return one of the checks within one process."""

    def act(device: torch.device, work: Path) -> dict[str, Any]:
        import gpu_tensors

        found: dict[str, Any] = getattr(gpu_tensors, name)(device, **more)
        return found

    return act


def of_runs(name: str, **more: Any) -> Any:
    """Return one of the checks that start processes."""

    def act(device: torch.device, work: Path) -> dict[str, Any]:
        import gpu_runs

        found: dict[str, Any] = getattr(gpu_runs, name)(device, work, **more)
        return found

    return act


launch = partial(of_runs, "launch")

# Those that take longest begin.
JOBS = [
    Job("images", 170, of_runs("images")),
    Job("workers", 120, of_runs("workers")),
    Job("head", 120, of_tensors("head")),
    Job("launch-fp16", 100, launch(precision="fp16")),
    Job("launch-amp", 100, launch(precision="amp")),
    Job("launch-bf16", 100, launch(precision="bf16")),
    Job("launch-memory-efficient-fp16", 100, launch(precision="memory-efficient-fp16")),
    Job("launch-float32", 100, launch(precision="float32")),
    Job("sick-peer", 90, of_tensors("sick")),
    Job("dropout", 90, of_tensors("dropout")),
    Job("copies", 60, of_tensors("copies")),
    Job("background", 60, of_tensors("background")),
    Job("devices", 60, of_tensors("devices")),
]


def main() -> int:
    """Run what the command line names."""
    return gpu_runner.run(JOBS, Path(__file__), DESCRIPTION, "gpu-checks.jsonl")


if __name__ == "__main__":
    sys.exit(main())
