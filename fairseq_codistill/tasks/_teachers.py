"""Teachers from fairseq checkpoints: this user's own files, and so read as fairseq reads them."""

import argparse
import logging
import pickle
from pathlib import Path
from typing import Any

from fairseq import checkpoint_utils
from fairseq.data import Dictionary, data_utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.tasks.translation import TranslationTask
from omegaconf import DictConfig
from torch import Tensor, nn

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.tasks import _models

logger = logging.getLogger(__name__)


def load(path: str, task: TranslationTask, like: Tensor) -> nn.Module:
    """Give the model of a checkpoint, with its weights.

    Args:
        path: the checkpoint, of any architecture with plain logits.
        task: gives the dictionaries, which have to be the teacher's.
        like: a parameter of the student; the model is on its device and of its dtype.

    Raises:
        ConfigError: if there is no checkpoint, its model has adaptive softmax, or it was trained
            with another vocabulary, as far as that shows.
    """
    flag = f"--codistill-teachers {path}"
    state = _read(path, flag)
    cfg = state.get("cfg")
    if state.get("args") is not None:
        cfg = convert_namespace_to_omegaconf(state["args"])
    if not cfg or "model" not in cfg or not isinstance(state.get("model"), dict):
        raise ConfigError(f"{flag} is no checkpoint of fairseq; name another")
    _compare_vocabularies(flag, cfg, task)
    settings: argparse.Namespace | DictConfig = cfg["model"]
    if getattr(settings, "adaptive_softmax_cutoff", None):
        raise ConfigError(
            f"{flag}: its model has adaptive softmax, and so no plain logits to compare; name "
            "another"
        )
    try:
        model = _models.build(task, settings, _models.describe(settings), like)
        model.load_state_dict(state["model"])
    except (RuntimeError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"{flag} does not fit this group's vocabularies, of "
            f"{len(task.source_dictionary)} and {len(task.target_dictionary)} symbols ({said}); "
            "name a model trained with the same dictionaries"
        ) from error
    return model


def _read(path: str, flag: str) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ConfigError(f"{flag} is not there; name checkpoints, with a colon between them")
    try:
        state = checkpoint_utils.load_checkpoint_to_cpu(path)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError) as error:
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{flag} cannot be read ({said}); name another checkpoint") from error
    return dict(state)


def _compare_vocabularies(flag: str, cfg: Any, task: TranslationTask) -> None:
    """Refuse a teacher whose words are others; a checkpoint does not have them, its data does."""
    trained = cfg.get("task") or {}
    folder = Path(str(trained.get("data") or "").split(":")[0])
    language = trained.get("target_lang")
    if language is None and folder.is_dir():
        language = data_utils.infer_language_pair(str(folder))[1]
    dictionary = folder / f"dict.{language}.txt"
    if not dictionary.is_file():
        logger.info(
            "%s: the dictionary it was trained with, %s, is not here to compare; it is taken to be "
            "this run's",
            flag,
            dictionary,
        )
        return
    if Dictionary.load(str(dictionary)).symbols != task.target_dictionary.symbols:
        raise ConfigError(
            f"{flag} was trained with another target vocabulary, {dictionary}; name a model "
            "trained with the dictionaries of this run"
        )
