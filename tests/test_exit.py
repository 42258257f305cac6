"""A run that has finished ends with status 0, whatever fairseq's threads are doing."""

import subprocess
import sys

from harness import environment

# fairseq's reader, at work in torch when the interpreter ends, as after a very short last epoch.
SCRIPT = """
import atexit, queue, time, torch
from fairseq.data.iterators import BackgroundConsumer
from fairseq_codistill.tasks import codistill_translation as task

def batches():
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
        torch.zeros(3, 4).copy_(torch.ones(3, 4))
    yield 1

if {settle}:
    atexit.register(task._let_readers_settle)
reader = BackgroundConsumer(queue.Queue(1), batches(), None, None)
reader.daemon = True
reader.start()
time.sleep(0.05)
"""


def status(settle: bool) -> int:
    code = SCRIPT.format(settle=settle)
    return subprocess.run([sys.executable, "-c", code], env=environment()).returncode


def test_the_end_waits_for_readers_at_work():
    assert status(settle=True) == 0
    # Without the wait the process aborts, if not every time: that is what the wait is there for.
    assert any(status(settle=False) != 0 for _ in range(5))
