"""Scaling laws through a miniseries (pure: numbers in, numbers out).

Every law is linear in all but its exponents, so for each exponent on a fine grid the rest follows by least squares, and
the best of the grid is the fit: no starting point, no local minimum. Nothing is fitted through as few points as the law
has numbers. Intervals are by a parametric bootstrap: the variance of the residuals is drawn as its few degrees of
freedom allow (SSE / χ²), new points from it, and the law is fitted again; with few points that gives the long tails
which resampling four residuals cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fathom.report.verdict import LEVEL, Interval

REPLICATES = 300
EXPONENTS = np.geomspace(0.01, 3, 1500)
COARSE = np.geomspace(0.03, 2, 48)
ZOOMS = 4


class NoFit(Exception):
    """Why these points determine no such law: one clause for a reader."""


@dataclass(frozen=True)
class PowerLaw:
    """y = factor · x^exponent."""

    factor: float
    exponent: float
    replicates: np.ndarray
    """(R, 2) exponent and logarithm of the factor, of the bootstrap."""

    def interval_at(self, x: float) -> Interval:
        exponents, offsets = self.replicates.T
        return _between(self.factor * x**self.exponent, np.exp(offsets + exponents * math.log(x)))

    @property
    def exponent_interval(self) -> Interval:
        return _between(self.exponent, self.replicates[:, 0])


@dataclass(frozen=True)
class Saturating:
    """y = floor + rise · (x / scale)^-exponent: falls towards a floor that no x goes below."""

    floor: float
    rise: float
    exponent: float
    scale: float
    """The geometric mean of the points' x, where `rise` is what is left to gain."""
    replicates: np.ndarray
    """(R, 3) floor, rise, exponent of the bootstrap."""
    rms: float
    """Of the residuals, in the unit of y."""

    def at(self, x: np.ndarray | float) -> np.ndarray:
        return self.floor + self.rise * (np.asarray(x) / self.scale) ** -self.exponent

    def interval_at(self, x: float) -> Interval:
        floor, rise, exponent = self.replicates.T
        return _between(float(self.at(x)), floor + rise * (x / self.scale) ** -exponent)

    @property
    def floor_interval(self) -> Interval:
        return _between(self.floor, self.replicates[:, 0])

    @property
    def exponent_interval(self) -> Interval:
        return _between(self.exponent, self.replicates[:, 2])


@dataclass(frozen=True)
class Surface:
    """bpb = floor + a · (N / N₀)^-α + b · (D / D₀)^-β (Hoffmann et al. 2022, third approach; least squares here)."""

    coefficients: np.ndarray
    """(5,) floor, a, b, α, β."""
    n_scale: float
    d_scale: float
    replicates: np.ndarray
    """(R, 5)."""
    rms: float

    def at(self, n: np.ndarray | float, d: np.ndarray | float) -> np.ndarray:
        floor, a, b, alpha, beta = self.coefficients
        return floor + a * (np.asarray(n) / self.n_scale) ** -alpha + b * (np.asarray(d) / self.d_scale) ** -beta

    def interval_of(self, index: int) -> Interval:
        return _between(float(self.coefficients[index]), self.replicates[:, index])

    def optimum(self, flops: float, flops_per_pair: float) -> tuple[Interval, Interval, Interval]:
        """(N, D, bpb) that are best where flops = flops_per_pair · N · D: where both terms fall equally fast."""
        each = np.array([self._optimum(row, flops / flops_per_pair) for row in [self.coefficients, *self.replicates]])
        n, d, bpb = (_between(float(column[0]), column[1:]) for column in each.T)
        return n, d, bpb

    def _optimum(self, row: np.ndarray, product: float) -> tuple[float, float, float]:
        floor, a, b, alpha, beta = (float(v) for v in row)
        left = math.log(alpha * a) + alpha * math.log(self.n_scale)
        right = math.log(beta * b) + beta * math.log(self.d_scale)
        log_n = (left - right + beta * math.log(product)) / (alpha + beta)
        log_d = math.log(product) - log_n
        terms = a * math.exp(-alpha * (log_n - math.log(self.n_scale)))
        terms += b * math.exp(-beta * (log_d - math.log(self.d_scale)))
        return math.exp(log_n), math.exp(log_d), floor + terms


def power_law(x: np.ndarray, y: np.ndarray, seed: int = 0) -> PowerLaw:
    """Through the logarithms of x and y, (N,) above zero. NoFit for fewer than three different x."""
    _need(x, 3, "a power law")
    log_x, log_y = np.log(x), np.log(y)
    middle = log_x.mean()
    weights = (log_x - middle) / ((log_x - middle) ** 2).sum()

    def fit(values: np.ndarray) -> np.ndarray:
        slope = weights @ values
        return np.array([slope, values.mean() - slope * middle])

    slope, offset = fit(log_y)
    drawn = _replicates(log_y, slope * log_x + offset, 2, fit, seed)
    return PowerLaw(math.exp(offset), float(slope), drawn)


def saturating(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Saturating:
    """Through x, y (N,), x above zero. NoFit for fewer than four different x, or where y does not fall with x."""
    _need(x, 4, "a law with a floor")
    scale = float(np.exp(np.log(x).mean()))
    powers = (x / scale) ** -EXPONENTS[:, None]

    def fit(values: np.ndarray) -> np.ndarray:
        floors, rises, errors = _lines(powers, values)
        best = int(np.argmin(errors))
        if not np.isfinite(errors[best]):
            return np.array([float(values.mean()), 0.0, 1.0])
        return np.array([floors[best], rises[best], EXPONENTS[best]])

    floor, rise, exponent = fit(y)
    if rise <= 0:
        raise NoFit("bits per byte do not fall as they grow")
    if exponent in (EXPONENTS[0], EXPONENTS[-1]):
        raise NoFit("they determine no exponent: they fall by as much at every doubling, or only at the first")
    fitted = floor + rise * (x / scale) ** -exponent
    drawn = _replicates(y, fitted, 3, fit, seed)
    return Saturating(float(floor), float(rise), float(exponent), scale, drawn, _rms(y - fitted))


def surface(n: np.ndarray, d: np.ndarray, y: np.ndarray, seed: int = 0) -> Surface:
    """Through sizes n, tokens d and bpb y, (N,) each. NoFit for fewer than seven points or too few sizes or ratios."""
    if len(set(zip(n.tolist(), d.tolist(), strict=True))) < 7:
        raise NoFit("a law in size and tokens has five numbers; it takes at least seven different runs")
    _need(n, 3, "a law in size and tokens")
    if np.std(np.log(d / n)) < 0.1 * np.std(np.log(n * d)):
        raise NoFit("all have nearly the same tokens for each parameter, so size and tokens cannot be told apart")
    n_scale, d_scale = (float(np.exp(np.log(v).mean())) for v in (n, d))
    n, d = n / n_scale, d / d_scale

    def fit(values: np.ndarray) -> np.ndarray:
        alphas = betas = COARSE
        best = np.zeros(5)
        for _ in range(ZOOMS + 1):
            best = _best_plane(n, d, values, alphas, betas)
            if not np.isfinite(best).all():
                break
            step = math.log(alphas[1] / alphas[0]) * 1.5
            alphas, betas = (np.exp(np.linspace(math.log(v) - step, math.log(v) + step, 11)) for v in best[3:])
        return best

    found = fit(y)
    if not np.isfinite(found).all():
        raise NoFit("bits per byte do not fall with both size and tokens")
    floor, a, b, alpha, beta = found
    fitted = floor + a * n**-alpha + b * d**-beta
    drawn = _replicates(y, fitted, 5, fit, seed, REPLICATES // 2)
    return Surface(found, n_scale, d_scale, drawn[np.isfinite(drawn).all(axis=1)], _rms(y - fitted))


def _best_plane(n: np.ndarray, d: np.ndarray, y: np.ndarray, alphas: np.ndarray, betas: np.ndarray) -> np.ndarray:
    """(5,) floor, a, b, α, β of the least error over a grid, with a, b > 0 and floor >= 0; NaN where there is none."""
    p, q = n ** -alphas[:, None], d ** -betas[:, None]
    best, least = np.full(5, np.nan), math.inf
    for has_floor in (True, False):
        shift = 1.0 if has_floor else 0.0
        pc, qc = (v - shift * v.mean(axis=1, keepdims=True) for v in (p, q))
        yc = y - shift * y.mean()
        pp, qq, pq = (pc**2).sum(1)[:, None], (qc**2).sum(1)[None, :], pc @ qc.T
        py, qy = (pc @ yc)[:, None], (qc @ yc)[None, :]
        determinant = pp * qq - pq**2
        with np.errstate(divide="ignore", invalid="ignore"):
            a, b = (qq * py - pq * qy) / determinant, (pp * qy - pq * py) / determinant
            floor = shift * (y.mean() - a * p.mean(1)[:, None] - b * q.mean(1)[None, :])
            errors = (yc**2).sum() - a * py - b * qy
        good = (determinant > 1e-9 * pp * qq) & (a > 0) & (b > 0) & (floor >= 0)
        errors = np.where(good, errors, math.inf)
        i, j = np.unravel_index(int(np.argmin(errors)), errors.shape)
        if errors[i, j] < least:
            least = float(errors[i, j])
            best = np.array([floor[i, j], a[i, j], b[i, j], alphas[i], betas[j]])
    return best


def _lines(powers: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each row of powers (G, N): floor >= 0, rise, squared error of floor + rise · power; inf where none falls."""
    centred = powers - powers.mean(axis=1, keepdims=True)
    rises = centred @ (y - y.mean()) / (centred**2).sum(axis=1)
    floors = y.mean() - rises * powers.mean(axis=1)
    without = powers @ y / (powers**2).sum(axis=1)
    rises, floors = np.where(floors < 0, without, rises), np.maximum(floors, 0)
    errors = ((y - floors[:, None] - rises[:, None] * powers) ** 2).sum(axis=1)
    return floors, rises, np.where(rises > 0, errors, math.inf)


def _replicates(
    y: np.ndarray,
    fitted: np.ndarray,
    parameters: int,
    fit: Callable[[np.ndarray], np.ndarray],
    seed: int,
    count: int = REPLICATES,
) -> np.ndarray:
    """(count, parameters) fits of points drawn about the fitted ones."""
    dice = np.random.default_rng(seed)
    error, degrees = float(((y - fitted) ** 2).sum()), len(y) - parameters
    spreads = np.sqrt(error / dice.chisquare(degrees, count))
    return np.array([fit(fitted + spread * dice.standard_normal(len(y))) for spread in spreads])


def _between(middle: float, drawn: np.ndarray, level: float = LEVEL) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), middle, float(high))


def _need(x: np.ndarray, least: int, what: str) -> None:
    different = len(np.unique(np.round(np.log(x), 3)))
    if different < least:
        raise NoFit(
            f"{what} takes at least {least} different ones, and there {'is' if different == 1 else 'are'} {different}"
        )


def _rms(residuals: np.ndarray) -> float:
    return float(np.sqrt((residuals**2).mean()))
