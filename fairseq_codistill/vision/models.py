"""Models by name, their configuration as plain JSON for the manifest, and models built from it.

A peer's configuration is data from somebody else: it may name an architecture of this list and
the few numbers that go with it, and nothing of it reaches torchvision unchecked.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck, ResNet

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision.cifar import DEPTHS, CifarResNet

_CIFAR = {f"resnet{depth}_cifar": depth for depth in DEPTHS}
# What torchvision lacks: ResNeXt-152 (paper, Figure 10), and the width of a group's channels.
_RESNEXT152 = {"resnext152_32x4d": 4, "resnext152_32x8d": 8}
_RESNEXT152_LAYERS = [3, 8, 36, 3]
# With a second output for training, which is no part of the loss here.
_AUXILIARY = {"googlenet", "inception_v3"}

# Far above any real one.
LARGEST_WIDTH = 1024
LARGEST_IMAGE = 4096


def names() -> list[str]:
    """Give all architectures."""
    return sorted([*torchvision.models.list_models(torchvision.models), *_CIFAR, *_RESNEXT152])


def describe(arch: str, classes: int, width: int, image_size: int) -> dict[str, Any]:
    """Give what another group needs to build this model.

    Args:
        arch: its name.
        classes: size of its output.
        width: counts for ``resnet<depth>_cifar`` alone.
        image_size: counts for vision transformers alone, which learn a vector for each place.

    Raises:
        ConfigError: if there is no such architecture.
    """
    if arch not in names():
        near = difflib.get_close_matches(arch, names(), n=3) or ["resnet50", "resnet20_cifar"]
        raise ConfigError(f"--arch {arch} is unknown; choose one, as in {', '.join(near)}")
    described: dict[str, Any] = {"arch": arch, "classes": classes}
    if arch in _CIFAR:
        described["width"] = width
    if arch.startswith("vit_"):
        described["image_size"] = image_size
    return described


def student(config: Mapping[str, Any], zero_init_gamma: bool = False) -> nn.Module:
    """Build this group's own model, with weights drawn from torch's generator.

    Args:
        config: from ``describe``.
        zero_init_gamma: let the last batch norm of each residual block begin with weight 0.

    Raises:
        ConfigError: if the architecture cannot do that, or cannot be built.
    """
    try:
        return _make(config, {"zero_init_residual": True} if zero_init_gamma else {})
    except TypeError as error:
        if not zero_init_gamma:
            raise
        raise ConfigError(
            f"--zero-init-gamma is for residual networks, and --arch {config['arch']} is none; "
            "leave it out"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--arch {config['arch']} cannot be built: {error}") from error


def check_image_size(config: Mapping[str, Any], image_size: int) -> None:
    """Make sure that a model of ``describe`` takes images of this size; it gets no memory.

    Raises:
        ConfigError: if it does not.
    """
    try:
        refusal = _refusal(_without_memory(config), image_size)
    except (AssertionError, ValueError) as error:
        refusal = str(error)
    if refusal is not None:
        raise ConfigError(
            f"--image-size {image_size} does not go with --arch {config['arch']} ({refusal}); "
            "give another of the two"
        )


def check_batch_size(config: Mapping[str, Any], image_size: int, batch_size: int) -> None:
    """Make sure that a model of ``describe`` trains on so many images; it gets no memory.

    Batch norm cannot if it has one value of a channel: of one image that is one pixel by then.

    Args:
        config: from ``describe``.
        image_size: in pixels; one that the model takes.
        batch_size: images of a worker's micro-batch.

    Raises:
        ConfigError: if it does not.
    """
    if batch_size > 1:
        return
    model = _without_memory(config).to("meta").train()
    try:
        with torch.no_grad():
            model(torch.empty(batch_size, 3, image_size, image_size, device="meta"))
    except ValueError as error:
        raise ConfigError(
            f"--batch-size {batch_size} does not go with --arch {config['arch']} and --image-size "
            f"{image_size} ({error}): batch norm has nothing to average over; give 2 or more"
        ) from error


def peer(
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    image_size: int,
    like: Tensor,
    tensors: Mapping[str, Tensor],
    memory_format: torch.memory_format = torch.contiguous_format,
) -> nn.Module:
    """Build the model of a manifest on the device and in the dtype of ``like``.

    Args:
        config: as from ``describe``, but by whom is not known.
        own: this group's configuration.
        image_size: of this group's images, in pixels.
        like: a parameter of the student.
        tensors: what the snapshot holds.  The model must have these names and shapes, which is
            found out before it gets any memory, a RegNet excepted, whose size its name tells.
        memory_format: of its weights.

    Raises:
        ValueError: if ``config`` is not one that ``describe`` gives, for as many classes as
            this group has, if the tensors are not those of such a model, or if it does not take
            this group's images.
    """
    _check(config, own, image_size)
    trial = _without_memory(config)
    shapes = {name: t.shape for name, t in trial.state_dict().items()}
    if shapes != {name: t.shape for name, t in tensors.items()}:
        raise ValueError("its tensors' names and shapes are not those of its model")
    refusal = _refusal(trial, image_size)
    if refusal is not None:
        raise ValueError(f"it does not take images of {image_size} pixels ({refusal})")
    model = _make(config, {}).to(device=like.device, dtype=like.dtype)
    return model.to(memory_format=memory_format)


def _check(config: Mapping[str, Any], own: Mapping[str, Any], image_size: int) -> None:
    arch = config.get("arch")
    if not isinstance(arch, str) or arch not in names():
        raise ValueError(f"there is no architecture {arch!r:.80}")
    expected = describe(arch, own["classes"], width=1, image_size=1)
    odd = sorted(config.keys() ^ expected.keys())
    if odd:
        raise ValueError(f"its architecture {arch} lacks, or should not have, {odd[0]!r:.80}")
    for name, largest in (("width", LARGEST_WIDTH), ("image_size", LARGEST_IMAGE)):
        value = config.get(name, 1)
        if type(value) is not int or not 1 <= value <= largest:
            raise ValueError(f"its {name} is {value!r:.80}, which is no number from 1 to {largest}")
    classes = config["classes"]
    if type(classes) is not int or classes != own["classes"]:
        raise ValueError(f"it has {classes!r:.80} classes, and this group {own['classes']}")
    size = config.get("image_size", image_size)
    if size != image_size:
        raise ValueError(f"it takes images of {size} pixels, and this group's have {image_size}")


def _without_memory(config: Mapping[str, Any]) -> nn.Module:
    # A model on the meta device has shapes and no numbers, whatever its size.  Of RegNets
    # torchvision computes the widths with tensors, which need numbers.
    device = "cpu" if config["arch"].startswith("regnet_") else "meta"
    with torch.device(device):
        return _make(config, {})


def _refusal(model: nn.Module, image_size: int) -> str | None:
    """Tell why a model of ``_without_memory`` does not take images of this size, if so."""
    if not next(model.parameters()).is_meta:
        # RegNets take any.
        return None
    try:
        with torch.no_grad():
            model.eval()(torch.empty(2, 3, image_size, image_size, device="meta"))
    except (AssertionError, RuntimeError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    return None


def _make(config: Mapping[str, Any], extra: dict[str, Any]) -> nn.Module:
    arch, classes = config["arch"], config["classes"]
    if arch in _CIFAR:
        return CifarResNet(_CIFAR[arch], classes, config["width"], **extra)
    if arch in _RESNEXT152:
        width = _RESNEXT152[arch]
        extra |= {"groups": 32, "width_per_group": width, "num_classes": classes}
        return ResNet(Bottleneck, _RESNEXT152_LAYERS, **extra)
    if arch in _AUXILIARY:
        extra |= {"aux_logits": False, "init_weights": True}
    if "image_size" in config:
        extra["image_size"] = config["image_size"]
    return torchvision.models.get_model(arch, weights=None, num_classes=classes, **extra)
