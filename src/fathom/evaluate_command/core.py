"""CORE of a run, task by task."""

from __future__ import annotations

import operator
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.evaluate.core import Bundle, Task, core_metric, open_bundle, score_task
from fathom.evaluate.core.items import Encodes
from fathom.evaluate.results import Result
from fathom.evaluate.scorer import Scorer
from fathom.evaluate_command.display import show_core
from fathom.evaluate_command.session import Session, counting, number, tell

if TYPE_CHECKING:
    from fathom.ranks import Ranks

SHOWN = ("accuracy", "centered", "standard_error", "n", "n_long", "pool_short")


def open_core(path: str | None, here: Ranks) -> Bundle:
    """CORE's bundle: the one at `path`, else that of $FATHOM_HOME, else fetched there. The main rank has read every
    item once, so that a broken line is named before the work begins.
    """
    bundle = open_bundle(Path(path) if path else None)
    if here.is_main:
        for task in bundle.tasks:
            task.items()
    return bundle


def core(session: Session, bundle: Bundle, scorer: Scorer, tokenizer: Encodes) -> Result:
    """CORE, task by task, and their mean."""
    results: dict[str, Result] = {}
    errors: dict[str, float] = {}
    for task in bundle.tasks:
        about = {"digest": task.digest, "shots": task.shots, "delimiter": task.delimiter, "baseline": task.baseline}

        def measure(task: Task = task) -> dict[str, Any]:
            return _measured(session, scorer, tokenizer, task)

        results[task.label] = session.kept(f"core/{task.label}", about, measure, dumped=True)
        errors[task.label] = number(results[task.label]["standard_error"]) / (1 - 0.01 * task.baseline)
    value, error = core_metric({label: one["centered"] for label, one in results.items()}, errors)
    tasks = {label: {key: one[key] for key in SHOWN} for label, one in results.items()}
    values = {"value": value, "standard_error": error, "n": sum(one["n"] for one in tasks.values()), "tasks": tasks}
    whole = {"core": value} if session.limit is None else {}  # what leaderboards read
    result = session.write("core", {"bundle": bundle.digest}, values | whole)
    show_core(result, crops=scorer.max_tokens is not None)
    return result


def _measured(session: Session, scorer: Scorer, tokenizer: Encodes, task: Task) -> dict[str, Any]:
    """One task, its items shared by the ranks."""
    rank, world = session.share
    with counting(task.label, len(range(len(task.items()))[: session.limit][rank::world])) as on_items:
        mine = score_task(
            scorer,
            tokenizer,
            task,
            limit=session.limit,
            share=session.share,
            on_items=on_items,
            dump=session.dump,
        )
    score = reduce(operator.add, session.ranks.gather(mine))
    tell(task.label, score.right, score.n)
    return {
        "value": score.accuracy,
        "accuracy": score.accuracy,
        "standard_error": score.standard_error,
        "n": score.n,
        "right": score.right,
        "centered": score.centered(task.baseline),
        "n_long": score.n_long,
        "pool_short": score.pool_short,
    }
