"""Run by the tests of the meeting: one worker of a group, which joins and says how that went.

python met.py RANK SIZE PORT EXCHANGE [MODE [SAVE_DIR]]
"""

import sys
from pathlib import Path

import torch
from torch import distributed as dist
from torch import nn

from fairseq_codistill.codistillation import Codistillation, CodistillationConfig, Group, meeting

rank, size, port, exchange = sys.argv[1:5]
mode, save_dir = [*sys.argv[5:], "async", ""][:2] if len(sys.argv) < 7 else sys.argv[5:7]
meeting.ANSWER_SECONDS = 3.0
if int(size) > 1:
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=int(rank), world_size=int(size)
    )
torch.manual_seed(1)
model = nn.Linear(3, 5)
config = CodistillationConfig(
    codistill_dir=exchange, codistill_num_groups=2, codistill_mode=mode, codistill_interval=2
)
group = Group(seed=1, vocabulary="v", model={}, build=lambda *_: nn.Linear(3, 5), like=model.weight)
directory = Path(save_dir) if save_dir else None
try:
    side = Codistillation(config, group, model.state_dict, directory=directory)
except Exception as error:  # noqa: BLE001 - said to the test, whatever it is
    print(f"{type(error).__name__}: {error}", flush=True)
else:
    print("met", flush=True)
    side.abandon()
