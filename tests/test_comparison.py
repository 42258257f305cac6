"""Which form the divergence is computed in, away from the sizes where they cost about the same."""

import logging

import pytest

from fairseq_codistill.codistillation import CodistillationConfig, factored_is_cheaper
from fairseq_codistill.codistillation.comparison import MANY_LOGITS, Comparison


def products(form, rows, width, classes):
    """Multiplications beyond those of the cross-entropy, forward and backward, for one peer."""
    if form == "naive":
        return rows * classes * width  # the peer's logits
    # G and C; the layers with two (d, d) matrices for the gradient by the student's.
    by_layers = 4 * classes * width**2
    # h G, h C, h' C, h' G', and for the gradient h h and h' h.
    by_rows = 6 * rows * width**2
    return by_layers + by_rows


# N, d, V, of no more logits than may be made whole: many rows for their width, or few.
MANY_ROWS = [(4000, 64, 5000), (2000, 128, 30000), (5000, 256, 20000), (400, 8, 1000)]
FEW_ROWS = [(500, 512, 32000), (1000, 1024, 50000), (60, 64, 5000), (1, 8, 100)]


# Near the threshold, where one form was clearly faster (benchmarks/README.md).
MEASURED = {
    (1400, 512, 32000): "naive",
    (2200, 1024, 32000): "naive",
    (1792, 512, 10000): "naive",
    (4000, 512, 10000): "factored",
    (4000, 512, 32000): "factored",
}


@pytest.mark.parametrize("size", MEASURED, ids=str)
def test_the_faster_form_is_taken_where_one_was_clearly_faster(size):
    assert factored_is_cheaper(*size) is (MEASURED[size] == "factored")


@pytest.mark.parametrize("size", [*MANY_ROWS, *FEW_ROWS], ids=str)
def test_the_form_of_fewer_products_is_the_cheaper_one(size):
    rows, _, classes = size
    assert rows * classes < MANY_LOGITS
    factored, naive = (products(form, *size) for form in ("factored", "naive"))
    # Away from the threshold: otherwise the passes over the logits count too.
    assert not naive / 2 < factored < naive * 2
    assert factored_is_cheaper(*size) is (factored < naive)


FACTORABLE = ["logit-mse", "centered-logit-mse"]
TOO_MANY = (256, 1024, 2**20)


@pytest.mark.parametrize(
    ("size", "divergences", "fused", "form"),
    [
        *[(size, FACTORABLE, False, "factored") for size in MANY_ROWS],
        *[(size, FACTORABLE, False, "naive") for size in FEW_ROWS],
        *[(size, ["kl"], False, "naive") for size in (*MANY_ROWS, *FEW_ROWS)],
        # Where logits are not to be made whole, memory decides.
        (TOO_MANY, FACTORABLE, False, "factored"),
        (TOO_MANY, ["kl"], False, "chunked"),
        *[(size, FACTORABLE, True, "factored") for size in FEW_ROWS],
        *[(size, ["kl"], True, "chunked") for size in (*MANY_ROWS, *FEW_ROWS)],
    ],
)
def test_auto_takes_the_cheaper_one_unless_memory_decides(caplog, size, divergences, fused, form):
    caplog.set_level(logging.INFO)
    for divergence in divergences:
        config = CodistillationConfig(codistill_divergence=divergence, codistill_fused_ce=fused)
        caplog.clear()
        assert Comparison(config).takes_hidden(*size) is (form != "naive")
        assert f"computed in the {form} form" in caplog.text


def test_the_first_batch_decides(caplog):
    caplog.set_level(logging.INFO)
    comparison = Comparison(CodistillationConfig())
    assert [comparison.takes_hidden(*size) for size in (MANY_ROWS[0], FEW_ROWS[0])] == [True, True]
    assert (
        caplog.text.count("divergence: computed in the factored form (4000 rows of width 64") == 1
    )
