"""A run that keeps the counts of BLEU in its meters, as fairseq's IWSLT'14 recipe does."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import CODISTILL, train
from test_export import translate

from fairseq_codistill import cli

sys.path.append(str(Path(__file__).parent.parent / "examples"))
import average_checkpoints  # noqa: E402

EVAL_BLEU = """
    --eval-bleu --eval-bleu-detok space --best-checkpoint-metric bleu
    --maximize-best-checkpoint-metric --validate-interval-updates 2 --max-tokens-valid 300
""".split()
ARGS = ["--eval-bleu-args", '{"beam": 1, "max_len_a": 0, "max_len_b": 5}']


def arrays(value):
    """How many numpy arrays there are in it."""
    if isinstance(value, dict):
        return sum(map(arrays, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(arrays, value))
    return isinstance(value, np.ndarray)


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    train(corpus, folder, *CODISTILL, *EVAL_BLEU, *ARGS, "--max-update", "4")
    return folder


def test_its_checkpoint_is_one_with_arrays(trained):
    state = torch.load(trained / "checkpoint_last.pt", weights_only=False)
    assert arrays(state["extra_state"]["metrics"]) > 0


def test_it_is_resumed(trained, corpus):
    run = train(corpus, trained, *CODISTILL, *EVAL_BLEU, *ARGS, "--max-update", "6")
    assert "Loaded checkpoint" in run.log
    assert [line["num_updates"] for line in run.lines()] == [1, 2, 3, 4, 5, 6]


def test_it_translates_exported_and_averaged_too(trained, corpus, tmp_path):
    best = trained / "checkpoint_best.pt"
    assert cli.main(["export", str(best), str(tmp_path / "stock.pt")]) == 0
    state = average_checkpoints.average([best])
    torch.save(state, tmp_path / "mean.pt")
    user_dir = CODISTILL[:2]
    expected = translate(corpus, best, *user_dir)
    assert translate(corpus, tmp_path / "stock.pt") == expected
    assert translate(corpus, tmp_path / "mean.pt", *user_dir) == expected


def test_what_is_no_plain_data_is_not_read(trained, tmp_path, capsys):
    state = torch.load(trained / "checkpoint_best.pt", weights_only=False)
    torch.save(state | {"more": Path("somewhere")}, tmp_path / "other.pt")
    assert cli.main(["export", str(tmp_path / "other.pt"), str(tmp_path / "new.pt")]) == 2
    assert "holds more than plain data" in capsys.readouterr().err
    assert not (tmp_path / "new.pt").exists()
