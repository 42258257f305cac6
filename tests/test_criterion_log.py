"""What the criterion computes and logs, without a model of fairseq's."""

import math
from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.logging import metrics
from torch import nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import Codistillation, CodistillationConfig, Group, Teacher
from fairseq_codistill.criterions.codistill_cross_entropy import CodistillCrossEntropyCriterion

ALPHA = 0.7


def reduced(*logging_outputs):
    """What fairseq logs of the workers' and micro-batches' outputs."""
    with metrics.aggregate() as meters:
        CodistillCrossEntropyCriterion.reduce_metrics(list(logging_outputs))
    return meters.get_smoothed_values()


def test_an_alpha_near_nothing_is_logged_with_its_digits():
    said = {"loss": 1.0, "nll_loss": 1.0, "ntokens": 1, "sample_size": 1}
    said |= {"codistill_batches": 1, "codistill_alpha": 1.5e-7, "codistill_peers": 1}
    assert reduced(said, said)["codistill_alpha"] == pytest.approx(1.5e-7, rel=1e-4)


class Words(nn.Module):
    """Guesses each word from the one before it."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(8, 8, generator=generator))

    def forward(self, prev_output_tokens):
        return self.table[prev_output_tokens], None

    def get_normalized_probs(self, net_output, log_probs):
        return F.log_softmax(net_output[0], dim=-1)

    def get_targets(self, sample, net_output):
        return sample["target"]


def dictionary():
    words = Dictionary()
    for word in "abcd":
        words.add_symbol(word)
    assert len(words) == 8
    return words


PAD = dictionary().pad()
# Two sentences of 3 and 2 words, and padding.
SAMPLE = {
    "net_input": {"prev_output_tokens": torch.tensor([[2, 4, 5], [2, 6, PAD]])},
    "target": torch.tensor([[4, 5, 7], [6, 2, PAD]]),
    "ntokens": 5,
}


class Worker:
    """One worker of a group with a teacher; ``size`` workers, this one of the given rank."""

    def __init__(self, rank=0, size=1, **settings):
        config = CodistillationConfig(
            codistill_num_groups=1,
            codistill_teachers="t.pt",
            codistill_alpha=ALPHA,
            codistill_alpha_schedule="constant",
            **settings,
        )
        config.check()
        self.model = Words(0)
        self.teacher = Words(1)
        like = self.model.table
        group = Group(seed=1, vocabulary="v", model={}, build=lambda *_: Words(2), like=like)
        teachers = [Teacher("t.pt", self.teacher, like, dtype="student")]
        self.side = Codistillation(config, group, self.model.state_dict, teachers)
        self.side.workers.rank, self.side.workers.size = rank, size
        task = SimpleNamespace(
            target_dictionary=dictionary(),
            cfg=SimpleNamespace(codistill_fused_ce=False, max_tokens=100, batch_size=None),
            codistillation=self.side,
        )
        self.criterion = CodistillCrossEntropyCriterion(
            task, label_smoothing=0.0, sentence_avg=False
        )

    def log(self, update=0):
        """What it logs of an update."""
        self.side.at_boundary(update, 1)
        _, _, log = self.criterion(self.model, SAMPLE)
        return log


@torch.no_grad()
def formula(worker):
    """The cross-entropy and the divergence, each summed over the real target tokens."""
    nll = divergence = 0.0
    for previous, target in [(2, 4), (4, 5), (5, 7), (2, 6), (6, 2)]:
        own, other = (m.table[previous].double() for m in (worker.model, worker.teacher))
        nll += float(-own.log_softmax(0)[target])
        divergence += float((own - other).square().mean())
    return nll, divergence


def test_padding_counts_in_neither_term():
    worker = Worker()
    worker.side.at_boundary(0, 1)
    loss, size, log = worker.criterion(worker.model, SAMPLE)
    nll, divergence = formula(worker)
    assert size == 5
    assert loss.item() == pytest.approx(nll + ALPHA * divergence, rel=1e-6)
    assert log["codistill_loss"].item() == pytest.approx(divergence, rel=1e-6)


def test_the_stall_is_that_of_a_worker_and_not_their_sum():
    workers = [Worker(rank, size=2) for rank in (0, 1)]
    logs = []
    for worker, seconds in zip(workers, (1.0, 3.0), strict=True):
        worker.side.at_boundary(0, 1)
        worker.side._stall = seconds
        logs.append(worker.criterion(worker.model, SAMPLE)[2])
    assert reduced(*logs)["codistill_stall"] == pytest.approx(2.0)
    # Once more with the next micro-batch, which may be the only one that comes to something.
    again = [worker.criterion(worker.model, SAMPLE)[2] for worker in workers]
    assert reduced(*again)["codistill_stall"] == pytest.approx(2.0)
    assert reduced(*logs, *again)["codistill_stall"] == pytest.approx(2.0)


def test_what_happens_to_a_group_is_counted_once_and_not_by_every_worker():
    workers = [Worker(rank, size=3) for rank in range(3)]
    for worker in workers:
        worker.side._changes["refreshed"] += 2
    logs = [worker.log() for worker in workers for _ in range(2)]
    assert reduced(*logs)["codistill_refreshed"] == 2
    # Of a batch for which there is no memory nothing is logged, and of a worker without a batch
    # fairseq counts nothing.
    assert reduced(*logs[::2])["codistill_refreshed"] == 2
    assert reduced(*logs[:3])["codistill_refreshed"] == 2
    assert "codistill_refreshed" not in reduced(*logs[2:])


def test_an_update_that_asks_no_peer_tells_nothing_of_peers():
    worker = Worker(codistill_every=3)
    asked, *others = [worker.log(update) for update in (3, 4, 5)]
    assert reduced(asked)["codistill_peers"] == 1
    assert not [key for log in others for key in reduced(log) if key == "codistill_peers"]
    assert reduced(asked, *others)["codistill_peers"] == 1


def test_the_mean_divergence_is_over_the_batches_that_had_a_peer():
    worker = Worker(codistill_burn_in=1)
    logs = [worker.log(update) for update in (0, 1)]
    assert [log["codistill_live"] for log in logs] == [0, 1]
    said = reduced(*logs)
    nll, divergence = formula(worker)
    assert said["codistill_loss"] == pytest.approx(divergence / 5, abs=1e-4)
    assert said["nll_loss"] == pytest.approx(nll / 5 / math.log(2), abs=1e-3)
    both = (2 * nll + ALPHA * divergence) / 10 / math.log(2)
    assert said["loss"] == pytest.approx(both, abs=1e-3)
    # Alpha, as a mean over the batches.
    assert said["codistill_alpha"] == pytest.approx(ALPHA / 2)
    assert said["codistill_peers"] == pytest.approx(0.5)


def test_validation_is_the_cross_entropy_alone():
    worker = Worker()
    worker.side.at_boundary(0, 1)
    worker.model.eval()
    loss, _, log = worker.criterion(worker.model, SAMPLE)
    nll, _ = formula(worker)
    assert loss.item() == pytest.approx(nll, rel=1e-6)
    assert not [key for key in log if key.startswith("codistill")]
    assert not [key for key in reduced(log) if key.startswith("codistill")]
