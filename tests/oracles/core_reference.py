"""CORE the slow, obvious way, straight from REFERENCE 6.1: one item at a time, every logit of every prompt."""

from __future__ import annotations

import json
import math
import random
import zipfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.tokenizer import Tokenizer


def read_tasks(bundle: Path) -> list[dict[str, Any]]:
    """The entries of core.yaml."""
    with zipfile.ZipFile(bundle) as archive:
        tasks: list[dict[str, Any]] = yaml.safe_load(archive.read("eval_bundle/core.yaml"))["icl_tasks"]
    return tasks


def read_items(bundle: Path, task: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    """The shuffled items of a task, the first `limit` of them where that is more than 0."""
    with zipfile.ZipFile(bundle) as archive, archive.open(f"eval_bundle/eval_data/{task['dataset_uri']}") as file:
        items = [json.loads(line) for line in file]
    random.Random(1337).shuffle(items)
    return items[:limit] if limit > 0 else items


def prompts_and_rows(
    task: dict[str, Any], items: list[dict[str, Any]], index: int, tokenizer: Tokenizer
) -> tuple[list[str], list[list[int]], list[int], list[int]]:
    """Prompts, the rows to score, and where their spans begin and end."""
    item, kind = items[index], task["icl_task_type"]
    delimiter = task.get("continuation_delimiter", " ")
    others = [i for i in range(len(items)) if i != index]
    shots = min(task["num_fewshot"][0], len(others))
    examples = [items[i] for i in random.Random(1234 + index).sample(others, shots)]
    if kind == "multiple_choice":
        text = ""
        for example in examples:
            text += example["query"] + delimiter + example["choices"][example["gold"]] + "\n\n"
        prompts = [text + item["query"] + delimiter + choice for choice in item["choices"]]
    elif kind == "schema":
        text = ""
        for example in examples:
            text += example["context_options"][example["gold"]] + delimiter + example["continuation"] + "\n\n"
        prompts = [text + context + delimiter + item["continuation"] for context in item["context_options"]]
    else:
        text = ""
        for example in examples:
            text += example["context"].strip() + delimiter + example["continuation"] + "\n\n"
        text += item["context"].strip() + delimiter
        prompts = [text.strip(), text + item["continuation"]]
    rows = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    if kind == "multiple_choice":
        start = 0
        while all(start < len(row) and row[start] == rows[0][start] for row in rows):
            start += 1
        starts = [start] * len(rows)
    elif kind == "schema":
        alike = 0
        while all(alike < len(row) and row[-1 - alike] == rows[0][-1 - alike] for row in rows):
            alike += 1
        starts = [len(row) - alike for row in rows]
    else:
        without, whole = rows
        assert len(without) < len(whole) and whole[: len(without)] == without
        rows, starts = [whole], [len(without)]
    return prompts, rows, starts, [len(row) for row in rows]


@torch.inference_mode()
def evaluate_item(
    model: GPT, tokenizer: Tokenizer, task: dict[str, Any], items: list[dict[str, Any]], index: int
) -> dict[str, Any]:
    """The item as `fathom eval --dump` writes it."""
    prompts, rows, starts, ends = prompts_and_rows(task, items, index, tokenizer)
    longest = max(ends)
    padded = torch.tensor([row + [tokenizer.bos_id] * (longest - len(row)) for row in rows], device=model.device)
    logits = model.logits(model(padded, DenseContext(longest, model.device)))  # (rows, T, V)
    targets = padded.roll(-1, dims=1)
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(padded.shape)
    likeliest = logits.argmax(dim=-1)
    spans = [losses[i, start - 1 : end - 1] for i, (start, end) in enumerate(zip(starts, ends, strict=True))]
    if task["icl_task_type"] == "language_modeling":
        predicted: Any = likeliest[0, starts[0] - 1 : ends[0] - 1].tolist()
        correct = predicted == rows[0][starts[0] : ends[0]]
    else:
        means = [span.mean().item() for span in spans]
        predicted = means.index(min(means))
        correct = predicted == items[index]["gold"]
    return {
        "task": task["label"],
        "index": index,
        "prompts": prompts,
        "tokens": rows,
        "start": starts,
        "end": ends,
        "losses": [span.tolist() for span in spans],
        "predicted": predicted,
        "correct": correct,
    }


def core(accuracies: dict[str, float], baselines: dict[str, float]) -> float:
    """The mean of the centred accuracies; baselines are per cent."""
    centred = [
        (accuracy - 0.01 * baselines[label]) / (1 - 0.01 * baselines[label]) for label, accuracy in accuracies.items()
    ]
    return math.fsum(centred) / len(centred)
