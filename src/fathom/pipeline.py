"""What stages in a row have in common: going on where they were, a tokenizer, samples, a summary."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any

from fathom.home import run_dir, tokenizer_dir
from fathom.screen import say
from fathom.train.resuming import line

STOPPED = 130


@dataclass
class Stages:
    """Says which stage is on, and remembers how long each took."""

    total: int
    words: tuple[str, ...]
    """What to type to go on with these stages."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        say(f"\n[{len(self.seconds) + 1}/{self.total}] {what}", style="bold cyan")
        began = time.perf_counter()
        self.seconds[name] = 0.0
        try:
            yield
        except KeyboardInterrupt:
            say(f"stopped; {line(*self.words)} goes on", style="yellow")
            sys.exit(STOPPED)
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def train(self, stage: Callable[..., tuple[dict[str, Any], bool]], config: Any) -> dict[str, Any]:
        """The result of a training, which has said how to go on where it was stopped."""
        result, finished = stage(config, made_by=self.words)
        if not finished:
            sys.exit(STOPPED)
        return result


def words_for(command: str, config: Any) -> tuple[str, ...]:
    """What to type for `config` again: the command, and the options that are not at their defaults."""
    words = [command]
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name != "json" and value != one.default:
            option = "run" if one.name == "name" else one.name.replace("_", "-")
            words += [f"--{option}", *(str(part) for part in (value if isinstance(value, tuple) else [value]))]
    return tuple(words)


def tokenizer_of(corpus_name: str, vocab: int) -> str:
    """The tokenizer of a corpus, trained now where it is not there yet; its name holds the vocabulary asked for."""
    from fathom import tokenizer as tokenizers
    from fathom.data.corpus import open_corpus

    name = f"{corpus_name}-{vocab}"
    if not (tokenizer_dir(name) / tokenizers.FILE).exists():
        corpus = open_corpus(corpus_name)
        trained = tokenizers.train(corpus.documents("train"), vocab)
        trained.save(tokenizer_dir(name), origin={"corpus": corpus_name, "corpus_digest": corpus.digest})
    say(f"  {name}: {tokenizers.load(name).vocab_size:,} tokens")
    return name


def sheet(run: str, dtype: str, prompts: Sequence[str] = ()) -> list[dict[str, str]]:
    from fathom.evaluate.samples import PROMPTS, sample_sheet
    from fathom.train.checkpoint import load_model

    model, tokenizer, info = load_model(run, dtype=dtype)
    pairs = sample_sheet(model, tokenizer, tuple(prompts) or PROMPTS)
    for prompt, text in pairs:
        say(f"  {prompt} … {' '.join(text.split())}")
    return _kept(run, info["step"], [{"prompt": prompt, "text": text} for prompt, text in pairs])


def _kept(run: str, step: int, samples: list[dict[str, str]]) -> list[dict[str, str]]:
    """The samples, which are now in the run's record, once however often a finished pipeline is started again."""
    from fathom.record import Record, read_lines

    known = read_lines(run_dir(run) / "samples.jsonl")
    for sample in samples:
        if {"step": step, **sample} not in known:
            Record(run_dir(run)).sample(step=step, **sample)
    return samples


def talk(run: str, turns: Sequence[str], dtype: str, one_conversation: bool = False) -> list[dict[str, str]]:
    """Say each turn to the model, greedily; print and return the exchanges."""
    from fathom.data.conversations import parse_reply, render_for_completion
    from fathom.generate.engine import Engine
    from fathom.generate.running import Request
    from fathom.train.checkpoint import load_model

    model, tokenizer, info = load_model(run, dtype=dtype)
    engine = Engine(model, tokenizer, max_batch=1)
    said: list[dict[str, str]] = []
    history: list[Any] = []
    for turn in turns:
        history = (
            [*history, {"role": "user", "content": turn}] if one_conversation else [{"role": "user", "content": turn}]
        )
        prompt = render_for_completion(history, tokenizer)
        if len(prompt) >= model.shape.seq_len - 32:
            history = history[-1:]
            prompt = render_for_completion(history, tokenizer)
        if len(prompt) >= model.shape.seq_len:
            say(f"  {turn}: too long for a context of {model.shape.seq_len} tokens", style="dim")
            history = []
            continue
        parts = parse_reply(engine.generate([Request(tuple(prompt), max_tokens=96)])[0].ids, tokenizer)
        reply = "".join(part["text"] for part in parts if part["type"] == "text")
        calls = [part["text"] for part in parts if part["type"] == "python"]
        history = [*history, {"role": "assistant", "content": parts}]
        say(f"  you    {turn}", style="cyan")
        say(f"  model  {' '.join(reply.split())}" + (f"   (calculator: {'; '.join(calls)})" if calls else ""))
        said.append({"prompt": turn, "text": reply})
    return _kept(run, info["step"], said)


def parameters_of(run: str) -> str:
    from fathom.model.shape import Shape
    from fathom.record import read_config

    return f"{Shape(**read_config(run)['model']).parameters['total']:,}"


def time_of(result: dict[str, Any]) -> str:
    from fathom.train.display import clock

    return f"{clock(result['seconds'])}, {result['tokens_per_s']:,.0f} tokens/s in a usual step"


def bpb_of(result: dict[str, Any]) -> str:
    return "not measured" if result["val_bpb"] is None else f"{result['val_bpb']:.4f}"


def print_summary(rows: Sequence[tuple[str, str, str]]) -> None:
    from rich.table import Table

    from fathom.screen import console

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    say()
    console().print(table)
