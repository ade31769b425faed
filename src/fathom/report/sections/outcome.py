"""What came of a run: results, samples, earlier attempts, what to expect of it, what is amiss with its record."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fathom.report import measures, words
from fathom.report.document import Assessment, Bullets, Section, Table, Text, section
from fathom.report.findings import Finding
from fathom.report.findings.speech import is_right, last_samples, loop_in
from fathom.report.history import History
from fathom.report.surroundings import Attempt
from fathom.report.words import percent

LONGEST = 200
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


def samples(history: History) -> Section | None:
    """What the model said at the newest step that has samples."""
    sheet = last_samples(history)
    if not sheet:
        return section("Samples", _none_taken(history))
    rows = tuple((_short(prompt), _short(text), _judged(prompt, text)) for prompt, text, _ in sheet[:24])
    return Section(f"Samples at step {sheet[0][2]:,}", (Table(("prompt", "goes on", "judged"), rows),))


def _none_taken(history: History) -> Text | None:
    if history.state != "finished" or not history.checkpoints:
        return None
    name = history.name
    return Text(f"None was taken. `fathom eval {name} --tasks samples` keeps some here, `fathom chat {name}` asks it.")


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
