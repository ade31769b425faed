"""The charts of a report (pure)."""

from __future__ import annotations

import math

import numpy as np

from fathom.report import measures
from fathom.report.charts import Chart, Curve
from fathom.report.findings.course import ANOTHER, trend
from fathom.report.history import History, series, thin

MOST_POINTS = 1500
FEW = 4


def bpb_chart(history: History) -> Chart:
    """Validations, the line through the last third, and where another tenth would lead."""
    found = measures.measured(history)
    if len(found) >= FEW and found[0].step == 0:
        found = found[1:]  # random weights would flatten all the rest
    curves = [Curve("bits per byte", [one.step for one in found], [one.val_bpb for one in found])]
    fitted = trend(history)
    if fitted and fitted[0] == "bpb":
        done = history.steps_done
        steps = np.linspace(2 / 3 * done, (1 + ANOTHER) * done, 40)
        curves.append(
            Curve("fit of the last third", steps.tolist(), [fitted[1].at(math.log(x)) for x in steps], "dashed")
        )
    return Chart("Bits per byte", "step", "bits per byte", tuple(curves), marks=_marks(history))


def loss_chart(history: History) -> Chart | None:
    """Loss of each step and smoothed."""
    curves = [_curve(history, "loss", "loss", 600), _curve(history, "loss_smooth", "smoothed")]
    kept = tuple(curve for curve in curves if curve is not None)
    return Chart("Training loss", "step", "nats per token", kept, log_y=True, marks=_marks(history)) if kept else None


def gradient_chart(history: History) -> Chart | None:
    curve = _curve(history, "grad_norm", "norm of all gradients")
    return Chart("Gradient", "step", "norm", (curve,), log_y=True, marks=_marks(history)) if curve else None


def rate_chart(history: History) -> Chart | None:
    curve = _curve(history, "lr", "share of the peak rate")
    return Chart("Learning rate", "step", "share of peak", (curve,), marks=_marks(history)) if curve else None


def speed_chart(history: History) -> Chart | None:
    """Tokens a second."""
    steps, seconds = series(history, "step_s")
    above = seconds > 0
    steps, seconds = steps[above], seconds[above]
    if not history.batch_tokens or len(steps) < 2:
        return None
    x, y = thin(steps, seconds, MOST_POINTS // 3)
    speeds = Curve("tokens/s", x.tolist(), (history.batch_tokens / y).tolist())
    return Chart("Speed", "step", "tokens/s", (speeds,), marks=_resumes(history))


def _curve(history: History, column: str, name: str, most: int = MOST_POINTS) -> Curve | None:
    steps, values = series(history, column)
    if len(steps) < 2:
        return None
    x, y = thin(steps, values, most)
    return Curve(name, x.tolist(), y.tolist())


def _marks(history: History) -> tuple[tuple[float, str], ...]:
    begin = measures.warmdown_from(history)
    here = begin is not None and begin <= history.steps_done
    return (*_resumes(history), *(((float(begin), "warm-down"),) if here and begin is not None else ()))


def _resumes(history: History) -> tuple[tuple[float, str], ...]:
    return tuple((float(phase.first_step), phase.kind) for phase in history.phases[1:][-8:] if phase.first_step > 0)
