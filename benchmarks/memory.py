"""Peak memory of a codistilled update, two groups, against fairseq's plain one.

python benchmarks/memory.py --sizes tiny

What tensors take at one time during an update, beyond what was there before it: weights,
gradients, the optimizer's state and the peer's weights are not in it.  On the CPU it is summed up
from the allocator's own record, so that it does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import contextlib

import measure
import steps
import torch

COLUMNS = ["model", "V", "tokens", "the peer's weights", "plain", *steps.FORMS]
MIB = 2**20


def measured(
    size: str,
    classes: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
    peer_dropout: bool,
) -> dict[str, object]:
    """Measure one model; give its row of the table, with the raw bytes."""
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(steps.plain(size, classes, device, dtype))
        sample = steps.batch(plain, tokens, classes, device)
        acts = {"plain": lambda: plain.step(sample)}
        for name, flags in steps.FORMS.items():
            ours = stack.enter_context(
                steps.codistilled(plain, tokens, flags, peer_dropout=peer_dropout)
            )
            acts[name] = lambda ours=ours: ours.step(sample)
        peaks = {}
        for name, act in acts.items():
            act()  # the optimizer's state is made by the first step
            peaks[name] = measure.peak_memory(act, device)
        weights = sum(p.numel() * p.element_size() for p in plain.model.parameters())
    row: dict[str, object] = {"model": size, "V": classes, "tokens": sample["ntokens"]}
    row["the peer's weights"] = f"{weights / MIB:.0f} MiB"
    row["plain"] = f"{peaks['plain'] / MIB:.0f} MiB"
    for name in steps.FORMS:
        row[name] = f"{peaks[name] / MIB:.0f} MiB, {peaks[name] / peaks['plain']:.2f} of plain"
    return row | {"peer dropout": peer_dropout, "bytes": peaks}


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "base"], choices=list(steps.SIZES))
    parser.add_argument("--classes", type=int, nargs="+", default=[10000, 32000])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    steps.add_arguments(parser)
    steps.add_peer_dropout(parser)
    options = parser.parse_args()
    dtype, device = getattr(torch, options.dtype), torch.device(options.device)
    torch.set_num_threads(1)
    measure.say_machine()
    print(f"{options.dtype} on {device}")
    rows = []
    for size in options.sizes:
        for classes in options.classes:
            rows.append(
                measured(size, classes, options.tokens, device, dtype, options.peer_dropout)
            )
            print(measure.table(rows[-1:], COLUMNS).split("\n")[-1], flush=True)
            measure.write(options.json, rows)
    print("\n" + measure.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
