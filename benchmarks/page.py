"""A page of texts, tables and figures, as one HTML file that needs nothing else, and as Markdown."""

import base64
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1f2430; background: #fff;
  max-width: 68rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .4rem; padding-top: .9rem; border-top: 1px solid #e3e6ec; }
p { max-width: 46rem; margin: .4rem 0 .9rem; }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; margin: .6rem 0 1rem; }
th, td { padding: .32rem .8rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #eceef2; }
th { font-weight: 600; color: #4a5264; border-bottom: 2px solid #c9ced8; }
th:first-child, td:first-child { text-align: left; }
tbody tr:hover { background: #f6f8fb; }
strong { color: #00527f; }
code { font: .82rem/1.5 ui-monospace, SFMono-Regular, Menlo, monospace; white-space: pre-wrap; word-break: break-all; }
summary { cursor: pointer; color: #00527f; margin: .6rem 0; }
"""


@dataclass(frozen=True)
class Heading:
    """The title of what follows."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; ``**x**`` stands out."""

    text: str


@dataclass(frozen=True)
class Table:
    """Cells by row, the first column left-aligned; ``**x**`` stands out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """An SVG, and what it shows in words; Markdown has the words alone."""

    svg: str
    shows: str


@dataclass(frozen=True)
class Lines:
    """Lines of code that only some want to see."""

    title: str
    lines: Sequence[str]


Block = Heading | Text | Table | Picture | Lines


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """The page, with its style and pictures inside."""
    body = "\n".join(_html(block) for block in blocks)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width">\n<title>{html.escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{_inline(title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_inline(text)}</h2>"
        case Text(text):
            return f"<p>{_inline(text)}</p>"
        case Picture(svg, shows):
            data = base64.b64encode(svg.encode()).decode()
            return f'<figure><img alt="{html.escape(shows)}" src="data:image/svg+xml;base64,{data}"></figure>'
        case Lines(title, lines):
            inside = "<br>\n".join(html.escape(line) for line in lines)
            return f"<details><summary>{_inline(title)}</summary>\n<code>{inside}</code>\n</details>"
        case Table(header, rows):
            head = "".join(f"<th>{_inline(cell)}</th>" for cell in header)
            body = "\n".join(f"<tr>{''.join(f'<td>{_inline(cell)}</td>' for cell in row)}</tr>" for row in rows)
            table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
            return f'<div class="wide">{table}</div>'


def _inline(text: str) -> str:
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))


def to_markdown(title: str, blocks: Sequence[Block]) -> str:
    """The page without its pictures."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(text):
            return f"## {text}"
        case Text(text):
            return text
        case Picture(_, shows):
            return f"*{shows}: see the HTML page beside this file.*"
        case Lines(title, lines):
            return "\n".join([f"{title}:", "", *(f"    {line}" for line in lines)])
        case Table():
            return markdown_table(block)


def markdown_table(table: Table) -> str:
    """A table in GitHub's Markdown."""
    rule = ["---", *["---:"] * (len(table.header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (table.header, rule, *table.rows))
