"""The divergence of a student from its peers, in whichever of its forms costs least."""

from __future__ import annotations

import enum
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
    joint_logit_mse,
    own,
)
from fairseq_codistill.records import get_logger

# Whoever the student is compared with.
Other = Peer | Teacher

logger = get_logger(__name__)

# With so many logits in a batch, the passes over them cost as much as products of half of d more
# tokens would (benchmarks/loss_head.py).
LARGE = 2**25

# By the data sheets of V100, A100 and H100: how many times as many products a second there are in
# half precision as in float32, and how many of those in float32 take as long as the passes over one
# logit, of 14 bytes.  They are 8 to 16, and 85 to 142.
FASTER_IN_HALF = 14
PASSES = 110

# Logits from which on no tensor of them is made for a peer: 512 MB of them in float32.
MANY_LOGITS = 2**27

FACTORED = ("logit-mse", "centered-logit-mse")


def factored_is_cheaper(rows: int, width: int, classes: int, *, half_on_gpu: bool = False) -> bool:
    """Return whether the factored form takes less time than the one that makes logits.

    It saves the N V d products of the peer's logits and several passes over N V numbers, and costs
    four products of V d^2: from N = 4 d on it is cheaper, and a little before that where the passes
    weigh.  A rule of arithmetic, with what a CPU showed (benchmarks/README.md).

    On a GPU in half precision the other form is the joint one: 2 N V d products that are ten times
    as fast, or faster, than those of float32, and passes.  Not measured yet.

    Args:
        rows: N, tokens of a batch.
        width: d, of the hidden states.
        classes: V.
        half_on_gpu: whether logits are computed in half precision on a GPU.
    """
    if half_on_gpu:
        joint = rows * classes * (2 * width / FASTER_IN_HALF + PASSES)
        return 4 * classes * width**2 + 6 * rows * width**2 < joint
    return rows >= (3.5 if rows * classes >= LARGE else 4) * width


class Wants(enum.Enum):
    """What is wanted of a model's output on the tokens of a batch."""

    # Of all tokens; those that do not count are left out of the rows that come back.
    LOGITS = "logits"
    # Of the tokens that count, as ``Hidden``.
    HIDDEN = "hidden"
    # Of all tokens, as ``Hidden``, the student's with its logits.
    BOTH = "both"


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
        self._can_join = config.codistill_divergence == "logit-mse"
        self._said = False
        self._student: Own | None = None
        self._crosses: dict[Other, Tensor] = {}
        # Of each: the update of its snapshot (a teacher has none), and what its layer makes.
        self._owns: dict[Other, tuple[int | None, Own]] = {}

    @property
    def form(self) -> str:
        """The form that is computed; ``auto`` until it is chosen."""
        return self._form

    def begin_update(self) -> None:
        """Forget the products with the student's output layer: it has changed."""
        self._student = None
        self._crosses.clear()

    def wants(
        self, rows: int, width: int, classes: int, *, half: bool = False, on_gpu: bool = False
    ) -> Wants:
        """Return what is wanted of outputs.

        The forms differ in rounding.  So that a resumed run has the bits of an unbroken one, and
        all workers of a group take one form, nothing here may depend on a batch or on time.

        Args:
            rows: of a batch, by the settings.
            width: of the student's hidden states.
            classes: of its output layer.
            half: whether logits are computed in half precision.
            on_gpu: whether on a GPU.
        """
        # Where logits are not to be made whole, memory decides and not time.
        whole = rows * classes < MANY_LOGITS and not self._fused
        if self._form == "auto":
            cheaper = factored_is_cheaper(rows, width, classes, half_on_gpu=half and on_gpu)
            self._form = self._best_form(whole, half, on_gpu, cheaper)
        where = (", half precision" if half else "") + (", on a GPU" if on_gpu else "")
        self._say_form(
            self._form,
            f"batches of {rows} rows by the settings, width {width}, {classes} classes{where}",
        )
        if self._form == "naive":
            return Wants.LOGITS
        return Wants.BOTH if self._form == "joint" and whole else Wants.HIDDEN

    def _best_form(self, whole: bool, half: bool, on_gpu: bool, cheaper: bool) -> str:
        """Choose a form.

        Args:
            whole: whether the logits of a batch may be in memory.
            half: whether they are computed in half precision, which loses what tells two models
                of one run apart: only the factored and the joint form are exact then.
            on_gpu: whether on a GPU, where products in half precision cost little.
            cheaper: from ``factored_is_cheaper``.
        """
        joins = half and self._can_join
        if self._can_factor and (cheaper or not (whole or (joins and on_gpu))):
            return "factored"
        if joins:
            return "joint"
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
        if self._form == "joint":
            return joint_logit_mse(student, [output for _, output in hidden])
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
