"""SIGTERM: a process says goodbye before it ends, whatever else dies at the same time."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from harness import environment

# A leader with a sign of life, and whatever else; it says "ready" when it waits for the signal.
SCRIPT = """
import os, signal, sys, threading, time
from fairseq_codistill import sigterm
from fairseq_codistill.exchange import Alive, Presence, Store

class Numbers:
    def __len__(self): return 10**6
    def __getitem__(self, index): time.sleep(0.01); return index

def lead(folder):
    presence = Presence(Store(folder), 0, Alive("run", "nonce"), lambda: {{}})
    presence.claim()
    sigterm.end_in_order(lambda: presence.release(finished=False))

def ready():
    print("ready", flush=True)

if __name__ == "__main__":
    folder = sys.argv[1]
    {body}
"""
LOADERS = """
    from torch.utils.data import DataLoader
    lead(folder)
    for number, batch in enumerate(DataLoader(Numbers(), num_workers=2)):
        if number == 2: ready()
"""
ALONE = """
    lead(folder)
    ready()
    while True: time.sleep(0.01)
"""
FORKED = """
    lead(folder)
    if os.fork() == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.wait()[1])
    print(ended, flush=True)
    ready()
    time.sleep(60)
"""
TAKEN = """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(7))
    lead(folder)
    ready()
    time.sleep(60)
"""


@pytest.fixture
def begin(tmp_path):
    """Start a leader in a session of its own; gives it and what it said before it was ready."""
    made = []

    def start(body):
        script = tmp_path / "leader.py"
        script.write_text(SCRIPT.format(body=body.strip()))
        process = subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        made.append(process)
        said = []
        for line in process.stdout:
            if line == "ready\n":
                return process, said
            said.append(line.strip())
        raise AssertionError(said)

    yield start
    for process in made:
        process.kill()
        process.wait()


def says_it_runs(folder):
    return json.loads((folder / "group-0/alive.json").read_text())["running"]


@pytest.mark.parametrize("body", [ALONE, LOADERS], ids=["alone", "loaders"])
def test_a_leader_says_goodbye_and_ends_as_the_signal_would(begin, tmp_path, body):
    process, _ = begin(body)
    assert says_it_runs(tmp_path)
    # As launch and a terminal do: all that it has started gets the signal too.
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert not says_it_runs(tmp_path)


def test_a_child_with_its_parents_handler_ends_as_if_there_were_none(begin, tmp_path):
    process, said = begin(FORKED)
    assert said == [str(-signal.SIGTERM)]
    assert says_it_runs(tmp_path)
    process.terminate()
    assert process.wait(timeout=60) == 143
    assert not says_it_runs(tmp_path)


def test_who_listens_already_is_left_alone(begin, tmp_path):
    process, _ = begin(TAKEN)
    process.terminate()
    assert process.wait(timeout=60) == 7
    assert says_it_runs(tmp_path)


def test_an_end_that_was_reached_stands(tmp_path):
    from fairseq_codistill.exchange import Alive, Presence, Store

    presence = Presence(Store(str(tmp_path)), 0, Alive("run", "nonce"), dict)
    presence.claim()
    presence.release(finished=True)
    presence.release(finished=False)
    alive = json.loads((tmp_path / "group-0/alive.json").read_text())
    assert (alive["finished"], alive["running"]) == (True, False)
    assert time.time() - alive["time"] < 60
