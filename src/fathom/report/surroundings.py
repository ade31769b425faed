"""What stands beside a run's record: its corpus, earlier attempts, the size of its checkpoints, the recipe meant."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.errors import FathomError
from fathom.home import corpus_dir, names, run_dir
from fathom.record import read_config, read_lines
from fathom.report.history import History

MOST_ATTEMPTS = 12
MOST_BYTES, TAIL_BYTES = 64_000_000, 1_000_000
_BROKEN = re.compile(rb'"loss": ?(NaN|-?Infinity|null)')


@dataclass(frozen=True)
class Attempt:
    """An earlier run of the same name or beginning of it."""

    name: str
    stage: str
    created: str
    depth: int | None
    steps_done: int
    steps_planned: int | None
    val_bpb: float | None
    """Of its last validation."""
    broke_at: int | None
    """The first step whose loss is no number (in a very large record, of its end)."""
    finished: bool


@dataclass(frozen=True)
class CorpusFacts:
    """What corpus.json says of the text that a run read."""

    documents: int
    text_bytes: int
    """Of the training split, as text."""
    files: int
    disk_bytes: int
    source: str


def earlier_attempts(history: History, known: tuple[str, ...] = ()) -> list[Attempt]:
    """Runs of before this one whose names begin as its does, without those of `known`; the oldest first."""
    stem, began = _stem(history.name), _created(history.config)
    base = _table(history.config, "run").get("base")
    found = []
    for name in names("runs"):
        if name in (history.name, base) or name in known or _stem(name) != stem:
            continue
        attempt = _attempt(name)
        if attempt is not None and (not began or not attempt.created or attempt.created <= began):
            found.append(attempt)
    return sorted(found, key=lambda attempt: attempt.created)[-MOST_ATTEMPTS:]


def _stem(name: str) -> str:
    """The first word of a name, without a number at its end where enough is left: "mine-2", "mine3" -> "mine"."""
    word = re.split(r"[-_.]", name.lower())[0]
    bare = word.rstrip("0123456789")
    return bare if len(bare) >= 3 else word


def _created(config: Mapping[str, Any]) -> str:
    table = config.get("run", {})
    return str(table.get("created", "")) if isinstance(table, Mapping) else ""


def _attempt(name: str) -> Attempt | None:
    """A glance at a run that does not read all of its metrics as JSON."""
    try:
        config = read_config(name)
        events = read_lines(run_dir(name) / "events.jsonl")
        lines = _raw(run_dir(name) / "metrics.jsonl")
    except (FathomError, OSError):
        return None
    run, about, model = (_table(config, key) for key in ("run", "config", "model"))
    measured = [line["val_bpb"] for line in events if isinstance(line.get("val_bpb"), (int, float))]
    broken = _BROKEN.search(lines)
    steps = about.get("steps")
    return Attempt(
        name=name,
        stage=str(run.get("stage", "pretrain")),
        created=_created(config),
        depth=_whole(about.get("depth")) or _whole(model.get("n_layer")),
        steps_done=_step_of(lines[lines.rstrip().rfind(b"\n") + 1 :]) or 0,
        steps_planned=_whole(steps),
        val_bpb=float(measured[-1]) if measured else None,
        broke_at=_step_of(lines[lines.rfind(b"\n", 0, broken.start()) + 1 : broken.end() + 400]) if broken else None,
        finished=any(line.get("event") == "finished" for line in events),
    )


def _raw(path: Path) -> bytes:
    """The file, of a very large one the end alone."""
    if not path.exists():
        return b""
    with open(path, "rb") as file:
        if path.stat().st_size > MOST_BYTES:
            file.seek(-TAIL_BYTES, os.SEEK_END)
            file.readline()
        return file.read()


def _step_of(text: bytes) -> int | None:
    """Steps done after the logged line that `text` begins with."""
    found = re.match(rb'\{[^\n}]*?"step": ?(\d{1,15})\b', text)
    return int(found[1]) + 1 if found else None


def _table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key, {})
    return value if isinstance(value, Mapping) else {}


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None


def corpus_facts(history: History) -> CorpusFacts | None:
    """Of the corpus that the run names, if it is still the one that it read."""
    name, digest = _table(history.config, "config").get("corpus"), _table(history.config, "run").get("corpus_digest")
    try:
        folder = corpus_dir(str(name))
        value = json.loads((folder / "corpus.json").read_bytes())
        split = value["splits"]["train"]
        if not isinstance(name, str) or value["digest"] != digest:
            return None
        sizes = [path.stat().st_size for path in folder.glob("*.parquet")]
        source = ", ".join(map(str, value.get("source", [])))
        return CorpusFacts(int(split["documents"]), int(split["bytes"]), len(split["files"]), sum(sizes), source)
    except (FathomError, OSError, ValueError, KeyError, TypeError):
        return None


def checkpoint_bytes(history: History) -> int | None:
    """Bytes on disk of the newest whole checkpoint."""
    if not history.checkpoints:
        return None
    step = history.checkpoints[-1][0]
    folders = [
        path for path in history.folder.glob("checkpoints/*") if path.name.isdecimal() and int(path.name) == step
    ]
    return sum(path.stat().st_size for folder in folders for path in folder.rglob("*") if path.is_file())


def recipe_named(history: History) -> str | None:
    """The recipe file that run.toml names, if it names one."""
    for table in ("run", "config", "origin"):
        value = _table(history.config, table).get("recipe")
        if isinstance(value, str) and value.endswith(".toml"):
            return value
    return None
