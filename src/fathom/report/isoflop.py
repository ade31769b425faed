"""The best size for given FLOPs: the bottom of a parabola through runs that cost the same (pure).

Hoffmann et al. 2022, second approach: bpb against log N within a budget, then the bottoms against the budgets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fathom.report.scaling_fit import REPLICATES, NoFit
from fathom.report.verdict import LEVEL, Interval

SAME_BUDGET = 0.1
"""Runs whose FLOPs differ by a tenth or less from the next are of one budget."""
LEAST_SIZES = 4


@dataclass(frozen=True)
class Bottom:
    """The best size of one budget."""

    flops: float
    n: float
    n_low: float | None
    n_high: float | None
    """None where the points leave it open on that side."""
    d: float
    bpb: float
    parabola: tuple[float, float, float]
    """Of bpb in log N, highest power first."""

    @property
    def n_interval(self) -> Interval | None:
        if self.n_low is None or self.n_high is None:
            return None
        return Interval(self.n_low, self.n, self.n_high)


def budgets(flops: np.ndarray) -> list[np.ndarray]:
    """Indices of the runs of each budget, (M,) each, cheapest first; only budgets of two runs or more."""
    order = np.argsort(flops, kind="stable")
    gaps = np.diff(np.log(flops[order])) > math.log(1 + SAME_BUDGET)
    return [part for part in np.split(order, np.flatnonzero(gaps) + 1) if len(part) > 1]


def bottom(flops: np.ndarray, n: np.ndarray, d: np.ndarray, bpb: np.ndarray, seed: int = 0) -> Bottom:
    """The best size among runs (M,) of one budget. NoFit where they do not enclose it."""
    sizes = len(np.unique(n))
    if sizes < LEAST_SIZES:
        raise NoFit(f"a parabola takes at least {LEAST_SIZES} sizes, and there are {sizes}")
    log_n = np.log(n)
    middle = float(log_n.mean())
    curve = np.polyfit(log_n - middle, bpb, 2)
    where = _vertex(curve)
    if not curve[0] > 0:
        raise NoFit("bits per byte have no least among the sizes tried")
    if not log_n.min() <= where + middle <= log_n.max():
        way = "smaller" if where + middle < log_n.min() else "larger"
        raise NoFit(f"the best size lies beyond those tried; add {way} ones")
    low, high = _vertex_interval(log_n - middle, bpb, curve, seed)
    slope, offset = np.polyfit(log_n - middle, np.log(d), 1)
    return Bottom(
        flops=float(np.exp(np.log(flops).mean())),
        n=math.exp(where + middle),
        n_low=None if low is None else math.exp(low + middle),
        n_high=None if high is None else math.exp(high + middle),
        d=math.exp(slope * where + offset),
        bpb=float(np.polyval(curve, where)),
        parabola=_uncentred(curve, middle),
    )


def _vertex(curve: np.ndarray) -> float:
    return float(-curve[1] / (2 * curve[0])) if curve[0] else math.inf


def _vertex_interval(x: np.ndarray, y: np.ndarray, curve: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    """By the bootstrap of `scaling_fit`; a replicate that opens downwards has its bottom beyond either end."""
    dice = np.random.default_rng(seed)
    fitted = np.polyval(curve, x)
    spreads = np.sqrt(((y - fitted) ** 2).sum() / dice.chisquare(len(x) - 3, REPLICATES))
    drawn = fitted + spreads[:, None] * dice.standard_normal((REPLICATES, len(x)))
    curves = np.polyfit(x, drawn.T, 2)
    open_up = curves[0] > 0
    vertices = -curves[1][open_up] / (2 * curves[0][open_up])
    share_lost = (1 - open_up.mean()) / 2
    edge = (1 - LEVEL) / 2
    if share_lost >= edge or not len(vertices):
        return None, None
    low, high = np.quantile(vertices, [edge, 1 - edge])
    return float(low), float(high)


def _uncentred(curve: np.ndarray, middle: float) -> tuple[float, float, float]:
    a, b, c = (float(v) for v in curve)
    return a, b - 2 * a * middle, c - b * middle + a * middle**2
