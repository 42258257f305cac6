"""Pure functions of Algorithm 1's loss: divergences of two models' outputs, and alpha in time.

The lowest floor: no I/O, no state, nothing of fairseq.
"""

from fairseq_codistill.objective.alpha import SCHEDULES, AlphaSchedule, weight
from fairseq_codistill.objective.divergence import DIVERGENCES, Divergence, make_divergence
from fairseq_codistill.objective.factored import (
    Own,
    PeerOutput,
    cross,
    factored_logit_mse,
    own,
)
from fairseq_codistill.objective.fused import chunked, fused_cross_entropy
from fairseq_codistill.objective.joint import joint_logit_mse
from fairseq_codistill.objective.output import Head, Hidden, Output, as_logits

__all__ = [
    "DIVERGENCES",
    "SCHEDULES",
    "AlphaSchedule",
    "Divergence",
    "Head",
    "Hidden",
    "Output",
    "Own",
    "PeerOutput",
    "as_logits",
    "chunked",
    "cross",
    "factored_logit_mse",
    "fused_cross_entropy",
    "joint_logit_mse",
    "make_divergence",
    "own",
    "weight",
]
