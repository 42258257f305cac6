"""What the long checks of this directory share: results that are kept, and a table.

A check is restartable: what each of its runs found is a file in its output directory, and a run
that has one is not made again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import BIN, environment

Found = dict[str, Any]


class Results:
    """The results of a check's runs.

    Args:
        out: the check's output directory.
    """

    def __init__(self, out: Path) -> None:
        self._out = out

    def get(self, name: str, make: Callable[[Path], Found]) -> Found:
        """Return the result of a run, which is made if there is none yet.

        Args:
            name: of the run.
            make: makes it, in an empty directory that is removed afterwards.
        """
        kept = self._out / "results" / f"{name}.json"
        if kept.exists():
            found: Found = json.loads(kept.read_text())
            return found
        work = self._out / "runs" / name
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        found = make(work)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.with_suffix(".tmp").write_text(json.dumps(found))
        os.replace(kept.with_suffix(".tmp"), kept)
        shutil.rmtree(work)
        return found


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Return rows as a Markdown table, whose columns are the keys of the first."""
    heads = list(rows[0])
    lines = [heads, ["---"] * len(heads), *([str(row[head]) for head in heads] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def start(command: Sequence[str], out: Path, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start ``codistill launch`` of a command; its own output is added to ``out/launch.txt``."""
    out.mkdir(parents=True, exist_ok=True)
    launch = [str(BIN / "codistill"), "launch", "--out", str(out), *options, "--", *command]
    with open(out / "launch.txt", "ab") as output:
        return subprocess.Popen(launch, stdout=output, stderr=subprocess.STDOUT, env=environment())


def end(process: subprocess.Popen[bytes], seconds: float = 60) -> int:
    """Stop a launch in order, if it still runs; return its status."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    return process.wait(timeout=seconds)


def log_of(out: Path, group: int) -> str:
    """Return what a group has logged; nothing if there is no log yet."""
    log = out / f"group-{group}" / "log.txt"
    return log.read_text(errors="replace") if log.exists() else ""
