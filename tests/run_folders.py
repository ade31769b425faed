"""Run folders for tests of what reads them, written as training writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom.record import to_toml

BEGAN = 1_795_470_000.0
BATCH = 4096
SHAPE = {
    "n_layer": 4,
    "n_head": 4,
    "n_kv_head": 4,
    "head_dim": 64,
    "vocab_size": 1024,
    "seq_len": 256,
    "window_pattern": "L",
}


def write_run(
    home: Path, name: str, steps: int, *, planned: int | None = None, run: Mapping[str, str] | None = None
) -> Path:
    """A run that has done so many steps; `run` outranks what its table of that name holds."""
    folder = home / "runs" / name
    (folder / "evals").mkdir(parents=True)
    (folder / ".lock").touch()
    tables = {
        "run": {"name": name, "stage": "pretrain"} | dict(run or {}),
        "model": SHAPE,
        "config": {"batch_tokens": BATCH, "steps": planned or steps},
    }
    (folder / "run.toml").write_text(to_toml(tables))
    append(folder, "events.jsonl", {"event": "started", "time": BEGAN})
    append(folder, "metrics.jsonl", *(metric(step) for step in range(steps)))
    return folder


def metric(step: int, **others: Any) -> dict[str, Any]:
    loss = 2 + 5 / math.sqrt(step + 1)
    return {
        "step": step,
        "loss": round(loss, 6),
        "loss_smooth": round(loss, 6),
        "lr": 1.0,
        "step_s": 0.5,
        "train_s": (step + 1) * 0.5,
        "mfu": 0.45,
        "memory_gb": 9.2,
        "time": BEGAN + step * 0.5,
    } | others


def append(folder: Path, name: str, *lines: dict[str, Any]) -> None:
    with open(folder / name, "a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
