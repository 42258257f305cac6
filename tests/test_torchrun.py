"""Groups of several nodes under torchrun, each node a process of its own here."""

import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest
from harness import BIN, CODISTILL, LOCKSTEP, SEED_STEP, TINY, Run, environment, equal, launch
from ports import free_port

LOCKSTEP_OF_FIVE = [*CODISTILL, *LOCKSTEP, "--codistill-interval", "5", "--disable-validation"]
# What fairseq does not find out by itself on CPU; the shell that torchrun starts knows the rest.
CPU_WORLD = [
    *["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-no-spawn"],
    *["--distributed-init-method", "env://"],
]


def start_node(corpus: Path, out: Path, group: int, node: int, port: int) -> subprocess.Popen:
    """One node of a group of two."""
    folder = out / f"group-{group}"
    folder.mkdir(parents=True, exist_ok=True)
    train = shlex.join(
        [
            *[str(BIN / "fairseq-train"), str(corpus), *TINY, *LOCKSTEP_OF_FIVE, *CPU_WORLD],
            *["--codistill-num-groups", "2", "--codistill-group", str(group)],
            *["--codistill-dir", str(out / "exchange"), "--save-dir", str(folder)],
            *["--seed", str(1 + SEED_STEP * group)],
        ]
    )
    world = '--distributed-world-size "$WORLD_SIZE" --distributed-rank "$RANK"'
    torchrun = [
        *[str(BIN / "torchrun"), "--nnodes", "2", "--node-rank", str(node)],
        *["--nproc-per-node", "1", "--master-addr", "localhost", "--master-port", str(port)],
        *["--no-python", "bash", "-c", f"exec {train} {world}"],
    ]
    with (folder / f"log-{node}.txt").open("w") as log:
        return subprocess.Popen(
            torchrun,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,
        )


@pytest.mark.full
def test_two_groups_of_two_nodes(corpus, tmp_path):
    """They train as under launch, bit for bit: so all workers used the same snapshots."""
    out = tmp_path / "torchrun"
    ports = [free_port(), free_port()]
    nodes = [
        start_node(corpus, out, group, node, ports[group]) for group in (0, 1) for node in (0, 1)
    ]
    try:
        for node in nodes:
            node.wait(timeout=400)
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
    runs = []
    for group in (0, 1):
        folder = out / f"group-{group}"
        logs = [(folder / f"log-{node}.txt").read_text() for node in (0, 1)]
        assert [node.returncode for node in nodes[2 * group :][:2]] == [0, 0], logs[0][-3000:]
        runs.append(Run(folder, logs[0]))
        assert [line["num_updates"] for line in runs[-1].lines()] == list(range(1, 21))
        assert {line["codistill_peers"] for line in runs[-1].lines()} == {1}
    here = launch(corpus, tmp_path / "launch", *LOCKSTEP_OF_FIVE, workers=2)
    for run, same in zip(runs, here, strict=True):
        assert equal(run.weights(), same.weights())
        assert [line["loss"] for line in run.lines()] == [line["loss"] for line in same.lines()]
