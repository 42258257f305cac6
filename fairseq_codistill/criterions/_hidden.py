"""What goes into a fairseq model's output layer, where the logits are that layer's output alone.

Whether they are is seen in each forward pass, for a decoder's methods do not tell: it may scale
what its layer makes, add to it, or call the layer twice.  The logits are the layer's if the model
returns the very tensor that the layer made in its only call, and nobody has written to it since.
That depends on no number, so all workers of a group see the same, and it costs nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from fairseq.models import BaseFairseqModel, FairseqDecoder
from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch import Tensor, nn

from fairseq_codistill.codistillation import ConfigError, cuda_devices
from fairseq_codistill.objective import Head, Hidden
from fairseq_codistill.records import get_logger

logger = get_logger(__name__)

# How torch refuses to write to a tensor like the stand-in, whose elements share their memory.
_SHARED_MEMORY = "refers to a single memory location"

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
    model = bare(model)
    decoder = getattr(model, "decoder", None)
    layer = getattr(decoder, "output_projection", None)
    candidate = (
        getattr(type(model), "forward", None) is TransformerModelBase.forward
        and isinstance(decoder, TransformerDecoderBase)
        and type(decoder).output_layer is TransformerDecoderBase.output_layer
        and decoder.adaptive_softmax is None
        and type(layer) is nn.Linear
        # Somebody else has replaced it in this one layer.
        and "forward" not in vars(layer)
    )
    return layer if candidate else None


def has_usual_loss(model: Any) -> bool:
    """Whether fairseq's own methods make the loss of a model's logits and a batch."""
    model = bare(model)
    return all(
        getattr(getattr(part, name, None), "__func__", None) in functions
        for name, functions in _USUAL_LOSS.items()
        for part in (model, getattr(model, "decoder", None))
        if part is model or name != "get_targets"
    )


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
    if len(calls) != 1 or len(returned) != 1 or first(returned[0]) is not calls[0].made:
        return Seen(output)
    return Seen(output, calls[0].hidden if calls[0].unchanged else None)


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


def hidden(rows: Tensor, layer: nn.Linear) -> Hidden:
    """Return a model's output before its output layer."""
    return Hidden(rows, Head(layer.weight, layer.bias))


class PeerOutputs:
    """Peers' and teachers' outputs, before their output layers where the logits are theirs alone.

    A model that it has not seen before is run once more, to find out.
    """

    def __init__(self) -> None:
        self._plain: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(
        self, peer: nn.Module, net_input: dict[str, Any], target: Tensor, keep: Tensor
    ) -> Hidden | Tensor:
        """Return a peer's output on the target tokens that count.

        Args:
            peer: its model.
            net_input: of a batch of fairseq's.
            target: of the same batch, (sentences, tokens).
            keep: which target tokens count, (sentences, tokens).
        """
        layer = output_layer(peer)
        if layer is not None and self._is_plain(peer, net_input, layer):
            seen = run(peer, net_input, layer, logits=False)
            if seen.hidden is not None:
                return hidden(seen.hidden[keep], layer)
            self._note(peer, plain=False)
        return logits_of(peer, peer(**net_input), target)[keep]

    def _is_plain(self, peer: nn.Module, net_input: dict[str, Any], layer: nn.Linear) -> bool:
        if peer not in self._plain:
            # A resumed run looks again: the random numbers of later passes must not depend on it.
            with torch.random.fork_rng(devices=cuda_devices()):
                seen = run(peer, net_input, layer, logits=False)
            self._note(peer, plain=seen.hidden is not None)
        return self._plain[peer]

    def _note(self, peer: nn.Module, *, plain: bool) -> None:
        self._plain[peer] = plain
        if not plain:
            logger.info(
                "the logits of a peer or teacher (%s) are not its output layer's alone; it is "
                "compared in the naive form",
                type(peer).__name__,
            )


@dataclass(frozen=True)
class _Call:
    """A call of an output layer, and which versions its tensors had then."""

    hidden: Tensor
    made: Tensor
    versions: tuple[int, int]

    @property
    def unchanged(self) -> bool:
        """Whether nobody has written to either tensor since."""
        return self.versions == (self.hidden._version, self.made._version)


@contextmanager
def _watched(layer: nn.Linear, logits: bool) -> Iterator[list[_Call]]:
    """Note each call of a layer; in place of logits it may return a stand-in."""
    calls: list[_Call] = []
    usual = layer.forward

    def forward(input: Tensor) -> Tensor:
        made = usual(input) if logits else input.new_zeros(()).expand(*input.shape[:-1], classes)
        calls.append(_Call(input, made, (input._version, made._version)))
        return made

    classes = layer.out_features
    # Not a hook: what other hooks do to its output is seen too.
    vars(layer)["forward"] = forward
    try:
        yield calls
    finally:
        del vars(layer)["forward"]
