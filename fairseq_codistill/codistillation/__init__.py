"""Algorithm 1: alpha now, peers now, the loss term, publish or refresh at an update's boundary."""

from fairseq_codistill.codistillation.algorithm import CHANGES, Codistillation
from fairseq_codistill.codistillation.comparison import Wants, factored_is_cheaper
from fairseq_codistill.codistillation.config import CodistillationConfig, ConfigError
from fairseq_codistill.codistillation.evidence import leave_evidence
from fairseq_codistill.codistillation.membership import Group
from fairseq_codistill.codistillation.peer import BuildModel, cuda_devices
from fairseq_codistill.codistillation.predictions import PredictionExchange
from fairseq_codistill.codistillation.seam import Seam, peers_asked, staleness_asked
from fairseq_codistill.codistillation.teacher import Teacher

__all__ = [
    "CHANGES",
    "BuildModel",
    "Codistillation",
    "CodistillationConfig",
    "ConfigError",
    "Group",
    "PredictionExchange",
    "Seam",
    "Teacher",
    "Wants",
    "cuda_devices",
    "factored_is_cheaper",
    "leave_evidence",
    "peers_asked",
    "staleness_asked",
]
