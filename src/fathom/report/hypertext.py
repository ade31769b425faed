"""A report as one HTML page that needs nothing but itself (pure)."""

from __future__ import annotations

from html import escape

from fathom.report.charts import Chart, page, slot
from fathom.report.document import Assessment, Block, Bullets, Document, Plot, Section, Table, Text
from fathom.report.findings import Finding
from fathom.report.markdown import COMMAND
from fathom.screen import typed

WORDS = {"bad": "broken", "warn": "mend", "note": "know", "good": "good"}
SHORT = 22
STYLE = """<style>
td.right, th.right { text-align: right; }
td.right, td.short { white-space: nowrap; }
td.name { color: var(--muted); white-space: nowrap; }
td.free { min-width: 14rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0.2rem 1rem; font-size: 0.9rem; margin: 1rem 0; }
.finding { border-left: 4px solid var(--hue); padding: 0.1rem 0 0.1rem 0.9rem; margin: 1rem 0; break-inside: avoid; }
.finding b { font-weight: 600; }
.finding .kind { color: var(--hue); font-size: 0.8rem; font-weight: 600; text-transform: uppercase;
  letter-spacing: 0.04em; margin-right: 0.5rem; }
.finding ul { color: var(--muted); font-size: 0.92rem; margin: 0.25rem 0; padding-left: 1.1rem; }
@media (max-width: 40rem) { td.free { min-width: 9rem; } td.name { white-space: normal; } }
.bad { --hue: var(--bad); } .warn { --hue: var(--warn); } .note { --hue: var(--accent); } .good { --hue: var(--good); }
</style>"""


def to_html(document: Document) -> str:
    charts: list[Chart] = []
    sections = [_section(i, one, charts) for i, one in enumerate(document.sections)]
    links = [f'<a href="#s{i}">{_marked(one.title)}</a>' for i, one in enumerate(document.sections)]
    body = [STYLE, f"<h1>{_marked(document.title)}</h1>", f"<nav>{' '.join(links[1:])}</nav>", *sections]
    return page(document.title, "\n".join(body), charts)


def _marked(text: str) -> str:
    """Text in which commands, written `fathom …`, are set as such, as they are typed here."""
    parts = COMMAND.split(text)
    return "".join(_command(typed(part)[1:-1]) if i % 2 else escape(part) for i, part in enumerate(parts))


def _command(text: str) -> str:
    """Its flags are in one piece each, or a narrow page would break them behind their dashes."""
    words = (f"<span>{escape(word)}</span>" if word.startswith("--") else escape(word) for word in text.split(" "))
    return f"<code>{' '.join(words)}</code>"


def _section(number: int, one: Section, charts: list[Chart]) -> str:
    blocks = "\n".join(_block(block, charts) for block in one.blocks)
    return f'<section id="s{number}"><h2>{_marked(one.title)}</h2>\n{blocks}</section>'


def _block(block: Block, charts: list[Chart]) -> str:
    match block:
        case Text(text):
            return f"<p>{_marked(text)}</p>"
        case Table():
            return _table(block)
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_marked(item)}</li>" for item in items) + "</ul>"
        case Assessment(findings):
            return "\n".join(map(_finding, findings))
        case Plot(chart):
            charts.append(chart)
            return slot(len(charts) - 1)


def _table(table: Table) -> str:
    is_list = not any(table.head)
    head = "".join(f"<th{_class(table, i)}>{_marked(cell)}</th>" for i, cell in enumerate(table.head))
    rows = "".join(f"<tr>{_cells(table, row, is_list)}</tr>" for row in table.rows)
    return f"<table>{'' if is_list else f'<thead><tr>{head}</tr></thead>'}<tbody>{rows}</tbody></table>"


def _cells(table: Table, row: tuple[str, ...], is_list: bool) -> str:
    return "".join(
        f"<td{_class(table, i, cell, is_list and i == 0)}>{_marked(cell)}</td>" for i, cell in enumerate(row)
    )


def _class(table: Table, column: int, cell: str = "", is_name: bool = False) -> str:
    if is_name:
        return ' class="name"'
    if column in table.right:
        return ' class="right"'
    return ' class="free"' if len(cell) > 40 else ' class="short"' if len(cell) <= SHORT else ""


def _finding(finding: Finding) -> str:
    evidence = "".join(f"<li>{_marked(item)}</li>" for item in finding.evidence)
    parts = [
        f'<p><span class="kind">{WORDS[finding.severity]}</span><b>{_marked(finding.sentence)}</b></p>',
        f"<ul>{evidence}</ul>" if evidence else "",
        f"<p>What to do: {_marked(finding.advice)}</p>" if finding.advice else "",
    ]
    return f'<div class="finding {finding.severity}">{"".join(parts)}</div>'
