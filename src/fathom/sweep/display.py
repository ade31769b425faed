"""How a sweep looks while it works: a live table on a terminal, a line for each beginning and end elsewhere."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from typing import Any

from fathom.home import run_dir
from fathom.report.tables import duration
from fathom.screen import console, say
from fathom.sweep.queue import Slot

REDRAW_EVERY_S = 1.0
PLAIN_EVERY_S = 60.0
TAIL_BYTES = 4096


class SweepDisplay:
    """A watcher of the queue, and a context."""

    def __init__(self, total: int, done: int, steps: Mapping[str, int], slots: int) -> None:
        self._total, self._done, self._steps, self._slots = total, done, steps, slots
        self._running: dict[str, Slot] = {}
        self._waiting = 0
        self._began: dict[str, float] = {}
        self._took: list[float] = []
        self._drawn = time.monotonic()
        self._live: Any = None

    def __enter__(self) -> SweepDisplay:
        if console().is_terminal:
            from rich.live import Live

            self._live = Live(console=console(), auto_refresh=False, transient=True)
            self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*exception)

    def started(self, run: str, slot: Slot) -> None:
        self._began[run] = time.monotonic()
        if self._live is None:
            say(f"  {run} begins on {slot.name}")

    def ended(self, run: str, state: str, why: str) -> None:
        took = time.monotonic() - self._began.get(run, time.monotonic())
        if state == "finished":
            self._done += 1
            self._took.append(took)
            self._redraw(run)
            say(f"  {run} finished in {duration(took)} ({self._done} of {self._total})", style="green")
            return
        self._redraw(run)
        say(f"  {run} {state} after {duration(took)}: {why}", style="dim" if state == "stopped" else "red")

    def _redraw(self, ended: str) -> None:
        """The table without the run that ended: it stands under the line that says so."""
        self._running.pop(ended, None)
        if self._live is not None:
            self._live.update(self._table(self._running, self._waiting), refresh=True)

    def held(self, run: str) -> None:
        say(f"  {run} is being trained by a process that is not ours; waiting for it", style="yellow")

    def look(self, running: Mapping[str, Slot], waiting: int) -> None:
        self._running, self._waiting = dict(running), waiting
        now = time.monotonic()
        if now - self._drawn < (PLAIN_EVERY_S if self._live is None else REDRAW_EVERY_S):
            return
        self._drawn = now
        if self._live is not None:
            self._live.update(self._table(running, waiting), refresh=True)
            return
        at = "; ".join(f"{run} step {self._progress(run)[0]}" for run in running)
        say(f"  {self._done} of {self._total} finished, {waiting} waiting; {at}", style="dim")

    def _table(self, running: Mapping[str, Slot], waiting: int) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        left = ""
        if self._took:
            rounds = math.ceil(waiting / self._slots) + 0.5
            left = f", about {duration(sum(self._took) / len(self._took) * rounds)} to go"
        head = f"{self._done} of {self._total} finished, {len(running)} at work, {waiting} waiting"
        table = Table(box=None, pad_edge=False)
        for heading in ("run", "where", "step", "loss", "to go"):
            table.add_column(heading, header_style="dim", justify="left" if heading in ("run", "where") else "right")
        for run, slot in running.items():
            table.add_row(Text(run), slot.name, *self._progress(run))
        return Group(Text(f"{head}{left}", style="bold"), table)

    def _progress(self, run: str) -> tuple[str, str, str]:
        line, steps = last_metric(run), self._steps.get(run, 0)
        if line is None:
            return "–", "–", "–"
        step = line["step"] + 1
        loss, pace = line.get("loss_smooth"), line.get("step_s")
        to_go = duration((steps - step) * pace) if isinstance(pace, (int, float)) else "–"
        return f"{step:,} of {steps:,}", f"{loss:.4f}" if isinstance(loss, (int, float)) else "–", to_go


def last_metric(run: str) -> dict[str, Any] | None:
    """The newest whole line of a run's metrics.jsonl, from the end of the file alone."""
    try:
        with open(run_dir(run) / "metrics.jsonl", "rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for text in reversed(lines):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            return line
    return None
