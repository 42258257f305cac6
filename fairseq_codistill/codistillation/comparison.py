"""The divergence of a student from its peers, in whichever of its forms costs least."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fairseq_codistill.codistillation.config import CodistillationConfig
from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.codistillation.teacher import Teacher
from fairseq_codistill.objective import (
    Head,
    Hidden,
    Output,
    Own,
    PeerOutput,
    as_logits,
    chunked,
    cross,
    factored_logit_mse,
    own,
)
from fairseq_codistill.records import get_logger

# Whoever the student is compared with.
Other = Peer | Teacher

logger = get_logger(__name__)

# With so many logits in a batch, the passes over them cost as much as products of half of d more
# tokens would (benchmarks/loss_head.py).
LARGE = 2**25

# Logits from which on no tensor of them is made for a peer: 512 MB of them in float32.
MANY_LOGITS = 2**27

FACTORED = ("logit-mse", "centered-logit-mse")


def factored_is_cheaper(rows: int, width: int, classes: int) -> bool:
    """Whether the factored form takes less time than the naive one.

    It saves the N V d products of the peer's logits and several passes over N V numbers, and costs
    four products of V d^2: from N = 4 d on it is cheaper, and a little before that where the passes
    weigh.  A rule of arithmetic, with what a CPU showed (benchmarks/README.md).

    Args:
        rows: N, tokens of a batch.
        width: d, of the hidden states.
        classes: V.
    """
    return rows >= (3.5 if rows * classes >= LARGE else 4) * width


class Comparison:
    """Compares outputs; keeps the products of output layers for as long as they hold.

    Args:
        config: checked settings.
    """

    def __init__(self, config: CodistillationConfig) -> None:
        self._divergence = config.divergence()
        self._form = config.codistill_head
        self._fused = config.codistill_fused_ce
        self._can_factor = config.codistill_divergence in FACTORED
        self._centered = config.codistill_divergence == "centered-logit-mse"
        self._said = False
        self._student: Own | None = None
        self._crosses: dict[Other, Tensor] = {}
        # Of each: the update of its snapshot (a teacher has none), and what its layer makes.
        self._owns: dict[Other, tuple[int | None, Own]] = {}

    def begin_update(self) -> None:
        """Forget the products with the student's output layer: it has changed."""
        self._student = None
        self._crosses.clear()

    def takes_hidden(self, rows: int, width: int, classes: int) -> bool:
        """Whether outputs are wanted as ``Hidden``; the first batch decides for all.

        Args:
            rows: of the batch, padding left out.
            width: of the student's hidden states.
            classes: of its output layer.
        """
        if self._form == "auto":
            self._form = self._best_form(rows, width, classes)
        self._say_form(self._form, f"{rows} rows of width {width}, {classes} classes")
        return self._form != "naive"

    def _best_form(self, rows: int, width: int, classes: int) -> str:
        # Where logits are not to be made whole, memory decides and not time.
        whole = rows * classes < MANY_LOGITS and not self._fused
        if self._can_factor and (not whole or factored_is_cheaper(rows, width, classes)):
            return "factored"
        return "naive" if whole else "chunked"

    def __call__(self, student: Output, outputs: Iterable[tuple[Other, Output]]) -> Tensor | None:
        """Give the sum of D over the peers, one number a row; None without peers.

        Args:
            student: its output.
            outputs: the peers' outputs; logits are let go one after the other.
        """
        self._say_form("naive", "the model gives its logits alone")
        if self._form == "naive":
            student = as_logits(student)
        terms: list[Tensor] = []
        hidden: list[tuple[Other, Hidden]] = []
        for peer, output in outputs:
            if isinstance(student, Hidden) and isinstance(output, Hidden):
                hidden.append((peer, output))
            else:
                terms.append(self._divergence(as_logits(student), as_logits(output)))
        if hidden:
            assert isinstance(student, Hidden)
            terms.append(self._from_hidden(student, hidden))
        return torch.stack(terms).sum(dim=0) if terms else None

    def _say_form(self, form: str, why: str) -> None:
        """Log how the divergence is computed, once."""
        if not self._said:
            self._said = True
            logger.info("divergence: computed in the %s form (%s)", form, why)

    def _from_hidden(self, student: Hidden, hidden: list[tuple[Other, Hidden]]) -> Tensor:
        if self._form == "chunked":
            return chunked(self._divergence, student, [output for _, output in hidden])
        outputs = [self._peer_output(peer, student.head, output) for peer, output in hidden]
        mine = self._own_of_student(student.head)
        return factored_logit_mse(student.rows, mine, outputs, self._centered)

    def _own_of_student(self, head: Head) -> Own:
        if self._student is None:
            self._student = own(head)
        return self._student

    def _peer_output(self, peer: Other, head: Head, output: Hidden) -> PeerOutput:
        update, made = self._owns.get(peer, (None, None))
        if made is None or update != peer.update:
            made = own(output.head)
            self._owns[peer] = peer.update, made
            self._crosses.pop(peer, None)
        if peer not in self._crosses:
            self._crosses[peer] = cross(self._own_of_student(head), made)
        return PeerOutput(output.rows, made, self._crosses[peer])
