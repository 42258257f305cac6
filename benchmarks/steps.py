"""Training steps of fairseq's and of codistillation, on the same model and the same batch."""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import measure
import torch
from fairseq import options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from torch import Tensor, nn

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task
from fairseq_codistill.codistillation import Codistillation
from fairseq_codistill.exchange import Draft, Exchange, Store, copy_out
from fairseq_codistill.tasks import _models
from fairseq_codistill.tasks.codistill_translation import vocabulary_digest

SIZES = {
    "tiny": """--arch transformer --encoder-layers 3 --decoder-layers 3
        --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 512
        --decoder-ffn-embed-dim 512 --encoder-attention-heads 4 --decoder-attention-heads 4""",
    "base": "--arch transformer_wmt_en_de",
    "big": "--arch transformer_vaswani_wmt_en_de_big",
}
COMMON = """--source-lang de --target-lang en --share-all-embeddings --dropout 0.1 --optimizer adam
    --adam-betas (0.9,0.98) --lr 0.0001 --max-tokens 100000"""
PLAIN = "--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
CODISTILLED = "--task codistill_translation --criterion codistill_cross_entropy"

# What asks for the divergence and the cross-entropy in each of their forms.
FORMS = {"auto": "", "naive": "--codistill-head naive", "fused": "--codistill-fused-ce"}

# The update that all are made as: only the first boundary publishes, before anything is measured.
UPDATE = 50

# Seconds for all peers to be seen; the first one of a large model takes some ten.
PEERS_WITHIN = 300.0

# Lengths of the sentences of a batch, which make padding as in fairseq's batches.
LENGTHS = range(20, 31)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of all that make a batch."""
    parser.add_argument("--tokens", type=int, default=2000, help="target tokens of the batch")
    measure.add_arguments(parser)


def add_peer_dropout(parser: argparse.ArgumentParser) -> None:
    """Add the flag of all that make updates beside peers."""
    parser.add_argument(
        "--peer-dropout", action="store_true", help="with --codistill-peer-dropout, as the recipes"
    )


class Side:
    """A task, its criterion and a model with its optimizer.

    Args:
        folder: with the dictionaries.
        size: one of ``SIZES``.
        flags: of the task and the criterion.
        device: where it trains.
        dtype: what it trains in.
    """

    def __init__(
        self, folder: Path, size: str, flags: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        line = [str(folder), *SIZES[size].split(), *COMMON.split(), *flags.split()]
        with contextlib.redirect_stdout(io.StringIO()):
            args = options.parse_args_and_arch(options.get_training_parser(), line)
        self.folder, self.size, self.device, self.dtype = folder, size, device, dtype
        self.cfg = convert_namespace_to_omegaconf(args)
        self.task = tasks.setup_task(self.cfg.task)
        utils.set_torch_seed(1)
        self.model: nn.Module = self.task.build_model(self.cfg.model).to(device, dtype)
        self.criterion = self.task.build_criterion(self.cfg.criterion)
        self.model.train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, betas=(0.9, 0.98))

    def loss(self, sample: dict[str, Any]) -> Tensor:
        """Give the loss of a batch."""
        loss: Tensor = self.criterion(self.model, sample)[0]
        return loss

    def step(self, sample: dict[str, Any]) -> None:
        """Make one update."""
        self.optimizer.zero_grad(set_to_none=False)
        self.loss(sample).backward()
        self.optimizer.step()

    def publish(self, folder: Path, group: int, update: int = UPDATE - 10) -> None:
        """Leave the model in an exchange as that of a group."""
        tensors, aliases = copy_out(self.model.state_dict(), torch.float32)
        Exchange(Store(str(folder)), "default").publish(
            Draft(
                group=group,
                seed=group + 100,
                update=update,
                epoch=1,
                dtype="float32",
                vocabulary=vocabulary_digest(self.task.target_dictionary.symbols),
                model=_models.describe(self.cfg.model),
                tensors=tensors,
                aliases=aliases,
            )
        )


def batch(side: Side, tokens: int, classes: int, device: torch.device) -> dict[str, Any]:
    """Make a batch of random sentences, of about so many target tokens."""
    generator = torch.Generator().manual_seed(1)
    pad = side.task.target_dictionary.pad()
    count = round(tokens / (sum(LENGTHS) / len(LENGTHS)))
    lengths = torch.tensor(sorted((LENGTHS[i % len(LENGTHS)] for i in range(count)), reverse=True))
    words = torch.randint(4, classes, (count, max(LENGTHS)), generator=generator)
    blank = torch.arange(max(LENGTHS))[None] >= lengths[:, None]
    target = words.masked_fill(blank, pad).to(device)
    before = torch.cat([target.new_full((count, 1), side.task.target_dictionary.eos()), target], 1)
    return {
        "net_input": {
            "src_tokens": target.flip(1),
            "src_lengths": lengths.to(device),
            "prev_output_tokens": before[:, :-1].contiguous(),
        },
        "target": target,
        "ntokens": int(lengths.sum()),
    }


class Codistilled(Side):
    """A side that codistils."""

    @property
    def codistillation(self) -> Codistillation | None:
        """Its part in codistillation; with one group there is none."""
        found: Codistillation | None = self.task.codistillation
        return found

    def at_boundary(self) -> None:
        """Do what is due before an update."""
        if self.codistillation is not None:
            self.codistillation.at_boundary(UPDATE, epoch=1)

    def step(self, sample: dict[str, Any]) -> None:
        """Make one update, with its boundary, as the task does."""
        self.at_boundary()
        super().step(sample)


@contextmanager
def plain(
    size: str, classes: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> Iterator[Side]:
    """Give fairseq's own side.

    Args:
        size: one of ``SIZES``.
        classes: V.
        device: where it trains.
        dtype: what it trains in.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = "".join(f"w{number} 1\n" for number in range(classes - 4))
        for language in ("de", "en"):
            (folder / f"dict.{language}.txt").write_text(words)
        yield Side(folder, size, PLAIN, device, dtype)


@contextmanager
def codistilled(
    like: Side, tokens: int, flags: str = "", groups: int = 2, peer_dropout: bool = False
) -> Iterator[Codistilled]:
    """Give a codistilling side whose peers are live.

    Args:
        like: the plain side of the same size; its model is what the peers have published.
        tokens: ``--max-tokens``, by which the form of the divergence is chosen.
        flags: more of them.
        groups: n, 1 too.
        peer_dropout: whether the peers drop out.
    """
    with tempfile.TemporaryDirectory() as exchange:
        for group in range(1, groups):
            like.publish(Path(exchange), group)
        # What a group remembers lies with its checkpoints.
        saves = f"--save-dir {exchange}/saved-{groups}"
        line = f"{CODISTILLED} --codistill-dir {exchange} --codistill-num-groups {groups} {saves}"
        line = f"{line} {flags} --max-tokens {tokens}"
        if peer_dropout:
            line += " --codistill-peer-dropout"
        ours = Codistilled(like.folder, like.size, line, like.device, like.dtype)
        ours.task.begin_epoch(1, ours.model)
        codistillation = ours.codistillation
        if codistillation is None:
            yield ours
            return
        try:
            deadline = time.monotonic() + PEERS_WITHIN
            while len(codistillation.peers) < groups - 1:
                if time.monotonic() > deadline:
                    sys.exit("the peers were not taken; the log above says why")
                ours.at_boundary()
                time.sleep(0.05)
            yield ours
        finally:
            codistillation.abandon()
