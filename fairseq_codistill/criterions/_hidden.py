"""What goes into a fairseq model's output layer, where the logits are that layer's output alone.

A decoder's methods do not tell whether they are: it may scale what its layer makes, add to it, or
call the layer twice.  So each forward pass is watched.  The logits are the layer's if the model
returns the very tensor that the layer made in its only call, and neither that tensor nor the
layer has changed since.  This depends on the model's code and on no number, so all workers of a
group see the same, and it costs nothing.  Writes that torch does not count, through ``.data`` for
one, are found by comparing numbers: once a model, in ``confirmed``.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor, nn
from torch.nn import functional as F

from fairseq_codistill.codistillation import ConfigError, cuda_devices
from fairseq_codistill.objective import Head, Hidden
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# The one number in all elements of a stand-in: in the range of logits, exact in half precision.
STAND_IN = 0.1171875

# How torch refuses to write to a tensor like the stand-in, whose elements share their memory.
_SHARED_MEMORY = "refers to a single memory location"

# How far two results of one product may be apart, in parts of the largest; in half precision.
_ROUNDING = 0.05

# The methods that make a loss of logits and a batch, and fairseq's own implementations of them.
_USUAL_LOSS = {
    "get_normalized_probs": (
        BaseFairseqModel.get_normalized_probs,
        TransformerModelBase.get_normalized_probs,
        FairseqDecoder.get_normalized_probs,
    ),
    "get_normalized_probs_scriptable": (
        BaseFairseqModel.get_normalized_probs_scriptable,
        FairseqDecoder.get_normalized_probs_scriptable,
    ),
    "get_targets": (BaseFairseqModel.get_targets,),
}


@dataclass(frozen=True)
class Seen:
    """What was seen of one forward pass.

    Attributes:
        output: what the model returned.
        hidden: what went into its output layer, (sentences, tokens, d), or None if the logits are
            not that layer's output alone.
    """

    output: Any
    hidden: Tensor | None = None


def bare(model: Any) -> Any:
    """Return a model without DistributedDataParallel and what fairseq puts around it."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model


def output_layer(model: Any) -> nn.Linear | None:
    """Return the layer that the logits may be the output of, or None if there is none to watch.

    Whether they are its output alone, ``run`` tells.
    """
    decoder = getattr(bare(model), "decoder", None)
    layer = getattr(decoder, "output_projection", None)
    candidate = (
        type(layer) is nn.Linear
        and getattr(decoder, "adaptive_softmax", None) is None
        # A weight that is computed anew for each call, or by a hook, holds for that call alone.
        and isinstance(layer._parameters.get("weight"), nn.Parameter)
        and not layer._forward_pre_hooks
        # Somebody else has replaced it in this one layer.
        and "forward" not in vars(layer)
    )
    return layer if candidate else None


def has_usual_loss(model: Any) -> bool:
    """Return whether fairseq's own methods make the loss of a model's logits and a batch."""
    model = bare(model)
    for part in (model, getattr(model, "decoder", None)):
        for name, usual in _USUAL_LOSS.items():
            method = getattr(part, name, None)
            if method is not None and getattr(method, "__func__", None) not in usual:
                return False
    return True


def run(
    model: nn.Module, net_input: dict[str, Any], layer: nn.Linear | None, *, logits: bool = True
) -> Seen:
    """Run a model, and see what goes into its output layer.

    Args:
        model: may be wrapped for data parallelism.
        net_input: of a batch of fairseq's.
        layer: from ``output_layer``; None to see nothing.
        logits: make them.  Otherwise the layer returns a stand-in of their shape that takes no
            memory and means nothing, and so does the model.
    """
    if layer is None:
        return Seen(model(**net_input))
    returned: list[Any] = []
    # DistributedDataParallel may return copies.
    handle = bare(model).register_forward_hook(lambda _, inputs, output: returned.append(output))
    with _watched(layer, logits) as calls:
        try:
            output = model(**net_input)
        except RuntimeError as error:
            if logits or not calls or _SHARED_MEMORY not in str(error):
                raise
            # It writes to its logits.
            return Seen(None)
        finally:
            handle.remove()
    if len(calls) != 1 or len(returned) != 1:
        return Seen(output)
    (call,) = calls
    plain = first(returned[0]) is call.made and call.unchanged(layer)
    return Seen(output, call.hidden if plain else None)


def confirmed(seen: Seen, layer: nn.Linear, *, logits: bool) -> bool:
    """Return whether the numbers bear out that the logits are the layer's output alone.

    A GPU is waited for.

    Args:
        seen: from ``run``, with hidden states.
        layer: the same as there.
        logits: the same as there.
    """
    made, rows = first(seen.output), seen.hidden
    assert rows is not None
    if made.numel() == 0:
        return True
    with torch.no_grad():
        one = (0,) * (made.dim() - 1)
        if not logits:
            # All elements are one number: who writes to any, writes to this one.
            return bool((made[(*one, 0)] == STAND_IN).item())
        found, due = made[one].float(), F.linear(rows[one], layer.weight, layer.bias).float()
        near = (found - due).abs() <= _ROUNDING * due.abs().max()
        # An overflow tells nothing of the model.
        return bool((near.all() | ~due.isfinite().all()).item())


def first(output: Any) -> Any:
    """Return the first part of what a model returned, where fairseq has the logits."""
    return output[0] if isinstance(output, tuple | list) and output else None


def logits_of(model: nn.Module, output: Any, target: Tensor) -> Tensor:
    """Return the logits in what a model returned.

    Raises:
        ConfigError: if they are not there, or are not those of the target's tokens.
    """
    logits = first(output)
    if not isinstance(logits, Tensor) or logits.shape[:-1] != target.shape:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(output).__name__
        raise ConfigError(
            f"the model ({type(bare(model)).__name__}) returns {found} for {tuple(target.shape)} "
            "target tokens, and not first of all their logits, (sentences, tokens, words); choose "
            "another --arch"
        )
    return logits


def hidden(rows: Tensor, layer: nn.Linear, logits: Tensor | None = None) -> Hidden:
    """Return a model's output before its output layer, with the logits where they are to hand."""
    flat = None if logits is None else logits.flatten(0, -2)
    return Hidden(rows, Head(layer.weight, layer.bias), flat)


def _rows(of_tokens: Tensor, places: tuple[Tensor, ...] | None) -> Tensor:
    """Return what there is of the tokens that count, a row each."""
    return of_tokens.flatten(0, 1) if places is None else of_tokens[places]


class PeerOutputs:
    """Peers' and teachers' outputs, before their output layers where the logits are theirs alone.

    A model that it has not seen before is run once more, to find out.
    """

    def __init__(self) -> None:
        self._plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(
        self,
        peer: nn.Module,
        net_input: dict[str, Any],
        target: Tensor,
        places: tuple[Tensor, ...] | None = None,
    ) -> Hidden | Tensor:
        """Return a peer's output on the target tokens that count, one row each.

        Args:
            peer: its model.
            net_input: of a batch of fairseq's.
            target: of the same batch, (sentences, tokens).
            places: of the target tokens that count, one tensor a dimension; all unless given.
        """
        layer = output_layer(peer)
        if layer is None or not self._is_plain(peer, net_input, layer):
            return _rows(logits_of(peer, peer(**net_input), target), places)
        seen = run(peer, net_input, layer, logits=False)
        if seen.hidden is None:
            # Its code goes another way with this batch.
            return _rows(logits_of(peer, peer(**net_input), target), places)
        return hidden(_rows(seen.hidden, places), layer)

    def _is_plain(self, peer: nn.Module, net_input: dict[str, Any], layer: nn.Linear) -> bool:
        if peer not in self._plain:
            # A resumed run looks again: the random numbers of later passes must not depend on it.
            with torch.random.fork_rng(devices=cuda_devices()):
                seen = run(peer, net_input, layer, logits=False)
            plain = seen.hidden is not None and confirmed(seen, layer, logits=False)
            self._plain[peer] = plain
            if not plain:
                logger.info(
                    "the logits of a peer or teacher (%s) are not its output layer's alone; it is "
                    "compared in the naive form",
                    type(peer).__name__,
                )
        return self._plain[peer]


@dataclass(frozen=True)
class _Call:
    """A call of an output layer, and what was the case then.

    Attributes:
        hidden: what went in.
        made: what came out.
        weight: the layer's, as another name of the same memory.
        state: from ``_state``.
    """

    hidden: Tensor
    made: Tensor
    weight: Tensor
    state: tuple[object, ...]

    def unchanged(self, layer: nn.Linear) -> bool:
        """Return whether nobody has written to the tensors, or changed the layer, since."""
        same = self.state == _state(layer, self.hidden, self.made)
        return same and layer.weight.is_set_to(self.weight)


def _state(layer: nn.Linear, hidden: Tensor, made: Tensor) -> tuple[object, ...]:
    """Return what tells a change: the tensors, how often they were written to, gradients or not."""
    tensors = [tensor for tensor in (layer.weight, layer.bias, hidden, made) if tensor is not None]
    # In inference mode nobody counts, and a peer is not trained.
    written = (0 if tensor.is_inference() else tensor._version for tensor in tensors)
    return torch.is_grad_enabled(), *map(id, tensors), *written


@contextmanager
def _watched(layer: nn.Linear, logits: bool) -> Iterator[list[_Call]]:
    """Note each call of a layer; in place of logits it may return a stand-in."""
    calls: list[_Call] = []
    usual, classes = layer.forward, layer.out_features

    def forward(input: Tensor) -> Tensor:
        if logits:
            made = usual(input)
        else:
            made = input.new_full((), STAND_IN).expand(*input.shape[:-1], classes)
        calls.append(_Call(input, made, layer.weight.detach(), _state(layer, input, made)))
        return made

    # Not a hook: what other hooks do to its output is seen too.
    vars(layer)["forward"] = forward
    try:
        yield calls
    finally:
        del vars(layer)["forward"]
