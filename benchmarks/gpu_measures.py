"""What benchmarks/gpu.py measures, each on a device and in sizes that are parameters."""

from __future__ import annotations

import dataclasses
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

CLASSES = 32768
DTYPES = ("float16", "bfloat16")

# --codistill-head and --codistill-fused-ce.
FORMS = {
    "naive": ("naive", False),
    "factored": ("factored", False),
    "joint": ("joint", False),
    "chunked": ("chunked", False),
    "fused": ("auto", True),
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
