"""A codistilled update, two groups, against fairseq's plain one, on one model and batch.

python benchmarks/step_time.py --sizes tiny base --classes 10000 32000

The plain update is that of ``translation`` with ``label_smoothed_cross_entropy``.  Both sides
make forward, backward and the optimizer's step; nothing is exchanged meanwhile (benchmarks/stall.py
measures that).  The arithmetic asks for 4/3: a plain update is three times a forward pass.
"""

from __future__ import annotations

import argparse
import contextlib

import measure
import steps
import torch

HALVED = "--codistill-fused-ce --codistill-peer-dtype bfloat16"
FORMS = steps.FORMS | {"fused, bfloat16 peers": HALVED}
COLUMNS = ["model", "V", "tokens", "plain, s", *FORMS]


def measured(
    size: str,
    classes: int,
    tokens: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    peer_dropout: bool,
) -> dict[str, object]:
    """Measure one model; give its row of the table, with the raw seconds."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(steps.plain(size, classes, device, dtype))
        sample = steps.batch(plain, tokens, classes, device)
        contestants = {"plain": lambda: plain.step(sample)}
        for name, flags in FORMS.items():
            ours = stack.enter_context(
                steps.codistilled(plain, tokens, flags, peer_dropout=peer_dropout)
            )
            contestants[name] = lambda ours=ours: ours.step(sample)
        seconds = measure.in_turns(contestants, rounds, device)
    row: dict[str, object] = {"model": size, "V": classes, "tokens": sample["ntokens"]}
    row["plain, s"] = measure.spread(seconds["plain"])
    for name in FORMS:
        row[name] = measure.spread(measure.ratio(seconds[name], seconds["plain"]), 3)
    return row | {"peer dropout": peer_dropout, "seconds": seconds}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=list(steps.SIZES))
    parser.add_argument("--classes", type=int, nargs="+", default=[10000, 32000])
    parser.add_argument("--rounds", type=measure.count, default=5)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    steps.add_arguments(parser)
    steps.add_peer_dropout(parser)
    options = parser.parse_args()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    measure.say_machine()
    print(f"{options.dtype} on {device}; in parts of the plain update")
    rows = []
    for size in options.sizes:
        for classes in options.classes:
            rows.append(
                measured(
                    size,
                    classes,
                    options.tokens,
                    options.rounds,
                    device,
                    dtype,
                    options.peer_dropout,
                )
            )
            print(measure.table(rows[-1:], COLUMNS).split("\n")[-1], flush=True)
            measure.write(options.json, rows)
    print("\n" + measure.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
