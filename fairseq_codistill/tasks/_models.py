"""A fairseq model's configuration as plain JSON for the manifest, and models built from it."""

import argparse
import inspect
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fairseq.models.transformer import (
    TransformerDecoder,
    TransformerDecoderBase,
    TransformerModelBase,
)
from fairseq.modules import MultiheadAttention
from fairseq.modules.dynamic_convolution import DynamicConv_scripatable
from fairseq.modules.transformer_layer import TransformerDecoderLayerBase
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from fairseq_codistill.tasks import _peer_config

# Parts of a model that a snapshot may ask for if its tensors are not known.
MOST_PARTS = 20_000


def clear_unused(model: nn.Module) -> None:
    """Set to 0 what fairseq leaves as it found it in memory, and never uses.

    A dynamic convolution has a bias even if it was told to have none.  Uncleared it would differ
    from one start of a run to the next, and if it is not finite, no peer takes the snapshot.

    Args:
        model: as it was built, before a checkpoint is loaded.
    """
    for module in model.modules():
        if isinstance(module, DynamicConv_scripatable) and not module.has_conv_bias:
            nn.init.zeros_(module.conv_bias)


def fuse_attention(model: nn.Module) -> None:
    """Let all attention of a transformer whose logits alone are wanted take torch's fused kernel.

    fairseq's attention does by itself, but not from the decoder to the encoder: there it keeps the
    weights for alignments, and keys and values for generation.

    Args:
        model: of a peer or a teacher; any other than fairseq's own transformers stays as it is.
    """
    decoder = getattr(model, "decoder", None)
    # Others may make logits of the weights, as one that copies words from the source does.
    if (
        type(decoder) not in (TransformerDecoderBase, TransformerDecoder)
        or type(model).forward is not TransformerModelBase.forward
    ):
        return
    for layer in model.modules():
        attention: Any = getattr(layer, "encoder_attn", None)
        if not isinstance(layer, TransformerDecoderLayerBase):
            continue
        # xFormers' attention, which fairseq never takes there, wants as many keys as queries.
        if type(attention) is MultiheadAttention and not attention.use_xformers:
            attention.register_forward_pre_hook(_nothing_kept, with_kwargs=True)


def _nothing_kept(
    attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs | {"static_kv": False, "need_weights": False, "need_head_weights": False}


def why_no_logits(model: nn.Module, task: FairseqTask) -> str | None:
    """Return why a model gives no logits that can be compared, or None if it does give them.

    Args:
        model: a student, peer or teacher, as it was built.
        task: whose batches it is given; one of a user's own may put more into them.
    """
    if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
        return "its model has adaptive softmax, and so no plain logits to compare"
    if not type(task).__module__.startswith("fairseq"):
        return None
    try:
        inspect.signature(model.forward).bind(
            src_tokens=None, src_lengths=None, prev_output_tokens=None
        )
    except TypeError as error:
        return (
            "its model's forward pass cannot do with source and previous target tokens alone "
            f"({error}), as those of nonautoregressive models cannot, so it has no plain logits to "
            "compare"
        )
    return None


def describe(cfg: argparse.Namespace | DictConfig) -> dict[str, Any]:
    """Return what another group needs to build this model, and nothing else of the command line.

    Names of files stay here: a peer's weights come from its snapshot and from nowhere else.  Of
    those that a model may need, and of what is not JSON, there is a digest; who has the same builds
    with its own.

    Args:
        cfg: what fairseq hands to ``task.build_model``: a namespace of all flags for models
            registered with ``add_args``, a config of the model alone for the others.
    """
    if isinstance(cfg, argparse.Namespace):
        settings = _peer_config.names_of(cfg.arch, vars(cfg))
        config = {name: getattr(cfg, name) for name in sorted(settings) if hasattr(cfg, name)}
        config["arch"] = cfg.arch
    else:
        config = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    needed = _peer_config.required_flags(config.get("arch", config.get("_name")))
    return {name: _told(name, value, name in needed) for name, value in config.items()}


def build(
    task: FairseqTask,
    own: argparse.Namespace | DictConfig,
    config: dict[str, Any],
    like: Tensor,
    tensors: Mapping[str, Tensor] | None = None,
    trusted: Collection[str] = (),
) -> nn.Module:
    """Build the model of a manifest on the device and in the dtype of ``like``.

    Args:
        task: gives the dictionaries.
        own: this group's configuration, for flags that are not the model's own.
        config: as from ``describe``, but by whom is not known.
        like: a parameter of the student.
        tensors: what the snapshot holds.  The model must have these names and shapes, which is
            found out before it gets any memory.
        trusted: architectures and models, besides fairseq's and this group's, that may be built.

    Raises:
        ValueError: if ``config`` names no architecture, or one that must not or cannot be built.
    """
    described = describe(own)
    beside = vars(own) if isinstance(own, argparse.Namespace) else {}
    _peer_config.check(config, described, trusted, beside)
    if config != described:
        # A model on this device has shapes and no numbers, whatever its size.
        with torch.device("meta"), _at_most(MOST_PARTS if tensors is None else 8 * len(tensors)):
            trial = FairseqTask.build_model(task, _as_fairseq_has_it(own, config))
        if tensors is not None and _shapes(trial.state_dict()) != _shapes(tensors):
            raise ValueError("its tensors' names and shapes are not those of its model")
        reason = why_no_logits(trial, task)
        if reason is not None:
            raise ValueError(reason)
    # Not task.build_model: a task may keep what that built, for generation in validation.
    model = FairseqTask.build_model(task, _as_fairseq_has_it(own, config))
    fuse_attention(model)
    return model.to(device=like.device, dtype=like.dtype)


def _as_fairseq_has_it(
    own: argparse.Namespace | DictConfig, config: dict[str, Any]
) -> argparse.Namespace | DictConfig:
    """Return a configuration of ``describe`` as fairseq takes it."""
    mine: Any = vars(own) if isinstance(own, argparse.Namespace) else own
    config = {
        name: mine[name] if _peer_config.is_digest(value) else value
        for name, value in config.items()
    }
    if "arch" not in config:
        return OmegaConf.create(config)
    base: dict[str, Any] = {}
    if isinstance(own, argparse.Namespace):
        # What it lacks of its architecture's own settings is that one's to fill in.
        lacking = _peer_config.names_of(config["arch"], mine) - config.keys()
        base = {name: value for name, value in mine.items() if name not in lacking}
    # fairseq looks at _name first, and that one is this group's.
    return argparse.Namespace(**{**base, **config, "_name": config["arch"]})


@contextmanager
def _at_most(parts: int) -> Iterator[None]:
    """Stop the making of modules on this thread once they have more parts than that.

    A part is a tensor or a module in a module.  The margin of 1000 is for those without tensors.
    """
    left = parts + 1000
    thread = threading.get_ident()

    def count(module: nn.Module, name: str, part: Any) -> None:
        nonlocal left
        left -= threading.get_ident() == thread
        if left < 0:
            raise ValueError("its configuration asks for more layers than its snapshot has")

    hooks = [
        register_module_buffer_registration_hook(count),
        register_module_module_registration_hook(count),
        register_module_parameter_registration_hook(count),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}


def _told(name: str, value: Any, needed: bool) -> Any:
    """Return what others are told of a setting.

    Args:
        name: of the setting.
        value: from the command line.
        needed: whether a model must have it.
    """
    if name.endswith("_path") and not needed:
        # Of pretrained weights.
        return None
    if not _is_json(value):
        return _peer_config.digest(_alike(value))
    return _peer_config.digest(value) if _peer_config.names_a_file(name, value) else value


def _alike(value: Any) -> str:
    """Return what is the same for equal settings in any process."""
    if isinstance(value, set | frozenset):
        return repr(sorted(map(repr, value)))
    if type(value).__repr__ is object.__repr__:
        # It would tell the place in memory.
        return f"{type(value).__module__}.{type(value).__qualname__}"
    return repr(value)


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
