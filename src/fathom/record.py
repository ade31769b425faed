"""Write and read a run's folder: the record that status, report and every later version know a run by.

run.toml        stage, shape and every setting, with where it came from
events.jsonl    phases: started, resumed, saved, evaluated, stopped (why), finished
metrics.jsonl   a line a logged step; append only; a reader survives a torn last line
evals/          one JSON a result
samples.jsonl   what the model said, by step
"""

from __future__ import annotations

import json
import os
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fathom.errors import FathomError
from fathom.home import home, names, run_dir, write_atomic
from fathom.screen import say

RECORD = ("metrics.jsonl", "events.jsonl", "run.toml")
TAIL_BYTES = 65_536
"""Of a file's end, in which its last line is looked for."""


class Record:
    """A run's folder, for writing. Lines are appended whole and flushed; nothing is ever rewritten.

    A line that the disk refuses is lost, and said once: no run ends for it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._refused = False
        self.also: list[Callable[[str, Mapping[str, Any]], None]] = []
        """Who else hears of each metric ("metric") and event (its kind)."""
        folder.mkdir(parents=True, exist_ok=True)

    def config(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        """Write run.toml, once, when the run begins."""
        write_atomic(self.folder / "run.toml", to_toml(tables))

    def machine(self, table: Mapping[str, Any]) -> None:
        """Note in run.toml what the run began to train on, as "machine"; what it moves to is in its events."""
        try:
            tables = tomllib.loads((self.folder / "run.toml").read_text())
            if "machine" not in tables:
                self.config(tables | {"machine": table})
        except (OSError, tomllib.TOMLDecodeError):
            return

    def metric(self, **values: Any) -> None:
        self._append("metrics.jsonl", values)
        self._tell("metric", values)

    def event(self, kind: str, **values: Any) -> None:
        self._append("events.jsonl", {"event": kind, "time": round(time.time(), 3)} | values)
        self._tell(kind, values)

    def _tell(self, kind: str, values: Mapping[str, Any]) -> None:
        for hear in self.also:
            hear(kind, values)

    def sample(self, **values: Any) -> None:
        self._append("samples.jsonl", values)

    def evaluation(self, name: str, result: Mapping[str, Any]) -> None:
        """Keep one result, tagged by whoever made it with step, data and settings."""
        write_atomic(self.folder / "evals" / f"{name}.json", json.dumps(result, indent=1) + "\n")

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        line = json.dumps(values, ensure_ascii=False) + "\n"
        try:
            with open(self.folder / name, "ab+") as file:
                if file.tell() and _last_byte(file) != b"\n":
                    file.write(b"\n")  # a torn line stays a line of its own
                file.write(line.encode())
        except OSError as error:
            if not self._refused:
                say(f"{name} takes no more lines ({error.strerror}); the run goes on", style="yellow")
            self._refused = True


class Silent(Record):
    """The record of a rank that is not the main one: it has the folder, and writes nothing."""

    def config(self, tables: Mapping[str, Mapping[str, Any]]) -> None:
        pass

    def evaluation(self, name: str, result: Mapping[str, Any]) -> None:
        pass

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        pass


def _last_byte(file: Any) -> bytes:
    file.seek(-1, os.SEEK_END)
    return bytes(file.read(1))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file; lines torn by a crash are passed over."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Logged steps in order; where a resumed run repeated steps, what it logged last counts."""
    by_step = {line["step"]: line for line in read_lines(folder / "metrics.jsonl") if "step" in line}
    return [by_step[step] for step in sorted(by_step)]


def events(folder: Path) -> list[dict[str, Any]]:
    return read_lines(folder / "events.jsonl")


def read_config(name: str) -> dict[str, Any]:
    """run.toml of a run by name. Raises FathomError where there is none."""
    path = run_dir(name) / "run.toml"
    if not path.exists():
        raise FathomError(*_no_run(name))
    try:
        return tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or error
        raise FathomError(f"{path} cannot be read ({why})", "mend or remove that run's folder") from None


def _no_run(name: str) -> tuple[str, str]:
    """What was found and what to do, where a run has no run.toml."""
    known = [run for run in names("runs") if (run_dir(run) / "run.toml").exists()]
    if any((run_dir(name) / file).exists() for file in RECORD):
        return (
            f"the run {name!r} has no run.toml, which says what it is",
            f"copy it back into {run_dir(name)}, or remove that folder",
        )
    if near := get_close_matches(name, known, n=1):
        return f"there is no run {name!r} in {home() / 'runs'}", f"did you mean {near[0]!r}?"
    return f"there is no run {name!r} in {home() / 'runs'}", f"the runs there are: {', '.join(known) or 'none yet'}"


def last_words(folder: Path) -> float | None:
    """Unix time of the newest line of a run's record as it says itself, which copying does not change.

    Where no line has a time, that of the files; None where there are none. What another run noted here is no word of
    this one's.
    """
    said = [_time_of_the_last_line(folder / name) for name in ("events.jsonl", "metrics.jsonl")]
    if told := [at for at in said if at is not None]:
        return max(told)
    return max((at for name in RECORD if (at := _touched(folder / name)) is not None), default=None)


def _time_of_the_last_line(path: Path) -> float | None:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and value.get("event") != "extended_in":
            at = value.get("time")
            return float(at) if isinstance(at, (int, float)) and abs(at) < 1e15 else None
    return None


def _touched(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:
        return None


CHAT_STAGES = ("sft",)
"""Of runs that were taught to chat."""


def newest_run(stages: Sequence[str]) -> str | None:
    """The run of one of these stages that was trained last and has a checkpoint."""
    found = []
    for name in names("runs"):
        is_saved = any(run_dir(name).glob("checkpoints/[0-9]*/COMPLETE"))
        if is_saved and stage_of(name) in stages:
            found.append((last_words(run_dir(name)) or 0.0, name))
    return max(found)[1] if found else None


def newest_runs() -> list[str]:
    """All runs that can be read of, the one that did something last first."""
    known = [name for name in names("runs") if stage_of(name) is not None]
    return sorted(known, key=lambda name: -(last_words(run_dir(name)) or 0.0))


def stage_of(name: str) -> str | None:
    """The stage of a run, None where its folder does not tell."""
    try:
        stage = read_config(name)["run"]["stage"]
    except (FathomError, KeyError):
        return None
    return str(stage)


def to_toml(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML text of tables of plain values; a value of None is left out."""
    parts = []
    for table, values in tables.items():
        lines = [f"{key} = {_toml_value(value)}" for key, value in values.items() if value is not None]
        parts.append("\n".join([f"[{table}]", *lines]))
    return "\n\n".join(parts) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, float):
        return repr(value) if "." in repr(value) or "e" in repr(value) or "n" in repr(value) else f"{value!r}.0"
    if isinstance(value, Path):
        value = str(value)
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which TOML, unlike JSON, wants escaped
