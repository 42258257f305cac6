"""Real groups of other architectures, and of two different ones."""

import json

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


@pytest.mark.parametrize(
    "flags", [[], [*"--codistill-snapshot-dtype int8 --codistill-peer-dtype bfloat16".split()]]
)
def test_two_groups_of_different_architectures_codistil(corpus, tmp_path, flags):
    runs = launch(
        corpus,
        tmp_path,
        *[*LOCKSTEP, "--codistill-interval", "5", *flags],
        options=["--group", "1: --decoder-layers 2 --encoder-embed-dim 32 --decoder-embed-dim 32"],
    )
    manifest = json.loads((tmp_path / "exchange/group-1/0000000005.json").read_text())
    assert manifest["dtype"] == ("int8" if flags else "float32")
    sizes = [sum(t.numel() for t in run.weights().values()) for run in runs]
    assert sizes[1] > 1.5 * sizes[0]
    for run in runs:
        assert {line["codistill_peers"] for line in run.lines()} == {1}
        assert min(line["codistill_loss"] for line in run.lines()) > 0
