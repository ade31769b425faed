"""Results in a run's folder: a JSON object each, found again by task, step, data and settings.

evals/core-000960-limit100-3f2a9c.json             a task's result
evals/core-000960-limit100/arc_easy-77b0e1.json    that of one of its parts, the task "core/arc_easy"

    {"task": …, "step": …, "data": {…}, "settings": {…}, …the values…, "time": …}

`data` says what was measured on, `settings` how; the last word of a name is a digest of both, so that no result takes
another's place. Whoever reads goes by what stands inside.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fathom import __version__
from fathom.home import run_dir
from fathom.record import Record

Result = dict[str, Any]


def write_result(
    run: str | Path,
    step: int,
    task: str,
    settings: Mapping[str, Any],
    values: Mapping[str, Any],
    data: Mapping[str, Any] | None = None,
) -> Result:
    """Keep one result, whole or not at all; returns it as it was written.

    `run` is a run's name, or a folder where results of something else are kept. `values` have at least `value`, the
    one number, and where there are such `standard_error` and `n`, the items.
    """
    tags = _tags(step, task, settings, data or {})
    result: Result = _finite(tags | dict(values) | {"fathom": __version__, "time": round(time.time(), 3)})
    Record(_folder(run)).evaluation(_name(tags), result)
    return result


def find_result(
    run: str | Path, step: int, task: str, settings: Mapping[str, Any], data: Mapping[str, Any] | None = None
) -> Result | None:
    """The newest result of this task with just this step, data and settings; None where there is none."""
    tags = json.loads(json.dumps(_tags(step, task, settings, data or {})))
    found = [one for one in read_results(run) if all(one.get(key) == value for key, value in tags.items())]
    return max(found, key=lambda one: float(one.get("time", 0.0)), default=None)


def read_results(run: str | Path) -> list[Result]:
    """Every result of a run, by file name. Those that training and the quiz left have the tags that can be told.

    What cannot be read is passed over: the report names it.
    """
    found = []
    folder = _folder(run) / "evals"
    for path in sorted(folder.rglob("*.json")):
        try:
            value = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(value, dict) and type(value.get("step")) is int:
            about = {"digest": value["data_digest"]} if "data_digest" in value else {}
            how = {key: value[key] for key in ("rows", "rows_of", "seed", "dtype") if key in value}
            untagged = {"task": path.stem.partition("-")[0], "data": about, "settings": how}
            found.append(untagged | value)
    return found


def _finite(value: Any) -> Any:
    """What is not a number as null, which every reader of JSON takes."""
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _folder(run: str | Path) -> Path:
    return run if isinstance(run, Path) else run_dir(run)


def _tags(step: int, task: str, settings: Mapping[str, Any], data: Mapping[str, Any]) -> Result:
    return {"task": task, "step": step, "data": dict(data), "settings": dict(settings)}


def _name(tags: Result) -> str:
    about = json.dumps([tags["data"], tags["settings"]], sort_keys=True)
    digest = hashlib.sha256(about.encode()).hexdigest()[:6]
    group, _, part = tags["task"].partition("/")
    limit = tags["settings"].get("limit")
    words = f"{group}-{tags['step']:06d}" + (f"-limit{limit}" if limit else "")
    return f"{words}/{part}-{digest}" if part else f"{words}-{digest}"
