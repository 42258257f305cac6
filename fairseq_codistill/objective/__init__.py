"""Pure functions of Algorithm 1's loss: divergences of two models' outputs, and alpha in time.

The lowest floor: no I/O, no state, nothing of fairseq.
"""

from fairseq_codistill.objective.alpha import SCHEDULES, AlphaSchedule
from fairseq_codistill.objective.divergence import DIVERGENCES, Divergence, make_divergence

__all__ = ["DIVERGENCES", "SCHEDULES", "AlphaSchedule", "Divergence", "make_divergence"]
