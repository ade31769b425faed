"""What a miniseries of runs says about larger ones: laws, best sizes and predictions (pure: points in, a plan out)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import numpy as np

from fathom.report.isoflop import Bottom, bottom, budgets
from fathom.report.scaling_fit import NoFit, PowerLaw, Saturating, Surface, power_law, saturating, surface
from fathom.report.verdict import Interval

Law = TypeVar("Law")
AHEAD = (1, 10, 100)
"""Budgets to predict by default: times the largest that was run."""


@dataclass(frozen=True)
class Point:
    """One finished run."""

    run: str
    depth: int
    n: int
    """Parameters in block matrices and head."""
    tokens: float
    flops: float
    bpb: float


@dataclass
class Analysis:
    """Every law that the points determine, and why they determine no other."""

    points: tuple[Point, ...]
    frontier: Saturating | None = None
    """bpb against FLOPs: of the best size of each budget, or of all runs where each budget has one."""
    surface: Surface | None = None
    bottoms: list[Bottom] = field(default_factory=list)
    n_law: PowerLaw | None = None
    """Best size against FLOPs."""
    d_law: PowerLaw | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def flops_per_pair(self) -> float:
        """FLOPs / (N · D): 6, and what attention and the short head of small models add."""
        return math.exp(float(np.mean([math.log(p.flops / p.n / p.tokens) for p in self.points])))


def analyse(points: Sequence[Point]) -> Analysis:
    """All laws through finished runs of one data and tokenizer, whose bpb was measured on the same rows."""
    found = Analysis(tuple(sorted(points, key=lambda p: (p.flops, p.n, p.run))))
    flops, n, tokens, bpb = (
        np.array([getattr(p, key) for p in found.points]) for key in ("flops", "n", "tokens", "bpb")
    )
    n = n.astype(np.float64)
    on_frontier = np.ones(len(points), dtype=bool)
    extra: list[tuple[float, float]] = []
    for part in budgets(flops):
        if len(np.unique(n[part])) < 2:
            continue  # seeds of one size
        on_frontier[part] = False
        try:
            found.bottoms.append(bottom(flops[part], n[part], tokens[part], bpb[part]))
            extra.append((found.bottoms[-1].flops, found.bottoms[-1].bpb))
        except NoFit as why:
            found.notes.append(f"no best size at {float(flops[part].mean()):.2g} FLOPs: {why}")
            best = part[int(np.argmin(bpb[part]))]
            extra.append((float(flops[best]), float(bpb[best])))
    x = np.array([*flops[on_frontier], *(f for f, _ in extra)])
    y = np.array([*bpb[on_frontier], *(value for _, value in extra)])
    found.frontier = _tried(found, "bits per byte against FLOPs", lambda: saturating(x, y))
    found.surface = _tried(found, "bits per byte against size and tokens", lambda: surface(n, tokens, bpb))
    if found.bottoms:
        at = np.array([b.flops for b in found.bottoms])
        best_n, best_d = (np.array([getattr(b, key) for b in found.bottoms]) for key in ("n", "d"))
        found.n_law = _tried(found, "best size against FLOPs", lambda: power_law(at, best_n))
        found.d_law = None if found.n_law is None else power_law(at, best_d)
    elif found.surface is None:
        found.notes.append(
            "no best size and tokens for given FLOPs: train at least four sizes each at the same --flops, "
            "three times over for how they grow"
        )
    return found


def _tried(found: Analysis, what: str, fit: Callable[[], Law]) -> Law | None:
    try:
        return fit()
    except NoFit as why:
        found.notes.append(f"no law of {what}: {why}")
        return None


def predictions(found: Analysis, asked: Sequence[float] = ()) -> list[dict[str, Any]]:
    """For each budget: size, tokens and bpb with their intervals, None where no law says."""
    most = max(point.flops for point in found.points)
    rows = []
    for flops in sorted(asked or [most * times for times in AHEAD]):
        n = d = bpb = None
        by = ""
        if found.surface:
            n, d, bpb = found.surface.optimum(flops, found.flops_per_pair)
            by = "size and tokens"
        if found.n_law and found.d_law:
            n, d, by = found.n_law.interval_at(flops), found.d_law.interval_at(flops), "budgets"
        if found.frontier:
            bpb = found.frontier.interval_at(flops)
        if n or bpb:
            rows.append(
                {
                    "flops": float(flops),
                    "beyond": flops > most * 1.01,
                    "best_by": by,
                    "parameters": _plain(n),
                    "tokens": _plain(d),
                    "tokens_per_parameter": None if n is None or d is None else d.mid / n.mid,
                    "bpb": _plain(bpb),
                }
            )
    return rows


def as_json(found: Analysis, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What --json prints."""
    law, plane = found.frontier, found.surface
    return {
        "points": [asdict(point) for point in found.points],
        "frontier": law
        and {
            "floor": _plain(law.floor_interval),
            "rise": law.rise,
            "exponent": _plain(law.exponent_interval),
            "at_flops": law.scale,
            "rms": law.rms,
        },
        "surface": plane
        and {
            **{name: _plain(plane.interval_of(i)) for i, name in enumerate(("floor", "a", "b", "alpha", "beta"))},
            "at_parameters": plane.n_scale,
            "at_tokens": plane.d_scale,
            "rms": plane.rms,
        },
        "budgets": [
            {"flops": b.flops, "parameters": b.n, "low": b.n_low, "high": b.n_high, "tokens": b.d, "bpb": b.bpb}
            for b in found.bottoms
        ],
        "parameters_exponent": found.n_law and _plain(found.n_law.exponent_interval),
        "tokens_exponent": found.d_law and _plain(found.d_law.exponent_interval),
        "predictions": list(rows),
        "notes": found.notes,
    }


def _plain(interval: Interval | None) -> dict[str, float] | None:
    return None if interval is None else {"value": interval.mid, "low": interval.low, "high": interval.high}
