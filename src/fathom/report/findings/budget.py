"""Were there enough tokens for the parameters, fresh ones, and did bpb come out where such a run should?"""

from __future__ import annotations

import math

import numpy as np

from fathom.errors import FathomError
from fathom.expectation import OPTIMAL_LINE
from fathom.report import commands, measures
from fathom.report.findings.finding import Finding, Severity
from fathom.report.history import History
from fathom.report.plan_search import fill_flops
from fathom.report.reproduce import given_settings, settings_flags
from fathom.report.words import bpb, duration, figure, large, percent
from fathom.train.settings import resolve

OPTIMUM = (10.5, 12.0)
"""Tokens per parameter in blocks and head, compute-optimal by the reference's sweeps (REFERENCE sections 3.1, 13)."""
CHINCHILLA = 20.0
"""Tokens per parameter, all of them counted (Hoffmann et al. 2022)."""
FROM_LEAST, TO_MOST = 0.9 * OPTIMUM[0], 1.25 * OPTIMUM[1]
"""Between these a run counts as compute-optimal: loss is flat about the optimum."""
CHINCHILLA_LEAST, CHINCHILLA_MOST = 0.8 * CHINCHILLA, 1.2 * CHINCHILLA

SCALING_WITHIN = (3e17, 3e19)
"""Training FLOPs about those of the compute-optimal runs on FineWeb-Edu with 32,768 tokens (REFERENCE section 13)."""
SCALING_VOCAB = 32_768
SCALING_TOLERANCE = 0.05

SUITED = "up to 4 times are nearly as good as fresh text"
SOMEWHAT_MORE = 1.05
LITTLE_LEFT_OUT = 0.1
HALF_AN_EPOCH = 0.5
FAR_FROM_THE_RULE = 4.0
"""Times the rates of the rules, or part of them, that are worth a word."""
FRESH_EPOCHS = 4.0
"""Up to four passes over the same text are nearly as good as new text (Muennighoff et al. 2023)."""


def tokens_per_parameter(history: History) -> Finding | None:
    """Under- or over-trained against the compute-optimal ratio, by both ways of counting parameters."""
    tokens, shape = measures.tokens_judged(history), history.shape
    if history.stage != "pretrain" or shape is None or not tokens or tokens < 0:
        return None
    counted, total = shape.scaling_parameters, shape.parameters["total"]
    by_blocks, by_all = tokens / counted, tokens / total
    evidence = (
        f"{large(tokens)} tokens for {large(counted)} parameters in blocks and head: {figure(by_blocks)} each "
        f"(compute-optimal {OPTIMUM[0]:g} to {OPTIMUM[1]:g})",
        f"for all {large(total)} parameters: {figure(by_all)} each (Chinchilla's rule of thumb: {CHINCHILLA:g})",
    )
    will = "as planned " if history.state == "running" else ""
    ratio = f"{figure(by_blocks, 3)} tokens per parameter in blocks and head, {figure(by_all, 3)} per parameter of all"
    if by_blocks < FROM_LEAST:
        cure = _cure_for_too_few(history, tokens, counted, total)
        if measures.is_brief(history):
            sentence = f"Short {will}for its size, as a run of minutes is: {ratio}."
            return Finding("short", "note", sentence, evidence, cure)
        return Finding("tokens", "warn", f"Under-trained {will}for its size: {ratio}.", evidence, cure)
    if by_blocks <= TO_MOST:
        return Finding("tokens", "good", f"Compute-optimal {will}for its size: {ratio}.", evidence)
    sentence = f"Over-trained {will}for its size: {ratio}, {figure(by_blocks / OPTIMUM[1], 2)} times the optimum."
    if by_all <= CHINCHILLA_MOST:
        place = "At" if by_all >= CHINCHILLA_LEAST else "Below"
        times = figure(by_blocks / OPTIMUM[1], 2)
        sentence = (
            f"{place} Chinchilla's ratio {will}by all parameters ({figure(by_all, 3)}; its rule is {CHINCHILLA:g}), "
            f"but {figure(by_blocks, 3)} by blocks and head, {times} times the optimum there."
        )
    advice = "This is right where a small model is wanted that is cheap to run."
    larger = _depth_for(history, tokens * shape.flops_per_token)
    if larger > shape.n_layer:
        advice += (
            f" For the best model from the same compute, train a larger one on fewer tokens: about depth {larger}."
        )
    return Finding("tokens", "note", sentence, evidence, advice)


def _cure_for_too_few(history: History, tokens: int, counted: int, total: int) -> str:
    assert history.shape is not None
    batch, goal = history.batch_tokens or 1, OPTIMUM[1]
    steps = round(goal * counted / batch)
    seconds = steps * measures.step_seconds(history)
    takes = f", {duration(seconds)} at its speed" if math.isfinite(seconds) else ""
    advice = f"{goal:g} tokens per parameter in blocks and head are {steps:,} steps of this batch{takes}"
    passes = passes_for(history, goal * counted / tokens)
    is_often = passes > SOMEWHAT_MORE * FRESH_EPOCHS
    if is_often:
        advice += (
            f", and would go through this text {figure(passes, 2)} times: {SUITED}, so {_way_to_more_text(history)}"
        )
    if (ratio := longer_ratio(history)) is not None:
        upto = f". As it is packed, this one is enough for {figure(ratio, 2)} tokens per parameter" if is_often else ""
        advice += f"{upto}: {longer_words(history, ratio)}"
    smaller = _depth_for(history, tokens * history.shape.flops_per_token)
    if smaller < history.shape.n_layer:
        advice += f". Or spend the same compute on a smaller model: about depth {smaller}"
    return advice + "."


def _way_to_more_text(history: History) -> str:
    gain = _left_out(history)
    return f"first read all that is there: {gain}. Then find more of it" if gain else "find more of it"


def _left_out(history: History) -> str:
    """What of the text packing keeps from the run, and what reads it; "" where that is little."""
    if history.config.get("config", {}).get("packing") != "best-fit" or history.shape is None:
        return ""
    rows = f"best-fit packing in rows of {history.shape.seq_len:,} tokens"
    dropped = history.circumstances.get("share_dropped")
    if not isinstance(dropped, float) or not 0 <= dropped < 1:
        return f"{rows} leaves out what does not fit, much of a text of long documents; --packing lossless reads it all"
    if dropped < LITTLE_LEFT_OUT:
        return ""
    times = figure(1 / (1 - dropped), 2)
    return f"{rows} leaves out {percent(dropped)} of the text; --packing lossless has {times} times as much"


def passes_for(history: History, times: float) -> float:
    """How often the text would be read in a run so many times as long; NaN where the record does not tell."""
    seen = history.epoch[np.isfinite(history.epoch)]
    return float(seen[-1]) * times if len(seen) else math.nan


def longer_ratio(history: History) -> float | None:
    """Tokens per parameter to train such a run on next: the optimum, or twice as many as it had where it had that.

    No more than four passes over its text give. None where that is hardly more than it had.
    """
    tokens, shape = measures.tokens_judged(history), history.shape
    if shape is None or not tokens or tokens < 0:
        return None
    had = tokens / shape.scaling_parameters
    wanted = OPTIMUM[1] if had < FROM_LEAST else 2 * had
    passes = passes_for(history, 1.0)
    most = had * FRESH_EPOCHS / passes if passes > 0 else math.inf
    ratio = min(wanted, most)
    return ratio if ratio > 1.1 * had and math.isfinite(ratio) else None


def longer_words(history: History, ratio: float) -> str:
    """The command that trains it on so many tokens per parameter, and where that begins; a plain word without one."""
    line, step = commands.longer(history, ratio), commands.extendable_step(history)
    if not line:
        return f"{figure(ratio, 3)} tokens per parameter (--ratio)"
    where = "anew" if step is None else f"on from step {step:,}, where its rate had not fallen yet"
    return f"{line} trains it {where}"


def _depth_for(history: History, flops: float) -> int:
    """The depth that `plan --flops` has such a budget train, with this run's context and vocabulary."""
    shape = history.shape
    assert shape is not None
    same = {"head_dim": shape.head_dim, "seq_len": shape.seq_len, "window": shape.window_pattern}
    try:
        return fill_flops(flops, same, shape.vocab_size)
    except FathomError:  # a context or heads that no plan has
        return shape.n_layer


def expected_bpb(flops: float) -> float:
    """bpb of a compute-optimal run on English web text, from the reference's four: a power law through them."""
    return math.exp(OPTIMAL_LINE.value(math.log10(flops), "fineweb-edu"))


def few_conversations(history: History) -> Finding | None:
    """A fine-tuning that ended before it had seen half of its conversations."""
    seen = history.epoch[np.isfinite(history.epoch)]
    if history.stage != "sft" or history.state == "running" or not len(seen) or not 0 < seen[-1] < HALF_AN_EPOCH:
        return None
    sentence = f"Short: it saw {percent(float(seen[-1]))} of its conversations, in {history.steps_done:,} steps."
    longer = f"{history.name}-longer"
    line = commands.quickstart_in_full(history) or commands.fine_tuned_again(history, longer, epochs=1)
    advice = f"{line} gives it more." if line else "Fine-tune it for longer (--epochs 1)."
    return Finding("short", "note", sentence, (), advice)


def rates_apart(history: History) -> Finding | None:
    """Rates given by hand, far from those of the rules for such a network and batch."""
    given = measures.number(measures.settings(history), "lr_scale")
    is_meant = history.stage == "pretrain" and "lr_scale" in given_settings(history) and given > 0
    if not is_meant or history.shape is None:
        return None
    try:
        flags = {key: value for key, value in settings_flags(history)[0].items() if key != "lr_scale"}
        rule = resolve(flags, {}, history.shape.vocab_size).lr_scale
    except FathomError:
        return None
    times = given / rule
    if 1 / FAR_FROM_THE_RULE <= times <= FAR_FROM_THE_RULE:
        return None
    words = f"{figure(times, 2)} times" if times > 1 else f"{figure(1 / times, 2)} times less than"
    sentence = f"The rates were × {figure(given, 3)}, {words} what the rules have for it (× {figure(rule, 3)})."
    line = commands.again(history, f"{history.name}-by-rule", lr_scale=None)
    advice = f"{line} trains it by the rule." if line else "Leave --lr-scale out."
    return Finding("rates", "warn", sentence, (), advice)


def against_the_curve(history: History) -> Finding | None:
    """Better or worse than the reference's scaling runs at the same compute; only where these tell anything."""
    shape, tokens, found = history.shape, history.tokens_done, measures.measured(history)
    if history.stage != "pretrain" or shape is None or not tokens or not found or history.state == "running":
        return None
    flops = tokens * shape.flops_per_token
    if shape.vocab_size != SCALING_VOCAB or not SCALING_WITHIN[0] <= flops <= SCALING_WITHIN[1]:
        return None
    last, expected = found[-1], expected_bpb(flops)
    if last.step != history.steps_done or last.val_bpb <= 0:
        return None
    off = last.val_bpb / expected - 1
    evidence = (
        f"{flops:.3g} training FLOPs; the reference's scaling runs (0.8972 at 1e18, 0.7999 at 1e19) give "
        f"{bpb(expected)} there",
        "they were measured on FineWeb-Edu; another validation text shifts bpb by several per cent",
    )
    figures = f"bpb {bpb(last.val_bpb)} against {bpb(expected)} for its compute"
    if off > SCALING_TOLERANCE:
        advice = "Look at the other findings first; else at the data, the rates and the tokenizer's bytes per token."
        return Finding(
            "scaling", "warn", f"Worse than the scaling curve by {percent(off)}: {figures}.", evidence, advice
        )
    if off < -SCALING_TOLERANCE:
        advice = "Make sure that no validation text is among the training text."
        return Finding(
            "scaling", "note", f"Better than the scaling curve by {percent(-off)}: {figures}.", evidence, advice
        )
    side = "above" if off > 0 else "below"
    return Finding("scaling", "good", f"On the scaling curve: {figures}, {percent(abs(off))} {side}.", evidence)


def repeated_data(history: History) -> Finding | None:
    """How often the same text was read."""
    seen = history.epoch[history.epoch == history.epoch]
    if history.stage != "pretrain" or not len(seen) or not math.isfinite(seen.max()) or seen.max() <= 1.05:
        return None
    epochs = float(seen.max())
    evidence = (f"{figure(epochs, 3)} epochs; {SUITED}",)
    if epochs <= FRESH_EPOCHS:
        return Finding("epochs", "good", f"The text was read {figure(epochs, 3)} times, which costs little.", evidence)
    advice = f"Find {figure(epochs / FRESH_EPOCHS, 2)} times as much text, or train a smaller model for fewer tokens."
    if gain := _left_out(history):
        advice = f"{gain}. {advice}"
    severity: Severity = "note" if measures.is_brief(history) else "warn"
    return Finding("epochs", severity, f"The same text was read {figure(epochs, 3)} times.", evidence, advice)
