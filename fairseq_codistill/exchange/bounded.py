"""A bound on the time of a call that nobody can interrupt."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def within(seconds: float, act: Callable[[], Result]) -> Result:
    """Give what ``act`` gives, if it does so within ``seconds``.

    A file system that hangs cannot be interrupted: ``act`` runs on a thread of its own, and if it
    takes too long that thread is left behind, to end when it can.

    Raises:
        TimeoutError: if it took longer.
        BaseException: what ``act`` raised.
    """
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def work() -> None:
        try:
            outcome.put((act(), None))
        except BaseException as error:  # noqa: BLE001 - raised again below, on the caller's thread
            outcome.put((None, error))

    threading.Thread(target=work, name="codistill-bounded", daemon=True).start()
    try:
        result, error = outcome.get(timeout=max(0.0, seconds))
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
