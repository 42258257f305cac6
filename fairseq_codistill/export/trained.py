"""The trained model, built as training built it; what is exported has to give its outputs."""

from __future__ import annotations

import argparse
import copy
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from fairseq.data import Dictionary
from fairseq.models import FairseqEncoderDecoderModel
from fairseq.tasks import FairseqTask
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from torch import Tensor

from fairseq_codistill.errors import UserError
from fairseq_codistill.export import guard, outputs
from fairseq_codistill.export.architecture import stock_architecture
from fairseq_codistill.export.checkpoint import Checkpoint, items, namespace
from fairseq_codistill.records import printable

_SENTENCES, _LONGEST = 3, 7


@dataclass(frozen=True)
class Trained:
    """A trained model.

    Attributes:
        checkpoint: where it is from.
        architecture: the name of fairseq's own architecture that builds it.
        settings: its configuration.
        dictionaries: of the sizes of its source and target dictionaries, with made-up words.
        sentences: some made-up pairs of sentences.
        logits: what it gives for them.
    """

    checkpoint: Checkpoint
    architecture: str
    settings: argparse.Namespace
    dictionaries: tuple[Dictionary, Dictionary]
    sentences: outputs.Sentences
    logits: list[Tensor]


def trained_model(checkpoint: Checkpoint, user_dir: Path | None) -> Trained:
    """Build the model of a checkpoint as training did, and see what it gives.

    Args:
        checkpoint: with its weights.
        user_dir: what registers its architecture, if fairseq does not.

    Raises:
        UserError: if fairseq itself has no such model, or it cannot be built.
    """
    settings = _settings(checkpoint)
    name = settings.arch
    if not isinstance(name, str):
        raise UserError(f"CHECKPOINT {checkpoint.path} names no architecture; give another one")
    trained_with = items(checkpoint.cfg["common"]).get("user_dir")
    architecture = stock_architecture(name, user_dir, trained_with)
    guard.check(architecture, vars(settings))
    dictionaries = (_dictionary(checkpoint, "encoder"), _dictionary(checkpoint, "decoder"))
    try:
        model = _built(checkpoint, settings, dictionaries)
        sentences = _sentences(model, dictionaries)
        logits = outputs.logits(model, sentences)
    # fairseq checks nothing, and fails with whatever a wrong setting leads to.
    except Exception as error:  # noqa: BLE001
        reason = printable(f"{type(error).__name__}: {error}", 300)
        raise UserError(
            f"CHECKPOINT {checkpoint.path}: fairseq cannot build its model ({reason}); see "
            "whether fairseq-generate takes it with its own --user-dir"
        ) from error
    return Trained(checkpoint, architecture, settings, dictionaries, sentences, logits)


def _built(
    checkpoint: Checkpoint,
    settings: argparse.Namespace,
    dictionaries: tuple[Dictionary, Dictionary],
) -> FairseqEncoderDecoderModel:
    task = TranslationTask(TranslationConfig(), *dictionaries)
    # fairseq fills in what is missing.
    model = FairseqTask.build_model(task, copy.deepcopy(settings), from_checkpoint=True)
    model.load_state_dict(dict(checkpoint.state["model"]), strict=True)
    return model


def _sentences(
    model: FairseqEncoderDecoderModel, dictionaries: tuple[Dictionary, Dictionary]
) -> outputs.Sentences:
    """Return some sentences to compare the outputs of two models with."""
    generator = torch.Generator().manual_seed(1)
    limits = [int(limit) for limit in model.max_positions() if limit is not None]
    longest = max(min([_LONGEST, *limits]) - 1, 1)

    def words(dictionary: Dictionary, count: int) -> Tensor:
        # A dictionary may have no words of its own.
        first = min(dictionary.nspecial, len(dictionary) - 1)
        return torch.randint(first, len(dictionary), (count,), generator=generator)

    lengths = range(longest, max(longest - _SENTENCES, 0), -1)
    source, target = dictionaries
    return [(words(source, length), words(target, length)) for length in lengths]


def _settings(checkpoint: Checkpoint) -> argparse.Namespace:
    """Return the configuration of the model, without the files that it was begun from.

    fairseq-train writes a namespace and fairseq-hydra-train a dictionary, with the same names.
    """
    model = items(checkpoint.cfg["model"])
    name = model.get("_name") or model.get("arch")
    return namespace({**guard.without_files(model), "_name": name, "arch": name})


def _dictionary(checkpoint: Checkpoint, side: str) -> Dictionary:
    """Make a dictionary of the size of that of the encoder or the decoder."""
    tensors = checkpoint.state["model"]
    # The encoder of fconv_self_att is a part of another one.
    name = rf"{side}\.({side}\.)?embed_tokens\.weight"
    weight = next((tensors[key] for key in tensors if re.fullmatch(name, key)), None)
    dictionary = Dictionary()
    if weight is None or weight.dim() != 2 or len(weight) < len(dictionary):
        raise UserError(
            f"CHECKPOINT {checkpoint.path}: its {side} has no embeddings of words, so it is no "
            "model that codistill export knows"
        )
    for number in range(len(weight) - len(dictionary)):
        dictionary.add_symbol(f"word{number}")
    return dictionary
