"""What was measured of a run beside its training: CORE, chat tasks, the quiz, and whatever else is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.report import words
from fathom.report.document import Block, Section, Table, Text, section, without_empty
from fathom.report.findings.speech import chance_of, results
from fathom.report.history import History
from fathom.report.scores import GPT2_CORE, Part, Score, scores, task_of
from fathom.report.words import change, figure, percent
from fathom.screen import plural

MOST_RESULTS = 60
ABOUT = {"step", "seed", "rows", "train_s", "questions", "seconds", "time", "n", "n_long", "n_cut", "pool_short"}
ABOUT |= {"standard_error", "centered", "right"}
"""Numbers of a result that are no score, or the same score on another scale."""
TAGS = ("settings / ", "data / ")
"""Tables of a result that say what it is of."""
SHARES = ("accuracy", "by_kind / ")
"""Scores of the quiz that are shares of its questions."""
WITH_A_TABLE = {"core", "chat"}
UNSHOWN = {"bpb", "samples"}
"""Which have a section of their own."""
KINDS = {"lossless": "whole documents", "best-fit": "best-fit rows"}


def evaluations(history: History) -> Section | None:
    """CORE and chat tasks task by task, with what guessing gets; of every other result, each number."""
    blocks: list[Block] = [*_core(history), *_chat(history), *_bits(history)]
    return section("Evaluations", *blocks, *_others(history))


def _core(history: History) -> list[Block]:
    found = [one for one in scores(history, "core") if math.isfinite(one.value)]
    if not found:
        return []
    last = found[-1]
    rows = [
        (part.name, _count(part.n), _share(part.accuracy), _error(part.standard_error, 100), _guessing(part.chance))
        + (_centered(part),)
        for part in last.parts
    ]
    rows.append(("CORE", "", "", _error(last.standard_error, 1), "", change(last.value)))
    head = ("task", "items", "% right", "±", "guessing", "centred")
    told = (
        f"CORE {_with_error(last.value, last.standard_error)} at step {last.step:,}, the mean of centred accuracies "
        f"(0 is guessing, 1 all right; ± is the standard error). GPT-2 with 1.5 billion parameters has {GPT2_CORE:g}."
    )
    return [Text(told + _limited(last)), _numbers(head, rows), *_before(found, "CORE")]


def _chat(history: History) -> list[Block]:
    found = [one for one in scores(history, "chat") if one.parts]
    if not found:
        return []
    last = found[-1]
    rows = []
    for part in last.parts:
        known = chance_of(part.name)
        error, guessing = _error(part.standard_error, 100), _guessing(part.chance if known is None else known)
        rows.append((part.name, _count(part.n), _share(part.accuracy), error, guessing, _centered(part)))
    for key, label in (("chatcore", "ChatCORE"), ("chatcore_cat", "ChatCORE_cat")):
        if isinstance(value := last.values.get(key), float):
            rows.append((label, "", "", "", "", change(value)))
    told = f"Chat tasks at step {last.step:,}, with what guessing gets."
    head = ("task", "items", "% right", "±", "guessing", "centred")
    return [Text(told + _limited(last)), _numbers(head, rows), *_before(found, "ChatCORE")]


def _bits(history: History) -> list[Block]:
    """Of each corpus the newest."""
    found: dict[str, Score] = {}
    for one in scores(history, "bpb"):
        if isinstance(one.values.get("sets"), list):
            found[str(_table(one.values, "data").get("corpus", "?"))] = one
    blocks: list[Block] = []
    for corpus, one in found.items():
        sets = [each for each in one.values["sets"] if isinstance(each, Mapping)]
        rows = [
            (str(each.get("split", "")), KINDS.get(str(each.get("rows_of")), str(each.get("rows_of"))))
            + (_count(each.get("tokens")), _of_all(each.get("share")))
            + (words.bpb(_number(each.get("bpb"))), _error(each.get("standard_error"), 1))
            for each in sets
        ]
        blocks.append(Text(f"Bits per byte on {corpus} at step {one.step:,}.{_limited(one)}"))
        heads = ("part", "rows of", "tokens", "of all", "bpb", "±")
        blocks.append(without_empty(Table(heads, tuple(rows), frozenset({2, 3, 4, 5}))))
    return blocks


def _others(history: History) -> list[Block]:
    rows: list[tuple[str, ...]] = []
    for file, value in history.evals.items():
        task = task_of(file, value)
        if task in UNSHOWN or (task in WITH_A_TABLE and value.get("tasks")):
            continue
        found = [(path, score) for path, score in results(value) if _is_score(path)]
        for i, (path, score) in enumerate(found):
            name, about = (file, _about(value)) if i == 0 else ("", "")
            shown = percent(score, 3) if path.startswith(SHARES) else _score(score)
            rows.append((name, path.replace("_", " "), shown, _chance(f"{file} / {path}"), about))
    left_out = len(rows) - MOST_RESULTS
    table = Table(("result", "of", "value", "chance", "about"), tuple(rows[:MOST_RESULTS]), frozenset({2, 3}))
    more = [Text(f"{left_out:,} more values are in evals/.")] if left_out > 0 else []
    return [without_empty(table), *more] if rows else []


def _is_score(path: str) -> bool:
    return path.rpartition(" / ")[2] not in ABOUT and not path.startswith(TAGS)


def _numbers(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    return without_empty(Table(head, tuple(rows), frozenset(range(1, len(head)))))


def _before(found: list[Score], label: str) -> list[Block]:
    """Earlier results, and those of other settings, in a line."""
    told = [
        f"{_with_error(one.value, one.standard_error)} at step {one.step:,}"
        + (f" (at most {plural(one.limit, 'item')} a task)" if one.limit else "")
        for one in found[:-1]
        if math.isfinite(one.value)
    ]
    return [Text(f"{label} was also measured: {', '.join(told[-8:])}.")] if told else []


def _limited(one: Score) -> str:
    if one.limit is None:
        return ""
    return (
        f" At most {plural(one.limit, 'item')} of each were taken, so it compares only with results of the same limit."
    )


def _with_error(value: float, error: float) -> str:
    return f"{figure(value)} ± {figure(error, 2)}" if math.isfinite(error) else figure(value)


def _share(value: float) -> str:
    return f"{100 * value:.1f}" if math.isfinite(value) else ""


def _centered(part: Part) -> str:
    return change(part.centered) if math.isfinite(part.centered) else ""


def _guessing(value: float) -> str:
    return f"{100 * value:.0f}" if math.isfinite(value) else ""


def _error(value: Any, scale: float) -> str:
    known = _number(value)
    return (f"{scale * known:.1f}" if scale > 1 else f"{known:.4f}") if math.isfinite(known) else ""


def _count(value: Any) -> str:
    return f"{value:,}" if type(value) is int and value > 0 else ""


def _of_all(value: Any) -> str:
    return percent(value) if type(value) is float else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _table(value: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = value.get(key)
    return found if isinstance(found, Mapping) else {}


def _score(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else words.NOTHING


def _chance(path: str) -> str:
    for name in reversed(path.split(" / ")):
        chance = chance_of(name)
        if chance is not None:
            return percent(chance)
    return ""


def _about(value: Mapping[str, Any]) -> str:
    step, count = value.get("step"), value.get("questions", value.get("rows", value.get("n")))
    parts = [f"step {step:,}"] if type(step) is int else []
    return ", ".join([*parts, *([plural(count, "item")] if type(count) is int else [])])
