"""Is A better than B? Intervals over seeds, where a curve meets a target, and a verdict (pure: numbers in and out).

Everything judged here is better when it is smaller: bits per byte, steps, FLOPs, seconds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Literal

import numpy as np

LEVEL = 0.95
MOST_DEGREES = 1000.0  # beyond, Student's t is the normal distribution to three digits

Word = Literal["better", "worse", "not shown"]


@dataclass(frozen=True)
class Interval:
    low: float
    mid: float
    high: float

    def mapped(self, scale: float = 1.0, shift: float = 0.0) -> Interval:
        """Every bound times `scale` (above zero), plus `shift`."""
        return Interval(*(bound * scale + shift for bound in (self.low, self.mid, self.high)))


@dataclass(frozen=True)
class Verdict:
    """Of a thing against another: what may be said, the interval that says so, and why nothing more may."""

    word: Word
    interval: Interval | None
    """Of the difference (bpb) or of the ratio minus one (costs); None where there is none."""
    reason: str = ""

    def as_json(self) -> dict[str, object]:
        interval = None if self.interval is None else asdict(self.interval)
        return {"verdict": self.word, "interval": interval, "reason": self.reason}


def t_quantile(level: float, degrees: float) -> float:
    """The t for which a share `level` of Student's distribution with `degrees` >= 1 of freedom is within ±t.

    With t = √ν·tan θ the density is cos^(ν-1) θ up to a factor: smooth, so a few Gauss-Legendre nodes give its
    integral; halving an interval of θ inverts it.
    """
    nu = min(degrees, MOST_DEGREES)
    factor = 2 * math.exp(math.lgamma((nu + 1) / 2) - math.lgamma(nu / 2)) / math.sqrt(math.pi)
    nodes, weights = _gauss_legendre()
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        theta = middle * (nodes + 1) / 2
        inside = factor * middle / 2 * float(weights @ np.cos(theta) ** (nu - 1))
        low, high = (middle, high) if inside < level else (low, middle)
    return math.sqrt(nu) * math.tan(low)


@cache
def _gauss_legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(96)


def mean_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The interval of the mean by Student's t; None for one value, which has no spread, or where one is no number."""
    if len(values) < 2 or not np.isfinite(values).all():
        return None
    mean, spread = float(np.mean(values)), float(np.std(values, ddof=1))
    half = t_quantile(level, len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(mean - half, mean, mean + half)


def cost_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """The same for costs, which are above zero and differ by factors: of the geometric mean."""
    if not values or min(values) <= 0:
        return mean_interval(values, level)
    found = mean_interval([math.log(value) for value in values], level)
    return None if found is None else Interval(*(math.exp(v) for v in (found.low, found.mid, found.high)))


def difference(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Interval | None:
    """mean(a) - mean(b) with Welch's interval, which lets the two spread differently; None where there is no spread.

    B. L. Welch, Biometrika 34 (1947); the degrees of freedom by Satterthwaite.
    """
    if len(a) < 2 or len(b) < 2:
        return None
    of_a, of_b = (float(np.var(v, ddof=1)) / len(v) for v in (a, b))
    if of_a + of_b == 0:
        return None
    degrees = (of_a + of_b) ** 2 / (of_a**2 / (len(a) - 1) + of_b**2 / (len(b) - 1))
    half = t_quantile(level, degrees) * math.sqrt(of_a + of_b)
    middle = float(np.mean(a) - np.mean(b))
    return Interval(middle - half, middle, middle + half)


def judge(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Verdict:
    """Whether the `a` are smaller than the `b`; the interval is of mean(a) - mean(b)."""
    for values, which in ((a, "first"), (b, "second")):
        if not values or not np.isfinite(values).all():
            return Verdict("not shown", None, f"the {which} has a seed without a number")
    found = difference(a, b, level)
    if found is None:
        least = min(len(a), len(b))
        why = "the seeds agree to the last digit" if least > 1 else "one seed has no interval; train at least two"
        return Verdict("not shown", None, why)
    if found.high < 0:
        return Verdict("better", found)
    if found.low > 0:
        return Verdict("worse", found)
    return Verdict("not shown", found, "the interval holds zero")


def judge_costs(a: Sequence[float], b: Sequence[float], level: float = LEVEL) -> Verdict:
    """Whether the `a` cost less than the `b`, by their logarithms; the interval is of a / b - 1."""
    if any(not math.isfinite(v) for v in [*a, *b]):
        return Verdict("not shown", None, "a seed never reached the target")
    if any(v <= 0 for v in [*a, *b]):
        return Verdict("not shown", None, "a cost is not above zero")
    found = judge([math.log(v) for v in a], [math.log(v) for v in b], level)
    if found.interval is None:
        return found
    low, mid, high = (math.expm1(v) for v in (found.interval.low, found.interval.mid, found.interval.high))
    return Verdict(found.word, Interval(low, mid, high), found.reason)


def over_all(verdicts: dict[str, Verdict]) -> Verdict:
    """One verdict of several axes: better or worse only where every axis says so."""
    words = {verdict.word for verdict in verdicts.values()}
    if len(words) == 1 and words <= {"better", "worse"}:
        return Verdict(next(iter(words)), None)
    said = [f"{verdict.word} in {axis}" for axis, verdict in verdicts.items()]
    return Verdict("not shown", None, ", ".join(said) if len(words) > 1 else "on no axis")


def crossing(x: np.ndarray, y: np.ndarray, target: float) -> float:
    """The x, (N,) ascending, at which the curve y, (N,), first comes down to `target`; inf where it never does.

    By straight lines between the points, past those that are not numbers. Where the first point is below already,
    that point: it may have been earlier.
    """
    good = np.isfinite(x) & np.isfinite(y)
    x, y = x[good], y[good]
    reached = np.flatnonzero(y <= target)
    if not len(reached):
        return math.inf
    i = int(reached[0])
    if i == 0:
        return float(x[0])
    share = (y[i - 1] - target) / (y[i - 1] - y[i])
    return float(x[i - 1] + share * (x[i] - x[i - 1]))
