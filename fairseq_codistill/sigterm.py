"""A process that is told to end says goodbye first."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

from fairseq_codistill import statuses


def end_in_order(say_goodbye: Callable[[], None]) -> None:
    """Let SIGTERM end this process by way of ``SystemExit``, once goodbye is said.

    Without that, a group that its user or a scheduler has stopped would pass for one that trains
    until its last sign of life is old.  Goodbye comes first: what follows may be cut off.  The
    signal waits for what the main thread is doing in C; a second one, after it was heard, ends the
    process at once.  Nothing is changed where somebody else listens to the signal, or off the main
    thread, which alone may.

    Args:
        say_goodbye: called at most once, on the main thread, in the middle of anything.
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
        # Data loaders die of the same signal, and torch would raise an error for each; and where
        # torch has spawned this process, its parent's end is an interrupt.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        say_goodbye()
        raise SystemExit(statuses.TERMINATED)

    signal.signal(signal.SIGTERM, end)
