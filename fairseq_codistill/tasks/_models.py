"""A fairseq model's configuration as plain JSON for the manifest, and models built from it."""

import argparse
import json
from typing import Any

from fairseq.models import ARCH_MODEL_REGISTRY
from fairseq.tasks import FairseqTask
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn


def describe(cfg: argparse.Namespace | DictConfig) -> dict[str, Any]:
    """Give what another group needs to build this model, and nothing else of the command line.

    Args:
        cfg: what fairseq hands to ``task.build_model``: a namespace of all flags for models
            registered with ``add_args``, a config of the model alone for the others.
    """
    if isinstance(cfg, argparse.Namespace):
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        ARCH_MODEL_REGISTRY[cfg.arch].add_args(parser)
        flags = vars(parser.parse_args([]))
        config = {name: getattr(cfg, name) for name in sorted(flags) if hasattr(cfg, name)}
        config["arch"] = cfg.arch
    else:
        config = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True)
    return _without_files({name: value for name, value in config.items() if _is_json(value)})


def build(
    task: FairseqTask, own: argparse.Namespace | DictConfig, config: dict[str, Any], like: Tensor
) -> nn.Module:
    """Build the model of a manifest on the device and in the dtype of ``like``.

    Args:
        task: gives the dictionaries.
        own: this group's configuration, for flags that are not the model's own.
        config: as from ``describe``.
        like: a parameter of the student.

    Raises:
        ValueError: if ``config`` names no architecture.
    """
    config = _without_files(config)
    cfg: argparse.Namespace | DictConfig
    if "arch" in config:
        base = vars(own) if isinstance(own, argparse.Namespace) else {}
        # fairseq looks at _name first, and that one is this group's.
        cfg = argparse.Namespace(**{**base, **config, "_name": config["arch"]})
    elif "_name" in config:
        cfg = OmegaConf.create(config)
    else:
        raise ValueError("its configuration names no architecture")
    # Not task.build_model: a task may keep what that built, for generation in validation.
    model = FairseqTask.build_model(task, cfg)
    return model.to(device=like.device, dtype=like.dtype)


def _without_files(config: dict[str, Any]) -> dict[str, Any]:
    """Forget pretrained files: a peer's weights come from its snapshot and from nowhere else."""
    return {name: None if name.endswith("_path") else v for name, v in config.items()}


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return False
    return True
