"""The plugin works in the processes that fairseq spawns, one a GPU."""

import json
import subprocess
import sys
from pathlib import Path

from harness import CODISTILL, TINY, Run, environment
from ports import free_port


def test_spawned_workers_train_and_publish(corpus, tmp_path):
    flags = [
        *["--codistill-num-groups", "2", "--codistill-dir", str(tmp_path / "exchange")],
        *["--codistill-interval", "5", "--distributed-world-size", "2"],
        *["--distributed-init-method", f"tcp://localhost:{free_port()}"],
        *["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"],
        *["--save-dir", str(tmp_path)],
    ]
    done = subprocess.run(
        [
            *[sys.executable, str(Path(__file__).parent / "spawned.py")],
            *[str(corpus), *TINY, *CODISTILL, *flags],
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(Run(tmp_path, done.stdout).lines()) == 20
    # The last snapshot is there although its process was spawned and has ended.
    alive = json.loads((tmp_path / "exchange" / "group-0" / "alive.json").read_text())
    assert (alive["finished"], alive["update"]) == (True, 20)
    assert (tmp_path / "exchange" / "group-0" / "0000000020.json").exists()
