"""What torch's restricted unpickler must know for fairseq to read its checkpoints again.

Beside what stands in them: resuming with several workers broadcasts the loaded checkpoint with its
configuration turned into omegaconf's classes.  All of these are plain data.
"""

import collections
import typing

import torch
from fairseq.distributed import utils as distributed_utils
from omegaconf import base, dictconfig, listconfig, nodes

from fairseq_codistill import plain


def register() -> None:
    """Add them to torch's list, for this process."""
    torch.serialization.add_safe_globals(
        [
            *plain.allowed(),
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
