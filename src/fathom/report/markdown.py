"""A report as Markdown that reads well as it stands, in a terminal or an editor (pure)."""

from __future__ import annotations

import re
import textwrap
import unicodedata

from fathom.report.document import Assessment, Block, Bullets, Document, Plot, Section, Table, Text
from fathom.report.findings import SEVERITIES, Finding
from fathom.screen import typed

WIDTH = 100
_SPECIAL = re.compile(r"([\\`*_<>|\[\]])")
COMMAND = re.compile(r"(`fathom [^`]*`)")
_NO_BREAK = "\0"
_CONTROL = re.compile(r"[\x00-\x1f\x7f\u0085\u2028\u2029]+")
HEADINGS = {"bad": "Broken", "warn": "To be mended", "note": "To be known", "good": "As it should be"}


def to_markdown(document: Document) -> str:
    parts = [f"# {plain(document.title)}", *(_section(one) for one in document.sections)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """One line in which nothing is markup but commands (`fathom …`), as they are typed here; what Markdown would take
    for it has a backslash before it.
    """
    parts = COMMAND.split(_CONTROL.sub(" ", text))
    return "".join(typed(part) if i % 2 else _SPECIAL.sub(_escaped, part) for i, part in enumerate(parts)).strip()


def _escaped(found: re.Match[str]) -> str:
    """Underscores within words are no emphasis and stay bare, as file and setting names have them."""
    text, at = found.string, found.start()
    if found[1] == "_" and 0 < at < len(text) - 1 and text[at - 1].isalnum() and text[at + 1].isalnum():
        return "_"
    if found[1] == "*" and 0 < at < len(text) - 1 and text[at - 1] == " " == text[at + 1]:
        return "*"
    return f"\\{found[1]}"


def _section(one: Section) -> str:
    return "\n\n".join([f"## {plain(one.title)}", *filter(None, map(_block, one.blocks))])


def _block(block: Block) -> str:
    match block:
        case Text(text):
            return _filled(plain(text))
        case Table():
            return _table(block)
        case Bullets(items):
            return "\n".join(_bullet(plain(item)) for item in items)
        case Assessment(findings):
            return _assessment(findings)
        case Plot():
            return ""


def _filled(text: str, first: str = "", rest: str = "") -> str:
    """Lines of at most WIDTH characters, but that a command stays on one line, to be copied."""
    whole = re.sub(r"`[^`]*`", lambda found: found[0].replace(" ", _NO_BREAK), text)
    return textwrap.fill(
        whole, WIDTH, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    ).replace(_NO_BREAK, " ")


def _bullet(text: str) -> str:
    return _filled(text, "- ", "  ")


def _table(table: Table) -> str:
    """Columns as wide as their widest cell, so that it is a table to the eye as well."""
    rows = [[plain(cell) for cell in row] for row in (table.head, *table.rows)]
    widths = [max(3, *(_width(row[i]) for row in rows)) for i in range(len(table.head))]
    lines = [_row(row, widths, table.right) for row in rows]
    rule = ["-" * (width - 1) + ":" if i in table.right else "-" * width for i, width in enumerate(widths)]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def _row(cells: list[str], widths: list[int], right: frozenset[int]) -> str:
    padded = []
    for i, (cell, width) in enumerate(zip(cells, widths, strict=True)):
        space = " " * (width - _width(cell))
        padded.append(space + cell if i in right else cell + space)
    return "| " + " | ".join(padded) + " |"


def _width(text: str) -> int:
    """Columns of a terminal: East Asian wide characters take two, combining ones none."""
    wide = sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(unicodedata.combining(letter) > 0 for letter in text)


def _assessment(findings: tuple[Finding, ...]) -> str:
    parts = []
    for severity in SEVERITIES:
        some = [finding for finding in findings if finding.severity == severity]
        if some:
            parts.append(f"### {HEADINGS[severity]}")
            parts += [_finding(finding) for finding in some]
    return "\n\n".join(parts)


def _finding(finding: Finding) -> str:
    lines = [_filled(f"- **{plain(finding.sentence)}**", "", "  ")]
    lines += [_filled(plain(item), "  - ", "    ") for item in finding.evidence]
    if finding.advice:
        lines.append(_filled(f"*What to do:* {plain(finding.advice)}", "  - ", "    "))
    return "\n".join(lines)
