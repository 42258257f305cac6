"""Writing a checkpoint, and loading it as stock fairseq does before it counts as written."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from fairseq_codistill.errors import UserError
from fairseq_codistill.export import outputs, stock
from fairseq_codistill.export.trained import Trained
from fairseq_codistill.launch.probe import ask, last_line

# Seconds; a model may be large, and its disk slow.
PATIENCE = 1800.0


def write_what_stock_fairseq_loads(trained: Trained, path: Path) -> None:
    """Write the first form of a checkpoint that fairseq loads, without the plugin, to ``path``.

    Args:
        trained: the model.
        path: in a directory of its own, which takes what else is needed.

    Raises:
        UserError: if it loads none, or gives other outputs.
        OSError: if something cannot be written.
    """
    for dictionary, language in zip(
        trained.dictionaries, (outputs.SOURCE, outputs.TARGET), strict=True
    ):
        dictionary.save(str(path.parent / f"dict.{language}.txt"))
    expected = path.parent / "expected.pt"
    save((trained.sentences, trained.logits), expected)
    problems = []
    for form in (stock.with_settings_as_mappings, stock.with_settings_as_attributes):
        save(form(trained), path)
        problem = _problem(path, expected)
        if problem is None:
            return
        problems.append(problem)
    raise UserError(
        f"CHECKPOINT {trained.checkpoint.path}: its model ({trained.architecture}) cannot be "
        f"exported, as fairseq without the plugin {problems[0]}; use it with its own --user-dir"
    )


def save(value: Any, path: Path) -> None:
    """Save something with ``torch.save``.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        # A file of Python's says why it cannot be written, for example that the disk is full.
        with path.open("wb") as file:
            torch.save(value, file)
    except RuntimeError as error:
        # What torch makes of it, beside what the file has said.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise OSError(" ".join(str(error).split())[:200]) from error


def _problem(path: Path, expected: Path) -> str | None:
    """Load ``path`` in a process without the plugin; return what is wrong, or None."""
    # -P: what lies beside the program is not importable by short names.
    argv = [sys.executable, "-P", str(outputs.__file__)]
    argv += [str(file.resolve()) for file in (path, path.parent, expected)]
    environ = {**os.environ, "TORCH_FORCE_WEIGHTS_ONLY_LOAD": "1", "CUDA_VISIBLE_DEVICES": ""}
    # torch refuses to have both.
    environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    answer = ask(argv, environ, PATIENCE)
    if answer.trouble:
        return f"does not load it: it {answer.trouble}"
    said = last_line(answer.out)
    return None if said == outputs.SAME else f"gives {outputs.OTHER}"
