"""The table of commands; nothing else lives here.

Every command is a frozen dataclass, beside the code that it configures, with a `run` method. What `run` returns
is the object that `--json` prints. Modules are imported only for the command that was asked for.
"""

from __future__ import annotations

import errno
import importlib
import json
import math
import os
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from fathom.errors import FathomError
from fathom.home import home
from fathom.ranks import are_many, leave
from fathom.screen import command_name, typed, window_width, wrapped

COMMANDS: dict[str, tuple[str, str]] = {
    "quickstart": ("fathom.quickstart:Quickstart", "from nothing to a model that talks, in minutes"),
    "speedrun": ("fathom.speedrun:Speedrun", "all stages in a row, on your text and conversations"),
    "data add": ("fathom.data.corpus.commands:Add", "make a corpus of your files"),
    "data get": ("fathom.data.hub:Get", "fetch a corpus from the Hugging Face hub"),
    "data list": ("fathom.data.corpus.commands:List", "what corpora are here"),
    "data show": ("fathom.data.corpus.commands:Show", "print a few documents of a corpus"),
    "data pack": ("fathom.data.packing:Pack", "show how documents of given lengths fill rows"),
    "tokenizer train": ("fathom.tokenizer_commands:Train", "train a tokenizer on a corpus"),
    "tokenizer eval": ("fathom.tokenizer_commands:Eval", "bytes per token on several kinds of text"),
    "tokenizer encode": ("fathom.tokenizer_commands:Encode", "standard input to token ids"),
    "tokenizer decode": ("fathom.tokenizer_commands:Decode", "token ids on standard input to text"),
    "plan": ("fathom.report.plan:Plan", "what a run will be, before it starts"),
    "pretrain": ("fathom.train.pretrain:Pretrain", "train a base model on a corpus"),
    "sft": ("fathom.train.sft:Sft", "fine-tune a run on conversations"),
    "sweep": ("fathom.sweep.command:Sweep", "a grid of runs, queued, resumed, judged over seeds"),
    "eval": ("fathom.evaluate_command:Eval", "measure a run: bpb, CORE, chat tasks, your own"),
    "chat": ("fathom.serve.terminal:Chat", "talk to a run"),
    "serve": ("fathom.serve.command:Serve", "a run as a chat page and behind OpenAI's API"),
    "status": ("fathom.report.status:Status", "where a run is, when it ends, what to worry about"),
    "dashboard": ("fathom.report.dashboard:Dashboard", "runs in the browser, live"),
    "report": ("fathom.report.report:Report", "what a run was and why it went as it did"),
    "compare": ("fathom.report.compare:Compare", "runs side by side: steps, FLOPs, time, verdict"),
    "scaling": ("fathom.report.scaling:Scaling", "what a miniseries says about larger runs"),
    "leaderboard": ("fathom.report.leaderboard:Leaderboard", "runs by training time to a target"),
    "import": ("fathom.interop.command:Import", "make a run of a nanochat checkpoint"),
    "doctor": ("fathom.report.doctor:Doctor", "what this machine has and lacks"),
}


LAUNCHER = {"test": "run the project's own tests"}

CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
ENVIRONMENT = {*CLOSED, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EMFILE, errno.ENAMETOOLONG}


def main(argv: list[str] | None = None) -> NoReturn:
    """Run one command. Exit 0, or 2 with one sentence on standard error, or 130 after Ctrl-C."""
    try:
        _dispatch(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        _exit(0)
    except SystemExit as ended:
        if are_many():
            leave(ended.code if isinstance(ended.code, int) else 0 if ended.code is None else 1)
        raise
    except FathomError as error:
        _refuse(str(error))
    except BrokenPipeError:
        _hush()
        sys.exit(0)
    except OSError as error:
        if error.errno not in ENVIRONMENT:
            raise
        where = f"{error.filename}: " if error.filename else ""
        _refuse(f"{where}{(error.strerror or 'the system refused').lower()}; {_remedy(error)}.")
    except KeyboardInterrupt:
        print("fathom: stopped.", file=sys.stderr)
        _exit(130)


def _remedy(error: OSError) -> str:
    is_closed = error.errno in CLOSED and isinstance(error.filename, str)
    if is_closed and Path(error.filename).absolute().is_relative_to(home().absolute()):
        return "set FATHOM_HOME to a folder of yours"
    return "see to that and start again"


def _refuse(sentence: str) -> NoReturn:
    said = f"fathom: {typed(sentence)}"
    print(wrapped(said, window_width()) if sys.stderr.isatty() else said, file=sys.stderr)
    _exit(2)


def _exit(status: int) -> NoReturn:
    if are_many():
        leave(status)
    sys.exit(status)


def _hush() -> None:
    """Let what is still to be written to a reader that has gone disappear quietly."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _dispatch(argv: list[str]) -> None:
    if argv[:1] == ["--"]:  # torchrun, which needs it before our --run, passes it on or not
        argv = argv[1:]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_overview(COMMANDS.keys() | LAUNCHER.keys()))
        return
    if argv[0] == "--version":
        from fathom import __version__

        print(f"fathom {__version__}")
        return
    name, rest = _split(argv)
    if not name:
        return
    module, _, attribute = COMMANDS[name][0].partition(":")
    from fathom.arguments import parse
    from fathom.loading import say_when_torch_takes_long

    say_when_torch_takes_long()
    command = parse(getattr(importlib.import_module(module), attribute), name, rest)
    result = command.run()
    if getattr(command, "json", False):
        print(_json(result))


def _split(argv: list[str]) -> tuple[str, list[str]]:
    """The command's name and its arguments; an empty name where a group's commands were asked for and printed."""
    two = " ".join(argv[:2])
    if two in COMMANDS:
        return two, argv[2:]
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    if argv[0] in LAUNCHER:
        raise FathomError(f"{argv[0]!r} is done by the launcher", f"run ./fathom {argv[0]} in the project's folder")
    group = [name for name in COMMANDS if name.startswith(argv[0] + " ")]
    if group and argv[1:2] in (["-h"], ["--help"]):
        print(_overview(group))
        return "", []
    if group and len(argv) == 1:
        raise FathomError(f"`fathom {argv[0]}` is several commands", f"choose one of {', '.join(group)}")
    asked, known = (two, group) if group else (argv[0], [*COMMANDS, *LAUNCHER])
    near = get_close_matches(asked, known, n=1, cutoff=0.4)
    remedy = f"did you mean `fathom {near[0]}`?" if near else "`fathom --help` lists the commands"
    raise FathomError(f"there is no command {asked[:60]!r}", remedy)


def _overview(names: Iterable[str]) -> str:
    rows = [f"  {command_name()} {name:<18}{words}" for name, words in _described().items() if name in names]
    head = "fathom: from raw text to a chat model you trained yourself.\n\n"
    tail = "\n\n`fathom COMMAND --help` explains one.\nEverything is kept in ~/.fathom, or in the folder $FATHOM_HOME."
    return head + "\n".join(rows) + typed(tail)


def _described() -> dict[str, str]:
    return {name: words for name, (_, words) in COMMANDS.items()} | LAUNCHER


def _json(result: Any) -> str:
    """One line of JSON. What is not a number (a loss that went astray) is null there."""
    try:
        return json.dumps(result, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(result), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
