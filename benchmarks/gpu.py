"""What codistillation costs on a GPU, beside fairseq's plain training: see benchmarks/gpu.sh.

bash benchmarks/gpu.sh                                measures, and writes its part of README.md
python benchmarks/gpu.py --from gpu-benchmarks.jsonl  writes it from the record of another machine

The updates are those of fairseq's optimizer for half precision, whose copy of the weights is in
float32.  All forms of the divergence are measured on one model, one peer and one batch, in turns
with the plain update.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

# This package need not be installed, and the checks of the tests are run by the same.
ROOT = Path(__file__).parent.parent
sys.path[1:1] = [str(ROOT), str(ROOT / "tests")]

import gpu_runner  # noqa: E402
import measure  # noqa: E402
from gpu_runner import Job  # noqa: E402

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- gpu: begin (written by gpu.sh) -->", "<!-- gpu: end -->"
MIB = 2**20


def measuring(name: str, **more: Any) -> Any:
    """Return one of ``gpu_measures``, which is imported where it runs: that takes seconds."""

    def act(device: torch.device, work: Path) -> dict[str, Any]:
        import gpu_measures

        found: dict[str, Any] = getattr(gpu_measures, name)(device, work, **more)
        return found

    return act


# --- README ----------------------------------------------------------------------------------


def section(lines: Sequence[dict[str, Any]]) -> str:
    """Return the part of README.md that a record makes.

    Args:
        lines: the record: the machine, and a line for each measurement.
    """
    machine = lines[0]["machine"]
    found = {line["name"]: line for line in lines[1:] if line["ok"]}
    known = ("gpu", "driver", "torch", "cuda", "python", "cores")
    said = ", ".join(f"{name} {machine[name]}" for name in known if machine.get(name) is not None)
    parts = [f"Seen on: {said}. Median (least to greatest) of the rounds, in turns."]
    moves = [row for name in found if name.startswith("updates") for row in found[name]["rows"]]
    if moves:
        forms = [name for name in moves[0]["peak bytes"] if name != "plain"]
        columns = ["model", "dtype", "tokens", "plain, ms", *forms]
        parts += [
            f"A codistilled update with one peer, in parts of the plain one (V = {moves[0]['V']}):",
            measure.table(moves, columns),
            "Peak memory of an update beyond weights, gradients and the optimizer's state, MiB:",
            measure.table([_peaks(row) for row in moves], [*columns[:3], "plain", *forms]),
        ]
    if "head" in found:
        rows = found["head"]["rows"]
        columns = ["cross-entropy", "naive, ms", "factored", "chunked", "fused, factored"]
        columns = ["dtype", "N", "d", "V", *columns, "kl chunked / kl"]
        parts += [
            "Output layer and loss, forward and backward, in parts of the naive form:",
            measure.table(rows, columns),
            "and their peak memory, MiB:",
            measure.table([_peaks(row) for row in rows], [*columns[:4], *rows[0]["peak bytes"]]),
        ]
    if "peer" in found:
        columns = ["model", "tokens", "as it is, ms", "dropout", "bfloat16", "change by bfloat16"]
        parts += [
            "A peer's forward pass in float32, and in parts of it with dropout and in bfloat16:",
            measure.table(found["peer"]["rows"], columns),
        ]
    if "exchange" in found:
        rows = [_figure(row) for row in found["exchange"]["rows"]]
        parts += [
            "The exchange of a model of 210 million parameters, bfloat16 snapshots in a directory:",
            measure.table(rows, ["figure", "seen"]),
        ]
    missing = [f"{line['name']} ({line['says']})" for line in lines[1:] if not line["ok"]]
    if missing:
        parts.append(f"Not measured: {'; '.join(missing)}.")
    return "\n\n".join(parts)


def _peaks(row: dict[str, Any]) -> dict[str, Any]:
    return row | {name: f"{size / MIB:.0f}" for name, size in row["peak bytes"].items()}


def _figure(row: dict[str, Any]) -> dict[str, str]:
    unit = f" {row['unit']}" if row["unit"] else ""
    return {"figure": row["figure"], "seen": measure.spread(row["values"], 4) + unit}


def write_section(readme: Path, text: str) -> None:
    """Put a text between the two markers of a file.

    Raises:
        SystemExit: if the markers are not there once each, in their order.
    """
    whole = readme.read_text()
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or whole.count(BEGIN) != 1 or whole.count(END) != 1:
        sys.exit(f"{readme}: needs the lines {BEGIN!r} and {END!r} once each, in this order")
    temporary = readme.with_name(f"{readme.name}.tmp")
    temporary.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")
    temporary.replace(readme)


# --- the command -----------------------------------------------------------------------------

JOBS = [
    Job("updates-big", 120, measuring("updates", size="big")),
    Job("updates-base", 90, measuring("updates", size="base")),
    Job("head", 60, measuring("heads")),
    Job("exchange", 90, measuring("exchange")),
    Job("peer", 60, measuring("peer")),
]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of README.md."""
    parser.add_argument(
        "--readme",
        type=Path,
        help=f"write the figures there, between its two markers (default: {README.name} beside "
        "this file, if all was measured)",
    )
    parser.add_argument(
        "--from", type=Path, dest="record", metavar="RECORD", help="measure nothing: write from it"
    )


def written(options: Any, lines: list[dict[str, Any]]) -> None:
    """Write the figures of a run into README.md, if all was measured or the user says where."""
    complete = {line["name"] for line in lines[1:] if line["ok"]} == {job.name for job in JOBS}
    readme = options.readme or (README if complete else None)
    if readme is None:
        print("README.md stays as it is: not all was measured, and no --readme was given")
        return
    write_section(readme, section(lines))
    print(f"the figures are in {readme}")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line names, or write what was measured; return the exit status."""
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_flags(first)
    options, _ = first.parse_known_args(argv)
    if options.record is not None:
        lines = [json.loads(line) for line in options.record.read_text().splitlines()]
        written(argparse.Namespace(readme=options.readme or README), lines)
        return 0
    # One at a time: they are to have the GPU to themselves.
    return gpu_runner.run(
        JOBS,
        Path(__file__),
        __doc__.split("\n")[0],
        "gpu-benchmarks.jsonl",
        argv,
        side_by_side=1,
        afterwards=written,
        more=add_flags,
    )


if __name__ == "__main__":
    sys.exit(main())
