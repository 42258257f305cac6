"""Student and peers as tensors of a GPU that is not there: what would run, where, and in what.

torch's fake tensors have a device, a dtype and a shape, and no numbers.  An operation on tensors of
two devices, or a product of two dtypes, fails as it would on a GPU.  What else is to be known is
noted for each operation, with the file that asked for it.
"""

from __future__ import annotations

import collections
import copy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fairseq
import torch
import torch.cuda.amp.common
import torch.onnx.operators
from harness import PLUGIN
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

FAIRSEQ = Path(fairseq.__file__).parent

aten = torch.ops.aten
PRODUCTS = {
    getattr(aten, name).default for name in ("mm", "addmm", "addmm_", "bmm", "baddbmm", "mv", "dot")
}
# What there is a number of only once the GPU has computed it.
WAITS = {aten._local_scalar_dense.default: "item", aten.nonzero.default: "nonzero"}


@dataclass(frozen=True)
class Product:
    """One product of matrices.

    Attributes:
        file: of the package or of fairseq that asked for it, from its root.
        dtypes: of everything that went in and came out.
        shape: of what came out.
        autocast: whether autocast was on, as an operation that it does not know sees it.
        tf32: whether torch may compute float32 products in TF32.
    """

    file: str
    dtypes: frozenset[torch.dtype]
    shape: tuple[int, ...]
    autocast: bool
    tf32: bool


@dataclass
class Seen:
    """What was noted.

    Attributes:
        products: in the order in which they were asked for.
        waits: how often a file had the host wait for the GPU, and by what.
        copies: from one device to another.
        strays: tensors of more than one number that were made on the CPU.
    """

    products: list[Product] = field(default_factory=list)
    waits: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    copies: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    strays: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)

    def of(self, *files: str) -> list[Product]:
        """Return the products that some files asked for."""
        return [product for product in self.products if product.file in files]

    def ours(self, counts: collections.Counter[tuple[str, str]]) -> dict[str, int]:
        """Return what the package alone is the cause of, by kind."""
        found: collections.Counter[str] = collections.Counter()
        for (file, kind), count in counts.items():
            if not file.startswith("fairseq/"):
                found[kind] += count
        return dict(found)


class Watch(TorchDispatchMode):
    """Notes operations, and answers those whose result depends on numbers.

    Args:
        fake: where the tensors are from.
        rows: how many places of a mask are set.
    """

    def __init__(self, fake: FakeTensorMode, rows: int) -> None:
        super().__init__()
        self.seen = Seen()
        self._fake = fake
        self._rows = rows

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        masks = _masks(func, args)
        if masks:
            self.seen.waits[_caller(), "index by a mask"] += 1
            _of_one_device([args[0], *masks])
        elif func in WAITS and args[0].device.type == "cuda":
            self.seen.waits[_caller(), WAITS[func]] += 1
        if masks and func is aten.index.Tensor:
            (mask,) = masks
            shape = (self._rows, *args[0].shape[mask.dim() :])
            with self._fake:
                return torch.empty(shape, dtype=args[0].dtype, device=args[0].device)
        if func is aten.is_set_to.default:
            return _place(args[0]) == _place(args[1])
        if func is aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if func is aten.nonzero.default:
            with self._fake:
                shape = (self._rows, args[0].dim())
                return torch.empty(shape, dtype=torch.int64, device=args[0].device)
        made = func(*args, **kwargs)
        self._note(func, args, kwargs, made)
        return made

    def _note(self, func: Any, args: Any, kwargs: dict[str, Any], made: Any) -> None:
        came, went = _tensors(made), _tensors([args, kwargs])
        if func in PRODUCTS:
            self.seen.products.append(
                Product(
                    file=_caller(),
                    dtypes=frozenset(tensor.dtype for tensor in came + went),
                    shape=tuple(came[0].shape),
                    autocast=torch.is_autocast_enabled("cuda"),
                    tf32=tf32_is_on(),
                )
            )
        devices = {tensor.device.type for tensor in went if tensor.dim() or len(went) == 1}
        for tensor in came:
            if devices and devices != {tensor.device.type}:
                kind = f"{'+'.join(sorted(devices))} to {tensor.device.type}"
                self.seen.copies[_caller(), kind] += 1
            elif tensor.device.type == "cpu" and tensor.dim():
                self.seen.strays[_caller(), str(func)] += 1


def tf32_is_on() -> bool:
    """Return whether torch may compute float32 products in TF32."""
    matmul = torch.backends.cuda.matmul
    # Newer torch refuses to read the old switch where the new one was set.
    if hasattr(matmul, "fp32_precision"):
        return matmul.fp32_precision == "tf32"
    return matmul.allow_tf32


def _masks(func: Any, args: Sequence[Any]) -> list[Tensor]:
    """Return the masks of the GPU by which an operation reads or writes."""
    indexing = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
    if func not in (*indexing, aten._index_put_impl_.default):
        return []
    return [index for index in args[1] if index is not None and index.dtype == torch.bool]


def _place(tensor: Tensor) -> tuple[object, ...]:
    """Return what tells whether two tensors are the same memory in the same way."""
    memory = tensor.untyped_storage()._cdata
    return memory, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _of_one_device(tensors: Sequence[Tensor]) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    assert len(devices) == 1, f"{_caller()} indexes across {devices}"


def _caller() -> str:
    """Return the innermost file of the package, or of fairseq, that is running."""
    frame = sys._getframe(1)
    while frame is not None:
        for root in (PLUGIN, FAIRSEQ):
            if frame.f_code.co_filename.startswith(f"{root}/"):
                return frame.f_code.co_filename.removeprefix(f"{root.parent}/")
        frame = frame.f_back
    return "elsewhere"


def faked(module: nn.Module, fake: FakeTensorMode, dtype: torch.dtype) -> nn.Module:
    """Return a copy of a module on the GPU that is not there; ties and modes are kept."""
    module = copy.deepcopy(module)
    made: dict[int, nn.Parameter] = {}
    for part in module.modules():
        for name, old in part._parameters.items():
            if old is not None:
                if id(old) not in made:
                    made[id(old)] = nn.Parameter(on_gpu(old, fake, dtype), old.requires_grad)
                part._parameters[name] = made[id(old)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = on_gpu(buffer, fake, dtype)
    # Their ids must stay theirs while others are looked up by id.
    vars(module)["kept"] = list(made.values())
    return module


def on_gpu(value: Any, fake: FakeTensorMode, dtype: torch.dtype | None = None) -> Any:
    """Return a batch, or a tensor, as it would be on the GPU."""
    if isinstance(value, dict):
        return {key: on_gpu(part, fake) for key, part in value.items()}
    if not isinstance(value, Tensor):
        return value
    keep = dtype is None or not value.is_floating_point()
    with fake:
        return torch.empty(value.shape, dtype=value.dtype if keep else dtype, device="cuda")


def backward(loss: Tensor) -> dict[Tensor, Tensor]:
    """Run a graph backward, node after node, and return the gradients by their leaves.

    torch's own engine asks for the GPU itself.
    """
    assert loss.grad_fn is not None
    waiting: collections.Counter[Any] = collections.Counter()
    found, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        for node, _ in stack.pop().next_functions:
            if node is not None:
                waiting[node] += 1
                if node not in found:
                    found.add(node)
                    stack.append(node)
    due: dict[Any, dict[int, Tensor]] = collections.defaultdict(dict)
    due[loss.grad_fn][0] = torch.ones_like(loss)
    leaves: dict[Tensor, Tensor] = {}
    stack = [loss.grad_fn]
    while stack:
        node = stack.pop()
        grads = due.pop(node, {})
        if hasattr(node, "variable"):
            if grads:
                leaves[node.variable] = grads[0]
            continue
        # A node of a function in Python is called in another way than torch's own.
        run = getattr(node, "apply", node)
        made = run(*(grads.get(i) for i in range(len(node._input_metadata)))) if grads else ()
        made = made if isinstance(made, tuple) else (made,)
        for i, (after, place) in enumerate(node.next_functions):
            if after is None:
                continue
            if i < len(made) and made[i] is not None:
                grad = _as_engine(made[i], after._input_metadata[place])
                before = due[after].get(place)
                due[after][place] = grad if before is None else before + grad
            waiting[after] -= 1
            if waiting[after] == 0:
                stack.append(after)
    return leaves


def _as_engine(grad: Tensor, due: Any) -> Tensor:
    """Return a gradient in the shape and dtype of what it belongs to, as torch's engine does."""
    assert grad.device == due.device, f"a gradient on {grad.device} for {due.device}"
    grad = grad if grad.shape == due.shape else grad.sum_to_size(due.shape)
    return grad.to(due.dtype)


@contextmanager
def gpu_that_is_not_there(rows: int) -> Iterator[tuple[FakeTensorMode, Watch]]:
    """Let torch take the fake device for a real one.

    Args:
        rows: how many places of a mask are set.
    """
    with (
        # Otherwise autocast is off where there is no GPU.
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        # fairseq's positions would need numbers of the tensor.
        patch.object(torch.onnx.operators, "shape_as_tensor", lambda tensor: list(tensor.shape)),
    ):
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        yield fake, Watch(fake, rows)
