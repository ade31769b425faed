"""EleutherAI's lm-eval on our model, in this process: its tasks, prompts and metrics, our network and engine.

Needs the extra `eval` (lm_eval). Its data come from the hub through its own library, `datasets`, which keeps them in
$HF_HOME; a task that is a YAML file of one's own may name local files.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fathom.errors import FathomError
from fathom.model.gpt import GPT
from fathom.screen import say
from fathom.tokenizer import Tokenizer

BOOTSTRAPS = 1_000  # for the errors of metrics that have no formula; lm-eval's own 100,000 take minutes
SEED = 1234  # lm-eval's own, for the examples before a question
NO_METRICS = ("alias", "name", "sample_len", "sample_count")
Scores = dict[str, dict[str, Any]]


def measure(
    model: GPT,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    share: tuple[int, int] = (0, 1),
    gather: Callable[[Any], list[Any]] = lambda mine: [mine],
    on_done: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> Scores:
    """Run these tasks (names, groups, or YAML files of one's own) -> {task or group: {metric: value, …}}.

    Metrics are named as lm-eval names them, `acc`, `acc_norm`, …, another filter than none behind a comma; beside each
    its `…_stderr`, and `n`, the items, `n_shot` and the task's `version`.

    `limit` items of each task. `share` (rank, ranks): every rank has to call this, asks the model its part of the
    requests, and gets all answers from `gather`, which gives the values of all ranks in their order. `on_done(what,
    done, total)` hears how the requests of a kind get on. Raises FathomError for a task that there is not, or whose
    data cannot be had.
    """
    lm_eval = library()
    from fathom.evaluate.harness_model import HarnessModel

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    loaded = _loaded(tasks)
    found = lm_eval.evaluate(
        lm=HarnessModel(model, tokenizer, share, gather, on_done),
        task_dict=loaded,
        limit=limit,
        bootstrap_iters=BOOTSTRAPS,
        log_samples=False,
    )
    return {task: _score(task, metrics, found) for task, metrics in found["results"].items()}


def library() -> Any:
    """lm_eval, with its tasks. FathomError where it is not installed."""
    try:
        import lm_eval.tasks
    except ImportError:
        raise FathomError(
            "lm-eval's tasks need the package lm_eval, which is not installed",
            "in the project's folder: .venv/bin/python -m pip install -c constraints.txt lm_eval",
        ) from None
    return lm_eval


@cache
def _manager(all_tasks: bool) -> Any:
    """What knows lm-eval's tasks; with all of them, seconds go by."""
    if all_tasks:
        say("lm-eval reads its list of tasks, which takes a while …", style="dim")
    return library().tasks.TaskManager(include_defaults=all_tasks)


def _loaded(asked: Sequence[str]) -> Any:
    """Tasks and groups with their data, as lm-eval takes them, drawing what it draws by its own seeds."""
    files = [Path(task).suffix in (".yaml", ".yml") for task in asked]
    known = _manager(not all(files))
    for task, is_file in zip(asked, files, strict=True):
        if is_file and not Path(task).is_file():
            raise FathomError(f"there is no file {task}", "name a task of lm-eval, or a YAML file of your own")
        if not is_file and task not in known.task_index:
            near = get_close_matches(task, known.all_tasks, n=1, cutoff=0.5)
            names = "its names are on github.com/EleutherAI/lm-evaluation-harness"
            raise FathomError(f"lm-eval has no task {task[:60]!r}", f"did you mean {near[0]!r}?" if near else names)
    random.seed(0)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    try:
        loaded = known.load([str(Path(task).resolve()) if f else task for task, f in zip(asked, files, strict=True)])
    except Exception as error:  # its own, those of `datasets`, of the network, of a YAML file
        said = " ".join(str(error).split())[:300] or type(error).__name__
        what = f"lm-eval could not load {', '.join(asked)} ({said})"
        raise FathomError(what, "see that the hub can be reached, or name other tasks") from None
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            needs = (
                "images" if getattr(task, "MULTIMODAL", False) else "to run what a model wrote outside of our sandbox"
            )
            raise FathomError(f"lm-eval's task {name} needs {needs}", "name other tasks, or `--tasks humaneval`")
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def _score(task: str, metrics: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """The numbers of one task, plain floats."""
    named = {key.removesuffix(",none"): value for key, value in metrics.items() if key not in NO_METRICS}
    numbers = {key: float(value) for key, value in named.items() if isinstance(value, (int, float, np.floating))}
    n = found["n-samples"].get(task, {}).get("effective", metrics.get("sample_len"))
    about = {"n_shot": found["n-shot"].get(task), "version": found["versions"].get(task), "n": n}
    return numbers | {key: value for key, value in about.items() if value is not None}
