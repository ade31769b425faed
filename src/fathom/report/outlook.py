"""Where a run is going: its pace, when it ends, and whether a curve still falls (pure: numbers in, numbers out)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fathom.report.verdict import t_quantile

RECENT_SHARE = 0.05
RECENT_LEAST, RECENT_MOST = 20, 500
LONGEST_PAUSE_S = 3600.0
"""A longer gap between two steps is a machine that slept, not an evaluation."""


@dataclass(frozen=True)
class Trend:
    """The straight line through the end of a curve, and what chance leaves open about its slope."""

    slope: float
    """Change a step."""
    low: float
    """With `high`, the slope's 95 % interval."""
    high: float
    points: int
    first_step: int
    last_step: int

    @property
    def direction(self) -> str:
        """falling or rising, where chance does not explain it; else level."""
        if self.high < 0:
            return "falling"
        return "rising" if self.low > 0 else "level"

    @property
    def change(self) -> float:
        """From the first point to the last, along the line."""
        return self.slope * (self.last_step - self.first_step)


@np.errstate(all="ignore")
def trend(steps: np.ndarray, values: np.ndarray, resemble: bool = True) -> Trend | None:
    """Least squares over (N,) steps and values; what is not finite is left out. None for fewer than 4 points.

    Neighbouring residuals of a training curve may `resemble` each other. With lag-1 correlation r, N points count as
    N (1 - r) / (1 + r) independent ones (Santer et al. 2000, J. Geophys. Res. 105). Few points tell no r.
    """
    good = np.isfinite(values)
    x, y = steps[good].astype(np.float64), values[good]
    if len(x) < 4 or x[0] == x[-1]:
        return None
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    rest = y - y.mean() - slope * dx
    squares = float(rest @ rest)
    if squares <= 1e-20 * float(y @ y):  # rounding, not noise
        return Trend(slope, slope, slope, len(x), int(x[0]), int(x[-1]))
    alike = max(0.0, float(rest[1:] @ rest[:-1]) / squares) if resemble else 0.0
    counted = len(x) * (1 - alike) / (1 + alike)
    if not math.isfinite(slope):
        return None
    width = math.inf
    if counted > 3 and math.isfinite(squares):
        width = t_quantile(0.95, counted - 2) * math.sqrt(squares / (counted - 2) / float(dx @ dx))
    return Trend(slope, slope - width, slope + width, len(x), int(x[0]), int(x[-1]))


def end_of(count: int, share: float = 0.25, least: int = 50, most: int = 5000) -> slice:
    """The last quarter of so many points, at least 50 and at most 5,000: what a trend at the end is taken from."""
    return slice(count - min(count, most, max(least, math.ceil(share * count))), count)


def usual(step_s: np.ndarray) -> float | None:
    """The median of (N,) seconds a step; None where there is none."""
    good = step_s[np.isfinite(step_s) & (step_s > 0)]
    return float(np.median(good)) if len(good) else None


@np.errstate(all="ignore")
def pace(step_s: np.ndarray) -> float | None:
    """Seconds a step of late: the mean of the last twentieth (20 to 500 steps).

    One step that took very long counts as three usual ones: it belongs to the time that the rest will take, but must
    not rule it.
    """
    good = step_s[np.isfinite(step_s) & (step_s > 0)]
    if not len(good):
        return None
    late = good[end_of(len(good), RECENT_SHARE, RECENT_LEAST, RECENT_MOST)]
    return float(np.minimum(late, 3 * np.median(late)).mean())


@np.errstate(all="ignore")
def pauses(time: np.ndarray, train_s: np.ndarray) -> np.ndarray:
    """(N-1,) seconds between logged steps that were no training: saving, measuring. 0 where the clock went back."""
    gap = np.diff(time) - np.diff(train_s)
    gap[~np.isfinite(gap) | (gap < 0) | (gap > LONGEST_PAUSE_S)] = 0.0
    return gap


@np.errstate(all="ignore")
def overhead(time: np.ndarray, train_s: np.ndarray) -> float:
    """Seconds by the clock for each second of training: 1 and what saving and measuring took so far."""
    each = np.diff(train_s)
    trained = float(each[np.isfinite(each) & (each > 0)].sum())
    return 1 + float(pauses(time, train_s).sum()) / trained if trained else 1.0


def train_s_between(step: np.ndarray, train_s: np.ndarray, first: int, step_s: float | None) -> float | None:
    """Seconds of training from `first` steps done to the last logged step; None where nothing tells."""
    if not len(step):
        return None
    place = int(np.searchsorted(step, first, side="right")) - 1
    before = float(train_s[place]) if place >= 0 and step[place] == first else (0.0 if first == 0 else math.nan)
    found = float(train_s[-1]) - before
    if math.isfinite(found) and found >= 0:
        return found
    return None if step_s is None else max(0, int(step[-1]) - first) * step_s
