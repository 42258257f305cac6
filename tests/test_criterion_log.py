"""What the criterion logs."""

import pytest
from fairseq.logging import metrics

from fairseq_codistill.criterions.codistill_cross_entropy import CodistillCrossEntropyCriterion


def test_an_alpha_near_nothing_is_logged_with_its_digits():
    said = {"loss": 1.0, "nll_loss": 1.0, "ntokens": 1, "sample_size": 1}
    said |= {"codistill_batches": 1, "codistill_alpha": 1.5e-7, "codistill_peers": 1}
    with metrics.aggregate() as meters:
        CodistillCrossEntropyCriterion.reduce_metrics([said, said])
    assert meters.get_smoothed_values()["codistill_alpha"] == pytest.approx(1.5e-7, rel=1e-4)
