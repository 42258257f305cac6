"""The fuzzer of the reader, a little of it always and all of it in the full run."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).parent / "fuzz.py"


def fuzz(cases, seed):
    # A process of its own: it limits its memory and sets alarms.
    command = [sys.executable, str(FUZZ), "--cases", str(cases), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    print(done.stdout)
    return done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_the_reader_withstands_mutated_snapshots(seed):
    output = fuzz(1500, seed)
    assert "no defect" in output
    # Some pass, or nothing but the first checks would be tried.
    accepted = next(line for line in output.splitlines() if line.endswith(" accepted"))
    assert int(accepted.split()[0]) > 50


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_the_reader_withstands_very_many():
    assert "no defect" in fuzz(100_000, seed=3)
