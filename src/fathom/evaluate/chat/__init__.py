"""ARC, MMLU, GSM8K, HumanEval, spelling, and a user's own tasks, asked of a model that can chat. REFERENCE 6.2

rows ──known──▶ ChatTask (examples, chance, judge) ──answers──▶ Tally ──▶ ChatCORE
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from fathom.evaluate.chat.answers import score_task as score_task
from fathom.evaluate.chat.example import ChatTask as ChatTask
from fathom.evaluate.chat.example import Tally as Tally
from fathom.evaluate.chat.known import KNOWN as KNOWN
from fathom.evaluate.chat.known import NAMES as NAMES
from fathom.evaluate.chat.known import open_task as open_task

LETTERED = ("arc-easy", "arc-challenge", "mmlu")


def centered(accuracy: float, chance: float) -> float:
    """0 for what guessing gets, 1 for all right."""
    return (accuracy - chance) / (1 - chance)


def chat_metrics(scores: Mapping[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
    """chatcore (of all five sets) and chatcore_cat (of the three lettered ones), where their sets were all measured.

    `scores`: accuracy and its standard error by name. Returns the mean of the centred accuracies, and its standard
    error, as of independent sets.
    """
    found = {}
    for metric, names in (("chatcore", tuple(KNOWN)), ("chatcore_cat", LETTERED)):
        if all(name in scores for name in names):
            value = sum(centered(scores[name][0], KNOWN[name].chance) for name in names) / len(names)
            errors = [scores[name][1] / (1 - KNOWN[name].chance) for name in names]
            found[metric] = value, math.sqrt(sum(error**2 for error in errors)) / len(names)
    return found
