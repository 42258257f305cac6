"""A model's configuration that came with a snapshot: what of it may reach fairseq.

fairseq trusts its configuration.  It evaluates some values as Python (``--decoder-attention`` of
an LSTM, the layers of ``fconv``, ``--encoder-xformers-att-config`` of any transformer), opens
others as files and makes as many layers as it is told to.  A peer's configuration is data.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import hashlib
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


def check(
    config: Mapping[str, Any],
    own: Mapping[str, Any],
    trusted: Collection[str],
    beside: Mapping[str, Any],
) -> None:
    """Make sure that building a model of ``config`` runs no code, opens no file and ends.

    Args:
        config: as from a manifest.
        own: this group's configuration, which is trusted.
        trusted: names of architectures and models that the user trusts, besides ``KNOWN_MODELS``.
        beside: settings of this group that are not its model's.

    Raises:
        ValueError: if it might do otherwise; the message is the reason.
    """
    if config == own:
        return
    arch = _arch(config, own, trusted)
    defaults = _defaults(arch, config, own, beside)
    for name in sorted(config.keys() - {"arch", "_name"} - defaults.keys() - own.keys()):
        raise ValueError(f"its architecture {arch} has no setting {name!r:.80}")
    for name, value in config.items():
        if names_a_file(name, value):
            raise ValueError(f"its setting {name} names a file, {value!r:.80}")
        if is_digest(value) and value != own.get(name):
            raise ValueError(
                f"its setting {name} is told by its digest alone, and this group has another"
            )
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


def digest(value: str) -> dict[str, str]:
    """Return what stands for the name of a file, and for others that cannot be told."""
    return {"sha256": hashlib.sha256(value.encode()).hexdigest()}


def is_digest(value: Any) -> bool:
    """Return whether a value is one of ``digest``."""
    return isinstance(value, dict) and value.keys() == {"sha256"}


def names_of(arch: str, values: Mapping[str, Any]) -> set[str]:
    """Return the names of the settings of an architecture registered with ``add_args``.

    Args:
        arch: its name.
        values: all settings of a command line that has it.
    """
    try:
        return set(settings_of(arch, values))
    except ValueError:
        # They are trusted: fairseq has built the model with them.
        return {action.dest for action in _parser(arch)._actions}


def settings_of(arch: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an architecture registered with ``add_args``, and their defaults.

    They are its flags and what its function fills in.

    Args:
        arch: its name.
        values: of what the function may ask for and has no default: flags that a command line
            must have, and settings that are not the architecture's.

    Raises:
        ValueError: if the function cannot do with them.
    """
    flags = _flags(arch)
    needed = {name: values[name] for name in required_flags(arch) if name in values}
    # The function of an architecture fills in what the command line leaves open.
    given = {name: value for name, value in flags.items() if value is not None} | needed
    beside = {name: value for name, value in values.items() if name not in flags}
    filled = _filled(arch, beside | given)
    settings = flags | {name: value for name, value in filled.items() if name not in needed}
    # Filled in while a transformer is being built; no layer has this size.
    if "min_params_to_wrap" in settings:
        settings["min_params_to_wrap"] = DEFAULT_MIN_PARAMS_TO_WRAP
    return settings


def _filled(arch: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that the function of an architecture fills in.

    Raises:
        ValueError: if it cannot do with those that are there.
    """
    args = _Recorder(**given)
    args.filled.clear()
    try:
        ARCH_CONFIG_REGISTRY[arch](args)
    except Exception as error:
        # A user's own function: it may fail in any way.
        raise ValueError(f"the defaults of {arch} cannot be had ({error})") from error
    return {name: getattr(args, name) for name in args.filled if hasattr(args, name)}


class _Recorder(argparse.Namespace):
    """Settings, and the names of those that were set later."""

    def __init__(self, **settings: Any) -> None:
        vars(self)["filled"] = set()
        super().__init__(**settings)

    def __setattr__(self, name: str, value: Any) -> None:
        self.filled.add(name)
        super().__setattr__(name, value)


def required_flags(arch: str | None) -> set[str]:
    """Return the flags of an architecture that a command line must have."""
    if arch is None or arch not in ARCH_MODEL_REGISTRY:
        return set()
    parser = _parser(arch)
    groups = (group for group in parser._mutually_exclusive_groups if group.required)
    grouped = {action.dest for group in groups for action in group._group_actions}
    return grouped | {action.dest for action in parser._actions if action.required}


def is_known(name: str) -> bool:
    """Return whether there is an architecture or a model of that name."""
    return _model_of(name) is not None or name in ARCH_MODEL_NAME_REGISTRY.values()


def _parser(arch: str) -> argparse.ArgumentParser:
    """Return a parser with the flags of an architecture."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    ARCH_MODEL_REGISTRY[arch].add_args(parser)
    return parser


def _flags(arch: str) -> dict[str, Any]:
    """Return the flags of an architecture, and their defaults: None where there is none.

    Raises:
        ValueError: if a default is none.
    """
    parser = _parser(arch)
    # Which must be given is known to the user's command line; here is an empty one.
    for action in parser._actions:
        action.required = False
    for group in parser._mutually_exclusive_groups:
        group.required = False
    try:
        defaults = vars(parser.parse_args([]))
    except argparse.ArgumentError as error:
        raise ValueError(f"the defaults of {arch} cannot be had ({error})") from error
    return dict.fromkeys(action.dest for action in parser._actions) | defaults


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


def _defaults(
    arch: str, config: Mapping[str, Any], own: Mapping[str, Any], beside: Mapping[str, Any]
) -> dict[str, Any]:
    """Return every setting that an architecture has, and its value there."""
    defaults: dict[str, Any] = {}
    if arch in MODEL_DATACLASS_REGISTRY:
        fields = dataclasses.fields(MODEL_DATACLASS_REGISTRY[arch])
        defaults.update((field.name, None) for field in fields)
    if arch in ARCH_MODEL_REGISTRY:
        harmless = {name: value for name, value in config.items() if _is_harmless(value)}
        defaults.update(settings_of(arch, {**beside, **own, **harmless}))
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
