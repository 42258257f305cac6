"""A peer whose output cannot be learnt from is left out; a sound one never is."""

import math
import subprocess

import pytest
import torch
from harness import BIN, CODISTILL, TINY, Run, environment, eventually
from test_codistillation import both_at, join, quick_look  # noqa: F401 - fixtures

from fairseq_codistill.codistillation import acceptance
from fairseq_codistill.codistillation.acceptance import Acceptance, objection, spread
from fairseq_codistill.exchange import ExchangeError
from fairseq_codistill.objective import Head, Hidden

ALTERNATING = torch.tensor([1.0, -1.0, 1.0, -1.0])


def test_the_spread_is_a_standard_deviation_and_knows_no_offset():
    # Of 1, -1, 1, -1 it is 1; of twice as much it is 2; over both rows sqrt((1 + 4) / 2).
    logits = torch.stack([ALTERNATING + 1e3, 2 * ALTERNATING - 7])
    assert spread(logits) == pytest.approx(math.sqrt(2.5), rel=1e-4)


@pytest.mark.parametrize(
    ("own", "peers", "accepted"),
    [
        # The student's are close together, as at its beginning: 30 is the limit.
        (0.0, 29.0, True),
        (0.01, 31.0, False),
        (1.0, 29.0, True),
        # Ten times as far as the student's.
        (20.0, 199.0, True),
        (20.0, 201.0, False),
        (200.0, 1.0, True),
        (1.0, 1e30, False),
    ],
)
@pytest.mark.parametrize("form", ["logits", "hidden"])
def test_the_limit(own, peers, accepted, form):
    def output(size):
        if form == "logits":
            return (size * ALTERNATING).expand(2, 3, 4)
        return Hidden(torch.ones(6, 1), Head((size * ALTERNATING)[:, None], torch.full((4,), 5.0)))

    assert (objection(output(own), output(peers)) is None) == accepted
    assert objection(output(own), output(peers), finite_alone=True) is None


def of_likelihood(probability):
    """Logits of 3 rows of 4 classes, of which class 1 has this probability on each row."""
    others = math.log((1 - probability) / 3)
    return torch.tensor([[others, math.log(probability), others, others]] * 3)


@pytest.mark.parametrize(
    ("own", "peers", "accepted"),
    [
        # log 4 is 1.386 nats: 2 * (1.386 + 1) = 4.77 is the limit, or 2 * (own + 1).
        (0.9, math.exp(-4.7), True),
        (0.9, math.exp(-4.8), False),
        (0.25, math.exp(-4.8), False),
        (math.exp(-3), math.exp(-7.9), True),
        (math.exp(-3), math.exp(-8.1), False),
    ],
)
def test_the_limit_of_the_cross_entropy(own, peers, accepted):
    student, peer = of_likelihood(own), of_likelihood(peers)
    targets = torch.tensor([1, 1, 1])
    assert (objection(student, peer, targets) is None) == accepted
    assert objection(student, peer) is None
    assert objection(student, peer, targets, finite_alone=True) is None
    # Rows of padding say nothing; one of these would be of likelihood 1.
    peer[2] = torch.tensor([100.0, 0, 0, 0])
    assert (objection(student, peer, torch.tensor([1, 1, -1])) is None) == accepted


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("finite_alone", [True, False])
def test_what_is_not_finite(number, finite_alone):
    peer = torch.zeros(5, 4)
    peer[3, 2] = number
    assert objection(torch.zeros(5, 4), peer, None, finite_alone) == "its output is not finite"
    # On that row the student's output is not finite either, as some models' is on padding.
    student = torch.zeros(5, 4)
    student[3, 0] = math.nan
    assert objection(student, peer, None, finite_alone) is None


def test_a_student_of_no_finite_output_cannot_judge():
    with pytest.raises(ValueError, match="the student's own output"):
        objection(torch.full((5, 4), math.nan), torch.zeros(5, 4))


def test_a_few_rows_are_looked_at(monkeypatch):
    monkeypatch.setattr(acceptance, "ROWS", 2)
    peer = torch.zeros(3, 4)
    peer[2] = math.nan
    assert objection(torch.zeros(3, 4), peer) is None
    assert objection(torch.zeros(3, 4), peer.flip(0)) is not None


class Others:
    """The other workers of a group, of whom one says this of each peer."""

    def __init__(self, says):
        self.says = says
        self.asked = 0

    def least(self, numbers):
        self.asked += 1
        return [min(number, self.says) for number in numbers]


class OfGroupOne:
    group = 1
    update = 7


@pytest.mark.parametrize(
    ("own", "others", "left_out"), [(1.0, 1, False), (1.0, 0, True), (1e6, 1, True), (1e6, 2, True)]
)
def test_one_workers_objection_is_the_groups(own, others, left_out):
    workers = Others(others)
    side = Acceptance(workers, lockstep=False)
    assert side.settle() == {}
    assert workers.asked == 0
    side.renew(1)
    student, output = ALTERNATING.expand(2, 4), (own * ALTERNATING).expand(2, 4)
    assert side.accepts(OfGroupOne, student, output) == (own == 1.0)
    verdicts = side.settle()
    assert set(verdicts) == {1}
    assert (verdicts[1] is not None) == left_out
    assert side.left_out == ({1} if left_out else set())
    # Nothing more is asked of this snapshot, whatever its output; the next one is looked at.
    assert side.settle() == {}
    assert side.accepts(OfGroupOne, student, 1e6 * output)
    side.renew(1)
    assert side.left_out == set()
    assert not side.accepts(OfGroupOne, student, 1e6 * output)


def test_no_verdict_before_a_worker_has_seen_the_output():
    side = Acceptance(Others(2), lockstep=False)
    side.renew(1)
    assert side.settle() == {}
    sick, sound = torch.full((2, 4), math.nan), ALTERNATING.expand(2, 4)
    # A batch on which the student itself is sick says nothing.
    assert side.accepts(OfGroupOne, sick, sound)
    assert side.settle() == {}
    assert not side.accepts(OfGroupOne, sound, sick)
    assert side.settle() == {1: "its output is not finite"}


def diverged(side, factor):
    """A group's side whose weights are so many times as large from now on."""
    with torch.no_grad():
        for parameter in side.model.parameters():
            parameter.mul_(factor)


def refreshed(sides, update):
    """Go on, in async mode, until group 0 has group 1's snapshot of an update."""
    sides[1].at_boundary(update, 1)

    def taken():
        sides[0].at_boundary(update, 1)
        return sides[0]._peers[1].update == update

    eventually(taken, f"no snapshot of update {update} was taken")


def test_in_async_mode_a_diverged_peer_does_not_count_until_its_next_snapshot(join, caplog):  # noqa: F811
    caplog.set_level("INFO")
    sides = [join(i, codistill_mode="async", codistill_alpha=1.0) for i in (0, 1)]
    x = torch.randn(4, 3)

    def term():
        return sides[0].term(sides[0].model(x), lambda peer: peer(x))

    refreshed(sides, 2)
    sound = (sides[1].model(x) - sides[0].model(x)).square().mean(dim=1)
    assert torch.allclose(term(), sound)
    diverged(sides[1], 1e6)
    refreshed(sides, 4)
    # It does not count in the very first batch, before the workers have spoken to each other.
    assert term() is None
    assert term() is None
    assert len(sides[0].peers) == 1
    sides[0].at_boundary(5, 1)
    assert sides[0].peers == []
    assert sides[0].staleness is None
    assert sides[0].take_changes()["rejected"] == 1
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert line.startswith("peer 1 left out: with its snapshot of update 4 its logits have")
    assert line.endswith("from update 5 on, until its next snapshot")
    diverged(sides[1], 1e-6)
    refreshed(sides, 6)
    assert torch.allclose(term(), sound, rtol=1e-3)
    sides[0].at_boundary(7, 1)
    assert [peer.group for peer in sides[0].peers] == [1]
    assert sides[0].take_changes()["rejected"] == 0


def test_a_peer_that_was_never_of_use_is_no_peer(join, tmp_path):  # noqa: F811
    folder = tmp_path / "save"
    folder.mkdir()
    side = join(0, codistill_mode="async", directory=folder)
    other = join(1, codistill_mode="async")
    diverged(other, 1e6)
    refreshed([side, other], 2)
    x = torch.randn(4, 3)
    assert side.term(side.model(x), lambda peer: peer(x)) is None
    side.finish(3)
    assert side.expected_peer
    assert not side.had_peer


def test_in_lockstep_finite_numbers_count_and_nothing_else_stops(join):  # noqa: F811
    sides = [join(0), join(1)]
    diverged(sides[1], 1e6)
    both_at(sides, 0)
    x = torch.randn(4, 3)
    student = sides[0].model(x)
    rows = sides[0].term(student, lambda peer: peer(x))
    assert torch.allclose(rows, (sides[1].model(x) - student).square().mean(dim=1))
    both_at(sides, 1)
    both_at(sides, 2)
    with pytest.raises(ExchangeError, match="peer 1 at update 2 cannot be used: its output is not"):
        sides[0].term(student, lambda peer: peer(x) * math.inf)


def test_a_diverging_group_changes_no_digit_of_its_partners_training(tmp_path, corpus):
    """With real groups: the learning rate of group 1 is 80 times group 0's."""
    flags = "--codistill-mode async --codistill-interval 10 --max-update 100".split()
    flags += "--codistill-alpha 1 --codistill-alpha-schedule constant".split()
    command = [str(BIN / "codistill"), "launch", "--groups", "2", "--max-restarts", "0"]
    sick = "1: --lr 40 --warmup-updates 1 --clip-norm 1"
    training = ["--", "fairseq-train", str(corpus), *TINY, *CODISTILL, *flags]
    losses = {}
    for name, alpha, options, status in (
        # Peers that were never of use are told at the end.
        ("beside it", "1", ["--group", sick], 3),
        ("alone", "0", [], 0),
    ):
        out = tmp_path / name
        options = [*options, "--out", str(out)]
        done = subprocess.run(
            [*command, *options, *training, "--codistill-alpha", alpha],
            capture_output=True,
            text=True,
            env=environment(),
            timeout=300,
        )
        assert done.returncode == status, done.stdout[-2000:] + done.stderr[-2000:]
        run = Run(out / "group-0", (out / "group-0/log.txt").read_text())
        losses[name] = [line["nll_loss"] for line in run.lines()]
        if name == "beside it":
            assert run.log.count("peer 1 left out: with its snapshot of update ") > 0
    assert len(losses["alone"]) == 100
    assert losses["beside it"] == losses["alone"]
