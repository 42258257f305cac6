"""A process that is told to end says goodbye first."""

import os
import signal
import threading
from types import FrameType

# What a shell reports for a process that SIGTERM has ended.
STATUS = 128 + signal.SIGTERM


def end_in_order() -> None:
    """Let SIGTERM end this process by way of ``SystemExit``, and so in order.

    Without that, a group that its user or a scheduler has stopped would pass for one that trains
    until its last sign of life is old.  A second SIGTERM ends the process at once.  Nothing is
    changed where somebody else listens to the signal, or off the main thread, which alone may.
    """
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return
    owner = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:
            # A data loader's process, which has taken this over from its parent.
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise SystemExit(STATUS)

    signal.signal(signal.SIGTERM, end)
