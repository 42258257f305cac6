"""``codistill report`` from its arguments to its files."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fairseq_codistill.errors import UserError
from fairseq_codistill.records import printable
from fairseq_codistill.report import labels, runs
from fairseq_codistill.report.build import build
from fairseq_codistill.report.content import LONGEST
from fairseq_codistill.report.document import as_json
from fairseq_codistill.report.markdown import as_markdown
from fairseq_codistill.report.page import as_html
from fairseq_codistill.report.runs import Run


def report(
    named: Sequence[str],
    labelled: Sequence[Sequence[str]],
    out: Path,
    html: bool,
    json: bool,
) -> int:
    """Write a report on runs.

    Args:
        named: runs, which are put together where they differ in their seed only.
        labelled: of each label its name, and then its runs.
        out: the folder to write to.
        html: write ``report.html`` too.
        json: write ``report.json`` too.

    Raises:
        UserError: if a run cannot be read, or the files cannot be written.
    """
    try:
        return _report(named, labelled, out, html, json)
    except UserError as error:
        # It may quote the name of a file.
        raise UserError(printable(error, LONGEST)) from None


def _report(
    named: Sequence[str],
    labelled: Sequence[Sequence[str]],
    out: Path,
    html: bool,
    json: bool,
) -> int:
    for label in labelled:
        if len(label) < 2:
            raise UserError(f"--as {' '.join(label)} names no run; give --as LABEL RUN...")
        if "/" in label[0] and os.path.exists(label[0]):
            raise UserError(
                f"--as {' '.join(label)}: {label[0]} is there, so it looks like a run and not "
                "like a label; give --as LABEL RUN..."
            )
    if not named and not labelled:
        raise UserError("there is nothing to report on; name runs, as RUN... or --as LABEL RUN...")
    read: dict[Path, str] = {}
    together = [_find(run, read) for run in named]
    under = [(name, [_find(run, read) for run in some]) for name, *some in labelled]
    found = labels.group(together, under)
    written = build(found)
    files: dict[str, str | bytes] = {"report.md": as_markdown(written)}
    files |= {picture.file: picture.png for picture in written.pictures}
    if html:
        files["report.html"] = as_html(written)
    if json:
        files["report.json"] = as_json(found, written.notes)
    _write(out, files)
    said = [*written.summary, *(f"note: {note}" for note in written.notes)]
    _say([*said, printable(f"written to {out}: {', '.join(files)}", LONGEST)])
    return 0


def _say(lines: Sequence[str]) -> None:
    """Print lines, whatever letters the terminal's encoding has."""
    encoding = sys.stdout.encoding or "utf-8"
    print("\n".join(lines).encode(encoding, "backslashreplace").decode(encoding))


def _find(named: str, read: dict[Path, str]) -> Run:
    """Find a run, and see that none of its logs has been read before: it would count twice."""
    run = runs.find(named)
    for model in run.models:
        path = model.path.resolve()
        if path in read:
            raise UserError(f"{named} has a log that {read[path]} has too; name a run only once")
        read[path] = named
    return run


def _write(out: Path, files: dict[str, str | bytes]) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            (out / name).write_bytes(data.encode() if isinstance(data, str) else data)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from None
