"""Charts for a page: curves as numbers in, one self-contained HTML page out.

The page needs no other host: uPlot (static/uPlot.*, MIT), our script and style, and the numbers are all inside it.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

STYLES = ("uPlot.min.css", "page.css")
SCRIPTS = ("uPlot.iife.min.js", "chart_numbers.js", "charts.js", "page.js")


@dataclass(frozen=True)
class Curve:
    """One line, or one set of points, of a chart."""

    name: str
    """What the legend calls it."""
    x: Sequence[float]
    """(N,) in any order; a point whose x is not finite is left out."""
    y: Sequence[float]
    """(N,); what is not finite is a gap. A curve of many thousands of points is best thinned (`history.thin`)."""
    style: Literal["line", "dashed", "points"] = "line"


@dataclass(frozen=True)
class Chart:
    """Curves over one axis. They need not share their x."""

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    log_x: bool = False
    """Logarithmic axis; what is not above zero is left out."""
    log_y: bool = False
    """Logarithmic axis; what is not above zero is a gap."""
    marks: tuple[tuple[float, str], ...] = ()
    """Labelled vertical lines: (x, label)."""


def slot(index: int) -> str:
    """The HTML that stands in a page's body where charts[index] is to be drawn."""
    return f'<figure class="chart" data-chart="{index}"><noscript>A chart needs JavaScript.</noscript></figure>'


def page(title: str, body: str, charts: Sequence[Chart]) -> str:
    """One self-contained HTML page.

    title: plain text, escaped here. body: HTML as it is to stand, with a `slot` for each chart; what comes from
    files or models must have been escaped by whoever wrote it (were it not, the page's policy lets no script run).
    """
    script = _script()
    parts = {
        "policy": _policy(script),
        "title": html.escape(title),
        "style": _style(),
        "body": body,
        "charts": embed([plain(chart) for chart in charts]),
        "script": script,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], static("page.html"))


def plain(chart: Chart) -> dict[str, Any]:
    """A chart as charts.js takes it: finite numbers or null, nothing else."""
    return {
        "title": chart.title,
        "x_label": chart.x_label,
        "y_label": chart.y_label,
        "curves": [_plain_curve(curve) for curve in chart.curves],
        "log_x": chart.log_x,
        "log_y": chart.log_y,
        "marks": [[float(x), label] for x, label in chart.marks if math.isfinite(x)],
    }


def numbers(values: Iterable[float]) -> list[float | None]:
    """Values for JSON: null where not finite, and no more digits than an eye can use."""
    return [_short(float(value)) if math.isfinite(value) else None for value in values]


def embed(value: Any) -> str:
    """JSON that may stand inside a <script> element: nothing in it can end the element or begin a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


@cache
def static(name: str) -> str:
    """The text of a file in static/."""
    return (files("fathom.report") / "static" / name).read_text(encoding="utf-8")


def _plain_curve(curve: Curve) -> dict[str, Any]:
    if len(curve.x) != len(curve.y):
        raise ValueError(f"curve {curve.name!r} has {len(curve.x)} x and {len(curve.y)} y")
    points = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x)]
    return {
        "name": curve.name,
        "x": [_exact(float(x)) for x, _ in points],
        "y": numbers(y for _, y in points),
        "style": curve.style,
    }


def _exact(value: float) -> float:
    return int(value) if value.is_integer() and abs(value) < 2**53 else value


def _short(value: float) -> float:
    return _exact(float(f"{value:.7g}"))


@cache
def _script() -> str:
    return "\n".join([_licence(), *map(static, SCRIPTS)])


@cache
def _style() -> str:
    return "\n".join([_licence(), *map(static, STYLES)])


def _licence() -> str:
    return f"/* uPlot\n{static('uPlot.LICENSE')}\n*/"


def _policy(script: str) -> str:
    """Only the page's own script runs (by its hash), nothing is fetched from anywhere, nothing is sent."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
