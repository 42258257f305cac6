"""``codistill status`` from its arguments to its exit status."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO

from fairseq_codistill.errors import UserError
from fairseq_codistill.exchange.bounded import within
from fairseq_codistill.records import printable
from fairseq_codistill.status import document, limits, table
from fairseq_codistill.status.places import Place, find
from fairseq_codistill.status.survey import Survey


def status(named: str, watch: float | None, as_json: bool) -> int:
    """Show the groups of the exchange that ``named`` is or has.

    Args:
        named: the OUT of a launch, or an exchange.
        watch: seconds between two looks, until Ctrl-C; None to look once.
        as_json: print a JSON document; with ``watch``, one a line.

    Raises:
        UserError: if there is nothing to show; with ``watch``, only if there never will be.
    """
    survey = Survey(_find(named))
    if watch is None:
        report = survey.look()
        print(document.as_json(report) if as_json else "\n".join(table.lines(report)))
        return 0
    screen = _Screen(sys.stdout)
    try:
        while True:
            _show_again(survey, screen, as_json)
            time.sleep(watch)
    except KeyboardInterrupt:
        return 0


def _find(named: str) -> Place:
    try:
        return within(limits.ANSWER_SECONDS, lambda: find(named))
    except TimeoutError as error:
        raise UserError(
            f"{named} cannot be looked at ({error}); see to the file system that it is on"
        ) from None


def _show_again(survey: Survey, screen: _Screen, as_json: bool) -> None:
    try:
        report = survey.look()
    except UserError as error:
        # An exchange may come (back) while somebody watches.
        if as_json:
            print(f"codistill: {printable(error)}", file=sys.stderr, flush=True)
        else:
            screen.draw([printable(error)])
        return
    if as_json:
        print(document.as_json(report, indent=None), flush=True)
    else:
        screen.draw([*table.lines(report), "", f"{time.strftime('%H:%M:%S')}  Ctrl-C ends this"])


class _Screen:
    """Draws lines over those drawn before; on what is no terminal, below them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0

    def draw(self, lines: list[str]) -> None:
        if self._stream.isatty():
            columns, rows = shutil.get_terminal_size()
            # A line that wraps, or scrolls away, could not be found again.
            lines = [line[: columns - 1] for line in lines[: rows - 1]]
            up = f"\x1b[{self._drawn}F" if self._drawn else ""
            self._stream.write(f"{up}\x1b[J")
        self._stream.write("\n".join([*lines, ""]))
        self._stream.flush()
        self._drawn = len(lines)
