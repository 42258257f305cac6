"""Real groups of other architectures, and of two different ones."""

import pytest
from harness import LOCKSTEP, launch
from test_adapter import LIGHTCONV, LSTM


@pytest.mark.parametrize("flags", [LSTM, LIGHTCONV], ids=["lstm", "lightconv"])
def test_two_groups_codistil(corpus, tmp_path, flags):
    runs = launch(corpus, tmp_path, *flags, *LOCKSTEP, "--codistill-interval", "5", model=[])
    for run in runs:
        lines = run.lines()
        assert {line["codistill_peers"] for line in lines} == {1}
        assert min(line["codistill_loss"] for line in lines) > 0
        assert lines[-1]["nll_loss"] < lines[0]["nll_loss"]


def test_two_groups_of_different_architectures_codistil(corpus, tmp_path):
    runs = launch(
        corpus,
        tmp_path,
        *[*LOCKSTEP, "--codistill-interval", "5"],
        options=["--group", "1: --decoder-layers 2 --encoder-embed-dim 32 --decoder-embed-dim 32"],
    )
    sizes = [sum(t.numel() for t in run.weights().values()) for run in runs]
    assert sizes[1] > 1.5 * sizes[0]
    for run in runs:
        assert {line["codistill_peers"] for line in run.lines()} == {1}
        assert min(line["codistill_loss"] for line in run.lines()) > 0
