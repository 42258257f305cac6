"""A report as Markdown, with its pictures beside it."""

from __future__ import annotations

import re

from fairseq_codistill.report.content import Content, Table


def as_markdown(content: Content) -> str:
    """Give the text of ``report.md``."""
    parts = [f"# {content.title}", _table(content.main)]
    for table in content.results:
        parts += [f"## {_plain(table.title)}", _table(table)]
    for picture in content.pictures:
        parts += [
            f"## {_plain(picture.title)}",
            f"![{_plain(picture.alt)}]({picture.file})",
            f"*{_plain(picture.caption)}*",
        ]
    for table in content.tables:
        parts += [f"## {_plain(table.title)}", _table(table)]
    if content.made is not None:
        # By its indent it is code, in which nothing is a mark.
        lines = "\n".join(f"    {line}" for line in content.made.lines)
        parts += [f"## {_plain(content.made.title)}", lines, _plain(content.made.caption)]
    if content.notes:
        parts += ["## Notes", "\n".join(f"- {_plain(note)}" for note in content.notes)]
    return "\n\n".join(parts) + "\n"


def _table(table: Table) -> str:
    rows = [[_plain(cell) for cell in row] for row in [table.header, *table.rows]]
    # Even columns, so that the file reads well as it is.
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(table.header))]
    rule = [
        "-" * width if index < table.names else "-" * (width - 1) + ":"
        for index, width in enumerate(widths)
    ]
    lines = []
    for row in [rows[0], rule, *rows[1:]]:
        cells = [
            cell.ljust(width) if index < table.names else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if table.caption:
        lines += ["", _plain(table.caption)]
    return "\n".join(lines)


def _plain(text: str) -> str:
    """Keep what Markdown would take for a mark of its own."""
    return re.sub(r"([\\`*\[\]<>|]|(?<!\w)_|_(?!\w))", r"\\\1", text)
