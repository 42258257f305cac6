"""A peer whose output cannot be learnt from is left out; a sound one never is."""

import math
from types import SimpleNamespace

import pytest
import torch
from harness import CODISTILL, eventually, train
from test_codistillation import both_at, join, logged, quick_look  # noqa: F401 - fixtures

from fairseq_codistill.codistillation import acceptance
from fairseq_codistill.codistillation.acceptance import Acceptance, objection
from fairseq_codistill.exchange import ExchangeError, SnapshotRejected, Store, read_alive
from fairseq_codistill.objective import Head, Hidden

ALTERNATING = torch.tensor([1.0, -1.0, 1.0, -1.0])


@pytest.mark.parametrize(
    ("own", "peers", "accepted"),
    [
        # The student's are close together, as at its beginning: 30 is the limit of the distance.
        (0.0, 29.0, True),
        (0.0, 31.0, False),
        (1.0, 30.9, True),
        (1.0, 31.1, False),
        # Ten times as far as the student's are spread.
        (20.0, 219.0, True),
        (20.0, 221.0, False),
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


@pytest.mark.parametrize(("offset", "accepted"), [(29.0, True), (31.0, False), (2.0**65, False)])
def test_a_common_offset_counts_where_the_divergence_counts_it(offset, accepted):
    student, peer = torch.zeros(5, 4), torch.full((5, 4), offset)
    targets = torch.zeros(5, dtype=torch.int64)
    assert (objection(student, peer, targets) is None) == accepted
    assert objection(student, peer, targets, centered=True) is None


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
    assert (
        objection(torch.zeros(5, 4), peer, finite_alone=finite_alone) == "its output is not finite"
    )
    # On that row the student's output is not finite either, as some models' is on padding.
    student = torch.zeros(5, 4)
    student[3, 0] = math.nan
    assert objection(student, peer, finite_alone=finite_alone) is None


def test_a_student_of_no_finite_output_cannot_judge():
    with pytest.raises(ValueError, match="the student's own output"):
        objection(torch.full((5, 4), math.nan), torch.zeros(5, 4))


@pytest.mark.parametrize("form", ["logits", "hidden"])
def test_every_row_is_to_be_finite(monkeypatch, form):
    monkeypatch.setattr(acceptance, "ROWS", 2)
    head = Head(torch.eye(4), None)

    def output(rows):
        return rows if form == "logits" else Hidden(rows, head)

    peer = torch.zeros(9, 4)
    peer[8, 3] = math.nan
    assert objection(output(torch.zeros(9, 4)), output(peer)) == "its output is not finite"
    # Of padding it need not be.
    targets = torch.tensor([0] * 8 + [-1])
    assert objection(output(torch.zeros(9, 4)), output(peer), targets) is None


def test_an_output_layer_that_overflows():
    rows = torch.ones(3, 2)
    student = Hidden(rows, Head(torch.ones(4, 2), None))
    peer = Hidden(rows, Head(torch.full((4, 2), 3e38), None))
    for finite_alone in (True, False):
        assert objection(student, peer, finite_alone=finite_alone) == "its output is not finite"
    with pytest.raises(ValueError, match="the student's own output"):
        objection(peer, student)


def test_logits_whose_mean_is_no_number():
    """They are finite, and so large that their sum is inf - inf, in the order of this machine."""
    rows = torch.ones(3, 1)
    student = Hidden(rows, Head(torch.zeros(16, 1), None))
    peer = Hidden(rows, Head(torch.tensor([3.3e38, -3.3e38] * 8)[:, None], None))
    assert objection(student, peer, centered=True) is not None


def test_rows_of_padding_are_none_of_those_compared(monkeypatch):
    monkeypatch.setattr(acceptance, "ROWS", 2)
    student, peer = torch.zeros(1, 5, 4), torch.zeros(1, 5, 4)
    peer[0, 3:] = 100 * ALTERNATING
    assert objection(student, peer) is None
    assert objection(student, peer, torch.tensor([[-1, -1, -1, 0, 0]])) is not None


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


@pytest.mark.parametrize("own", [1.0, math.inf, math.nan])
@pytest.mark.parametrize("others", [0, 1])
def test_in_lockstep_all_workers_stop_at_the_same_output(own, others):
    """One that raised alone would leave the others in their next collective."""
    workers = Others(others)
    side = Acceptance(workers, lockstep=True)
    side.renew(1)
    student, output = ALTERNATING.expand(2, 4), (own * ALTERNATING).expand(2, 4)
    if own == 1.0 and others == 1:
        assert side.accepts(OfGroupOne, student, output)
        assert side.accepts(OfGroupOne, student, output)
    else:
        says = "its output is not finite" if own != 1.0 else "another worker of this group objects"
        with pytest.raises(ExchangeError, match=f"peer 1 at update 7 cannot be used: {says}"):
            side.accepts(OfGroupOne, student, output)
    assert workers.asked == 1, "once a snapshot"


def test_in_lockstep_a_worker_with_a_sick_student_votes_once_too():
    workers = Others(1)
    side = Acceptance(workers, lockstep=True)
    side.renew(1)
    sick, sound = torch.full((2, 4), math.nan), ALTERNATING.expand(2, 4)
    for _ in range(2):
        assert side.accepts(OfGroupOne, sick, sound)
    assert workers.asked == 1


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
    assert logged(sides[0])["rejected"] == 1
    (line,) = [r.getMessage() for r in caplog.records if "left out" in r.getMessage()]
    assert line.startswith("peer 1 left out: with its snapshot of update 4 its logits are")
    assert line.endswith("from update 5 on, until its next snapshot")
    diverged(sides[1], 1e-6)
    refreshed(sides, 6)
    assert torch.allclose(term(), sound, rtol=1e-3)
    sides[0].at_boundary(7, 1)
    assert [peer.group for peer in sides[0].peers] == [1]
    assert sides[0].changes["rejected"] == 0


def test_a_worker_that_cannot_load_a_snapshot_votes_all_the_same(join, monkeypatch):  # noqa: F811
    """The others load it, perhaps, and count on as many votes."""
    sides = [join(i, codistill_mode="async") for i in (0, 1)]
    refreshed(sides, 2)
    x = torch.randn(4, 3)
    sides[0].term(sides[0].model(x), lambda peer: peer(x))
    # The verdict on this snapshot, after which there is nothing to vote on.
    sides[0].at_boundary(3, 1)

    def no_room(snapshot):
        raise SnapshotRejected("no room")

    monkeypatch.setattr(sides[0]._peers[1], "load", no_room)
    votes = []
    monkeypatch.setattr(
        sides[0]._acceptance,
        "_workers",
        SimpleNamespace(least=lambda own: votes.append(own) or own),
    )
    sides[1].at_boundary(4, 1)

    def voted():
        sides[0].at_boundary(4, 1)
        return votes != []

    eventually(voted, "there was no vote")
    assert [len(vote) for vote in votes] == [1]


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


def test_in_lockstep_finite_numbers_count_and_nothing_else_stops(join, tmp_path):  # noqa: F811
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
    # It ends for good: who waits for it is told, and launch does not start it again.
    sides[0].abandon()
    assert read_alive(Store(str(tmp_path)), 0).failure.startswith("the snapshot of peer 1 at upd")
    with pytest.raises(ExchangeError, match="peer 0 stops for good at update 2: the snapshot of p"):
        sides[1].at_boundary(4, 1)


def test_a_diverged_group_changes_no_digit_of_its_partners_training(tmp_path, corpus):
    """With real processes: the learning rate of group 1 is 2,000 times group 0's."""
    common = [*CODISTILL, "--codistill-mode", "async", "--codistill-interval", "10"]
    common += ["--codistill-dir", str(tmp_path / "exchange"), "--codistill-num-groups", "2"]
    sick = ["--codistill-group", "1", "--seed", "2", "--lr", "1000", "--clip-norm", "1"]
    # It has left its snapshots before group 0 begins, which therefore has them in good time.
    train(corpus, tmp_path / "sick", *common, *sick)
    losses = {}
    for alpha in ("1", "0"):
        flags = ["--max-update", "100", "--codistill-alpha", alpha]
        run = train(corpus, tmp_path / f"alpha-{alpha}", *common, *flags)
        losses[alpha] = [line["nll_loss"] for line in run.lines()]
        assert run.log.count("peer 1 left out: with its snapshot of update 20 ") == int(alpha)
    assert len(losses["0"]) == 100
    assert losses["1"] == losses["0"]
