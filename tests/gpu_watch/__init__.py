"""A user-dir: the plugin, and a file that tells after each batch where things are.

The lines go to GPU_WATCH, whose name ends with the group's index and the process's rank.
"""

import json
import os

from fairseq_codistill.tasks import codistill_translation

Task = codistill_translation.CodistillTranslationTask
usual = Task.train_step


def places(tensors):
    """Return what kinds of device and dtype some tensors have."""
    return sorted({f"{one.device.type} {str(one.dtype).removeprefix('torch.')}" for one in tensors})


def train_step(self, sample, model, criterion, optimizer, update_num, *arguments, **more):
    """Do the usual, and note it."""
    found = usual(self, sample, model, criterion, optimizer, update_num, *arguments, **more)
    peers = [] if self.codistillation is None else self.codistillation.peers
    line = {
        "update": update_num,
        "batch": places([sample["target"]]),
        "parameters": places(model.parameters()),
        "gradients": places(p.grad for p in model.parameters() if p.grad is not None),
        "peers": len(peers),
        "of peers": places(p for peer in peers for p in peer.module.parameters()),
    }
    name = f"{os.environ['GPU_WATCH']}-{self.cfg.codistill_group}-{os.environ.get('GPU_RANK', 0)}"
    with open(name, "a") as file:
        file.write(json.dumps(line) + "\n")
    return found


Task.train_step = train_step
