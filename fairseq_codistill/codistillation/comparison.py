"""The divergence of a student from its peers, in whichever of its two forms costs less."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import Tensor

from fairseq_codistill.codistillation.config import CodistillationConfig
from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.objective import (
    Head,
    Hidden,
    Output,
    Own,
    PeerOutput,
    as_logits,
    cross,
    factored_logit_mse,
    own,
)

logger = logging.getLogger(__name__)

# The factored form costs some four products of V d^2, whatever the number of rows; the naive one
# saves them and pays N d V for the peer's logits, and passes over N x V numbers.
ROWS_PER_WIDTH = 4

FACTORED = ("logit-mse", "centered-logit-mse")


class Comparison:
    """Compares outputs; keeps the products of output layers for as long as they hold.

    Args:
        config: checked settings.
    """

    def __init__(self, config: CodistillationConfig) -> None:
        self._divergence = config.divergence()
        self._form = config.codistill_head
        self._can_factor = config.codistill_divergence in FACTORED
        self._centered = config.codistill_divergence == "centered-logit-mse"
        self._said = False
        self._student: Own | None = None
        self._crosses: dict[int, Tensor] = {}
        # Of each peer: the update of its snapshot, and what its output layer makes.
        self._owns: dict[int, tuple[int | None, Own]] = {}

    def begin_update(self) -> None:
        """Forget the products with the student's output layer: it has changed."""
        self._student = None
        self._crosses.clear()

    def factors(self, rows: int, width: int) -> bool:
        """Whether outputs are wanted as ``Hidden``; the same for all batches.

        Args:
            rows: of the first batch, padding left out.
            width: of the student's hidden states.
        """
        if self._form == "auto":
            self._form = "naive"
            if self._can_factor and rows >= ROWS_PER_WIDTH * width:
                self._form = "factored"
        if not self._said:
            self._said = True
            logger.info("divergence: %s form, %d rows of width %d", self._form, rows, width)
        return self._form == "factored"

    def __call__(self, student: Output, outputs: Iterable[tuple[Peer, Output]]) -> Tensor:
        """Give the sum of D over the peers, one number a row.

        Args:
            student: its output.
            outputs: the peers' outputs, at least one; logits are let go one after the other.
        """
        total: Tensor | None = None
        hidden: list[PeerOutput] = []
        for peer, output in outputs:
            if isinstance(student, Hidden) and isinstance(output, Hidden):
                hidden.append(self._peer_output(peer, student.head, output))
                continue
            rows = self._divergence(as_logits(student), as_logits(output))
            total = rows if total is None else total + rows
        if hidden:
            assert isinstance(student, Hidden)
            mine = self._own_of_student(student.head)
            rows = factored_logit_mse(student.rows, mine, hidden, self._centered)
            total = rows if total is None else total + rows
        assert total is not None, "there is a peer"
        return total

    def _own_of_student(self, head: Head) -> Own:
        if self._student is None:
            self._student = own(head)
        return self._student

    def _peer_output(self, peer: Peer, head: Head, output: Hidden) -> PeerOutput:
        update, made = self._owns.get(peer.group, (None, None))
        if made is None or update != peer.update:
            made = own(output.head)
            self._owns[peer.group] = peer.update, made
            self._crosses.pop(peer.group, None)
        if peer.group not in self._crosses:
            self._crosses[peer.group] = cross(self._own_of_student(head), made)
        return PeerOutput(output.rows, made, self._crosses[peer.group])
