"""Words a second of two hosts of one core each, over slower and slower lines.

python benchmarks/network.py --data DATA_BIN --megabits 0 1000 100 10

DATA_BIN is what examples/quickstart.sh leaves in quickstart/data/data-bin.  Needs root, ip and tc:
the hosts are network namespaces.  all_reduce is one fairseq-train over both hosts; codistillation
is one of each host, which have nothing in common but an S3 server on our side of the lines.  Each
method trains once, and meanwhile the lines are made slower and faster in turns.  Beside words a
second, what went through a host's line for each of its updates.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import measure

ROOT = Path(__file__).parent.parent
# Hosts and the S3 server are those of the tests.
sys.path.append(str(ROOT / "tests"))
from hosts import Host, hosts, why_not  # noqa: E402
from servers import S3Server, s3_server  # noqa: E402

MODEL = """
    --source-lang de --target-lang en --arch transformer --encoder-layers 3 --decoder-layers 3
    --encoder-embed-dim 128 --decoder-embed-dim 128 --encoder-ffn-embed-dim 512
    --decoder-ffn-embed-dim 512 --encoder-attention-heads 4 --decoder-attention-heads 4
    --share-all-embeddings --dropout 0.1 --optimizer adam --adam-betas (0.9,0.98) --clip-norm 1.0
    --lr 0.001 --max-tokens 1250 --required-batch-size-multiple 1 --num-workers 0
    --max-update 1000000 --disable-validation --no-save --log-format json --log-interval 1 --cpu
""".split()
PLAIN = "--task translation --criterion label_smoothed_cross_entropy --label-smoothing 0.1".split()
CODISTILLED = [
    *["--user-dir", str(ROOT / "fairseq_codistill"), "--task", "codistill_translation"],
    *["--criterion", "codistill_cross_entropy", "--codistill-num-groups", "2"],
]
SEED_STEP = 1000003
PORT = 29511
# The first updates allocate memory; after a change of the line TCP finds its pace.
WARM_UP_SECONDS = 15.0
SETTLE_SECONDS = 2.0

COMPRESSED = [
    *["--ddp-backend", "pytorch_ddp"],
    *["--user-dir", str(ROOT / "benchmarks" / "compressed_ddp")],
]


@dataclass(frozen=True)
class Method:
    """How to train.

    Attributes:
        flags: beyond those of ``command``.
        codistills: each host alone, in place of all_reduce over both.
    """

    flags: list[str]
    codistills: bool = False


METHODS = {
    "all_reduce": Method(["--ddp-backend", "legacy_ddp"]),
    "all_reduce, fp16": Method([*COMPRESSED, "--ddp-comm-hook", "fp16"]),
    "all_reduce, PowerSGD": Method(COMPRESSED),
    "codistillation, T = 50": Method(["--codistill-interval", "50"], codistills=True),
    "codistillation, T = 50, every 2nd update": Method(
        ["--codistill-interval", "50", "--codistill-every", "2"], codistills=True
    ),
}


@dataclass(frozen=True)
class Seen:
    """What a run did for some seconds.

    Attributes:
        words: a second, of both hosts.
        bytes: on a host's line for each of its updates.
        updates: of a host.
    """

    words: float
    bytes: float
    updates: int


@dataclass(frozen=True)
class Plan:
    """When to look on.

    Attributes:
        megabits: a second on the lines, in the order of a round; 0 for no limit.
        seconds: at each speed.
        rounds: how many.
    """

    megabits: list[float]
    seconds: float
    rounds: int


def command(
    method: Method, rank: int, all_hosts: Sequence[Host], data: Path, run: str
) -> list[str]:
    """Give what a host runs."""
    line = [sys.executable, "-m", "fairseq_cli.train", str(data), *MODEL, *method.flags]
    if method.codistills:
        own = ["--codistill-dir", f"s3://exchange/{run}", "--codistill-group", str(rank)]
        return [*line, *CODISTILLED, *own, "--seed", str(1 + SEED_STEP * rank)]
    return [
        *[*line, *PLAIN, "--seed", "1"],
        *["--distributed-world-size", str(len(all_hosts)), "--distributed-rank", str(rank)],
        *["--distributed-init-method", f"tcp://{all_hosts[0].own_address}:{PORT}"],
        *["--distributed-backend", "gloo", "--distributed-no-spawn"],
    ]


def lines(log: Path) -> list[dict[str, float]]:
    """Give a log's lines of training so far."""
    return [
        {key: float(value) for key, value in json.loads(line).items() if value is not None}
        for line in _raw_lines(log)
    ]


def _raw_lines(log: Path) -> list[str]:
    return re.findall(r"\| train_inner \| (\{.*\})$", log.read_text(), re.M)


@dataclass(frozen=True)
class Training:
    """A run under way.

    Attributes:
        logs: those that tell.
        processes: all of them.
    """

    logs: list[Path]
    processes: list[subprocess.Popen[bytes]]

    def go_on(self, seconds: float) -> None:
        """Wait so long, and stop everything if a process ends meanwhile: none is to."""
        end = time.monotonic() + seconds
        while True:
            if any(process.poll() is not None for process in self.processes):
                sys.exit(
                    "training ended:\n" + "\n".join(log.read_text()[-3000:] for log in self.logs)
                )
            if (left := end - time.monotonic()) <= 0:
                return
            time.sleep(min(left, 0.5))


@contextmanager
def training(
    method: Method, made: Sequence[Host], server: S3Server, data: Path, folder: Path
) -> Iterator[Training]:
    """Train on both hosts; give that once the logs begin to tell."""
    processes, logs = [], []
    run = f"{folder.name}-{time.time_ns()}"
    for rank, host in enumerate(made):
        address = f"{host.address}:{server.address.rsplit(':', 1)[1]}"
        env = os.environ | server.environment(address)
        env |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "CUDA_VISIBLE_DEVICES": ""}
        logs.append(folder / f"{run}-{rank}.txt")
        core = str(rank % (os.cpu_count() or 1))
        with logs[-1].open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*host.within, "taskset", "-c", core, *command(method, rank, made, data, run)],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=env,
                    start_new_session=True,
                )
            )
    if not method.codistills:
        # The first worker logs for both.
        logs = logs[:1]
    try:
        run_now = Training(logs, processes)
        while not all(lines(log) for log in logs):
            run_now.go_on(0.5)
        yield run_now
    finally:
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def measured(
    method: Method, made: Sequence[Host], server: S3Server, data: Path, plan: Plan, folder: Path
) -> dict[float, list[Seen]]:
    """Train; give what was seen in each round at each speed of the lines."""
    found: dict[float, list[Seen]] = {megabits: [] for megabits in plan.megabits}
    with training(method, made, server, data, folder) as now:
        # Until it has a peer, a group's update is a plain one.
        while method.codistills and not all(
            lines(log)[-1].get("codistill_peers") for log in now.logs
        ):
            now.go_on(0.5)
        now.go_on(WARM_UP_SECONDS)
        for _ in range(plan.rounds):
            for megabits in plan.megabits:
                for host in made:
                    host.limit(megabits or None)
                now.go_on(SETTLE_SECONDS)
                found[megabits].append(_seen(now, made[0], plan.seconds))
    return found


def _seen(now: Training, host: Host, seconds: float) -> Seen:
    """Look on for some time.

    It is from an update's line in a log to that of another, so that not even updates of many
    seconds are counted in part.
    """
    starts = _next_updates(now, host)
    now.go_on(seconds)
    ends = _next_updates(now, host)
    words = sum(
        sum(line["wpb"] for line in lines(log)[start.lines : end.lines])
        / (end.seconds - start.seconds)
        for start, end, log in zip(starts, ends, now.logs, strict=True)
    )
    updates = ends[0].lines - starts[0].lines
    return Seen(words, (ends[0].bytes - starts[0].bytes) / updates, updates)


@dataclass(frozen=True)
class _Mark:
    """When a log got a line.

    Attributes:
        lines: how many it has now.
        seconds: of the clock.
        bytes: on the first host's line until then.
    """

    lines: int
    seconds: float
    bytes: int


def _next_updates(now: Training, host: Host) -> list[_Mark]:
    """Wait for the next line of each log."""
    # Not parsed: looked at so often, that would take time from the hosts.
    before = {log: len(_raw_lines(log)) for log in now.logs}
    found: dict[Path, _Mark] = {}
    while len(found) < len(before):
        now.go_on(0.02)
        for log, count in before.items():
            if log not in found and (there := len(_raw_lines(log))) > count:
                found[log] = _Mark(there, time.monotonic(), host.bytes_on_the_line())
    return [found[log] for log in now.logs]


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument(
        "--megabits", type=float, nargs="+", default=[0, 1000, 100, 10], help="0: no limit"
    )
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seconds", type=float, default=20, help="at each speed in a round")
    parser.add_argument("--rounds", type=measure.count, default=5)
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    # Hosts and workers go with us, however we are told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := why_not():
        sys.exit(f"network.py {reason}")
    measure.say_machine()
    plan = Plan(options.megabits, options.seconds, options.rounds)
    raw: list[measure.Row] = []
    rows: list[measure.Row] = []
    with s3_server("0.0.0.0") as server, tempfile.TemporaryDirectory() as name:
        for method in options.methods:
            with hosts(2, None, meet=True) as made:
                data = options.data.resolve()
                found = measured(METHODS[method], made, server, data, plan, Path(name))
            for megabits, seen in found.items():
                rows.append(_row(method, megabits, seen, found[plan.megabits[0]]))
                raw += [{"method": method, "megabits": megabits, **asdict(one)} for one in seen]
                print("  " + ", ".join(map(str, rows[-1].values())), flush=True)
            measure.write(options.json, raw)
    print("\n" + measure.table(rows, list(rows[0])))


def _row(
    method: str, megabits: float, seen: Sequence[Seen], first: Sequence[Seen]
) -> dict[str, str]:
    """Write what a method did at one speed, beside what it did at the first one."""
    words = [one.words for one in seen]
    parts = measure.ratio(words, [one.words for one in first])
    total = sum(one.bytes * one.updates for one in seen) / sum(one.updates for one in seen)
    return {
        "method": method,
        "Mbit/s": f"{megabits:g}" if megabits else "no limit",
        "words/s": measure.spread(words, 0),
        "parts of the first speed": measure.spread(parts),
        "MB an update": f"{total / 1e6:.3f}",
    }


if __name__ == "__main__":
    main()
