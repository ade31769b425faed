"""What a person types to go on with a run, rebuilt from its run.toml (pure, no torch)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any


def resume_line(name: str, tables: Mapping[str, Mapping[str, Any]]) -> str:
    """The command that goes on with a run that was stopped or broke off: the pipeline that made it, else its stage.

    "" where run.toml does not say what it is.
    """
    about, config = tables.get("run", {}), tables.get("config", {})
    if words := pipeline(tables):
        return line(words[0], *words[1:])
    if about.get("stage") == "sft":
        return line("sft", about["base"], run=name, resume=True) if about.get("base") else ""
    if not config:
        return ""
    texts = {} if config.get("corpus") else {"corpus": "CORPUS", "tokenizer": config.get("tokenizer", "TOKENIZER")}
    return line("pretrain", run=name, resume=True, **texts)


def pipeline(tables: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """What was typed for the quickstart or speedrun that the run is a stage of, word by word; () where none made it."""
    words = tables.get("run", {}).get("made_by")
    if not isinstance(words, list) or not words or words[0] not in ("quickstart", "speedrun"):
        return ()
    return tuple(words) if all(isinstance(word, str) and word.isprintable() for word in words) else ()


def line(command: str, *words: Any, **flags: Any) -> str:
    """`fathom COMMAND WORDS --flag value`; without what has no value. True is a switch, a list several values."""
    parts = [command, *(shlex.quote(str(word)) for word in words)]
    for key, value in flags.items():
        if value is None:
            continue
        parts.append(f"--{key.replace('_', '-')}")
        if value is not True:
            parts += [shlex.quote(str(one)) for one in (value if isinstance(value, list | tuple) else [value])]
    return f"`fathom {' '.join(parts)}`"
