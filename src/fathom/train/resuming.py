"""What a person types to go on with a run, rebuilt from its run.toml (pure, no torch)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

GPUS_A_MACHINE = 8


def resume_line(name: str, tables: Mapping[str, Mapping[str, Any]], ranks: int = 1) -> str:
    """The command that goes on with a run that was stopped or broke off: the pipeline that made it, else its stage, by
    as many ranks as it was trained by.

    "" where run.toml does not say what it is.
    """
    about, config = tables.get("run", {}), tables.get("config", {})
    if words := pipeline(tables):
        return line(words[0], *words[1:])
    if about.get("stage") == "sft":
        return line("sft", about["base"], ranks=ranks, run=name, resume=True) if about.get("base") else ""
    if not config:
        return ""
    texts = {} if config.get("corpus") else {"corpus": "CORPUS", "tokenizer": config.get("tokenizer", "TOKENIZER")}
    return line("pretrain", ranks=ranks, run=name, resume=True, **texts)


def pipeline(tables: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What was typed for the quickstart or speedrun that the run is a stage of, word by word; () where none made it."""
    words = tables.get("run", {}).get("made_by")
    if not isinstance(words, list) or not words or words[0] not in ("quickstart", "speedrun"):
        return ()
    return tuple(words) if all(isinstance(word, str) and word.isprintable() for word in words) else ()


def started_by(ranks: int, fathom: str = "fathom", torchrun: str = "torchrun") -> str:
    """What stands before a command that so many ranks share; the last two are what is typed for these programs."""
    if ranks == 1:
        return fathom
    machines = ranks // GPUS_A_MACHINE if ranks % GPUS_A_MACHINE == 0 else 1
    nodes = f"--nnodes {machines} " if machines > 1 else ""
    return f"{torchrun} {nodes}--nproc-per-node {ranks // machines} -m fathom --"


def line(command: str, *words: Any, ranks: int = 1, **flags: Any) -> str:
    """`fathom COMMAND WORDS --flag value`; without what has no value. True is a switch, a list several values."""
    parts = [started_by(ranks), command, *(shlex.quote(str(word)) for word in words)]
    for key, value in flags.items():
        if value is None:
            continue
        parts.append(f"--{key.replace('_', '-')}")
        if value is not True:
            parts += [shlex.quote(str(one)) for one in (value if isinstance(value, list | tuple) else [value])]
    return f"`{' '.join(parts)}`"
