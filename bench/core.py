"""CORE, ours beside the reference's procedure one item at a time, on the same sample of all 22 tasks.

    python bench/core.py --bundle ZIP [--run NAME | --context 512 --windows SSSL] [--items 10] [--repeats 3]

Of each task `--items` of the first 100 items are scored by both, in turn, `--repeats` times: by `score_task` as
`fathom eval` does, and by the slow oracle of the tests. The network is that of a trained run, or one of depth 4 with
random weights, head_dim 64 and a vocabulary of 8,192 made of the bundle's own words. Prints one JSON object: seconds
and ratio by task (medians), examples/s and ratio in all, and how many answers are the same. Reading the files is not
counted; tokenizing is. Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT)]

import torch  # noqa: E402

from fathom import tokenizer as tokenizers  # noqa: E402
from fathom.evaluate.core import Bundle, Task, open_bundle, score_task  # noqa: E402
from fathom.evaluate.scorer import ModelScorer  # noqa: E402
from fathom.hardware import choose_dtype, device_type, torch_dtype  # noqa: E402
from fathom.model.gpt import GPT  # noqa: E402
from fathom.tokenizer import Tokenizer  # noqa: E402
from fathom.train.checkpoint import load_model  # noqa: E402
from tests.oracles import core_reference  # noqa: E402
from tests.oracles.generation import random_model  # noqa: E402

LIMIT = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--run")
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--windows", default="SSSL")
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--items", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    model, tokenizer = trained(options) if options.run else made(options, bundle)
    entries = {entry["label"]: entry for entry in core_reference.read_tasks(options.bundle)}
    tasks = {}
    for task in bundle.tasks:
        tasks[task.label] = compare(model, tokenizer, task, entries[task.label], options)
        print(task.label, tasks[task.label], file=sys.stderr, flush=True)
    print(json.dumps(summary(model, tasks, options), indent=1))


def trained(options: argparse.Namespace) -> tuple[GPT, Tokenizer]:
    model, tokenizer, _ = load_model(options.run, dtype=options.dtype)
    return model, tokenizer


def made(options: argparse.Namespace, bundle: Bundle) -> tuple[GPT, Tokenizer]:
    words = (str(value) for task in bundle.tasks for item in task.items()[:500] for value in item.values())
    tokenizer = tokenizers.train(words, 8192)
    device = device_type().value
    dtype = torch_dtype(choose_dtype(options.dtype, device).value)
    sizes = {"n_layer": 4, "n_head": 4, "n_kv_head": 4, "head_dim": 64, "vocab_size": tokenizer.vocab_size}
    model = random_model(dtype, **sizes, seq_len=options.context, window_pattern=options.windows)
    return model.to(device).to(dtype).eval(), tokenizer


def compare(
    model: GPT, tokenizer: Tokenizer, task: Task, entry: dict[str, Any], options: argparse.Namespace
) -> dict[str, float]:
    """Seconds of both on the same items, in turn."""
    rows = task.items()
    object.__setattr__(task, "items", lambda: rows)
    items = core_reference.read_items(options.bundle, entry, LIMIT)
    stride = max(1, len(items) // options.items)
    ours: list[float] = []
    slow: list[float] = []
    for _ in range(options.repeats):
        lines: list[dict[str, Any]] = []
        began = time.perf_counter()
        scorer = ModelScorer(model, tokenizer.bos_id)
        score_task(scorer, tokenizer, task, limit=LIMIT, share=(0, stride), dump=lines.append)
        ours.append(time.perf_counter() - began)
        began = time.perf_counter()
        found = [core_reference.evaluate_item(model, tokenizer, entry, items, i) for i in range(0, len(items), stride)]
        slow.append(time.perf_counter() - began)
    same = sum(one["predicted"] == other["predicted"] for one, other in zip(lines, found, strict=True))
    ratios = [theirs / mine for theirs, mine in zip(slow, ours, strict=True)]
    return {
        "items": len(lines),
        "tokens": sum(max(map(len, line["tokens"])) for line in lines),
        "same_answer": same,
        "ours_s": round(statistics.median(ours), 4),
        "oracle_s": round(statistics.median(slow), 4),
        "ratio": round(statistics.median(ratios), 2),
    }


def summary(model: GPT, tasks: dict[str, dict[str, float]], options: argparse.Namespace) -> dict[str, Any]:
    items, ours, slow = (sum(task[key] for task in tasks.values()) for key in ("items", "ours_s", "oracle_s"))
    return {
        "run": options.run,
        "depth": model.shape.n_layer,
        "context": model.shape.seq_len,
        "windows": model.shape.window_pattern,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "threads": torch.get_num_threads(),
        "items": items,
        "same_answer": sum(task["same_answer"] for task in tasks.values()),
        "ours_examples_per_s": round(items / ours, 2),
        "oracle_examples_per_s": round(items / slow, 2),
        "ratio": round(slow / ours, 2),
        "tasks": tasks,
    }


if __name__ == "__main__":
    main()
