"""Precisions and attention kernels of this machine: whether they agree with float32, and what each takes.

    python bench/precision.py [--depth 12 --seq-len 2048 --rows 8 --steps 20]

Every precision trains the same network from the same weights on the same made-up rows: the median time of a step, and
the loss at the end beside float32's. Every kind of attention is run forwards and backwards on the same numbers, and
compared with a float32 computation that writes out every score (on at most 512 positions of one row). fp8 and the GPU's
kernels are tried where they run; what does not run is said with the reason. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]

BOS = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (
        ("depth", 4),
        ("head-dim", 64),
        ("seq-len", 512),
        ("rows", 4),
        ("steps", 10),
        ("vocab", 8192),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    from fathom import hardware
    from fathom.model.shape import Shape
    from fathom.scaling import n_head

    heads = n_head(options.depth, options.head_dim)
    shape = Shape(options.depth, heads, heads, options.head_dim, options.vocab, options.seq_len)
    device = hardware.device_type().value
    found = {
        "device": hardware.device_name(device),
        "precisions": {name: tried(lambda name=name: precision(name, shape, options, device)) for name in PRECISIONS},
        "attention": {name: tried(lambda name=name: attention(name, shape, options.rows, device)) for name in KERNELS},
    }
    print(json.dumps(found, indent=1))


def tried(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return work()
    except Exception as error:  # what a machine lacks it says in many ways
        return {"does not run": (str(error).splitlines() or [type(error).__name__])[0][:200]}


PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "bf16, fp8": "bfloat16", "fp16": "float16"}


def precision(name: str, shape: Any, options: argparse.Namespace, device: str) -> dict[str, Any]:
    import numpy as np
    import torch

    from fathom import hardware
    from fathom.model.gpt import GPT
    from fathom.optim.optimizer import Optimizer
    from fathom.optim.rates import Rates, adam_groups
    from fathom.optim.schedule import Schedule
    from fathom.train.health import Health
    from fathom.train.scaler import LossScaler
    from fathom.train.step import Stepper

    dtype = getattr(torch, PRECISIONS[name])
    model = GPT(shape, dtype)
    model.init_weights(torch.Generator().manual_seed(1))
    model.to(device)
    if "fp8" in name:
        hardware.refuse_fp8_where_there_is_none(device, "bf16")  # a CPU computes it too, a thousand times slower
        model.train_in_fp8()
    optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 0.3, 1.0), 0.006, dtype)
    scaler = LossScaler(enabled=dtype == torch.float16)
    stepper = Stepper(model, optimizer, Schedule(options.steps, warmup_steps=2), scaler, Health(), options.rows)
    dice = np.random.default_rng(1)
    tokens = dice.integers(0, shape.vocab_size // 64, (options.rows, shape.seq_len + 1))
    losses, times = [], []
    for step in range(options.steps):
        began = time.perf_counter()
        losses.append(stepper.take(step, tokens[:, :-1].copy(), tokens[:, 1:].copy()).loss)
        hardware.synchronize(device)
        times.append(time.perf_counter() - began)
    step_s = statistics.median(times[2:])
    return {
        "step_s": round(step_s, 5),
        "tokens_per_s": round(options.rows * shape.seq_len / step_s),
        "first_loss": round(losses[0], 4),
        "last_loss": round(losses[-1], 4),
    }


KERNELS = ("whole rows", "window", "documents", "window, documents")


def attention(name: str, shape: Any, rows: int, device: str) -> dict[str, Any]:
    import torch

    from fathom import hardware
    from fathom.model.attention import DenseContext, kernel_for
    from fathom.model.documents import DocumentContext
    from tests.oracles import attention as oracle

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    window = shape.short_window if "window" in name else shape.seq_len

    def run(n_row: int, seq_len: int) -> tuple[list[Any], float]:
        generator = torch.Generator().manual_seed(1)
        size = (n_row, seq_len, shape.n_head, shape.head_dim)
        q, k, v, upstream = (torch.randn(size, generator=generator).to(device, dtype) for _ in range(4))
        inputs = [x.requires_grad_() for x in (q, k, v)]
        ids = torch.arange(n_row * seq_len, device=device).view(n_row, seq_len) % 173
        times, found = [], []
        for _ in range(4):
            context = DocumentContext(ids, BOS) if "documents" in name else DenseContext(seq_len, device)
            hardware.synchronize(device)
            began = time.perf_counter()
            y = context.attend(0, *inputs, window)
            found = [y, *torch.autograd.grad(y, inputs, upstream)]
            hardware.synchronize(device)
            times.append(time.perf_counter() - began)
        document = (ids == BOS).cumsum(1).cpu() if "documents" in name else None
        exact = [x.detach().float().cpu().requires_grad_() for x in inputs]
        if seq_len <= 512 and n_row == 1:
            slow = oracle.attend(*exact, window, document)
            truth = [slow, *torch.autograd.grad(slow, exact, upstream.float().cpu())]
            found = [float((a.float().cpu() - b).norm() / b.norm()) for a, b in zip(found, truth, strict=True)]
        return found, min(times[1:])

    errors, _ = run(1, min(shape.seq_len, 512))
    _, seconds = run(rows, shape.seq_len)
    kernel = "flex or blocks" if "documents" in name else kernel_for(device, window, shape.seq_len)
    return {"kernel": kernel, "s": round(seconds, 6), "largest_relative_error": float(f"{max(errors):.2g}")}


if __name__ == "__main__":
    main()
