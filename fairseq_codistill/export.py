"""Turns a codistilled checkpoint into a stock one.

The new file holds tensors and plain containers only, so ``torch.load(..., weights_only=True)``
reads it with nothing added to its list, and its task and criterion are fairseq's own, so no
``--user-dir`` is needed.  The optimizer's state stays behind.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fairseq_codistill import plain
from fairseq_codistill.errors import UserError
from fairseq_codistill.launch.checkpoints import is_loadable
from fairseq_codistill.records import printable

TASK = "codistill_translation"
STOCK_TASK = "translation"
_CRITERION_CLASSES = {
    "cross_entropy": "CrossEntropyCriterion",
    "label_smoothed_cross_entropy": "LabelSmoothedCrossEntropyCriterion",
}


def export(checkpoint: Path, new: Path) -> None:
    """Write the stock form of ``checkpoint`` to ``new``.

    Raises:
        UserError: if ``checkpoint`` is not a codistilled one, or ``new`` is already there.
    """
    if new.exists():
        raise UserError(f"NEW {new} is already there; remove it or choose another name")
    stock = convert(_load(checkpoint), checkpoint)
    new.parent.mkdir(parents=True, exist_ok=True)
    temporary = new.with_name(f"{new.name}.tmp")
    torch.save(stock, temporary)
    os.replace(temporary, new)


def convert(state: Any, checkpoint: Path) -> dict[str, Any]:
    """Give the stock form of a loaded checkpoint; ``checkpoint`` is its name in errors."""
    cfg = state.get("cfg") if isinstance(state, dict) else None
    if not isinstance(cfg, dict) or _name(cfg.get("task")) != TASK:
        raise UserError(
            f"CHECKPOINT {checkpoint} was not trained with --task {TASK}; "
            "a stock checkpoint needs no export"
        )
    criterion = _stock_criterion(_items(cfg["criterion"]))
    history = [dict(entry) for entry in state["optimizer_history"]]
    history[-1]["criterion_name"] = _CRITERION_CLASSES[criterion["_name"]]
    extra = {
        key: state["extra_state"][key]
        for key in ("train_iterator", "val_loss", "best")
        if key in state["extra_state"]
    }
    stock_cfg = {
        **cfg,
        "common": {**cfg["common"], "user_dir": None},
        "task": _stock_task(_items(cfg["task"])),
        "criterion": criterion,
        "model": _stock_model(cfg["model"]),
    }
    stock = {
        "args": None,
        "cfg": stock_cfg,
        "model": state["model"],
        "criterion": {},
        "optimizer_history": history,
        "task_state": {},
        "extra_state": extra,
        "last_optimizer_state": None,
    }
    replaced = {"task": STOCK_TASK, "criterion": criterion["_name"], "user_dir": None}
    return {key: _plain(value, replaced) for key, value in stock.items()}


def _load(checkpoint: Path) -> Any:
    if not os.path.lexists(checkpoint):
        raise UserError(f"CHECKPOINT {checkpoint} is not there; give a file that training wrote")
    if not is_loadable(checkpoint):
        raise UserError(
            f"CHECKPOINT {checkpoint} is torn, no checkpoint, or cannot be read; give another one"
        )
    # Allowed for this one load.
    with torch.serialization.safe_globals(plain.allowed()):
        try:
            return torch.load(checkpoint, map_location="cpu", weights_only=True)
        # A whole archive may hold any pickle.  torch interprets it, and lets out whatever error a
        # wrong operand leads to.
        except Exception as error:  # noqa: BLE001
            reason = printable(f"{type(error).__name__}: {error}", 200)
            what = "cannot be loaded"
            if isinstance(error, pickle.UnpicklingError):
                what = "holds more than plain data"
            raise UserError(
                f"CHECKPOINT {checkpoint} {what} ({reason}); give one that training with this "
                "plugin wrote"
            ) from error


def _stock_task(task: dict[str, Any]) -> dict[str, Any]:
    # Here and below: importing fairseq takes seconds, and a wrong argument is told before.
    from fairseq.tasks.translation import TranslationConfig

    known = {field.name for field in dataclasses.fields(TranslationConfig)}
    return {**{key: task[key] for key in task if key in known}, "_name": STOCK_TASK}


def _stock_criterion(criterion: dict[str, Any]) -> dict[str, Any]:
    stock: dict[str, Any] = {"_name": "cross_entropy"}
    if criterion.get("label_smoothing"):
        stock = {
            "_name": "label_smoothed_cross_entropy",
            "label_smoothing": criterion["label_smoothing"],
            "report_accuracy": False,
            "ignore_prefix_size": 0,
        }
    return {**stock, "sentence_avg": criterion.get("sentence_avg", False)}


def _stock_model(model: Any) -> Any:
    """Give a configuration from which stock fairseq builds the same model."""
    from fairseq.models import MODEL_DATACLASS_REGISTRY

    if not isinstance(model, argparse.Namespace) or _name(model) not in MODEL_DATACLASS_REGISTRY:
        return model
    # From a mapping fairseq would take the nested form only, and forget all flat flags.
    config = MODEL_DATACLASS_REGISTRY[_name(model)].from_namespace(model)
    nested: Any = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    return {**nested, "_name": _name(model)}


def _items(config: Any) -> dict[str, Any]:
    return dict(vars(config)) if isinstance(config, argparse.Namespace) else dict(config)


def _name(config: Any) -> Any:
    return None if config is None else _items(config).get("_name")


def _plain(value: Any, replaced: Mapping[str, Any]) -> Any:
    """Give ``value`` with every namespace as a dict.

    Models and optimizers without a dataclass get one, and it holds the whole command line: our
    flags go, and those of ``replaced`` take their stock values.
    """
    if isinstance(value, argparse.Namespace):
        flags = {k: v for k, v in vars(value).items() if not k.startswith("codistill_")}
        value = {**flags, **{k: v for k, v in replaced.items() if k in flags}}
    if isinstance(value, dict):
        return type(value)((key, _plain(item, replaced)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, replaced) for item in value)
    return value
