"""Tables on a screen, and numbers in their cells: never a traceback for one that is not a number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.screen import console
from fathom.train.display import clock


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, header: bool = True, left: Sequence[int] = (0,)
) -> None:
    """Rows under their heads; the columns `left` are words, the others numbers, which end alike."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=header, header_style="dim")
    for i, head in enumerate(heads if header else [""] * len(rows[0])):
        table.add_column(Text(head), justify="left" if i in left or not header else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def figure(value: float | None, form: str) -> str:
    """A number by its format; a word for what is none."""
    return "not a number" if value is None or not math.isfinite(value) else format(value, form)


def span(spread: Mapping[str, Any], form: str) -> str:
    """`0.9000 to 0.9100`, or that there is no interval."""
    return "none" if spread["low"] is None else f"{figure(spread['low'], form)} to {figure(spread['high'], form)}"


def duration(seconds: float) -> str:
    return clock(seconds) if math.isfinite(seconds) else "unknown"


def compact(value: float) -> str:
    """1.27M, 306k, 4.1B: three figures that are read at a glance; powers of ten beyond."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size <= value < 1e12:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"
