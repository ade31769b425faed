"""What is well and what is not with a run: a rule each, numbers in, a judgement with its evidence out (pure)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fathom.report.findings import budget, course, speech, speed, stability
from fathom.report.findings.finding import SEVERITIES, Finding, Severity
from fathom.report.history import History

RATES_FIRST = "The rates, far from the rules', are the likely cause: mend those first."

Rule = Callable[[History], Finding | None]

RULES: tuple[Rule, ...] = (
    stability.not_a_number,
    stability.ended_early,
    budget.tokens_per_parameter,
    budget.few_conversations,
    budget.rates_apart,
    course.at_the_end,
    course.worse_after_resume,
    course.measured_otherwise,
    budget.against_the_curve,
    budget.repeated_data,
    stability.instability,
    stability.jumped,
    stability.skipped_steps,
    stability.short_of_memory,
    stability.odd_start,
    speed.mfu,
    speed.waiting,
    speed.memory,
    speed.drift,
    stability.lost_steps,
    stability.failures,
    speech.loops,
    speech.answers,
    speech.at_chance,
    speech.never_right,
)


def assess(history: History) -> list[Finding]:
    """What every rule finds, the gravest first, else in the order of RULES.

    A run that goes on from another is judged whole when it comes from `lineage.with_ancestors`.
    """
    with np.errstate(all="ignore"):
        found = [finding for rule in RULES if (finding := rule(history)) is not None]
    if any(one.kind == "rates" for one in found):  # one cure at a time
        found = [replace(one, advice=RATES_FIRST) if one.kind == "stability" and one.advice else one for one in found]
    return sorted(found, key=lambda finding: SEVERITIES.index(finding.severity))


__all__ = ["RULES", "SEVERITIES", "Finding", "Rule", "Severity", "assess"]
