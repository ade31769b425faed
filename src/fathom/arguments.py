"""Words typed after a command -> its dataclass; the command's help; and refusals in one sentence.

tyro reads the arguments. Its drawn boxes are read back here, at a width where nothing wraps, because a person wants
plain rows that fit the window, and a program one line that says which word was wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import takewhile
from typing import Any, get_args, get_type_hints

from fathom.errors import FathomError
from fathom.screen import command_name

INDENT = 22
KINDS = {"INT": "a whole number", "FLOAT": "a number", "PATH": "a path", "STR": "text"}


@dataclass(frozen=True)
class Row:
    """One argument as the help shows it."""

    word: str
    """`--depth`, or the name of a positional argument."""
    takes: str
    """INT, {auto,reference}, …; empty for a switch."""
    text: str
    required: bool

    @property
    def call(self) -> str:
        return f"{self.word} {self.takes}".rstrip() if self.word.startswith("-") else self.takes


def parse(config: type, name: str, argv: Sequence[str]) -> Any:
    """`config` filled from `argv`. Prints the help and leaves with 0 where that is asked for; else FathomError."""
    if "-h" in argv or "--help" in argv:
        print(help_text(config, name))
        raise SystemExit(0)
    _refuse_bytes(argv)
    with _captured() as said:
        try:
            return _tyro(config, name, argv)
        except SystemExit:
            pass
    raise _refusal(_cells(said.getvalue()), rows(config, name), name)


def _refuse_bytes(argv: Sequence[str]) -> None:
    """A file whose name is no text could be read, but not be named in any record."""
    for word in argv:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise FathomError(f"{_short(word)} is not UTF-8", "rename that file, or write it in UTF-8") from None


def rows(config: type, name: str) -> list[Row]:
    """Every argument of a command, positional ones first."""
    with _captured() as said, contextlib.suppress(SystemExit):
        _tyro(config, name, ["--help"])
    found: list[Row] = []
    positional = iter(_positional_names(config))
    for line in _cells(said.getvalue()):
        if line.startswith(" ") and found:
            found[-1] = _with_text(found[-1], line.strip())
        elif line and not line.startswith("-h, "):
            call, _, text = line.partition("  ")
            word, _, takes = call.partition(" ") if call.startswith("-") else (next(positional), "", call)
            row = Row(word, _plain(takes, "" if word.startswith("-") else word), "", False)
            found.append(_with_text(row, text.strip()))
    return found


def help_text(config: type, name: str, width: int | None = None) -> str:
    """The help of one command, wrapped to the window."""
    width = min(width or shutil.get_terminal_size().columns, 100)
    arguments = rows(config, name)
    needed = [row.call for row in arguments if row.required]
    possible = [f"[{row.call.strip('[]')}]" for row in arguments if not row.required and not row.word.startswith("-")]
    usage = " ".join([f"{command_name()} {name}", *needed, *possible, "[OPTIONS]"])
    blocks = [textwrap.fill(usage, width, subsequent_indent=" " * 4, break_on_hyphens=False)]
    for paragraph in (config.__doc__ or "").split("\n\n"):
        blocks.append(textwrap.fill(" ".join(paragraph.split()), width))
    for group in (False, True):
        lines = [_help_row(row, width) for row in arguments if row.word.startswith("-") is group]
        blocks.extend(["\n".join(lines)] if lines else [])
    return "\n\n".join(blocks)


def _help_row(row: Row, width: int) -> str:
    lead, text = f"  {row.call}  ", f"{row.text} (required)" if row.required else row.text
    margin = " " * INDENT
    body = textwrap.fill(text, width, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False)
    return lead.ljust(INDENT) + body[INDENT:] if len(lead) <= INDENT else f"{lead.rstrip()}\n{body}".rstrip()


def _refusal(cells: list[str], arguments: list[Row], name: str) -> FathomError:
    """tyro's words about the arguments, as one sentence with the nearest right word."""
    cells = list(takewhile(lambda cell: not cell.startswith("For full"), cells))
    said = " ".join(cell.strip() for cell in cells)
    if stray := _stray(cells):
        return _stray_refusal(stray, arguments, name)
    if match := re.search(r"Missing value for argument '([^']+)'", said):
        bare = [row.call for row in arguments if not row.word.startswith("-")]
        if not match[1].startswith("-") and bare:
            return FathomError(
                f"{bare[0]} is missing, or stands behind an option", f"write it by itself: fathom {name} {bare[0]}"
            )
        takes = next((row.takes for row in arguments if row.word == match[1]), "")
        return FathomError(f"{match[1]} was given without a value", f"write {match[1]} {takes}".rstrip())
    if match := re.search(r"invalid choice '(.*?)' for argument '([^']+)'", said):
        return _value_refusal(match[2], match[1], arguments)
    if match := re.search(r"Error parsing (\S+): .*?(?:from \['(.*?)'\]|: '(.*?)')", said):
        return _value_refusal(match[1].split("/")[0], match[2] or match[3] or "", arguments)
    if said.startswith("Missing from") and (row := _missing(cells, arguments)):
        hint = re.sub(r"\s*\(.*", "", row.text).rstrip(".")
        return FathomError(
            f"`fathom {name}` needs {row.call} ({hint if hint[:2].isupper() else hint[:1].lower() + hint[1:]})",
            _ask(name),
        )
    return FathomError(re.sub(r"\.\s+", ", ", said)[:300] or "the arguments do not fit", _ask(name))


def _missing(cells: list[str], arguments: list[Row]) -> Row | None:
    """The first required argument that was not given."""
    words = [cell.split()[0] for cell in cells if re.match(r" {4}\S", cell)]
    options = [word for word in words if word.startswith("-")]
    positional = [row for row in arguments if row.required and not row.word.startswith("-")]
    missing = positional[len(positional) - len(words) + len(options) :]
    return next(iter([*missing, *(row for row in arguments if row.word in options)]), None)


def _stray_refusal(stray: str, arguments: list[Row], name: str) -> FathomError:
    if not stray.startswith("-"):
        return FathomError(f"`fathom {name}` has no place for {_short(stray)}", _ask(name))
    options = {row.word.lstrip("-"): row.word for row in arguments if row.word.startswith("-")}
    near = get_close_matches(stray.lstrip("-"), options, n=1)
    remedy = f"did you mean {options[near[0]]}?" if near else f"`fathom {name} --help` lists them"
    return FathomError(f"`fathom {name}` has no option {_short(stray, quoted=False)}", remedy)


def _value_refusal(word: str, value: str, arguments: list[Row]) -> FathomError:
    row = next((row for row in arguments if word in (row.word, row.takes)), None)
    word, takes = (row.word, row.takes) if row else (word, "")
    choices = [choice for listed in re.findall(r"\{(.*?)\}", takes) for choice in listed.split(",")]
    near = get_close_matches(value, choices, n=1)
    if near:
        remedy = f"did you mean {near[0]}?"
    else:
        kinds = [KINDS[kind] for kind in re.findall(r"[A-Z]+", re.sub(r"\{.*?\}", "", takes)) if kind in KINDS]
        remedy = f"it takes {_either([*kinds, *choices])}" if kinds or choices else "it takes another kind of value"
    return FathomError(f"{word} cannot be {_short(value)}", remedy)


def _stray(cells: list[str]) -> str:
    """The first word that fits nowhere, an option before any other; "" where all words were understood."""
    for index, cell in enumerate(cells):
        _, found, rest = cell.partition("Unrecognized options:")
        if found:
            words = rest.split(", ") if rest.strip() else cells[index + 1 :]
            words = [word.strip() for word in words if word.strip()]
            options = [word.partition("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
            return next(iter(options or words), "")
    return ""


def _positional_names(config: type) -> list[str]:
    import tyro

    marker = get_args(tyro.conf.Positional[int])[1]
    hints = get_type_hints(config, include_extras=True)
    return [f.name.upper() for f in dataclasses.fields(config) if marker in get_args(hints[f.name])[1:]]


def _with_text(row: Row, text: str) -> Row:
    """`row` with more of its help; what tyro adds in parentheses becomes words, or nothing where it says nothing."""
    whole = f"{row.text} {text}".strip()
    required = row.required or "(required)" in whole
    whole = re.sub(r"\s*\((?:required|default: (?:None|False|True|'')?)\)", "", whole)
    whole = re.sub(r"\.? \(default: (.*)\)$", r". Default \1.", whole)
    return dataclasses.replace(row, text=whole, required=required)


def _plain(takes: str, name: str) -> str:
    """tyro's `[[PATH [PATH ...]]]` as `[PATH ...]`; a positional STR gets its field's name."""
    several = re.fullmatch(r"\[+(\S+) \[\1 \.\.\.\]+", takes)
    word = several[1] if several else takes
    word = name if name and word == "STR" else word
    return f"[{word} ...]" if several else word


def _cells(drawn: str) -> list[str]:
    """What stands inside the drawn boxes, line by line."""
    inside = [line[1:-1].removeprefix(" ").rstrip() for line in drawn.splitlines() if line[:1] == line[-1:] == "│"]
    return [line for line in inside if line.strip("─ ")]


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    """What tyro writes to either stream, in boxes so wide that nothing wraps."""
    said = _Wide()
    columns = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "4000"
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            yield said
    finally:
        if columns is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = columns


class _Wide(io.StringIO):
    encoding = "utf-8"  # tyro draws other boxes elsewhere


def _tyro(config: type, name: str, argv: Sequence[str]) -> Any:
    import tyro

    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)
    return tyro.cli(config, args=list(argv), prog=f"fathom {name}", config=style)


def _ask(name: str) -> str:
    return f"`fathom {name} --help` lists what it takes"


def _either(words: list[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


def _short(word: str, quoted: bool = True) -> str:
    cut = word if len(word) <= 60 else f"{word[:57]}…"
    return repr(cut) if quoted else cut
