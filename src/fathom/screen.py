"""How the program speaks while it works: lines and progress on standard error, never on standard output."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from rich.console import Console

PLAIN_LINE_EVERY_S = 2.0
WHOLE = "\u00a0"  # where textwrap breaks no line


@cache
def console() -> Console:
    """The one console; rich is imported at first use so that `fathom --help` stays quick."""
    from rich.console import Console

    if sys.stderr.isatty():
        return Console(stderr=True, highlight=False, soft_wrap=True)
    return Console(file=cast(IO[str], _Trimming()), highlight=False, soft_wrap=True)


class _Trimming:
    """Standard error, whatever that is by now, without the blanks with which a table fills its lines."""

    def write(self, text: str) -> int:
        sys.stderr.write(re.sub(r"[ \t]+(?=\n)", "", text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def command_name() -> str:
    """What to type before a command's name here: the launcher as it was started ("./fathom"), else "fathom"."""
    started = os.environ.get("FATHOM_COMMAND") or "fathom"
    is_on_the_path = started.startswith("/") and started == shutil.which("fathom")
    return "fathom" if is_on_the_path else shlex.quote(started)


def torchrun_name() -> str:
    """The same for torchrun, of which the launcher has its own, in its .venv."""
    fathom = command_name()
    if fathom == "fathom":
        return "torchrun"
    return shlex.quote(str(Path(shlex.split(fathom)[0]).parent / ".venv/bin/torchrun"))


def typed(text: str) -> str:
    """`text` with every command that it quotes, written "`fathom …`" or "`torchrun …`", as it has to be typed here."""
    return text.replace("`fathom ", f"`{command_name()} ").replace("`torchrun ", f"`{torchrun_name()} ")


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width`, broken between words and indented as they began, or behind their label.

    "7 %" stays in one piece, and so does a quoted command, however long: broken by the terminal alone it can still be
    copied whole.
    """
    tied = re.sub(r"`[^`\n]*`|\d %", lambda found: found[0].replace(" ", WHOLE), text)
    lines = [_broken(line, width) if len(line) > width else line for line in tied.split("\n")]
    return "\n".join(lines).replace(WHOLE, " ")


def _broken(line: str, width: int) -> str:
    lead = re.match(r" *(\S{1,12} {2,})?", line)
    head = lead[0] if lead and len(lead[0]) < width // 2 else ""
    return textwrap.fill(
        line[len(head) :],
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


def plural(count: int, noun: str, many: str = "") -> str:
    """ "1 step", "2,000 steps"."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def window_width() -> int:
    """Columns of the terminal that standard error goes to."""
    try:
        return os.get_terminal_size(2).columns
    except OSError:
        return 80


def say(text: str = "", style: str | None = None) -> None:
    """One line for a person, in a terminal broken where it has to be. Square brackets and colons in `text` are printed
    as they are; commands as `typed` has.
    """
    shown = typed(text)
    shown = wrapped(shown, console().width) if console().is_terminal else shown
    console().print(shown, style=style, markup=False, emoji=False)


class Bar(Protocol):
    def advance(self, amount: float, note: str = "") -> None: ...


class _PlainBar:
    def __init__(self, label: str, total: float | None) -> None:
        self._label, self._total, self._done = label, total, 0.0
        self._began = self._said = time.monotonic()

    def advance(self, amount: float, note: str = "") -> None:
        self._done += amount
        now = time.monotonic()
        if now - self._said >= PLAIN_LINE_EVERY_S:
            self._said = now
            share = f" {100 * self._done / self._total:3.0f} %" if self._total else ""
            say(f"{self._label}{share}{self._left(now - self._began)} {note}".rstrip())

    def _left(self, seconds: float) -> str:
        """How long it still takes at the pace so far, once that is more than a moment."""
        left = seconds * (self._total / self._done - 1) if self._total and self._done > 0 else 0.0
        minutes, rest = divmod(round(left), 60)
        return f", {minutes}:{rest:02} left" if left >= 10 * PLAIN_LINE_EVERY_S else ""


class _RichBar:
    def __init__(self, progress: object, task: object) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float, note: str = "") -> None:
        self._progress.update(self._task, advance=amount, note=note)  # type: ignore[attr-defined]


@contextmanager
def working(what: str) -> Iterator[None]:
    """A sign of life beside the words while something takes its time; elsewhere than on a terminal a plain line."""
    if not console().is_terminal:
        say(what, style="dim")
        yield
        return
    from rich.text import Text

    with console().status(Text(what, style="dim")):
        yield


@contextmanager
def bar(label: str, total: float | None = None) -> Iterator[Bar]:
    """A progress bar on a terminal, a plain line every two seconds elsewhere."""
    if not console().is_terminal:
        yield _PlainBar(label, total)
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console(), transient=True) as progress:
        yield _RichBar(progress, progress.add_task(label, total=total, note=""))
