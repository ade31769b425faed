"""What a report is made of, before it is Markdown or HTML (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fathom.report.charts import Chart
from fathom.report.findings import Finding


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text."""

    text: str


@dataclass(frozen=True)
class Table:
    """Rows of plain text under a head; an empty head is left out."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[int] = frozenset()
    """Columns of numbers, which stand at the right."""


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Assessment:
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class Plot:
    """A chart: drawn in HTML, left out of Markdown."""

    chart: Chart


Block = Text | Table | Bullets | Assessment | Plot


@dataclass(frozen=True)
class Section:
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    title: str
    sections: tuple[Section, ...]


def facts(*rows: tuple[str, str] | None) -> Table:
    """A table of names and values; rows that are None are left out."""
    return Table(("", ""), tuple(row for row in rows if row is not None))


def without_empty(table: Table) -> Table:
    """Without the columns that hold nothing in any row."""
    kept = [i for i in range(len(table.head)) if any(row[i] for row in table.rows)]
    return Table(
        tuple(table.head[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in table.rows),
        frozenset(place for place, i in enumerate(kept) if i in table.right),
    )


def section(title: str, *blocks: Block | None) -> Section | None:
    """A section of what there is; None where there is nothing, or only tables without rows."""
    kept = tuple(block for block in blocks if block is not None and not (isinstance(block, Table) and not block.rows))
    return Section(title, kept) if kept else None


def present(sections: Sequence[Section | None]) -> tuple[Section, ...]:
    return tuple(one for one in sections if one is not None)
