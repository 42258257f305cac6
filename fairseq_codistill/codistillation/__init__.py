"""Algorithm 1: alpha now, peers now, the loss term, publish or refresh at an update's boundary."""

from fairseq_codistill.codistillation.algorithm import Codistillation, Group
from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError

__all__ = ["Codistillation", "CodistillationConfig", "ConfigError", "Group"]
