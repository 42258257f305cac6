"""Teachers from fairseq checkpoints: this user's own files, trusted as fairseq trusts them."""

import argparse
import pickle
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationTask
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fairseq_codistill.codistillation import ConfigError, cuda_devices
from fairseq_codistill.records import get_logger
from fairseq_codistill.tasks import _models, _peer_config

logger = get_logger(__name__)


def load(path: str, task: TranslationTask, student: nn.Module) -> nn.Module:
    """Give the model of a checkpoint, with its weights, on the CPU.

    Args:
        path: the checkpoint, of any architecture with plain logits.
        task: gives the dictionaries, which have to be the teacher's.
        student: whose sentences it has to take.

    Raises:
        ConfigError: if there is no checkpoint, its model gives no plain logits or takes shorter
            sentences only, or it was trained with other vocabularies, as far as that shows.
    """
    flag = f"--codistill-teachers {path}"
    state = _read(path, flag)
    try:
        cfg = state["cfg"]
        if state.get("args") is not None:
            cfg = convert_namespace_to_omegaconf(state["args"])
        settings, trained, weights = cfg["model"], cfg["task"], state["model"]
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{flag} is no checkpoint of fairseq; name another") from error
    _compare_vocabularies(flag, trained, task)
    try:
        # Building draws random numbers, which the student's training must not notice.
        with torch.random.fork_rng(devices=cuda_devices()):
            model = FairseqTask.build_model(task, _without_files(settings))
    except Exception as error:
        raise ConfigError(
            f"{flag}: its model cannot be built ({_said(error)}); name another checkpoint, or give "
            "--user-dir what its architecture needs"
        ) from error
    reason = _models.why_no_logits(model, task)
    if reason is not None:
        raise ConfigError(f"{flag}: {reason}; name another")
    try:
        model.load_state_dict(weights)
    except (RuntimeError, KeyError) as error:
        raise ConfigError(
            f"{flag} does not fit this run's vocabularies, of {len(task.source_dictionary)} and "
            f"{len(task.target_dictionary)} symbols ({_said(error)}); name a model trained with "
            "the same dictionaries"
        ) from error
    _models.clear_unused(model)
    _models.fuse_attention(model)
    _compare_lengths(flag, settings, model, student)
    return model


def _read(path: str, flag: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(f"{flag} is not there; name checkpoints, with a colon between them")
    try:
        return dict(checkpoint_utils.load_checkpoint_to_cpu(path))
    except (
        *(OSError, EOFError, RuntimeError, ValueError, KeyError, TypeError, AttributeError),
        pickle.UnpicklingError,
    ) as error:
        raise ConfigError(
            f"{flag} cannot be read ({_said(error)}); name another checkpoint"
        ) from error


def _without_files(settings: argparse.Namespace | DictConfig) -> argparse.Namespace | DictConfig:
    """Forget pretrained files: the weights are in the checkpoint, and those need not be here."""
    named = isinstance(settings, argparse.Namespace)
    values = vars(settings) if named else OmegaConf.to_container(settings)
    needed = _peer_config.required_flags(settings.arch) if named else set()
    values = {
        name: None if name.endswith("_path") and name not in needed else value
        for name, value in values.items()
    }
    return argparse.Namespace(**values) if named else OmegaConf.create(values)


def _compare_vocabularies(flag: str, trained: Any, task: TranslationTask) -> None:
    """Refuse a teacher whose words are others; a checkpoint does not have them, its data does."""
    folder = Path(str(getattr(trained, "data", None) or "").split(":")[0])
    languages = [getattr(trained, f"{side}_lang", None) for side in ("source", "target")]
    if None in languages and folder.is_dir():
        languages = list(data_utils.infer_language_pair(str(folder)))
    own = {"source": task.source_dictionary, "target": task.target_dictionary}
    for (side, dictionary), language in zip(own.items(), languages, strict=True):
        path = folder / f"dict.{language}.txt"
        if not path.is_file():
            logger.info(
                "%s: the %s dictionary it was trained with, %s, is not here to compare; it is "
                "taken to be this run's",
                *(flag, side, path),
            )
        elif Dictionary.load(str(path)).symbols != dictionary.symbols:
            raise ConfigError(
                f"{flag} was trained with another {side} vocabulary, {path}; name a model trained "
                "with the dictionaries of this run"
            )


def _compare_lengths(flag: str, settings: Any, model: Any, student: Any) -> None:
    """Refuse a teacher that has learned fewer positions than the student's sentences may have."""
    for side, theirs, ours in zip(
        ("encoder", "decoder"), model.max_positions(), student.max_positions(), strict=True
    ):
        learned = getattr(settings, f"{side}_learned_pos", False)
        if learned and theirs < ours:
            raise ConfigError(
                f"{flag}: its {side} has learned {theirs} positions, and sentences may have {ours} "
                "here; lower --max-source-positions and --max-target-positions, or name another"
            )


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
