"""What a report holds, however it is written: sentences, tables, pictures, commands."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from fairseq_codistill.records import printable

# Characters of a sentence or a cell, and of a line of code.
LONGEST, LONGEST_CODE = 10_000, 100_000


@dataclass(frozen=True)
class Table:
    """A table: the first ``names`` columns are text, the others numbers."""

    title: str
    header: list[str]
    rows: list[list[str]]
    names: int
    caption: str = ""


@dataclass(frozen=True)
class Picture:
    """A picture, what it shows and what it says to those who cannot see it."""

    file: str
    title: str
    caption: str
    alt: str
    png: bytes


@dataclass(frozen=True)
class Listing:
    """Lines of code, and a sentence below them."""

    title: str
    lines: list[str]
    caption: str


@dataclass(frozen=True)
class Content:
    """All of a report, in the order in which it is read."""

    title: str
    summary: list[str]
    main: Table
    results: list[Table]
    pictures: list[Picture]
    tables: list[Table]
    made: Listing | None
    notes: list[str]


def made_printable(content: Content) -> Content:
    """Return the same content with every text on one line and without control characters.

    Names of files, logs and what launch has written down are others' to choose.
    """
    made = content.made
    return replace(
        content,
        summary=_texts(content.summary),
        main=_table(content.main),
        results=[_table(table) for table in content.results],
        pictures=[
            replace(one, caption=printable(one.caption, LONGEST), alt=printable(one.alt, LONGEST))
            for one in content.pictures
        ],
        tables=[_table(table) for table in content.tables],
        made=made
        and Listing(
            made.title,
            [printable(line, LONGEST_CODE) for line in made.lines],
            printable(made.caption, LONGEST),
        ),
        notes=_texts(content.notes),
    )


def _table(table: Table) -> Table:
    return replace(
        table,
        title=printable(table.title, LONGEST),
        header=_texts(table.header),
        rows=[_texts(row) for row in table.rows],
        caption=printable(table.caption, LONGEST),
    )


def _texts(texts: Iterable[str]) -> list[str]:
    return [printable(text, LONGEST) for text in texts]
