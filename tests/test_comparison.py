"""Which form the divergence is computed in, and for how long its products hold."""

import logging

import pytest
import torch

from fairseq_codistill.codistillation import CodistillationConfig, Wants, factored_is_cheaper
from fairseq_codistill.codistillation.comparison import MANY_LOGITS, Comparison
from fairseq_codistill.objective import Head, Hidden
from fairseq_codistill.objective.divergence import centered_logit_mse, logit_mse


def products(form, rows, width, classes):
    """Multiplications beyond those of the cross-entropy, forward and backward, for one peer."""
    if form == "naive":
        return rows * classes * width  # the peer's logits
    if form == "joint":
        return 2 * rows * classes * width
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
        wants = Wants.LOGITS if form == "naive" else Wants.HIDDEN
        assert Comparison(config).wants(*size) is wants
        assert f"computed in the {form} form" in caplog.text


def test_the_form_is_chosen_and_said_once(caplog):
    caplog.set_level(logging.INFO)
    comparison = Comparison(CodistillationConfig())
    assert {comparison.wants(*size) for size in (MANY_ROWS[0], FEW_ROWS[0])} == {Wants.HIDDEN}
    said = "divergence: computed in the factored form (batches of 4000 rows by the settings, width"
    assert caplog.text.count(said) == 1
    assert caplog.text.count("divergence: computed in") == 1


# By their data sheets: products a second in float32 and in half precision, bytes a second.
CARDS = {
    "V100": (7.8e12, 62e12, 0.9e12),
    "A100": (9.7e12, 156e12, 1.6e12),
    "H100": (33.5e12, 495e12, 3.3e12),
}


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("width", [512, 1024])
def test_in_half_precision_on_a_gpu_more_rows_are_needed(card, width):
    single, half, moved = CARDS[card]
    classes = 32000
    for rows in range(width, 40 * width, 500):
        passes = 14 * rows * classes / moved
        joint = products("joint", rows, width, classes) / half + passes
        factored = products("factored", rows, width, classes) / single
        # Where one is clearly faster.
        if not joint / 1.6 < factored < joint * 1.6:
            cheaper = factored_is_cheaper(rows, width, classes, half_on_gpu=True)
            assert cheaper is (factored < joint), rows
    assert factored_is_cheaper(7 * width, width, classes)
    assert not factored_is_cheaper(7 * width, width, classes, half_on_gpu=True)


class Model:
    """A random output layer and last hidden states; of a peer also the update of its snapshot."""

    def __init__(self, seed, update=None):
        self._generator = torch.Generator().manual_seed(seed)
        self.update = update
        self.weight = torch.empty(11, 4, dtype=torch.float64)
        self.bias = torch.empty(11, dtype=torch.float64)
        self.rows = torch.randn(6, 4, generator=self._generator, dtype=torch.float64)
        self.change()

    def change(self):
        """Get other numbers in the same tensors, as training and a new snapshot do it."""
        for tensor in (self.weight, self.bias):
            # In place of the parameter's data, and not in place of its numbers: as a peer does.
            tensor.data = torch.randn(tensor.shape, generator=self._generator, dtype=torch.float64)

    @property
    def output(self):
        return Hidden(self.rows, Head(self.weight, self.bias))

    @property
    def logits(self):
        return self.rows @ self.weight.T + self.bias


def factored(divergence):
    config = CodistillationConfig(codistill_divergence=divergence, codistill_head="factored")
    comparison = Comparison(config)
    assert comparison.wants(6, 4, 11) is Wants.HIDDEN
    return comparison


# (N, d, V), divergence, fused, on a GPU -> the form in half precision, and what it wants.
IN_HALF = [
    (FEW_ROWS[0], "logit-mse", False, True, "joint", Wants.BOTH),
    (FEW_ROWS[0], "logit-mse", False, False, "joint", Wants.BOTH),
    # Five times its width: enough for a CPU.
    ((2560, 512, 32000), "logit-mse", False, True, "joint", Wants.BOTH),
    ((2560, 512, 32000), "logit-mse", False, False, "factored", Wants.HIDDEN),
    # wmt16_big's.
    ((3584, 1024, 32768), "logit-mse", False, True, "joint", Wants.BOTH),
    ((3584, 1024, 32768), "logit-mse", True, True, "joint", Wants.HIDDEN),
    ((3584, 1024, 32768), "logit-mse", True, False, "factored", Wants.HIDDEN),
    (TOO_MANY, "logit-mse", False, True, "joint", Wants.HIDDEN),
    (FEW_ROWS[0], "centered-logit-mse", False, True, "naive", Wants.LOGITS),
    (FEW_ROWS[0], "centered-logit-mse", True, True, "factored", Wants.HIDDEN),
    (FEW_ROWS[0], "kl", False, True, "naive", Wants.LOGITS),
    (FEW_ROWS[0], "kl", True, True, "chunked", Wants.HIDDEN),
]


@pytest.mark.parametrize(("size", "divergence", "fused", "gpu", "form", "wants"), IN_HALF)
def test_in_half_precision_an_exact_form_is_taken(
    caplog, size, divergence, fused, gpu, form, wants
):
    caplog.set_level(logging.INFO)
    config = CodistillationConfig(codistill_divergence=divergence, codistill_fused_ce=fused)
    assert Comparison(config).wants(*size, half=True, on_gpu=gpu) is wants
    assert f"computed in the {form} form" in caplog.text
    assert (", half precision" in caplog.text, ", on a GPU" in caplog.text) == (True, gpu)


def agrees(comparison, divergence, student, peers):
    """Whether it gives what the logits as they are now give."""
    with torch.no_grad():
        found = comparison(student.output, [(peer, peer.output) for peer in peers])
    naive = logit_mse if divergence == "logit-mse" else centered_logit_mse
    truth = sum(naive(student.logits, peer.logits) for peer in peers)
    return torch.allclose(found, truth, rtol=1e-9, atol=0)


@pytest.mark.parametrize("divergence", FACTORABLE)
def test_products_hold_no_longer_than_the_layers_they_are_of(divergence):
    comparison, student = factored(divergence), Model(0)
    peers = [Model(1, update=10), Model(2, update=20)]
    for _ in range(3):
        comparison.begin_update()
        assert agrees(comparison, divergence, student, peers)
        # Again in the same update: a second micro-batch.
        assert agrees(comparison, divergence, student, peers)
        student.change()


@pytest.mark.parametrize("divergence", FACTORABLE)
@pytest.mark.parametrize("boundary", [True, False], ids=["at a boundary", "within an update"])
def test_a_new_snapshot_of_one_peer_has_products_of_its_own(divergence, boundary):
    comparison, student = factored(divergence), Model(0)
    peers = [Model(1, update=10), Model(2, update=20)]
    comparison.begin_update()
    assert agrees(comparison, divergence, student, peers)
    for update in (20, 30):
        # 20 is the update of the other's snapshot.
        peers[0].change()
        peers[0].update = update
        if boundary:
            comparison.begin_update()
        assert agrees(comparison, divergence, student, peers)


def test_peers_come_and_go():
    comparison, student = factored("logit-mse"), Model(0)
    peers = [Model(seed, update=10) for seed in (1, 2, 3)]
    for live in ([0], [0, 1, 2], [2], [1, 0]):
        comparison.begin_update()
        assert agrees(comparison, "logit-mse", student, [peers[i] for i in live])


def test_a_teacher_has_no_update_and_its_products_hold():
    comparison, student, teacher = factored("logit-mse"), Model(0), Model(1)
    for _ in range(2):
        comparison.begin_update()
        assert agrees(comparison, "logit-mse", student, [teacher, Model(2, update=0)])
        student.change()
