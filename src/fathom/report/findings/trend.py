"""A straight line through noisy points, and how sure its slope is (pure)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# Student's t, 97.5 %, for 1 to 30 degrees of freedom; beyond, the first term of its expansion is right to 0.1 %.
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


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


def t_quantile(freedom: int) -> float:
    """The factor on a standard error that makes a 95 % interval, for so many degrees of freedom (at least 1)."""
    return _T975[freedom - 1] if freedom <= len(_T975) else 1.96 + 2.37 / freedom


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
    error = float(np.sqrt((rest**2).sum() / (n - 2) / spread)) * t_quantile(n - 2)
    fit = Fit(slope, slope - error, slope + error, mean, at_mean, n)
    return fit if np.isfinite([fit.slope, error, at_mean]).all() else None
