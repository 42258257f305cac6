"""Which architecture of fairseq's own builds the model of a user's architecture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairseq import utils
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY, MODEL_REGISTRY

from fairseq_codistill.errors import UserError
from fairseq_codistill.records import printable


def stock_architecture(name: str, user_dir: Path | None, trained_with: Any) -> str:
    """Return the name under which fairseq itself builds the models of architecture ``name``.

    A user's architecture may be other sizes of a model of fairseq's.  These sizes are in the
    checkpoint, so that any architecture of that model serves.

    Args:
        name: of the architecture.
        user_dir: the user's own, to import; it registers it, if fairseq does not.
        trained_with: the user directory that the checkpoint names, for the error.

    Raises:
        UserError: if it is unknown, or its model is not fairseq's own.
    """
    if user_dir is not None:
        # Also for one of fairseq's own: what it does to fairseq is seen in the model's outputs.
        _import(user_dir)
    if _is_stock(name):
        return name
    shown = printable(name, 100)
    if user_dir is None:
        where = f" (training had {printable(trained_with, 200)})" if trained_with else ""
        raise UserError(
            f"the architecture {shown} is not fairseq's own; give --user-dir, the directory that "
            f"registers it{where}, to tell whether it is a model of fairseq's in other sizes"
        )
    model = ARCH_MODEL_REGISTRY.get(name)
    if model is None:
        raise UserError(f"--user-dir {user_dir} registers no architecture {shown}; give another")
    if not _is_of_fairseq(model):
        raise UserError(
            f"the model of the architecture {shown}, {model.__module__}.{model.__qualname__}, is "
            "not fairseq's own, and fairseq cannot build it; use the checkpoint with its own "
            "--user-dir"
        )
    same = [arch for arch, other in ARCH_MODEL_REGISTRY.items() if other is model]
    stock = [arch for arch in same if _is_stock(arch)]
    # The one named like the model has fairseq's default sizes.
    named = [arch for arch in stock if MODEL_REGISTRY.get(arch) is model]
    return (named or stock)[0]


def _is_stock(name: str) -> bool:
    return (
        name in ARCH_MODEL_REGISTRY
        and _is_of_fairseq(ARCH_MODEL_REGISTRY[name])
        and _is_of_fairseq(ARCH_CONFIG_REGISTRY[name])
    )


def _is_of_fairseq(thing: Any) -> bool:
    return str(thing.__module__).partition(".")[0] == "fairseq"


def _import(user_dir: Path) -> None:
    if not user_dir.is_dir():
        raise UserError(f"--user-dir {user_dir} is not a directory; give the one of training")
    try:
        utils.import_user_module(argparse.Namespace(user_dir=str(user_dir)))
    # It is the user's own code.
    except Exception as error:  # noqa: BLE001
        reason = printable(f"{type(error).__name__}: {error}", 200)
        raise UserError(f"--user-dir {user_dir} cannot be imported ({reason}); mend it") from error
