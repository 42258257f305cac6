"""What the exchange costs the thread that trains.

python benchmarks/stall.py quickstart --data DATA_BIN   real training, an exchange every 50 updates
python benchmarks/stall.py large                        one model of 210 million parameters

DATA_BIN is what examples/quickstart.sh leaves in quickstart/data/data-bin.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import measure
import torch
from fairseq.data import Dictionary
from fairseq.models.transformer import TransformerModel, transformer_vaswani_wmt_en_de_big
from torch import nn

from fairseq_codistill.codistillation import Codistillation, CodistillationConfig, Group
from fairseq_codistill.exchange import WIRE_DTYPES, Draft, Exchange, Store, copy_out

PACKAGE = Path(__file__).parent.parent / "fairseq_codistill"

# The model and the batches of examples/quickstart.sh.
QUICKSTART = """
    --source-lang de --target-lang en --task codistill_translation
    --criterion codistill_cross_entropy --codistill-alpha 0.3 --codistill-alpha-max 1.0
    --arch transformer --encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim 128 --decoder-embed-dim 128
    --encoder-ffn-embed-dim 512 --decoder-ffn-embed-dim 512
    --encoder-attention-heads 4 --decoder-attention-heads 4
    --encoder-normalize-before --decoder-normalize-before
    --share-all-embeddings --dropout 0 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0
    --lr 0.003 --lr-scheduler polynomial_decay --warmup-updates 100
    --max-tokens 700 --required-batch-size-multiple 1 --seed 1 --num-workers 0
    --disable-validation --no-save --log-format json --log-interval 50 --cpu
""".split()


# Seconds for a snapshot to be in the exchange.
PUBLISHED_WITHIN = 120.0


def show(label: str, values: Sequence[float], unit: str = "") -> measure.Row:
    """Print a median and its spread; give the raw figures."""
    median, low, high = statistics.median(values), min(values), max(values)
    print(f"  {label:<58} {median:9.4g} {unit:<2}  ({low:.4g} .. {high:.4g})")
    return {"figure": label, "unit": unit, "values": list(values)}


# --- real training -------------------------------------------------------------------------


def train(data: Path, out: Path, updates: int, interval: int) -> list[list[dict[str, float]]]:
    """Train two groups; give each one's log lines."""
    command = [
        *[sys.executable, "-m", "fairseq_codistill", "launch", "--groups", "2"],
        *["--out", str(out), "--max-restarts", "0", "--", "fairseq-train", str(data)],
        *["--user-dir", str(PACKAGE), *QUICKSTART, "--codistill-interval", str(interval)],
        *["--max-update", str(updates), "--total-num-update", str(updates)],
    ]
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"the run in {out} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    logs = [(out / f"group-{i}" / "log.txt").read_text() for i in (0, 1)]
    return [
        [
            {key: float(value) for key, value in json.loads(line).items() if value is not None}
            for line in re.findall(r"\| train_inner \| (\{.*\})$", log, re.M)
        ]
        for log in logs
    ]


def quickstart(data: Path, updates: int, runs: int) -> list[measure.Row]:
    """Print the share of the training time that is lost to an exchange every 50 updates."""
    print("quickstart model, two groups, an exchange every 50 updates")
    shares, refreshed, seconds = [], [], []
    for run in range(runs):
        with tempfile.TemporaryDirectory() as folder:
            for lines in train(data, Path(folder), updates, interval=50):
                wall = lines[-1]["wall"]
                stall = sum(line["codistill_stall"] for line in lines)
                shares.append(100 * stall / wall)
                refreshed.append(sum(line["codistill_refreshed"] for line in lines))
                seconds.append(wall)
        print(f"  run {run + 1} of {runs} done", file=sys.stderr)
    return [
        show("training time of a group", seconds, "s"),
        show("peer refreshed, times", refreshed),
        show("codistill_stall, share of the training time", shares, "%"),
    ]


# --- a large model in this process ---------------------------------------------------------


def build_large() -> nn.Module:
    """Build fairseq's big transformer with random weights: 210 million parameters."""
    words = Dictionary()
    for number in range(32768 - len(words)):
        words.add_symbol(f"w{number}")
    args = argparse.Namespace(share_all_embeddings=True)
    transformer_vaswani_wmt_en_de_big(args)
    sides = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    model: nn.Module = TransformerModel.build_model(args, sides)
    return model


def seconds_of(act: Callable[[], object], device: torch.device) -> float:
    """Time one call, and on a GPU what it leaves to the stream on which training goes on."""
    _wait(device)
    start = time.perf_counter()
    act()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        # Not for the whole device: the exchange has a stream of its own.
        torch.cuda.current_stream(device).synchronize()


def large(rounds: int, dtype: str, folder: Path, device: torch.device) -> list[measure.Row]:
    """Print what publishing and refreshing cost the training thread, and one copy beside them."""
    torch.manual_seed(1)
    model = build_large().to(device)
    weights = [parameter.detach() for parameter in model.parameters()]
    count = sum(weight.numel() for weight in weights)
    print(f"{count / 1e6:.0f} million parameters, snapshots in {dtype}")
    config = CodistillationConfig(
        codistill_dir=str(folder),
        codistill_num_groups=2,
        codistill_interval=100,
        codistill_snapshot_dtype=dtype,
    )

    def build(config: object, tensors: object) -> nn.Module:
        return build_large().to(device)

    group = Group(1, "v", {"big": True}, build, weights[0])
    side = Codistillation(config, group, model.state_dict)
    exchange = Exchange(Store(str(folder)), "default")
    place = [torch.empty_like(weight) for weight in weights]

    def copy() -> None:
        for target, weight in zip(place, weights, strict=True):
            target.copy_(weight)

    def peer_publishes(update: int) -> None:
        tensors, aliases = copy_out(model.state_dict(), WIRE_DTYPES[dtype])
        exchange.publish(
            Draft(1, 2, update, 1, dtype, "v", {"big": True}, tensors=tensors, aliases=aliases)
        )
        exchange.prune(1, 1)

    def refresh(update: int) -> tuple[float, float, float]:
        """Stand at boundaries until the peer is refreshed: the swap, the rest, the time between."""
        side.note_logged()
        longest, start = 0.0, time.perf_counter()
        while True:
            seconds = seconds_of(lambda: side.at_boundary(update, 1), device)
            if side.changes["first_seen"] or side.changes["refreshed"]:
                return seconds, longest, time.perf_counter() - start
            longest = max(longest, seconds)
            time.sleep(0.02)

    def publish(update: int) -> tuple[float, float]:
        """Stand at a multiple of the interval: the boundary, and until it is in the exchange."""
        start = time.perf_counter()
        seconds = seconds_of(lambda: side.at_boundary(update, 1), device)
        until_published(update)
        return seconds, time.perf_counter() - start - 0.5

    def until_published(update: int) -> None:
        deadline = time.monotonic() + PUBLISHED_WITHIN
        while exchange.newest_update(0) != update:
            if time.monotonic() > deadline:
                sys.exit(f"update {update} was not published; the log above says why")
            time.sleep(0.02)
        # Its deletion of older snapshots is still to come.
        time.sleep(0.5)

    peer_publishes(50)
    first_refresh, _, _ = refresh(51)
    # The first boundary has published too, and who is busy skips a snapshot.
    until_published(51)
    first_publish, _ = publish(100)
    copy()
    copies, swaps, polls, waits, publishings, writes, shares = [], [], [], [], [], [], []
    for number in range(2, rounds + 2):
        copies.append(seconds_of(copy, device))
        peer_publishes(100 * number - 50)
        swap, poll, wait = refresh(100 * number - 49)
        publishing, write = publish(100 * number)
        for values, value in (
            (swaps, swap),
            (polls, poll),
            (waits, wait),
            (publishings, publishing),
            (writes, write),
            (shares, (swap + publishing) / copies[-1]),
        ):
            values.append(value)
    side.abandon()
    rows = [show("one copy of the weights, float32", copies, "s")]
    print("  on the training thread:")
    rows += [
        show("publishing", publishings, "s"),
        show("refreshing the peer", swaps, "s"),
        show("both, in copies of the weights", shares),
        show("longest other boundary while a snapshot is being read", polls, "s"),
        show("the first publication (its memory is new)", [first_publish], "s"),
        show("the first sight of the peer (its model is built)", [first_refresh], "s"),
    ]
    print("  in the background:")
    rows += [
        show("from the boundary until a snapshot is in the exchange", writes, "s"),
        show("from then until it is in use", waits, "s"),
    ]
    return rows


def large_in(
    folder: Path | None, rounds: int, dtype: str, device: torch.device
) -> list[measure.Row]:
    """Measure the large model with an exchange in a folder, a temporary one if there is none."""
    if folder is not None:
        return large(rounds, dtype, folder, device)
    with tempfile.TemporaryDirectory() as name:
        return large(rounds, dtype, Path(name), device)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    real = kinds.add_parser("quickstart", help="real training on the quickstart's data")
    real.add_argument("--data", type=Path, required=True)
    real.add_argument("--updates", type=int, default=1000)
    real.add_argument("--runs", type=measure.count, default=3)
    big = kinds.add_parser("large", help="a model of 210 million parameters")
    big.add_argument("--rounds", type=measure.count, default=5)
    big.add_argument("--dtype", default="bfloat16", choices=WIRE_DTYPES)
    big.add_argument("--folder", type=Path, help="the exchange (default: a temporary folder)")
    big.add_argument("--device", default="cpu", help="where the model is (default: cpu)")
    for kind in (real, big):
        kind.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    measure.say_machine()
    if options.kind == "quickstart":
        rows = quickstart(options.data, options.updates, options.runs)
    else:
        rows = large_in(options.folder, options.rounds, options.dtype, torch.device(options.device))
    measure.write(options.json, rows)


if __name__ == "__main__":
    main()
