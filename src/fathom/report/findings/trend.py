"""A straight line through noisy points, and how sure its slope is (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fathom.report.verdict import t_quantile


@dataclass(frozen=True)
class Fit:
    """y = at_mean + slope·(x − mean), with the 95 % interval of the slope from the scatter of n points."""

    slope: float
    low: float
    high: float
    mean: float
    at_mean: float
    n: int

    def at(self, x: float) -> float:
        return self.at_mean + self.slope * (x - self.mean)


def fit_line(x: np.ndarray, y: np.ndarray) -> Fit | None:
    """Least squares over (n,) points; None for fewer than three, or all at the same x."""
    n = len(x)
    if n < 3:
        return None
    mean, at_mean = float(x.mean()), float(y.mean())
    spread = float(((x - mean) ** 2).sum())
    if not spread > 0:
        return None
    slope = float(((x - mean) * (y - at_mean)).sum()) / spread
    rest = y - at_mean - slope * (x - mean)
    error = float(np.sqrt((rest**2).sum() / (n - 2) / spread)) * t_quantile(0.95, n - 2)
    fit = Fit(slope, slope - error, slope + error, mean, at_mean, n)
    return fit if np.isfinite([fit.slope, error, at_mean]).all() else None
