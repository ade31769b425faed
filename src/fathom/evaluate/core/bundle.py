"""The files of CORE: which tasks there are, their items, and what guessing would score. REFERENCE 6.1

eval_bundle.zip, or the folder that it unpacks to:
    core.yaml            the tasks, in order
    eval_meta_data.csv   of each task, among much else, the accuracy of guessing
    eval_data/           the items of each, one JSON object a line
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from fathom.errors import FathomError

MULTIPLE_CHOICE, SCHEMA, LANGUAGE_MODELING = "multiple_choice", "schema", "language_modeling"
TASKS_FILE, BASELINES_FILE, DATA_FOLDER = "core.yaml", "eval_meta_data.csv", "eval_data"
_REMEDY = "fetch the bundle again, or give --bundle another copy"

# What an item of each kind holds: its fields, and which of them has a choice for each place that `gold` may name.
_FIELDS: dict[str, tuple[dict[str, type], str | None]] = {
    MULTIPLE_CHOICE: ({"query": str, "choices": list, "gold": int}, "choices"),
    SCHEMA: ({"context_options": list, "continuation": str, "gold": int}, "context_options"),
    LANGUAGE_MODELING: ({"context": str, "continuation": str}, None),
}
_KINDS = {str: "text", list: "a list of texts", int: "a whole number"}


@dataclass(frozen=True)
class Task:
    """One of the tasks. `baseline` is the accuracy of guessing, per cent."""

    label: str
    kind: str
    shots: int
    delimiter: str
    baseline: float
    uri: str
    files: Files = field(repr=False, compare=False)

    @property
    def path(self) -> str:
        """Its file of items, within the bundle."""
        return f"{DATA_FOLDER}/{self.uri}"

    @property
    def digest(self) -> str:
        """sha256 of its file of items, 64 hex digits."""
        return hashlib.sha256(self.files.read(self.path)).hexdigest()

    def items(self) -> list[dict[str, Any]]:
        """All items, in the order of the file. FathomError names the line that is broken or lacks a field."""
        found = []
        for number, line in enumerate(self.files.read(self.path).split(b"\n"), start=1):
            if line.strip():
                found.append(_item(line, self.kind, f"line {number} of {self.files.name_of(self.path)}"))
        if not found:
            raise FathomError(f"{self.files.name_of(self.path)} holds no item", _REMEDY)
        return found


@dataclass(frozen=True)
class Files:
    """A zip or a folder, read alike; `root` is what stands before every name in it."""

    place: Path
    root: str = ""

    def name_of(self, path: str) -> str:
        return f"{path} in {self.place}"

    def read(self, path: str) -> bytes:
        try:
            if self.place.is_dir():
                return (self.place / self.root / path).read_bytes()
            with zipfile.ZipFile(self.place) as archive:
                return archive.read(self.root + path)
        except (KeyError, FileNotFoundError):
            raise FathomError(f"the evaluation bundle {self.place} lacks {path}", _REMEDY) from None
        except (OSError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            raise FathomError(f"{self.name_of(path)} cannot be read ({why})", _REMEDY) from None


@dataclass(frozen=True)
class Bundle:
    """Every task of CORE, in the order of core.yaml."""

    place: Path
    tasks: tuple[Task, ...]

    @cached_property
    def baselines(self) -> dict[str, float]:
        """Accuracy of guessing, per cent, by label."""
        return {task.label: task.baseline for task in self.tasks}

    @cached_property
    def digest(self) -> str:
        """sha256 of every task and its items, 64 hex digits."""
        tasks = [[task.label, task.kind, task.shots, task.delimiter, task.baseline, task.digest] for task in self.tasks]
        return hashlib.sha256(json.dumps(tasks).encode()).hexdigest()

    def task(self, label: str) -> Task:
        """The task of that label. FathomError where there is none."""
        for task in self.tasks:
            if task.label == label:
                return task
        raise FathomError(f"CORE has no task {label!r}", f"its tasks are {', '.join(self.baselines)}")


def read_bundle(place: Path) -> Bundle:
    """The bundle in a zip or folder, its tables read and no item yet. FathomError says what is missing or broken."""
    files = _files(place)
    baselines = _baselines(files)
    return Bundle(place, tuple(_task(entry, number, baselines, files) for number, entry in enumerate(_entries(files))))


def _files(place: Path) -> Files:
    """Where in `place` the bundle begins: at its top, or in the one folder that holds it."""
    if not place.exists():
        raise FathomError(f"there is no evaluation bundle at {place}", "give --bundle the zip or the unpacked folder")
    try:
        if place.is_dir():
            there = [found.relative_to(place).as_posix() for found in (place, *place.iterdir())]
            names = [TASKS_FILE if part == "." else f"{part}/{TASKS_FILE}" for part in there]
            names = [name for name in names if (place / name).is_file()]
        else:
            with zipfile.ZipFile(place) as archive:
                names = [name for name in archive.namelist() if name.rpartition("/")[2] == TASKS_FILE]
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise FathomError(f"the evaluation bundle {place} cannot be read ({why})", _REMEDY) from None
    if not names:
        raise FathomError(f"{place} is no evaluation bundle: it holds no {TASKS_FILE}", _REMEDY)
    return Files(place, min(names, key=len).removesuffix(TASKS_FILE))


def _entries(files: Files) -> list[Any]:
    import yaml

    try:
        content = yaml.safe_load(files.read(TASKS_FILE))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise FathomError(
            f"{files.name_of(TASKS_FILE)} is not YAML ({' '.join(str(error).split())})", _REMEDY
        ) from None
    entries = content.get("icl_tasks") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        raise FathomError(f"{files.name_of(TASKS_FILE)} has no list icl_tasks", _REMEDY)
    return entries


def _task(entry: Any, number: int, baselines: Mapping[str, float], files: Files) -> Task:
    where = f"entry {number + 1} of {files.name_of(TASKS_FILE)}"
    try:
        label, uri, kind = entry["label"], entry["dataset_uri"], entry["icl_task_type"]
        shots, delimiter = int(entry["num_fewshot"][0]), entry.get("continuation_delimiter", " ")
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise FathomError(f"{where} cannot be understood ({type(error).__name__}: {error})", _REMEDY) from None
    if kind not in _FIELDS:
        raise FathomError(f"{where} is of the unknown kind {kind!r}", f"the kinds are {', '.join(_FIELDS)}")
    if label not in baselines:
        raise FathomError(f"{files.name_of(BASELINES_FILE)} has no baseline for {label!r}", _REMEDY)
    return Task(str(label), kind, shots, str(delimiter), baselines[label], str(uri), files)


def _baselines(files: Files) -> dict[str, float]:
    found = {}
    lines = csv.DictReader(io.StringIO(files.read(BASELINES_FILE).decode("utf-8", "replace")))
    for line in lines:
        try:
            found[line["Eval Task"]] = float(line["Random baseline"])
        except (KeyError, TypeError, ValueError):
            where = f"line {lines.line_num} of {files.name_of(BASELINES_FILE)}"
            raise FathomError(f"{where} names no task with its random baseline", _REMEDY) from None
    return found


def _item(line: bytes, kind: str, where: str) -> dict[str, Any]:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{where} is not JSON ({error})", _REMEDY) from None
    if not isinstance(item, dict):
        raise FathomError(f"{where} is not a JSON object", _REMEDY)
    fields, options = _FIELDS[kind]
    for name, wanted in fields.items():
        value = item.get(name)
        fits = isinstance(value, wanted) and not isinstance(value, bool)
        if not fits or (isinstance(value, list) and not all(isinstance(part, str) for part in value)):
            found = f"has no {name!r}" if name not in item else f"has a {name!r} that is not {_KINDS[wanted]}"
            raise FathomError(f"{where} {found}", _REMEDY)
    if options is not None and not 0 <= item["gold"] < len(item[options]):
        raise FathomError(f"{where} has gold {item['gold']}, and {len(item[options])} {options}", _REMEDY)
    return item
