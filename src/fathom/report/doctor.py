"""`fathom doctor`: what this machine has and lacks, each line with its consequence and the fix."""

from __future__ import annotations

import getpass
import os
import pwd
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fathom.report import machine, probes, stock
from fathom.report.probes import Line, Probe, look
from fathom.screen import console, say, typed

QUICK: tuple[tuple[str, Probe], ...] = (
    ("python", probes.python),
    ("packages", probes.packages),
    ("optional", probes.optional),
)
WITH_TORCH: tuple[tuple[str, Probe], ...] = (
    ("torch", probes.torch_build),
    ("CPU", machine.processor),
    ("GPU", machine.gpus),
    ("attention", machine.attention),
    ("compiler", probes.compiler),
    ("memory", machine.memory),
    ("limits", machine.limits),
)
AROUND: tuple[tuple[str, Probe], ...] = (
    ("sandbox", probes.sandbox),
    ("browser", probes.browser),
    ("network", probes.network),
    ("home", stock.place),
    ("kept", stock.kept),
    ("at work", stock.locks),
    ("remains", stock.remains),
    ("remains", stock.tokens),
    ("run", stock.runs),
)
MARKS = {"good": ("✓", "green"), "note": ("·", "yellow"), "lack": ("!", "yellow"), "broken": ("✗", "bold red")}
GRADES = ("good", "note", "lack", "broken")


@dataclass(frozen=True)
class Doctor:
    """What this machine has and lacks for training: each line with its consequence and the fix.

    Asks nothing of the network. `--json` is for bug reports: it holds no user name and no path of a home folder.
    """

    json: bool = False
    """Print everything as one JSON object."""

    def run(self) -> dict[str, Any]:
        hide = hiding()
        found: list[Line] = []
        for probe in QUICK:
            found += self._say(hide, *probe)
        for probe in WITH_TORCH + AROUND:
            found += self._say(hide, *probe)
        if not self.json:
            _conclude(found)
        counts = {grade: sum(line.grade == grade for line in found) for grade in GRADES}
        return {"lines": [asdict(line) for line in found], "counts": counts}

    def _say(self, hide: Callable[[str], str], topic: str, probe: Probe) -> list[Line]:
        found = [hidden(line, hide) for line in look(topic, probe)]
        if not self.json:
            show(found)
        return found


def hidden(line: Line, hide: Callable[[str], str]) -> Line:
    return replace(line, found=hide(line.found), consequence=hide(line.consequence), fix=hide(line.fix))


def hiding() -> Callable[[str], str]:
    """What takes the home folder and the user's name out of a text: /home/ada/x is ~/x, /data/ada is /data/USER."""
    homes = {os.path.expanduser("~"), _home_by_account()}
    homes |= {os.path.realpath(one) for one in homes if one}
    folders = sorted((one.rstrip("/") for one in homes if len(Path(one).parts) > 1), key=len, reverse=True)
    name = _user()

    def hide(text: str) -> str:
        for folder in folders:
            text = re.sub(re.escape(folder) + r"(?![\w.-])", "~", text)
        return re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w.-])", "USER", text) if name else text

    return hide


def _home_by_account() -> str:
    """What the system has on record, whatever HOME says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return ""


def _user() -> str:
    """Whose name it is; empty for names that every machine has."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
    return "" if name in ("root", "user", "nobody") or len(name) < 2 else name


def show(found: list[Line]) -> None:
    """Lines for a person: a mark, the topic, what was found, and below it what it means and what to do."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(style="bold", width=11, no_wrap=True)
    grid.add_column(overflow="fold")
    for line in found:
        mark, style = MARKS[line.grade]
        text = Text(typed(line.found))
        if line.consequence:
            text.append(typed(f"; {line.consequence}"), style="dim" if line.grade == "good" else "")
        grid.add_row(Text(mark, style=style), line.topic, text)
        if line.fix and line.grade != "good":
            grid.add_row("", "", Text(typed(f"→ {line.fix}"), style="cyan"))
    if found:
        console().print(grid, soft_wrap=False)


def _conclude(found: list[Line]) -> None:
    broken, lacking = (sum(line.grade == grade for line in found) for grade in ("broken", "lack"))
    say()
    if broken:
        say(f"✗ {broken} to mend, ! {lacking} that would make it better.", style="bold red")
    elif lacking:
        say(f"Everything works; ! {lacking} that would make it better.", style="yellow")
    else:
        say("Everything works.", style="green")
