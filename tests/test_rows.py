"""Snapshots as int8: what is lost, what travels as it is, what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fairseq_codistill.exchange import ExchangeError, SnapshotRejected
from fairseq_codistill.exchange.rows import SCALE, pack, unpack

SIZES = st.lists(st.integers(0, 5), min_size=2, max_size=4)
LARGE = 3e38


@given(SIZES, st.sampled_from([1e-45, 1e-39, 1e-3, 1.0, 1e30, LARGE]), st.integers(0, 99))
def test_no_number_changes_by_more_than_half_its_rows_scale(sizes, size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = size * (2 * torch.rand(sizes, generator=generator) - 1)
    weight[:1] *= 1e-4  # what one row holds is nothing to another
    packed = pack({"w": weight})
    found = unpack(packed)["w"]
    assert (packed["w"].dtype, packed["w"].shape) == (torch.int8, weight.shape)
    assert (found.dtype, found.shape) == (torch.float32, weight.shape)
    # In float64, and the smallest float32 there is for a scale that was rounded to it or to 0.
    largest = weight.double().flatten(1).abs().amax(1) if weight.numel() else torch.zeros(sizes[0])
    bound = largest / 127 / 2 * (1 + 1e-6) + 127 * 2.0**-149
    assert ((found - weight.double()).abs().flatten(1) <= bound[:, None]).all()


def test_only_matrices_of_floating_point_numbers_are_packed():
    state = {
        "bias": torch.randn(3),
        "steps": torch.tensor(7),
        "scale": torch.tensor(1.5),
        "ids": torch.arange(6, dtype=torch.int8).view(2, 3),
    }
    for names in (pack(state), unpack(pack(state))):
        assert names.keys() == state.keys()
        for name, tensor in state.items():
            assert torch.equal(names[name], tensor)
            assert names[name].dtype == tensor.dtype


def test_a_row_of_zeros_stays_one():
    weight = torch.tensor([[0.0, 0.0], [1.0, -2.0]])
    assert unpack(pack({"w": weight}))["w"].tolist() == [[0, 0], [pytest.approx(64 / 63.5), -2]]


def test_what_is_not_finite_does_not_become_finite():
    for bad in (float("nan"), float("inf")):
        packed = pack({"w": torch.tensor([[1.0, bad]])})
        assert not torch.isfinite(unpack(packed)["w"]).all()


def test_a_name_that_scales_have_is_refused():
    with pytest.raises(ExchangeError, match="'w:scale' has a name that int8 needs for itself"):
        pack({"w:scale": torch.ones(2)})


WHOLE = torch.ones(2, 3, dtype=torch.int8)


@pytest.mark.parametrize(
    "packed",
    [
        {"w" + SCALE: torch.ones(2)},
        {SCALE: torch.ones(2)},
        {"w": WHOLE, "w" + SCALE: torch.ones(3)},
        {"w": WHOLE, "w" + SCALE: torch.ones(2, 1)},
        {"w": WHOLE, "w" + SCALE: WHOLE},
        {"w": WHOLE.float(), "w" + SCALE: torch.ones(2)},
        {"w": WHOLE[0], "w" + SCALE: torch.ones(3)},
        {"w": WHOLE, "w" + SCALE: torch.ones(2), "w" + SCALE + SCALE: torch.ones(2)},
    ],
)
def test_scales_that_fit_no_matrix_are_refused(packed):
    with pytest.raises(SnapshotRejected, match="do not fit a matrix of int8"):
        unpack(packed)
