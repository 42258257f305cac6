"""Checkpoints: all that a resumed run needs to be the unbroken one.

The order of the images, the augmentation, dropout and the schedules are functions of the seed and
the update (see ``seeds`` and ``schedules``), so that the number of updates is their state.  A
checkpoint holds no peer.  Files have fairseq's names, by which ``codistill launch`` knows them.
"""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision.settings import LAST

FORMAT = 1
BEST = "checkpoint_best.pt"

# What must be as it was for training to go on as if it had never stopped, and the flag to see to.
_SAME = {
    "run_id": "--codistill-run-id",
    "group": "--codistill-group",
    "seed": "--seed",
    "arch": "--arch",
    "classes": "--data",
    "images_per_update": "--batch-size, --update-freq or the workers",
    "updates_per_epoch": "--data, --data-fraction or --shard-data",
    # The optimizer's state has these, and would keep them.
    "momentum": "--momentum",
    "nesterov": "--nesterov",
    "norm_weight_decay": "--norm-weight-decay",
}


@dataclass
class Checkpoint:
    """The state of a run between two updates.

    Attributes:
        update: updates made.
        run: what the run is, by the names of ``_SAME``; plain values.
        config: the model's configuration, as in the manifest of a snapshot.
        classes: names.
        model: names -> tensors.
        optimizer: its state.
        scaler: of float16's loss scale; empty without it.
        best: the highest top-1 in validation so far, in percent; None before the first.
        logged: sums for log lines that are yet to come.
        settings: the command's, for people.
        seconds: what the run has taken so far, in all its starts.
    """

    update: int
    run: dict[str, Any]
    config: dict[str, Any]
    classes: list[str]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] = field(default_factory=dict)
    best: float | None = None
    logged: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def _at_once() -> None:
    """Wait for nothing."""


def write(checkpoint: Checkpoint, path: Path, ready: Callable[[], None] = _at_once) -> None:
    """Write a checkpoint; a reader finds the one before or this one, and never a part.

    Args:
        checkpoint: what to write.
        path: where.
        ready: called once the file is whole, before it takes its name.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    # A kill in ``copy`` may have left it, as a second name of a checkpoint to be kept.
    temporary.unlink(missing_ok=True)
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **vars(checkpoint)}, file)
        file.flush()
        os.fsync(file.fileno())
    ready()
    os.replace(temporary, path)


def copy(source: Path, target: Path, ready: Callable[[], None] = _at_once) -> None:
    """Give a checkpoint a second name, which it keeps when the first gets another content.

    Args:
        source: the checkpoint.
        target: the second name.
        ready: as for ``write``.
    """
    temporary = target.with_name(f"{target.name}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:
        # Not every file system has links.
        temporary.write_bytes(source.read_bytes())
    ready()
    os.replace(temporary, target)


def read(path: Path, flag: str = "--restore-file") -> Checkpoint:
    """Read a checkpoint; tensors and plain containers only, no code.

    Args:
        path: the file.
        flag: named in errors.

    Raises:
        ConfigError: if it is not there, torn, or not one of this program's.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{flag} {path} is not there; name a checkpoint") from None
    except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        why = "is torn" if not zipfile.is_zipfile(path) else "cannot be read"
        said = " ".join(str(error).split())[:200]
        raise ConfigError(f"{flag} {path} {why} ({said}); remove it, or name another") from error
    if not isinstance(state, dict) or state.pop("format", None) != FORMAT or "run" not in state:
        raise ConfigError(
            f"{flag} {path} is no checkpoint of fairseq_codistill.vision; name another"
        )
    return Checkpoint(**state)


def to_resume_from(restore_file: str, save_dir: Path) -> Path | None:
    """Give the file that ``--restore-file`` means, or None to start afresh."""
    if restore_file != LAST:
        return Path(restore_file)
    path = save_dir / LAST
    return path if path.exists() else None


def check_same(checkpoint: Checkpoint, path: Path, run: dict[str, Any]) -> None:
    """Make sure that a checkpoint is of this very run.

    Raises:
        ConfigError: if it is not.
    """
    for name, flag in _SAME.items():
        # Checkpoints of earlier versions lack some.
        before, now = checkpoint.run.get(name, run[name]), run[name]
        if before != now:
            what = name.replace("_", " ")
            raise ConfigError(
                f"{flag}: {what} is now {now!r:.80}, and the checkpoint {path} has {before!r:.80}; "
                "go on as it began, or give another --save-dir to begin anew"
            )
