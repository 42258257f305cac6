"""Asking what may never answer, on a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

Answer = TypeVar("Answer")

USUAL_SECONDS = 0.2


class Look(Generic[Answer]):
    """The newest answer to a question; a file system that hangs does not keep the caller.

    Args:
        ask: the question.  It must not raise.
        first: the answer until there is one.
    """

    def __init__(self, ask: Callable[[], Answer], first: Answer) -> None:
        self._ask = ask
        self._answer = first
        self._thread: threading.Thread | None = None

    def newest(self, patience: float = USUAL_SECONDS) -> Answer:
        """Ask again, unless the last question is still open; return the newest answer.

        Args:
            patience: seconds to wait for it.
        """
        if self._thread is None or not self._thread.is_alive():
            self._thread = threading.Thread(target=self._work, name="codistill-look", daemon=True)
            self._thread.start()
        self._thread.join(timeout=patience)
        return self._answer

    def last(self, patience: float) -> Answer:
        """Return an answer to a question asked after this call, if it comes in time.

        Args:
            patience: seconds to wait for it, and as long again for one that is still open.
        """
        if self._thread is not None:
            self._thread.join(timeout=patience)
        return self.newest(patience)

    def _work(self) -> None:
        self._answer = self._ask()
