"""What torch's restricted unpickler knows, and for how long."""

import argparse
import pickle

import pytest
import torch

from fairseq_codistill import plain


class Own:
    """A class that torch does not know."""


def test_more_is_allowed_for_a_while(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.save(Own(), tmp_path / "own.pt")
    with plain.allowing([Own]):
        assert isinstance(torch.load(tmp_path / "own.pt", weights_only=True), Own)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "own.pt", weights_only=True)
    assert set(map(str, torch.serialization.get_safe_globals())) == set(map(str, before))


def test_what_was_allowed_before_stays(tmp_path):
    """An export within a process leaves its training able to read checkpoints."""
    torch.serialization.add_safe_globals([argparse.Namespace])
    torch.save(argparse.Namespace(seed=1), tmp_path / "settings.pt")
    with pytest.raises(ValueError, match="no"), plain.allowing([argparse.Namespace, Own]):
        raise ValueError("no")
    assert torch.load(tmp_path / "settings.pt", weights_only=True).seed == 1
