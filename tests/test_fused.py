"""Losses by some rows at a time against fairseq's own cross-entropy and the whole logits."""

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import label_smoothed_nll_loss
from torch.nn import functional as F

from fairseq_codistill.objective import Head, Hidden, chunked, fused, fused_cross_entropy
from fairseq_codistill.objective.divergence import make_divergence

SHAPES = [(1, 1, 2), (7, 5, 13), (40, 8, 33), (17, 3, 900)]


@pytest.fixture(autouse=True)
def few_at_a_time(monkeypatch):
    monkeypatch.setattr(fused, "AT_A_TIME", 600)


def example(n, d, v, bias, dtype=torch.float64, scale=1.0):
    torch.manual_seed(n)
    hidden = torch.randn(n, d, dtype=torch.float64)
    weight = scale * torch.randn(v, d, dtype=torch.float64)
    shift = scale * torch.randn(v, dtype=torch.float64) if bias else None
    given = [t if t is None else t.to(dtype).requires_grad_() for t in (hidden, weight, shift)]
    return given, torch.randint(v, (n,))


def truth(given, target, smoothing):
    """fairseq's loss in float64 of what is given, and its gradients."""
    inputs = [t if t is None else t.detach().double().requires_grad_() for t in given]
    log_probs = F.log_softmax(F.linear(*inputs), dim=-1)
    loss, nll = label_smoothed_nll_loss(log_probs, target, smoothing, ignore_index=-100)
    loss.backward()
    return loss.detach(), nll.detach(), [None if t is None else t.grad for t in inputs]


def close(ours, true, tolerance):
    return float((ours.double() - true).norm()) <= tolerance * float(true.norm()) + 1e-30


def agrees(given, target, smoothing, tolerance, factor=1.0):
    loss, nll, grads = truth(given, target, smoothing)
    ours, plain = fused_cross_entropy(given[0], Head(*given[1:]), target, smoothing)
    assert not plain.requires_grad
    assert close(ours.detach(), loss, tolerance)
    assert close(plain, nll, tolerance)
    (factor * ours).backward()
    for tensor, true in zip(given, grads, strict=True):
        if tensor is not None:
            assert tensor.grad.dtype == tensor.dtype
            assert close(tensor.grad, factor * true, tolerance)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_cross_entropy_is_fairseqs(shape, bias, smoothing):
    given, target = example(*shape, bias)
    agrees(given, target, smoothing, 1e-12, factor=0.3)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
    ids=str,
)
def test_cross_entropy_in_other_types(dtype, tolerance):
    given, target = example(40, 8, 33, True, dtype)
    agrees(given, target, 0.1, tolerance)


def test_float16_keeps_the_gradients_of_rare_words():
    given, target = example(60, 16, 900, False, torch.float16, scale=3.0)
    _, _, (_, by_weight, _) = truth(given, target, 0.0)
    loss, _ = fused_cross_entropy(given[0], Head(given[1]), target)
    (128 * loss).backward()  # fairseq's scale of the loss in float16
    probs = F.softmax(given[0].double() @ given[1].double().T, dim=-1)
    # Below float16's least number, if nothing is done.
    rare = (probs.max(dim=0).values < 2e-7) & ~torch.isin(torch.arange(900), target)
    assert rare.sum() > 10
    assert close(given[1].grad[rare], 128 * by_weight[rare], 2e-2)


def test_float16_has_room_for_the_gradient_of_a_frequent_word(monkeypatch):
    monkeypatch.setattr(fused, "AT_A_TIME", 2**20)
    given, target = example(800, 16, 900, False, torch.float16)
    with torch.no_grad():
        given[0].add_(3)
    # In all rows: 1024 * 800 * 3 is far beyond float16.
    target.fill_(7)
    agrees(given, target, 0.0, 2e-3)


def test_cross_entropy_under_autocast_keeps_the_inputs_types():
    given, target = example(40, 8, 33, True, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        agrees(given, target, 0.0, 1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_batch_of_padding_alone(smoothing):
    given, target = example(4, 3, 5, True)
    empty = given[0][:0]
    loss, plain = fused_cross_entropy(empty, Head(*given[1:]), target[:0], smoothing)
    loss.backward()
    assert loss.item() == plain.item() == 0
    assert given[1].grad.abs().sum() == given[2].grad.abs().sum() == 0


@pytest.mark.parametrize("whole", [False, True], ids=["hidden", "logits"])
@pytest.mark.parametrize("name", ["kl", "logit-mse", "centered-logit-mse"])
@pytest.mark.parametrize("shape", SHAPES)
def test_chunked_is_the_whole(shape, name, whole):
    divergence = make_divergence(name, 2.0)
    n, d, v = shape
    (hidden, weight, bias), _ = example(n, d, v, True)
    peers = []
    for width in (d, d + 3):
        (rows, layer, shift), _ = example(n, width, v, True)
        peers.append(Hidden(rows.detach() + 1, Head(layer.detach(), shift.detach())))
    upstream = torch.rand(n, dtype=torch.float64)
    results = []
    for ours in (True, False):
        for tensor in (hidden, weight, bias):
            tensor.grad = None
        logits = F.linear(hidden, weight, bias)
        if ours:
            student = logits if whole else Hidden(hidden, Head(weight, bias))
            rows = chunked(divergence, student, peers)
        else:
            rows = sum(
                divergence(logits, F.linear(p.rows, p.head.weight, p.head.bias)) for p in peers
            )
        rows.backward(upstream)
        results.append([rows.detach(), *(t.grad for t in (hidden, weight, bias))])
    for mine, true in zip(*results, strict=True):
        assert close(mine, true, 1e-12)


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Notes the size of the largest tensor that any operation gives."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


def test_no_tensor_is_as_large_as_the_logits():
    (hidden, weight, _), target = example(64, 4, 50, False)
    head = Head(weight)
    peer = Hidden(hidden.detach() + 1, Head(weight.detach()))
    with Largest() as largest:
        loss, _ = fused_cross_entropy(hidden, head, target)
        rows = chunked(make_divergence("kl"), Hidden(hidden, head), [peer])
        (loss + rows.sum()).backward()
    assert largest.numel <= 16 * 50 < 64 * 50
