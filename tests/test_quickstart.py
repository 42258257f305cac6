"""The quickstart's machinery from end to end, on few updates; needs the package registry."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from harness import environment

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="runs in a virtual environment only")
def test_quickstart(tmp_path):
    env = environment(VIRTUAL_ENV=sys.prefix, QUICKSTART_DIR=str(tmp_path), QUICKSTART_UPDATES="40")
    del env["OMP_NUM_THREADS"]
    command = ["bash", str(ROOT / "examples" / "quickstart.sh")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=550)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for row in ("model 0", "model 1", "ensemble"):
        assert f"\n{row}" in done.stdout
    assert "version:" in done.stdout, "the signature of sacreBLEU"
    logs = [(tmp_path / f"run-40/group-{i}/log.txt").read_text() for i in (0, 1)]
    assert all("peer" in log and "refreshed" in log for log in logs)
    # Again: everything is there.
    before = os.stat(tmp_path / "run-40/group-0/checkpoint_best.pt").st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert again.returncode == 0, again.stderr[-3000:]
    assert again.stdout.splitlines()[-12:] == done.stdout.splitlines()[-12:]
    assert os.stat(tmp_path / "run-40/group-0/checkpoint_best.pt").st_mtime_ns == before
