"""What a command line begins with: fathom, or torchrun where several ranks share the work; plain or as typed here."""

from __future__ import annotations

import shlex
from pathlib import Path

from fathom.screen import command_name

PROGRAM = "fathom"
GPUS_A_MACHINE = 8


def started_by(ranks: int, fathom: str = PROGRAM) -> str:
    """What stands before a command that so many ranks share, where `fathom` is what is typed for one."""
    if ranks == 1:
        return fathom
    machines = ranks // GPUS_A_MACHINE if ranks % GPUS_A_MACHINE == 0 else 1
    nodes = f"--nnodes {machines} " if machines > 1 else ""
    return f"{_torchrun(fathom)} {nodes}--nproc-per-node {ranks // machines} -m fathom --"


def typed_here(command: str) -> str:
    """A line that was written down with plain names, as it has to be typed here."""
    first, _, rest = command.partition(" ")
    here = {PROGRAM: command_name(), "torchrun": _torchrun(command_name())}
    return f"{here.get(first, first)} {rest}"


def _torchrun(fathom: str) -> str:
    """The launcher has its own, in its .venv."""
    if fathom == PROGRAM:
        return "torchrun"
    return shlex.quote(str(Path(shlex.split(fathom)[0]).parent / ".venv/bin/torchrun"))
