"""What came of a run: results, samples, earlier attempts, what to expect of it, what is amiss with its record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fathom.report import measures, words
from fathom.report.document import Assessment, Bullets, Section, Table, Text, section
from fathom.report.findings import Finding
from fathom.report.findings.speech import chance_of, is_right, last_samples, loop_in, results
from fathom.report.history import History
from fathom.report.surroundings import Attempt
from fathom.report.words import percent

MOST_RESULTS = 60
LONGEST = 200
ABOUT = {"step", "seed", "rows", "train_s", "questions", "seconds", "time", "n", "n_long", "n_cut", "pool_short"}
ABOUT |= {"standard_error", "centered"}
"""Numbers of a result that are no score, or the same score on another scale."""
TAGS = ("settings / ", "data / ")
"""Tables of a result that say what it is of."""
GPT2_FLOPS = 4.18e19
"""Of depth 24 at 12 tokens per parameter, which reaches GPT-2's capability (REFERENCE sections 3.1, 13)."""
CAPABILITY: tuple[tuple[float, str], ...] = (
    (3e15, "It has the spelling and turns of its text; sentences hold together only where that text is simple."),
    (2e17, "Sentences hold together on the subjects of its text; it knows few facts and loses the thread soon."),
    (
        5e18,
        "About GPT-1's class: coherent text, common facts, simple talk after fine-tuning. It makes things up, repeats "
        "itself, and can hardly reason.",
    ),
    (2.5e19, "Between GPT-1's and GPT-2's class: fluent text, more facts, simple talk; it makes things up readily."),
    (math.inf, "GPT-2's class or above: fluent text on most subjects; it still makes things up and reasons poorly."),
)


def evaluations(history: History) -> Section | None:
    """The results in evals/ but bits per byte, which has its own section; of each, every number."""
    rows: list[tuple[str, ...]] = []
    for file, value in history.evals.items():
        if file.startswith("bpb-"):
            continue
        scores = [
            (path, score)
            for path, score in results(value)
            if path.rpartition(" / ")[2] not in ABOUT and not path.startswith(TAGS)
        ]
        for i, (path, score) in enumerate(scores):
            name, about = (file, _about(value)) if i == 0 else ("", "")
            rows.append((name, path.replace("_", " "), _score(score), _chance(f"{file} / {path}"), about))
    left_out = len(rows) - MOST_RESULTS
    head = ("result", "of", "value", "chance", "about")
    table = Table(head, tuple(rows[:MOST_RESULTS]), frozenset({2, 3}))
    return section("Evaluations", table, Text(f"{left_out:,} more values are in evals/.") if left_out > 0 else None)


def _score(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else words.NOTHING


def _chance(path: str) -> str:
    for name in reversed(path.split(" / ")):
        chance = chance_of(name)
        if chance is not None:
            return _score(chance)
    return ""


def _about(value: Mapping[str, Any]) -> str:
    step, count = value.get("step"), value.get("questions", value.get("rows", value.get("n")))
    parts = [f"step {step:,}"] if type(step) is int else []
    return ", ".join([*parts, *([f"{count:,} items"] if type(count) is int else [])])


def samples(history: History) -> Section | None:
    """What the model said at the newest step that has samples."""
    sheet = last_samples(history)
    if not sheet:
        return None
    rows = tuple((_short(prompt), _short(text), _judged(prompt, text)) for prompt, text, _ in sheet[:24])
    return Section(f"Samples at step {sheet[0][2]:,}", (Table(("prompt", "goes on", "judged"), rows),))


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= LONGEST else flat[: LONGEST - 1] + "…"


def _judged(prompt: str, text: str) -> str:
    right, loop = is_right(prompt, text), loop_in(text)
    verdict = {True: "right", False: "wrong", None: ""}[right]
    looping = f"loops: “{_short(loop.unit)[:40]}” × {loop.times}" if loop else ""
    return ", ".join(filter(None, [verdict, looping]))


def attempts(found: Sequence[Attempt]) -> Section | None:
    """Earlier runs of the same name."""
    rows = tuple(
        (
            one.name,
            one.created or words.NOTHING,
            one.stage,
            str(one.depth or words.NOTHING),
            f"{one.steps_done:,}" + (f" of {one.steps_planned:,}" if one.steps_planned else ""),
            words.bpb(one.val_bpb) if one.val_bpb is not None else words.NOTHING,
            _fate(one),
        )
        for one in found
    )
    return section("Earlier attempts", Table(("run", "begun", "stage", "depth", "steps", "bpb", "end"), rows))


def _fate(one: Attempt) -> str:
    if one.broke_at is not None:
        return f"loss not a number from step {one.broke_at:,}"
    return "finished" if one.finished else "did not finish"


def expectation(history: History) -> Section | None:
    """What a model of such training can do."""
    shape, tokens = history.shape, measures.tokens_judged(history)
    if shape is None or not tokens or history.stage != "pretrain":
        return None
    flops = tokens * shape.flops_per_token
    what = next(text for most, text in CAPABILITY if flops <= most)
    share = percent(flops / GPT2_FLOPS)
    text = f"{flops:.3g} FLOPs are {share} of what depth 24 needs to reach GPT-2's capability. {what}"
    return Section("What to expect of it", (Text(text),))


def assessment(findings: Sequence[Finding]) -> Section:
    """Every finding, with evidence and advice."""
    return Section("Assessment", (Assessment(tuple(findings)),))


def record(history: History) -> Section | None:
    """What in the record was broken and how it was taken."""
    return section("The record", Bullets(history.troubles)) if history.troubles else None
