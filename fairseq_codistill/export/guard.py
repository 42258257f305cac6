"""Which settings of a checkpoint may reach fairseq.

fairseq trusts a model's configuration.  It evaluates some settings as Python, for example the
layers of ``fconv``, and opens the files that others name.  A checkpoint may be somebody else's,
and to export it must not run what it says.  What a model costs is not bounded here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any

from fairseq.models import ARCH_MODEL_NAME_REGISTRY

from fairseq_codistill.errors import UserError
from fairseq_codistill.records import printable

# Models of translation whose code has been read: they evaluate only the settings below, and open
# only the files that _is_file tells.
KNOWN_MODELS = {
    *("transformer", "transformer_align", "bart", "lightconv", "lstm", "fconv", "fconv_self_att"),
}

# The ends of the names of settings that some known model evaluates, also where it is a part of
# another, as in encoder.xformers_att_config.
_EVALUATED = (
    *("layers", "attention", "adaptive_softmax_cutoff", "xformers_att_config"),
    *("pretrained", "project_input", "downsample"),
)

_ARITHMETIC = (
    *(ast.Expression, ast.Constant, ast.List, ast.Tuple, ast.Dict, ast.Load),
    *(ast.BinOp, ast.Add, ast.Mult, ast.UnaryOp, ast.USub),
)


def check(architecture: str, settings: Mapping[str, Any]) -> None:
    """Make sure that fairseq runs no code of a checkpoint's when it builds its model.

    Args:
        architecture: its name, one of fairseq's own.
        settings: the model's configuration.

    Raises:
        UserError: if it might.
    """
    model = ARCH_MODEL_NAME_REGISTRY.get(architecture)
    if model not in KNOWN_MODELS:
        raise UserError(
            f"the model {model} of the architecture {architecture} is not one that codistill "
            f"export knows how to build safely ({', '.join(sorted(KNOWN_MODELS))}); use the "
            "checkpoint with the plugin"
        )
    for name, value in _leaves(settings):
        if not isinstance(value, str):
            continue
        if "${" in value or (name.endswith(_EVALUATED) and not _is_arithmetic(value)):
            raise UserError(
                f"the checkpoint's setting {printable(name, 100)} is {printable(value, 200)}, "
                "which fairseq would evaluate; give a checkpoint with numbers or lists there"
            )


def without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings that name no file; pretrained embeddings are among a checkpoint's weights."""
    return {
        key: without_files(value)
        if isinstance(value, dict)
        else (None if _is_file(str(key)) else value)
        for key, value in settings.items()
    }


def _is_file(name: str) -> bool:
    return name.endswith("_path") or name == "pretrained_checkpoint"


def _leaves(settings: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the settings with their names, those in parts of the model too.

    Raises:
        UserError: if they hold anything but what JSON can; Python evaluates bytes as well.
    """
    for name, value in settings.items():
        if not isinstance(name, str) or not _is_plain(value):
            raise UserError(
                f"the checkpoint's setting {printable(name, 100)} is of the type "
                f"{type(value).__name__}; give a checkpoint that training wrote"
            )
        if isinstance(value, dict):
            yield from _leaves(value)
        else:
            yield name, value


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, bool, int, float, dict))


def _is_arithmetic(text: str) -> bool:
    """Return whether ``text`` has only numbers, words in quotes, lists, sums and products."""
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        # fairseq does not get further either.
        return False
    return all(isinstance(node, _ARITHMETIC) for node in ast.walk(tree))
