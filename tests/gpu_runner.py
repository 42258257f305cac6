"""Runs checks, or measurements, one process each, with a limit of time, and keeps a record.

A process of its own, because a GPU's error ends all use of it by the process, and because what
hangs in a driver can only be killed.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import gpu_wheels
import torch

OLDEST_TORCH = (2, 6)
ROOT = Path(__file__).parent.parent
# Seconds between SIGTERM and SIGKILL.
GRACE = 5.0


@dataclasses.dataclass(frozen=True)
class Job:
    """One check or measurement.

    Attributes:
        name: what ``--only`` takes.
        seconds: how long it may take.
        act: does it on a device, with a directory for its files; returns what was found, as JSON,
            with a short sentence under "says".  Raises an AssertionError that says what is wrong.
    """

    name: str
    seconds: float
    act: Callable[[torch.device, Path], dict[str, Any]]


@dataclasses.dataclass
class Running:
    """A job's process.

    Attributes:
        job: which.
        work: its directory.
        process: it.
        log: where its output goes.
        start: when it began, by the monotonic clock.
    """

    job: Job
    work: Path
    process: subprocess.Popen
    log: TextIO
    start: float


def flags(jobs: Sequence[Job], description: str, record: str) -> argparse.ArgumentParser:
    """Return what reads the command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--only",
        metavar="NAME",
        action="append",
        help="one whose name is NAME, or all that begin with it; may be given again. They are "
        + ", ".join(job.name for job in jobs),
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=Path(record),
        help=f"the record, JSON lines (default: {record})",
    )
    parser.add_argument(
        "--wheels",
        type=Path,
        metavar="DIR",
        help="install what is missing from the wheels there, without a network, into a temporary "
        "directory; the torch that is installed stays",
    )
    parser.add_argument(
        "--side-by-side", type=int, metavar="N", help="how many run at a time (default: by cores)"
    )
    parser.add_argument(
        "--seconds", type=float, default=240.0, help="for all of them (default: 240)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files there")
    # Of the tests, and of the processes that this one starts.
    parser.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    return parser


def chosen(jobs: Sequence[Job], only: Sequence[str] | None) -> list[Job]:
    """Return the jobs that ``--only`` names.

    Raises:
        SystemExit: if there is none of a name.
    """
    if not only:
        return list(jobs)
    for name in only:
        if not any(job.name.startswith(name) for job in jobs):
            sys.exit(f"--only {name}: there is none; choose of {', '.join(j.name for j in jobs)}")
    return [job for job in jobs if any(job.name.startswith(name) for name in only)]


def refuse_without_gpu() -> None:
    """End with a sentence if there is nothing to run on.

    Raises:
        SystemExit: with status 2.
    """
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        why = f"torch {torch.__version__} is older than 2.6; install a newer one"
    elif not torch.cuda.is_available():
        built = torch.version.cuda or getattr(torch.version, "hip", None) or "no GPU"
        why = (
            f"torch {torch.__version__} (built for {built}) finds no GPU, and this needs one; run "
            "it on a machine that has one. `codistill doctor` tells what torch sees"
        )
    else:
        return
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    raise SystemExit(2)


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what this runs on."""
    described: dict[str, Any] = {
        "gpu": None,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "commit": _commit(),
    }
    if device.type == "cuda":
        described["gpu"] = torch.cuda.get_device_name(device)
        described["gpus"] = torch.cuda.device_count()
        described["memory"] = torch.cuda.get_device_properties(device).total_memory
        described["driver"] = _first_line(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"
        )
    return described


def _commit() -> str | None:
    return _first_line("git", "-C", str(ROOT), "rev-parse", "HEAD")


def _first_line(*command: str) -> str | None:
    """Return the first line that a program prints; None without it or if it fails."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except subprocess.TimeoutExpired:
        return None
    lines = done.stdout.splitlines()
    return lines[0].strip() if done.returncode == 0 and lines else None


def run(
    jobs: Sequence[Job],
    script: Path,
    description: str,
    record: str,
    argv: Sequence[str] | None = None,
    *,
    side_by_side: int | None = None,
    afterwards: Callable[[Any, list[dict[str, Any]]], None] | None = None,
    more: Callable[[argparse.ArgumentParser], None] | None = None,
) -> int:
    """Run what the command line names; return the exit status.

    Args:
        jobs: all there are.
        script: the one that calls this, which is started again for each job.
        description: for ``--help``.
        record: default of ``--json``.
        argv: the command line.
        side_by_side: how many run at a time, unless the command line says so; None for as many as
            there are cores for.
        afterwards: called with the options and the lines of the record.
        more: adds flags, of which ``afterwards`` may want to know.
    """
    parser = flags(jobs, description, record)
    if more is not None:
        more(parser)
    options = parser.parse_args(argv)
    if options.child:
        (job,) = [job for job in jobs if job.name == options.child]
        return _child(job, torch.device(options.device), options.work)
    todo = chosen(jobs, options.only)
    device = torch.device(options.device)
    if device.type == "cuda":
        refuse_without_gpu()
    with contextlib.ExitStack() as stack:
        _find_packages(options.wheels, stack)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-")))
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            folder = options.keep.resolve()
        described = machine(device)
        print(", ".join(f"{k} {v}" for k, v in described.items() if v is not None), flush=True)
        file = stack.enter_context(options.json.open("w"))
        lines = [{"machine": described}]
        _write(file, lines[0])
        by_cores = max(1, min(4, (os.cpu_count() or 1) // 4))
        count = options.side_by_side or side_by_side or by_cores
        deadline = time.monotonic() + options.seconds
        for line in _results(todo, script, device, folder, count, deadline):
            lines.append(line)
            _write(file, line)
            mark = "ok  " if line["ok"] else "FAIL"
            print(f"{mark} {line['name']:<28} {line['seconds']:6.1f} s  {line['says']}", flush=True)
        failed = [line["name"] for line in lines[1:] if not line["ok"]]
        print(f"{len(todo) - len(failed)} of {len(todo)} ok; the record is {options.json}")
    if afterwards is not None:
        afterwards(options, lines)
    return 1 if failed else 0


def _write(file: TextIO, line: dict[str, Any]) -> None:
    file.write(json.dumps(line) + "\n")
    file.flush()
    os.fsync(file.fileno())


def _find_packages(wheels: Path | None, stack: contextlib.ExitStack) -> None:
    """Make this and further processes find this package, and what ``--wheels`` brings."""
    path = [str(ROOT)]
    if wheels is not None:
        site = stack.enter_context(tempfile.TemporaryDirectory(prefix="gpu-site-"))
        names = gpu_wheels.install(wheels, Path(site))
        print(f"from --wheels: {', '.join(names) if names else 'nothing was missing'}", flush=True)
        path.insert(0, site)
    sys.path[:0] = path
    rest = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    os.environ["PYTHONPATH"] = os.pathsep.join([*path, *rest])
    lacking = gpu_wheels.missing()
    if lacking:
        print(
            f"{Path(sys.argv[0]).name}: not installed: {', '.join(lacking)}; install this project "
            "(pip install '.[vision]'), or give a directory of wheels with --wheels",
            file=sys.stderr,
        )
        raise SystemExit(2)


def _results(
    jobs: Sequence[Job],
    script: Path,
    device: torch.device,
    folder: Path,
    side_by_side: int,
    deadline: float,
) -> Iterator[dict[str, Any]]:
    """Run jobs, so many at a time; yield the line of each when it has ended."""
    waiting, running = list(jobs), list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < side_by_side and time.monotonic() < deadline:
                running.append(_start(waiting.pop(0), script, device, folder))
            if time.monotonic() >= deadline:
                for job in waiting:
                    yield _line(job, 0.0, ok=False, says="no time was left for it")
                waiting.clear()
            time.sleep(0.05)
            for one in list(running):
                seconds = time.monotonic() - one.start
                over = seconds > one.job.seconds or time.monotonic() > deadline + GRACE
                if one.process.poll() is None and not over:
                    continue
                running.remove(one)
                yield _ended(one, seconds)
    finally:
        for one in running:
            _kill(one)


def _start(job: Job, script: Path, device: torch.device, folder: Path) -> Running:
    work = folder / job.name
    work.mkdir()
    log = (work / "log.txt").open("w")
    command = [sys.executable, str(script), "--child", job.name]
    process = subprocess.Popen(
        [*command, "--device", str(device), "--work", str(work)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    return Running(job, work, process, log, time.monotonic())


def _ended(one: Running, seconds: float) -> dict[str, Any]:
    """Return the line of a job that has ended, or that is over its time and is ended now."""
    in_time = one.process.poll() is not None
    _kill(one)
    result = one.work / "result.json"
    if in_time and result.exists():
        return _line(one.job, seconds, **json.loads(result.read_text()))
    log = (one.work / "log.txt").read_text(errors="replace")
    if in_time:
        says = f"its process ended with {one.process.returncode} and no result"
    else:
        says = f"it took longer than the {seconds:.0f} s that it had"
    return _line(one.job, seconds, ok=False, says=says, log=log[-4000:])


def _line(job: Job, seconds: float, **found: Any) -> dict[str, Any]:
    return {"name": job.name, "seconds": round(seconds, 1), **found}


def _kill(one: Running) -> None:
    """End a job's process and all that it has started and not put into other sessions."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
        # Also after the process itself has ended: its children may still be there.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(one.process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            one.process.wait(timeout=patience)
            break
    one.log.close()


def _child(job: Job, device: torch.device, work: Path) -> int:
    """Do one job in this process, and leave its result in ``work``."""
    # SIGTERM as an exception: what the job has started is ended on the way out.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if device.type == "cuda":
        device = torch.device("cuda", 0)
        torch.cuda.set_device(device)
    try:
        result = {"ok": True, **job.act(device, work)}
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        result = {"ok": False, "says": end.code[:600], "log": traceback.format_exc()[-4000:]}
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        traceback.print_exc()
        said = " ".join(str(error).split()) or "see the log"
        kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
        result = {"ok": False, "says": (kind + said)[:600], "log": traceback.format_exc()[-4000:]}
    temporary = work / "result.tmp"
    temporary.write_text(json.dumps({"says": "", **result}))
    temporary.rename(work / "result.json")
    return 0 if result["ok"] else 1
