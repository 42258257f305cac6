"""Every form of the loss in every dtype on a GPU that is not there: devices, dtypes, waits."""

import logging
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from fake_cuda import Seen, backward, faked, gpu_that_is_not_there, on_gpu, tf32_is_on
from harness import eventually
from test_adapter import WIDE, Student

from fairseq_codistill.criterions import _hidden
from fairseq_codistill.exchange import Exchange, Store
from fairseq_codistill.objective import make_divergence

FACTORED = "fairseq_codistill/objective/factored.py"
FUSED = "fairseq_codistill/objective/fused.py"
OUTPUT = "fairseq_codistill/objective/output.py"

PEERS = 2
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
DTYPES = {"float32": torch.float32, **HALVES}
# A student's precision, and what its peers may be told to compute in.
PRECISIONS = [(name, peers) for name in DTYPES for peers in ("student", *HALVES)]
PRECISIONS += [(f"amp {name}", "student") for name in HALVES]
FORMS = [
    *[("logit-mse", form) for form in ("naive", "factored", "joint", "chunked")],
    *[("centered-logit-mse", form) for form in ("naive", "factored", "chunked")],
    *[("kl", form) for form in ("naive", "chunked")],
]


@dataclass
class Passed:
    """What one batch gave.

    Attributes:
        loss: that gradients flow from.
        log: what is logged.
        grads: by parameter.
        forward: what was noted of the loss.
        backward: and of its gradients.
    """

    loss: torch.Tensor
    log: dict[str, Any]
    grads: dict[str, torch.Tensor]
    forward: Seen
    backward: Seen


class Side:
    """A group with live peers, whose models can be put on the GPU that is not there."""

    def __init__(self, corpus, directory, *flags, peer_flags=None):
        exchange = Exchange(Store(str(directory)), "default")
        for i in range(1, PEERS + 1):
            other = Student(corpus, *(flags if peer_flags is None else peer_flags), seed=100 + i)
            other.publish(exchange, group=i, update=40)
        shared = ["--codistill-dir", str(directory), "--codistill-num-groups", str(PEERS + 1)]
        shared += ["--save-dir", str(directory / "saved"), "--label-smoothing", "0.1"]
        self.student = Student(corpus, *shared, *flags)
        self.student.task.begin_epoch(1, self.student.model)
        self.codistillation = self.student.task.codistillation

        def all_live():
            self.codistillation.at_boundary(50, epoch=1)
            return len(self.codistillation.peers) == PEERS

        eventually(all_live, f"not all of {PEERS} peers were live", 300)
        self._peers = self.codistillation.peers
        self._modules = [peer.module for peer in self._peers]

    def batches(self, precision, peers="student", count=1):
        """Return what some batches of one update gave, each looked at alone."""
        student = self.student
        amp = HALVES.get(precision.removeprefix("amp ")) if precision.startswith("amp") else None
        dtype = torch.float32 if amp else DTYPES[precision]
        criterion = student.criterion
        criterion._confirmed, criterion._of_peer = None, _hidden.PeerOutputs()
        passed = []
        with gpu_that_is_not_there(student.sample["ntokens"]) as (fake, watch):
            model = faked(student.model, fake, dtype).train()
            for peer, module in zip(self._peers, self._modules, strict=True):
                peer._module = faked(module, fake, dtype if peers == "student" else DTYPES[peers])
                self.codistillation._acceptance.renew(peer.group)
            self.codistillation._compare._owns.clear()
            self.codistillation._compare.begin_update()
            sample = on_gpu(student.sample, fake)
            names = {parameter: name for name, parameter in model.named_parameters()}
            for _ in range(count):
                with fake, watch:
                    watch.seen = forward = Seen()
                    with torch.autocast("cuda", amp, enabled=amp is not None):
                        loss, _, log = criterion(model, sample)
                    watch.seen = backwards = Seen()
                    grads = {names[leaf]: grad for leaf, grad in backward(loss).items()}
                passed.append(Passed(loss, log, grads, forward, backwards))
            assert grads.keys() == set(names.values())
            for parameter, name in names.items():
                assert (grads[name].device, grads[name].dtype) == (parameter.device, dtype), name
        return passed

    def choose(self, divergence="logit-mse", form="naive", fused=False):
        """Compute in another form from now on."""
        compare = self.codistillation._compare
        compare._divergence, compare._form = make_divergence(divergence), form
        compare._centered = divergence == "centered-logit-mse"
        self.student.criterion.fused = fused
        return self


@pytest.fixture(scope="module")
def side(corpus, tmp_path_factory):
    """Make a side of some flags, once."""
    made = {}
    logging.disable(logging.INFO)

    def make(*flags, peer_flags=None):
        key = (*flags, "|", *(peer_flags or []))
        if key not in made:
            directory = tmp_path_factory.mktemp("exchange")
            made[key] = Side(corpus, directory, *flags, peer_flags=peer_flags)
        return made[key]

    yield make
    logging.disable(logging.NOTSET)
    for one in made.values():
        one.codistillation.abandon()


def computes_in(precision):
    """Return the dtype of a student's large products."""
    return DTYPES[precision.removeprefix("amp ")]


def check(passed, precision, peers="student"):
    """Devices, and dtypes of what is made and of our products but the factored form's."""
    assert passed.loss.device.type == "cuda"
    assert passed.log["codistill_live"] == 1
    # Sums of many tokens, whatever the models compute in.
    for name in ("loss", "nll_loss", "codistill_loss"):
        assert passed.log[name].dtype == torch.float32, name
        assert passed.log[name].device.type == "cuda", name
    computed = {computes_in(precision), computes_in(precision if peers == "student" else peers)}
    for seen in (passed.forward, passed.backward):
        assert seen.ours(seen.copies) == {}
        assert seen.ours(seen.strays) == {}
        for product in seen.products:
            # fairseq's own are its business: torch's attention computes in float32 in part.
            if product.file.startswith("fairseq_codistill/") and product.file != FACTORED:
                assert product.dtypes <= computed, product


def check_in_full(passed):
    """The factored form's products: its terms cancel, so no digit may be lost."""
    for seen in (passed.forward, passed.backward):
        products = seen.of(FACTORED)
        assert products
        for product in products:
            assert product.dtypes == {torch.float32}, product
            assert not product.autocast, product
            assert not product.tf32, product


def combinations():
    """Every precision with every form; those of which each half has been seen are long."""
    for precision, peers in PRECISIONS:
        for divergence, form in FORMS:
            for fused in (False, True):
                plain = divergence == "logit-mse" and not fused
                usual = (precision, peers) in (("float16", "student"), ("amp float16", "student"))
                given = (precision, peers, divergence, form, fused)
                name = "-".join(map(str, given[:-1])) + fused * "-fused"
                marks = [] if plain or usual else [pytest.mark.full]
                yield pytest.param(*given, id=name, marks=marks)


@pytest.mark.parametrize(("precision", "peers", "divergence", "form", "fused"), combinations())
def test_devices_and_dtypes(side, precision, peers, divergence, form, fused):
    (passed,) = side().choose(divergence, form, fused).batches(precision, peers)
    check(passed, precision, peers)
    if form == "factored":
        check_in_full(passed)
    else:
        assert not passed.forward.of(FACTORED)
    if fused:
        for product in passed.forward.of(FUSED):
            assert product.dtypes == {computes_in(precision)}, product


OTHERS = {
    "dropout": (["--codistill-peer-dropout", "--dropout", "0.3"], None),
    "wide peers": ([], WIDE),
}


@pytest.mark.parametrize("form", ["naive", "factored", "chunked"])
@pytest.mark.parametrize("precision", ["float16", "amp float16"])
@pytest.mark.parametrize("models", OTHERS)
def test_devices_and_dtypes_of_other_models(side, models, precision, form):
    flags, peer_flags = OTHERS[models]
    made = side(*flags, peer_flags=peer_flags).choose("logit-mse", form)
    (passed,) = made.batches(precision)
    check(passed, precision)
    if form == "factored":
        check_in_full(passed)


def switch_tf32_on(way):
    """Switch TF32 on in one of the ways that torch has."""
    if way == "allow_tf32":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif way == "high":
        torch.set_float32_matmul_precision("high")
    elif way == "matmul":
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    else:
        torch.backends.fp32_precision = "tf32"


@pytest.fixture
def precisions_kept():
    """What a test sets of TF32 is set back."""
    new = hasattr(torch.backends.cuda.matmul, "fp32_precision")
    before = (
        (torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision) if new else ()
    )
    yield
    torch.set_float32_matmul_precision("highest")
    if new:
        torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


NEW_WAYS = ["matmul", "all"] if hasattr(torch.backends.cuda.matmul, "fp32_precision") else []


@pytest.mark.parametrize("way", ["allow_tf32", "high", *NEW_WAYS])
@pytest.mark.parametrize("precision", ["float32", "amp bfloat16"])
def test_tf32_is_off_in_the_factored_form_alone(side, precisions_kept, precision, way):
    switch_tf32_on(way)
    assert tf32_is_on()
    (passed,) = side().choose("logit-mse", "factored").batches(precision)
    check_in_full(passed)
    elsewhere = [product for product in passed.forward.products if product.file != FACTORED]
    assert elsewhere
    assert all(product.tf32 for product in elsewhere)
    assert tf32_is_on()


# How often a batch has the host wait for the GPU: where the places of the target tokens are looked
# up, once for all.
BUDGET = {
    (form, fused): int(form not in ("naive", "joint") or fused)
    for form in ("naive", "factored", "joint", "chunked")
    for fused in (False, True)
}
# Once a snapshot of each peer more: whether its output can be learnt from.
VERDICT = 20


def waits(passed):
    return sum(sum(seen.ours(seen.waits).values()) for seen in (passed.forward, passed.backward))


@pytest.mark.parametrize(("form", "fused"), BUDGET)
def test_the_gpu_is_waited_for_no_more_often_than_needed(side, form, fused):
    made = side().choose("logit-mse", form, fused)
    first, *later = made.batches("float16", count=3)
    for passed in later:
        assert waits(passed) <= BUDGET[form, fused], (passed.forward.waits, passed.backward.waits)
    assert waits(first) <= BUDGET[form, fused] + PEERS * VERDICT


@pytest.mark.parametrize("form", ["naive", "factored", "chunked"])
@pytest.mark.parametrize("why", ["alpha is 0", "not their turn", "no peers"])
def test_the_gpu_is_not_waited_for_where_no_peer_is_asked(side, monkeypatch, why, form):
    made = side().choose("logit-mse", form)
    codistillation = made.codistillation
    if why == "alpha is 0":
        monkeypatch.setattr(codistillation, "alpha", 0.0)
    elif why == "not their turn":
        monkeypatch.setattr(codistillation, "_every", 7)
    else:
        monkeypatch.setattr(codistillation, "_live", list)
    _, passed = made.batches("float16", count=2)
    assert passed.log["codistill_live"] == 0
    for seen in (passed.forward, passed.backward):
        assert seen.ours(seen.waits) == {}
