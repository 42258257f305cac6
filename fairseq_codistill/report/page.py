"""A report as one HTML page that needs nothing else: no script, nothing from elsewhere."""

from __future__ import annotations

import base64
from html import escape

from fairseq_codistill.report.content import Content, Picture, Table

# Pictures are below each other on a narrow screen and two abreast on a wide one; nothing but a
# table ever scrolls sideways.
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff;
  max-width: 92rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: left; border-bottom: 1px solid #ddd;
  white-space: nowrap; }
thead th { border-bottom: 2px solid #888; vertical-align: bottom; }
tbody th { font-weight: 600; }
.number { text-align: right; }
.pictures { display: grid; gap: 2rem 1.5rem; margin-top: 2.2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 36rem), 1fr)); }
pre { font-size: .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 0; } img { max-width: 100%; height: auto; }
figcaption, .caption { color: #555; font-size: .86rem; max-width: 52rem; margin-top: .4rem;
  overflow-wrap: anywhere; }
"""


def as_html(content: Content) -> str:
    """Give the page."""
    parts = [f"<h1>{escape(content.title)}</h1>", _table(content.main)]
    parts += [_table(table) for table in content.results]
    if content.pictures:
        pictures = "\n".join(_picture(picture) for picture in content.pictures)
        parts.append(f'<div class="pictures">\n{pictures}\n</div>')
    parts += [_table(table) for table in content.tables]
    if content.made is not None:
        lines = escape("\n".join(content.made.lines))
        parts.append(
            f"<h2>{escape(content.made.title)}</h2>\n<pre>{lines}</pre>\n"
            f'<p class="caption">{escape(content.made.caption)}</p>'
        )
    if content.notes:
        notes = "\n".join(f"<li>{escape(note)}</li>" for note in content.notes)
        parts.append(f"<h2>Notes</h2>\n<ul>\n{notes}\n</ul>")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(content.title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_kind(table, index)}>{escape(cell)}</th>'
        for index, cell in enumerate(table.header)
    )
    rows = []
    for row in table.rows:
        first, *others = (escape(cell) for cell in row)
        cells = "".join(
            f"<td{_kind(table, index)}>{cell}</td>" for index, cell in enumerate(others, 1)
        )
        rows.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<h2>{escape(table.title)}</h2>\n<div class="wide"><table>\n<thead><tr>{head}</tr></thead>'
        "\n<tbody>\n" + "\n".join(rows) + f"\n</tbody>\n</table></div>\n{caption}"
    )


def _kind(table: Table, index: int) -> str:
    return "" if index < table.names else ' class="number"'


def _picture(picture: Picture) -> str:
    # Its title stands in it.
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure><img alt="{escape(picture.alt)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption></figure>"
    )
