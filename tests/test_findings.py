"""Each rule on records that have and have not the fault, on borderline noise, and on anything at all."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fathom.model.shape import Shape
from fathom.optim.schedule import Schedule
from fathom.report.findings import RULES, SEVERITIES, Finding, assess, budget, course, speech, speed, stability
from fathom.report.findings.trend import fit_line
from fathom.report.history import COLUMNS, History
from fathom.report.phases import Evaluation, Phase
from fathom.report.plan_search import fill_flops
from fathom.train.settings import resolve

SHAPE = Shape(4, 4, 4, 64, 1024, 256, "L")
BATCH = 16_384
STEPS = 2_300  # 11 tokens for each parameter in blocks and head
GPU = {
    "device": "cuda",
    "device_name": "NVIDIA GeForce RTX 4070",
    "dtype": "bf16",
    "peak_flops": 58.3e12,
    "peak_source": "data sheet",
    "device_memory_gb": 12.9,
    "device_batch": 32,
    "grad_accum": 2,
    "compile_from": 30,
}


def made(
    steps: int = STEPS,
    *,
    planned: int | None = None,
    seed: int = 0,
    stage: str = "pretrain",
    about: Mapping[str, Any] = GPU,
    columns: Mapping[str, np.ndarray] | None = None,
    phases: tuple[Phase, ...] | None = None,
    events: tuple[Mapping[str, Any], ...] = (),
    bpb: Mapping[int, float] | None = None,
    samples: tuple[tuple[str, str], ...] = (),
    evals: Mapping[str, Mapping[str, Any]] | None = None,
    running: bool = False,
    config: Mapping[str, Any] | None = None,
    step_s: float = 0.1,
) -> History:
    """A healthy run, but for what is given otherwise. Of minutes, unless a step takes longer."""
    noise, step = np.random.default_rng(seed), np.arange(1, steps + 1)
    schedule = Schedule(planned or steps)
    loss = 2.0 + 5.0 / np.sqrt(step) + noise.normal(0, 0.03, steps)
    loss[0] = math.log(SHAPE.vocab_size)
    seconds = step_s * (1 + 0.01 * noise.normal(size=steps))
    values = {
        "loss": loss,
        "loss_smooth": loss,
        "grad_norm": np.full(steps, 0.4),
        "lr": np.array([schedule.lr(i) for i in range(steps)]),
        "step_s": seconds,
        "train_s": np.cumsum(seconds),
        "mfu": 0.45 + 0.005 * noise.normal(size=steps),
        "epoch": step / steps * 0.8,
        "loader_wait_s": np.cumsum(seconds) * 0.001,
        "memory_gb": np.full(steps, 9.5),
        "time": 1.8e9 + np.cumsum(seconds),
    } | dict(columns or {})
    measured = {round(steps * k / 20): 0.9 + 0.5 / math.sqrt(k) for k in range(1, 21)} if bpb is None else bpb
    told = [{"event": "started", "time": 1.8e9}, {"event": "training", "step": 0, "time": 1.8e9} | dict(about)]
    told += [{"event": "evaluated", "step": at, "val_bpb": value, "time": 1.8e9 + at} for at, value in measured.items()]
    finished = steps == (planned or steps) and not running
    only = Phase("started", 0, steps, 1.8e9, 1.8e9 + steps, "finished" if finished else "", dict(about))
    return History(
        name="made",
        folder=Path("/nowhere/made"),
        config={
            "run": {"stage": stage},
            "model": {
                "n_layer": 4,
                "n_head": 4,
                "n_kv_head": 4,
                "head_dim": 64,
                "vocab_size": 1024,
                "seq_len": 256,
                "window_pattern": "L",
            },
            "config": {"batch_tokens": BATCH, "steps": planned or steps, "warmdown_share": 0.65, "warmup_steps": 40}
            | {"final_lr": 0.05}
            | dict(config or {}),
        },
        step=step,
        columns={name: np.asarray(values[name], dtype=np.float64) for name in COLUMNS},
        evaluations=tuple(Evaluation(at, value, 0.0, 0.0) for at, value in sorted(measured.items())),
        phases=(only,) if phases is None else phases,
        events=(*told, *events),
        samples=tuple({"step": steps, "prompt": prompt, "text": text} for prompt, text in samples),
        evals=evals or {},
        result={} if finished else None,
        is_running=running,
        troubles=(),
    )


def severity(finding: Finding | None) -> str:
    assert finding is not None
    return finding.severity


def test_a_healthy_run_says_so_with_numbers() -> None:
    found = assess(made(samples=(("The opposite of hot is", " cold, and that of long is short."),) * 3))
    assert {finding.severity for finding in found} <= {"good", "note"}
    assert len([finding for finding in found if finding.severity == "good"]) >= 6
    assert all(re.search(r"\d", finding.sentence) for finding in found)


def test_the_gravest_comes_first() -> None:
    loss = made().loss.copy()
    loss[500:] = math.nan
    found = [finding.severity for finding in assess(made(columns={"loss": loss}))]
    assert found[0] == "bad" and found == sorted(found, key=SEVERITIES.index)


# The line and its interval


def test_a_line_through_exact_points() -> None:
    fit = fit_line(np.array([1.0, 2.0, 3.0]), np.array([5.0, 3.0, 1.0]))
    assert (
        fit is not None
        and (fit.slope, fit.low, fit.high) == pytest.approx((-2, -2, -2))
        and fit.at(4) == pytest.approx(-1)
    )
    assert fit_line(np.array([1.0, 2.0]), np.array([5.0, 3.0])) is None
    assert fit_line(np.ones(5), np.arange(5.0)) is None


def test_the_interval_holds_the_true_slope_as_often_as_it_says() -> None:
    noise, x = np.random.default_rng(3), np.linspace(0, 1, 8)
    fits = [fit_line(x, 0.7 * x + noise.normal(0, 0.2, 8)) for _ in range(1500)]
    held = np.mean([fit is not None and fit.low <= 0.7 <= fit.high for fit in fits])
    assert 0.935 < held < 0.965


# Tokens


@pytest.mark.parametrize(
    ("share", "expected"), [(0.2, "warn"), (0.84, "warn"), (0.9, "good"), (1.0, "good"), (1.3, "good"), (4, "note")]
)
def test_tokens_per_parameter(share: float, expected: str) -> None:
    finding = budget.tokens_per_parameter(made(steps=round(share * STEPS), step_s=5.0))
    assert severity(finding) == expected
    assert finding is not None
    ratio = share * STEPS * BATCH / SHAPE.scaling_parameters
    assert f"{ratio:.3g}" in finding.sentence.replace(",", "") and "Chinchilla" in finding.evidence[1]


def test_a_run_of_minutes_is_short_and_no_failure() -> None:
    brief, long = (budget.tokens_per_parameter(made(steps=460, step_s=step_s)) for step_s in (1.9, 2.1))
    assert brief is not None and long is not None
    assert (brief.severity, long.severity) == ("note", "warn")
    assert brief.sentence.startswith("Short for its size, as a run of minutes is: 2.2")
    assert long.sentence.startswith("Under-trained for its size: 2.2")
    assert brief.evidence == long.evidence and "2,496 steps" in brief.advice, "what it would take is said all the same"
    stopped = budget.tokens_per_parameter(made(steps=46, planned=460, step_s=2.1))
    assert severity(stopped) == "warn", "by its plan"


def test_too_few_tokens_say_how_many_steps_are_enough() -> None:
    finding = budget.tokens_per_parameter(made(steps=460))
    assert finding is not None and f"{round(12 * SHAPE.scaling_parameters / BATCH):,} steps" in finding.advice


def test_between_two_rules_of_thumb() -> None:
    finding = budget.tokens_per_parameter(made(steps=round(1.5 * STEPS)))
    total = 1.5 * STEPS * BATCH / SHAPE.parameters["total"]
    assert finding is not None and f"Below Chinchilla's ratio by all parameters ({total:.3g}" in finding.sentence


def test_a_run_at_work_is_judged_by_its_plan_and_a_fine_tuning_not_at_all() -> None:
    running = budget.tokens_per_parameter(made(steps=200, planned=STEPS, running=True))
    assert running is not None and running.severity == "good" and "as planned" in running.sentence
    assert budget.tokens_per_parameter(made(stage="sft")) is None


def test_the_depth_that_a_budget_fits_is_the_dial_s() -> None:
    history = made()
    for depth, flops in ((4, 1.11e16), (12, 1.0e18), (20, 1.51e19)):  # REFERENCE 3.1, at 32,768 tokens and SSSL
        heads = depth // 2
        model = dict(n_layer=depth, n_head=heads, n_kv_head=heads, head_dim=128, vocab_size=32_768, seq_len=2048)
        of_depth = replace(history, config=dict(history.config) | {"model": model})
        assert abs(budget._depth_for(of_depth, flops * 1.01) - depth) <= 1


def test_the_depth_for_a_budget_is_the_one_that_plan_finds() -> None:
    model = dict(n_layer=2, n_head=1, n_kv_head=1, head_dim=128, vocab_size=8192, seq_len=128, window_pattern="SSSL")
    history = made(steps=40, planned=40)
    history = replace(history, config=dict(history.config) | {"model": model})
    assert history.shape is not None and history.tokens_done is not None
    for flops in (history.tokens_done * history.shape.flops_per_token, 1e15, 1e17):
        given = {"seq_len": 128, "head_dim": 128, "window": "SSSL"}
        assert budget._depth_for(history, flops) == fill_flops(flops, given, 8192) >= 2
    found = budget.tokens_per_parameter(history)
    assert found is not None and "smaller model" not in found.advice, "no depth is under 2"


def test_the_scaling_curve_goes_through_the_reference_s_runs() -> None:
    for flops, bpb in ((1e18, 0.8972), (2e18, 0.8616), (5e18, 0.8293), (1e19, 0.7999)):  # REFERENCE 13
        assert budget.expected_bpb(flops) == pytest.approx(bpb, rel=0.005)


@pytest.mark.parametrize(("off", "expected"), [(1.08, "warn"), (1.03, "good"), (0.97, "good"), (0.9, "note")])
def test_against_the_scaling_curve(off: float, expected: str) -> None:
    history = d12(off * budget.expected_bpb(1e18))
    assert severity(budget.against_the_curve(history)) == expected


def test_the_scaling_curve_is_silent_where_it_does_not_apply() -> None:
    assert budget.against_the_curve(made()) is None  # 1,024 tokens of vocabulary
    assert budget.against_the_curve(replace(d12(0.9), result=None, is_running=True)) is None
    assert budget.against_the_curve(d12(0.9, batch=1_000)) is None  # far too little compute


def d12(bpb: float, batch: int = 524_288) -> History:
    """1e18 FLOPs of depth 12."""
    steps = 2_520
    history = made(steps=steps, bpb={steps: bpb})
    model = dict(
        n_layer=12, n_head=6, n_kv_head=6, head_dim=128, vocab_size=32_768, seq_len=2048, window_pattern="SSSL"
    )
    config = dict(history.config) | {"model": model, "config": dict(history.config["config"]) | {"batch_tokens": batch}}
    return replace(history, config=config)


def test_text_that_packing_left_out_is_named_before_more_is_looked_for() -> None:
    def advised(packing: str, **about: Any) -> list[str]:
        run = made(steps=460, columns={"epoch": np.linspace(0, 5, 460)}, about=GPU | about, step_s=5.0)
        config = dict(run.config) | {"config": dict(run.config["config"]) | {"packing": packing}}
        found = [rule(replace(run, config=config)) for rule in (budget.tokens_per_parameter, budget.repeated_data)]
        return [one.advice for one in found if one]

    most = advised("best-fit", share_dropped=0.86)
    assert len(most) == 2 and all("86 % of the text; --packing lossless has 7.1 times" in one for one in most)
    assert all("--packing lossless reads it all" in one for one in advised("best-fit")), "an older record"
    assert not any("lossless" in one for one in advised("best-fit", share_dropped=0.02))
    assert not any("leaves out" in one for one in advised("lossless", share_dropped=0.0))


@pytest.mark.parametrize(("epochs", "expected"), [(0.9, None), (1.5, "good"), (4.0, "good"), (7.0, "warn")])
def test_repeated_text(epochs: float, expected: str | None) -> None:
    read = {"epoch": np.linspace(0, epochs, STEPS)}
    finding, brief = (budget.repeated_data(made(columns=read, step_s=step_s)) for step_s in (1.0, 0.1))
    assert (finding.severity if finding else None) == expected
    assert (brief.severity if brief else None) == ("note" if expected == "warn" else expected)


# Course


def falling(slope: float, noise: float, seed: int = 1) -> dict[int, float]:
    """Validations every 50 steps, falling by so much with the log of the steps."""
    rng = np.random.default_rng(seed)
    steps = range(100, STEPS + 1, 50)
    return {step: 1.5 + slope * math.log(step / STEPS) + float(rng.normal(0, noise)) for step in steps}


def test_still_improving_says_what_a_tenth_more_gives() -> None:
    finding = course.at_the_end(made(bpb=falling(-0.12, 0.0005)))
    assert finding is not None and finding.sentence.startswith("Still improving")
    gain = float(re.search(r"give −([\d.]+)", finding.sentence)[1])  # type: ignore[index]
    assert gain == pytest.approx(0.12 * math.log(1.1), abs=0.0006)


def test_plateaued_where_noise_hides_any_slope() -> None:
    for seed in range(8):
        finding = course.at_the_end(made(bpb=falling(0.0, 0.003, seed)))
        assert finding is not None and not finding.sentence.startswith("Rising"), seed
    plateaus = [course.at_the_end(made(bpb=falling(0.0, 0.003, seed))) for seed in range(40)]
    said = sum(finding is not None and finding.sentence.startswith("Plateaued") for finding in plateaus)
    assert said >= 35  # of 40, at 95 %


def test_four_scattered_points_tell_nothing() -> None:
    finding = course.at_the_end(made(bpb={1600: 1.51, 1900: 1.47, 2100: 1.53, 2300: 1.48}))
    assert finding is not None and finding.sentence.startswith("No clear trend")


def test_points_that_are_close_together_say_nothing_of_a_tenth_more() -> None:
    bpb = {2200: 1.5, 2230: 1.4, 2260: 1.3, 2300: 1.2}
    assert course.trend(made(bpb=bpb)) is None and course.at_the_end(made(bpb=bpb)) is None


def test_rising_at_the_end() -> None:
    bpb = falling(-0.1, 0.0003)
    bpb |= {step: 1.5 + 0.00005 * (step - 1500) for step in bpb if step > 1500}
    assert severity(course.at_the_end(made(bpb=bpb))) == "warn"


def test_the_training_loss_stands_in_where_validations_are_few() -> None:
    finding = course.at_the_end(made(bpb={STEPS: 1.2}))
    assert finding is not None and "training loss" in finding.sentence
    assert course.at_the_end(made(steps=30, bpb={})) is None


def resumed(at: int, before: float, after: Mapping[int, float], rates: tuple[float, float], **more: Any) -> History:
    """Two phases with a validation before the second, and those of `after` in it."""
    history = made(bpb={}, **more)
    lr = np.where(history.step <= at, rates[0], rates[1])
    phases = (
        Phase("started", 0, at, 1.0, 2.0, "finished", GPU),
        Phase("extended", at, STEPS, 3.0, 4.0, "finished", GPU),
    )
    events = (
        {"event": "started"},
        {"event": "evaluated", "step": at, "val_bpb": before},
        {"event": "extended", "step": at},
        *({"event": "evaluated", "step": step, "val_bpb": value} for step, value in after.items()),
    )
    return replace(history, columns=dict(history.columns) | {"lr": lr}, phases=phases, events=events)


def test_worse_after_an_extension_names_the_rates_that_rose() -> None:
    finding = course.worse_after_resume(resumed(1000, 0.935, {1500: 1.016, 2000: 1.002}, (0.05, 1.0)))
    assert finding is not None and finding.severity == "warn"
    assert "0.9350 → 1.0160 at step 1,500" in finding.sentence and "1.0020 at step 2,000" in finding.sentence
    assert any("rose again from 5 % to 100 %" in line for line in finding.evidence)


def test_what_an_extension_made_good_is_only_noted() -> None:
    finding = course.worse_after_resume(resumed(1000, 0.935, {1500: 1.016, 2300: 0.90}, (0.05, 1.0)))
    assert finding is not None and finding.severity == "note"


@pytest.mark.parametrize("after", [{1500: 0.93, 2000: 0.92}, {1500: 0.937}, {}])
def test_no_word_of_a_resume_that_did_no_harm(after: dict[int, float]) -> None:
    assert course.worse_after_resume(resumed(1000, 0.935, after, (0.5, 0.5))) is None


def test_the_same_weights_measured_twice() -> None:
    finding = course.measured_otherwise(resumed(1000, 0.780026, {1000: 0.810152}, (0.05, 0.56)))
    assert finding is not None and "0.7800" in finding.sentence and "0.8102" in finding.sentence
    assert course.measured_otherwise(resumed(1000, 0.780, {1000: 0.781}, (0.05, 0.56))) is None


# Stability


def test_a_spike_is_found_and_noise_is_not() -> None:
    history = made(seed=5)
    assert severity(stability.instability(history)) == "good"
    loss = history.loss.copy()
    loss[1500] += 2.0
    finding = stability.instability(replace(history, columns=dict(history.columns) | {"loss": loss}))
    assert finding is not None and finding.severity == "note" and "step 1,501" in finding.evidence[0]


def test_a_loss_that_does_not_come_back_is_worse() -> None:
    loss = made().loss.copy()
    loss[1500:] += 2.0
    assert severity(stability.instability(made(columns={"loss": loss}))) == "warn"


def test_heavy_but_honest_noise_is_no_spike() -> None:
    for seed in range(6):
        loss = 3 + np.random.default_rng(seed).normal(0, 0.2, 20_000)
        found = stability.spikes(made(steps=20_000, bpb={}, columns={"loss": loss}))
        assert not found, seed


def test_rolling_windows_agree_with_the_obvious_way() -> None:
    rng = np.random.default_rng(9)
    loss = 3 + rng.normal(0, 0.1, 600) + (rng.random(600) < 0.02) * rng.random(600) * 3
    expected = []
    for i in range(128, 600):
        window = loss[i - 128 : i]
        scatter = max(window.std(), 0.001 * window.mean() + 1e-9)
        if loss[i] > window.mean() + 6 * scatter:
            expected.append(i + 1)
    found = stability.spikes(made(steps=600, bpb={}, columns={"loss": loss}))
    assert expected and {spike.step for spike in found} <= set(expected) and found[0].step == expected[0]


def test_not_a_number() -> None:
    loss = made().loss.copy()
    loss[123:] = math.nan
    finding = stability.not_a_number(made(columns={"loss": loss}))
    assert finding is not None and finding.severity == "bad" and "from step 124 " in finding.sentence
    loss = made().loss.copy()
    loss[700] = math.inf
    assert severity(stability.not_a_number(made(columns={"loss": loss}))) == "warn"
    assert stability.not_a_number(made()) is None


def test_skipped_steps() -> None:
    one = ({"event": "skipped", "step": 9, "why": "spike"},)
    assert severity(stability.skipped_steps(made(events=one))) == "note"
    assert severity(stability.skipped_steps(made(events=one * 40))) == "warn"
    back = ({"event": "rolled_back", "from": 900, "to": 500},)
    finding = stability.skipped_steps(made(events=back))
    assert finding is not None and finding.severity == "warn" and "from step 900 to 500" in finding.evidence
    assert stability.skipped_steps(made()) is None


@pytest.mark.parametrize(
    ("why", "cure"),
    [("spike", "--lr-scale"), ("non-finite gradient", "--dtype bf16"), ("float16 overflow", "--dtype bf16"),
     ("no target in the batch", "fit into the context")],
)  # fmt: skip
def test_the_cure_for_left_out_steps_goes_by_why_they_were(why: str, cure: str) -> None:
    events = tuple({"event": "skipped", "step": step, "why": why} for step in range(40))
    back = {"event": "rolled_back", "from": 900, "to": 500, "why": "4 in a row", "data_shift": 404}
    finding = stability.skipped_steps(made(events=(*events, back)))
    assert finding is not None and cure in finding.advice
    assert finding.sentence.startswith("40 steps left out and 1 return to an earlier checkpoint")
    assert "from step 900 to 500 (4 in a row); 404 batches passed over" in finding.evidence
    assert any("went back to the last good checkpoint" in line for line in finding.evidence)


def test_a_left_out_loss_is_no_broken_one() -> None:
    loss = made().loss.copy()
    loss[99] = math.nan
    history = made(columns={"loss": loss})
    assert severity(stability.not_a_number(history)) == "warn"
    skipped = ({"event": "skipped", "step": 99, "why": "non-finite loss"},)
    assert stability.not_a_number(made(columns={"loss": loss}, events=skipped)) is None


def test_short_of_memory() -> None:
    events = tuple({"event": "out_of_memory", "step": 3, "device_batch": rows} for rows in (16, 8))
    finding = stability.short_of_memory(made(events=events))
    assert finding is not None and "Out of memory 2 times; micro-batches came down to 8 rows" in finding.sentence
    assert "--device-batch 8" in finding.advice
    assert stability.short_of_memory(made()) is None


def phase(kind: str, first: int, last: int) -> Phase:
    return Phase(kind, first, last, 1.0, 2.0, "", GPU)


def test_a_loss_that_jumps_in_a_short_run() -> None:
    loss = np.concatenate([np.linspace(8.3, 6.35, 20), [16.1, 13.9, 9.2], np.linspace(8.4, 7.9, 37)])
    steps = len(loss)
    up = made(steps=steps, columns={"loss": loss})
    found = stability.jumped(up)
    assert found is not None and found.severity == "warn"
    assert "jumped at step 21, from 6.45 to 16.1 nats, and did not come back: 7.91 at the end" in found.sentence
    assert "half the rates" in found.advice or "lower rates" in found.advice
    loss[25:] = np.linspace(6.4, 5.5, 35)
    back = stability.jumped(made(steps=steps, columns={"loss": loss}))
    assert back is not None and "came back" in back.sentence
    assert stability.jumped(made(steps=60)) is None and stability.jumped(made(steps=3)) is None
    mixed = np.random.default_rng(1).uniform(0.5, 4.0, 60)  # every batch other texts
    assert stability.jumped(made(steps=60, columns={"loss": mixed})) is None
    long = np.concatenate([loss, np.full(300, 5.5)])
    assert stability.jumped(made(steps=len(long), columns={"loss": long})) is None, "spikes are told there"


def test_a_loss_that_jumps_at_once() -> None:
    loss = np.concatenate([[6.93, 9.0, 13.5, 14.0, 13.0], np.linspace(12.0, 3.5, 55)])
    found = stability.jumped(made(steps=60, columns={"loss": loss}))
    assert found is not None and "from 6.93 to 14.0 nats" in found.sentence
    hot = {"lr_scale": 40.0, "depth": 4, "head_dim": 64, "seq_len": 256, "batch_tokens": BATCH, "steps": 60}
    run = made(steps=60, columns={"loss": loss}, config=hot)
    both = assess(replace(run, config={**run.config, "origin": dict.fromkeys(hot, "flag")}))
    (rates,), (jump,) = ([one for one in both if one.kind == kind] for kind in ("rates", "stability"))
    assert jump.advice.startswith("The rates") and both.index(rates) < both.index(jump), "one cure at a time"


@pytest.mark.parametrize(("times", "words"), [(17.0, "17"), (0.1, "10"), (3.0, ""), (0.5, "")])
def test_rates_far_from_the_rules(times: float, words: str) -> None:
    given = {"depth": 4, "head_dim": 64, "seq_len": 256, "window": "L", "batch_tokens": BATCH, "steps": STEPS}
    rule = resolve(given, {}, 1024).lr_scale
    run = made(config={"lr_scale": times * rule, "depth": 4, "corpus": "books", "tokenizer": "t"})
    origin = dict.fromkeys((*given, "lr_scale"), "flag")
    found = budget.rates_apart(replace(run, config={**run.config, "origin": origin}))
    assert (found is not None) == bool(words)
    if found is not None:
        assert f", {words} times" in found.sentence and "by the rule" in found.advice
        assert "--lr-scale" not in found.advice
    assert budget.rates_apart(run) is None, "the rules' own"


def test_a_fine_tuning_that_saw_little() -> None:
    run = made(stage="sft", steps=60, columns={"epoch": np.linspace(0.01, 0.2, 60)})
    found = budget.few_conversations(run)
    assert found is not None and found.kind == "short" and "20 % of its conversations, in 60 steps" in found.sentence
    made_by = ["quickstart", "--minutes", "1"]
    short = replace(run, config={**run.config, "run": {"stage": "sft", "base": "quickstart", "made_by": made_by}})
    assert "`fathom quickstart --run quickstart-2` gives it more" in budget.few_conversations(short).advice  # type: ignore[union-attr]
    assert budget.few_conversations(made(stage="sft", columns={"epoch": np.linspace(0, 0.9, STEPS)})) is None
    assert budget.few_conversations(made()) is None


def test_lost_steps() -> None:
    phases = (phase("started", 0, 900), phase("resumed", 500, STEPS))
    lost = stability.lost_steps(made(phases=phases))
    assert lost is not None and "400 steps lost" in lost.sentence and "40 s" in lost.sentence
    assert (lost.severity, lost.advice) == ("note", ""), "seconds are not worth a remedy"
    slow = stability.lost_steps(made(phases=phases, columns={"step_s": np.full(STEPS, 1.0)}))
    assert slow is not None and slow.severity == "warn" and "--save-every" in slow.advice
    kept = stability.lost_steps(made(phases=(phase("started", 0, 900), phase("resumed", 900, STEPS))))
    assert severity(kept) == "good"
    assert stability.lost_steps(made()) is None


def test_a_run_that_gave_up_tells_why() -> None:
    gave_up = replace(made(steps=124, planned=500, phases=(replace(phase("started", 0, 124), refusal="no room."),)))
    finding = stability.ended_early(gave_up)
    assert finding is not None and "its own last words: no room." in finding.evidence
    assert not any("nothing in the record" in line for line in finding.evidence)


def test_a_run_that_broke_off(tmp_path: Path) -> None:
    finding = stability.ended_early(replace(made(steps=124, planned=500), folder=tmp_path))
    assert finding is not None and "broke off at step 124 of 500" in finding.sentence
    assert (
        stability.ended_early(made()) is None and stability.ended_early(made(steps=9, planned=50, running=True)) is None
    )


def test_failures() -> None:
    failed = ({"event": "evaluation_failed", "step": 500, "why": "out of memory"},)
    finding = stability.failures(made(events=failed))
    assert finding is not None and "1 evaluation failed" in finding.sentence and "out of memory" in finding.evidence[0]
    assert stability.failures(made()) is None


def test_an_odd_start() -> None:
    loss = made().loss.copy()
    loss[0] = 9.5
    assert severity(stability.odd_start(made(columns={"loss": loss}))) == "warn"
    assert (
        stability.odd_start(made()) is None and stability.odd_start(made(stage="sft", columns={"loss": loss})) is None
    )


# Speed and memory


def test_good_and_bad_mfu() -> None:
    assert severity(speed.mfu(made())) == "good"
    low = {"mfu": np.full(STEPS, 0.2)}
    finding, brief = (speed.mfu(made(columns=low, step_s=step_s)) for step_s in (1.0, 0.1))
    assert finding is not None and brief is not None
    assert finding.severity == "warn" and "badly used: MFU 20 %" in finding.sentence
    assert brief.severity == "note" and brief.sentence.startswith("MFU 20 %")


@pytest.mark.parametrize(
    ("columns", "about", "config", "cause"),
    [
        ({"loader_wait_s": np.arange(STEPS) * 0.03}, {}, {}, "waiting for data, 30 %"),
        ({"memory_gb": np.full(STEPS, 2.0)}, {"device_batch": 4}, {}, "device batch of 1,024 tokens, with 16 %"),
        ({}, {"ranks": 8}, {}, "synchronisation of 8 devices"),
        ({}, {}, {"batch_tokens": 1024}, "the optimizer, "),
        ({}, {"device": "cpu", "dtype": "fp32"}, {}, "a CPU without bf16"),
        ({}, {"compile_from": None}, {}, "not compiled"),
    ],
)
def test_low_mfu_names_its_cause(
    columns: dict[str, np.ndarray], about: dict[str, Any], config: dict[str, Any], cause: str
) -> None:
    low = {"mfu": np.full(STEPS, 0.2)} | columns
    finding = speed.mfu(made(columns=low, about=GPU | about, config=config))
    assert finding is not None and cause in finding.sentence + finding.advice


def test_mfu_of_a_run_that_could_not_log_it_is_from_the_data_sheet() -> None:
    about = {key: value for key, value in GPU.items() if not key.startswith("peak")}
    finding = speed.mfu(made(columns={"mfu": np.zeros(STEPS)}, about=about))
    share = SHAPE.flops_per_token * BATCH / 0.1 / 58.3e12
    assert finding is not None and f"{100 * share:.2g} %" in finding.sentence
    several = speed.mfu(made(columns={"mfu": np.zeros(STEPS)}, about=GPU | {"ranks": 4, "peak_flops": 4 * 58.3e12}))
    assert several is not None and f"{100 * share / 4:.2g} %" in several.sentence
    assert "of 58.3 TFLOP/s (data sheet)" in several.evidence[0]
    unknown = speed.mfu(made(columns={"mfu": np.zeros(STEPS)}, about={"device_name": "Elbonia 9"}))
    assert unknown is not None and "TFLOP/s" in unknown.sentence and unknown.severity == "note"


def test_waiting_for_data() -> None:
    assert severity(speed.waiting(made())) == "good"
    assert severity(speed.waiting(made(columns={"loader_wait_s": np.arange(STEPS) * 0.003}))) == "note"
    assert severity(speed.waiting(made(columns={"loader_wait_s": np.arange(STEPS) * 0.02}))) == "warn"


def test_memory_to_spare_says_which_device_batch_would_fit() -> None:
    finding = speed.memory(made(columns={"memory_gb": np.full(STEPS, 4.0)}))
    assert finding is not None and finding.severity == "note" and "64 rows instead of 32" in finding.sentence
    assert severity(speed.memory(made())) == "good"
    tight = speed.memory(made(columns={"memory_gb": np.full(STEPS, 12.7)}))
    assert tight is not None and tight.severity == "note" and "98 %" in tight.sentence
    assert speed.memory(made(about=GPU | {"device": "cpu"})) is None


def test_memory_to_spare_is_a_devices_own() -> None:
    """What is advised divides the rows of one rank: the others have theirs."""
    columns = {"memory_gb": np.full(STEPS, 4.0)}
    shared = GPU | {"ranks": 2, "device_batch": 8, "grad_accum": 4}
    finding = speed.memory(made(columns=columns, about=shared))
    assert (
        finding is not None
        and "16 rows instead of 8" in finding.sentence
        and "for 16 rows of 32" in finding.evidence[0]
    )
    whole = speed.memory(made(columns=columns, about=shared | {"device_batch": 32, "grad_accum": 1}))
    assert whole is not None and "the whole batch is in one" in whole.sentence
    alone, split = (speed.fixed_memory_gb(made(about=about), SHAPE) for about in (GPU, shared | {"weights": "split"}))
    assert split == pytest.approx(alone / 2)
    assert split < speed.fixed_memory_gb(made(about=shared), SHAPE) < alone


def test_drift() -> None:
    assert severity(speed.drift(made())) == "good"
    for step_s, expected in ((1.0, "warn"), (0.1, "note")):
        slower = speed.drift(made(columns={"step_s": step_s * (1 + 0.2 * np.linspace(0, 1, STEPS))}))
        assert slower is not None and slower.severity == expected and "slower by 1" in slower.sentence
    faster = speed.drift(made(columns={"step_s": 0.1 * (1 - 0.2 * np.linspace(0, 1, STEPS))}))
    assert faster is not None and faster.severity == "note"


def test_a_speed_that_scatters_is_not_called_steady() -> None:
    by_turns = np.where(np.arange(STEPS) // 100 % 2, 0.1, 0.13)
    steady, uneven = (speed.drift(made(columns={"step_s": times})) for times in (np.full(STEPS, 0.1), by_turns))
    assert steady is not None and "The speed is steady: " in steady.sentence
    assert uneven is not None and uneven.severity == "good"
    assert "scatters, but neither falls nor rises: " in uneven.sentence


def test_without_a_batch_the_speed_is_told_in_seconds_a_step() -> None:
    history = made(columns={"step_s": 0.1 * (1 - 0.2 * np.linspace(0, 1, STEPS))})
    config = {key: value for key, value in history.config.items() if key != "config"}
    faster = speed.drift(replace(history, config=config))
    assert faster is not None and "s a step" in faster.sentence and "tokens/s" not in faster.sentence


def test_scatter_is_no_drift() -> None:
    for seed in range(10):
        times = 0.1 * np.random.default_rng(seed).lognormal(0, 0.5, 200)
        assert severity(speed.drift(made(steps=200, bpb={}, columns={"step_s": times}))) == "good", seed


# What it says


@pytest.mark.parametrize(
    ("text", "unit", "times"),
    [
        ("the gold atom. The gold atom. The gold atom. The", "the gold atom", 3),
        ("no no no no no", "no", 5),
        ("it is it is it is", "it is", 3),
        ("abcabcabcabcabcabcabcabcabcabc", "abc", 10),
        ("==========================", "=", 26),
    ],
)
def test_loops(text: str, unit: str, times: int) -> None:
    loop = speech.loop_in(text)
    assert loop is not None and (loop.unit, loop.times) == (unit, times)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, and Neptune",
        "She had had enough of it, and said so: enough is enough.",
        "very, very good",
        "The cat sat on the mat and the dog sat on the rug, while the bird sang in the tree by the house.",
    ],
)
def test_ordinary_text_is_no_loop(text: str) -> None:
    assert speech.loop_in(text) is None


def test_circles_without_a_period_are_loops() -> None:
    text = "of the men of the town and of the men of the hills and of the men of the town or of the men of the sea"
    assert speech.loop_in(text) is not None


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=400))
def test_any_text_can_be_looked_at(text: str) -> None:
    loop = speech.loop_in(text)
    assert loop is None or (loop.times >= 2 and loop.unit)


def test_samples_in_loops_and_answers() -> None:
    sheet = (
        ("The capital of France is", " Paris."),
        ("The chemical symbol of gold is", " gold gold gold gold gold gold"),
        ("The opposite of hot is", " cold cold cold cold cold cold"),
        ("If 5*x + 3 = 13, then x is", " 2."),
    )
    history = made(samples=sheet)
    for step_s, expected in ((1.0, "warn"), (0.1, "note")):
        looping = speech.loops(made(samples=sheet, step_s=step_s))
        assert looping is not None and looping.severity == expected and "2 of the 4" in looping.sentence
    answered = speech.answers(history)
    assert answered is not None and "3 of 4" in answered.sentence
    assert speech.loops(made()) is None and speech.answers(made()) is None


@pytest.mark.parametrize(
    ("text", "right"), [(" 2", True), (" equal to 2.", True), (" 23", False), (" 2.5", False), ("2*x + 2 = 3", False)]
)
def test_the_equation(text: str, right: bool) -> None:
    assert speech.is_right("If 5*x + 3 = 13, then x is", text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        (" Paris. The capital of Italy", True),
        (" a city called Paris", True),
        (" Austria. The capital of Paris is", False),
        ("\nParis", True),
        (" Lyon\nParis", False),
        ("", False),
    ],
)
def test_only_the_first_sentence_answers(text: str, right: bool) -> None:
    assert speech.is_right("The capital of France is", text) is right


def test_questions_that_are_never_answered_rightly() -> None:
    quiz = {"quiz-000100": {"step": 100, "by_kind": {"add": 0.0, "subtract": 0, "town_who": 0.9}}}
    finding = speech.never_right(made(evals=quiz))
    assert finding is not None
    assert finding.sentence == "2 of 3 kinds of question are never answered rightly: add and subtract."
    assert "after fine-tuning" in finding.advice
    taught = speech.never_right(made(evals=quiz, stage="sft"))
    assert taught is not None and "More conversations" in taught.advice
    later = quiz | {"quiz-000200": {"step": 200, "by_kind": {"add": 0.1}}}
    assert speech.never_right(made(evals=later)) is None, "the newest counts"


def test_tasks_at_chance() -> None:
    tasks = {"ARC-Easy": {"accuracy": 0.25}, "MMLU": {"accuracy": 0.252}, "GSM8K": {"accuracy": 0.0}}
    for step_s, expected, advice in ((1.0, "warn", "broken weights"), (0.1, "note", "of minutes")):
        finding = speech.at_chance(made(evals={"chat": {"step": 9, "tasks": tasks}}, step_s=step_s))
        assert finding is not None and finding.severity == expected and "3 of 3" in finding.sentence
        assert advice in finding.advice
    better = {name: {"accuracy": value["accuracy"] + 0.2} for name, value in tasks.items()}
    assert severity(speech.at_chance(made(evals={"chat": {"tasks": better}}))) == "good"
    assert speech.at_chance(made()) is None
    for limit, is_told in ((12, False), (100, True)):
        of = made(evals={"chat": {"step": 9, "tasks": tasks, "settings": {"limit": limit}}})
        assert (speech.at_chance(of) is not None) == is_told


# Anything at all

anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1), st.sampled_from([math.nan, 0.0, 1e308, -1.0])
)
shapes = st.fixed_dictionaries({}, optional={key: st.one_of(anything, st.none(), st.text(max_size=3)) for key in GPU})


@st.composite
def any_history(draw: st.DrawFn) -> History:
    steps = draw(st.integers(0, 40)) * draw(st.sampled_from([1, 9]))
    seeds = np.random.default_rng(draw(st.integers(0, 9)))
    columns = {}
    for name in COLUMNS:
        values = seeds.random(steps) * draw(st.sampled_from([1.0, 1e-9, 1e9, 1e300]))
        for i in draw(st.lists(st.integers(0, max(steps - 1, 0)), max_size=4)) if steps else []:
            values[i] = draw(anything)
        columns[name] = values
    ends = sorted(draw(st.lists(st.integers(0, 400), min_size=1, max_size=4)))
    kinds = draw(st.lists(st.sampled_from(["started", "resumed", "extended"]), min_size=4, max_size=4))
    phases = tuple(
        Phase(kind, draw(st.integers(0, 400)), end, draw(anything), None, draw(st.sampled_from(["", "finished"])))
        for kind, end in zip(kinds, ends, strict=False)
    )
    names = ["started", "resumed", "extended", "evaluated", "skipped", "rolled_back", "save_failed", "finished"]
    names += ["out_of_memory", "extended_in"]
    events = draw(
        st.lists(
            st.fixed_dictionaries(
                {"event": st.sampled_from(names)},
                optional={
                    "step": st.one_of(st.integers(0, 400), st.none()),
                    "val_bpb": anything,
                    "why": st.text(max_size=4),
                    "device_batch": st.one_of(st.integers(-1, 64), st.text(max_size=3)),
                    "to": st.one_of(st.integers(0, 400), st.none()),
                },
            ),
            max_size=12,
        )
    )
    history = made(max(steps, 1), bpb={}, samples=tuple(draw(st.lists(st.tuples(st.text(), st.text()), max_size=3))))
    config = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "batch_tokens": st.sampled_from([0, 1, 4096, 10**15]),
                "steps": st.sampled_from([0, 1, 500]),
                "warmdown_share": anything,
                "warmup_steps": st.sampled_from([0, 40, math.inf]),
                "final_lr": anything,
            },
        )
    )
    return replace(
        history,
        config=dict(history.config) | {"config": config},
        step=np.arange(1, steps + 1),
        columns=columns,
        phases=phases if draw(st.booleans()) else (replace(phases[0], circumstances=draw(shapes)),),
        events=tuple(events),
        result=draw(st.sampled_from([None, {}])),
        is_running=draw(st.booleans()),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_history())
def test_no_record_makes_a_rule_stumble_or_speak_without_a_number(history: History) -> None:
    for finding in assess(history):
        words = " ".join([finding.sentence, finding.advice])
        assert not re.search(r"\b(nan|inf)\b", words, re.IGNORECASE), finding
        assert re.search(r"\d", finding.sentence), finding
    assert len(RULES) == 25
