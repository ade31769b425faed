"""An evaluation bundle of three tasks and a few dozen items, one task of each kind."""

from __future__ import annotations

import csv
import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

from tests.oracles.tiny_runs import WORDS

TASKS = {
    "choosing": ("multiple_choice", 3, "\nAnswer: ", 25.0),
    "twins": ("schema", 0, " ", 50.0),
    "going_on": ("language_modeling", 10, " ", 0.0),
}


def _words(dice: random.Random, most: int) -> str:
    return " ".join(dice.choices(WORDS, k=dice.randint(1, most)))


def item(kind: str, dice: random.Random) -> dict[str, Any]:
    if kind == "multiple_choice":
        choices = [_words(dice, 6) for _ in range(4)]
        return {"query": f"Question: {_words(dice, 20)}?", "choices": choices, "gold": dice.randrange(4)}
    if kind == "schema":
        contexts = [f"{_words(dice, 9)} {word}" for word in dice.sample(WORDS, 2)]
        return {"context_options": contexts, "continuation": f"{_words(dice, 5)}.", "gold": dice.randrange(2)}
    return {"context": f" {_words(dice, 30)} \n", "continuation": _words(dice, 2)}


def contents(n_items: int = 24) -> dict[str, bytes]:
    """Every file of the bundle."""
    dice, entries, table, files = random.Random(7), [], io.StringIO(), {}
    writer = csv.writer(table)
    writer.writerow(["Eval Task", "Task Category", "Random baseline", "Description"])
    for label, (kind, shots, delimiter, baseline) in TASKS.items():
        entries.append(
            f"- label: {label}\n  dataset_uri: some/{label}.jsonl\n  num_fewshot:\n  - {shots}\n"
            f"  icl_task_type: {kind}\n  continuation_delimiter: {json.dumps(delimiter)}\n"
        )
        writer.writerow([label, "any", baseline, "words,\nand more words"])
        lines = [json.dumps(item(kind, dice)) for _ in range(n_items)]
        files[f"eval_data/some/{label}.jsonl"] = ("\n".join(lines) + "\n").encode()
    tasks = "icl_tasks:\n" + "".join(entries)
    return {"core.yaml": tasks.encode(), "eval_meta_data.csv": table.getvalue().encode(), **files}


def as_zip(files: dict[str, bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(f"eval_bundle/{name}", data)
    return content.getvalue()


def write_folder(place: Path, files: dict[str, bytes]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_zip(files))
    return path
