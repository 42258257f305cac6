"""What a run says: fairseq's log lines under the names that the translation side gives them.

``codistill launch``, ``status`` and ``report`` read them: ``train_inner`` every log interval,
``train`` every epoch, ``valid`` after each validation.  Sums over all workers are taken when a
line is due, not at every update.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fairseq_codistill.codistillation import CHANGES, ConfigError, Seam, staleness_asked
from fairseq_codistill.vision.evaluate import Score
from fairseq_codistill.vision.settings import VisionConfig, as_plain
from fairseq_codistill.vision.world import World

TRAIN_INNER, TRAIN, VALID = "train_inner", "train", "valid"

logger = logging.getLogger(__name__)

Values = dict[str, float]

# Sums over images on the device, and over updates on the host.
_ON_DEVICE = ("images", "loss", "nll", "hits", "divergence", "images_with_peers")
_ON_HOST = ("updates", "aged", "staleness", "stall", *CHANGES)


class Sums:
    """What has been added up since the last line, by this worker.

    Args:
        world: the workers that ``total`` adds up.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        zeros = torch.zeros(len(_ON_DEVICE), dtype=torch.float64, device=self._world.device)
        self._on_device: Tensor = zeros
        self._on_host = dict.fromkeys(_ON_HOST, 0.0)

    def add_batch(
        self, loss: Tensor, nll: Tensor, hits: Tensor, images: int, divergence: Tensor | None
    ) -> None:
        """Add a micro-batch's sums over its images; the GPU is not waited for.

        Args:
            loss: what is trained on, in nats.
            nll: cross-entropy, in nats.
            hits: images whose class was the likeliest.
            images: how many there are.
            divergence: without alpha; None if nobody was asked.
        """
        count = torch.full_like(nll, images)
        none = nll.new_zeros(())
        apart = [none, none] if divergence is None else [divergence, count]
        self._on_device += torch.stack([count, loss, nll, hits.to(nll.dtype), *apart]).double()

    def add_update(self, codistillation: Seam | None) -> None:
        """Add what an update has met between groups."""
        self._on_host["updates"] += 1
        if codistillation is None:
            return
        staleness = staleness_asked(codistillation)
        self._on_host["aged"] += staleness is not None
        self._on_host["staleness"] += staleness or 0.0
        self._on_host["stall"] += codistillation.stall
        # A group's changes are its leader's: the other workers see the same.
        for change, count in codistillation.changes.items():
            self._on_host[change] += count if self._world.leader else 0
        codistillation.note_logged()

    def total(self) -> Values:
        """Give the sums over all workers, and begin anew.  A collective."""
        names = [*_ON_DEVICE, *_ON_HOST]
        host = torch.tensor(list(self._on_host.values()), dtype=torch.float64)
        together = torch.cat([self._on_device, host.to(self._on_device.device)])
        total = dict(zip(names, self._world.sum(together).tolist(), strict=True))
        self.clear()
        return total


def means(total: Mapping[str, float], workers: int) -> Values:
    """Turn sums over all workers and updates into what is logged."""
    images = total["images"]
    values = {
        "loss": total["loss"] / images / math.log(2),
        "nll_loss": total["nll"] / images / math.log(2),
        "top1": 100 * total["hits"] / images,
    }
    if total["images_with_peers"] > 0:
        values["codistill_loss"] = total["divergence"] / total["images_with_peers"]
    if total["aged"] > 0:
        values["codistill_staleness"] = total["staleness"] / total["aged"]
    values["codistill_stall"] = total["stall"] / workers
    return values | {f"codistill_{change}": total[change] for change in CHANGES}


class Meters:
    """Adds up what is logged, and tells when a line of training is due.

    Args:
        world: the workers.
        codistils: whether there is anybody to learn from.
    """

    def __init__(self, world: World, codistils: bool) -> None:
        self.sums = Sums(world)
        self._world = world
        self._codistils = codistils
        self._interval: Values = {}
        self._epoch: Values = {}

    def state(self) -> dict[str, Any]:
        """Give what is yet to be logged.  A collective."""
        self._collect()
        return {"interval": dict(self._interval), "epoch": dict(self._epoch)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``."""
        self._interval, self._epoch = dict(state["interval"]), dict(state["epoch"])

    def inner(self) -> Values:
        """Give the values since the last such line.  A collective."""
        self._collect()
        values, self._interval = self._means(self._interval), {}
        return values

    def epoch(self) -> Values:
        """Give the values of the epoch, which is over.  A collective."""
        self._collect()
        values, self._epoch = self._means(self._epoch), {}
        return values

    def _means(self, total: Values) -> Values:
        values = means(total, self._world.size)
        if self._codistils:
            return values
        return {k: v for k, v in values.items() if not k.startswith("codistill_")}

    def _collect(self) -> None:
        new = self.sums.total()
        for sums in (self._interval, self._epoch):
            for name, value in new.items():
                sums[name] = sums.get(name, 0.0) + value


class Log:
    """Writes lines to standard output, and to TensorBoard if asked; the leader's alone.

    Args:
        config: settings.
        leader: whether this worker is to say anything.
        before: seconds that the run has taken in earlier starts.

    Raises:
        ConfigError: if TensorBoard is asked for and not installed.
    """

    def __init__(self, config: VisionConfig, leader: bool, before: float = 0.0) -> None:
        self._leader = leader
        self._json = config.log_format == "json"
        self._start = time.perf_counter() - before
        self._writers: dict[str, Any] = {}
        self._folder = config.tensorboard_logdir if leader else None
        self._bar = leader and sys.stderr.isatty()
        handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
        if leader and config.swaps_predictions:
            # Groups that are started together share their standard output.
            folder = Path(config.save_dir)
            folder.mkdir(parents=True, exist_ok=True)
            handlers.append(logging.FileHandler(folder / "log.txt"))
        logging.basicConfig(
            format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
            datefmt="%Y-%m-%d %H:%M:%S",
            level=logging.INFO if leader else logging.WARNING,
            handlers=handlers,
            force=True,
        )
        if self._folder is not None:
            self._summary_writer = _summary_writer()
        # As fairseq begins, so that `codistill report` knows what sets two runs apart.
        settings = {key: value for key, value in as_plain(config).items() if key != "dry_run"}
        logger.info("%s", {"_name": None, "common": settings})

    def say(self, line: str) -> None:
        """Say something to people."""
        logger.info("%s", line)

    def inner(self, update: int, epoch: int, step: int, steps: int, values: Values) -> None:
        """Write a line of training.

        Args:
            update: updates made.
            epoch: from 1.
            step: updates made in the epoch.
            steps: updates of the epoch.
            values: of the updates since the last such line.
        """
        values = {**values, "num_updates": update, "wall": round(self.seconds)}
        if self._json:
            line = _json({"epoch": epoch, "update": round(epoch - 1 + step / steps, 3)}, values)
        else:
            pairs = ", ".join(f"{name}={_text(value)}" for name, value in values.items())
            line = f"epoch {epoch:03d}: {step:6d} / {steps} {pairs}"
        self._write(TRAIN_INNER, line, update, values)

    def epoch(self, kind: str, update: int, epoch: int, values: Values) -> None:
        """Write a line for an epoch, of training or validation."""
        values = {**values, "num_updates": update, "wall": round(self.seconds)}
        if self._json:
            line = _json({"epoch": epoch}, {f"{kind}_{k}": v for k, v in values.items()})
        else:
            subset = "valid on 'valid' subset | " if kind == VALID else ""
            pairs = " | ".join(f"{name} {_text(value)}" for name, value in values.items())
            line = f"epoch {epoch:03d} | {subset}{pairs}"
        self._write(kind, line, update, values)

    def progress(self, update: int, end: int, epoch: int) -> None:
        """Show how far training is, on a terminal."""
        if self._bar:
            filled = 30 * update // end
            bar = "#" * filled + "." * (30 - filled)
            sys.stderr.write(f"\r[{bar}] update {update}/{end}, epoch {epoch} ")
            sys.stderr.flush()

    def close(self) -> None:
        """Write what is still to be written."""
        for writer in self._writers.values():
            writer.close()

    def _write(self, kind: str, line: str, update: int, values: Values) -> None:
        if self._bar:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        logging.getLogger(kind).info("%s", line)
        if self._folder is not None:
            writer = self._writers.get(kind)
            if writer is None:
                writer = self._writers[kind] = self._summary_writer(f"{self._folder}/{kind}")
            for name, value in values.items():
                writer.add_scalar(name, value, update)
            writer.flush()

    @property
    def seconds(self) -> float:
        """Seconds that the run has taken, in all its starts."""
        return time.perf_counter() - self._start


def of_score(score: Score, best: float | None = None) -> Values:
    """Give an evaluation's values by their names in logs; ``loss`` is the NLL alone."""
    values = {"loss": score.nll, "nll_loss": score.nll, "top1": score.top1, "top5": score.top5}
    values["images"] = score.images
    return values if best is None else values | {"best_top1": best}


def _json(place: Mapping[str, float], values: Values) -> str:
    """As fairseq writes it: the place as numbers, the values as text."""
    return json.dumps({**place, **{name: _text(value) for name, value in values.items()}})


def _text(value: float) -> str:
    # Updates and images are whole numbers of any size.
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError(
            "--tensorboard-logdir needs the package tensorboard; pip install tensorboard, or "
            "leave it out"
        ) from error
    return SummaryWriter
