"""Checks within one process: copies to and from a GPU, and what is computed there.

Each takes a device and sizes, so that the tests run it on the CPU in small.
"""

import contextlib
import hashlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import CodistillationConfig
from fairseq_codistill.codistillation.comparison import Comparison
from fairseq_codistill.codistillation.peer import Peer
from fairseq_codistill.exchange import CopyOut, Draft, Exchange, Reader, Store, copy_out
from fairseq_codistill.objective import Head, Hidden, fused_cross_entropy, make_divergence

# The models and batches of the benchmarks are those of these checks too.
sys.path.append(str(Path(__file__).parent.parent / "benchmarks"))

VOCABULARY = hashlib.sha256(b"words").hexdigest()


def queue(device: torch.device, cycles: int = 20_000_000) -> None:
    """Keep the current stream of a GPU busy for some 10 ms: what follows is done only then."""
    if device.type == "cuda":
        torch.cuda._sleep(cycles)


def finish(device: torch.device) -> None:
    """Wait for all that a GPU has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# --- copies of the weights to the CPU --------------------------------------------------------


class Model:
    """The state of a model: matrices, of which two names are one, a number and a counter.

    Args:
        device: where it is.
        layers: how many matrices.
        width: of each.
    """

    def __init__(self, device: torch.device, layers: int, width: int) -> None:
        generator = torch.Generator().manual_seed(1)
        self.state = {
            f"{number:02d}.weight": torch.randn(width, width, generator=generator).to(device)
            for number in range(layers)
        }
        self.state["99.tied"] = self.state["00.weight"]
        self.state["98.scale"] = torch.tensor(1.5, device=device)
        self.state["97.steps"] = torch.tensor(7, device=device)

    @property
    def weights(self) -> list[Tensor]:
        """Each once."""
        return [tensor for name, tensor in self.state.items() if name.endswith(".weight")]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(weight.numel() * weight.element_size() for weight in self.weights)

    def update(self) -> None:
        """Change all weights in place, as an optimizer does."""
        for weight in self.weights:
            weight.mul_(-0.75).add_(0.125)


def copies(
    device: torch.device, layers: int = 32, width: int = 1024, rounds: int = 50
) -> dict[str, Any]:
    """Copy weights out while the next update changes them and others want the memory.

    The oracle is a clone on the device that is held until the end, and copied by ``Tensor.cpu``.
    """
    model = Model(device, layers, width)
    copiers = {dtype: CopyOut(dtype) for dtype in (torch.bfloat16, torch.float32, torch.float16)}
    wrong = 0
    with _limited(device, model.size * 5):
        for number in range(rounds):
            dtype = list(copiers)[number % len(copiers)]
            wrong += _copy_once(device, model, copiers[dtype], dtype)
    assert wrong == 0, f"{wrong} of {rounds} copies differ from a synchronous one"
    found: dict[str, Any] = {"rounds": rounds, "bytes": model.size}
    if device.type == "cuda":
        found["copies without room for a second one on the device"] = _without_room(device, model)
        with _without_record_stream():
            fault = sum(
                _copy_once(device, model, copiers[torch.bfloat16], torch.bfloat16) for _ in range(5)
            )
        # To be seen: whether this check would notice.  It says nothing of the product.
        found["of 5 copies without record_stream differ"] = fault
    says = f"{rounds} copies of {model.size >> 20} MiB equal synchronous ones"
    return found | {"says": says}


def _copy_once(device: torch.device, model: Model, copier: CopyOut, dtype: torch.dtype) -> int:
    """Return 1 if the copy differs from a synchronous one, otherwise 0."""
    queue(device)
    model.update()
    truth = {name: tensor.clone() for name, tensor in model.state.items()}
    side = getattr(copier, "_stream", None)
    if side is not None:
        # The transfer comes late, when all below has been queued, or done.
        with torch.cuda.stream(side):
            queue(device, 60_000_000)
    tensors, aliases, ready = copier(model.state)
    _take_memory(device, model, dtype)
    model.update()
    ready()
    assert aliases == {"99.tied": "00.weight"}, aliases
    assert tensors.keys() == model.state.keys() - {"99.tied"}, sorted(tensors)
    for name, tensor in tensors.items():
        assert tensor.device.type == "cpu", name
        assert tensor.is_pinned() == (device.type == "cuda"), name
        true = truth[name].cpu()
        true = true.to(dtype) if true.is_floating_point() else true
        if not torch.equal(tensor, true):
            return 1
    return 0


def _take_memory(device: torch.device, model: Model, dtype: torch.dtype) -> None:
    """Take blocks of the size of the copies, and write to them, until there are none or enough."""
    taken = []
    with contextlib.suppress(torch.OutOfMemoryError):
        for weight in model.weights * 2:
            taken.append(torch.full_like(weight, float("nan"), dtype=dtype))


@contextlib.contextmanager
def _limited(device: torch.device, more: int) -> Iterator[None]:
    """Let this process have so many bytes of a GPU beyond those that it has."""
    if device.type != "cuda":
        yield
        return
    finish(device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    room = (torch.cuda.memory_reserved(device) + more) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, room), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def _without_room(device: torch.device, model: Model) -> int:
    """Copy where the device has no room for a second copy; return how often that was so."""
    copier = CopyOut(torch.bfloat16)
    finish(device)
    truth = {name: tensor.cpu() for name, tensor in model.state.items()}
    before = torch.cuda.memory_stats(device).get("num_ooms", 0)
    with _limited(device, model.size // 8):
        for _ in range(2):
            tensors, _, ready = copier(model.state)
            model.update()
            ready()
            for name, tensor in tensors.items():
                true = truth[name]
                true = true.to(torch.bfloat16) if true.is_floating_point() else true
                assert torch.equal(tensor, true), f"{name}: a copy without room differs"
            truth = {name: tensor.cpu() for name, tensor in model.state.items()}
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0) - before)


@contextlib.contextmanager
def _without_record_stream() -> Iterator[None]:
    """Make a deliberate fault: staged copies give their memory back at once."""
    usual = torch.Tensor.record_stream
    torch.Tensor.record_stream = lambda self, stream: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.record_stream = usual  # type: ignore[method-assign]


# --- a peer's snapshots, read in the background ----------------------------------------------


def background(
    device: torch.device,
    layers: int = 8,
    width: int = 1024,
    rounds: int = 12,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Any]:
    """Read a peer's snapshots on a thread, and take them over while the peer computes."""
    like = torch.empty(0, device=device, dtype=dtype)

    def build(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> nn.Module:
        parts = [nn.Linear(width, width, bias=False) for _ in range(layers)]
        return nn.Sequential(*parts).to(device)

    peer = Peer(1, build, like)
    batch = torch.randn(64, width, generator=torch.Generator().manual_seed(1)).to(device, dtype)
    addresses: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        exchange = Exchange(Store(folder), "default")
        states = [_publish(exchange, build, number, layers, width) for number in range(rounds)]
        reader = Reader(exchange, seed=1, vocabulary=VOCABULARY, prepare=peer.prepare)
        following = _Reading(reader, 0)
        for number, state in enumerate(states):
            snapshot = following.result()
            pinned = {tensor.is_pinned() for tensor in snapshot.tensors.values()}
            assert pinned == {device.type == "cuda"}, f"pinned memory: {pinned}"
            assert {tensor.dtype for tensor in snapshot.tensors.values()} == {dtype}
            addresses += [tensor.data_ptr() for tensor in snapshot.tensors.values()]
            queue(device)
            peer.load(snapshot)
            # From here on the thread may have the memory that is still being sent.
            del snapshot
            following = _Reading(reader, number + 1) if number + 1 < rounds else following
            with torch.no_grad():
                output = peer.module(batch)
            following.wait()
            finish(device)
            for name, tensor in peer.module.state_dict().items():
                assert tensor.device.type == device.type, name
                true = state[name].to(dtype)
                assert torch.equal(tensor.cpu(), true), f"{name} of snapshot {number} is another's"
            with torch.no_grad():
                assert torch.equal(output, peer.module(batch)), "it computed with other weights"
    different = len(set(addresses))
    assert different < len(addresses), "no memory was used again"
    says = f"{rounds} snapshots read beside a busy device; {different} blocks for {len(addresses)}"
    return {"says": says, "blocks": different, "tensors": len(addresses)}


def _publish(
    exchange: Exchange, build: Callable[..., nn.Module], number: int, layers: int, width: int
) -> dict[str, Tensor]:
    """Publish random weights as those of update ``number``; return them."""
    generator = torch.Generator().manual_seed(100 + number)
    names = [f"{layer}.weight" for layer in range(layers)]
    scale = width**-0.5
    state = {name: scale * torch.randn(width, width, generator=generator) for name in names}
    tensors, aliases = copy_out(state, torch.bfloat16)
    assert exchange.publish(
        Draft(
            group=1,
            seed=2,
            update=number,
            epoch=1,
            dtype="bfloat16",
            vocabulary=VOCABULARY,
            model={"layers": layers},
            tensors=tensors,
            aliases=aliases,
        )
    )
    return {name: tensor.clone() for name, tensor in tensors.items()}


class _Reading:
    """A snapshot that is being read on a thread of its own."""

    def __init__(self, reader: Reader, update: int) -> None:
        self._found: list[Any] = []
        self._thread = threading.Thread(target=self._read, args=(reader, update), daemon=True)
        self._thread.start()

    def _read(self, reader: Reader, update: int) -> None:
        try:
            self._found.append(reader.read(1, update))
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            self._found.append(error)

    def wait(self) -> None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive(), "a snapshot was not read within 60 s"

    def result(self) -> Any:
        self.wait()
        (found,) = self._found
        self._found = []
        if isinstance(found, Exception):
            raise found
        return found


# --- loss and gradients ----------------------------------------------------------------------

# What may be off, relative to float64 of the same inputs: the value, and the gradients.
# By kind: the factored form; all forms that make logits; those with TF32 switched on.
LIMITS = {
    "factored": {
        "float32": (5e-5, 1e-4),
        "float16": (5e-5, 1e-3),
        "bfloat16": (5e-5, 5e-3),
        "amp float16": (5e-5, 1e-4),
        "amp bfloat16": (5e-5, 1e-4),
    },
    # Under autocast the inputs are rounded to its dtype first.
    "joint": {
        "float32": (5e-5, 1e-4),
        "float16": (1e-4, 2e-3),
        "bfloat16": (2e-4, 5e-3),
        "amp float16": (5e-3, 2e-2),
        "amp bfloat16": (3e-2, 5e-2),
    },
    "logits": {
        "float32": (5e-5, 1e-4),
        "float16": (5e-3, 2e-2),
        "bfloat16": (3e-2, 5e-2),
        "amp float16": (5e-3, 2e-2),
        "amp bfloat16": (3e-2, 5e-2),
    },
}
DIVERGENCES = ("logit-mse", "centered-logit-mse", "kl")
FORMS = ("naive", "factored", "joint", "chunked")
# fairseq's first scale of the loss in float16.
SCALE = 128.0


@contextlib.contextmanager
def tf32(api: str) -> Iterator[bool]:
    """Switch TF32 on by one of torch's ways; yield whether this torch has it."""
    matmul: Any = torch.backends.cuda.matmul
    backends: Any = torch.backends
    new = hasattr(matmul, "fp32_precision")
    on: dict[str, Callable[[], None]] = {
        "allow_tf32": lambda: setattr(matmul, "allow_tf32", True),
        "set_float32_matmul_precision": lambda: torch.set_float32_matmul_precision("high"),
    }
    if new:
        on["matmul.fp32_precision"] = lambda: setattr(matmul, "fp32_precision", "tf32")
        on["backends.fp32_precision"] = lambda: setattr(backends, "fp32_precision", "tf32")
    if api not in on:
        yield False
        return
    on[api]()
    try:
        yield True
    finally:
        if new:
            # First what the old names refuse to read beside.
            backends.fp32_precision = "none"
            matmul.fp32_precision = "none"
        torch.set_float32_matmul_precision("highest")
        matmul.allow_tf32 = False
        if new:
            matmul.fp32_precision = "none"


TF32_APIS = (
    *("allow_tf32", "set_float32_matmul_precision"),
    *("matmul.fp32_precision", "backends.fp32_precision"),
)


class Outputs:
    """A student's and a peer's last hidden states and output layers, as one dtype has them."""

    def __init__(
        self, device: torch.device, rows: int, width: int, classes: int, dtype: torch.dtype
    ) -> None:
        generator = torch.Generator(device).manual_seed(1)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return scale * torch.randn(*shape, generator=generator, device=device)

        hidden, weight = normal(rows, width), normal(classes, width, scale=width**-0.5)
        # A peer is some way off, as trained groups are.
        others = hidden + 0.3 * normal(rows, width)
        layer = weight + 0.3 * normal(classes, width, scale=width**-0.5)
        self.hidden, self.weight = hidden.to(dtype), weight.to(dtype)
        self.peer = Hidden(others.to(dtype), Head(layer.to(dtype)))
        self.target = torch.randint(classes, (rows,), generator=generator, device=device)

    def truth(self, what: str) -> list[Tensor]:
        """Return the value and both gradients in float64, made by some rows at a time."""
        hidden = self.hidden.double().requires_grad_()
        weight = self.weight.double().requires_grad_()
        layer = self.peer.head.weight.double()
        values = []
        for start in range(0, len(hidden), 512):
            rows = slice(start, start + 512)
            logits = hidden[rows] @ weight.T
            if what == "cross-entropy":
                value = F.cross_entropy(logits, self.target[rows], reduction="sum")
            else:
                other = self.peer.rows[rows].double() @ layer.T
                value = make_divergence(what)(logits, other).sum()
            value.backward()
            values.append(value.detach())
        assert hidden.grad is not None
        assert weight.grad is not None
        return [torch.stack(values).sum(), hidden.grad, weight.grad]

    def ours(self, what: str, form: str, scale: float, amp: torch.dtype | None) -> list[Tensor]:
        """Return the same by one of the product's forms."""
        hidden = self.hidden.clone().requires_grad_()
        weight = self.weight.clone().requires_grad_()
        kind = hidden.device.type
        with torch.autocast(kind, amp or torch.bfloat16, enabled=amp is not None):
            if what != "cross-entropy":
                config = CodistillationConfig(codistill_divergence=what, codistill_head=form)
                peer: Any = SimpleNamespace(update=1)
                rows = Comparison(config)(
                    Hidden(hidden, Head(weight)), [(_Hashable(peer), self.peer)]
                )
                assert rows is not None
                value = rows.sum()
            elif form == "fused":
                value, _ = fused_cross_entropy(hidden, Head(weight), self.target)
            else:
                logits = F.linear(hidden, weight)
                log_probs = F.log_softmax(logits, dim=-1, dtype=torch.float32)
                value = F.nll_loss(log_probs, self.target, reduction="sum")
        assert value.device.type == kind, value.device
        assert value.dtype == torch.float32, value.dtype
        (value * scale).backward()
        found = [value.detach()]
        for tensor in (hidden, weight):
            assert tensor.grad is not None
            assert tensor.grad.dtype == tensor.dtype
            assert tensor.grad.device == tensor.device
            found.append(tensor.grad.double() / scale)
        return found


class _Hashable:
    """Who an output is from, as far as a comparison asks."""

    def __init__(self, peer: SimpleNamespace) -> None:
        self.update = peer.update


def precisions(only: Sequence[str] | None = None) -> dict[str, tuple[torch.dtype, Any]]:
    """Return by name what the tensors are in, and what autocast computes in."""
    every = {
        "float32": (torch.float32, None),
        "float16": (torch.float16, None),
        "bfloat16": (torch.bfloat16, None),
        "amp float16": (torch.float32, torch.float16),
        "amp bfloat16": (torch.float32, torch.bfloat16),
    }
    return {name: every[name] for name in only or every}


def head(
    device: torch.device,
    rows: int = 3584,
    width: int = 1024,
    classes: int = 32000,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Compare the loss and its gradients, in each form and precision, with float64."""
    off: dict[str, list[float]] = {}
    bad: list[str] = []
    truths: dict[tuple[torch.dtype, str], list[Tensor]] = {}

    def compare(name: str, what: str, form: str, label: str, limits: tuple[float, float]) -> None:
        dtype, amp = precisions()[name]
        outputs = Outputs(device, rows, width, classes, dtype)
        if (dtype, what) not in truths:
            truths[dtype, what] = outputs.truth(what)
        scale = SCALE if torch.float16 in (dtype, amp) else 1.0
        found = outputs.ours(what, form, scale, amp)
        errors = [_off(a, b) for a, b in zip(found, truths[dtype, what], strict=True)]
        off[label] = errors
        # Not "above": NaN is bad too.
        if not (errors[0] <= limits[0] and max(errors[1:]) <= limits[1]):
            bad.append(f"{label}: {errors[0]:.1e}, gradients {max(errors[1:]):.1e}")

    for name in precisions(only):
        for what, form in _forms():
            kind = form if form in LIMITS else "logits"
            compare(name, what, form, f"{name}, {what}, {form}", LIMITS[kind][name])
        torch.cuda.empty_cache()
    for api in TF32_APIS:
        with tf32(api) as there:
            if not there:
                continue
            for what in ("logit-mse", "centered-logit-mse"):
                label = f"TF32 by {api}, {what}, factored"
                compare("float32", what, "factored", label, LIMITS["factored"]["float32"])
            # For comparison: what makes logits has what the user asked for.
            label = f"TF32 by {api}, logit-mse, naive"
            compare("float32", "logit-mse", "naive", label, (1e-2, 3e-2))
    assert not bad, f"{len(bad)} of {len(off)} are off by too much: {'; '.join(bad)}"
    worst = max(error for label, errors in off.items() if "factored" in label for error in errors)
    says = f"{len(off)} forms agree with float64; factored is off by {worst:.0e} at most"
    return {"says": says, "off": off}


def _forms() -> list[tuple[str, str]]:
    """Return what is computed, and in which form."""
    forms = [(what, form) for what in DIVERGENCES for form in FORMS]
    for what, form in (("kl", "factored"), ("kl", "joint"), ("centered-logit-mse", "joint")):
        forms.remove((what, form))
    return [*forms, ("cross-entropy", "fused"), ("cross-entropy", "plain")]


def _off(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).norm() / true.norm())


# --- a student and its peers -----------------------------------------------------------------


def dropout(
    device: torch.device, size: str = "tiny", classes: int = 10000, tokens: int = 2000
) -> dict[str, Any]:
    """Compare the NLL of a student that drops out with and without a peer beside it."""
    import steps

    compared = 0
    with steps.plain(size, classes, device) as plain:
        sample = steps.batch(plain, tokens, classes, device)
        for flags in ("", "--codistill-head factored", "--codistill-fused-ce"):
            fused = "--codistill-fused-ce" if "fused" in flags else ""
            with steps.codistilled(plain, tokens, fused, groups=1) as alone:
                truth = _nlls(alone, sample, device)
            assert len(set(truth[0])) == len(truth[0]), "it does not drop out"
            for peer_dropout in (False, True):
                with steps.codistilled(plain, tokens, flags, peer_dropout=peer_dropout) as ours:
                    found = _nlls(ours, sample, device)
                    for parameter in ours.codistillation.peers[0].module.parameters():
                        assert parameter.device.type == device.type, parameter.device
                for a, b in zip(found[0], truth[0], strict=True):
                    assert abs(a - b) <= 1e-6 * abs(b), (
                        f"NLL {found[0]} with a peer ({flags}), {truth[0]} without"
                    )
                assert torch.equal(found[1], truth[1]), f"the random state differs ({flags})"
                compared += 1
    return {"says": f"the NLLs of 3 batches are the same with a peer, in {compared} ways"}


def _nlls(side: Any, sample: dict[str, Any], device: torch.device) -> tuple[list[float], Tensor]:
    """Return the NLL of a batch, three times, and the state of the random numbers after that."""
    torch.manual_seed(5)
    side.at_boundary()
    found = []
    for _ in range(3):
        loss, _, log = side.criterion(side.model, sample)
        loss.backward()
        found.append(float(log["nll_loss"]))
        if side.codistillation is not None:
            assert log["codistill_live"] == 1, "the peer was not asked"
    state = torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()
    return found, state


def sick(
    device: torch.device,
    size: str = "tiny",
    classes: int = 10000,
    tokens: int = 2000,
    dtype: torch.dtype = torch.float16,
) -> dict[str, Any]:
    """Train beside a peer that diverges, and then one whose numbers are too large for float16."""
    import steps

    with (
        steps.plain(size, classes, device, dtype) as plain,
        steps.codistilled(plain, tokens) as ours,
    ):
        sample = steps.batch(plain, tokens, classes, device)
        sound = {name: tensor.clone() for name, tensor in plain.model.state_dict().items()}
        folder = Path(ours.cfg.task.codistill_dir)
        peer = ours.codistillation.peers[0]

        def meet(update: int) -> int:
            """Wait until the peer is of that update; return whether a batch has a peer then."""
            _until(ours, lambda: peer.update == update, f"update {update} of the peer was not read")
            loss, _, log = ours.criterion(ours.model, sample)
            assert bool(torch.isfinite(loss)), f"the loss is {float(loss)}"
            loss.backward()
            for name, parameter in ours.model.named_parameters():
                if parameter.grad is not None:
                    assert bool(torch.isfinite(parameter.grad).all()), f"gradient of {name}"
            # The verdict is at the next boundary.
            ours.at_boundary()
            return int(log["codistill_live"])

        assert meet(steps.UPDATE - 10) == 1, "a sound peer was left out"
        with torch.no_grad():
            for tensor in plain.model.parameters():
                tensor.mul_(8)
        plain.publish(folder, 1, update=steps.UPDATE - 9)
        assert meet(steps.UPDATE - 9) == 0, "a peer that has diverged was learnt from"
        assert ours.codistillation.changes["rejected"] == 1, ours.codistillation.changes
        rejected = ["diverged"]
        if dtype == torch.float16:
            # Finite in float32, in which it travels.
            plain.model.float()
            name, parameter = next(iter(plain.model.named_parameters()))
            with torch.no_grad():
                parameter.fill_(1e5)
            plain.publish(folder, 1, update=steps.UPDATE - 8)
            rejections = ours.codistillation.changes["rejected"]
            _until(
                ours,
                lambda: ours.codistillation.changes["rejected"] > rejections,
                "numbers too large for float16 were not rejected",
            )
            assert peer.update == steps.UPDATE - 9
            rejected.append("too large")
        plain.model.load_state_dict(sound)
        plain.publish(folder, 1, update=steps.UPDATE - 7)
        assert meet(steps.UPDATE - 7) == 1, "a peer that is sound again was left out"
    return {"says": f"left out and back again: {', '.join(rejected)}"}


def _until(side: Any, condition: Callable[[], bool], why: str, seconds: float = 40) -> None:
    """Stand at boundaries until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{why} within {seconds:g} s"
        side.at_boundary()
        time.sleep(0.02)


# --- devices -----------------------------------------------------------------------------------


def devices(device: torch.device) -> dict[str, Any]:
    """Compare torch's count of GPUs with what launch finds and gives to groups."""
    import os

    from fairseq_codistill.launch.devices import check, find_devices

    program = [sys.executable, "-m", "fairseq_cli.train"]
    count = torch.cuda.device_count()
    environ = dict(os.environ)
    found = find_devices(environ, program, cpu=False, groups=max(1, count), workers=None)
    names = [name for group in found.gpus for name in group]
    assert len(names) == count, f"torch counts {count}, and launch finds {names} ({found.why})"
    notes = check(found, program, environ)
    assert not notes, notes
    says = f"{count} each: {found}"
    if device.type == "cuda":
        shared = environ | {"CUDA_VISIBLE_DEVICES": f"{names[0]},{names[0]}"}
        both = find_devices(shared, program, cpu=False, groups=2, workers=None)
        assert both.gpus == ((names[0],), (names[0],)), both.gpus
        notes = check(both, program, shared)
        assert not notes, notes
        says += "; two groups can share the first"
    return {"says": says, "names": names}
