"""What torch's restricted unpickler must know to read fairseq's checkpoints.

From torch 2.6 on ``torch.load`` reads tensors and plain containers only.  A fairseq checkpoint
holds the command line as an ``argparse.Namespace``; and resuming with several workers broadcasts
the loaded checkpoint with its configuration turned into omegaconf's classes.  All of these are
plain data.
"""

import argparse
import collections
import typing

import torch
from fairseq.distributed import utils as distributed_utils
from omegaconf import base, dictconfig, listconfig, nodes


def register() -> None:
    """Add them to torch's list, for this process."""
    torch.serialization.add_safe_globals(
        [
            argparse.Namespace,
            distributed_utils._TensorPlaceholder,
            base.ContainerMetadata,
            base.Metadata,
            dictconfig.DictConfig,
            listconfig.ListConfig,
            nodes.AnyNode,
            nodes.BooleanNode,
            nodes.FloatNode,
            nodes.IntegerNode,
            nodes.StringNode,
            nodes.EnumNode,
            collections.defaultdict,
            typing.Any,
            dict,
            list,
            int,
        ]
    )
