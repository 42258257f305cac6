"""Output layer and loss of a codistilled update, forward and backward, in each of their forms.

python benchmarks/loss_head.py                       N up to 16,000: long without a GPU
python benchmarks/loss_head.py --rows 4000 --width 512 --classes 32000

Every form begins with the last hidden states of the student and of one peer and ends with the
gradients by the student's hidden states and output layer.  A peer's own product is made once a
snapshot, so it is not counted; those with the student's layer are made in every call.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import measure
import torch
from torch import Tensor
from torch.nn import functional as F

from fairseq_codistill.codistillation import factored_is_cheaper
from fairseq_codistill.objective import (
    Head,
    Hidden,
    PeerOutput,
    chunked,
    cross,
    factored_logit_mse,
    fused_cross_entropy,
    make_divergence,
    own,
)

ALPHA = 0.5
LOGIT_MSE, KL = make_divergence("logit-mse"), make_divergence("kl")
COLUMNS = [
    *["N", "d", "V", "cross-entropy", "naive, s", "factored", "chunked", "fused, factored"],
    *["auto", "kl chunked / kl"],
]


class Point:
    """Random hidden states and layers of one size."""

    def __init__(
        self, rows: int, width: int, classes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        torch.manual_seed(1)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (scale * torch.randn(*shape, device=device)).to(dtype)

        self.hidden = normal(rows, width).requires_grad_()
        self.head = Head(normal(classes, width, scale=width**-0.5).requires_grad_())
        head = Head(normal(classes, width, scale=width**-0.5))
        self.peer = Hidden(normal(rows, width), head)
        self.peer_own = own(head)
        self.target = torch.randint(classes, (rows,), device=device)

    def cross_entropy(self) -> Tensor:
        """The plain loss of fairseq, and nothing else."""
        return self._plain(self._logits())

    def naive(self) -> Tensor:
        """Both models' logits."""
        return self._with(LOGIT_MSE)

    def kl(self) -> Tensor:
        """Both models' logits, and the other divergence."""
        return self._with(KL)

    def factored(self) -> Tensor:
        """No logits of the peer."""
        return self._plain(self._logits()) + ALPHA * self._factored_term()

    def chunked(self) -> Tensor:
        """Some rows of the peer's logits at a time."""
        return self._by_chunks(LOGIT_MSE)

    def kl_chunked(self) -> Tensor:
        """The same for kl."""
        return self._by_chunks(KL)

    def fused_factored(self) -> Tensor:
        """Some rows of the student's logits at a time, and no logits of the peer."""
        loss, _ = fused_cross_entropy(self.hidden, self.head, self.target)
        return loss + ALPHA * self._factored_term()

    def _logits(self) -> Tensor:
        return F.linear(self.hidden, self.head.weight)

    def _plain(self, logits: Tensor) -> Tensor:
        log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
        return F.nll_loss(log_probs, self.target, reduction="sum")

    def _with(self, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        logits = self._logits()
        with torch.no_grad():
            other = F.linear(self.peer.rows, self.peer.head.weight)
        return self._plain(logits) + ALPHA * divergence(logits, other).sum()

    def _by_chunks(self, divergence: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        logits = self._logits()
        return self._plain(logits) + ALPHA * chunked(divergence, logits, [self.peer]).sum()

    def _factored_term(self) -> Tensor:
        mine = own(self.head)
        other = PeerOutput(self.peer.rows, self.peer_own, cross(mine, self.peer_own))
        return factored_logit_mse(self.hidden, mine, [other]).sum()


def gradients(point: Point, loss: Callable[[], Tensor]) -> Callable[[], object]:
    """Give a call that computes a loss and its gradients."""
    return lambda: torch.autograd.grad(loss(), [point.hidden, point.head.weight])


def measured(
    size: tuple[int, int, int], rounds: int, dtype: torch.dtype, device: torch.device
) -> dict[str, object]:
    """Measure one point; give its row of the table and the raw seconds and bytes."""
    point = Point(*size, dtype, device)
    forms = {
        "cross-entropy": gradients(point, point.cross_entropy),
        "naive": gradients(point, point.naive),
        "factored": gradients(point, point.factored),
        "chunked": gradients(point, point.chunked),
        "fused, factored": gradients(point, point.fused_factored),
        "kl": gradients(point, point.kl),
        "kl chunked": gradients(point, point.kl_chunked),
    }
    seconds = measure.in_turns(forms, rounds, device)
    chosen = "factored" if factored_is_cheaper(*size) else "naive"
    best = min(("naive", "factored"), key=lambda form: sorted(seconds[form])[rounds // 2])
    row: dict[str, object] = dict(zip("NdV", size, strict=True))
    row["naive, s"] = measure.spread(seconds["naive"])
    for form in ("cross-entropy", "factored", "chunked", "fused, factored"):
        row[form] = measure.spread(measure.ratio(seconds[form], seconds["naive"]))
    cost = measure.ratio(seconds[chosen], seconds[best])
    row["auto"] = f"{chosen}, {measure.spread(cost)} of the best"
    kl = measure.ratio(seconds["kl chunked"], seconds["kl"])
    row["kl chunked / kl"] = measure.spread(kl)
    row["seconds"] = seconds
    row["peak bytes"] = {name: measure.peak_memory(act, device) for name, act in forms.items()}
    return row


def main() -> None:
    """Measure the points that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 4000, 16000], help="N")
    parser.add_argument("--width", type=int, nargs="+", default=[512, 1024], help="d")
    parser.add_argument("--classes", type=int, nargs="+", default=[10000, 32000], help="V")
    parser.add_argument("--rounds", type=measure.count, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    measure.add_arguments(parser)
    options = parser.parse_args()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    measure.say_machine()
    print(f"{options.dtype} on {device}; in parts of naive's time unless a unit is given")
    rows = []
    for size in itertools.product(options.rows, options.width, options.classes):
        rows.append(measured(size, options.rounds, dtype, device))
        print(measure.table(rows[-1:], COLUMNS).split("\n")[-1], flush=True)
        measure.write(options.json, rows)
    print("\n" + measure.table(rows, COLUMNS))
    peaks = [
        {"N": row["N"], "d": row["d"], "V": row["V"]}
        | {form: f"{size / 2**20:.0f} MiB" for form, size in row["peak bytes"].items()}
        for row in rows
    ]
    print("\n" + measure.table(peaks, ["N", "d", "V", *rows[0]["peak bytes"]]))


if __name__ == "__main__":
    main()
