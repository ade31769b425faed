"""The table of commands; nothing else lives here.

Every command is a frozen dataclass, beside the code that it configures, with a `run` method. What `run` returns
is the object that `--json` prints. Modules are imported only for the command that was asked for.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import os
import re
import sys
from difflib import get_close_matches
from typing import Any, NoReturn

from fathom.errors import FathomError

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("fathom.pipeline:Quickstart", "from nothing to a model that talks, in minutes"),
    "speedrun": ("fathom.pipeline:Speedrun", "every stage in a row, on your own text and conversations"),
    "data add": ("fathom.data.corpus:Add", "make a corpus of your files"),
    "data get": ("fathom.data.hub:Get", "fetch a corpus from the Hugging Face hub"),
    "data list": ("fathom.data.corpus:List", "what corpora are here"),
    "data show": ("fathom.data.corpus:Show", "print a few documents of a corpus"),
    "data pack": ("fathom.data.packing:Pack", "show how documents of given lengths fill rows"),
    "tokenizer train": ("fathom.tokenizer_commands:Train", "train a tokenizer on a corpus"),
    "tokenizer eval": ("fathom.tokenizer_commands:Eval", "bytes per token on several kinds of text"),
    "tokenizer encode": ("fathom.tokenizer_commands:Encode", "standard input to token ids"),
    "tokenizer decode": ("fathom.tokenizer_commands:Decode", "token ids on standard input to text"),
    "plan": ("fathom.report.plan:Plan", "what a run will be, before it starts"),
    "pretrain": ("fathom.train.pretrain:Pretrain", "train a base model on a corpus"),
    "sft": ("fathom.train.sft:Sft", "fine-tune a run on conversations"),
    "chat": ("fathom.serve.terminal:Chat", "talk to a run"),
}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command. Exit 0, or 2 with one sentence on standard error, or 130 after Ctrl-C."""
    try:
        sys.exit(_dispatch(sys.argv[1:] if argv is None else argv))
    except FathomError as error:
        print(f"fathom: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        print("fathom: stopped.", file=sys.stderr)
        sys.exit(130)


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if argv[0] == "--version":
        from fathom import __version__

        print(f"fathom {__version__}")
        return 0
    name, rest = _split(argv)
    command = _parse(name, rest)
    result = command.run()
    if getattr(command, "json", False):
        print(json.dumps(result, ensure_ascii=False))
    return 0


def _split(argv: list[str]) -> tuple[str, list[str]]:
    two = " ".join(argv[:2])
    if two in COMMANDS:
        return two, argv[2:]
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    group = [name for name in COMMANDS if name.startswith(argv[0] + " ")]
    if group and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        print(_overview(group))
        sys.exit(0 if len(argv) > 1 else 2)
    near = get_close_matches(two if group else argv[0], group or list(COMMANDS), n=1, cutoff=0.4)
    remedy = f"did you mean `fathom {near[0]}`?" if near else "`fathom --help` lists the commands"
    raise FathomError(f"there is no command {(two if group else argv[0])!r}", remedy)


def _overview(names: list[str] | None = None) -> str:
    rows = [f"  fathom {name:<18}{COMMANDS[name][1]}" for name in names or COMMANDS]
    head = "fathom: from raw text to a chat model you trained yourself.\n\n"
    tail = "\n\n`fathom COMMAND --help` explains one. Everything is kept in ~/.fathom, or where $FATHOM_HOME says."
    return head + "\n".join(rows) + tail


def _parse(name: str, argv: list[str]) -> Any:
    """The command's dataclass, filled from `argv`; a refusal comes back as one sentence."""
    import tyro

    module, _, attribute = COMMANDS[name][0].partition(":")
    config = getattr(importlib.import_module(module), attribute)
    if "-h" in argv or "--help" in argv:
        return tyro.cli(config, args=["--help"], prog=f"fathom {name}", config=_STYLE())
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(config, args=argv, prog=f"fathom {name}", config=_STYLE())
    except SystemExit as stop:
        if not stop.code:
            raise
        raise FathomError(_one_sentence(said.getvalue()), f"`fathom {name} --help` lists what it takes") from None


def _STYLE() -> tuple[Any, ...]:
    import tyro

    return (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone)


def _one_sentence(box: str) -> str:
    """tyro explains a refusal in a drawn box; its first paragraph, and the nearest option, say it in one line."""
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│╭╮╰╯ \n") for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith("──")]
    body = [line for line in lines if "─" not in line] or ["the arguments do not fit"]
    end = next((i for i, x in enumerate(body) if x.startswith(("Perhaps", "Argument help", "For full", "Got err"))), 1)
    problem = " ".join(body[: max(end, 1)]).rstrip(".")
    near = next((body[i + 1] for i, x in enumerate(body[:-1]) if x.startswith("Perhaps")), "")
    return f"{problem}, perhaps you meant {near.split()[0]}" if near else problem
