"""Writing a checkpoint, and loading it as stock fairseq does before it counts as written."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_codistill.errors import UserError
from fairseq_codistill.export import outputs, stock
from fairseq_codistill.export.trained import Trained
from fairseq_codistill.launch.probe import ask

# Seconds; a model may be large, and its disk slow.
PATIENCE = 1800.0


def write_what_stock_fairseq_loads(trained: Trained, path: Path) -> None:
    """Write the first form of a checkpoint that fairseq loads, without the plugin, to ``path``.

    Raises:
        UserError: if it loads none, or gives other outputs.
        OSError: if ``path`` cannot be written.
    """
    forms = [stock.with_settings_as_mappings]
    if isinstance(trained.settings, argparse.Namespace):
        forms.append(stock.with_settings_as_attributes)
    problems = []
    for form in forms:
        _save(form(trained), path)
        problem = _problem(trained, path)
        if problem is None:
            return
        problems.append(problem)
    raise UserError(
        f"CHECKPOINT {trained.checkpoint.path}: its model ({trained.architecture}) cannot be "
        f"exported, as fairseq without the plugin {problems[0]}; use it with its own --user-dir"
    )


def _problem(trained: Trained, path: Path) -> str | None:
    """Load ``path`` in a process without the plugin; return what is wrong, or None."""
    sentences = trained.sentences()
    with tempfile.TemporaryDirectory(prefix="codistill-export-") as directory:
        for dictionary, language in zip(
            trained.dictionaries, (outputs.SOURCE, outputs.TARGET), strict=True
        ):
            dictionary.save(f"{directory}/dict.{language}.txt")
        torch.save(sentences, f"{directory}/sentences.pt")
        # -P: what lies beside the program is not importable by short names.
        argv = [sys.executable, "-P", str(outputs.__file__), str(path.resolve()), directory]
        argv += [f"{directory}/sentences.pt", f"{directory}/outputs.pt"]
        environ = {**os.environ, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "CUDA_VISIBLE_DEVICES": ""}
        # This one overrides the other.
        environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
        answer = ask(argv, environ, PATIENCE)
        if answer.trouble:
            return f"does not load it: it {answer.trouble}"
        theirs = torch.load(f"{directory}/outputs.pt", weights_only=True)
    ours = outputs.logits(trained.model, sentences)
    return None if alike(ours, theirs) else "gives other outputs"


def alike(ours: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = 1e-4) -> bool:
    """Return whether two lists of tensors differ by no more than rounding."""
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and torch.allclose(a, b, tolerance, tolerance, equal_nan=True)
        for a, b in zip(ours, theirs, strict=True)
    )


def _save(state: Any, path: Path) -> None:
    try:
        torch.save(state, path)
    except RuntimeError as error:
        # What torch makes of a full disk.
        raise OSError(" ".join(str(error).split())[:200]) from error
