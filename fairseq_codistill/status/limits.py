"""Bounds on how long an exchange that does not answer can hold up those who look at it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from fairseq_codistill.exchange import Store
from fairseq_codistill.exchange.bounded import within

# An answer; somewhat longer than a store's own limit, whose error says more.
ANSWER_SECONDS = 75.0
# A whole look at an exchange.
LOOK_SECONDS = 300.0

Item = TypeVar("Item")
Result = TypeVar("Result")


class BoundedStore:
    """What ``status`` needs of a store, each call in a bounded time, nothing written.

    Once a store has not answered it is not asked again in the same look.

    Args:
        uri: a path or a URI.

    Raises:
        ExchangeError: if it cannot be opened.
        TimeoutError: if opening it takes too long.
    """

    def __init__(self, uri: str) -> None:
        self._store = within(ANSWER_SECONDS, lambda: Store(uri))
        self.begin_look()

    def begin_look(self) -> None:
        """Start the time of a look."""
        self._end = time.monotonic() + LOOK_SECONDS
        self._silent = False

    def names(self, folder: str) -> list[str]:
        """Return the names directly under ``folder``."""
        return self._ask(lambda: self._store.names(folder))

    def read(self, name: str, limit: int) -> bytes:
        """Return what is stored under ``name``, at most ``limit`` bytes."""
        return self._ask(lambda: self._store.read(name, limit))

    def _ask(self, act: Callable[[], Result]) -> Result:
        if self._silent:
            raise TimeoutError("the exchange did not answer in time, and was not asked again")
        try:
            return within(min(ANSWER_SECONDS, self._end - time.monotonic()), act)
        except TimeoutError:
            self._silent = True
            raise


def in_parallel(
    act: Callable[[Item], Result], items: Sequence[Item], threads: int = 8
) -> list[Result]:
    """Return what ``act`` makes of each item.

    Unlike those of an executor, the threads never keep the process from ending.
    """
    results: dict[int, Result] = {}
    errors: list[BaseException] = []
    waiting = iter(enumerate(items))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number, item = next(waiting, (None, None))
            if number is None or errors:
                return
            try:
                results[number] = act(item)  # type: ignore[arg-type]
            except BaseException as error:  # noqa: BLE001 - raised again on the caller's thread
                errors.append(error)

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(items)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(items))]
