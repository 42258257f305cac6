"""A peer's forward pass in the ways there are, against how it runs without asking.

python benchmarks/peer_forward.py --sizes tiny base

A peer gives its last hidden states, in eval mode, without gradients.  ``dropout`` is a peer that
drops out (--codistill-peer-dropout), ``bfloat16`` one of --codistill-peer-dtype; ``inference mode``
and ``compiled`` were tried and are not offered.  What bfloat16 changes is given as the mean squared
change of the hidden states, in parts of their mean square.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import measure
import steps
import torch
from torch import Tensor

WAYS = ["dropout", "inference mode", "compiled", "bfloat16"]
COLUMNS = ["model", "tokens", "as it is, s", *WAYS, "change by bfloat16"]


def measured(
    size: str, tokens: int, rounds: int, device: torch.device, ways: list[str]
) -> dict[str, object]:
    """Measure one model; give its row of the table, with the raw seconds."""
    classes = 10000
    with steps.plain(size, classes, device) as plain, steps.codistilled(plain, tokens) as ours:
        sample = steps.batch(plain, tokens, classes, device)
        keep = sample["target"] != plain.task.target_dictionary.pad()
        peer = ours.codistillation.peers[0].module
        models = {way: copy.deepcopy(peer) for way in ways}

        def rows(model: torch.nn.Module) -> Tensor:
            return model(**sample["net_input"], features_only=True)[0][keep]

        def forward(model: torch.nn.Module) -> Tensor:
            with torch.no_grad():
                return rows(model)

        def inferring() -> Tensor:
            with torch.inference_mode():
                return rows(models["inference mode"])

        acts: dict[str, Callable[[], Tensor]] = {"as it is": lambda: forward(peer)}
        for way, model in models.items():
            if way == "dropout":
                model.train()
            if way == "bfloat16":
                model.bfloat16()
            if way == "compiled":
                model.compile()
            acts[way] = lambda model=model: forward(model)
        if "inference mode" in ways:
            acts["inference mode"] = inferring
        seconds = measure.in_turns(acts, rounds, device)
        exact = forward(peer)
        row: dict[str, object] = {"model": size, "tokens": sample["ntokens"]}
        row["as it is, s"] = measure.spread(seconds["as it is"], 3)
        for way in ways:
            row[way] = measure.spread(measure.ratio(seconds[way], seconds["as it is"]))
        if "bfloat16" in ways:
            change = (acts["bfloat16"]().float() - exact).square().mean() / exact.square().mean()
            row["change by bfloat16"] = f"{change.item():.1e}"
    return row | {"seconds": seconds}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=list(steps.SIZES))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--rounds", type=measure.count, default=5)
    steps.add_arguments(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    measure.say_machine()
    rows = []
    for size in options.sizes:
        rows.append(measured(size, options.tokens, options.rounds, device, options.ways))
        measure.write(options.json, rows)
    print(measure.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
