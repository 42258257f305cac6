"""The task: translation as one of n groups that codistil."""

import argparse
import atexit
import hashlib
import logging
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fairseq.data import iterators
from fairseq.logging import metrics
from fairseq.optim import FairseqOptimizer
from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask
from omegaconf import II, DictConfig
from torch import distributed as dist
from torch import nn

from fairseq_codistill import sigterm
from fairseq_codistill.codistillation import (
    Codistillation,
    CodistillationConfig,
    ConfigError,
    Group,
    Teacher,
    leave_evidence,
)
from fairseq_codistill.codistillation.assigned import refuse_lost_gpus
from fairseq_codistill.criterions._hidden import has_usual_loss, output_layer
from fairseq_codistill.criterions.codistill_cross_entropy import CRITERION
from fairseq_codistill.records import Memory, get_logger
from fairseq_codistill.sentences import errors_as_sentences, exhaustion_is_final
from fairseq_codistill.tasks import _models, _peer_config, _precision, _safe_globals, _teachers

logger = get_logger(__name__)

_safe_globals.register()

# Long enough to put some tens of batches together.
SETTLE_SECONDS = 1.0

DDP_BACKENDS = ("legacy_ddp", "no_c10d", "pytorch_ddp", "c10d")


@dataclass
class CodistillTranslationConfig(CodistillationConfig, TranslationConfig):
    """fairseq's translation settings, the codistillation settings, and those that it looks at."""

    seed: int = II("common.seed")
    amp: bool = II("common.amp")
    fp16: bool = II("common.fp16")
    memory_efficient_fp16: bool = II("common.memory_efficient_fp16")
    fp16_no_flatten_grads: bool = II("common.fp16_no_flatten_grads")
    tpu: bool = II("common.tpu")
    max_tokens: int | None = II("dataset.max_tokens")
    batch_size: int | None = II("dataset.batch_size")
    ddp_backend: str = II("distributed_training.ddp_backend")
    find_unused_parameters: bool = II("distributed_training.find_unused_parameters")
    save_dir: str = II("checkpoint.save_dir")
    max_update: int = II("optimization.max_update")


@register_task("codistill_translation", dataclass=CodistillTranslationConfig)
class CodistillTranslationTask(TranslationTask):
    """Translate; while training, codistil with the groups of ``--codistill-dir``.

    Generation and validation are those of fairseq's ``translation``.
    """

    cfg: CodistillTranslationConfig

    def __init__(self, cfg: CodistillTranslationConfig, src_dict: Any, tgt_dict: Any) -> None:
        super().__init__(cfg, src_dict, tgt_dict)
        self.codistillation: Codistillation | None = None
        self._model_cfg: argparse.Namespace | DictConfig | None = None
        self._begun = False
        self._epoch = 1
        self._end = _TrainingEnd(self._finish)
        self._boundary: tuple[int, int] | None = None
        # Why training has come to nothing, once it has.
        self._diverged: str | None = None

    @classmethod
    def setup_task(cls, cfg: CodistillTranslationConfig, **kwargs: Any) -> TranslationTask:
        """Load the dictionaries, once the settings are known to fit together."""
        with errors_as_sentences():
            refuse_lost_gpus()
            CodistillationConfig.of(cfg).check()
            # Here, for fairseq wraps the model of fully_sharded before the criterion is built.
            if cfg.ddp_backend not in DDP_BACKENDS:
                raise ConfigError(
                    f"--ddp-backend {cfg.ddp_backend} is not supported; use legacy_ddp or "
                    "pytorch_ddp"
                )
        return super().setup_task(cfg, **kwargs)

    def build_model(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """Build the student."""
        model = super().build_model(cfg, from_checkpoint)
        with errors_as_sentences():
            self._check_model(model, from_checkpoint)
        _models.clear_unused(model)
        self._model_cfg = cfg
        return model

    def _check_model(self, model: nn.Module, from_checkpoint: bool) -> None:
        """Refuse what this model cannot do, as far as that shows before it has run."""
        name = type(model).__name__
        if getattr(getattr(model, "decoder", None), "adaptive_softmax", None) is not None:
            raise ConfigError(
                "--adaptive-softmax-cutoff: a model with adaptive softmax has no plain logits "
                "to compare; leave it out"
            )
        if from_checkpoint:
            # It is not to be trained.
            return
        reason = _models.why_no_logits(model, self)
        if reason is not None:
            raise ConfigError(f"--arch ({name}): {reason}; choose another architecture")
        fused, head = self.cfg.codistill_fused_ce, self.cfg.codistill_head
        if fused and not (output_layer(model) and has_usual_loss(model)):
            raise ConfigError(
                f"--codistill-fused-ce: the model ({name}) has no plain output layer that could "
                "be left for later, or a loss of its own; leave the flag out"
            )
        codistils = CodistillationConfig.of(self.cfg).codistils
        if codistils and head in ("factored", "chunked") and output_layer(model) is None:
            raise ConfigError(
                f"--codistill-head {head}: the model ({name}) has no plain output layer that could "
                "be left for later; give auto or naive, or leave the flag out"
            )

    def build_criterion(self, cfg: Any, from_checkpoint: bool = False) -> nn.Module:
        """Build the criterion; it can only be the one that belongs to this task."""
        name = getattr(cfg, "_name", None) or getattr(cfg, "criterion", None)
        with errors_as_sentences():
            if name != CRITERION:
                raise ConfigError(
                    f"--criterion {name} does not codistil; with --task codistill_translation "
                    f"use --criterion {CRITERION}"
                )
            if self.cfg.amp and self.cfg.codistill_peer_dtype != "student":
                raise ConfigError(
                    f"--codistill-peer-dtype {self.cfg.codistill_peer_dtype} means nothing with "
                    "--amp, in whose half precision peers compute too; leave it out"
                )
            if self.cfg.codistill_fused_ce and self.cfg.find_unused_parameters:
                raise ConfigError(
                    "--codistill-fused-ce does not go with --find-unused-parameters, which would "
                    "take the output layer for unused; leave one of them out"
                )
            if not from_checkpoint:
                flat = not (self.cfg.memory_efficient_fp16 or self.cfg.fp16_no_flatten_grads)
                _precision.check(fp16=self.cfg.fp16, flat=flat, tpu=self.cfg.tpu)
            criterion = super().build_criterion(cfg, from_checkpoint=from_checkpoint)
        if not from_checkpoint:
            self._end.watch()
        return criterion

    def get_batch_iterator(
        self,
        dataset: Any,
        *args: Any,
        epoch: int = 1,
        disable_iterator_cache: bool = False,
        update_epoch_batch_itr: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Give fairseq's iterator, with the batches that an unbroken run would have.

        fairseq puts sentences together into batches once, with a seed that depends on the epoch
        it happens to begin with, and then only shuffles the batches.  A run resumed in a later
        epoch would so train on batches that no unbroken run has.
        """
        fresh = (
            self.can_reuse_epoch_itr(dataset)
            and not (disable_iterator_cache or update_epoch_batch_itr)
            and dataset not in self.dataset_to_epoch_iter
        )
        iterator = super().get_batch_iterator(
            dataset,
            *args,
            epoch=1 if fresh else epoch,
            disable_iterator_cache=disable_iterator_cache,
            update_epoch_batch_itr=update_epoch_batch_itr,
            **kwargs,
        )
        if fresh:
            dataset.set_epoch(epoch)
            iterator.epoch = max(epoch, 1)
        return iterator

    def begin_epoch(self, epoch: int, model: nn.Module) -> None:
        """Note the epoch, on which alpha depends; the first time, join the other groups."""
        super().begin_epoch(epoch, model)
        self._epoch = epoch
        if not self._begun:
            self._begun = True
            atexit.register(_let_readers_settle)
            settings = CodistillationConfig.of(self.cfg)
            if settings.codistils:
                with errors_as_sentences():
                    self._join(model, settings)

    def train_step(
        self,
        sample: dict[str, Any],
        model: nn.Module,
        criterion: nn.Module,
        optimizer: FairseqOptimizer,
        update_num: int,
        ignore_grad: bool = False,
    ) -> Any:
        """Forward and backward; before an update's first micro-batch, its boundary.

        fairseq calls this again with the same ``update_num`` for further micro-batches and for
        batches repeated after an overflow.
        """
        # The epoch too: after an overflow in an epoch's last batch the next one begins at the
        # same update, with its own alpha.
        self._note_divergence(update_num)
        boundary = (update_num, self._epoch)
        if self.codistillation is not None and boundary != self._boundary:
            self._boundary = boundary
            with errors_as_sentences(), exhaustion_is_final():
                self.codistillation.at_boundary(update_num, self._epoch)
        with errors_as_sentences():
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def reduce_metrics(self, logging_outputs: list[dict[str, Any]], criterion: nn.Module) -> None:
        """Log an update or a validation.

        fairseq calls this for updates that were made, and not for those that overflowed.
        """
        super().reduce_metrics(logging_outputs, criterion)
        logged = any(log.get("codistill_leads", 0) > 0 for log in logging_outputs)
        if self.codistillation is not None and logged:
            self.codistillation.note_logged()

    def _note_divergence(self, update: int) -> None:
        """Note that fairseq is about to end training because of numbers that are not finite.

        It runs the batch once more then, while it handles the error, to find out where they are.
        """
        error = sys.exception()
        if self._diverged is None and isinstance(error, FloatingPointError):
            why = " ".join(str(error).split())
            self._diverged = (
                f"training of group {self.cfg.codistill_group} has diverged at update {update} "
                f"({why:.200}); give a lower --lr or --codistill-alpha"
            )

    def _join(self, model: nn.Module, settings: CodistillationConfig) -> None:
        assert self._model_cfg is not None, "fairseq builds the model before the first epoch"
        own_cfg = self._model_cfg
        like = next(model.parameters())
        trusted = settings.trusted_archs
        for name in trusted:
            if not _peer_config.is_known(name):
                raise ConfigError(
                    f"--codistill-trust-arch {name}: there is no such architecture; name one that "
                    "fairseq or --user-dir has"
                )
        group = Group(
            seed=self.cfg.seed,
            vocabulary=vocabulary_digest(self.target_dictionary.symbols),
            source_vocabulary=vocabulary_digest(self.source_dictionary.symbols),
            model=_models.describe(own_cfg),
            build=lambda config, tensors: _models.build(
                self, own_cfg, config, like, tensors, trusted
            ),
            like=like,
        )
        dtype = settings.codistill_peer_dtype
        teachers = [
            Teacher(path, _teachers.load(path, self, model), like, dtype=dtype)
            for path in settings.teachers
        ]
        updates = self.cfg.max_update or None
        codistillation = Codistillation(
            settings, group, model.state_dict, teachers, Path(self.cfg.save_dir), updates
        )
        atexit.register(
            lambda: None if self._end.reached else codistillation.abandon(self._diverged)
        )
        if codistillation.workers.leader:
            sigterm.end_in_order(codistillation.say_goodbye)
        self.codistillation = codistillation

    def _finish(self, reason: str) -> None:
        """End in order: publish the last snapshot, and leave the evidence."""
        update = _updates_made()
        settings = CodistillationConfig.of(self.cfg)
        with errors_as_sentences():
            if self.codistillation is not None:
                self.codistillation.finish(update)
        if not dist.is_initialized() or dist.get_rank() == 0:
            directory = Path(self.cfg.save_dir)
            side: Codistillation | Memory | None = self.codistillation
            if side is None and settings.needs_exchange:
                # Resumed where nothing was left to do: what earlier starts have remembered.
                side = Memory(directory, settings.codistill_run_id, settings.codistill_group, "")
            leave_evidence(directory, settings, update, reason, side)


def vocabulary_digest(symbols: list[str]) -> str:
    """SHA-256 of the symbols in index order, joined by newlines."""
    return hashlib.sha256("\n".join(symbols).encode()).hexdigest()


# How fairseq's log begins to say why it ends training; by default it is for --max-epoch.
_REASONS = {
    "Stopping training due to num_updates": "max-update",
    "Stopping training due to cumulative_training_time": "stop-time-hours",
    "early stop since valid performance": "patience",
    "stopping training because current learning rate": "stop-min-lr",
}


class _TrainingEnd:
    """Notices that fairseq's training loop has ended in an orderly way, and acts on it.

    fairseq has no hook there.  What it logs then is the one event that tells the end from a crash,
    for ``fairseq-train``, ``fairseq-hydra-train`` and spawned workers alike.  The call is noticed,
    and not the record: logging may be configured to write nothing.

    Args:
        act: called once, with the reason: one of ``records.ended.REASONS``.
    """

    def __init__(self, act: Callable[[str], None]) -> None:
        self.reached = False
        self._reason: str | None = None
        self._act = act

    def watch(self) -> None:
        """Begin to listen."""
        logger = logging.getLogger("fairseq_cli.train")
        info = logger.info

        def noticing(message: object, *args: Any, **kwargs: Any) -> None:
            self._hear(str(message))
            info(message, *args, **kwargs)

        setattr(logger, "info", noticing)  # noqa: B010 - its type is not quite that of the method

    def _hear(self, message: str) -> None:
        for beginning, reason in _REASONS.items():
            if message.startswith(beginning):
                self._reason = self._reason or reason
        if message.startswith("done training in") and not self.reached:
            self.reached = True
            self._act(self._reason or "max-epoch")


def _let_readers_settle() -> None:
    """Let fairseq's threads that read ahead fill their buffers and fall asleep.

    A thread that is at work in torch when the interpreter ends aborts the whole process: a run
    that had finished would seem to have died.
    """
    for thread in threading.enumerate():
        if isinstance(thread, iterators.BackgroundConsumer):
            thread.join(timeout=SETTLE_SECONDS)


def _updates_made() -> int:
    """Give the trainer's own counter, which does not count updates that overflowed.

    By way of the active aggregator: the one that has a name is another after resuming.
    """
    meters = metrics.get_active_aggregators()[0]
    return int(meters["num_updates"].val) if "num_updates" in meters else 0
