"""Checkpoints to export, and what export says of those that it refuses."""

import argparse

import torch
from fairseq import options, tasks
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from harness import CODISTILL, SETTINGS
from omegaconf import OmegaConf
from test_export import SMALL_LIGHTCONV

import fairseq_codistill.tasks.codistill_translation  # noqa: F401 - registers the task
from fairseq_codistill import cli
from fairseq_codistill.plain import allowing

SMALL_FCONV = """
    --encoder-embed-dim 16 --decoder-embed-dim 16 --decoder-out-embed-dim 16
    --encoder-layers [(16,3)]*2 --decoder-layers [(16,3)]*2
""".split()
SMALL_SELF_ATTENTION = [
    *[*SMALL_FCONV, "--encoder-attention-nheads", "1", "--multihead-attention-nheads", "1"],
    *["--multihead-self-attention-nheads", "1"],
]
SMALL_DYNAMIC = [
    *[*SMALL_LIGHTCONV, "--encoder-conv-type", "dynamic", "--decoder-conv-type", "dynamic"],
]
SMALL_ONE_LAYER = [
    *[*SMALL_LIGHTCONV, "--encoder-layers", "1", "--decoder-layers", "1"],
    *["--encoder-kernel-size-list", "[3]", "--decoder-kernel-size-list", "[3]"],
]


def write_untrained(corpus, folder, *flags):
    """Write the checkpoint of an untrained model, as fairseq-train would; gives its path."""
    line = [str(corpus), *SETTINGS, *CODISTILL, *flags]
    cfg = convert_namespace_to_omegaconf(
        options.parse_args_and_arch(options.get_training_parser(), line)
    )
    torch.manual_seed(1)
    model = tasks.setup_task(cfg.task).build_model(cfg.model)
    state = {
        "args": None,
        "cfg": OmegaConf.to_container(cfg, resolve=True, enum_to_str=True),
        "model": model.state_dict(),
        "optimizer_history": [
            {
                "criterion_name": "CodistillCrossEntropyCriterion",
                "optimizer_name": "SGD",
                "lr_scheduler_state": {},
                "num_updates": 3,
            }
        ],
        "extra_state": {"train_iterator": {"epoch": 1, "iterations_in_epoch": 3}},
        "last_optimizer_state": None,
    }
    torch.save(state, folder / "checkpoint_last.pt")
    return folder / "checkpoint_last.pt"


def refusal(capsys, *arguments) -> str:
    """What export says when it refuses; it says it in one line, and writes nothing."""
    new = arguments[1]
    before = sorted(new.parent.iterdir()) if new.parent.is_dir() else None
    assert cli.main(["export", *map(str, arguments)]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("codistill: error: ")
    assert (sorted(new.parent.iterdir()) if new.parent.is_dir() else None) == before
    return said


def load(path):
    """A checkpoint, read as the plugin reads it."""
    with allowing([argparse.Namespace]):
        return torch.load(path, weights_only=True)
