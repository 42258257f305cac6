"""Reading a checkpoint that training with this plugin wrote."""

from __future__ import annotations

import argparse
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fairseq_codistill import plain
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.checkpoints import is_loadable
from fairseq_codistill.records import printable

TASK = "codistill_translation"
STOCK_TASK = "translation"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of ``codistill_translation``, or of ``translation``.

    Attributes:
        path: the file.
        state: what fairseq has saved.
        cfg: its configuration, by sections.
    """

    path: Path
    state: dict[str, Any]
    cfg: dict[str, Any]


def read(path: Path, own_only: bool) -> Checkpoint:
    """Read a checkpoint.

    Args:
        path: the file.
        own_only: refuse one of fairseq's own task.

    Raises:
        UserError: if it cannot be read, or was trained with another task.
    """
    state = _load(path)
    cfg = state.get("cfg") if isinstance(state, dict) else None
    task = items(cfg["task"]) if isinstance(cfg, dict) and cfg.get("task") else {}
    name = task.get("_name")
    if name == TASK or (name == STOCK_TASK and not own_only):
        assert isinstance(cfg, dict)
        _check_parts(path, state, cfg)
        return Checkpoint(path, state, cfg)
    said = f"CHECKPOINT {path} was not trained with --task {TASK}"
    if name == STOCK_TASK:
        raise UserError(f"{said} but with fairseq's own; a stock checkpoint needs no export")
    if any(str(key).startswith("codistill_") for key in task):
        raise UserError(
            f"{said} itself but with --task {printable(name, 100)}, which is built on it; fairseq "
            "has no such task, and what it adds for translating cannot be exported: train with "
            f"--task {TASK}, or use the checkpoint with its own --user-dir"
        )
    raise UserError(f"{said}; give a checkpoint that was")


def items(config: Any) -> dict[str, Any]:
    """Return a section of a configuration as a dictionary; of what is none, an empty one."""
    if isinstance(config, argparse.Namespace):
        return dict(vars(config))
    return dict(config) if isinstance(config, dict) else {}


def namespace(settings: Mapping[str, Any]) -> argparse.Namespace:
    """Return a dictionary as a namespace; ``Namespace(**settings)`` does not take every name."""
    found = argparse.Namespace()
    vars(found).update(settings)
    return found


def _check_parts(path: Path, state: dict[str, Any], cfg: dict[str, Any]) -> None:
    """Make sure that all parts are there that export looks at."""
    parts = {
        "cfg.model": items(cfg.get("model")),
        "cfg.criterion": items(cfg.get("criterion")),
        "cfg.common": items(cfg.get("common")),
        "model": state.get("model"),
    }
    for name, part in parts.items():
        if not isinstance(part, dict) or not all(isinstance(key, str) for key in part):
            part = None
        if not part:
            raise UserError(f"CHECKPOINT {path} has no {name}; give one that training wrote")
    tensors = parts["model"]
    assert isinstance(tensors, dict)
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise UserError(f"CHECKPOINT {path} has a model of more than tensors; give another one")
    history = state.get("optimizer_history", [])
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise UserError(f"CHECKPOINT {path} has no optimizer_history; give another one")


def _load(path: Path) -> Any:
    if not os.path.lexists(path):
        raise UserError(f"CHECKPOINT {path} is not there; give a file that training wrote")
    if not is_loadable(path):
        raise UserError(
            f"CHECKPOINT {path} is torn, no checkpoint, or cannot be read; give another one"
        )
    # Allowed for this one load.
    with plain.allowing(plain.allowed()):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        # A whole archive may hold any pickle.  torch interprets it, and lets out whatever error a
        # wrong operand leads to.
        except Exception as error:  # noqa: BLE001
            reason = printable(f"{type(error).__name__}: {error}", 200)
            what = "cannot be loaded"
            if isinstance(error, pickle.UnpicklingError):
                what = "holds more than plain data"
            raise UserError(
                f"CHECKPOINT {path} {what} ({reason}); give one that training with this "
                "plugin wrote"
            ) from error
