"""Time and peak memory of `codistill report` on one long log.

python benchmarks/long_log.py FOLDER

Writes FOLDER/log.txt, lines of training and validation as fairseq-train writes them with
--log-format json, until it has so many megabytes; makes a report of it in a process of its own; and
deletes both.  Memory is what the kernel saw of that process at most (resident).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CODISTILL = [
    sys.executable,
    "-c",
    "import sys; from fairseq_codistill.cli import main; sys.exit(main())",
]
SETTINGS = (
    "{'_name': None, 'common': {'_name': None, 'seed': 1}, "
    "'task': {'_name': 'codistill_translation', 'codistill_num_groups': 2, 'codistill_alpha': 1.0}}"
)
COLUMNS = ["megabytes", "lines", "report", "s", "of the CPU, s", "peak, MB"]


def write_log(path: Path, megabytes: float) -> int:
    """Write a log; return how many lines it has."""
    lines = 1
    with path.open("w") as log:
        log.write(f"2026-01-01 00:00:00 | INFO | fairseq_cli.train | {SETTINGS}\n")
        while log.tell() < megabytes * 1e6:
            # A thousand lines of training, every 10 updates, and a validation.
            first = lines // 1001 * 10_000
            log.writelines(_inner(first + 10 * step) for step in range(1, 1001))
            log.write(_valid(first + 10_000))
            lines += 1001
    return lines


def _inner(update: int) -> str:
    nll = 3 + 5 * math.exp(-update / 3e6)
    values = {
        **{"epoch": 1 + update // 50_000, "update": update / 50_000},
        **{"loss": f"{nll + 0.3:.3f}", "nll_loss": f"{nll:.3f}", "ppl": f"{2**nll:.2f}"},
        **{"codistill_loss": "1.234", "codistill_alpha": "1", "codistill_peers": "1"},
        **{"codistill_staleness": str(update % 2500), "codistill_stall": "0.001"},
        **{"wps": str(9000 + update % 777), "num_updates": str(update), "lr": "0.0005"},
        **{"gnorm": "0.812", "wall": str(update // 2)},
    }
    return f"2026-01-01 00:00:00 | INFO | train_inner | {json.dumps(values)}\n"


def _valid(update: int) -> str:
    nll = f"{3.2 + 5 * math.exp(-update / 3e6):.3f}"
    values = {"epoch": 1 + update // 50_000, "valid_loss": nll, "valid_nll_loss": nll}
    said = json.dumps({**values, "valid_num_updates": str(update)})
    return f"2026-01-01 00:00:00 | INFO | valid | {said}\n"


def measured(command: list[str]) -> tuple[float, float, float]:
    """Run a command to its end; return its seconds, those of the CPU, and its peak megabytes."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    # The kernel counts kibibytes.
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where to write; it must not be there yet")
    parser.add_argument("--megabytes", type=float, default=1000.0, help="of the log")
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    try:
        log, out = options.folder / "log.txt", options.folder / "report"
        lines = write_log(log, options.megabytes)
        rows = []
        for flags in ([], ["--html", "--json"]):
            command = [*CODISTILL, "report", str(log), "--out", str(out), *flags]
            seconds, cpu, peak = measured(command)
            rows.append(
                {
                    "megabytes": f"{log.stat().st_size / 1e6:.0f}",
                    "lines": f"{lines:,}",
                    "report": " ".join(flags) or "report.md and plots",
                    "s": f"{seconds:.1f}",
                    "of the CPU, s": f"{cpu:.1f}",
                    "peak, MB": f"{peak:.0f}",
                }
            )
    finally:
        shutil.rmtree(options.folder)
    # Not before: the kernel counts what this process had when it started the other one.
    import measure

    print(measure.table(rows, COLUMNS))
    measure.say_machine()
    measure.write(options.json, rows)


if __name__ == "__main__":
    main()
