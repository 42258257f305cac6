"""What a report holds, however it is written: sentences, tables, pictures, commands."""

from __future__ import annotations

from dataclasses import dataclass


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
