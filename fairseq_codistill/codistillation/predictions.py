"""Algorithm 1 with the peers' own predictions: groups draw the same batches and swap logits.

    theta_i[k+1] = theta_i[k] - eta_k grad_i ( L(y, f_i(x))
                   + alpha_k / (n-1) sum_{j != i} D( f_j(x), f_i(x) ) )

No peer is run: f_j(x) is what group j has computed for its own update k, in training mode (its
batch norms use the batch's statistics, its dropout drops out), and nothing is stale.  An update
costs batch x classes numbers from each worker to those of the other groups, and the groups
go in step.  With a topology j runs over those that i listens to, with their number for n - 1.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch import distributed as dist

from fairseq_codistill.codistillation.algorithm import CHANGES
from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.objective import Output, as_logits, weight


class PredictionExchange:
    """One worker's side of it, from its group's first update to its last.

    Making one is a collective of ``counterparts``; so is each ``term`` while ``weight`` > 0.

    Args:
        config: checked settings, with more than one group.
        counterparts: in the order of the groups, the one worker of each that draws the same
            batches as this one, this one among them.
        update: updates that this group has made.

    Raises:
        ConfigError: if the groups have made different numbers of updates, or the topology does
            not fit.
    """

    def __init__(
        self, config: CodistillationConfig, counterparts: dist.ProcessGroup, update: int
    ) -> None:
        self.alpha = 0.0
        self._update = update
        self._every = config.codistill_every
        self._counterparts = counterparts
        self._groups = groups = config.codistill_num_groups
        self._listens_to = config.listens_to()
        self._schedule = config.alpha_schedule()
        self._divergence = config.divergence()
        self._stall = 0.0
        self._had_peer = False
        made = [0] * groups
        dist.all_gather_object(made, update, group=counterparts)
        if len(set(made)) > 1:
            raise ConfigError(
                "--codistill-exchange predictions: the groups go on from updates "
                f"{', '.join(map(str, made))}, and they have to be at the same one; give each a "
                "checkpoint of one update, or remove the checkpoints to begin anew"
            )

    @property
    def peers(self) -> list[int]:
        """The groups that this one listens to, unless alpha is 0."""
        return self._listens_to if self.alpha > 0 else []

    @property
    def expected_peer(self) -> bool:
        """Whether the group was to learn from others since it was started."""
        return self._had_peer

    @property
    def had_peer(self) -> bool:
        """The same: its peers are there whenever it is."""
        return self._had_peer

    @property
    def weight(self) -> float:
        """What ``term`` counts with in this update, as for ``Codistillation``."""
        return weight(self.alpha, self._update, self._every)

    @property
    def staleness(self) -> float | None:
        """Predictions are of this very update."""
        return 0.0 if self.peers else None

    def at_boundary(self, update: int, epoch: int) -> None:
        """Set alpha.

        Args:
            update: updates made so far.
            epoch: the epoch, from 1, of the update that follows.
        """
        self._update = update
        self.alpha = self._schedule(epoch, update)
        self._had_peer |= bool(self.peers)

    def term(
        self,
        student: Output,
        forward: Callable[[nn.Module], Output],
        targets: Tensor | None = None,
    ) -> Tensor | None:
        """Give the mean over the peers of D(f_j(x), f_i(x)), without ``weight``.

        Args:
            student: f_i(x), of which the others get the logits, of shape (..., classes).
            forward: not needed, for no peer is run.
            targets: not needed.

        Returns:
            One number a row, of shape (...), or None if ``weight`` is 0 or there is no peer.
        """
        if not self.weight:
            return None
        student = as_logits(student)
        own = student.detach().contiguous()
        logits = [torch.empty_like(own) for _ in range(self._groups)]
        start = time.perf_counter()
        dist.all_gather(logits, own, group=self._counterparts)
        self._stall += time.perf_counter() - start
        if not self._listens_to:
            # The others needed its logits all the same.
            return None
        total = student.new_zeros(student.shape[:-1], dtype=torch.float32)
        for j in self._listens_to:
            total = total + self._divergence(student, logits[j])
        return total / len(self._listens_to)

    def finish(self, update: int) -> None:
        """There is nothing to end."""

    def abandon(self, failure: str | None = None) -> None:
        """There is nothing to give up, and nobody to tell."""

    @property
    def stall(self) -> float:
        """Seconds spent in swapping logits that are not logged.

        On a GPU the training thread goes on while they travel: there it is about 0.
        """
        return self._stall

    @property
    def changes(self) -> dict[str, int]:
        """Nothing can change: all peers are always there."""
        return dict.fromkeys(CHANGES, 0)

    def note_logged(self) -> None:
        """Note that ``stall`` is logged."""
        self._stall = 0.0
