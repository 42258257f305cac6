"""fairseq's half precision on a CPU, where it refuses most of it: CUDA's own names are replaced.

python half_precision.py CORPUS FLAG ...                fairseq-train
python half_precision.py backends CORPUS RANK PORT OUT  one of two workers, with both backends
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import fairseq_cli.train  # first: fairseq's modules import each other in circles
import torch
from fairseq import options
from fairseq.models import distributed_fairseq_model
from torch.nn.parallel import DistributedDataParallel


class Autocast(torch.autocast):
    """torch.cuda.amp.autocast, on the CPU."""

    def __init__(self, enabled: bool = True) -> None:
        super().__init__("cpu", torch.float16, enabled=enabled)


def _grad_scaler(**settings: Any) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", **settings)


def _distributed(module: Any, device_ids: Any, output_device: Any, **settings: Any) -> Any:
    return DistributedDataParallel(module, **settings)


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Have fairseq find what it looks for on a GPU."""
    parse = options.parse_args_and_arch

    def parsed(*args: Any, **kwargs: Any) -> Any:
        found = parse(*args, **kwargs)
        # To fairseq bfloat16 without CUDA is a TPU.
        found.tpu = False
        return found

    with (
        patch.object(options, "parse_args_and_arch", parsed),
        patch.object(torch.Tensor, "cuda", lambda self, *_, **__: self),
        # The index of the CPU, by which fairseq finds its parameters.
        patch.object(torch.cuda, "current_device", lambda: None),
        patch.object(torch.cuda.amp, "autocast", Autocast),
        patch.object(torch.cuda.amp, "GradScaler", _grad_scaler),
        patch.object(distributed_fairseq_model, "DistributedDataParallel", _distributed),
    ):
        yield


class Trained:
    """One group in this process, trained update by update as fairseq-train does.

    Args:
        corpus: its data.
        flags: of fairseq-train; ``--save-dir`` among them.
    """

    def __init__(self, corpus: Path, *flags: str) -> None:
        from fairseq.trainer import Trainer
        from test_adapter import Student

        self.student = Student(corpus, *flags)
        cfg = self.student.cfg
        self.trainer = Trainer(cfg, self.student.task, self.student.model, self.student.criterion)
        self.trainer.begin_epoch(1)
        self.side = self.student.task.codistillation

    @property
    def updates(self) -> int:
        """Updates made."""
        return self.trainer.get_num_updates()

    def batch(self) -> Any:
        """Train on the batch; return the meters of what was logged if it made an update."""
        from fairseq.logging import metrics

        before = self.updates
        with metrics.aggregate(new_root=True) as meters:
            self.trainer.train_step([self.student.sample])
        return meters if self.updates > before else None

    def scale(self, scale: float) -> None:
        """Scale the loss by so much from now on; large is an overflow."""
        scaler = self.trainer.optimizer.scaler
        if isinstance(scaler, torch.amp.GradScaler):
            if scaler._scale is None:
                scaler._lazy_init_scale_growth_tracker(torch.device("cpu"))
            scaler._scale.fill_(scale)
        else:
            scaler.loss_scale = scale


# What both backends must agree in, and the flags of each.
BACKENDS = ("legacy_ddp", "pytorch_ddp")
CASES = {
    "float32": [],
    "float32, factored": ["--codistill-head", "factored"],
    "float32, fused": ["--codistill-fused-ce"],
    "float16": ["--fp16"],
    "float16, fused": ["--fp16", "--codistill-fused-ce"],
    "bfloat16, fused": ["--bf16", "--codistill-fused-ce"],
    "amp, fused": ["--amp", "--codistill-fused-ce"],
}


def _backends(corpus: Path, rank: int, port: int, out: Path) -> None:
    """Train as one of two workers with each backend; the first writes the weights."""
    from torch import distributed

    address = f"tcp://localhost:{port}"
    distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=2)
    flags = ["--distributed-world-size", "2", "--distributed-rank", str(rank), "--lr", "0.1"]
    flags += ["--codistill-num-groups", "2"]
    flags += ["--codistill-mode", "lockstep", "--codistill-interval", "1000"]
    flags += ["--codistill-snapshot-dtype", "float32", "--fp16-init-scale", "128"]
    found = {}
    for case, more in CASES.items():
        for backend in BACKENDS:
            folder = out / case / backend
            if rank == 0:
                # The other group is in each; this one is another one every time.
                shutil.copytree(out / "exchange", folder / "exchange")
            distributed.barrier()
            places = ["--codistill-dir", str(folder / "exchange"), "--save-dir", str(folder)]
            one = Trained(corpus, *flags, *places, "--ddp-backend", backend, *more)
            dataset = one.student.task.dataset("valid")
            for update in range(3):
                first = 18 * update + 9 * rank
                one.student.sample = dataset.collater([dataset[first + i] for i in range(9)])
                meters = one.batch()
                assert meters is not None, f"{case}: an overflow, where none is wanted"
                assert meters["codistill_loss"].avg > 0, case
            model = one.trainer.get_model()
            found[case, backend] = {
                name: p.detach().clone() for name, p in model.named_parameters()
            }
            one.side.abandon()
    if rank == 0:
        torch.save(found, out / "weights.pt")


if __name__ == "__main__":
    with on_the_cpu():
        if sys.argv[1] == "backends":
            _backends(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), Path(sys.argv[5]))
        else:
            fairseq_cli.train.cli_main()
