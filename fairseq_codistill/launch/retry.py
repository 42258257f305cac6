"""Small files of launch that are to be written sooner or later."""

from __future__ import annotations

import time
from collections.abc import Callable

from fairseq_codistill.errors import UserError

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 30.0


class Retry:
    """Does something until it succeeds; a failure is announced once and decides about nothing.

    Args:
        what: for people, as in "launch.json".
        act: what to do; it raises ``OSError``, ``ValueError`` or ``UserError`` if it fails.
        announce: prints a line for the user.
    """

    def __init__(self, what: str, act: Callable[[], None], announce: Callable[[str], None]) -> None:
        self._what = what
        self._act = act
        self._announce = announce
        self._due = 0.0
        self._pause = FIRST_SECONDS
        self._failed = False
        self.done = False

    def try_now(self, now: float | None = None) -> None:
        """Try, if that is due, unless it is done.

        Args:
            now: seconds of the monotonic clock; None to try in any case.
        """
        if self.done or (now is not None and now < self._due):
            return
        try:
            self._act()
        except (OSError, ValueError, UserError) as error:
            self._due = (time.monotonic() if now is None else now) + self._pause
            self._pause = min(2 * self._pause, LONGEST_SECONDS)
            if not self._failed:
                self._announce(f"{self._what} cannot be written ({error}); trying again")
            self._failed = True
            return
        self.done = True
        if self._failed:
            self._announce(f"{self._what} is written now")
