"""What an adapter asks of codistillation, however groups learn of each other's predictions."""

from __future__ import annotations

from collections.abc import Callable, Sized
from typing import Protocol

from torch import Tensor, nn

from fairseq_codistill.objective import Output


class Seam(Protocol):
    """One group's side of codistillation: ``Codistillation`` or ``PredictionExchange``."""

    alpha: float

    @property
    def weight(self) -> float:
        """What ``term`` counts with in this update."""

    @property
    def peers(self) -> Sized:
        """The live peers and the teachers: those whose term counts in this update."""

    @property
    def staleness(self) -> float | None:
        """Mean over the live peers of how many updates old they are; None if none has an age."""

    @property
    def expected_peer(self) -> bool:
        """Whether the group was to learn from peers, in any of its starts.  The leader's answer."""

    @property
    def had_peer(self) -> bool:
        """Whether the group has had a live peer, in any of its starts.  The leader's answer."""

    def at_boundary(self, update: int, epoch: int) -> None:
        """Do what is due before an update.  A collective of the group's workers."""

    def term(
        self,
        student: Output,
        forward: Callable[[nn.Module], Output],
        targets: Tensor | None = None,
    ) -> Tensor | None:
        """Give the mean over ``peers`` of D(f_j(x), f_i(x)), one number a row, or None."""

    def finish(self, update: int) -> None:
        """End, after ``update`` updates."""

    def abandon(self, failure: str | None = None) -> None:
        """End without having reached the end; ``failure`` is why it would do so again, if so."""

    @property
    def stall(self) -> float:
        """Seconds that the training thread has waited for others, and that are not logged."""

    @property
    def changes(self) -> dict[str, int]:
        """How many changes of each kind of ``CHANGES`` there were that are not logged."""

    def note_logged(self) -> None:
        """Note that ``stall`` and ``changes`` are logged."""


def peers_asked(side: Seam) -> int | None:
    """Return how many peers and teachers are asked in this update.

    None if their turn has not come, with ``--codistill-every``: that says nothing of how many live.
    """
    return len(side.peers) if side.weight or side.alpha == 0 else None


def staleness_asked(side: Seam) -> float | None:
    """Return the mean age, in updates, of the peers that are asked in this update; None if none."""
    return side.staleness if side.weight else None
