"""What an update costs with more peers, and what the loss's head costs with its sizes.

python benchmarks/scaling.py

First: updates of n = 1 to 8 groups in parts of fairseq's plain one, and the line through them.
Second: the output layer and loss of a codistilled update (factored, naive) when one of the number
of rows N, the width d and the number of classes V doubles; the exponent is the logarithm to base 2
of what its time grows by.  Per row, the head is flat if the exponent of N is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import statistics

import loss_head
import measure
import steps
import torch

GROUPS = [1, 2, 3, 5, 8]
BASE = {"N": 4000, "d": 256, "V": 8000}
FORMS = ["factored", "naive"]


def by_groups(
    size: str, classes: int, tokens: int, rounds: int, device: torch.device, peer_dropout: bool
) -> tuple[list[dict[str, object]], float, float]:
    """Measure updates with more and more peers.

    Returns:
        A row for each n with its raw seconds; the slope of the ratios by n - 1; and how far the
        points lie from that line at most.
    """
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(steps.plain(size, classes, device))
        sample = steps.batch(plain, tokens, classes, device)
        acts = {"plain": lambda: plain.step(sample)}
        for n in GROUPS:
            ours = stack.enter_context(
                steps.codistilled(plain, tokens, groups=n, peer_dropout=peer_dropout)
            )
            acts[str(n)] = lambda ours=ours: ours.step(sample)
        seconds = measure.in_turns(acts, rounds, device)
    ratios = {n: measure.ratio(seconds[str(n)], seconds["plain"]) for n in GROUPS}
    middle = [statistics.median(ratios[n]) for n in GROUPS]
    slope, start = statistics.linear_regression([n - 1 for n in GROUPS], middle)
    off = max(abs(start + slope * (n - 1) - y) for n, y in zip(GROUPS, middle, strict=True))
    rows = [
        {
            "model": size,
            "V": classes,
            "n": n,
            "parts of a plain update": measure.spread(ratios[n]),
            "peer dropout": peer_dropout,
            "seconds": seconds[str(n)],
        }
        for n in GROUPS
    ]
    return rows, slope, off


def by_sizes(rounds: int, device: torch.device) -> list[dict[str, object]]:
    """Measure the head with each size doubled; give a row for each size."""
    points = {"": BASE} | {name: BASE | {name: 2 * BASE[name]} for name in BASE}
    acts = {}
    for doubled, size in points.items():
        point = loss_head.Point(*size.values(), torch.float32, device)
        for form in FORMS:
            acts[doubled, form] = loss_head.gradients(point, getattr(point, form))
    seconds = measure.in_turns({" ".join(key): act for key, act in acts.items()}, rounds, device)
    rows = []
    for name in BASE:
        row: dict[str, object] = {"doubled": f"{name}, from {BASE[name]}"}
        for form in FORMS:
            grown = measure.ratio(seconds[f"{name} {form}"], seconds[f" {form}"])
            row[f"exponent of {form}"] = measure.spread([math.log2(ratio) for ratio in grown])
        rows.append(row)
    return [*rows, {"seconds": seconds}]


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="tiny", choices=list(steps.SIZES))
    parser.add_argument("--classes", type=int, default=10000)
    parser.add_argument("--rounds", type=measure.count, default=5)
    steps.add_arguments(parser)
    steps.add_peer_dropout(parser)
    options = parser.parse_args()
    device = torch.device(options.device)
    measure.say_machine()
    rows, slope, off = by_groups(
        options.size, options.classes, options.tokens, options.rounds, device, options.peer_dropout
    )
    print(measure.table(rows, ["model", "V", "n", "parts of a plain update"]))
    print(f"a peer costs {slope:.2f} of a plain update; off that line by {off:.2f} at most\n")
    heads = by_sizes(options.rounds, device)
    print(measure.table(heads[:-1], ["doubled", *(f"exponent of {form}" for form in FORMS)]))
    measure.write(options.json, [*rows, *heads])


if __name__ == "__main__":
    main()
