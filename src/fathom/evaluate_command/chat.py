"""Chat tasks of a run, and a user's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.errors import FathomError
from fathom.evaluate.chat import NAMES, ChatTask, Tally, centered, chat_metrics, open_task, score_task
from fathom.evaluate.chat.own import own_task
from fathom.evaluate.results import Result
from fathom.evaluate_command.display import show_chat
from fathom.evaluate_command.session import RunSession, counting, number, tell, unless_missing
from fathom.screen import say

if TYPE_CHECKING:
    from fathom.evaluate_command import Eval
    from fathom.ranks import Ranks

CODE, MADE_HERE = "humaneval", "spelling"
SHOWN = ("accuracy", "centered", "standard_error", "n", "n_long", "n_cut")


def open_chat(config: Eval, tasks: Sequence[str], here: Ranks) -> list[ChatTask]:
    """The chat tasks asked for, and those of the user's own files. Sets that nobody named and that cannot be had are
    left out, with a word about it.
    """
    own = [own_task(Path(file)) for file in config.task]
    names = [*NAMES, *(task.name for task in own)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise FathomError(f"two tasks would be called {twice!r}", "give the file after --task another name")
    wanted = [name for name in NAMES if name in tasks]
    if CODE in wanted and not _can_run_code(must=CODE in config.tasks):
        wanted.remove(CODE)
    folder = Path(config.data) if config.data else None
    made_here = [name for name in wanted if name == MADE_HERE]
    fetched = [name for name in wanted if name != MADE_HERE]
    asked = bool(config.tasks or config.data)
    sets = unless_missing(", ".join(fetched), asked, here, lambda: [open_task(name, folder) for name in fetched])
    return (sets or []) + [open_task(name, folder) for name in made_here] + own


def _can_run_code(must: bool) -> bool:
    """Whether what a model wrote can be run here; a word about it where not, or a refusal where it `must`."""
    from fathom.generate.sandbox import available

    found = available()
    if found.mechanism is not None:
        return True
    if must:
        raise FathomError(f"code that a model wrote is not run on this machine: {found.reason}", found.remedy)
    say(f"{CODE} is left out: code is not run on this machine ({found.reason}); {found.remedy}", style="yellow")
    return False


def chat(session: RunSession, tasks: Sequence[ChatTask]) -> dict[str, Any]:
    """Each chat task, and ChatCORE where all of its sets were measured."""
    results: dict[str, Result] = {}
    digests = {task.name: task.digest() for task in tasks}
    for task in tasks:

        def measure(task: ChatTask = task) -> dict[str, Any]:
            return _measured(session, task)

        name = f"chat/{task.name}" if task.name in NAMES else f"own-{task.name}"
        written = {} if task.grade is None else {"max_tokens": task.max_tokens}
        results[task.name] = session.kept(name, {"digest": digests[task.name]}, measure, written, dumped=True)
    metrics = chat_metrics({name: (one["value"], number(one["standard_error"])) for name, one in results.items()})
    found: dict[str, Any] = {}
    if known := {name: result for name, result in results.items() if name in NAMES}:
        found["chat"] = _summary(session, known, metrics, digests)
    if own := {name: result for name, result in results.items() if name not in NAMES}:
        found["own"] = own
    show_chat(results, metrics)
    return found


def _measured(session: RunSession, task: ChatTask) -> dict[str, Any]:
    """One task, its items shared by the ranks."""
    rank, world = session.share
    with counting(task.name, len(range(len(task.examples))[: session.limit][rank::world])) as on_items:
        mine = score_task(
            session.model,
            session.tokenizer,
            task,
            limit=session.limit,
            share=session.share,
            on_items=on_items,
            dump=session.dump,
        )
    score = sum(session.ranks.gather(mine), Tally())
    tell(task.name, score.right, score.n)
    return {
        "value": score.accuracy,
        "accuracy": score.accuracy,
        "standard_error": score.standard_error,
        "n": score.n,
        "right": score.right,
        "centered": centered(score.accuracy, task.chance),
        "chance": task.chance,
        "n_long": score.n_long,
        "n_cut": score.n_cut,
    }


def _summary(
    session: RunSession,
    results: Mapping[str, Result],
    metrics: Mapping[str, tuple[float, float]],
    digests: Mapping[str, str],
) -> Result:
    tasks = {name: {key: one[key] for key in SHOWN} for name, one in results.items()}
    value, error = metrics.get("chatcore", metrics.get("chatcore_cat", (None, None)))
    values = {"value": value, "standard_error": error, "n": sum(one["n"] for one in tasks.values()), "tasks": tasks}
    means = {name: mean for name, (mean, _) in metrics.items()}
    data = {"digests": {name: digests[name] for name in results}}
    return session.write("chat", data, values | means)
