"""The fairseq adapter in one process: the loss of a batch, peers of any architecture, bad input."""

import contextlib
import io
import logging
from types import SimpleNamespace

import pytest
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import ModuleProxyWrapper
from fairseq.logging import metrics
from harness import CODISTILL, MODEL, SETTINGS, TINY, eventually
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fairseq_codistill.codistillation import comparison
from fairseq_codistill.codistillation.config import CodistillationConfig
from fairseq_codistill.exchange import Draft, Exchange, ExchangeError, Store, copy_out
from fairseq_codistill.tasks import _models
from fairseq_codistill.tasks.codistill_translation import (
    CodistillTranslationConfig,
    vocabulary_digest,
)

LSTM = """--arch lstm --encoder-embed-dim 16 --encoder-hidden-size 16 --decoder-embed-dim 16
    --decoder-hidden-size 16 --decoder-out-embed-dim 16""".split()
LIGHTCONV = """--arch lightconv --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16
    --decoder-embed-dim 16 --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16
    --encoder-attention-heads 2 --decoder-attention-heads 2 --encoder-kernel-size-list [3]
    --decoder-kernel-size-list [3] --weight-dropout 0 --input-dropout 0""".split()
WIDE = "--encoder-embed-dim 32 --decoder-embed-dim 32 --dropout 0.3".split()
ARCHITECTURES = {
    "transformer": ["--share-all-embeddings"],
    "unshared": [],
    "layerdrop": ["--decoder-layerdrop", "0.5"],
    "lstm": LSTM,
    "lightconv": LIGHTCONV,
}


def configuration(corpus, *flags):
    """What fairseq-train makes of a command line."""
    # Each architecture has flags of its own.
    model = [] if "--arch" in flags else MODEL
    with contextlib.redirect_stdout(io.StringIO()):
        args = options.parse_args_and_arch(
            options.get_training_parser(), [str(corpus), *model, *SETTINGS, *CODISTILL, *flags]
        )
    return convert_namespace_to_omegaconf(args)


class Student:
    """One group, set up as fairseq-train does, and a batch for it."""

    def __init__(self, corpus, *flags, seed=1):
        self.cfg = configuration(corpus, *flags, "--seed", str(seed))
        self.task = tasks.setup_task(self.cfg.task)
        utils.set_torch_seed(seed)
        self.model = self.task.build_model(self.cfg.model)
        self.criterion = self.task.build_criterion(self.cfg.criterion)
        self.task.load_dataset("valid")
        dataset = self.task.dataset("valid")
        self.sample = dataset.collater([dataset[i] for i in range(9)])
        self.pad = self.task.target_dictionary.pad()
        assert (self.sample["target"] == self.pad).any(), "no padding, nothing to leave out"

    def publish(self, exchange, group, update):
        """Leave this model in an exchange as another group's."""
        tensors, aliases = copy_out(self.model.state_dict(), torch.float32)
        assert exchange.publish(
            Draft(
                group=group,
                seed=self.cfg.common.seed,
                update=update,
                epoch=1,
                dtype="float32",
                vocabulary=vocabulary_digest(self.task.target_dictionary.symbols),
                model=_models.describe(self.cfg.model),
                tensors=tensors,
                aliases=aliases,
            )
        )

    def logits(self, model=None):
        """Logits in float64 of the real target tokens, without dropout."""
        model = (model or self.model).double().eval()
        return model(**self.sample["net_input"])[0][self.sample["target"] != self.pad]


@pytest.fixture
def groups(corpus, tmp_path):
    """Make group 0 with peers that have published; gives it once they are live."""
    made = []

    def make(*flags, peers=1, peer_flags=None, live=True, dtype=torch.float32):
        exchange = Exchange(Store(str(tmp_path)), "default")
        others = []
        for i in range(1, peers + 1):
            other = Student(corpus, *(flags if peer_flags is None else peer_flags), seed=100 + i)
            other.publish(exchange, group=i, update=40)
            others.append(other)
        shared = ["--codistill-dir", str(tmp_path), "--codistill-num-groups", str(peers + 1)]
        shared += ["--save-dir", str(tmp_path / "saved")]
        student = Student(corpus, *shared, *flags)
        student.model.to(dtype)  # as the trainer does before the first epoch
        student.task.begin_epoch(1, student.model)
        made.append(student)
        codistillation = student.task.codistillation
        codistillation.at_boundary(50, epoch=1)

        def all_live():
            codistillation.at_boundary(50, epoch=1)
            return len(codistillation.peers) == peers

        if live:
            eventually(all_live, f"not all of {peers} peers were live")
        return student, others

    yield make
    for student in made:
        student.task.codistillation.abandon()


def logged_by(student):
    """What an update logs of peers: (first seen, staleness, live peers)."""
    with metrics.aggregate() as meters:
        _, _, output = student.task.train_step(
            student.sample, student.model, student.criterion, Unstepped(), update_num=50
        )
        student.task.reduce_metrics([output], student.criterion)
    said = meters.get_smoothed_values()
    names = ("codistill_first_seen", "codistill_staleness", "codistill_peers")
    return tuple(said.get(name) for name in names)


class Unstepped:
    """An optimizer as far as a batch needs it."""

    def backward(self, loss):
        loss.backward()


def test_what_an_update_that_comes_to_nothing_has_counted_is_logged_with_the_next(groups):
    student, _ = groups("--codistill-alpha", "1")
    step = (student.sample, student.model, student.criterion, Unstepped())
    # It overflows: fairseq makes no update and logs nothing.
    student.task.train_step(*step, update_num=50)
    assert logged_by(student) == (1, 10, 1)
    # A validation is no update.
    student.task.codistillation._changes["first_seen"] += 1
    student.task.valid_step(student.sample, student.model, student.criterion)
    with metrics.aggregate():
        output = {"loss": 1.0, "nll_loss": 1.0, "ntokens": 1, "nsentences": 1, "sample_size": 1}
        student.task.reduce_metrics([output], student.criterion)
    student.model.train()
    assert logged_by(student) == (1, 10, 1)
    assert logged_by(student) == (0, 10, 1)


def test_with_every_kth_update_the_others_tell_nothing_of_peers(groups):
    student, _ = groups("--codistill-alpha", "1", "--codistill-every", "7")
    assert 50 % 7
    assert logged_by(student) == (1, None, None)


FORMS = {
    "naive": ["--codistill-head", "naive"],
    "factored": ["--codistill-head", "factored"],
    "joint": ["--codistill-head", "joint"],
    "fused, joint": ["--codistill-fused-ce", "--codistill-head", "joint"],
    "chunked": ["--codistill-head", "chunked"],
    "fused": ["--codistill-fused-ce"],
    "fused, naive": ["--codistill-fused-ce", "--codistill-head", "naive"],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_loss_is_the_formula(groups, caplog, arch, form):
    caplog.set_level(logging.INFO)
    if form != "naive" and arch == "lstm":
        pytest.skip("it has no plain output layer")
    flags = [*ARCHITECTURES[arch], "--codistill-alpha", "0.7", *FORMS[form]]
    # Dropout off, so that the formula can be computed again; the peers' is off by eval mode.
    student, peers = groups(*flags, "--dropout", "0", peers=2, peer_flags=flags)
    if arch == "layerdrop":
        student.model.eval()
        student.model.training = True
    else:
        student.model.train()
    loss, size, log = student.criterion(student.model, student.sample)

    real = student.sample["target"] != student.pad
    own = student.logits()
    nll = F.cross_entropy(own, student.sample["target"][real], reduction="sum")
    divergence = sum((p.logits() - own).square().mean(dim=1).sum() for p in peers) / 2
    assert size == student.sample["ntokens"] == int(real.sum())
    assert loss.item() == pytest.approx((nll + 0.7 * divergence).item(), rel=1e-5)
    assert log["nll_loss"].item() == pytest.approx(nll.item(), rel=1e-5)
    assert log["codistill_loss"].item() == pytest.approx(divergence.item(), rel=1e-4)
    assert (log["codistill_peers"], log["codistill_staleness"]) == (2, 10)
    assert divergence > 1e-3 * nll
    (said,) = [m for m in caplog.messages if m.startswith("divergence: computed in the")]
    assert ("the model gives its logits alone" in said) == (arch == "lstm")


TEMPERATURE = 2.0


def temperate_kl(student, peer):
    p, q = (F.log_softmax(logits / TEMPERATURE, dim=1) for logits in (peer, student))
    return TEMPERATURE**2 * (p.exp() * (p - q)).sum(dim=1)


def centered_logit_mse(student, peer):
    student, peer = (logits - logits.mean(dim=1, keepdim=True) for logits in (student, peer))
    return (peer - student).square().mean(dim=1)


@pytest.mark.parametrize(
    ("divergence", "formula", "form"),
    [
        ("kl", temperate_kl, "naive"),
        ("kl", temperate_kl, "chunked"),
        ("centered-logit-mse", centered_logit_mse, "naive"),
        ("centered-logit-mse", centered_logit_mse, "factored"),
        ("centered-logit-mse", centered_logit_mse, "chunked"),
    ],
)
def test_the_divergence_is_the_one_asked_for(groups, divergence, formula, form):
    asked = ["--codistill-divergence", divergence, "--codistill-temperature", str(TEMPERATURE)]
    student, (peer,) = groups(*asked, *FORMS[form], "--dropout", "0", peer_flags=[])
    student.model.train()
    log = student.criterion(student.model, student.sample)[2]
    truth = formula(student.logits(), peer.logits()).sum().item()
    assert log["codistill_loss"].item() == pytest.approx(truth, rel=1e-4)


def gradients(student):
    student.model.zero_grad()
    student.criterion(student.model, student.sample)[0].backward()
    return {name: p.grad.clone() for name, p in student.model.named_parameters()}


@pytest.mark.parametrize("arch", ["transformer", "unshared"])
@pytest.mark.parametrize("peer_flags", [None, WIDE, LSTM], ids=["alike", "wide", "lstm"])
@pytest.mark.parametrize("divergence", ["logit-mse", "kl"])
def test_all_forms_have_the_gradients_of_the_naive_one(groups, arch, peer_flags, divergence):
    flags = [*ARCHITECTURES[arch], "--dropout", "0", "--codistill-divergence", divergence]
    flags += ["--label-smoothing", "0.1"]
    # The second of the peers is another than the first: their products are kept apart.
    student, _ = groups(*flags, peers=2, peer_flags=peer_flags)
    student.model.train()
    found = {}
    for form in ("naive", "factored", "chunked"):
        student.task.codistillation._compare._form = form
        for student.criterion.fused in (False, True):
            if form == "naive" or divergence == "logit-mse":
                # Twice: the second time with the products of the first.
                found[form, student.criterion.fused] = gradients(student), gradients(student)
    truth = found["naive", False]
    for form, both in found.items():
        for naive, ours in zip(truth, both, strict=True):
            for name, grad in naive.items():
                assert (ours[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-6, (form, name)


def test_in_the_factored_form_the_peer_makes_no_logits(groups, monkeypatch):
    student, _ = groups("--codistill-head", "factored")
    (peer,) = student.task.codistillation.peers

    made = []

    def linear(*args, _linear=F.linear):
        made.append(args[1])
        return _linear(*args)

    # Of a new snapshot a few rows are looked at.
    student.task.codistillation._acceptance._new.clear()
    monkeypatch.setattr(F, "linear", linear)
    head = peer.module.decoder.output_projection.weight
    student.model.train()
    assert student.criterion(student.model, student.sample)[2]["codistill_loss"] > 0
    assert made
    assert not any(weight is head for weight in made)


def test_products_are_made_anew_with_new_weights(groups):
    student, (peer,) = groups("--codistill-head", "factored", "--dropout", "0")
    student.model.train()
    codistillation = student.task.codistillation
    student.criterion(student.model, student.sample)
    with torch.no_grad():
        for parameter in student.model.parameters():
            parameter.add_(0.1)
    peer.model.decoder.output_projection.weight.data.add_(0.2)
    peer.publish(codistillation._reader.exchange, group=1, update=51)

    def swapped():
        codistillation.at_boundary(52, epoch=1)
        return codistillation.peers[0].update == 51

    eventually(swapped, "the snapshot of update 51 was not taken")
    log = student.criterion(student.model, student.sample)[2]
    truth = (peer.logits() - student.logits()).square().mean(dim=1).sum().item()
    assert log["codistill_loss"].item() == pytest.approx(truth, rel=1e-4)


def test_products_are_made_once_an_update_and_kept_over_micro_batches(groups, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    student, _ = groups("--codistill-head", "factored", peers=2)
    made = {"own": 0, "cross": 0}

    def counted(name):
        act = getattr(comparison, name)

        def count(*layers):
            made[name] += 1
            return act(*layers)

        monkeypatch.setattr(comparison, name, count)

    counted("own")
    counted("cross")
    # All that fairseq's tasks ask of an optimizer in a micro-batch.
    optimizer = SimpleNamespace(backward=lambda loss: loss.backward())
    found = []
    for update in (50, 51):
        for _ in range(3):
            student.task.train_step(
                student.sample, student.model, student.criterion, optimizer, update
            )
            found.append(tuple(made.values()))
    # First the student's layer and both peers', and two products between them; in the next
    # update only what the student's layer is in.
    assert found == [(3, 2)] * 3 + [(4, 4)] * 3
    assert caplog.text.count("divergence: computed in the factored form") == 1
    assert caplog.text.count("divergence: computed in the ") == 1


def test_only_the_student_is_in_the_model_and_gets_a_gradient(groups):
    student, _ = groups()
    names = set(student.model.state_dict())
    student.model.train()
    student.criterion(student.model, student.sample)[0].backward()
    assert not list(student.criterion.parameters())
    assert not student.criterion.state_dict()
    assert set(student.model.state_dict()) == names
    (peer,) = student.task.codistillation.peers
    assert not any(p.requires_grad or p.grad is not None for p in peer.module.parameters())
    assert not peer.module.training


def test_a_peer_leaves_the_students_random_numbers_alone(groups):
    student, _ = groups(*["--dropout", "0.3", "--decoder-layerdrop", "0.5"])
    student.model.train()
    codistillation = student.task.codistillation
    drawn = {}
    for with_peer in (True, False):
        codistillation.alpha = 1.0 if with_peer else 0.0
        torch.manual_seed(5)
        log = student.criterion(student.model, student.sample)[2]
        drawn[with_peer] = (log["nll_loss"].item(), torch.rand(1).item())
    assert drawn[True] == drawn[False]


def test_a_batch_is_divided_by_its_sentences_if_asked(groups):
    student, _ = groups("--sentence-avg")
    student.model.train()
    _, size, log = student.criterion(student.model, student.sample)
    assert size == student.sample["target"].size(0)
    assert log["codistill_tokens"] == student.sample["ntokens"]


@pytest.mark.parametrize("fused", [[], ["--codistill-fused-ce"]], ids=["whole", "fused"])
def test_label_smoothing_is_in_the_loss_and_not_in_the_nll(groups, fused):
    flags = ["--label-smoothing", "0.1", "--codistill-alpha", "0", *fused]
    student, _ = groups(*flags, live=False)
    student.model.train()
    loss, _, log = student.criterion(student.model, student.sample)
    log_probs = F.log_softmax(student.logits(), dim=1)
    target = student.sample["target"][student.sample["target"] != student.pad]
    nll = F.nll_loss(log_probs, target, reduction="sum").item()
    classes = log_probs.size(1)
    uniform = -log_probs.sum().item()
    smoothed = (1 - 0.1 - 0.1 / (classes - 1)) * nll + 0.1 / (classes - 1) * uniform
    assert loss.item() == pytest.approx(smoothed, rel=1e-5)
    assert log["nll_loss"].item() == pytest.approx(nll, rel=1e-5)


def test_validation_runs_no_peer(groups):
    student, _ = groups("--label-smoothing", "0.1")
    student.model.eval()
    loss, _, log = student.criterion(student.model, student.sample)
    assert loss.item() == log["nll_loss"].item() == log["loss"].item()
    assert not any(key.startswith("codistill") for key in log)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "amp"])
def test_half_precision(groups, autocast, form):
    # What --bf16 and --amp do on a GPU, done on the CPU, where fairseq refuses them.
    dtype = torch.float32 if autocast else torch.bfloat16
    student, (peer,) = groups(*FORMS[form], dtype=dtype)
    student.model.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, _, log = student.criterion(student.model, student.sample)
    loss.backward()
    expected = torch.float32 if autocast else torch.bfloat16
    (live,) = student.task.codistillation.peers
    assert {p.dtype for p in live.module.parameters()} == {expected}
    assert log["codistill_loss"].dtype == torch.float32, "D is summed in single precision"
    assert all(p.grad.isfinite().all() for p in student.model.parameters())
    truth = (peer.logits() - student.logits()).square().mean(dim=1).sum().item()
    assert log["codistill_loss"].item() == pytest.approx(truth, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_peer_may_compute_in_less_than_the_student(groups, form):
    student, (peer,) = groups("--codistill-peer-dtype", "bfloat16", *FORMS[form], peer_flags=[])
    student.model.train()
    loss, _, log = student.criterion(student.model, student.sample)
    loss.backward()
    (live,) = student.task.codistillation.peers
    assert {p.dtype for p in live.module.parameters()} == {torch.bfloat16}
    assert all(p.grad.dtype == torch.float32 for p in student.model.parameters())
    truth = (peer.logits() - student.logits()).square().mean(dim=1).sum().item()
    assert log["codistill_loss"].item() == pytest.approx(truth, rel=0.01)


def test_a_peer_of_another_architecture_is_built_from_its_manifest(groups):
    student, (peer,) = groups(peer_flags=WIDE)
    student.model.train()
    log = student.criterion(student.model, student.sample)[2]
    truth = (peer.logits() - student.logits()).square().mean(dim=1).sum().item()
    assert log["codistill_loss"].item() == pytest.approx(truth, rel=1e-4)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_model_is_described_in_plain_json_and_rebuilt(corpus, arch):
    student = Student(corpus, *ARCHITECTURES[arch])
    config = _models.describe(student.cfg.model)
    assert "save_dir" not in config
    assert not any(name.startswith("codistill") for name in config)
    like = next(student.model.parameters())
    again = _models.build(student.task, student.cfg.model, config, like)
    shapes = {name: tensor.shape for name, tensor in again.state_dict().items()}
    assert shapes == {n: t.shape for n, t in student.model.state_dict().items()}


@pytest.fixture
def poisoned_memory():
    """Fresh memory holds no numbers, where otherwise it holds some only now and then."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_weight_is_what_was_in_memory(corpus, poisoned_memory, arch):
    assert torch.Tensor(1).isnan()
    state = Student(corpus, *ARCHITECTURES[arch]).model.state_dict()
    assert [name for name, tensor in state.items() if not tensor.isfinite().all()] == []


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        ({"arch": "no_such_arch"}, "its model cannot be built"),
        ({}, "its configuration names no architecture"),
        ({"decoder_layers": 2}, "names and shapes are not those of its model"),
    ],
)
def test_a_snapshot_that_does_not_fit_its_model_is_left_out(
    corpus, tmp_path, groups, caplog, monkeypatch, broken, reason
):
    describe = _models.describe
    with_fault = [lambda cfg: describe(cfg) | broken if broken else {}]
    # The peer's is the first one asked for.
    monkeypatch.setattr(
        _models, "describe", lambda cfg: (with_fault.pop() if with_fault else describe)(cfg)
    )
    student, _ = groups(live=False)
    codistillation = student.task.codistillation

    def refused():
        codistillation.at_boundary(50, epoch=1)
        return reason in caplog.text

    eventually(refused, "the snapshot was not refused for that reason")
    assert codistillation.peers == []
    student.model.train()
    loss, _, log = student.criterion(student.model, student.sample)
    assert loss.item() == log["nll_loss"].item()


def test_fairseq_does_not_pass_over_a_boundary_without_memory(groups, monkeypatch, capsys):
    student, _ = groups()

    def no_memory(update, epoch):
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")

    monkeypatch.setattr(student.task.codistillation, "at_boundary", no_memory)
    with pytest.raises(SystemExit) as ended:
        student.task.train_step(student.sample, student.model, student.criterion, None, 7)
    assert ended.value.code == 1
    assert "no memory for a snapshot (CUDA error: out of memory Comp" in capsys.readouterr().err


def test_an_output_that_stops_lockstep_is_told_in_a_sentence(groups, monkeypatch, capsys):
    student, _ = groups()

    def stop(*_):
        raise ExchangeError("the snapshot of peer 1 cannot be used")

    monkeypatch.setattr(student.task.codistillation, "term", stop)
    with pytest.raises(SystemExit) as ended:
        student.task.train_step(student.sample, student.model, student.criterion, None, 50)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said == "codistill: error: the snapshot of peer 1 cannot be used\n"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--codistill-num-groups", "2"], "--codistill-dir is missing"),
        (["--codistill-group", "1"], "--codistill-group 1 is not one of 0 to 0"),
        (["--label-smoothing", "1"], "--label-smoothing 1.0 is out of range"),
        (["--amp", "--codistill-peer-dtype", "bfloat16"], "means nothing with --amp, in whose"),
        (["--criterion", "cross_entropy"], "--criterion cross_entropy does not codistil"),
        (["--task", "translation"], "use --task codistill_translation"),
        (["--ddp-backend", "fully_sharded"], "--ddp-backend fully_sharded is not supported"),
        (
            ["--adaptive-softmax-cutoff", "5,10"],
            "--adaptive-softmax-cutoff: a model with adaptive softmax",
        ),
        (["--codistill-fused-ce", *LSTM], "--codistill-fused-ce: the model (LSTMModel) has no"),
        (
            [
                *"--codistill-num-groups 2 --codistill-dir x --codistill-head factored".split(),
                *LSTM,
            ],
            "--codistill-head factored: the model (LSTMModel) has no plain output layer",
        ),
        (
            ["--codistill-fused-ce", "--find-unused-parameters"],
            "--codistill-fused-ce does not go with --find-unused-parameters",
        ),
    ],
)
def test_bad_input_ends_in_one_sentence_and_status_2(corpus, capsys, flags, says):
    with pytest.raises(SystemExit) as end:
        Student(corpus, *flags)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert line.startswith("codistill: error: ")
    assert says in line


def test_every_flag_is_documented_and_belongs_to_the_task(corpus):
    parser = options.get_training_parser()
    with contextlib.redirect_stdout(io.StringIO()):
        args = options.parse_args_and_arch(parser, [str(corpus), *TINY, *CODISTILL])
    fields = CodistillationConfig.__dataclass_fields__
    assert fields.keys() <= vars(args).keys()
    assert fields.keys() <= CodistillTranslationConfig.__dataclass_fields__.keys()
    assert all(field.metadata.get("help") for field in fields.values())
    assert all(name.startswith("codistill_") for name in fields)


def sums_over_workers(rank, corpus, meet):
    """A worker's part of the test below."""
    torch.distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=2)
    student = Student(corpus, "--dropout", "0", "--codistill-fused-ce")
    dataset = student.task.dataset("valid")
    student.sample = dataset.collater([dataset[i] for i in range(rank, 9, 2)])
    student.model.train()
    truth = gradients(student)
    for grad in truth.values():
        torch.distributed.all_reduce(grad)
    # As fairseq wraps a model on GPUs; the mean over the workers is made a sum by its trainer.
    bare, student.model = student.model, ModuleProxyWrapper(DistributedDataParallel(student.model))
    bare.zero_grad()
    student.criterion(student.model, student.sample)[0].backward()
    for name, parameter in bare.named_parameters():
        torch.testing.assert_close(
            2 * parameter.grad, truth[name], msg=lambda m, n=name: f"{n}: {m}"
        )


def test_ddp_reduces_an_output_layer_that_is_used_outside_of_the_forward(corpus, tmp_path):
    meet = f"file://{tmp_path}/meet"
    torch.multiprocessing.spawn(sums_over_workers, args=(corpus, meet), nprocs=2)
