"""What goes through a host's line for each update: all_reduce, and codistillation through S3.

python benchmarks/exchange.py --data DATA_BIN

Two hosts as in network.py, which needs root, ip and tc, on lines without a limit; what is counted
is all that the kernel saw on a host's line, both ways.  all_reduce is counted over some updates and
codistillation with T = 50 over whole intervals, in lockstep, so that each has one snapshot of each
group.  T = 2500 would take long, so it is put together from two counts: what an interval of T = 50
needs beyond what goes to and fro all the time, by 2500; and that, in async mode without a snapshot,
for as long as an update takes.  (Lockstep looks more often, but only while one host waits.)
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import measure
import network

from fairseq_codistill.exchange import WIRE_DTYPES

sys.path.append(str(network.ROOT / "tests"))
from hosts import Host, hosts, why_not  # noqa: E402
from servers import S3Server, s3_server  # noqa: E402

OFTEN, SELDOM = "codistillation, T = 50", "codistillation, T = 2500"
COLUMNS = ["method", "bytes an update", "fewer than all_reduce"]
# Between two snapshots, clear of both.
QUIET_UPDATE = 30


def update(log: Path) -> int:
    """Give a log's newest update."""
    return int(network.lines(log)[-1]["num_updates"])


def between(now: network.Training, host: Host, first: int, count: int) -> tuple[int, float]:
    """Count bytes, and seconds, from update ``first`` for ``count`` updates of the first host."""
    found = []
    for goal in (first, first + count):
        while update(now.logs[0]) < goal:
            now.go_on(0.1)
        found.append((host.bytes_on_the_line(), time.monotonic()))
    (bytes_before, start), (bytes_after, end) = found
    return bytes_after - bytes_before, end - start


def counted(
    server: S3Server, data: Path, intervals: int, idle_seconds: float, folder: Path
) -> dict[str, float]:
    """Count each method's bytes for an update."""
    found = {}
    often = network.METHODS[OFTEN]
    seldom = replace(often, flags=["--codistill-interval", "2500"])
    in_step = replace(often, flags=[*often.flags, "--codistill-mode", "lockstep"])
    with hosts(2, None, meet=True) as made:
        for name, method in network.METHODS.items():
            if not method.codistills:
                with network.training(method, made, server, data, folder) as now:
                    found[name] = between(now, made[0], 20, 40)[0] / 40
                print(f"  {name}: {found[name]:,.0f}", flush=True)
        with network.training(in_step, made, server, data, folder) as now:
            total, seconds = between(now, made[0], 50 + QUIET_UPDATE, 50 * intervals)
        found[OFTEN] = total / (50 * intervals)
        an_update = seconds / (50 * intervals)
        print(f"  {OFTEN}: {found[OFTEN]:,.0f}; an update takes {an_update:.2f} s", flush=True)
        with network.training(seldom, made, server, data, folder) as now:
            between(now, made[0], QUIET_UPDATE, 0)
            before = made[0].bytes_on_the_line()
            now.go_on(idle_seconds)
            idle = (made[0].bytes_on_the_line() - before) / idle_seconds
            if max(map(update, now.logs)) >= 2500:
                sys.exit("--idle-seconds is too long: a snapshot was in it; give fewer")
        print(f"  between two snapshots: {idle:,.0f} bytes a second", flush=True)
    snapshot = total / intervals - idle * an_update * 50
    found[SELDOM] = snapshot / 2500 + idle * an_update
    return found


def main() -> None:
    """Measure what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--intervals", type=measure.count, default=4, help="of T = 50")
    parser.add_argument("--idle-seconds", type=float, default=600)
    parser.add_argument(
        "--dtype", default="bfloat16", choices=WIRE_DTYPES, help="--codistill-snapshot-dtype"
    )
    parser.add_argument("--json", type=Path, help="write the raw figures there")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if reason := why_not():
        sys.exit(f"exchange.py {reason}")
    network.CODISTILLED += ["--codistill-snapshot-dtype", options.dtype]
    measure.say_machine()
    with s3_server("0.0.0.0") as server, tempfile.TemporaryDirectory() as name:
        found = counted(
            server, options.data.resolve(), options.intervals, options.idle_seconds, Path(name)
        )
    rows = [
        {
            "method": method,
            "bytes an update": f"{count:,.0f}",
            "fewer than all_reduce": f"{found['all_reduce'] / count:,.1f}",
            "raw": count,
        }
        for method, count in found.items()
    ]
    measure.write(options.json, rows)
    print(measure.table(rows, COLUMNS))


if __name__ == "__main__":
    main()
