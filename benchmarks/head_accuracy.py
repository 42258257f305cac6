"""How exact each form of logit-mse is in half precision: its value and its gradients.

python benchmarks/head_accuracy.py
python benchmarks/head_accuracy.py --rows 512 --width 512 --classes 32000 --near 0.02

Two models of one run are near each other: hidden states and layer of the second are the first's and
``near`` times as much noise.  The truth is computed in float64 of the same inputs in the dtype, so
what is measured is the computation alone.  Errors are relative, of the norms: of the values of all
rows, and of the gradients by the hidden states and by the layer of the sum over the rows (float16
with a loss scale of 2^14).  The form marked with * is the one that `--codistill-head auto` takes
for these sizes, on a CPU and on a GPU, by N as it is given.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import measure
import torch
from torch import Tensor
from torch.nn import functional as F

from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.codistillation.comparison import Comparison
from fairseq_codistill.objective import (
    Head,
    Hidden,
    PeerOutput,
    chunked,
    cross,
    factored_logit_mse,
    joint_logit_mse,
    make_divergence,
    own,
)

FORMS = ("naive", "chunked", "factored", "joint")
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
LOGIT_MSE = make_divergence("logit-mse")
SCALES = {torch.float16: 2.0**14, torch.bfloat16: 1.0}


class Pair:
    """Student and peer in a dtype, and the truth about them."""

    def __init__(
        self, rows: int, width: int, classes: int, near: float, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(1)
        hidden, layer = torch.randn(rows, width), torch.randn(classes, width) / width**0.5
        other = hidden + near * torch.randn_like(hidden)
        other_layer = layer + near * torch.randn_like(layer) / width**0.5
        self.dtype = dtype
        self.student = hidden.to(dtype), layer.to(dtype)
        self.peer = Hidden(other.to(dtype), Head(other_layer.to(dtype)))

    def truth(self) -> list[Tensor]:
        """Value and gradients in float64."""
        hidden, layer = (tensor.double().requires_grad_() for tensor in self.student)
        own_logits = F.linear(hidden, layer)
        value = LOGIT_MSE(
            own_logits, F.linear(self.peer.rows.double(), self.peer.head.weight.double())
        )
        value.sum().backward()
        # D in parts of the mean squared logit.
        self.share = float(value.detach().mean() / own_logits.detach().square().mean())
        return [value.detach(), _grad(hidden), _grad(layer)]

    def by(self, form: str) -> list[Tensor]:
        """Value and gradients in a form."""
        hidden, layer = (tensor.clone().requires_grad_() for tensor in self.student)
        student = Hidden(hidden, Head(layer))
        if form == "naive":
            value = LOGIT_MSE(
                F.linear(hidden, layer), F.linear(self.peer.rows, self.peer.head.weight)
            )
        elif form == "chunked":
            value = chunked(LOGIT_MSE, student, [self.peer])
        elif form == "factored":
            mine, theirs = own(student.head), own(self.peer.head)
            peer = PeerOutput(self.peer.rows, theirs, cross(mine, theirs))
            value = factored_logit_mse(hidden, mine, [peer])
        else:
            logits = F.linear(hidden, layer)
            value = joint_logit_mse(Hidden(hidden, Head(layer), logits), [self.peer])
        scale = SCALES[self.dtype]
        (scale * value.sum()).backward()
        return [value.detach(), _grad(hidden) / scale, _grad(layer) / scale]


def _grad(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad.double()


def chosen(rows: int, width: int, classes: int, on_gpu: bool) -> str:
    """Return the form that is taken for these sizes in half precision."""
    comparison = Comparison(CodistillationConfig())
    comparison.wants(rows, width, classes, half=True, on_gpu=on_gpu)
    return comparison.form


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=measure.count, nargs="+", default=[256], help="N")
    parser.add_argument("--width", type=measure.count, nargs="+", default=[512], help="d")
    parser.add_argument("--classes", type=measure.count, nargs="+", default=[10000], help="V")
    parser.add_argument("--near", type=float, nargs="+", default=[0.3, 0.02, 0.005])
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    measure.say_machine()
    print(
        "| dtype | N, d, V | D / mean squared logit | form | value | by hidden states | by layer |"
    )
    print("|---|---|---|---|---|---|---|")
    rows_of_table: list[measure.Row] = []
    sizes = itertools.product(options.rows, options.width, options.classes)
    for size, near, dtype in itertools.product(sizes, options.near, options.dtype):
        pair = Pair(*size, near, DTYPES[dtype])
        truth = pair.truth()
        taken = {"CPU": chosen(*size, on_gpu=False), "GPU": chosen(*size, on_gpu=True)}
        for form in FORMS:
            errors = [
                float((ours.double() - true).norm() / true.norm())
                for ours, true in zip(pair.by(form), truth, strict=True)
            ]
            where = ", ".join(device for device, best in taken.items() if best == form)
            mark = f" * ({where})" if where else ""
            row = {
                **{"dtype": dtype, "N": size[0], "d": size[1], "V": size[2], "near": near},
                **{"share": pair.share, "form": form, "taken on": where},
                **dict(zip(("value", "by hidden", "by layer"), errors, strict=True)),
            }
            rows_of_table.append(row)
            said = " | ".join(f"{error:.1e}" for error in errors)
            sized = ", ".join(map(str, size))
            print(f"| {dtype} | {sized} | {pair.share:.1e} | {form}{mark} | {said} |", flush=True)
    measure.write(options.json, rows_of_table)


if __name__ == "__main__":
    main()
