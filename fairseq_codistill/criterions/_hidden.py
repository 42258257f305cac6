"""A fairseq model's last hidden states and its output layer, where it has a plain one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fairseq.models.transformer import TransformerDecoderBase, TransformerModelBase
from torch import Tensor, nn

from fairseq_codistill.objective import Head, Hidden


def output_layer(model: Any) -> nn.Linear | None:
    """Give the layer that makes the logits, if the model can also do without it, or None."""
    # DistributedDataParallel, and what fairseq puts around it.
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    decoder = getattr(model, "decoder", None)
    layer = getattr(decoder, "output_projection", None)
    plain = (
        # transformer_align's, for one, gives no features without logits.
        getattr(type(model), "forward", None) is TransformerModelBase.forward
        and isinstance(decoder, TransformerDecoderBase)
        and type(decoder).output_layer is TransformerDecoderBase.output_layer
        and decoder.adaptive_softmax is None
    )
    return layer if plain and type(layer) is nn.Linear else None


@contextmanager
def watch(layer: nn.Linear | None) -> Iterator[list[Tensor]]:
    """Collect what goes into ``layer``: a model's forward gives its logits alone."""
    seen: list[Tensor] = []
    if layer is None:
        yield seen
        return
    handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        handle.remove()


def hidden(rows: Tensor, layer: nn.Linear) -> Hidden:
    """Give a model's output before its output layer."""
    return Hidden(rows, Head(layer.weight, layer.bias))


def of_peer(peer: nn.Module, net_input: dict[str, Any], keep: Tensor) -> Hidden | Tensor:
    """Give a peer's output on the target tokens of a batch, before its output layer if it can.

    Args:
        peer: its model.
        net_input: of a batch of fairseq's.
        keep: which target tokens count, (sentences, tokens).
    """
    layer = output_layer(peer)
    if layer is None:
        return peer(**net_input)[0][keep]
    return hidden(peer(**net_input, features_only=True)[0][keep], layer)
