"""The report as lines for a terminal of 80 columns."""

from __future__ import annotations

import textwrap
from datetime import datetime

from fairseq_codistill.records import printable
from fairseq_codistill.status.survey import ABSENT, SILENT, Member, Report, Run

WIDTH = 80
# With more peers than this their staleness is a range.
PEERS_SHOWN = 2

_HEADER = ("group", "state", "update", "epoch", "restarts", "staleness", "newest", "size", "age")
_TO_THE_LEFT = {"state", "staleness"}


def lines(report: Report) -> list[str]:
    """Give the report as lines."""
    launched = report.place.launched
    said = [f"exchange {printable(report.place.exchange)}"]
    if launched is not None:
        when = datetime.fromisoformat(launched.time).astimezone()
        times = "once" if launched.launches == 1 else f"{launched.launches} times"
        said.append(f"launched {times}, last on {when:%Y-%m-%d %H:%M}: {launched.groups} groups")
    for run in report.runs:
        said += ["", *_run(run, report.time)]
    problems = [f"! {printable(problem)}" for problem in report.problems]
    for problem in problems:
        said += textwrap.wrap(problem, WIDTH - 1, subsequent_indent="  ")
    return said


def duration(seconds: float) -> str:
    """Give a time as a number and its unit: ``35 s``, ``12 min``, ``47 h``, ``3 d``."""
    for unit, length, below in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if round(seconds / length) < below:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def size(count: int) -> str:
    """Give a number of bytes: ``85 kB``, ``420 MB``, ``1.2 GB``."""
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return (
        f"{number:.1f} {units[0]}"
        if number < 9.95 and count >= 1000
        else f"{number:.0f} {units[0]}"
    )


def _run(run: Run, now: float) -> list[str]:
    heard = f", last heard of {duration(max(0.0, now - run.time))} ago" if run.time else ""
    rows = [_HEADER, *(_row(member) for member in run.members)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = []
    for row in rows:
        cells = [
            cell.ljust(width) if name in _TO_THE_LEFT else cell.rjust(width)
            for name, cell, width in zip(_HEADER, row, widths, strict=True)
        ]
        table.append("  ".join(cells).rstrip())
    return [f"run {printable(run.run_id)}{heard}", *table]


def _row(member: Member) -> tuple[str, ...]:
    state = member.state
    if state == SILENT and member.silence is not None:
        state = f"{state} {duration(member.silence)}"
    snapshot = member.snapshot
    return (
        str(member.group),
        "not yet seen" if state == ABSENT else state,
        _number(member.update),
        _number(member.epoch),
        _number(member.restarts),
        _staleness(member),
        *(
            ("-", "", "")
            if snapshot is None
            else (str(snapshot.update), size(snapshot.bytes), duration(snapshot.age))
        ),
    )


def _staleness(member: Member) -> str:
    """Give the staleness of each peer in use, ``1: 250, 2: -40``, or of many: ``-40 to 250``."""
    if member.update is None or not member.peers:
        return "-"
    ages = {peer: member.update - update for peer, update in member.peers}
    if len(ages) <= PEERS_SHOWN:
        return ", ".join(f"{peer}: {age}" for peer, age in ages.items())
    return f"{min(ages.values())} to {max(ages.values())}"


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)
