"""How a miniseries looks: its laws in words, its tables, and the page with the plots."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fathom.report.charts import Chart, Curve, page, slot
from fathom.report.miniseries import Analysis
from fathom.report.tables import compact, figure


def sentences(found: Analysis) -> list[str]:
    """The laws in words."""
    said = []
    if law := found.frontier:
        said.append(
            f"bpb = {law.floor:.4f} + {law.rise:.4f} · (FLOPs / {law.scale:.3g})^-{law.exponent:.3f}"
            f"   floor {law.floor_interval.low:.3f} to {law.floor_interval.high:.3f}, "
            f"exponent {law.exponent_interval.low:.3f} to {law.exponent_interval.high:.3f}"
        )
    if plane := found.surface:
        floor, a, b, alpha, beta = (plane.interval_of(i) for i in range(5))
        said.append(
            f"bpb = {floor.mid:.4f} + {a.mid:.4f} · (N / {plane.n_scale:.3g})^-{alpha.mid:.3f} "
            f"+ {b.mid:.4f} · (D / {plane.d_scale:.3g})^-{beta.mid:.3f}"
            f"   N's exponent {alpha.low:.3f} to {alpha.high:.3f}, D's {beta.low:.3f} to {beta.high:.3f}"
        )
    if found.n_law and found.d_law:
        n, d = found.n_law.exponent_interval, found.d_law.exponent_interval
        said.append(
            f"best size grows with FLOPs^{n.mid:.2f} ({n.low:.2f} to {n.high:.2f}), "
            f"best tokens with FLOPs^{d.mid:.2f} ({d.low:.2f} to {d.high:.2f})"
        )
    return said


POINT_HEADS = ["run", "depth", "parameters", "tokens", "ratio", "FLOPs", "bpb"]
PLAN_HEADS = ["FLOPs", "depth", "parameters", "tokens", "ratio", "bpb expected"]


def point_rows(found: Analysis) -> list[list[str]]:
    return [
        [p.run, str(p.depth), f"{p.n:,}", f"{p.tokens:,.0f}", f"{p.tokens / p.n:.3g}", f"{p.flops:.3g}", f"{p.bpb:.4f}"]
        for p in found.points
    ]


def plan_rows(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    return [
        [
            f"{row['flops']:.3g}{' (beyond)' if row['beyond'] else ''}",
            "–" if row["depth"] is None else str(row["depth"]),
            _span(row["parameters"], compact),
            _span(row["tokens"], compact),
            "–" if row["tokens_per_parameter"] is None else f"{row['tokens_per_parameter']:.3g}",
            _span(row["bpb"], lambda bpb: figure(bpb, ".4f")),
        ]
        for row in rows
    ]


def _span(value: Mapping[str, float] | None, shown: Callable[[float], str]) -> str:
    if value is None:
        return "–"
    return f"{shown(value['value'])} ({shown(value['low'])}–{shown(value['high'])})"


def scaling_page(found: Analysis, rows: Sequence[Mapping[str, Any]]) -> str:
    """One self-contained HTML page."""
    charts = charts_of(found)
    body = [
        "<h1>Scaling</h1>",
        *(f"<p>{html.escape(sentence)}</p>" for sentence in sentences(found)),
        *(f"<p>Note: {html.escape(note)}.</p>" for note in found.notes),
        *(slot(i) for i in range(len(charts))),
        *(["<h2>What is best for given FLOPs</h2>", _html_table(PLAN_HEADS, plan_rows(rows))] if rows else []),
        "<h2>The runs</h2>",
        _html_table(POINT_HEADS, point_rows(found)),
    ]
    return page("Scaling", "\n".join(body), charts)


def charts_of(found: Analysis) -> list[Chart]:
    """bpb against FLOPs; within each budget against size; and how the best size and tokens grow."""
    flops = np.array([p.flops for p in found.points])
    curves = [Curve("runs", flops.tolist(), [p.bpb for p in found.points], "points")]
    if found.frontier:
        x = np.geomspace(flops.min(), flops.max() * 10, 120)
        curves.append(Curve("fit, and ten times beyond", x.tolist(), found.frontier.at(x).tolist(), "dashed"))
    charts = [Chart("Bits per byte against FLOPs", "FLOPs", "bits per byte", tuple(curves), log_x=True)]
    if found.bottoms:
        charts += [_isoflop_chart(found), _growth_chart(found)]
    return charts


def _isoflop_chart(found: Analysis) -> Chart:
    curves = []
    for b in found.bottoms:
        near = [p for p in found.points if abs(math.log(p.flops / b.flops)) < 0.2]
        x = np.geomspace(min(p.n for p in near), max(p.n for p in near), 60)
        curves.append(Curve(f"{b.flops:.2g} FLOPs", [float(p.n) for p in near], [p.bpb for p in near], "points"))
        curves.append(Curve(f"{b.flops:.2g}: fit", x.tolist(), np.polyval(b.parabola, np.log(x)).tolist(), "dashed"))
    marks = tuple((b.n, f"{b.flops:.2g}") for b in found.bottoms)
    return Chart(
        "Bits per byte against size, by budget", "parameters", "bits per byte", tuple(curves), True, False, marks
    )


def _growth_chart(found: Analysis) -> Chart:
    flops = [b.flops for b in found.bottoms]
    x = np.geomspace(min(flops), max(flops) * 10, 40)
    curves = []
    for name, values, law in (
        ("best parameters", [b.n for b in found.bottoms], found.n_law),
        ("best tokens", [b.d for b in found.bottoms], found.d_law),
    ):
        curves.append(Curve(name, flops, values, "points"))
        if law:
            curves.append(Curve(f"{name}: fit", x.tolist(), (law.factor * x**law.exponent).tolist(), "dashed"))
    return Chart("Best size and tokens against FLOPs", "FLOPs", "count", tuple(curves), log_x=True, log_y=True)


def _html_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def cells(kind: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{html.escape(cell)}</{kind}>" for cell in row) + "</tr>"

    return (
        f"<table><thead>{cells('th', heads)}</thead><tbody>{''.join(cells('td', row) for row in rows)}</tbody></table>"
    )
