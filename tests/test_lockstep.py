"""Lockstep is reproducible and resumes exactly."""

import re

import pytest
from harness import LOCKSTEP, equal, launch

# Adam and dropout, so that a resumed run needs all of its state.
FLAGS = [*LOCKSTEP, *"--codistill-interval 5 --optimizer adam --lr 0.01 --dropout 0.1".split()]
# Batches with fewer words than four times the model's width, 64, and with more: from there on the
# factored form is the cheaper one.  An epoch has some 20 updates, or half as many with two workers.
FLAGS += ["--max-update", "30", "--train-subset", "test", "--max-tokens", "76"]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(1, id="1-worker"),
        pytest.param(2, id="2-workers", marks=pytest.mark.full),
    ],
)
def unbroken(request, corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    return request.param, launch(corpus, out, *FLAGS, workers=request.param)


def test_batches_lie_on_both_sides_of_the_threshold(unbroken):
    # So that the tests below could fail.
    workers, runs = unbroken
    for run in runs:
        words = [line["wpb"] / workers for line in run.lines()]
        assert min(words) < 64 - 3 < 64 + 3 < max(words)


def test_two_runs_end_with_the_same_bits(corpus, tmp_path, unbroken):
    workers, runs = unbroken
    again = launch(corpus, tmp_path, *FLAGS, workers=workers)
    for run, same in zip(runs, again, strict=True):
        assert equal(run.weights(), same.weights())
    assert not equal(runs[0].weights(), runs[1].weights())


@pytest.mark.parametrize(
    "stop",
    [
        pytest.param(10, id="on-a-multiple-of-T", marks=pytest.mark.full),
        pytest.param(13, id="off", marks=pytest.mark.full),
        pytest.param(26, id="off-in-a-later-epoch"),
    ],
)
def test_a_resumed_run_equals_an_unbroken_one(corpus, tmp_path, unbroken, stop):
    workers, runs = unbroken
    launch(corpus, tmp_path, *FLAGS, "--max-update", str(stop), workers=workers)
    resumed = launch(corpus, tmp_path, *FLAGS, workers=workers)
    for run, same in zip(runs, resumed, strict=True):
        resumed = re.search(rf"\(epoch (\d+) @ {stop} updates\)", same.log)
        assert resumed is not None, "it did not resume"
        assert stop < 26 or int(resumed[1]) > 1, "it resumed in its first epoch"
        assert equal(run.weights(), same.weights())
