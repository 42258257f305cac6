"""Images of a folder: which are trained on, in what order, and as what tensors.

The order is the group's own (paper, section 3: each model sees its own minibatches): a
permutation of its images for each epoch, cut into updates, an update's images cut into the
workers' micro-batches.  An update so has the same images for any number of workers as long as
workers x --update-freq x --batch-size stays.  What is left of an epoch, less than an update's
images, is left out; the next epoch's permutation leaves out others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from fairseq_codistill.codistillation import ConfigError
from fairseq_codistill.vision.seeds import Use, drawing, seed, stream
from fairseq_codistill.vision.settings import VisionConfig
from fairseq_codistill.vision.world import World

# Of ImageNet, as torchvision's models have them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

VALIDATION = ("val", "test")
# Reading headers is waiting for a disk.
_CHECKING_THREADS = 8

# Which image, in which epoch: the epoch decides the augmentation.
Key = tuple[int, int]
Transform = Any
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Folders:
    """The images on disk.

    Attributes:
        train: (path, class) of each image, in the order of their names.
        valid: the same, for validation.
        classes: names, in the order of their numbers.
    """

    train: Sequence[tuple[str, int]]
    valid: Sequence[tuple[str, int]]
    classes: Sequence[str]

    @property
    def digest(self) -> str:
        """SHA-256 of the names of the classes in their order, joined by newlines."""
        return hashlib.sha256("\n".join(self.classes).encode()).hexdigest()


def find(data: str) -> Folders:
    """List the images of ``data``.

    Raises:
        ConfigError: if a folder is missing, a class has no images, or training and validation
            have different classes.
    """
    root = Path(data)
    if not root.is_dir():
        raise ConfigError(
            f"--data {data} is no folder; name one with train/ and {' or '.join(VALIDATION)}/"
        )
    if not (root / "train").is_dir():
        raise ConfigError(f"--data {data} has no folder train; put the training images there")
    held_out = next((root / name for name in VALIDATION if (root / name).is_dir()), None)
    if held_out is None:
        raise ConfigError(
            f"--data {data} has no folder {' or '.join(VALIDATION)}; put the validation images "
            "into one"
        )
    train, valid = _listed(root / "train", data), _listed(held_out, data)
    if train.classes != valid.classes:
        odd = sorted(set(train.classes) ^ set(valid.classes))[0]
        raise ConfigError(
            f"--data {data}: train has {len(train.classes)} classes and {held_out.name} "
            f"{len(valid.classes)}, and {odd!r} is in one of them only; give both the same"
        )
    return Folders(train.samples, valid.samples, train.classes)


def _listed(folder: Path, data: str) -> ImageFolder:
    if not any(entry.is_dir() for entry in folder.iterdir()):
        raise ConfigError(
            f"--data {data}: {folder.name} has no folders of classes; make one for each class"
        )
    listed = ImageFolder(folder, allow_empty=True)
    filled = set(listed.targets)
    for number, name in enumerate(listed.classes):
        if number not in filled:
            raise ConfigError(
                f"--data {data}: the class {name!r} has no images in {folder.name}; put some "
                "there, or remove the folder"
            )
    return listed


def part(images: int, fraction: Fraction, shards: int = 1, shard: int = 0) -> Indices:
    """Choose what a group trains on.

    The choice depends on nothing but these numbers, so that all seeds train on the same images,
    a smaller fraction's are among a larger one's, and all shards have the same size.

    Args:
        images: how many there are.
        fraction: what part of them to use.
        shards: into how many disjoint parts to cut that.
        shard: which of these to give.
    """
    chosen = np.random.default_rng(stream(Use.PART)).permutation(images)[: int(images * fraction)]
    size = len(chosen) // shards
    return np.sort(chosen[shard * size : (shard + 1) * size])


@dataclass(frozen=True)
class Order:
    """Which images each worker sees in each update.

    Attributes:
        images: of this group.
        seed: decides the order.
        batch_size: images of a worker's micro-batch.
        workers: of the group.
        update_freq: micro-batches of an update.
    """

    images: Indices
    seed: int
    batch_size: int
    workers: int
    update_freq: int

    @property
    def images_per_update(self) -> int:
        """Images of all workers and micro-batches together."""
        return self.batch_size * self.workers * self.update_freq

    @property
    def updates_per_epoch(self) -> int:
        """How often that goes into the images."""
        return len(self.images) // self.images_per_update

    def check(self) -> None:
        """Make sure that there is an update.

        Raises:
            ConfigError: if the images are too few for one.
        """
        if self.updates_per_epoch == 0:
            raise ConfigError(
                f"--batch-size {self.batch_size} needs {self.images_per_update} images for an "
                f"update ({self.workers} worker(s), --update-freq {self.update_freq}), and this "
                f"group has {len(self.images)}; give a smaller one"
            )

    def epoch_of(self, update: int) -> int:
        """Give the epoch, from 1, that follows on ``update`` updates."""
        return update // self.updates_per_epoch + 1

    def batches(self, rank: int, first: int, end: int) -> Iterator[list[Key]]:
        """Give a worker's micro-batches, in their order.

        Args:
            rank: which worker.
            first: updates made before.
            end: updates made after the last one.
        """
        shape = (self.updates_per_epoch, self.update_freq, self.workers, self.batch_size)
        for epoch in range(self.epoch_of(first), self.epoch_of(end - 1) + 1):
            generator = np.random.default_rng(stream(Use.ORDER, self.seed, epoch))
            order = self.images[generator.permutation(len(self.images))]
            cut = order[: self.updates_per_epoch * self.images_per_update].reshape(shape)
            start = (epoch - 1) * self.updates_per_epoch
            for update in range(max(first, start), min(end, start + self.updates_per_epoch)):
                for micro_batch in cut[update - start]:
                    yield [(epoch, int(index)) for index in micro_batch[rank]]


class _Batches(Sampler[list[Key]]):
    """Micro-batches of keys for torch's loader, which goes through them once."""

    def __init__(self, batches: Iterable[list[Key]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self._batches)


@dataclass(frozen=True)
class Unreadable:
    """In place of a batch: why there is none.

    An exception would reach the training process with the reading process's traceback in it.
    """

    reason: str


class Images(Dataset):
    """Images as tensors of bytes, (3, height, width), and their classes.

    Args:
        samples: (path, class) of each.
        transform: what is done to an image.
        seed: decides what ``transform`` draws; None if it draws nothing.
        cached: keep these images in memory, decoded, from now on.
    """

    def __init__(
        self,
        samples: Sequence[tuple[str, int]],
        transform: Transform,
        seed: int | None = None,
        cached: Iterable[int] = (),
    ) -> None:
        self._samples = samples
        self._transform = transform
        self._seed = seed
        self._cache = {int(index): read(samples[int(index)][0]) for index in cached}

    def __getitem__(self, key: Key) -> tuple[Tensor, int] | Unreadable:
        epoch, index = key
        path, target = self._samples[index]
        try:
            image = self._cache[index] if index in self._cache else read(path)
        except ConfigError as error:
            return Unreadable(str(error))
        if self._seed is None:
            return self._transform(image), target
        with drawing(seed(Use.AUGMENTATION, self._seed, epoch, index)):
            return self._transform(image), target


def read(path: str) -> Tensor:
    """Read an image as bytes of shape (3, height, width).

    Raises:
        ConfigError: if it is none, or damaged.
    """
    try:
        with Image.open(path) as image:
            return v2.functional.pil_to_tensor(image.convert("RGB"))
    except Exception as error:
        raise _unreadable(path, error) from error


def check_headers(paths: Sequence[str], world: World) -> None:
    """Open every image as far as its header; the workers share the work.  A collective.

    Raises:
        ConfigError: for the first that is no image; the same on all workers.
    """
    with ThreadPoolExecutor(_CHECKING_THREADS) as threads:
        found = list(filter(None, threads.map(_header_error, paths[world.rank :: world.size])))
    complaints = [complaint for every in world.gather(found[:1]) for complaint in every]
    if complaints:
        raise ConfigError(complaints[0])


def _header_error(path: str) -> str | None:
    try:
        with Image.open(path):
            return None
    except Exception as error:  # noqa: BLE001 - Pillow raises what it likes
        return str(_unreadable(path, error))


def _unreadable(path: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split()).replace(f" {path!r}", "") or type(error).__name__
    return ConfigError(f"--data: the image {path} cannot be read ({reason}); repair or remove it")


def transforms(kind: str, size: int) -> tuple[Transform, Transform]:
    """Give what is done to images, bytes to bytes, in training and in validation.

    Args:
        kind: one of ``settings.AUGMENTATIONS``.
        size: height and width of the result.
    """
    flip = v2.RandomHorizontalFlip()
    if kind == "imagenet":
        valid = v2.Compose([v2.Resize(round(size * 256 / 224)), v2.CenterCrop(size)])
        return v2.Compose([v2.RandomResizedCrop(size), flip]), valid
    if kind == "cifar":
        crop = v2.RandomCrop(size, padding=max(1, size // 8), pad_if_needed=True)
        return v2.Compose([crop, flip]), v2.CenterCrop(size)
    plain = v2.Compose([v2.Resize(size), v2.CenterCrop(size)])
    return plain, plain


def normalise(images: Tensor) -> Tensor:
    """Make numbers that a model takes of bytes; on the device, for it takes time."""
    numbers = v2.functional.to_dtype(images, torch.float32, scale=True)
    return v2.functional.normalize(numbers, list(MEAN), list(STD), inplace=True)


def training_loader(
    config: VisionConfig, folders: Folders, order: Order, world: World, first: int, end: int
) -> DataLoader:
    """Give this worker's micro-batches of the updates from ``first`` to before ``end``."""
    train, _ = transforms(config.augmentation, config.image_size)
    cached = order.images if config.cache_images else ()
    images = Images(folders.train, train, order.seed, cached)
    return _loader(images, order.batches(world.rank, first, end), config, world)


def evaluation_loader(
    config: VisionConfig, samples: Sequence[tuple[str, int]], world: World
) -> DataLoader:
    """Give this worker's share of ``samples``, each once over all workers."""
    _, valid = transforms(config.augmentation, config.image_size)
    mine = range(world.rank, len(samples), world.size)
    keys = [(0, index) for index in mine]
    batches = [keys[at : at + config.batch_size] for at in range(0, len(keys), config.batch_size)]
    images = Images(samples, valid, cached=mine if config.cache_images else ())
    return _loader(images, batches, config, world, persistent=True)


def batches_of(loader: DataLoader, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the loader's batches on a device: bytes, and the classes' numbers.

    Raises:
        ConfigError: if an image cannot be read.
    """
    for batch in loader:
        if isinstance(batch, Unreadable):
            raise ConfigError(batch.reason)
        images, targets = batch
        yield images.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def _loader(
    images: Images,
    batches: Iterable[list[Key]],
    config: VisionConfig,
    world: World,
    persistent: bool = False,
) -> DataLoader:
    return DataLoader(
        images,
        batch_sampler=_Batches(batches),
        num_workers=config.num_workers,
        collate_fn=_collate,
        pin_memory=world.device.type == "cuda",
        persistent_workers=persistent and config.num_workers > 0,
        # A generator of its own: the loader draws a number that nobody needs.
        generator=torch.Generator(),
    )


def _collate(samples: list[tuple[Tensor, int] | Unreadable]) -> Any:
    for sample in samples:
        if isinstance(sample, Unreadable):
            return sample
    return default_collate(samples)
