"""Tasks of EleutherAI's lm-eval on a run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fathom.errors import FathomError
from fathom.evaluate import harness as lm_eval
from fathom.evaluate.results import Result
from fathom.evaluate_command.display import show_harness
from fathom.evaluate_command.session import RunSession
from fathom.screen import bar, say

PREFERRED = ("acc_norm", "acc", "exact_match")


def open_harness(tasks: Sequence[str]) -> list[str]:
    """The same tasks. FathomError where lm-eval, or a file that is named, is not here."""
    lm_eval.library()
    for task in tasks:
        if Path(task).suffix in (".yaml", ".yml") and not Path(task).is_file():
            raise FathomError(f"there is no file {task}", "name a task of lm-eval, or a YAML file of your own")
    return list(tasks)


def harness(session: RunSession, tasks: Sequence[str]) -> dict[str, Result]:
    """Each task named: a task or group of lm-eval, or a YAML file of one's own."""
    results: dict[str, Result] = {}
    for task in tasks:

        def measure(task: str = task) -> dict[str, Any]:
            return _measured(session, task)

        name = re.sub(r"[^\w.-]+", "-", Path(task).stem if Path(task).is_file() else task)
        results[task] = session.kept(f"harness-{name}", _data(task), measure)
    show_harness(results)
    return results


def _data(task: str) -> dict[str, str]:
    """What was measured on, as far as it is known here: lm-eval fetches the items itself, by its task's version."""
    if Path(task).is_file():
        return {"task": task, "digest": hashlib.sha256(Path(task).read_bytes()).hexdigest()}
    return {"task": task}


def _measured(session: RunSession, task: str) -> dict[str, Any]:
    say(f"  {task}: lm-eval gets its items ready", style="dim")
    told: dict[str, int] = {}
    with bar(f"  {task}") as progress:

        def on_done(what: str, done: int, total: int) -> None:
            progress.advance(done - told.get(what, 0), f"{what}: {done:,} of {total:,}")
            told[what] = done

        scores = lm_eval.measure(
            session.model,
            session.tokenizer,
            [task],
            limit=session.limit,
            share=session.share,
            gather=session.ranks.gather,
            on_done=on_done,
        )
    metric, values = _main_metric(scores[task] if task in scores else next(iter(scores.values())))
    return {
        "value": values.get(metric),
        "metric": metric,
        "standard_error": values.get(f"{metric}_stderr"),
        "n": values.get("n"),
        "tasks": scores,
    }


def _main_metric(values: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """The metric that a task is usually quoted by, else its first."""
    metrics = [key for key in values if f"{key}_stderr" in values] or list(values)
    return next((metric for metric in PREFERRED if metric in metrics), metrics[0] if metrics else ""), values
