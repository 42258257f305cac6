"""A model's configuration that came with a snapshot: what of it may reach fairseq.

fairseq trusts its configuration.  It evaluates some values as Python (``--decoder-attention`` of
an LSTM, the layers of ``fconv``, ``--encoder-xformers-att-config`` of any transformer), opens
others as files and makes as many layers as it is told to.  A peer's configuration is data.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_NAME_REGISTRY,
    ARCH_MODEL_REGISTRY,
    MODEL_DATACLASS_REGISTRY,
)
from fairseq.models.transformer import DEFAULT_MIN_PARAMS_TO_WRAP

# Models that are made of their configuration and the dictionaries alone.
KNOWN_MODELS = {"transformer", "transformer_align", "lightconv", "lstm", "fconv"}

# Far above any real layer; some of fairseq's tables are as large as their configuration says and
# no tensor of a snapshot shows it.
LARGEST_NUMBER = 65536

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_FILE_NAMED = re.compile(r"path|file|pretrained|checkpoint|(^|_)(dir|load|data)(_|$)")


def check(config: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Make sure that building a model of ``config`` runs no code, opens no file and ends.

    Args:
        config: as from a manifest.
        own: this group's configuration, which is trusted.

    Raises:
        ValueError: if it might do otherwise; the message is the reason.
    """
    arch = _arch(config, own)
    defaults = _defaults(arch)
    for name in sorted(config.keys() - {"arch", "_name"} - defaults.keys() - own.keys()):
        raise ValueError(f"its architecture {arch} has no setting {name!r:.80}")
    for name, value in config.items():
        if isinstance(value, str) and value and _FILE_NAMED.search(name):
            raise ValueError(f"its setting {name} names a file, {value!r:.80}")
        trusted = (own.get(name), defaults.get(name))
        if not _is_harmless(value) and value not in trusted:
            raise ValueError(
                f"its setting {name} is {value!r:.80}, which is neither this group's nor "
                f"fairseq's own, nor a word, a number up to {LARGEST_NUMBER} or a list of these"
            )
    for side, positions in (("encoder", "source"), ("decoder", "target")):
        theirs, ours = (c.get(f"max_{positions}_positions") for c in (config, own))
        learned = config.get(f"{side}_learned_pos")
        if learned and theirs is not None and ours is not None and theirs < ours:
            raise ValueError(
                f"it has learned {theirs} {positions} positions, and this group's sentences may "
                f"have {ours}"
            )


def flags_of(arch: str) -> dict[str, Any]:
    """Give the settings of an architecture registered with ``add_args``, and their defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    return vars(parser.parse_args([]))


def _arch(config: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Give the architecture's name, if it is one that may be built."""
    arch = config.get("arch", config.get("_name"))
    if arch is None:
        raise ValueError("its configuration names no architecture")
    if not isinstance(arch, str) or config.get("_name", arch) != arch or _model_of(arch) is None:
        raise ValueError(f"there is no architecture {arch!r:.80}")
    model = _model_of(arch)
    if model not in KNOWN_MODELS and model != _model_of(own.get("arch", own.get("_name"))):
        raise ValueError(
            f"its architecture {arch} is neither this group's nor one that is known to read no "
            f"files ({', '.join(sorted(KNOWN_MODELS))})"
        )
    return arch


def _defaults(arch: str) -> dict[str, Any]:
    """Give every setting that an architecture has, and its value there."""
    defaults: dict[str, Any] = {}
    if arch in MODEL_DATACLASS_REGISTRY:
        fields = dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch])
        defaults.update((field.name, None) for field in fields)
    if arch in ARCH_MODEL_REGISTRY:
        flags = flags_of(arch)
        defaults.update(flags)
        # The function of an architecture fills in what the command line leaves open.
        given = {name: value for name, value in flags.items() if value is not None}
        filled = argparse.Namespace(**given)
        ARCH_CONFIG_REGISTRY[arch](filled)
        defaults.update(vars(filled))
        # Filled in while a transformer is being built; no layer has this size.
        if "min_params_to_wrap" in flags:
            defaults["min_params_to_wrap"] = DEFAULT_MIN_PARAMS_TO_WRAP
    return defaults


def _model_of(arch: str | None) -> str | None:
    """Give the name of the model that an architecture is a size of; None if there is none."""
    return ARCH_MODEL_NAME_REGISTRY.get(arch, arch if arch in MODEL_DATACLASS_REGISTRY else None)


def _is_harmless(value: Any) -> bool:
    if isinstance(value, str):
        return not value or _WORD.fullmatch(value) is not None or _is_literal(value)
    if isinstance(value, dict):
        return all(_is_harmless(part) for part in (*value, *value.values()))
    if isinstance(value, (list, tuple)):
        return len(value) <= 1000 and all(map(_is_harmless, value))
    if isinstance(value, (int, float)):
        # torch also takes 1e12 for a number of rows.
        return abs(value) <= LARGEST_NUMBER
    return value is None


def _is_literal(text: str) -> bool:
    """Whether evaluating ``text`` gives harmless values and does nothing else."""
    if len(text) > 1000:
        return False
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return False
    return not isinstance(value, str) and _is_harmless(value)
