"""Algorithm 1 in one process, in float64, plainly: the truth that real runs are held against.

Nothing of fairseq_codistill is used.  fairseq builds the models and the batches, as it does in
``fairseq-train`` with the same seeds.
"""

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.data import iterators
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from harness import PLAIN, SEED_STEP, TINY
from torch.nn import functional as F

from fairseq_codistill.plain import allowing


def batches(task, model, cfg, seed: int, workers: int, update_freq: int):
    """For each update, its epoch and the workers' micro-batches, for ever."""
    iterator = [
        task.get_batch_iterator(
            task.dataset("train"),
            max_tokens=cfg.dataset.max_tokens,
            max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
            required_batch_size_multiple=cfg.dataset.required_batch_size_multiple,
            seed=seed,
            num_shards=workers,
            shard_id=rank,
            disable_iterator_cache=True,
        )
        for rank in range(workers)
    ]
    while True:
        shards = [it.next_epoch_itr(shuffle=True) for it in iterator]
        grouped = [iterators.GroupedIterator(shard, update_freq) for shard in shards]
        for of_each_worker in zip(*grouped, strict=True):
            parts = [part for micro_batches in of_each_worker for part in micro_batches]
            yield iterator[0].epoch, [part for part in parts if len(part)]


def algorithm_1(
    corpus: Path,
    updates: int,
    n: int,
    workers: int,
    update_freq: int,
    alpha: float,
    gamma: float,
    lr: float,
    every: int = 1,
    listens_to: dict[int, list[int]] | None = None,
    teachers: Sequence[Path] = (),
) -> tuple[list[dict[str, torch.Tensor]], list[list[dict[str, float]]]]:
    """Train n models; gives their weights, and each one's losses at each update.

    Args: those of the paper, who listens to whom (the paper: everyone to everyone else), and
    checkpoints of models that are peers of everyone and never change (the paper: none).
    """
    if listens_to is None:
        listens_to = {i: [j for j in range(n) if j != i] for i in range(n)}
    with contextlib.redirect_stdout(io.StringIO()):
        args = options.parse_args_and_arch(
            options.get_training_parser(), [str(corpus), *TINY, *PLAIN]
        )
    cfg = convert_namespace_to_omegaconf(args)
    task = tasks.setup_task(cfg.task)
    task.load_dataset("train", epoch=1)
    pad = task.target_dictionary.pad()
    models, data = [], []
    for i in range(n):
        np.random.seed(cfg.common.seed + SEED_STEP * i)
        utils.set_torch_seed(cfg.common.seed + SEED_STEP * i)
        models.append(task.build_model(cfg.model).double().eval())  # dropout is 0
        seed = cfg.common.seed + SEED_STEP * i
        data.append(batches(task, models[i], cfg, seed, workers, update_freq))

    frozen = []
    for path in teachers:
        with allowing([argparse.Namespace]):
            (teacher,), _ = checkpoint_utils.load_model_ensemble([str(path)], task=task)
        frozen.append(teacher.double().eval())

    losses: list[list[dict[str, float]]] = [[] for _ in range(n)]
    for k in range(updates):
        gradients = []
        for i in range(n):  # for i = 1, ..., n
            epoch, parts = next(data[i])  # x, y = get_next_minibatch()
            alpha_k = alpha * gamma ** (epoch - 1)
            tokens = sum(part["ntokens"] for part in parts)
            cross_entropy = divergence = torch.zeros(())
            for part in parts:
                real = part["target"] != pad
                student = models[i](**part["net_input"])[0][real]
                cross_entropy = cross_entropy + F.cross_entropy(
                    student, part["target"][real], reduction="sum"
                )
                others = [*(models[j] for j in listens_to[i]), *frozen]
                for other in others:
                    with torch.no_grad():
                        peer = other(**part["net_input"])[0][real]
                    mse = (peer - student).square().mean(dim=1).sum()
                    divergence = divergence + mse / len(others)
            # With the divergence at every K-th update only, it counts K times there.
            weight = 0 if k % every else every * alpha_k
            loss = (cross_entropy + weight * divergence) / tokens
            parameters = [p for p in models[i].parameters() if p.requires_grad]
            gradients.append((parameters, torch.autograd.grad(loss, parameters)))
            losses[i].append(
                {
                    "loss": loss.item() / np.log(2),
                    "nll_loss": cross_entropy.item() / tokens / np.log(2),
                    "codistill_loss": divergence.item() / tokens,
                    "codistill_alpha": alpha_k,
                }
            )
        with torch.no_grad():  # all right-hand sides used update k
            for parameters, gradient in gradients:
                for parameter, g in zip(parameters, gradient, strict=True):
                    parameter -= lr * g
    return [dict(model.named_parameters()) for model in models], losses
