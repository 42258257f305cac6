"""What the benchmarks share: figures side by side, in turns, with their spread and the machine."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fairseq_codistill.installed import fairseq_distributions

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """Describe what the figures are measured on."""
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else "unknown",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        **fairseq_distributions(),
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all that run in this process: where they compute and where they write."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the raw figures there")


def count(text: str) -> int:
    """Read how often to measure, as a flag's type: a median needs at least one figure.

    Raises:
        argparse.ArgumentTypeError: it is no whole number of at least 1.
    """
    if not re.fullmatch("0*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def in_turns(
    contestants: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Time calls in turns, a, b, c, a, b, c, ...: a machine that slows down slows all of them.

    Args:
        contestants: by name; each is called once before it is timed.
        rounds: how often each is timed.
        device: what to wait for before a clock is read.

    Returns:
        Seconds by name, in the order of the rounds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, act in contestants.items():
            _wait(device)
            start = time.perf_counter()
            act()
            _wait(device)
            if number > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Sequence[float], other: Sequence[float]) -> list[float]:
    """Give the ratios of two contestants, round by round."""
    return [a / b for a, b in zip(seconds, other, strict=True)]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Write a median with the least and the greatest value."""
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def peak_memory(act: Callable[[], object], device: torch.device) -> int:
    """Give the most bytes that tensors take at one time during a call, beyond those before it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        act()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(profile_memory=True) as profiler:
        act()
    now = peak = 0
    for event in _memory_events(profiler):
        now += event
        peak = max(peak, now)
    return peak


def _memory_events(profiler: Any) -> list[int]:
    # The allocator's own record, in order: what each allocation took and each release gave back.
    root = profiler.profiler.kineto_results.experimental_event_tree()
    events = []
    stack = list(root)
    while stack:
        node = stack.pop()
        stack.extend(node.children)
        if node.tag.name == "Allocation" and node.extra_fields.device.type == "cpu":
            events.append((node.start_time_ns, node.extra_fields.alloc_size))
    return [size for _, size in sorted(events, key=lambda event: event[0])]


def table(rows: Sequence[Row], columns: Sequence[str]) -> str:
    """Write rows as a Markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def write(path: Path | None, rows: Sequence[Row]) -> None:
    """Write raw rows and the machine as JSON, if there is a path."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def say_machine() -> None:
    """Print the machine."""
    print(", ".join(f"{name} {value}" for name, value in machine().items() if value is not None))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
