"""Training: one worker of one group, from its first update to its last."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fairseq_codistill.codistillation import (
    CodistillationConfig,
    ConfigError,
    Seam,
    leave_evidence,
    peers_asked,
)
from fairseq_codistill.vision import checkpoint, data, logs, models, plan
from fairseq_codistill.vision.checkpoint import Checkpoint
from fairseq_codistill.vision.diagnostics import Distance
from fairseq_codistill.vision.evaluate import Score, evaluate
from fairseq_codistill.vision.join import join, load_teachers
from fairseq_codistill.vision.optimizer import optimizer_of
from fairseq_codistill.vision.seeds import Use, seed
from fairseq_codistill.vision.settings import LAST, VisionConfig, as_plain
from fairseq_codistill.vision.world import World

_AMP_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Trainer:
    """A group's model and all that training it takes; each worker of the group makes one.

    Nothing is written before everything that can be wrong has been looked at.

    Args:
        config: checked settings.
        world: the group's workers.
        counterparts: if groups swap predictions, the one worker of each that this one swaps with.

    Raises:
        ConfigError: if settings, data, model and checkpoint do not fit together.
    """

    def __init__(
        self, config: VisionConfig, world: World, counterparts: dist.ProcessGroup | None = None
    ) -> None:
        self._world = world
        self._counterparts = counterparts
        self._folders = data.find(config.data)
        self._alpha_given = config.codistill_alpha is not None
        config = config.for_classes(len(self._folders.classes))
        self._config = config
        self._order = order_of(config, len(self._folders.train), world.size)
        self._order.check()
        self._per_epoch = self._order.updates_per_epoch
        self._end = plan.updates_in_all(config, self._per_epoch)
        if config.amp == "fp16" and world.device.type == "cpu":
            raise ConfigError("--amp fp16 needs a GPU; give --amp bf16 or none on the CPU")
        self._described = models.describe(
            config.arch, len(self._folders.classes), config.width, config.image_size
        )
        models.check_image_size(self._described, config.image_size)
        models.check_batch_size(self._described, config.image_size, config.batch_size)
        self._format = torch.channels_last if config.channels_last else torch.contiguous_format
        torch.manual_seed(config.seed)
        self._model = models.student(self._described, config.zero_init_gamma)
        self._model.to(world.device, memory_format=self._format)  # type: ignore[call-overload]
        # Of the initial weights, which a resumed run draws again.
        self._distance = Distance(self._model)
        self._optimizer = optimizer_of(self._model, config)
        self._scaler = torch.amp.GradScaler(world.device.type, enabled=config.amp == "fp16")
        self._rate = config.learning_rate(self._order.images_per_update)
        self._decay = config.weight_decays()
        self._update = 0
        self._best: float | None = None
        self._seconds = 0.0
        # When they were last asked.
        self._peers: int | None = None
        self._meters = logs.Meters(world, codistils=config.codistils)
        self._folder = Path(config.save_dir)
        self._resumed_from = self._resume()
        if self._update == 0 and config.check_images:
            own = [self._folders.train[index] for index in self._order.images]
            data.check_headers([path for path, _ in (*own, *self._folders.valid)], world)
        self._teachers = load_teachers(
            config, self._folders, self._model, self._described, self._format
        )
        self._log = logs.Log(config, world.leader, self._seconds)

    def run(self) -> None:
        """Train to the end.

        Raises:
            ConfigError: if an image cannot be read, or the groups do not fit together.
            ExchangeError: if the exchange cannot be used, or in lockstep a peer is missing.
        """
        if self._world.leader:
            self._folder.mkdir(parents=True, exist_ok=True)
        for line in plan.describe(self._config, self._world.size, self._per_epoch):
            self._log.say(line)
        if self._config.codistils and not self._alpha_given:
            self._log.say(plan.chosen_alpha(self._config, len(self._folders.classes)))
        if self._resumed_from is not None:
            self._log.say(f"going on from {self._resumed_from}, update {self._update}")
        start = time.perf_counter()
        codistillation = join(
            config=self._config,
            folders=self._folders,
            model=self._model,
            described=self._described,
            memory_format=self._format,
            teachers=self._teachers,
            counterparts=self._counterparts,
            update=self._update,
            updates=self._end,
        )
        try:
            self._train(codistillation)
        except BaseException as error:
            if codistillation is not None:
                codistillation.abandon(str(error) if isinstance(error, _Diverged) else None)
            raise
        if codistillation is not None:
            codistillation.finish(self._update)
        if self._world.leader:
            settings = CodistillationConfig.of(self._config)
            reason = plan.why_it_ends(self._config, self._per_epoch)
            leave_evidence(self._folder, settings, self._update, reason, codistillation)
        self._log.say(f"done training in {time.perf_counter() - start:.1f} seconds")
        self._log.close()

    def _train(self, codistillation: Seam | None) -> None:
        if self._update == self._end:
            self._log.say(f"nothing to do: update {self._end} is the last one")
            return
        config, first = self._config, self._update
        train = data.training_loader(
            config, self._folders, self._order, self._world, first, self._end
        )
        batches = data.batches_of(train, self._world.device)
        valid = data.evaluation_loader(config, self._folders.valid, self._world)
        seen = self._sample_of_training_images()
        train_sample = data.evaluation_loader(config, seen, self._world) if seen else None
        model = self._for_training()
        model.train()
        began = time.perf_counter()
        for update in range(first, self._end):
            epoch = self._order.epoch_of(update)
            self._make(update, epoch, model, batches, codistillation)
            made = self._update = update + 1
            step = made - (epoch - 1) * self._per_epoch
            self._log.progress(made, self._end, epoch)
            if made % config.log_interval == 0:
                speed = (made - first) / (time.perf_counter() - began)
                images = speed * self._order.images_per_update
                speeds = {"ups": speed, "images_per_second": images}
                now = self._now(update, codistillation)
                values = {**self._meters.inner(), **now, **speeds}
                self._log.inner(made, epoch, step, self._per_epoch, values)
                _check_finite(values["loss"], made)
            over = made == self._end
            epoch_over = over or step == self._per_epoch
            if epoch_over:
                now = self._now(update, codistillation)
                values = {**self._meters.epoch(), **now, "distance": self._distance(self._model)}
                validate = over or epoch % config.validate_interval == 0
                if validate and train_sample is not None:
                    score = self._evaluate(train_sample)
                    values |= {"eval_nll_loss": score.nll, "eval_top1": score.top1}
                self._log.epoch(logs.TRAIN, made, epoch, values)
                better = validate and self._validate(self._evaluate(valid), epoch)
            else:
                better = False
            every = config.save_interval_updates
            due = over or (epoch_over and epoch % config.save_interval == 0)
            self._save(better, last=due or (every > 0 and made % every == 0))

    def _make(
        self,
        update: int,
        epoch: int,
        model: nn.Module,
        batches: Iterator[tuple[Tensor, Tensor]],
        codistillation: Seam | None,
    ) -> None:
        """Make one update (Algorithm 1, for this group)."""
        # Each worker drops other units, and what it drops depends on nothing but the update.
        torch.manual_seed(seed(Use.UPDATE, self._config.seed, update, self._world.rank))
        if codistillation is not None:
            codistillation.at_boundary(update, epoch)
            asked = peers_asked(codistillation)
            self._peers = self._peers if asked is None else asked
        self._set_schedules(update)
        self._optimizer.zero_grad()
        freq = self._config.update_freq
        for micro_batch in range(freq):
            images, targets = next(batches)
            with self._gradients_kept_here(model, micro_batch < freq - 1):
                loss = self._loss(model, images, targets, codistillation)
                self._scaler.scale(loss / freq if freq > 1 else loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._meters.sums.add_update(codistillation)

    def _loss(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        codistillation: Seam | None,
    ) -> Tensor:
        """Give a micro-batch's mean of cross-entropy + alpha * mean over the live peers of D."""
        smoothing = self._config.label_smoothing
        with self._precision():
            inputs = data.normalise(images)
            logits = model(inputs)
            nll = F.cross_entropy(logits, targets)
            loss = nll
            if smoothing > 0:
                loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
            rows = None
            if codistillation is not None:
                rows = codistillation.term(
                    logits, lambda peer: peer(inputs.to(_dtype(peer))), targets
                )
            if codistillation is not None and rows is not None:
                loss = loss + codistillation.weight * rows.mean()
        count = len(targets)
        self._meters.sums.add_batch(
            loss=loss.detach() * count,
            nll=nll.detach() * count,
            hits=(logits.detach().argmax(dim=1) == targets).sum(),
            images=count,
            divergence=None if rows is None else rows.detach().sum(),
        )
        return loss

    def _set_schedules(self, update: int) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(update, self._per_epoch)
            if group["decays"]:
                group["weight_decay"] = self._decay(update, self._per_epoch)

    def _now(self, update: int, codistillation: Seam | None) -> logs.Values:
        """Give what has one value at an update."""
        values = {
            "lr": self._rate(update, self._per_epoch),
            "weight_decay": self._decay(update, self._per_epoch),
        }
        if self._scaler.is_enabled():
            values["loss_scale"] = self._scaler.get_scale()
        if codistillation is not None:
            values["codistill_alpha"] = codistillation.alpha
            if self._peers is not None:
                values["codistill_peers"] = self._peers
        return values

    def _evaluate(self, loader: Any) -> Score:
        return evaluate(self._model, loader, self._world, self._precision)

    def _validate(self, score: Score, epoch: int) -> bool:
        """Log a validation, and tell whether it is the best so far."""
        better = self._best is None or score.top1 > self._best
        self._best = score.top1 if self._best is None else max(score.top1, self._best)
        self._log.epoch(logs.VALID, self._update, epoch, logs.of_score(score, self._best))
        return better

    def _save(self, better: bool, last: bool) -> None:
        """Write what is due.  A collective."""
        if not (better or last):
            return
        logged = self._meters.state()
        # What has not been in a log line yet: what comes to nothing must not be gone on from.
        _check_finite(logged["interval"].get("loss", 0.0), self._update)
        state = Checkpoint(
            update=self._update,
            run=self._run(),
            config=self._described,
            classes=list(self._folders.classes),
            model=self._model.state_dict(),
            optimizer=self._optimizer.state_dict(),
            scaler=self._scaler.state_dict(),
            best=self._best,
            logged=logged,
            settings=as_plain(self._config),
            seconds=self._log.seconds,
        )
        if not self._world.leader:
            return
        # The best one first: a run that is killed in between has not yet gone beyond it.
        if better:
            checkpoint.write(state, self._folder / checkpoint.BEST)
        if better and last:
            checkpoint.copy(self._folder / checkpoint.BEST, self._folder / LAST, self._meet)
        elif last:
            checkpoint.write(state, self._folder / LAST, self._meet)

    def _meet(self) -> None:
        """Wait for the other groups, if they go in step: they go on from one update together."""
        if self._counterparts is not None:
            dist.barrier(group=self._counterparts)

    def _resume(self) -> Path | None:
        """Go on from a checkpoint, if there is one; give its path."""
        path = checkpoint.to_resume_from(self._config.restore_file, self._folder)
        if path is None:
            return None
        state = checkpoint.read(path)
        checkpoint.check_same(state, path, self._run())
        if state.update > self._end:
            raise ConfigError(
                f"--epochs {self._config.epochs} or --max-update ends at update {self._end}, and "
                f"the checkpoint {path} has {state.update}; give more"
            )
        self._model.load_state_dict(state.model)
        self._optimizer.load_state_dict(state.optimizer)
        if state.scaler:
            self._scaler.load_state_dict(state.scaler)
        self._update, self._best, self._seconds = state.update, state.best, state.seconds
        if self._world.leader:
            # Its sums are those of all workers.
            self._meters.restore(state.logged)
        return path

    def _run(self) -> dict[str, Any]:
        """Give what a checkpoint must have in common with the run that goes on from it."""
        return {
            "run_id": self._config.codistill_run_id,
            "group": self._config.codistill_group,
            "seed": self._config.seed,
            "arch": self._described,
            "classes": self._folders.digest,
            "images_per_update": self._order.images_per_update,
            "updates_per_epoch": self._per_epoch,
            "momentum": self._config.momentum,
            "nesterov": self._config.nesterov,
            "norm_weight_decay": self._config.norm_weight_decay,
        }

    def _sample_of_training_images(self) -> list[tuple[str, int]]:
        """Give the images to evaluate the training loss on, evenly from all classes."""
        own = self._order.images
        count = min(self._config.eval_train_images, len(own))
        return [self._folders.train[own[i]] for i in np.arange(count) * len(own) // max(count, 1)]

    def _for_training(self) -> nn.Module:
        """Give the model as it is called in training."""
        if self._config.compile:
            # In place: the names of parameters and buffers stay.
            self._model.compile()
        if self._world.size == 1:
            return self._model
        on_gpu = self._world.device.type == "cuda"
        return DistributedDataParallel(
            self._model,
            device_ids=[self._world.device.index] if on_gpu else None,
            process_group=self._world.process_group,
        )

    def _precision(self) -> AbstractContextManager:
        if self._config.amp == "none":
            return nullcontext()
        return torch.autocast(self._world.device.type, _AMP_DTYPES[self._config.amp])

    @staticmethod
    def _gradients_kept_here(model: nn.Module, keep: bool) -> AbstractContextManager:
        """Average over the workers with an update's last micro-batch only."""
        if keep and isinstance(model, DistributedDataParallel):
            return model.no_sync()
        return nullcontext()


def order_of(config: VisionConfig, images: int, workers: int) -> data.Order:
    """Give the order in which a group with so many workers sees the training images.

    Args:
        config: checked settings.
        images: how many training images there are.
        workers: of the group.
    """
    shards = config.codistill_num_groups if config.shard_data else 1
    shard = config.codistill_group if config.shard_data else 0
    return data.Order(
        images=data.part(images, config.fraction, shards, shard),
        seed=config.order_seed,
        batch_size=config.batch_size,
        workers=workers,
        update_freq=config.update_freq,
    )


class _Diverged(ConfigError):
    """The loss is not finite."""


def _check_finite(loss: float, update: int) -> None:
    """Stop a run that has come to nothing, before it replaces more checkpoints.

    A divergence of raw logits has no bound: two groups can drive each other off, most of all
    while the running statistics of batch norm are young, or learning rate and alpha are high.

    Raises:
        _Diverged: if the loss is not finite; on all workers, which have the same.
    """
    if not math.isfinite(loss):
        raise _Diverged(
            f"--lr: training has diverged, the loss before update {update} is {loss}; give a "
            "lower --lr or --codistill-alpha, or begin with --warmup-epochs or --codistill-burn-in"
        )


def _dtype(model: nn.Module) -> torch.dtype:
    return next(model.parameters()).dtype
