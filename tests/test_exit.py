"""A run that has finished ends with status 0, whatever fairseq's threads are doing."""

import queue
import subprocess
import sys
import threading

from fairseq.data.iterators import BackgroundConsumer
from harness import environment

from fairseq_codistill.tasks import codistill_translation as task

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

atexit.register(task._let_readers_settle)
reader = BackgroundConsumer(queue.Queue(1), batches(), None, None)
reader.daemon = True
reader.start()
time.sleep(0.05)
"""


def test_a_process_with_a_reader_at_work_ends_well():
    # Without the wait it aborts, if not every time.
    assert subprocess.run([sys.executable, "-c", SCRIPT], env=environment()).returncode == 0


def test_the_end_waits_for_readers_at_work(monkeypatch):
    monkeypatch.setattr(task, "SETTLE_SECONDS", 60)
    come = threading.Event()

    def batches():
        come.wait()
        yield 1

    reader = BackgroundConsumer(queue.Queue(), batches(), None, None)
    reader.daemon = True
    reader.start()
    threading.Timer(0.2, come.set).start()
    task._let_readers_settle()
    assert not reader.is_alive()
