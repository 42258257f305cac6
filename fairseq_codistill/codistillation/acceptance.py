"""Whether a peer's output is one to learn from, looked at once for each of its snapshots.

Weights can be finite and of no use: a group that diverges has logits that are larger by orders of
magnitude, or is certain of what is wrong; and what is finite in its precision may overflow in
another's.  The rules compare a peer with the student, on the same rows, so they need nothing from
the manifest and no history.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.codistillation.workers import Workers
from fairseq_codistill.exchange import ExchangeError
from fairseq_codistill.objective import Hidden, Output, as_logits

# Rows of a batch whose logits are compared; finite must be all of them.
ROWS = 256

# A peer's logits may be this many times as far from the student's as those are spread, or as
# LEAST_SPREAD where they are closer together, as at its beginning.  Differences of logits are
# log-odds, which is why there can be a number for all models.
TIMES = 10.0
LEAST_SPREAD = 3.0

# A peer's cross-entropy may be this many times the student's, or that of guessing evenly where the
# student's is lower, each with a nat more: models at their beginning, and few classes, come close.
TIMES_WORSE = 2.0
MARGIN = 1.0

NOT_FINITE = "its output is not finite"

# What a worker says of a peer; the least of all workers' is the group's verdict.
_OBJECTS, _ACCEPTS, _HAS_NOT_SEEN = 0, 1, 2


def objection(
    student: Output,
    peer: Output,
    targets: Tensor | None = None,
    *,
    centered: bool = False,
    finite_alone: bool = False,
) -> str | None:
    """Return what speaks against a peer's output, or None.

    Rows on which the student's own output is not finite are left out.

    Args:
        student: its output.
        peer: the peer's output on the same rows.
        targets: the true classes of the rows, below 0 for rows that are to be left out; None if
            they are not known.
        centered: whether the divergence leaves out a common offset of all logits of a row.
        finite_alone: ask for nothing but finite numbers.

    Raises:
        ValueError: if no row of the student's output is finite.
    """
    with torch.no_grad():
        usable = _finite(student)
        if targets is not None:
            targets = targets.flatten()
            usable &= targets >= 0
        if not bool(_finite(peer)[usable].all()):
            return NOT_FINITE
        rows = usable.nonzero().flatten()[:ROWS]
        ours, theirs = _logits(student, rows), _logits(peer, rows)
        # The output layer may overflow where what goes into it does not.
        judged = torch.isfinite(ours).all(dim=-1)
        if not bool(judged.any()):
            raise ValueError("the student's own output is not finite")
        ours, theirs = ours[judged], theirs[judged]
        if not bool(torch.isfinite(theirs).all()):
            return NOT_FINITE
        if finite_alone:
            return None
        spread = _root_mean_square(_centered(ours))
        difference = theirs - ours
        distance = _root_mean_square(_centered(difference) if centered else difference)
        # Not "above": the distance of numbers close to the largest ones is NaN.
        if not distance <= TIMES * max(spread, LEAST_SPREAD):
            return (
                f"its logits are {distance:.3g} away from this group's (root mean square), whose "
                f"standard deviation is {spread:.3g}; it seems to have diverged"
            )
        if targets is None:
            return None
        targets = targets[rows][judged]
        own_nll, peer_nll = (float(F.cross_entropy(logits, targets)) for logits in (ours, theirs))
        guessing = math.log(ours.shape[-1])
        if peer_nll <= TIMES_WORSE * (max(own_nll, guessing) + MARGIN):
            return None
        return (
            f"its cross-entropy is {peer_nll / math.log(2):.3g} bits, this group's "
            f"{own_nll / math.log(2):.3g}, and that of guessing {guessing / math.log(2):.3g}; it "
            "seems to have diverged"
        )


class Acceptance:
    """Which peers are left out until their next snapshots; every worker of a group has one.

    A snapshot's first output is looked at before it counts, by each worker on its own rows.  At the
    next boundary one worker's objection becomes the group's.

    Args:
        workers: of this group.
        lockstep: ask for finite numbers alone, and stop if they are not.
        centered: whether the divergence leaves out a common offset of all logits of a row.
    """

    def __init__(self, workers: Workers, lockstep: bool, centered: bool = False) -> None:
        self.left_out: set[int] = set()
        self._workers = workers
        self._lockstep = lockstep
        self._centered = centered
        # Peers with snapshots that the group has no verdict on, and what this worker says of them.
        self._new: dict[int, int] = {}
        self._objections: dict[int, str] = {}

    def renew(self, peer: int) -> None:
        """Be told that a peer has another snapshot; by all workers, or votes do not match."""
        self.left_out.discard(peer)
        self._objections.pop(peer, None)
        self._new[peer] = _HAS_NOT_SEEN

    def accepts(
        self, peer: Peer, student: Output, output: Output, targets: Tensor | None = None
    ) -> bool:
        """Return whether a live peer's output counts in this batch.

        In lockstep this is a collective at a snapshot's first output: an update without a peer
        would not be Algorithm 1's, and must not be made.

        Raises:
            ExchangeError: in lockstep, on all workers, if it is not finite on one of them.
        """
        if self._new.get(peer.group) == _HAS_NOT_SEEN:
            try:
                found = objection(
                    *(student, output, targets),
                    centered=self._centered,
                    finite_alone=self._lockstep,
                )
            except ValueError:
                # It is the student that is sick, and the next batch may be another matter.  In
                # lockstep all workers vote on one batch.
                if not self._lockstep:
                    return True
                found = None
            self._new[peer.group] = _ACCEPTS if found is None else _OBJECTS
            if found is not None:
                self._objections[peer.group] = found
            if self._lockstep and self._workers.least([self._new[peer.group]]) == [_OBJECTS]:
                found = found or "another worker of this group objects to its output"
                raise ExchangeError(
                    f"the snapshot of peer {peer.group} at update {peer.update} cannot be "
                    f"used: {found}; in lockstep there is no other"
                )
        return peer.group not in self._objections

    def settle(self) -> dict[int, str | None]:
        """Come to one verdict with the other workers, between two updates.

        Returns:
            The peers on whose snapshots there is a verdict now: None for those that are accepted;
            why, for those that are left out from now on.
        """
        peers = sorted(self._new)
        if not peers:
            return {}
        verdicts = self._workers.least([self._new[peer] for peer in peers])
        verdict_on: dict[int, str | None] = {}
        for peer, verdict in zip(peers, verdicts, strict=True):
            if verdict == _HAS_NOT_SEEN:
                continue
            del self._new[peer]
            found = self._objections.pop(peer, "another worker of this group objects to its output")
            verdict_on[peer] = None
            if verdict == _OBJECTS:
                self.left_out.add(peer)
                verdict_on[peer] = found
        return verdict_on


def _finite(output: Output) -> Tensor:
    """Return for each row whether its numbers are finite, (rows,), by their sum."""
    numbers = output.rows if isinstance(output, Hidden) else output.flatten(0, -2)
    return torch.isfinite(numbers.sum(dim=-1, dtype=torch.float32))


def _logits(output: Output, rows: Tensor) -> Tensor:
    """Return the logits of some rows, (rows, classes), in float32."""
    if isinstance(output, Hidden):
        return as_logits(Hidden(output.rows[rows], output.head)).float()
    return output.flatten(0, -2)[rows].float()


def _centered(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def _root_mean_square(numbers: Tensor) -> float:
    return float(numbers.square().mean().sqrt())
