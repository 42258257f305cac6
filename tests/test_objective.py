"""Divergences against naive float64 versions; alpha against its definition."""

import math

import pytest
import torch

from fairseq_codistill.objective import DIVERGENCES, AlphaSchedule, make_divergence, weight

TEMPERATURE = 2.5


def naive(name, student, peer):
    """One row at a time, one class at a time."""
    rows = []
    for s, p in zip(student.double().tolist(), peer.double().tolist(), strict=True):
        if name == "kl":
            zs, zp = ([math.exp(x / TEMPERATURE) for x in row] for row in (s, p))
            qs, qp = ([z / sum(zz) for z in zz] for zz in (zs, zp))
            divergence = sum(b * math.log(b / a) for a, b in zip(qs, qp, strict=True))
            rows.append(TEMPERATURE**2 * divergence)
            continue
        if name == "centered-logit-mse":
            s = [x - sum(s) / len(s) for x in s]
            p = [x - sum(p) / len(p) for x in p]
        rows.append(sum((a - b) ** 2 for a, b in zip(s, p, strict=True)) / len(s))
    return torch.tensor(rows, dtype=torch.float64)


def logits(rows, classes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, classes, generator=generator, dtype=torch.float64).mul(3).to(dtype)


@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (5, 2), (33, 129)])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        (torch.float64, 1e-12),
        (torch.float32, 1e-5),
        (torch.bfloat16, 1e-5),
        (torch.float16, 1e-5),
    ],
)
def test_value(name, shape, dtype, tolerance):
    student, peer = logits(*shape, dtype, seed=1), logits(*shape, dtype, seed=2)
    value = make_divergence(name, TEMPERATURE)(student, peer)
    # Halves are widened before anything is computed: their own rounding is the input's.
    truth = naive(name, student, peer)
    assert value.shape == shape[:1]
    assert torch.allclose(value.double(), truth, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DIVERGENCES)
def test_gradient_reaches_the_student_and_not_the_peer(name):
    divergence = make_divergence(name, TEMPERATURE)
    peer = logits(4, 6, seed=3).requires_grad_()
    student = logits(4, 6, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda s: divergence(s, peer.detach()), student)
    divergence(student, peer).sum().backward()
    assert peer.grad is None


@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_logits_diverge_by_nothing(name):
    student = logits(4, 6, torch.float32, seed=5).requires_grad_()
    value = make_divergence(name, TEMPERATURE)(student, student.detach().clone())
    value.sum().backward()
    assert value.abs().max().item() == pytest.approx(0, abs=1e-6)
    assert student.grad.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_an_offset_is_seen_by_the_raw_form_alone():
    student, peer = logits(3, 9, seed=6), logits(3, 9, seed=7)
    for name in DIVERGENCES:
        divergence = make_divergence(name)
        moved = torch.allclose(divergence(student + 100, peer), divergence(student, peer))
        assert moved == (name != "logit-mse")


def test_an_unknown_divergence_is_named():
    with pytest.raises(ValueError, match="'mse' is none of logit-mse"):
        make_divergence("mse")


def test_alpha_constant():
    alpha = AlphaSchedule("constant", first=0.3)
    assert [alpha(epoch, 0) for epoch in (1, 2, 50)] == [0.3] * 3


def test_alpha_grows_geometrically_up_to_its_cap():
    alpha = AlphaSchedule("geometric", first=0.5, growth=2.0, cap=3.0)
    assert [alpha(epoch, 0) for epoch in (1, 2, 3, 4, 5000)] == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_alpha_of_the_papers_translation_recipe():
    # Ott et al. train 70 epochs; growth 1.1 from epoch 1 on makes 789 of 1 in epoch 71.
    assert AlphaSchedule("geometric", first=1.0, growth=1.1)(71, 0) == pytest.approx(789.75, 1e-4)


def test_alpha_steps_once_a_milestone_has_passed():
    alpha = AlphaSchedule("step", first=1.0, step=0.5, milestones=(15, 30, 40))
    assert [alpha(e, 0) for e in (1, 15, 16, 30, 31, 41, 90)] == [1, 1, 1.5, 1.5, 2, 2.5, 2.5]


def test_burn_in_counts_updates_and_growth_counts_from_epoch_1():
    alpha = AlphaSchedule("geometric", first=1.0, growth=2.0, burn_in=100)
    assert [alpha(1, 0), alpha(3, 99), alpha(3, 100)] == [0.0, 0.0, 4.0]


def test_an_unknown_schedule_is_named():
    with pytest.raises(ValueError, match="'linear' is none of constant"):
        AlphaSchedule("linear")(1, 0)


def test_every_kth_update_counts_k_times():
    assert [weight(0.5, update, 3) for update in range(7)] == [1.5, 0, 0, 1.5, 0, 0, 1.5]
    assert [weight(0.5, update, 1) for update in range(3)] == [0.5] * 3
