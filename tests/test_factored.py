"""The factored logit-mse against the naive one in float64: values and gradients."""

import pytest
import torch

from fairseq_codistill.objective import factored
from fairseq_codistill.objective.divergence import centered_logit_mse, logit_mse
from fairseq_codistill.objective.factored import Head, PeerOutput, factored_logit_mse


class Case:
    """A student and its peers on random rows, in float64."""

    def __init__(self, n, d, v, widths=(None,), bias=True, scale=0.1, offset=0.0, seed=0):
        torch.manual_seed(seed)
        self.hidden = torch.randn(n, d, dtype=torch.float64)
        self.weight = scale * torch.randn(v, d, dtype=torch.float64)
        self.bias = scale * torch.randn(v, dtype=torch.float64) + offset if bias else None
        self.peers = []
        for width in widths:
            # Near the student where it has the student's width, as trained models are.
            hidden = torch.randn(n, width or d, dtype=torch.float64)
            weight = scale * torch.randn(v, width or d, dtype=torch.float64)
            if width is None:
                hidden = self.hidden + 0.3 * hidden
                weight = self.weight + 0.3 * weight
            bias_of = None if self.bias is None else self.bias + scale * torch.randn_like(self.bias)
            self.peers.append((hidden, weight, bias_of))
        self.grad = torch.rand(n, dtype=torch.float64)

    def inputs(self, dtype):
        """The student's tensors in a dtype, asking for gradients."""
        given = [self.hidden, self.weight, self.bias]
        return [None if t is None else t.to(dtype).requires_grad_() for t in given]

    def truth(self, centered=False, dtype=torch.float64):
        """The naive sum over the peers in float64 of what the dtype can hold, and its gradients."""
        hidden, weight, bias = [
            None if t is None else t.detach().double().requires_grad_() for t in self.inputs(dtype)
        ]
        logits = torch.nn.functional.linear(hidden, weight, bias)
        divergence = centered_logit_mse if centered else logit_mse
        total = logits.new_zeros(len(hidden))
        for peer in self.peers:
            h, w, b = [None if t is None else t.to(dtype).double() for t in peer]
            total = total + divergence(logits, torch.nn.functional.linear(h, w, b))
        total.backward(self.grad)
        return total.detach(), [None if t is None else t.grad for t in (hidden, weight, bias)]

    def ours(self, centered=False, dtype=torch.float64):
        """The factored form and its gradients."""
        inputs = self.inputs(dtype)
        hidden, weight, bias = inputs
        student = factored.own(Head(weight, bias))
        peers = []
        for h, w, b in self.peers:
            own = factored.own(Head(w.to(dtype), None if b is None else b.to(dtype)))
            peers.append(PeerOutput(h.to(dtype), own, factored.cross(student, own)))
        total = factored_logit_mse(hidden, student, peers, centered)
        total.backward(self.grad.to(total.dtype))
        return total.detach(), [None if t is None else t.grad for t in inputs]


SHAPES = [
    {"n": 1, "d": 1, "v": 2},
    {"n": 7, "d": 5, "v": 13},
    {"n": 7, "d": 5, "v": 13, "bias": False},
    {"n": 3, "d": 4, "v": 9000, "widths": (None, 6, 2)},
    {"n": 20, "d": 8, "v": 4096, "widths": (3,), "bias": False},
    {"n": 5, "d": 8, "v": 4097, "offset": 100.0},
]


def error(ours, truth):
    return float((ours.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_the_naive_one(shape, centered):
    case = Case(**shape)
    (value, grads), (ours, own_grads) = case.truth(centered), case.ours(centered)
    assert error(ours, value) < 1e-10
    for mine, true in zip(own_grads, grads, strict=True):
        assert (mine is None) == (true is None)
        if true is not None:
            assert mine.shape == true.shape
            assert error(mine, true) < 1e-9


@pytest.mark.parametrize("centered", [False, True])
def test_gradcheck(centered):
    case = Case(n=4, d=3, v=6, widths=(None, 2))

    def value(hidden, weight, bias):
        student = factored.own(Head(weight, bias))
        peers = [
            PeerOutput(h, own := factored.own(Head(w, b)), factored.cross(student, own))
            for h, w, b in case.peers
        ]
        return factored_logit_mse(hidden, student, peers, centered)

    assert torch.autograd.gradcheck(value, case.inputs(torch.float64))


# What the dtype leaves of the inputs is taken as exact: the bound is on the computation alone.
@pytest.mark.parametrize(
    ("dtype", "on_value", "on_grads"),
    [
        (torch.float32, 1e-5, 2e-5),
        (torch.bfloat16, 1e-5, 5e-3),
        (torch.float16, 1e-5, 1e-3),
    ],
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_in_lower_precision(dtype, on_value, on_grads, offset):
    case = Case(n=200, d=64, v=5000, widths=(None, 32), offset=offset)
    (value, grads), (ours, own_grads) = case.truth(dtype=dtype), case.ours(dtype=dtype)
    assert ours.dtype == torch.float32
    assert error(ours, value) < on_value
    for mine, true in zip(own_grads, grads, strict=True):
        assert mine.dtype == dtype
        assert error(mine, true) < on_grads


def test_a_peer_that_is_the_student():
    case = Case(n=50, d=16, v=300)
    case.peers = [(case.hidden, case.weight, case.bias)]
    ours, grads = case.ours(dtype=torch.float32)
    assert torch.equal(ours, torch.zeros_like(ours))
    scale = case.truth()[1][1].norm() + case.weight.norm()
    assert all(float(grad.norm()) < 1e-4 * scale for grad in grads)


def test_a_peer_that_is_nearly_the_student_is_not_negative():
    case = Case(n=400, d=32, v=1000)
    generator = torch.Generator().manual_seed(1)
    near = case.hidden + 1e-6 * torch.randn(400, 32, generator=generator, dtype=torch.float64)
    case.peers = [(near, case.weight, case.bias)]
    ours, _ = case.ours(dtype=torch.float32)
    size = torch.nn.functional.linear(case.hidden, case.weight, case.bias).square().mean()
    assert float(ours.min()) >= 0
    assert float(ours.max()) < 1e-6 * float(size)


@pytest.mark.parametrize("centered", [False, True])
def test_equal_logits_of_different_layers_are_not_negative(centered):
    """The three terms cancel; what rounding leaves of them has either sign."""
    case = Case(n=400, d=32, v=1000)
    turn, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    case.peers = [(case.hidden @ turn, case.weight @ turn, case.bias)]
    ours, _ = case.ours(centered, dtype=torch.float32)
    size = torch.nn.functional.linear(case.hidden, case.weight, case.bias).square().mean()
    assert float(ours.min()) >= 0
    assert float(ours.max()) < 1e-5 * float(size)


def test_a_tied_embedding_gets_both_gradients():
    torch.manual_seed(0)
    table = torch.nn.Embedding(11, 4).double()
    other = torch.randn(11, 4, dtype=torch.float64)
    words = torch.tensor([1, 5, 5])
    peer_hidden = torch.randn(3, 4, dtype=torch.float64)

    def value(factor):
        table.zero_grad()
        hidden = table(words).tanh()
        if factor:
            student, own = factored.own(Head(table.weight)), factored.own(Head(other))
            peer = PeerOutput(peer_hidden, own, factored.cross(student, own))
            rows = factored_logit_mse(hidden, student, [peer])
        else:
            rows = logit_mse(hidden @ table.weight.T, peer_hidden @ other.T)
        rows.sum().backward()
        return rows.detach(), table.weight.grad.clone()

    (ours, grad), (truth, true_grad) = value(True), value(False)
    assert torch.allclose(ours, truth)
    assert torch.allclose(grad, true_grad)


def test_no_row_at_all():
    case = Case(n=0, d=3, v=5)
    ours, grads = case.ours()
    assert ours.shape == (0,)
    assert not any(grad.any() for grad in grads)


def test_autocast_does_not_reach_it():
    case = Case(n=30, d=16, v=400)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours, _ = case.ours(dtype=torch.float32)
    assert error(ours, case.truth(dtype=torch.float32)[0]) < 1e-5


class Precision(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes in which precision CUDA would multiply float32, at each product."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "addmm", "addmm_", "matmul", "addmv", "mv"):
            self.seen.add(getattr(torch.backends.cuda.matmul, SWITCH))
        return function(*args, **(kwargs or {}))


SWITCH, FULL, REDUCED = "allow_tf32", False, True
if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
    SWITCH, FULL, REDUCED = "fp32_precision", "ieee", "tf32"


@pytest.mark.parametrize("setting", [FULL, REDUCED])
def test_tf32_does_not_reach_it_and_stays_as_it_was(setting):
    before = getattr(torch.backends.cuda.matmul, SWITCH)
    setattr(torch.backends.cuda.matmul, SWITCH, setting)
    try:
        with Precision() as precision:
            Case(n=4, d=3, v=6).ours(dtype=torch.float32)
        assert precision.seen == {FULL}
        assert getattr(torch.backends.cuda.matmul, SWITCH) == setting
    finally:
        setattr(torch.backends.cuda.matmul, SWITCH, before)


def test_layers_of_different_classes_are_refused():
    one, other = (factored.own(Head(torch.ones(v, 2))) for v in (3, 4))
    with pytest.raises(ValueError, match="output layers of 3 and 4 classes"):
        factored.cross(one, other)
