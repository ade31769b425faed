"""`fathom leaderboard`: runs by training time to a target, each with what it takes to do it again."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.home import home, names, write_atomic
from fathom.report.entry import Entry, entry_from, entry_of, unique
from fathom.report.history import history_of
from fathom.report.measured import ValidationSet
from fathom.report.tables import print_table
from fathom.report.verdict import crossing
from fathom.report.words import duration
from fathom.screen import say

GPT2_CORE = 0.256525
MOST_FILE_BYTES = 50_000_000


@dataclass(frozen=True)
class Leaderboard:
    """Rank the pretraining runs that are here by their training time to a target, evaluations apart.

    An entry counts if it can be reproduced from its run's folder: the command, the digests of data and tokenizer, and
    the digest of the weights it ends with. Others are shown without a rank, with the reason.
    """

    target: float | None = None
    """Bits per byte to reach. Default the worst of the finals, on each set of validation rows."""
    core: float | None = None
    """CORE to reach instead; GPT-2 has 0.256525."""
    add: str | None = None
    """Take in an entry that was exported elsewhere."""
    export: str | None = None
    """Write the entry of this run to RUN.entry.json in the current folder, and stop."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        if self.export is not None:
            return _export(self.export)
        if self.target is not None and self.core is not None:
            raise FathomError("--target and --core are both given", "choose one")
        for flag, value in (("--target", self.target), ("--core", self.core)):
            if value is not None and not -1 < value < math.inf:
                raise FathomError(f"{flag} is {value}", "give the figure to reach")
        added = None if self.add is None else add(Path(self.add))
        here, notes = entries_here()
        entries = unique([*here, *entries_added()])
        if not entries:
            raise FathomError(f"there is no pretraining run in {home() / 'runs'}", "train one, or --add an entry")
        boards = boards_of(entries, self.target) if self.core is None else [core_board(entries, self.core)]
        result = {"boards": boards, "added": added, "notes": notes}
        if not self.json:
            _show(result)
        return result


def _export(name: str) -> dict[str, Any]:
    run = history_of(name)
    if run.stage != "pretrain":
        raise FathomError(f"{name!r} is {run.stage}", "export a pretraining run")
    path = Path(f"{name}.entry.json")
    found = entry_of(run).as_json()
    write_atomic(path, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    say(f"wrote {path}")
    for problem in found["problems"]:
        say(f"  it cannot be reproduced: {problem}", style="yellow")
    return {"file": str(path.resolve()), "entry": found}


def add(path: Path) -> str:
    """Keep an exported entry under $FATHOM_HOME/leaderboard. Returns its name."""
    try:
        if path.stat().st_size > MOST_FILE_BYTES:
            raise FathomError(f"{path} is larger than any entry", "give a file that --export wrote")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise FathomError(f"{path} cannot be read ({why})", "give a file that --export wrote") from None
    entry = entry_from(text, str(path))
    kept = _folder() / f"{entry.name}.json"
    content = json.dumps(entry.as_json(), indent=1, ensure_ascii=False) + "\n"
    if kept.exists() and kept.read_text(encoding="utf-8") != content:
        raise FathomError(f"another entry called {entry.name!r} was added before", f"remove {kept} to replace it")
    write_atomic(kept, content)
    say(f"added {entry.name}")
    return entry.name


def entries_here() -> tuple[list[Entry], list[str]]:
    """Of every pretraining run under $FATHOM_HOME, and what could not be read."""
    entries, notes = [], []
    for name in names("runs"):
        if not (home() / "runs" / name / "run.toml").exists():
            continue
        try:
            run = history_of(name)
        except FathomError as error:
            notes.append(error.problem)
            continue
        if run.stage == "pretrain":
            entries.append(entry_of(run))
    return entries, notes


def entries_added() -> list[Entry]:
    return [entry_from(path.read_text(encoding="utf-8"), str(path)) for path in sorted(_folder().glob("*.json"))]


def _folder() -> Path:
    return home() / "leaderboard"


def boards_of(entries: Sequence[Entry], target: float | None) -> list[dict[str, Any]]:
    """One board for each set of rows that bpb was measured on, the one with the most entries first."""
    by_set: dict[ValidationSet, list[Entry]] = {}
    for entry in entries:
        for validation, points in entry.bpb:
            if points:
                by_set.setdefault(validation, []).append(entry)
    boards = []
    for validation, members in sorted(by_set.items(), key=lambda item: (-len(item[1]), item[0])):
        curves = [(entry, curve) for entry in members if (curve := entry.curve(validation))]
        reach = max(curve.final for _, curve in curves) if target is None else target
        rows = [
            _row(entry, crossing(curve.seconds, curve.bpb, reach), curve.final, float(curve.bpb.min()))
            for entry, curve in curves
        ]
        head = {"measure": "bpb", "target": reach, "target_is": "given" if target else "the worst of the finals"}
        boards.append({**head, "validation": asdict(validation), "rows": _ranked(rows)})
    return boards


def core_board(entries: Sequence[Entry], target: float) -> dict[str, Any]:
    """By training time to a CORE, which is better when it is larger."""
    rows = []
    for entry in entries:
        if entry.core:
            _, seconds, core = (np.array(column) for column in zip(*entry.core, strict=True))
            rows.append(_row(entry, crossing(seconds, -core, -target), float(core[-1]), float(core.max())))
    if not rows:
        raise FathomError(
            "no run here has CORE of all items", "`fathom eval RUN --tasks core` makes one; or rank by --target BPB"
        )
    return {"measure": "CORE", "target": target, "target_is": "given", "validation": None, "rows": _ranked(rows)}


def _row(entry: Entry, seconds: float, final: float, best: float) -> dict[str, Any]:
    reached = math.isfinite(seconds)
    return {
        "run": entry.name,
        "from": entry.source,
        "rank": None,
        "seconds": seconds if reached else None,
        "final": final,
        "best": best,
        "parameters": entry.parameters,
        "tokens": entry.tokens,
        "device": entry.device,
        "fathom": entry.fathom,
        "torch": entry.torch,
        "reproducible": not entry.problems,
        "problems": list(entry.problems),
        "command": entry.command,
        "corpus_digest": entry.corpus_digest,
        "tokenizer_digest": entry.tokenizer_digest,
        "data_digest": entry.data_digest,
        "weights_sha256": entry.weights_sha256,
    }


def _ranked(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fastest first; a rank for those that reached the target and can be reproduced."""
    rows.sort(key=lambda row: (row["seconds"] is None, row["seconds"] or 0.0, row["run"]))
    rank = 0
    for row in rows:
        if row["seconds"] is not None and row["reproducible"]:
            rank += 1
            row["rank"] = rank
    return rows


def _show(result: dict[str, Any]) -> None:
    for board in result["boards"]:
        where = f", on {ValidationSet(**board['validation']).words}" if board["validation"] else ""
        measure = "bits per byte" if board["measure"] == "bpb" else "CORE"
        say(f"training time to {measure} {board['target']:.4f} ({board['target_is']}){where}", style="bold")
        rows = board["rows"]
        print_table(
            ["", "run", "time", f"final {board['measure']}", "parameters", "tokens", "device", ""],
            [
                [
                    str(row["rank"] or "–"),
                    row["run"],
                    "never" if row["seconds"] is None else duration(row["seconds"]),
                    f"{row['final']:.4f}",
                    f"{row['parameters']:,}",
                    f"{row['tokens']:,.0f}",
                    row["device"][:24] or "unknown",
                    row["from"],
                ]
                for row in rows
            ],
            left=(0, 1, 6, 7),
        )
        for row in rows:
            if row["problems"]:
                say(
                    f"  {row['run']} has no rank, it cannot be reproduced: {'; '.join(row['problems'])}", style="yellow"
                )
        first = next((row for row in rows if row["rank"] == 1), None)
        if first:
            say(f"\n  {first['run']} again, with fathom {first['fathom']} and torch {first['torch']}:", style="dim")
            say(f"  `{first['command']}`")
            say(f"  corpus {first['corpus_digest'][:16]}…, tokenizer {first['tokenizer_digest'][:16]}…", style="dim")
            say(f"  ends with weights {first['weights_sha256']}\n", style="dim")
    for note in result["notes"]:
        say(f"  {note}", style="yellow")
    say("`fathom leaderboard --export RUN` writes what others need to do a run again", style="dim")
