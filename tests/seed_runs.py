"""The users' own runs, rebuilt as run folders from the tables of their training summaries (an RTX 4070, depth 12).

What the summaries do not tell (each step's loss, the hour of a checkpoint) is filled in between what they do, with
noise of a fixed seed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from fathom.optim.schedule import Schedule
from fathom.record import to_toml

BATCH = 65_536
STEP_S = 1.177
NATS_PER_BPB = 2.98 / 0.935
D12 = {
    "n_layer": 12,
    "n_head": 6,
    "n_kv_head": 6,
    "head_dim": 128,
    "vocab_size": 32_768,
    "seq_len": 2048,
    "window_pattern": "L",
}
RTX_4070 = {
    "device": "cuda",
    "device_name": "NVIDIA GeForce RTX 4070",
    "dtype": "bf16",
    "device_memory_gb": 12_288 * 2**20 / 1e9,
    "device_batch": 8,
    "grad_accum": 4,
    "compile_from": 30,
    "torch": "2.9.1",
}
PEAK_GB = 9_448 * 2**20 / 1e9
PROGRESSION = (
    *((0, 3.221), (500, 1.280), (1000, 1.167), (1500, 1.124), (2000, 1.100), (2500, 1.082), (3000, 1.070)),
    *((3500, 1.060), (4000, 1.044), (4500, 1.031), (5000, 1.018), (5500, 1.006), (6000, 0.995), (6500, 0.985)),
    *((7000, 0.976), (7500, 0.967), (8000, 0.959), (8500, 0.951), (9000, 0.945), (9500, 0.939), (10_000, 0.935)),
)
FIRST_LOSSES = ((0, 10.40), (10, 10.16), (20, 8.71), (30, 7.43), (40, 6.80), (49, 6.51))
SAMPLES = (
    ("The capital of France is", " in the south of the country, and the south of the country is the"),
    ("The chemical symbol of gold is", " the gold atom. The gold atom is the gold atom. The gold atom is"),
    ("If yesterday was Friday, then tomorrow will be", " the day of the week on which the Friday was to be held"),
    ("The opposite of hot is", " cold. The opposite of cold is cold. The opposite of cold is cold."),
    ("The planets of the solar system are:", " Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus, and Neptune"),
    ("My favorite color is", " blue, and I like to wear it in the summer and in the fall"),
    ("If 5*x + 3 = 13, then x is", " the number of times that x is divided into the number 5"),
)
FIRST, CHINCHILLA, LONG, LONGER, BROKEN = (
    "fineweb-edu-d12",
    "rtx4070-d12-chinchilla",
    "rtx4070-d12-130k",
    "rtx4070-d12-200k",
    "fineweb-edu-sft-d8",
)


def at(text: str) -> float:
    """Unix seconds of "2026-06-04 03:29" UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def write_run(
    home: Path,
    name: str,
    *,
    run: Mapping[str, Any],
    model: Mapping[str, Any],
    config: Mapping[str, Any],
    origin: Mapping[str, str] | None = None,
    events: Iterable[Mapping[str, Any]] = (),
    metrics: Iterable[Mapping[str, Any]] = (),
    samples: Sequence[Mapping[str, Any]] = (),
    evals: Mapping[str, Mapping[str, Any]] | None = None,
    checkpoints: Sequence[int] = (),
) -> Path:
    """A run folder as training leaves it, but with empty checkpoints."""
    folder = home / "runs" / name
    folder.mkdir(parents=True)
    tables = {"run": {"name": name, "fathom": "0.1.0", "torch": "2.9.1"} | dict(run), "model": model, "config": config}
    (folder / "run.toml").write_text(to_toml(tables | {"origin": origin or {}}))
    for file, lines in (("events", events), ("metrics", metrics), ("samples", samples)):
        (folder / f"{file}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for key, value in (evals or {}).items():
        (folder / "evals").mkdir(exist_ok=True)
        (folder / "evals" / f"{key}.json").write_text(json.dumps(value))
    for step in checkpoints:
        (folder / "checkpoints" / f"{step:06d}").mkdir(parents=True)
        (folder / "checkpoints" / f"{step:06d}" / "COMPLETE").touch()
    return folder


def d12_config(steps: int, depth: int = 12) -> dict[str, Any]:
    """[config] of their runs at 65,536 tokens a step."""
    return {
        "corpus": "fineweb-edu",
        "tokenizer": "climb-32768",
        "data_digest": "5eed" * 16,
        "dtype": "bf16",
        "depth": depth,
        "tokens": steps * BATCH,
        "batch_tokens": BATCH,
        "steps": steps,
        "rules": "reference",
        "packing": "best-fit",
        "lr_scale": 0.353553,
        "width_scale": 1.0,
        "weight_decay": 0.0989949,
        "warmup_steps": 40,
        "warmdown_share": 0.65,
        "final_lr": 0.05,
        "seed": 42,
        "matrix_lr": 0.02,
        "embedding_lr": 0.3,
        "head_lr": 0.008,
        "scalar_lr": 0.5,
    }


D12_ORIGIN = {
    "depth": "flag",
    "window": "flag",
    "batch_tokens": "flag",
    "steps": "flag",
    "lr_scale": "rule: √batch",
    "weight_decay": "rule: √batch / horizon",
    "warmdown_share": "rule",
}


def metric_lines(
    steps: Iterable[int], losses: np.ndarray, schedule: Schedule, began: float, first: int = 0, seed: int = 1
) -> list[dict[str, Any]]:
    """Lines for these 0-based steps; times count on from step `first`, begun at `began`."""
    noise = np.random.default_rng(seed)
    lines = []
    for step, loss in zip(steps, losses.tolist(), strict=True):
        seconds = (step + 1 - first) * STEP_S
        lines.append(
            {
                "step": step,
                "loss": round(loss + noise.normal(0, 0.012), 6),
                "loss_smooth": round(loss, 6),
                "lr": round(schedule.lr(step), 6),
                "step_s": round(STEP_S * (1 + 0.002 * noise.normal()), 5),
                "train_s": round((step + 1) * STEP_S, 3),
                "mfu": 0.0,
                "epoch": round(step * BATCH / 142.6e9, 6),
                "loader_wait_s": round(0.0005 * (step + 1), 4),
                "memory_gb": round(PEAK_GB, 3),
                "time": began + seconds,
            }
        )
    return lines


def evaluated(step: int, bpb: float, began: float, first: int = 0) -> dict[str, Any]:
    seconds = (step - first) * STEP_S
    return {
        "event": "evaluated",
        "time": began + seconds,
        "step": step,
        "train_s": round(step * STEP_S, 3),
        "val_bpb": bpb,
    }


def first_run(home: Path) -> Path:
    """10,000 steps, 5.95 tokens per parameter in blocks and head; and its recipe, which it did not follow."""
    began, schedule = at("2026-06-04 00:05"), Schedule(10_000)
    steps = [*range(50), *range(50, 10_000, 10), 9_999]
    known = [*FIRST_LOSSES, *((step, bpb * NATS_PER_BPB) for step, bpb in PROGRESSION[1:])]
    losses = np.interp(steps, [step for step, _ in known], [loss for _, loss in known])
    events: list[dict[str, Any]] = [
        {"event": "started", "time": began},
        {"event": "training", "time": began, "step": 0} | RTX_4070,
        *(evaluated(step, bpb, began) for step, bpb in PROGRESSION),
        {"event": "saved", "time": began + 10_000 * STEP_S, "step": 10_000},
    ]
    events.append({"event": "finished", "time": began + 10_000 * STEP_S, "result": {"val_bpb": 0.935}})
    return write_run(
        home,
        FIRST,
        run={"stage": "pretrain", "created": "2026-06-04 00:05:00"},
        model=D12,
        config=d12_config(10_000),
        origin=D12_ORIGIN,
        events=events,
        metrics=metric_lines(steps, losses, schedule, began),
        samples=[{"step": 10_000, "prompt": prompt, "text": text} for prompt, text in SAMPLES],
        checkpoints=[10_000],
    )


def recipe(folder: Path) -> Path:
    """What their script for this GPU says."""
    path = folder / "rtx4070.toml"
    path.write_text("depth = 8\nbatch-tokens = 32768\nseq-len = 1024\nsteps = 5000\n")
    return path


def broken_fine_tuning(home: Path) -> Path:
    """The attempt before: a fine-tuning at depth 8 whose loss was no number from step 124 on, then evaluated."""
    began, schedule = at("2026-06-03 20:00"), Schedule(500, warmup_steps=0, warmdown_share=0.5, final_lr=0.0)
    lines = metric_lines(range(160), np.linspace(2.9, 1.8, 160), schedule, began)
    for line in lines[123:]:
        line["loss"] = line["loss_smooth"] = float("nan")
    tasks = {"ARC-Easy": 0.25, "ARC-Challenge": 0.25, "MMLU": 0.25, "GSM8K": 0.0, "HumanEval": 0.0}
    return write_run(
        home,
        BROKEN,
        run={"stage": "sft", "base": "d8", "created": "2026-06-03 20:00:00"},
        model=D12 | {"n_layer": 8, "n_head": 4, "n_kv_head": 4, "seq_len": 1024},
        config={"tokenizer": "climb-32768", "batch_tokens": 32_768, "steps": 500, "lr_scale": 0.8, "dtype": "bf16"},
        events=[{"event": "started", "time": began}, {"event": "training", "time": began, "step": 0} | RTX_4070],
        metrics=lines,
        evals={"chat-000160": {"step": 160, "tasks": {name: {"accuracy": score} for name, score in tasks.items()}}},
    )


def extended_run(home: Path) -> Path:
    """The finished first run, extended to 87,000 steps: its rates rose again; at step 35,729 when it was looked at."""
    began, schedule, first = at("2026-06-04 03:29"), Schedule(87_000), 10_000
    steps = [*range(first, 35_729, 50), 35_728]
    losses = np.interp(steps, [first, 11_000, 20_000, 35_729], [2.98, 3.16, 3.18, 3.18])
    events: list[dict[str, Any]] = [
        {"event": "started", "time": began},
        {"event": "extended", "time": began, "from": FIRST, "step": first},
        {"event": "training", "time": began, "step": first} | RTX_4070,
    ]
    for step, bpb in ((20_000, 1.016), (30_000, 1.002)):
        events.append({"event": "saved", "time": began + (step - first) * STEP_S, "step": step})
        events.append(evaluated(step, bpb, began, first))
    return write_run(
        home,
        CHINCHILLA,
        run={"stage": "pretrain", "created": "2026-06-04 03:29:00"},
        model=D12,
        config=d12_config(87_000),
        origin=D12_ORIGIN,
        events=events,
        metrics=metric_lines(steps, losses, schedule, began, first),
        checkpoints=[20_000, 30_000],
    )


def long_run(home: Path) -> Path:
    """130,000 steps in two phases, finished at bpb 0.780026."""
    began, again, schedule = at("2026-06-05 08:48"), at("2026-06-06 13:17"), Schedule(130_000)
    saved = sorted([*range(10_000, 130_001, 10_000), 87_000])
    told = [(0, 10.4), (500, 4.1), (5000, 3.3), (87_000, 2.80), (92_642, 2.78), (106_874, 2.63), (130_000, 2.60)]
    events: list[dict[str, Any]] = [{"event": "started", "time": began}]
    events.append({"event": "training", "time": began, "step": 0} | RTX_4070)
    events += [{"event": "saved", "time": began + step * STEP_S, "step": step} for step in saved if step <= 87_000]
    events.append({"event": "stopped", "time": began + 87_000 * STEP_S, "step": 87_000, "why": "SIGTERM"})
    events.append({"event": "resumed", "time": again, "step": 87_000})
    events.append({"event": "training", "time": again, "step": 87_000} | RTX_4070)
    later = [step for step in saved if step > 87_000]
    events += [{"event": "saved", "time": again + (step - 87_000) * STEP_S, "step": step} for step in later]
    events.append(evaluated(130_000, 0.780026, again, 87_000))
    events.append({"event": "finished", "time": at("2026-06-07 03:21"), "result": {"val_bpb": 0.780026}})

    def lines(steps: Sequence[int], began: float, first: int) -> list[dict[str, Any]]:
        losses = np.interp(steps, [step for step, _ in told], [loss for _, loss in told])
        return metric_lines(steps, losses, schedule, began, first)

    return write_run(
        home,
        LONG,
        run={"stage": "pretrain", "created": "2026-06-05 08:48:00"},
        model=D12,
        config=d12_config(130_000),
        origin=D12_ORIGIN,
        events=events,
        metrics=lines(range(0, 87_000, 100), began, 0) + lines([*range(87_000, 130_000, 100), 129_999], again, 87_000),
        evals={"core-130000": {"step": 130_000, "core": 0.1916, "tasks": dict(CORE_TASKS)}},
        checkpoints=[130_000],
    )


CORE_TASKS = {
    "hellaswag (10-shot)": 0.43,
    "winograd (0-shot)": 0.62,
    "piqa (10-shot)": 0.67,
    "boolq (10-shot)": 0.585,
    "copa (0-shot)": 0.63,
}


def longer_run(home: Path) -> Path:
    """The long run, extended to 200,000 steps; the same weights measured 0.810152 at the start of it."""
    began, schedule, first = at("2026-06-07 18:08"), Schedule(200_000), 130_000
    steps = [*range(first, 131_000, 5), 130_999]
    events = [
        {"event": "started", "time": began},
        {"event": "extended", "time": began, "from": LONG, "step": first},
        {"event": "training", "time": began, "step": first} | RTX_4070,
        evaluated(first, 0.810152, began, first),
    ]
    return write_run(
        home,
        LONGER,
        run={"stage": "pretrain", "created": "2026-06-07 18:08:00"},
        model=D12,
        config=d12_config(200_000),
        origin=D12_ORIGIN,
        events=events,
        metrics=metric_lines(steps, np.linspace(2.60, 2.59, len(steps)), schedule, began, first),
        evals={"core-130000": {"step": 130_000, "core": 0.1932}},
    )
