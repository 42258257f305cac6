"""Keeps groups of processes running to their end, and ends them all cleanly.

It knows nothing of fairseq but how a process says that its settings are wrong (see
``statuses.CONFIG``); what to start comes from outside.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from fairseq_codistill import statuses
from fairseq_codistill.launch.group import Group, State
from fairseq_codistill.launch.pulse import awaits_another
from fairseq_codistill.launch.retry import Retry
from fairseq_codistill.launch.view import LiveView
from fairseq_codistill.records.ended import ALONE

_TICK = 0.1
# Seconds between two rounds that tell of more than a busy machine.
_ASLEEP = 10.0


class Interrupt:
    """Counts the signals that ask for the end; in place between ``__enter__`` and ``__exit__``."""

    def __init__(self) -> None:
        self.count = 0
        self.first: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # nohup has SIGHUP ignored, and means it.
            if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.count += 1
        self.first = self.first or number


def supervise(
    groups: Sequence[Group],
    view: LiveView,
    lockstep: bool = False,
    chores: Sequence[Retry] = (),
) -> int:
    """Run ``groups`` to their end.

    The first Ctrl-C (or SIGTERM, SIGHUP) ends all with SIGTERM and, after a grace, SIGKILL; the
    second one at once.

    Args:
        groups: all groups of the run.
        view: shows them.
        lockstep: whether groups wait for each other.
        chores: small files that are to be written, sooner or later.

    Returns:
        The exit status: 0 if every group finished, 3 if all have and one never had a peer that it
        was to learn from, 2 if the settings of one were wrong, 128 + the signal's number (130 for
        Ctrl-C) if a signal ended them, otherwise 1.
    """
    with Interrupt() as interrupt:
        stopping = False
        complaints: set[str] = set()
        now = time.monotonic()
        try:
            while not all(group.over for group in groups):
                before, now = now, time.monotonic()
                if now - before > _ASLEEP:
                    # This process was stopped, or the machine slept, and the groups with it.
                    for group in groups:
                        group.pulse.hold(now)
                if interrupt.count > 1:
                    for group in groups:
                        group.kill()
                if interrupt.count and not stopping:
                    stopping = True
                    view.announce("stopping all groups (once more to kill them at once)")
                # With one group's settings wrong the run cannot be what was asked for.
                stopping |= any(group.state is State.REFUSED for group in groups)
                for group in groups:
                    if stopping:
                        group.stop(now)
                    _step(group, now, view, complaints)
                for group in groups if not stopping else []:
                    if lockstep and _awaits_another(group, groups):
                        group.pulse.hold(now)
                    elif group.hangs(now):
                        group.give_up_waiting(now)
                for chore in chores:
                    chore.try_now(now)
                view.show([group.line() for group in groups], now)
                time.sleep(_TICK)
        finally:
            # Nothing outlives this function, whatever ends it.
            for group in groups:
                group.kill()
        for group in groups:
            group.settle()
        alone = [group.name for group in groups if group.missed_its_peers]
        if alone:
            view.announce(
                f"{', '.join(alone)} {ALONE}. See its log: the exchange, --codistill-interval "
                "beside the number of updates, rejected snapshots"
            )
        view.show([group.line() for group in groups], time.monotonic(), final=True)
    if all(group.state is State.FINISHED for group in groups):
        return statuses.NO_PEERS if alone else statuses.FINISHED
    if interrupt.first is not None:
        return 128 + interrupt.first
    refused = any(group.state is State.REFUSED for group in groups)
    return statuses.CONFIG if refused else statuses.FAILED


def _step(group: Group, now: float, view: LiveView, complaints: set[str]) -> None:
    """Let a group do what is due; an error of launch's own costs that group nothing."""
    try:
        group.step(now)
    except Exception as error:  # noqa: BLE001 - whatever it is, groups live on; tried again
        complaint = f"{group.name}: an error of launch itself ({type(error).__name__}: {error})"
        if complaint not in complaints:
            complaints.add(complaint)
            view.announce(f"{complaint}; it goes on")


def _awaits_another(group: Group, groups: Sequence[Group]) -> bool:
    others = [other for other in groups if other is not group and other.state is not State.FINISHED]
    return awaits_another(
        group.pulse, [(other.pulse, other.state is State.RUNNING) for other in others]
    )
