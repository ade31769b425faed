"""What a sweep shows: final bpb over seeds, each point against the baseline, and whether there is a winner."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.report.history import History, history_of
from fathom.report.measured import bpb_curves, common_set
from fathom.report.verdict import LEVEL, Verdict, judge, mean_interval
from fathom.sweep.grid import Candidate


@dataclass(frozen=True)
class Standing:
    """One point of the grid."""

    label: str
    finals: tuple[float, ...]
    """bpb of the seeds that finished."""
    seconds: float
    seeds: int
    """How many there were to be."""
    verdict: Verdict | None
    """Against the baseline; None for the baseline."""

    @property
    def is_whole(self) -> bool:
        return len(self.finals) == self.seeds and bool(np.isfinite(self.finals).all())

    @property
    def mean(self) -> float:
        return float(np.mean(self.finals)) if self.finals else math.nan

    def as_json(self) -> dict[str, Any]:
        interval = mean_interval(self.finals)
        return {
            "label": self.label,
            "final_bpb": self.mean,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "finished": len(self.finals),
            "seeds": self.seeds,
            "seconds": self.seconds,
            "against_baseline": None if self.verdict is None else self.verdict.as_json(),
        }


def standings(finals: Mapping[str, Sequence[float]], seconds: Mapping[str, float], seeds: int) -> list[Standing]:
    """Every point against the first, which is the baseline; each interval is widened for how many are looked at.

    With k points against one baseline each is judged at 1 - 0.05 / k (Bonferroni), so that the best of many is not
    called better for having been lucky.
    """
    labels = list(finals)
    level = 1 - (1 - LEVEL) / max(1, len(labels) - 1)
    base = finals[labels[0]]
    found = []
    for label in labels:
        verdict = None if label == labels[0] else _against(finals[label], base, seeds, level)
        found.append(Standing(label, tuple(finals[label]), seconds[label], seeds, verdict))
    return found


def _against(ours: Sequence[float], base: Sequence[float], seeds: int, level: float) -> Verdict:
    if len(ours) < seeds or len(base) < seeds:
        whose = "its" if len(ours) < seeds else "the baseline's"
        return Verdict("not shown", None, f"not all of {whose} seeds finished")
    return judge(ours, base, level)


def winner(found: Sequence[Standing]) -> Standing | None:
    """The point of the least mean, if it is not the baseline and shown to be better than it."""
    whole = [standing for standing in found if standing.is_whole]
    if not whole:
        return None
    best = min(whole, key=lambda standing: standing.mean)
    return best if best.verdict is not None and best.verdict.word == "better" else None


def measure(candidates: Sequence[Candidate], finished: set[str]) -> tuple[list[Standing], list[str]]:
    """The standings from the runs' folders, and what a reader must know. Empty where no run was measured."""
    runs = {p.run: history_of(p.run) for c in candidates for p in c.points if p.run in finished}
    measured = {name: run for name, run in runs.items() if bpb_curves(run)}
    notes = [f"{name} was never measured" for name in runs.keys() - measured.keys()]
    if not measured:
        return [], notes
    try:
        validation = common_set(list(measured.values()))
    except FathomError as error:
        return [], [*notes, error.problem]
    finals, seconds = {}, {}
    for candidate in candidates:
        its = [measured[point.run] for point in candidate.points if point.run in measured]
        finals[candidate.label] = [bpb_curves(run)[validation].final for run in its]
        times = [float(bpb_curves(run)[validation].seconds[-1]) for run in its]
        seconds[candidate.label] = float(np.mean(times)) if times else math.nan
    flops = [_flops(run) for run in measured.values()]
    if max(flops) > 1.05 * min(flops):
        notes.append(
            f"the runs differ in FLOPs by up to {max(flops) / min(flops):.2f} times; "
            "`fathom compare` shows them on all three axes"
        )
    return standings(finals, seconds, len(candidates[0].points)), notes


def _flops(run: History) -> float:
    per_token = run.shape.flops_per_token if run.shape else 1
    return float((run.tokens_done or 1) * per_token)
