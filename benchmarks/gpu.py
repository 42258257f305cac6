"""What codistillation costs on a GPU, beside fairseq's plain training: see benchmarks/gpu.sh.

bash benchmarks/gpu.sh                                measures, and writes its part of README.md
python benchmarks/gpu.py --from gpu-benchmarks.jsonl  writes it from the record of another machine

The updates are those of fairseq's optimizer for half precision, whose copy of the weights is in
float32.  All forms of the divergence are measured on one model, one peer and one batch, in turns
with the plain update.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import loss_head
import measure
import peer_forward
import stall
import steps
import torch
from fairseq.optim.fp16_optimizer import FP16Optimizer

from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.codistillation.comparison import Comparison

# Its checks are run by the same.
sys.path.append(str(Path(__file__).parent.parent / "tests"))

import gpu_runner  # noqa: E402
from gpu_runner import Job  # noqa: E402

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- gpu: begin (written by gpu.sh) -->", "<!-- gpu: end -->"
CLASSES = 32768
MIB = 2**20
DTYPES = ("float16", "bfloat16")

# --codistill-head and --codistill-fused-ce, which takes the factored form if it is not told.
FORMS = {
    "naive": ("naive", False),
    "factored": ("factored", False),
    "chunked": ("chunked", False),
    "fused": ("factored", True),
}


# --- updates ---------------------------------------------------------------------------------


class HalfPrecision:
    """Makes updates of a side as fairseq's trainer does in half precision.

    Args:
        side: plain or codistilling.

    Attributes:
        overflows: updates that came to nothing, as the scale of the loss was too large.
    """

    def __init__(self, side: steps.Side) -> None:
        common = side.cfg.common
        common.bf16 = side.dtype == torch.bfloat16
        common.fp16 = not common.bf16
        # In one piece, as without asking; fairseq knows how only on a GPU.
        common.fp16_no_flatten_grads = side.device.type != "cuda"
        common.fp16_init_scale = 4
        parameters = [one for one in side.model.parameters() if one.requires_grad]
        self.overflows = 0
        self._side = side
        self._optimizer = FP16Optimizer.build_optimizer(side.cfg, parameters)

    def update(self, sample: dict[str, Any]) -> None:
        """Make one update."""
        if isinstance(self._side, steps.Codistilled):
            self._side.at_boundary()
        optimizer = self._optimizer
        optimizer.zero_grad()
        optimizer.backward(self._side.loss(sample))
        optimizer.multiply_grads(1 / sample["ntokens"])
        try:
            optimizer.clip_grad_norm(0.0)
            optimizer.step()
        except OverflowError:
            self.overflows += 1


def in_form(side: steps.Codistilled, form: str) -> Callable[[], None]:
    """Return a call that makes a side compute the divergence in a form from then on."""
    head, fused = FORMS[form]
    task, usual = side.task, side.task.cfg.codistill_fused_ce
    task.cfg.codistill_fused_ce = fused
    criterion = type(side.criterion)(task, label_smoothing=0.0, sentence_avg=False)
    task.cfg.codistill_fused_ce = usual
    config = CodistillationConfig.of(task.cfg)
    comparison = Comparison(
        dataclasses.replace(config, codistill_head=head, codistill_fused_ce=fused)
    )

    def choose() -> None:
        assert side.codistillation is not None
        side.criterion, side.codistillation._compare = criterion, comparison

    return choose


def updates(
    device: torch.device,
    work: Path,
    size: str,
    dtypes: Sequence[str] = DTYPES,
    tokens: Sequence[int] = (3584, 8192),
    classes: int = CLASSES,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure updates of one model: seconds, in parts of the plain one, and peak memory."""
    rows, overflows = [], 0
    for name in dtypes:
        dtype = getattr(torch, name)
        with (
            steps.plain(size, classes, device, dtype) as plain,
            steps.codistilled(plain, max(tokens)) as ours,
        ):
            sides = HalfPrecision(plain), HalfPrecision(ours)
            chosen = {form: in_form(ours, form) for form in FORMS}
            for count in tokens:
                sample = steps.batch(plain, count, classes, device)
                rows.append(_measured(sides, chosen, sample, rounds, device))
                rows[-1] |= {"model": size, "dtype": name, "V": classes}
            overflows += sum(side.overflows for side in sides)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    fused = max(row["fused"] for row in rows)
    says = f"{len(rows)} points; fused {fused} of the plain update at most"
    return {"says": says, "rows": rows, "overflows": overflows}


def _measured(
    sides: tuple[HalfPrecision, HalfPrecision],
    chosen: dict[str, Callable[[], None]],
    sample: dict[str, Any],
    rounds: int,
    device: torch.device,
) -> dict[str, Any]:
    plain, ours = sides
    acts: dict[str, Callable[[], object]] = {"plain": partial(plain.update, sample)}

    def act(choose: Callable[[], None]) -> None:
        choose()
        ours.update(sample)

    acts |= {form: partial(act, choose) for form, choose in chosen.items()}
    seconds = measure.in_turns(acts, rounds, device)
    peaks = {name: measure.peak_memory(one, device) for name, one in acts.items()}
    row: dict[str, Any] = {"tokens": sample["ntokens"]}
    row["plain, ms"] = _milliseconds(seconds["plain"])
    for form in FORMS:
        row[form] = measure.spread(measure.ratio(seconds[form], seconds["plain"]))
    return row | {"seconds": seconds, "peak bytes": peaks}


def _milliseconds(seconds: Sequence[float]) -> str:
    return measure.spread([1000 * value for value in seconds], 1)


# --- the others ------------------------------------------------------------------------------


def heads(
    device: torch.device,
    work: Path,
    sizes: Sequence[tuple[int, int, int]] = (
        (3584, 512, CLASSES),
        (3584, 1024, CLASSES),
        (8192, 1024, CLASSES),
    ),
    dtypes: Sequence[str] = DTYPES,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure output layer and loss in each form: see loss_head.py."""
    rows = []
    for name in dtypes:
        for size in sizes:
            row = loss_head.measured(size, rounds, getattr(torch, name), device)
            rows.append({"dtype": name, "naive, ms": _milliseconds(row["seconds"]["naive"]), **row})
    return {"says": f"{len(rows)} points", "rows": rows}


def peer(
    device: torch.device,
    work: Path,
    sizes: Sequence[str] = ("base", "big"),
    tokens: int = 3584,
    rounds: int = 5,
) -> dict[str, Any]:
    """Measure a peer's forward pass in float32 and in bfloat16: see peer_forward.py."""
    ways = ["dropout", "bfloat16"]
    rows = [peer_forward.measured(size, tokens, rounds, device, ways) for size in sizes]
    for row in rows:
        row["as it is, ms"] = _milliseconds(row["seconds"]["as it is"])
    return {"says": f"{len(rows)} models", "rows": rows}


def exchange(device: torch.device, work: Path, rounds: int = 3) -> dict[str, Any]:
    """Measure what the exchange of a large model costs the thread that trains: see stall.py."""
    folder = work / "exchange"
    folder.mkdir()
    rows = stall.large_in(folder, rounds, "bfloat16", device)
    return {"says": f"{rounds} exchanges of 210 million parameters", "rows": rows}


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
        columns = ["model", "dtype", "tokens", "plain, ms", *FORMS]
        parts += [
            f"A codistilled update with one peer, in parts of the plain one (V = {moves[0]['V']}):",
            measure.table(moves, columns),
            "Peak memory of an update beyond weights, gradients and the optimizer's state, MiB:",
            measure.table([_peaks(row) for row in moves], [*columns[:3], "plain", *FORMS]),
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
    Job("updates-big", 120, partial(updates, size="big")),
    Job("updates-base", 90, partial(updates, size="base")),
    Job("head", 60, heads),
    Job("exchange", 90, exchange),
    Job("peer", 60, peer),
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
