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
from collections.abc import Collection, Mapping
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


def check(config: Mapping[str, Any], own: Mapping[str, Any], trusted: Collection[str] = ()) -> None:
    """Make sure that building a model of ``config`` runs no code, opens no file and ends.

    Args:
        config: as from a manifest.
        own: this group's configuration, which is trusted.
        trusted: names of architectures and models that the user trusts, besides ``KNOWN_MODELS``.

    Raises:
        ValueError: if it might do otherwise; the message is the reason.
    """
    arch = _arch(config, own, trusted)
    defaults = _defaults(arch, config, own)
    for name in sorted(config.keys() - {"arch", "_name"} - defaults.keys() - own.keys()):
        raise ValueError(f"its architecture {arch} has no setting {name!r:.80}")
    for name, value in config.items():
        if names_a_file(name, value):
            raise ValueError(f"its setting {name} names a file, {value!r:.80}")
        if not _is_harmless(value) and value not in (own.get(name), defaults.get(name)):
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


def names_a_file(name: str, value: Any) -> bool:
    """Return whether a setting of that name, if it has that value, names a file."""
    return isinstance(value, str) and value != "" and _FILE_NAMED.search(name) is not None


def settings_of(arch: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an architecture registered with ``add_args``, and their defaults.

    They are its flags and what its function fills in, other settings among it.

    Args:
        arch: its name.
        values: of flags that have no default, which the function may ask for; these are not
            returned.

    Raises:
        ValueError: if the function cannot do with them.
    """
    defaults: dict[str, Any] = {}
    parser = _parser(arch)
    for action in parser._actions:
        if action.dest != argparse.SUPPRESS:
            defaults.setdefault(action.dest, _default(parser, action))
    for name, value in parser._defaults.items():
        defaults.setdefault(name, value)
    # The function of an architecture fills in what the command line leaves open.
    given = {name: value for name, value in defaults.items() if value is not None}
    needed = {name: values[name] for name in required_flags(arch) if name in values}
    filled = argparse.Namespace(**{**given, **needed})
    try:
        ARCH_CONFIG_REGISTRY[arch](filled)
    except Exception as error:
        # A user's own function: it may fail in any way.
        raise ValueError(f"the defaults of {arch} cannot be had ({error})") from error
    for name, value in vars(filled).items():
        if name not in needed:
            defaults[name] = value
    # Filled in while a transformer is being built; no layer has this size.
    if "min_params_to_wrap" in defaults:
        defaults["min_params_to_wrap"] = DEFAULT_MIN_PARAMS_TO_WRAP
    return defaults


def required_flags(arch: str) -> set[str]:
    """Return the flags of an architecture that a command line must have."""
    parser = _parser(arch)
    groups = (group for group in parser._mutually_exclusive_groups if group.required)
    grouped = {action.dest for group in groups for action in group._group_actions}
    return grouped | {action.dest for action in parser._actions if action.required}


def is_known(name: str) -> bool:
    """Return whether there is an architecture or a model of that name."""
    return _model_of(name) is not None or name in ARCH_MODEL_NAME_REGISTRY.values()


def _parser(arch: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of an architecture.

    Nothing is parsed with it: on no command line but the user's are the flags that it wants.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    return parser


def _default(parser: argparse.ArgumentParser, action: argparse.Action) -> Any:
    """Return a flag's default as parsing an empty command line would; None if there is none."""
    if action.default == argparse.SUPPRESS:
        return None
    if not isinstance(action.default, str):
        return action.default
    try:
        return parser._get_value(action, action.default)
    except argparse.ArgumentError:
        return None


def _arch(config: Mapping[str, Any], own: Mapping[str, Any], trusted: Collection[str]) -> str:
    """Return the architecture's name, if it is one that may be built."""
    arch = config.get("arch", config.get("_name"))
    if arch is None:
        raise ValueError("its configuration names no architecture")
    if not isinstance(arch, str) or config.get("_name", arch) != arch or _model_of(arch) is None:
        raise ValueError(f"there is no architecture {arch!r:.80}")
    model = _model_of(arch)
    known = model in KNOWN_MODELS or arch in trusted or model in trusted
    if not known and model != _model_of(own.get("arch", own.get("_name"))):
        raise ValueError(
            f"its architecture {arch} is neither this group's nor one that is known to read no "
            f"files ({', '.join(sorted(KNOWN_MODELS))}); if you trust it, give "
            f"--codistill-trust-arch {arch}"
        )
    return arch


def _defaults(arch: str, config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting that an architecture has, and its value there."""
    defaults: dict[str, Any] = {}
    if arch in MODEL_DATACLASS_REGISTRY:
        fields = dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch])
        defaults.update((field.name, None) for field in fields)
    if arch in ARCH_MODEL_REGISTRY:
        harmless = {name: value for name, value in config.items() if _is_harmless(value)}
        defaults.update(settings_of(arch, {**own, **harmless}))
    return defaults


def _model_of(arch: str | None) -> str | None:
    """Return the name of the model that an architecture is a size of; None if there is none."""
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
