"""Without a peer's term, training is fairseq's own, digit for digit."""

import pytest
from harness import CODISTILL, PLAIN, SEED_STEP, column, equal, finish, start, train

REALISTIC = (
    "--optimizer adam --lr 0.005 --dropout 0.2 --update-freq 2 --clip-norm 0.5 --weight-decay 1e-4"
).split()


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    return train(corpus, tmp_path_factory.mktemp("plain"), *PLAIN, *REALISTIC)


def same_training(run, plain):
    lines, truth = run.lines(), plain.lines()
    assert len(lines) == len(truth) == 20
    for key in ("loss", "ppl", "gnorm", "wpb"):
        assert column(lines, key) == column(truth, key), key
    assert column(lines, "nll_loss") == column(truth, "loss")
    assert column(run.lines("valid"), "loss") == column(plain.lines("valid"), "loss")
    return equal(run.weights(), plain.weights())


def test_one_group_is_fairseqs_cross_entropy(corpus, tmp_path, plain):
    run = train(corpus, tmp_path, *CODISTILL, *REALISTIC)
    assert same_training(run, plain)
    assert not any(key.startswith("codistill_") for line in run.lines() for key in line)


@pytest.mark.parametrize("mode", ["async", pytest.param("lockstep", marks=pytest.mark.full)])
def test_alpha_0_is_fairseqs_cross_entropy_for_each_group(corpus, tmp_path, plain, mode):
    flags = [*CODISTILL, *REALISTIC, "--codistill-num-groups", "2", "--codistill-alpha", "0"]
    flags += ["--codistill-dir", str(tmp_path / "exchange"), "--codistill-interval", "5"]
    flags += ["--codistill-mode", mode]
    folders = [tmp_path / "0", tmp_path / "1"]
    seeds = ["1", str(1 + SEED_STEP)]
    processes = [
        start(corpus, folder, *flags, "--codistill-group", str(i), "--seed", seeds[i])
        for i, folder in enumerate(folders)
    ]
    runs = [finish(p, folder) for p, folder in zip(processes, folders, strict=True)]
    assert same_training(runs[0], plain)
    assert set(column(runs[0].lines(), "codistill_peers")) == {0}
    other = train(corpus, tmp_path / "plain", *PLAIN, *REALISTIC, "--seed", seeds[1])
    assert same_training(runs[1], other)


def test_async_with_a_peer_that_never_starts_does_not_wait(corpus, tmp_path, plain):
    run = train(
        corpus,
        tmp_path,
        *[*CODISTILL, *REALISTIC, "--codistill-num-groups", "2", "--codistill-interval", "5"],
        *["--codistill-dir", str(tmp_path / "exchange")],
    )
    assert same_training(run, plain)
    assert set(column(run.lines(), "codistill_peers")) == {0}
    assert "codistill_loss" not in run.lines()[-1]
