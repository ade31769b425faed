"""What the model says at the end: loops, answers to the standard prompts, results at chance level."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fathom.report import measures
from fathom.report.findings.finding import Finding
from fathom.report.history import History
from fathom.report.words import listed, percent

LONGEST_TEXT = 4000
"""Characters of a sample that are looked at."""
LONGEST_UNIT = 12
FEWEST_WORDS = 6
REPEATED_SHARE = 0.4
"""Of a text's three-word pieces, so many stood there before: it goes in circles without a fixed period."""
_LETTERS = re.compile(r"(\S{1,20}?)\1{5,}")

ANSWERS: Mapping[str, str] = {
    "The capital of France is": r"\bParis\b",
    "The chemical symbol of gold is": r"\bAu\b",
    "If yesterday was Friday, then tomorrow will be": r"\bSunday\b",
    "The opposite of hot is": r"\bcold\b",
    "The planets of the solar system are:": r"\bMercury\b.*\bVenus\b.*\bEarth\b.*\bMars\b",
    "If 5*x + 3 = 13, then x is": r"^\W*(equal to |equals )?2(?![\d.]*\d|\s*[-+*/x])",
}
"""What makes a continuation of the standard prompts right, where anything does: in its first sentence."""
_SENTENCE = re.compile(r".*?(?=[.!?](?!\d)|\n|$)", re.DOTALL)

CHANCE: Mapping[str, float] = {"arc-easy": 0.25, "arc-challenge": 0.25, "mmlu": 0.25, "gsm8k": 0.0, "humaneval": 0.0}
CHANCE_WITHIN = 0.01
FEWEST_ITEMS = 50
"""Of a task; from fewer nobody can tell guessing from knowing: the standard error is 6 percentage points and more."""
SCORES = {"accuracy", "acc", "score", "pass_at_1"}


@dataclass(frozen=True)
class Loop:
    """A piece of text that comes again and again."""

    unit: str
    times: int


def loop_in(text: str) -> Loop | None:
    """The repetition that covers most of `text`, if it is one: a word 4 times in a row, two 3 times, more twice."""
    text = text[:LONGEST_TEXT]
    words = [word.strip(".,;:!?\"'()").lower() or word for word in text.split()]
    best, covered = None, 0
    for size in range(1, min(LONGEST_UNIT, len(words) // 2) + 1):
        start, times = _longest_run(words, size)
        enough = 4 if size == 1 else 3 if size == 2 else 2
        if times >= enough and size * times >= max(FEWEST_WORDS if size > 1 else 4, covered + 1):
            best, covered = Loop(" ".join(words[start : start + size]), times), size * times
    return best or _circles(words) or _letters(text)


def _longest_run(words: Sequence[str], size: int) -> tuple[int, int]:
    """(where it begins, how often in a row) of the piece of `size` words that follows itself most often."""
    best, since = (0, 1), 0
    for i in range(len(words) - size):
        if words[i] != words[i + size]:
            since = i + 1
        elif (times := (i + 1 - since) // size + 1) > best[1]:
            best = (since, times)
    return best


def _circles(words: Sequence[str]) -> Loop | None:
    pieces = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    if len(pieces) < 2 * FEWEST_WORDS or len(set(pieces)) > (1 - REPEATED_SHARE) * len(pieces):
        return None
    most = max(set(pieces), key=lambda piece: (pieces.count(piece), piece))
    return Loop(" ".join(most), pieces.count(most))


def _letters(text: str) -> Loop | None:
    found = _LETTERS.search(text)
    if found is None or len(found[0]) < 24:
        return None
    return Loop(found[1], len(found[0]) // len(found[1]))


def last_samples(history: History) -> list[tuple[str, str, int]]:
    """(prompt, text, step) of the newest step that has any."""
    found = [line for line in history.samples if isinstance(line.get("text"), str) and type(line.get("step")) is int]
    if not found:
        return []
    newest = max(line["step"] for line in found)
    return [(str(line.get("prompt", "")), line["text"], newest) for line in found if line["step"] == newest]


def is_right(prompt: str, text: str) -> bool | None:
    """Whether a standard prompt was continued rightly; None where there is no right or wrong."""
    pattern, sentence = ANSWERS.get(prompt), _SENTENCE.match(text[:LONGEST_TEXT].lstrip())
    return None if pattern is None or sentence is None else re.search(pattern, sentence[0], re.DOTALL) is not None


def loops(history: History) -> Finding | None:
    """Samples of the newest step that repeat themselves."""
    sheet = last_samples(history)
    if not sheet:
        return None
    found = [(prompt, loop) for prompt, text, _ in sheet if (loop := loop_in(text)) is not None]
    step = sheet[0][2]
    if not found:
        return Finding("loops", "good", f"None of the {len(sheet)} samples of step {step:,} runs in a loop.")
    share = len(found) / len(sheet)
    run = "runs" if len(found) == 1 else "run"
    sentence = f"{len(found)} of the {len(sheet)} samples of step {step:,} {run} in a loop ({percent(share)})."
    evidence = tuple(f"“{_short(prompt)}”: “{_short(loop.unit)}” × {loop.times}" for prompt, loop in found[:6])
    advice = (
        "Common for small or under-trained models where the likeliest word is taken each time, as it is here. "
        f"`fathom chat {history.name}` draws by chance and loops less; more tokens and fine-tuning help."
    )
    grave = share >= 0.5 and not measures.is_brief(history)
    return Finding("loops", "warn" if grave else "note", sentence, evidence, advice)


def answers(history: History) -> Finding | None:
    """The standard prompts that have a right answer, at the newest step."""
    judged = [(prompt, is_right(prompt, text)) for prompt, text, _ in last_samples(history)]
    known = [(prompt, right) for prompt, right in judged if right is not None]
    if len(known) < 3:
        return None
    right = [prompt for prompt, is_so in known if is_so]
    sentence = f"{len(right)} of {len(known)} standard prompts are continued rightly."
    evidence = tuple(f"“{prompt}”: {'right' if is_so else 'wrong'}" for prompt, is_so in known)
    return Finding("answers", "good" if 2 * len(right) >= len(known) else "note", sentence, evidence)


def results(value: Mapping[str, Any], prefix: str = "", depth: int = 3) -> Iterator[tuple[str, float]]:
    """Every number of a result in evals/, by its path of names."""
    for key, item in value.items():
        if isinstance(item, bool):
            continue
        if isinstance(item, (int, float)):
            yield f"{prefix}{key}", float(item) if abs(item) < 1e300 else math.nan
        elif isinstance(item, Mapping) and depth:
            yield from results(item, f"{prefix}{key} / ", depth - 1)


def chance_of(name: str) -> float | None:
    """What guessing gives in a known task, by its name."""
    plain = re.sub(r"[\s_]+", "-", name.lower())
    return next((chance for task, chance in CHANCE.items() if task in plain), None)


def at_chance(history: History) -> Finding | None:
    """Known tasks that came out as guessing would; what was measured on a handful of items tells nothing."""
    scores: dict[str, tuple[float, float]] = {}
    for file, value in history.evals.items():
        if _limit(value) < FEWEST_ITEMS:
            continue
        for path, score in results(value):
            names = [file, *path.split(" / ")]
            task = next((name for name in reversed(names) if chance_of(name) is not None), "")
            if task and (names[-1] == task or names[-1] in SCORES) and 0 <= score <= 1:
                scores[task] = score, chance_of(task) or 0.0
    if len(scores) < 2:
        return None
    guessed = [name for name, (score, chance) in scores.items() if abs(score - chance) <= CHANCE_WITHIN]
    evidence = tuple(f"{name}: {percent(score)} (chance {percent(chance)})" for name, (score, chance) in scores.items())
    are = "is" if len(guessed) == 1 else "are"
    sentence = f"{len(guessed)} of {len(scores)} known tasks {are} at chance level"
    if not guessed:
        return Finding("tasks", "good", f"{sentence}.", evidence)
    broken = len(guessed) == len(scores)
    sentence += f": {listed(guessed[:6])}."
    if not broken:
        return Finding("tasks", "note", sentence, evidence)
    if measures.is_brief(history):
        return Finding("tasks", "note", sentence, evidence, "Training of minutes teaches none of them.")
    advice = "All at chance is what broken weights or a wrong chat format give: look at the loss first."
    return Finding("tasks", "warn", sentence, evidence, advice)


def _limit(value: Mapping[str, Any]) -> float:
    """The most items of a task that a result was measured on."""
    settings = value.get("settings")
    limit = settings.get("limit") if isinstance(settings, Mapping) else None
    return limit if type(limit) is int else math.inf


def never_right(history: History) -> Finding | None:
    """Kinds of question that the newest quiz found never answered rightly."""
    taken = [value for value in history.evals.values() if isinstance(value.get("by_kind"), Mapping)]
    if not taken:
        return None
    newest = max(taken, key=lambda value: value["step"] if type(value.get("step")) is int else -1)
    kinds = {str(kind): score for kind, score in newest["by_kind"].items() if isinstance(score, (int, float))}
    never = [kind.replace("_", " ") for kind, score in kinds.items() if score == 0]
    if not never:
        return None
    are = "is" if len(never) == 1 else "are"
    sentence = f"{len(never)} of {len(kinds)} kinds of question {are} never answered rightly: {listed(never[:6])}"
    advice = "More conversations of these kinds would help."
    if history.stage == "pretrain":
        advice = "A base model has no tool to compute with: look again after fine-tuning, which teaches it to call one."
    return Finding("never right", "note", f"{sentence}{' …' if never[6:] else ''}.", (), advice)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 60 else flat[:57] + "…"
