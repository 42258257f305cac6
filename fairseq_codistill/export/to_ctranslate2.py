"""A model directory of CTranslate2, made by its own converter."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import torch
from fairseq.data import Dictionary, data_utils
from torch import Tensor

from fairseq_codistill import plain
from fairseq_codistill.errors import UserError
from fairseq_codistill.export import outputs, stock
from fairseq_codistill.export.checkpoint import STOCK_TASK, items, namespace
from fairseq_codistill.export.run import Options
from fairseq_codistill.export.trained import Trained
from fairseq_codistill.export.verify import save
from fairseq_codistill.records import printable

# Log-probabilities computed by other code.
_TOLERANCE = 1e-3


def convert(trained: Trained, options: Options, new: Path) -> None:
    """Write the model to the directory ``new``, which must not be there.

    Raises:
        UserError: if CTranslate2 is not installed, cannot take the model, or computes something
            else from it.
    """
    ctranslate2 = _import()
    assert options.data is not None
    source, target = _languages(trained, options)
    dictionaries = [
        _dictionary(options.data, language, len(known))
        for language, known in zip((source, target), trained.dictionaries, strict=True)
    ]
    copy = new.with_name("flat.pt")
    save({"args": _flags(trained), "model": trained.checkpoint.state["model"]}, copy)
    what = f"CHECKPOINT {options.checkpoint}: CTranslate2"
    try:
        # It wants the settings as attributes.
        with plain.allowing([argparse.Namespace]):
            ctranslate2.converters.FairseqConverter(
                str(copy), str(options.data), source_lang=source, target_lang=target
            ).convert(str(new))
        theirs = _scores(ctranslate2, new, trained.sentences, dictionaries)
    except OSError:
        raise
    # What it does not know it does not check, and fails with whatever that leads to.
    except Exception as error:  # noqa: BLE001
        reason = printable(" ".join(f"{type(error).__name__}: {error}".split()), 500)
        raise UserError(
            f"{what} cannot take its model, {trained.architecture} ({reason}); export it with "
            "--format fairseq"
        ) from error
    if not outputs.alike(_log_probabilities(trained), theirs, _TOLERANCE):
        raise UserError(
            f"{what} gives other outputs for its model, {trained.architecture}: some setting is "
            "lost on it; export it with --format fairseq"
        )


def _import() -> Any:
    try:
        import ctranslate2
        import ctranslate2.converters
    except ImportError as error:
        raise UserError(
            f"--format ctranslate2 needs CTranslate2, which cannot be imported ({error}); "
            "pip install 'fairseq-codistill[ctranslate2]'"
        ) from error
    return ctranslate2


def _languages(trained: Trained, options: Options) -> tuple[str, str]:
    task = items(trained.checkpoint.cfg["task"])
    for flag, given, trained_with in (
        ("-s", options.source_lang, task.get("source_lang")),
        ("-t", options.target_lang, task.get("target_lang")),
    ):
        if given and trained_with and given != trained_with:
            raise UserError(
                f"{flag} {given}: the model was trained with {trained_with}; leave it out"
            )
    source = options.source_lang or task.get("source_lang")
    target = options.target_lang or task.get("target_lang")
    if not (source and target):
        with contextlib.suppress(OSError):
            inferred = data_utils.infer_language_pair(str(options.data))
            source, target = source or inferred[0], target or inferred[1]
    if not (source and target):
        raise UserError(
            "neither the checkpoint nor --data tells the languages; give -s SOURCE -t TARGET"
        )
    return str(source), str(target)


def _dictionary(data: Path, language: str, size: int) -> Dictionary:
    path = data / f"dict.{language}.txt"
    if not path.is_file():
        raise UserError(
            f"--data {data} has no dict.{language}.txt; give the directory of training, or other "
            "languages with -s and -t"
        )
    try:
        dictionary = Dictionary.load(str(path))
    except (OSError, ValueError, RuntimeError) as error:
        reason = printable(error, 200)
        raise UserError(f"--data: {path} is no dictionary of fairseq's ({reason})") from error
    if len(dictionary) != size:
        raise UserError(
            f"--data: {path} has {len(dictionary)} symbols, and the model was trained with {size}; "
            "give the directory of training"
        )
    return dictionary


def _flags(trained: Trained) -> argparse.Namespace:
    """Return the settings as the command line of a plain run would be."""
    cfg = stock.with_settings_as_mappings(trained)["cfg"]
    flags = {**cfg["task"], **cfg["model"]}
    flags.pop("_name")
    return namespace({**flags, "arch": trained.architecture, "task": STOCK_TASK})


def _scores(
    ctranslate2: Any, directory: Path, sentences: outputs.Sentences, dictionaries: list[Dictionary]
) -> list[Tensor]:
    """Return the log-probability of each target token that CTranslate2 computes."""
    words = [
        [
            [dictionary.symbols[index] for index in sentence[side]]
            for side, dictionary in enumerate(dictionaries)
        ]
        for sentence in sentences
    ]
    translator = ctranslate2.Translator(str(directory), device="cpu", intra_threads=1)
    results = translator.score_batch([pair[0] for pair in words], [pair[1] for pair in words])
    return [torch.tensor(result.log_probs) for result in results]


def _log_probabilities(trained: Trained) -> list[Tensor]:
    """Return the same of the trained model."""
    end = torch.tensor([trained.dictionaries[1].eos()])
    found = []
    for logits, (_, target) in zip(trained.logits, trained.sentences, strict=True):
        tokens = torch.cat([target, end]).unsqueeze(1)
        found.append(torch.log_softmax(logits, dim=1).gather(1, tokens).squeeze(1))
    return found
