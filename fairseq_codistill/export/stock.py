"""Checkpoints of fairseq's own translation task, of tensors and plain containers only."""

from __future__ import annotations

import argparse
import dataclasses
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from fairseq.tasks.translation import TranslationConfig

from fairseq_codistill.export.checkpoint import STOCK_TASK, items, namespace
from fairseq_codistill.export.trained import Trained

_CRITERION_CLASSES = {
    "cross_entropy": "CrossEntropyCriterion",
    "label_smoothed_cross_entropy": "LabelSmoothedCrossEntropyCriterion",
}


def with_settings_as_mappings(trained: Trained) -> dict[str, Any]:
    """Return a checkpoint in the form that fairseq writes now, namespaces as dictionaries."""
    state, cfg = trained.checkpoint.state, trained.checkpoint.cfg
    criterion = _criterion(items(cfg["criterion"]))
    history = [dict(entry) for entry in state.get("optimizer_history") or [{}]]
    history[-1]["criterion_name"] = _CRITERION_CLASSES[criterion["_name"]]
    extra = items(state.get("extra_state"))
    stock = {
        "args": None,
        "cfg": {
            **cfg,
            "common": {**items(cfg["common"]), "user_dir": None},
            "task": _task(items(cfg["task"])),
            "criterion": criterion,
            "model": namespace(
                {
                    **vars(trained.settings),
                    "arch": trained.architecture,
                    "_name": trained.architecture,
                }
            ),
        },
        "model": state["model"],
        "criterion": {},
        "optimizer_history": history,
        "task_state": {},
        "extra_state": {k: extra[k] for k in ("train_iterator", "val_loss", "best") if k in extra},
        "last_optimizer_state": None,
    }
    replaced = {"task": STOCK_TASK, "criterion": criterion["_name"], "user_dir": None}
    return {key: _plain(value, replaced) for key, value in stock.items()}


def with_settings_as_attributes(trained: Trained) -> dict[str, Any]:
    """Return a checkpoint in the form that fairseq wrote before it had sections.

    Some architectures without a dataclass fail if their settings are what fairseq makes of a
    dictionary: they want real lists, or ask for ``vars()``.  In this form they get a namespace
    made of the attributes of ``args``.  An OrderedDict is the one plain container that may have
    attributes.
    """
    stock = with_settings_as_mappings(trained)
    cfg = stock["cfg"]
    flags = {
        **cfg["task"],
        **cfg["criterion"],
        **cfg["model"],
        "arch": trained.architecture,
        "task": STOCK_TASK,
        "criterion": cfg["criterion"]["_name"],
        "user_dir": None,
    }
    del flags["_name"]
    args = OrderedDict(flags)
    vars(args).update(flags)
    return {**stock, "args": args}


def _task(task: dict[str, Any]) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(TranslationConfig)}
    return {**{key: task[key] for key in task if key in known}, "_name": STOCK_TASK}


def _criterion(criterion: dict[str, Any]) -> dict[str, Any]:
    stock: dict[str, Any] = {"_name": "cross_entropy"}
    if criterion.get("label_smoothing"):
        stock = {
            "_name": "label_smoothed_cross_entropy",
            "label_smoothing": criterion["label_smoothing"],
            "report_accuracy": False,
            "ignore_prefix_size": 0,
        }
    return {**stock, "sentence_avg": criterion.get("sentence_avg", False)}


def _plain(value: Any, replaced: Mapping[str, Any]) -> Any:
    """Return ``value`` with every namespace as a dict.

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
