"""Algorithm 1: alpha now, peers now, the loss term, publish or refresh at an update's boundary."""

from fairseq_codistill.codistillation.algorithm import CHANGES, Codistillation
from fairseq_codistill.codistillation.comparison import factored_is_cheaper
from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.membership import Group

__all__ = [
    "CHANGES",
    "Codistillation",
    "CodistillationConfig",
    "ConfigError",
    "Group",
    "factored_is_cheaper",
]
