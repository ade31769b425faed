"""Run folders as training leaves them, with the curves that a test wants, and no training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import numpy as np

from fathom.home import run_dir
from fathom.record import Record
from fathom.report.history import History, history_of

SHAPE = {
    "n_layer": 4,
    "n_head": 4,
    "n_kv_head": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "seq_len": 256,
    "window_pattern": "L",
}
CONFIG = {
    "corpus": "books",
    "tokenizer": "books",
    "data_digest": "d" * 64,
    "dtype": "fp32",
    "depth": 4,
    "tokens": 40_895_616,
    "batch_tokens": 4096,
    "steps": 400,
    "rules": "auto",
    "packing": "lossless",
    "lr_scale": 0.7071067811865476,
    "width_scale": 1.7320508075688774,
    "weight_decay": 0.6225146698710701,
    "warmup_steps": 20,
    "warmdown_share": 0.65,
    "final_lr": 0.05,
    "seed": 1,
    "matrix_lr": 0.02,
    "embedding_lr": 0.3,
    "head_lr": 0.008,
    "scalar_lr": 0.5,
}
ORIGIN = {"depth": "flag", "head_dim": "flag", "seq_len": "flag", "window": "flag", "batch_tokens": "flag"}
ORIGIN |= {"steps": "flag", "seed": "flag", "lr_scale": "rule: √batch, × 8 for a short run", "rules": "default"}


def falling(steps: int, final: float, points: int = 8, start: float = 2.0) -> list[tuple[int, float]]:
    """(step, bpb) evenly spaced, falling from near `start` to exactly `final`."""
    return [
        (round(steps * i / points), final + (start - final) * (math.exp(-4 * i / points) - math.exp(-4)))
        for i in range(1, points + 1)
    ]


def write_run(
    name: str,
    bpb: Sequence[tuple[int, float]],
    *,
    step_s: float = 0.5,
    finished: bool = True,
    validation: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    training: dict[str, Any] | None = None,
    origin: dict[str, Any] | None = None,
    lost_steps: Sequence[int] = (),
    weights: str | None = None,
    **config: Any,
) -> History:
    """A pretraining run of `bpb[-1][0]` steps; further keywords go into its table [config]."""
    steps = config.get("steps", bpb[-1][0])
    record = Record(run_dir(name))
    head = {"name": name, "fathom": "0.1.0", "torch": "2.13.0", "created": "2026-11-23 21:43:46", "stage": "pretrain"}
    digests = {"corpus_digest": "c" * 64, "tokenizer_digest": "e" * 64}
    tables = {
        "run": head | digests | (run or {}),
        "model": SHAPE | (model or {}),
        "config": CONFIG | {"steps": steps} | config,
        "origin": ORIGIN | (origin or {}),
    }
    record.config(tables)
    record.event("started")
    facts = {"device": "cpu", "device_name": "a processor", "dtype": "fp32", "device_batch": 16, "compile_from": None}
    record.event("training", step=0, **(facts | (training or {})))
    batch = tables["config"]["batch_tokens"]
    last = bpb[-1][0]
    for step in np.linspace(0, last - 1, min(last, 50)).astype(int) if last > 400 else range(last):
        if step not in lost_steps:
            loss = round(8 - 5 * step / last, 4)
            record.metric(step=int(step), loss=loss, loss_smooth=loss, lr=1.0, train_s=(int(step) + 1) * step_s)
    tags = {"rows": 150, "rows_of": "lossless", "data_digest": tables["config"]["data_digest"]} | (validation or {})
    for step, value in bpb:
        found = {"step": step, "train_s": step * step_s, "val_bpb": value}
        record.evaluation(f"bpb-{step:06d}", found | tags)
        record.event("evaluated", **found)
    if finished:
        result = {"run": name, "steps": steps, "tokens": steps * batch, "seconds": last * step_s}
        result |= {
            "tokens_per_s": batch / step_s,
            "val_bpb": bpb[-1][1],
            "weights_sha256": weights or sha256(name.encode()).hexdigest(),
        }
        record.event("finished", result=result)
    return history_of(name)
