"""Validation NLL against seconds: all_reduce and codistillation, over a slow line and a fast one.

python benchmarks/equal_time.py --data DATA_BIN --out FOLDER

Two hosts of one core each, as in network.py, which needs root, ip and tc.  Both train for as many
seconds; all_reduce with label smoothing 0.1, codistillation without, as in the paper.  The plot has
a panel for each line, and a curve for the model of each host (all_reduce has one model).
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import measure
import network

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.append(str(network.ROOT / "tests"))
from hosts import hosts, why_not  # noqa: E402
from servers import s3_server  # noqa: E402

ALPHA = ["--codistill-alpha", "0.01", "--codistill-alpha-growth", "1.5"]
ALPHA += ["--codistill-alpha-max", "1", "--codistill-peer-dropout"]
VALIDATE = ["--validate-interval-updates", "50", "--max-tokens-valid", "4000"]
# Of Okabe and Ito, told apart by everybody.
COLOURS = {"all_reduce": "#0072B2", "codistillation, T = 50": "#D55E00"}

# Seconds of training, and bits a token.
Curve = list[tuple[float, float]]


def curve(log: Path) -> Curve:
    """Give a log's validations; each was made just after the line of training before it."""
    found: Curve = []
    wall = 0.0
    for kind, text in re.findall(r"\| (train_inner|valid) \| (\{.*\})$", log.read_text(), re.M):
        values = json.loads(text)
        if kind == "train_inner":
            wall = float(values["wall"])
        else:
            found.append((wall, float(values["valid_nll_loss"])))
    return found


def trained(
    megabits: float, seconds: float, data: Path, methods: Sequence[str], folder: Path
) -> dict[str, list[Curve]]:
    """Train with each method over one kind of line; give the curves of its models."""
    found = {}
    with s3_server("0.0.0.0") as server, hosts(2, megabits or None, meet=True) as made:
        for name in methods:
            how = network.METHODS[name]
            flags = [*how.flags, *VALIDATE, *(ALPHA if how.codistills else [])]
            method = network.Method(flags, how.codistills)
            with network.training(method, made, server, data, folder) as now:
                now.go_on(seconds)
            found[name] = [curve(log) for log in now.logs]
            best = min(nll for one in found[name] for _, nll in one)
            print(f"  {megabits:g} Mbit/s, {name}: best NLL {best:.3f}", flush=True)
    return found


def plot(found: dict[float, dict[str, list[Curve]]], seconds: float, path: Path) -> None:
    """Draw a panel for each line."""
    size = (5.5 * len(found), 4.2)
    figure, (panels,) = plt.subplots(1, len(found), figsize=size, sharey=True, squeeze=False)
    for panel, (megabits, methods) in zip(panels, found.items(), strict=True):
        for name, curves in methods.items():
            style = "--" if name.startswith("all_reduce") else "-"
            for number, one in enumerate(curves):
                label = name if number == 0 else None
                panel.plot(*zip(*one, strict=True), style, color=COLOURS[name], label=label)
        panel.set_title(f"{megabits:g} Mbit/s" if megabits else "no limit", loc="left")
        panel.set_xlim(0, seconds)
        panel.set_xlabel("seconds")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("validation NLL, bits per token")
    panels[0].legend(frameon=False)
    # The beginning, where every model is as bad, would hide the rest.
    curves = [one for methods in found.values() for some in methods.values() for one in some]
    best = min(nll for one in curves for _, nll in one)
    plt.ylim(best - 0.1, best + 3)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--megabits", type=float, nargs="+", default=[0, 100], help="0: no limit")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--out", type=Path, required=True, help="for the plot and the numbers")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := why_not():
        sys.exit(f"equal_time.py {reason}")
    # What network.py leaves out, for it only counts words.
    network.MODEL.remove("--disable-validation")
    measure.say_machine()
    options.out.mkdir(parents=True, exist_ok=True)
    data = options.data.resolve()
    with tempfile.TemporaryDirectory() as name:
        found = {
            megabits: trained(megabits, options.seconds, data, list(COLOURS), Path(name))
            for megabits in options.megabits
        }
    rows = [
        {"megabits": megabits, "method": name, "curves": curves}
        for megabits, methods in found.items()
        for name, curves in methods.items()
    ]
    measure.write(options.out / "equal_time.json", rows)
    plot(found, options.seconds, options.out / "equal_time.png")


if __name__ == "__main__":
    main()
