"""`fathom status`: where a run is, how it goes and what to worry about; from its folder alone, without torch."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import tyro

from fathom.errors import FathomError
from fathom.home import home, names, run_dir
from fathom.record import RECORD, last_words
from fathom.report.history import is_locked, salvaged
from fathom.report.outlook import Trend
from fathom.report.standing import Standing, standing_of
from fathom.report.status_screen import lines, next_lines, next_steps, screen
from fathom.report.worries import Worry, worries
from fathom.screen import console, say, typed

if TYPE_CHECKING:
    from rich.console import RenderableType

EVERY_S = 2.0
LEAVING = "\n[dim]drawn anew every two seconds; Ctrl-C leaves[/dim]"

Look = tuple[Standing, list[Worry]]


@dataclass(frozen=True)
class Status:
    """Where a run is: steps, time left, speed, loss and bpb, checkpoint, and what to worry about.

    It reads the run's folder alone: while the run goes on, from another terminal, and after a crash too.
    """

    name: tyro.conf.Positional[str] = ""
    """The run; by default the one that did something last."""
    all: bool = False
    """One line for each run."""
    watch: bool = False
    """Draw anew every two seconds, until the run that was named is finished, or Ctrl-C."""
    json: bool = False
    """Print everything as one JSON object."""

    def run(self) -> dict[str, Any]:
        if self.watch and self.json:
            raise FathomError("--watch draws on a terminal and --json does not", "choose one of them")
        if self.all and self.name:
            raise FathomError(f"--all is every run, and {self.name!r} is one", "choose one of them")
        if self.name:
            run_dir(self.name)  # refuses what no run can be called, which --watch would wait for
        if self.watch:
            self._watch()
            return {}
        now = time.time()
        if self.all:
            looks, broken = look_at_all(now)
            if not self.json:
                show(lines(looks, broken, now))
            unreadable = [{"run": name, "problem": why} for name, why in broken]
            return {"runs": [as_object(*look) for look in looks], "unreadable": unreadable}
        name = self.name or newest()
        look = look_at(name, now)
        if not self.json:
            height = console().height if console().is_terminal else None
            others = running_beside(name)
            show(screen(*look, now, newest=not self.name, others=others, height=height, with_next=False))
            for line in next_lines(look[0]):  # by themselves, so that no command is broken that may be copied
                say(line)
        return as_object(*look)

    def _watch(self) -> None:
        from rich.console import Console, Group
        from rich.live import Live

        terminal = Console(stderr=True, highlight=False)
        if not terminal.is_terminal or terminal.is_dumb_terminal:
            raise FathomError("--watch needs a terminal to draw on", "leave it out, or use --json again and again")
        chosen = ""
        picture: RenderableType | None = None
        try:
            with _leaving_on_sigterm(), Live(console=terminal, screen=True, auto_refresh=False) as live:
                while True:
                    began = time.monotonic()
                    chosen, picture, is_over = self._picture(chosen, terminal.height)
                    if is_over:
                        break
                    live.update(Group(picture, LEAVING), refresh=True)
                    time.sleep(max(EVERY_S, 4 * (time.monotonic() - began)))
        except KeyboardInterrupt:
            pass
        if picture is not None:
            terminal.print(picture)

    def _picture(self, chosen: str, height: int) -> tuple[str, RenderableType, bool]:
        """The run that is shown, what is drawn, and whether nothing is to come any more. What is not there, or cannot
        be read now, is waited for.
        """
        from rich.text import Text

        now = time.time()
        try:
            if self.all:
                return "", lines(*look_at_all(now), now), False
            name = self.name or still_the_newest(chosen)
            others = running_beside(name)
            look = look_at(name, now)
            picture = screen(*look, now, newest=not self.name, others=others, height=height)
            return name, picture, bool(self.name) and look[0].state == "finished"
        except (FathomError, OSError) as error:
            return chosen, Text(f"{typed(str(error))}\n\nWaiting.", style="yellow"), False


def show(picture: RenderableType) -> None:
    """Print what is wider than the window in several lines."""
    console().print(picture, soft_wrap=False)


@contextmanager
def _leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the drawing as Ctrl-C does, so that the terminal is as it was."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def look_at(name: str, now: float) -> Look:
    """Raises FathomError where there is no run of that name, or nothing of it can be read."""
    folder = run_dir(name)
    if not any((folder / file).exists() for file in RECORD) and is_locked(folder / ".lock"):
        raise FathomError(
            f"a process has begun with the run {name!r} and recorded nothing yet",
            "it may be making tokens of the corpus; look again in a while",
        )
    standing = standing_of(salvaged(name), now)
    return standing, worries(standing)


def look_at_all(now: float) -> tuple[list[Look], list[tuple[str, str]]]:
    """Every run, the one that did something last first, and (name, problem) of those of which nothing can be read."""
    there = begun()
    if not there:
        raise _none_yet()
    found, broken = [], []
    for name in there:
        try:
            found.append(look_at(name, now))
        except FathomError as error:
            broken.append((name, str(error)))
    return found, broken


def newest() -> str:
    """The run that did something last."""
    there = begun()
    if not there:
        for name in running_beside(""):
            look_at(name, time.time())  # says that it has recorded nothing yet
        raise _none_yet()
    return there[0]


def still_the_newest(shown: str) -> str:
    """What a screen that follows the newest run shows next: it stays with a run for as long as that goes on."""
    if shown and is_locked(run_dir(shown) / ".lock"):
        return shown
    return newest()


def running_beside(name: str) -> list[str]:
    """Other runs that a process works on, among them such as have no record yet."""
    return [other for other in names("runs") if other != name and is_locked(run_dir(other) / ".lock")]


def begun() -> list[str]:
    """Names of runs that have a record, the one that did something last first."""
    spoke = [(at, name) for name in names("runs") if (at := last_words(run_dir(name))) is not None]
    return [name for _, name in sorted(spoke, reverse=True)]


def _none_yet() -> FathomError:
    return FathomError(f"there are no runs in {home() / 'runs'} yet", "begin with `fathom quickstart`")


def as_object(run: Standing, found: list[Worry]) -> dict[str, Any]:
    """What --json prints of a run."""
    trends = {"loss_trend": run.loss_trend, "bpb_trend": run.bpb_trend}
    return (
        asdict(run)
        | {"bpb": [{"step": step, "val_bpb": bpb} for step, bpb in run.bpb]}
        | {"samples": [{"prompt": prompt, "text": text} for prompt, text in run.samples]}
        | {name: None if line is None else _trend(line, run.step_s_now) for name, line in trends.items()}
        | {"worries": [asdict(worry) for worry in found], "next": "; ".join(next_steps(run))}
    )


def _trend(line: Trend, step_s: float | None) -> dict[str, Any]:
    return {
        "direction": line.direction,
        "slope_per_1000_steps": 1000 * line.slope,
        "low_per_1000_steps": 1000 * line.low,
        "high_per_1000_steps": 1000 * line.high,
        "slope_per_hour": 3600 / step_s * line.slope if step_s else None,
        "points": line.points,
        "first_step": line.first_step,
        "last_step": line.last_step,
    }
