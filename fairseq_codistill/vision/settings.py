"""What a user may set: one dataclass, the single source of flags and recipes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, List, Optional  # noqa: UP035 - as in the dataclass that this one extends

from fairseq_codistill.codistillation import CodistillationConfig, ConfigError
from fairseq_codistill.vision.schedules import (
    GOYAL_DROPS,
    LR_SCHEDULES,
    LearningRate,
    WeightDecay,
)

LAST = "checkpoint_last.pt"
AMP = ("none", "fp16", "bf16")
AUGMENTATIONS = ("imagenet", "cifar", "none")
LOG_FORMATS = ("json", "simple")
EXCHANGES = ("checkpoints", "predictions")

# Between the seeds of two groups, as `codistill launch` sets them.
SEED_STRIDE = 1000003

# torch and the manifest of a snapshot take no larger one.
LARGEST_SEED = 2**63 - 1

# The paper's alpha, and the classes of the data that it was chosen for.
PAPER_ALPHA = 1.0
PAPER_CLASSES = 1000


def _flag(default: Any, help: str) -> Any:
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


@dataclass
class VisionConfig(CodistillationConfig):
    """The settings of the vision entry point; ``check`` says in a sentence what does not fit."""

    # ruff: noqa: UP006, UP045
    data: str = _flag("", "folder with train/ and val/ or test/, in each a folder for each class")
    data_fraction: str = _flag("1", "train on this part of the images, as in 1/4 or 0.25")
    shard_data: bool = _flag(False, "give each group a part of the images that is its alone")
    augmentation: str = _flag(
        "imagenet",
        "imagenet: crops of random size, flips; cifar: crops of the padded image, flips; none",
    )
    image_size: int = _flag(224, "height and width of what the model sees, in pixels")
    cache_images: bool = _flag(False, "keep all images in memory, decoded; for small data sets")
    check_images: bool = _flag(True, "before the first update, open every image's header")
    num_workers: int = _flag(4, "processes of each worker that read images; 0 for none")

    arch: str = _flag("resnet50", "torchvision's name of a model, or one of this program's own")
    width: int = _flag(16, "channels of the first stage of a resnet<depth>_cifar")
    zero_init_gamma: bool = _flag(
        False, "let the last batch norm of each residual block begin with weight 0 (Goyal)"
    )

    epochs: int = _flag(90, "epochs of this group's own order of its images")
    epochs_times: int = _flag(
        1,
        "multiply by this whatever is told in epochs (epochs, warm-up, milestones, intervals), as "
        "by 4 with --data-fraction 1/4: so many updates as with all images",
    )
    max_update: Optional[int] = _flag(None, "stop after so many updates; schedules do not change")
    batch_size: int = _flag(32, "images of each worker in a forward pass")
    update_freq: int = _flag(1, "forward passes whose gradients make one update")
    label_smoothing: float = _flag(
        0.0, "epsilon of the training loss, spread over all classes (fairseq: over the others)"
    )
    lr: float = _flag(0.1, "learning rate after the warm-up; see --lr-batch")
    lr_batch: int = _flag(
        0, "--lr is for this many images an update, and in proportion for others; 0: as it is"
    )
    lr_schedule: str = _flag("goyal", "after the warm-up: " + ", ".join(LR_SCHEDULES))
    lr_milestones: List[float] = _flag(
        [], "goyal: epochs after which it falls (default: in proportion to Goyal's 30,60,80 of 90)"
    )
    lr_drop: float = _flag(0.1, "goyal: what each fall multiplies it by")
    warmup_epochs: float = _flag(0.0, "epochs in which it grows in a line")
    warmup_init_lr: float = _flag(0.0, "where the warm-up begins")
    momentum: float = _flag(0.9, "of SGD")
    nesterov: bool = _flag(False, "Nesterov's momentum")
    weight_decay: float = _flag(1e-4, "until the first milestone")
    weight_decay_schedule: List[float] = _flag(
        [], "weight decays after the first milestone, the second, ..., as in 1e-5,0"
    )
    weight_decay_milestones: List[float] = _flag(
        [], "epochs of the weight decay's milestones (default: those of the learning rate)"
    )
    norm_weight_decay: bool = _flag(True, "let weight decay act on normalisation layers too")

    amp: str = _flag("none", "half precision in forward and backward: " + ", ".join(AMP))
    channels_last: bool = _flag(False, "keep images and weights channels last")
    compile: bool = _flag(False, "torch.compile the model")
    cpu: bool = _flag(False, "train on the CPU even if there is a GPU")
    seed: int = _flag(1, "of this group; groups 1000003 apart")

    # No default that is good for every number of classes; see ``for_classes``.
    codistill_alpha: Optional[float] = _flag(  # type: ignore[assignment]
        None, "weight of the divergence in epoch 1 (default: min(1, sqrt(classes / 1000)))"
    )
    codistill_exchange: str = _flag(
        "checkpoints",
        "what groups leave for each other; predictions: all groups are started together, with "
        "torchrun, draw the same batches and swap logits",
    )

    save_dir: str = _flag("checkpoints", "where checkpoints go")
    save_interval: int = _flag(1, "epochs between checkpoints")
    save_interval_updates: int = _flag(0, "updates between further checkpoints; 0 for none")
    restore_file: str = _flag(
        LAST, "checkpoint to go on from; under this very name, the one in --save-dir, if any"
    )
    validate_interval: int = _flag(1, "epochs between validations; the end is validated anyway")
    eval_train_images: int = _flag(
        0, "with each validation, evaluate on so many images of the training data; 0 for none"
    )
    log_interval: int = _flag(100, "updates between two lines of training")
    log_format: str = _flag("json", "fairseq's: " + ", ".join(LOG_FORMATS))
    tensorboard_logdir: Optional[str] = _flag(None, "write TensorBoard's files here")
    dry_run: Optional[int] = _flag(
        None,
        "check the settings, tell what so many workers would do, and end (default: as started)",
    )

    @property
    def fraction(self) -> Fraction:
        """The part of the images to train on.

        Raises:
            ConfigError: if it is none.
        """
        try:
            fraction = Fraction(self.data_fraction)
        except (ValueError, ZeroDivisionError):
            fraction = Fraction(0)
        if not 0 < fraction <= 1:
            raise ConfigError(
                f"--data-fraction {self.data_fraction} is no part of a whole; give 1/4 or 0.25"
            )
        return fraction

    @property
    def swaps_predictions(self) -> bool:
        """Whether groups swap logits, and not checkpoints."""
        return self.codistill_exchange == "predictions"

    @property
    def needs_exchange(self) -> bool:
        """Whether groups leave snapshots for each other."""
        return super().needs_exchange and not self.swaps_predictions

    @property
    def order_seed(self) -> int:
        """What decides the order and the augmentation of the images.

        It is this group's own, but groups that swap predictions see the same images.
        """
        common = self.codistill_group * SEED_STRIDE if self.swaps_predictions else 0
        return self.seed - common

    @property
    def milestones(self) -> list[float]:
        """Milestones of the learning rate, in epochs."""
        return list(self.lr_milestones) or [self.epochs * drop for drop in GOYAL_DROPS]

    def learning_rate(self, images: int) -> LearningRate:
        """Give the schedule for so many images an update."""
        peak = self.lr * images / self.lr_batch if self.lr_batch else self.lr
        return LearningRate(
            kind=self.lr_schedule,
            peak=peak,
            # A small batch may have its peak below where Goyal's warm-up begins.
            start=min(self.warmup_init_lr, peak),
            warmup=self.warmup_epochs,
            milestones=self.milestones,
            factor=self.lr_drop,
            epochs=self.epochs,
        )

    def weight_decays(self) -> WeightDecay:
        """Give the schedule."""
        milestones = list(self.weight_decay_milestones) or self.milestones
        return WeightDecay(self.weight_decay, tuple(self.weight_decay_schedule), milestones)

    def check(self) -> None:
        """Check every setting that can be checked without data, model and exchange.

        Raises:
            ConfigError: for the first that does not fit.
        """
        if self.codistill_alpha is None:
            self.for_classes(PAPER_CLASSES).check()
            return
        super().check()
        if not self.data:
            raise ConfigError("--data is missing; name a folder with train/ and val/ or test/")
        _ = self.fraction
        _one_of("augmentation", self.augmentation, AUGMENTATIONS)
        _one_of("amp", self.amp, AMP)
        if self.amp != "none" and self.codistill_peer_dtype != "student":
            raise ConfigError(
                f"--codistill-peer-dtype {self.codistill_peer_dtype} means nothing with --amp "
                f"{self.amp}, in which peers compute too; leave it out"
            )
        _one_of("log-format", self.log_format, LOG_FORMATS)
        at_least = {
            0: "num-workers lr-batch save-interval-updates eval-train-images seed",
            1: "image-size width epochs epochs-times max-update batch-size update-freq "
            "save-interval validate-interval log-interval",
        }
        for least, flags in at_least.items():
            for flag in flags.split():
                value = getattr(self, flag.replace("-", "_"))
                if value is not None and value < least:
                    raise ConfigError(f"--{flag} {value} is too small; give {least} or more")
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"--seed {self.seed} is too large; give one up to {LARGEST_SEED}")
        for flag in ("lr", "lr-drop", "warmup-epochs", "warmup-init-lr", "weight-decay"):
            _not_negative(flag, getattr(self, flag.replace("-", "_")))
        for flag in ("momentum", "label-smoothing"):
            value = getattr(self, flag.replace("-", "_"))
            if not 0 <= value < 1:
                raise ConfigError(
                    f"--{flag} {value} is out of range; give 0 or more and less than 1"
                )
        if self.nesterov and self.momentum == 0:
            raise ConfigError("--nesterov needs --momentum above 0; leave out one of them")
        for flag, there in (
            (
                f"head {self.codistill_head}",
                self.codistill_head in ("factored", "joint", "chunked"),
            ),
            ("fused-ce", self.codistill_fused_ce),
        ):
            if there:
                raise ConfigError(
                    f"--codistill-{flag} is for large vocabularies, and images have none; leave it "
                    "out"
                )
        if self.codistill_trust_arch is not None:
            raise ConfigError(
                f"--codistill-trust-arch {self.codistill_trust_arch} is for translation: peers of "
                "images may have any architecture of this program; leave it out"
            )
        self._check_exchange()
        self._check_schedules()

    def for_classes(self, classes: int) -> VisionConfig:
        """Return the settings with alpha filled in, if the user gave none.

        Logit-MSE is a mean over the classes, so its gradient goes with 1 / sqrt(classes) for logits
        as far apart.  The paper's alpha of 1 belongs to ImageNet's 1,000 classes; with ten, it
        makes two models drive each other off.

        Args:
            classes: of the data.
        """
        if self.codistill_alpha is not None:
            return self
        alpha = PAPER_ALPHA * min(1.0, math.sqrt(classes / PAPER_CLASSES))
        return dataclasses.replace(self, codistill_alpha=alpha)

    def stretched(self) -> VisionConfig:
        """Give the settings with all times in epochs multiplied by --epochs-times.

        On 1/k of the images, k times the epochs are the same updates (paper, section 4).

        Raises:
            ConfigError: if alpha grows from epoch to epoch, for which there is no such rule.
        """
        times = self.epochs_times
        if times == 1:
            return self
        grows = self.codistill_alpha_schedule == "geometric" and self.codistill_alpha_growth != 1
        if grows and self.codistils:
            raise ConfigError(
                f"--epochs-times {times} does not go with --codistill-alpha-schedule geometric; "
                "take constant or step, or multiply --epochs and choose the growth by hand"
            )
        return dataclasses.replace(
            self,
            epochs=self.epochs * times,
            warmup_epochs=self.warmup_epochs * times,
            lr_milestones=[epoch * times for epoch in self.lr_milestones],
            weight_decay_milestones=[epoch * times for epoch in self.weight_decay_milestones],
            codistill_alpha_milestones=[epoch * times for epoch in self.codistill_alpha_milestones],
            save_interval=self.save_interval * times,
            validate_interval=self.validate_interval * times,
        )

    def of_group(self, group: int) -> VisionConfig:
        """Give a group's settings, if these are those of all groups, started together."""
        folder = f"group-{group}"
        tensorboard = self.tensorboard_logdir
        return dataclasses.replace(
            self,
            codistill_group=group,
            seed=self.seed + SEED_STRIDE * group,
            save_dir=f"{self.save_dir}/{folder}",
            tensorboard_logdir=None if tensorboard is None else f"{tensorboard}/{folder}",
        )

    def _check_exchange(self) -> None:
        _one_of("codistill-exchange", self.codistill_exchange, EXCHANGES)
        if not self.swaps_predictions:
            return
        said = "--codistill-exchange predictions"
        if self.codistill_num_groups == 1:
            raise ConfigError(f"{said} needs others; give --codistill-num-groups 2 or more")
        if self.codistill_group:
            raise ConfigError(
                f"--codistill-group {self.codistill_group}: with {said} a worker's rank tells its "
                "group; start all groups together with torchrun, not with codistill launch"
            )
        if self.shard_data:
            raise ConfigError(f"--shard-data: with {said} all groups see the same images; drop one")
        if self.codistill_peer_dropout:
            raise ConfigError(
                f"--codistill-peer-dropout means nothing with {said}, which are those of models "
                "in training; leave it out"
            )
        if self.teachers:
            raise ConfigError(
                f"--codistill-teachers does not go with {said}: nothing is run but the student; "
                "drop one"
            )
        if self.codistill_peer_dtype != "student":
            raise ConfigError(
                f"--codistill-peer-dtype {self.codistill_peer_dtype} means nothing with {said}: "
                "there are no peers' models; leave it out"
            )

    def _check_schedules(self) -> None:
        _one_of("lr-schedule", self.lr_schedule, LR_SCHEDULES)
        if self.warmup_epochs >= self.epochs:
            raise ConfigError(
                f"--warmup-epochs {self.warmup_epochs:g} leaves nothing of --epochs {self.epochs}; "
                "give fewer"
            )
        if self.lr_milestones and self.lr_schedule != "goyal":
            raise ConfigError(
                f"--lr-milestones {_listed(self.lr_milestones)} means nothing with --lr-schedule "
                f"{self.lr_schedule}; leave it out, or take --lr-schedule goyal"
            )
        self._check_milestones("lr-milestones", self.lr_milestones)
        self._check_milestones("weight-decay-milestones", self.weight_decay_milestones)
        for decay in self.weight_decay_schedule:
            _not_negative("weight-decay-schedule", decay)
        if not self.weight_decay_schedule:
            if self.weight_decay_milestones:
                raise ConfigError(
                    f"--weight-decay-milestones {_listed(self.weight_decay_milestones)} needs "
                    "--weight-decay-schedule; name the weight decays after them, as in 1e-5,0"
                )
            return
        if self.lr_schedule != "goyal" and not self.weight_decay_milestones:
            raise ConfigError(
                f"--weight-decay-schedule {_listed(self.weight_decay_schedule)} with --lr-schedule "
                f"{self.lr_schedule} needs --weight-decay-milestones; name the epochs"
            )
        milestones = self.weight_decays().milestones
        if len(milestones) < len(self.weight_decay_schedule):
            raise ConfigError(
                f"--weight-decay-schedule {_listed(self.weight_decay_schedule)} has more values "
                f"than there are milestones ({_listed(milestones)}); name as many epochs with "
                "--weight-decay-milestones"
            )

    def _check_milestones(self, flag: str, milestones: Sequence[float]) -> None:
        rising = all(a < b for a, b in zip(milestones, milestones[1:], strict=False))
        if not rising or not all(0 < m < self.epochs for m in milestones):
            raise ConfigError(
                f"--{flag} {_listed(milestones)} does not fit --epochs {self.epochs}; give epochs "
                f"that grow, above 0 and below {self.epochs}"
            )


def as_plain(config: VisionConfig) -> dict[str, Any]:
    """Give the settings by their names, as plain values."""
    return dataclasses.asdict(config)


def _listed(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)


def _one_of(flag: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ConfigError(f"--{flag} {value} is unknown; choose {' or '.join(choices)}")


def _not_negative(flag: str, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ConfigError(f"--{flag} {value} is out of range; give 0 or more")
