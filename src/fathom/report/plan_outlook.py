"""What a planned run needs of data and disk, what it will be worth, and the commands that start it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.errors import FathomError
from fathom.estimate import Work, checkpoint_bytes
from fathom.expectation import Expectation, expected_bpb, expected_core, from_own_run, why_unknown
from fathom.home import names, run_dir, tokenizer_dir
from fathom.report.history import History, history_of
from fathom.report.plan_machine import Machine
from fathom.screen import command_name, torchrun_name
from fathom.train.resuming import started_by
from fathom.train.settings import Settings

BEST_FIT_DROPS = 0.346  # of the tokens, at 2048 of context: REFERENCE 5
BYTES_PER_TOKEN = 4.7  # at 32,768 tokens of vocabulary: the seeds' losses over their bits per byte, REFERENCE 16
SHARD_GB = 0.1  # to fetch, the same
SHARD_TOKENS = 46.7e6  # of a file of ClimbMix: about 150 are 7 G tokens, REFERENCE 5
CLIMBMIX, CLIMBMIX_SHARDS = "climbmix", 6542
MOST_EPOCHS = 4  # times through the same text that teach nearly as much as new text (Muennighoff et al. 2023)
MOST_BY_HEART = 40  # from so many on another time teaches next to nothing (the same)
KEPT = 4  # checkpoints by default: two newest, the best, the warm-down's first; one more while it is being written
RUNS_LOOKED_AT = 50
LEAST_STEPS = 20  # of a run that tells what another will be worth
# What two runs must have in common for one to tell the other's bpb: the same value, or both by the same rule.
RATES = (
    *("matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "lr_scale", "weight_decay", "warmup_steps"),
    *("warmdown_share", "final_lr", "rules", "packing"),
)
PASSED_ON = ("recipe", "rules", "packing", "head_dim", "seq_len", "window", "ratio", "steps", "flops", "batch_tokens")


@dataclass(frozen=True)
class Data:
    tokens_needed: int
    bytes_needed: int
    """Of text, by the corpus's own bytes per token where it was tokenized, else by the vocabulary."""
    corpus: str | None
    tokens_present: int | None
    bytes_present: int | None

    @property
    def epochs(self) -> float | None:
        """How often the run goes through the corpus."""
        return self.tokens_needed / self.tokens_present if self.tokens_present else None

    @property
    def is_too_little(self) -> bool:
        """There is none, or so little that the run would learn it by heart."""
        return self.epochs is None or self.epochs > MOST_EPOCHS

    @property
    def is_far_too_little(self) -> bool:
        return self.epochs is None or self.epochs > MOST_BY_HEART

    def as_json(self) -> dict[str, Any]:
        return {
            "tokens_needed": self.tokens_needed,
            "bytes_needed": self.bytes_needed,
            "corpus": self.corpus,
            "tokens_present": self.tokens_present,
            "bytes_present": self.bytes_present,
            "epochs": None if self.epochs is None else round(self.epochs, 3),
        }


def data_for(settings: Settings, corpus: str | None) -> Data:
    """What training reads against what is here: the corpus named, else the largest. FathomError for an unknown name."""
    vocab = settings.shape.vocab_size
    drops = BEST_FIT_DROPS if settings.packing == "best-fit" else 0.0
    needed = math.ceil(settings.steps * settings.batch_tokens / (1 - drops))
    name, n_bytes, folder = _corpus(corpus)
    tokens = _tokens(folder, vocab) if folder else None
    ratio = n_bytes / tokens if tokens else bytes_per_token(vocab)
    if n_bytes and tokens is None:
        tokens = round(n_bytes / ratio)
    return Data(needed, math.ceil(needed * ratio), name, tokens, n_bytes or None)


def bytes_per_token(vocab: int) -> float:
    """One for the 256 bytes alone, 4.7 at 32,768, evenly by doublings of the vocabulary."""
    return 1 + (BYTES_PER_TOKEN - 1) * max(0.0, math.log2(max(vocab, 256)) - 8) / 7


def _corpus(asked: str | None) -> tuple[str | None, int, Path | None]:
    """(name, bytes to train on, folder) of the corpus asked for, else of the largest whole one here."""
    here = names("corpora")
    if asked is None and not here:
        return None, 0, None
    from fathom.data.corpus import open_corpus

    found = []
    for name in here if asked is None else [asked]:
        try:
            corpus = open_corpus(name)
        except FathomError:
            if asked is not None:
                raise
            continue
        found.append((corpus.n_bytes("train"), name, corpus.folder))
    if not found:
        return None, 0, None
    n_bytes, name, folder = max(found)
    return name, n_bytes, folder


def _tokens(folder: Path, vocab: int) -> int | None:
    """Training tokens of a corpus that was already tokenized with such a vocabulary."""
    for path in folder.glob("tokens/*/meta.json"):
        try:
            meta = json.loads(path.read_bytes())
            if meta["vocab_size"] == vocab:
                return int(meta["splits"]["train"]["tokens"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def disk_gb(work: Work, data: Data) -> tuple[float, float]:
    """(one checkpoint, all that the run puts on the disk: checkpoints and the corpus as tokens)."""
    one = checkpoint_bytes(work) / 1e9
    token_bytes = 2 if work.shape.vocab_size <= 1 << 16 else 4
    tokens = data.tokens_needed if data.is_too_little else data.tokens_present or 0
    return one, one * (KEPT + 1) + token_bytes * tokens / 1e9


def expectations(settings: Settings, corpus: str | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """bpb and CORE as {low, expected, high, from}; null, and why, where nothing is known."""
    shape = settings.shape
    tokens = settings.steps * settings.batch_tokens
    flops, ratio = float(tokens * shape.flops_per_token), tokens / shape.scaling_parameters
    unknown = why_unknown(settings.depth, shape.vocab_size, ratio)
    bpb: Expectation | str = _own(corpus, settings, flops) or unknown or expected_bpb(flops, ratio)
    return _as_json(bpb), _as_json(unknown or expected_core(flops, ratio))


def _as_json(found: Expectation | str) -> dict[str, Any]:
    if isinstance(found, Expectation):
        return found.as_json()
    return {"low": None, "expected": None, "high": None, "from": f"unknown: {found}"}


def _own(corpus: str | None, settings: Settings, flops: float) -> Expectation | None:
    """From the finished run here on that corpus, vocabulary and rates that is nearest in compute and size.

    One of a few steps has hardly left its first loss, and tells nothing.
    """
    found = []
    runs = [run for run in names("runs") if (run_dir(run) / "run.toml").exists()] if corpus else []
    for name in sorted(runs, key=lambda run: -(run_dir(run) / "run.toml").stat().st_mtime)[:RUNS_LOOKED_AT]:
        try:
            history = history_of(name)
        except FathomError:
            continue
        if history.steps_done < LEAST_STEPS:
            continue
        bpb = (history.result or {}).get("val_bpb")
        config, tokens = history.config.get("config", {}), (history.result or {}).get("tokens")
        if history.stage != "pretrain" or config.get("corpus") != corpus or not bpb or not tokens:
            continue
        if history.shape is None or history.shape.vocab_size != settings.shape.vocab_size:
            continue
        if _has_rates_of(history, settings):
            own, unlike = float(tokens * history.shape.flops_per_token), _unlike(history, settings)
            found.append((abs(math.log2(flops / own)) + unlike, unlike, own, float(bpb), name))
    if not found:
        return None
    _, unlike, own, bpb, name = min(found)
    return from_own_run(flops, bpb, own, name, unlike)


def _has_rates_of(history: History, settings: Settings) -> bool:
    """Whether all that RATES lists is the same, or by a rule in both; what an old record lacks was by the rules."""
    config, origin, planned = history.config.get("config", {}), history.config.get("origin", {}), settings.flat()

    def by_rule(origins: Mapping[str, Any], key: str) -> bool:
        return str(origins.get(key, "rule")).startswith(("rule", "default"))

    return all(
        config.get(key, planned[key]) == planned[key] or (by_rule(origin, key) and by_rule(settings.origin, key))
        for key in RATES
    )


def _unlike(history: History, settings: Settings) -> float:
    """Doublings between the two, of parameters, context and batch together."""
    shape = history.shape
    assert shape is not None
    pairs = [
        (shape.scaling_parameters, settings.shape.scaling_parameters),
        (shape.seq_len, settings.shape.seq_len),
        (history.batch_tokens or settings.batch_tokens, settings.batch_tokens),
    ]
    return sum(abs(math.log2(one / other)) for one, other in pairs)


def commands(
    given: Mapping[str, Any], settings: Settings, data: Data, device_batch: int | None, machine: Machine
) -> list[str]:
    """What to type, in order: fetch text where it is too little here, train a tokenizer where there is none, train."""
    lines = []
    corpus, fathom, shards = data.corpus or CLIMBMIX, command_name(), shards_to_get(given, data)
    if shards:
        corpus = CLIMBMIX
        lines.append(f"{fathom} data get {CLIMBMIX} --shards {shards if shards < CLIMBMIX_SHARDS else 'all'}")
    vocab, tokenizer = settings.shape.vocab_size, given.get("tokenizer")
    if tokenizer is None and machine.is_here:
        tokenizer = next((name for name in _tokenizers(corpus, vocab) if (tokenizer_dir(name)).is_dir()), None)
    if tokenizer is None:
        tokenizer = f"{corpus}-{vocab}"
        lines.append(f"{fathom} tokenizer train --corpus {corpus} --vocab {vocab} --name {tokenizer}")
    words: list[str] = ["pretrain", "--corpus", corpus, "--tokenizer", tokenizer]
    words += ["--depth", str(settings.depth)] + _flags(given) + (["--fp8"] if given.get("fp8") else [])
    if device_batch is not None:
        words += ["--device-batch", str(device_batch)]
    return [*lines, f"{started_by(machine.ranks, fathom, torchrun_name())} {shlex.join(words)}"]


def shards_to_get(given: Mapping[str, Any], data: Data) -> int:
    """Files of ClimbMix that the run wants, where the text that is here is too little; else 0."""
    wants = data.is_far_too_little if given.get("corpus") else data.is_too_little
    return min(CLIMBMIX_SHARDS, max(1, math.ceil(data.tokens_needed / SHARD_TOKENS))) if wants else 0


def plan_command(given: Mapping[str, Any], machine: Machine) -> str:
    """The plan of `given` for these devices."""
    ranks = machine.ranks
    own = ("device_batch", "price", "watts", "corpus", "tokenizer")
    words = ["plan", *_flags(given, ("depth", "hours", *PASSED_ON, *own))]
    is_told = given.get("tokenizer") is None and given.get("vocab") not in (None, 32_768)
    words += ["--vocab", str(given["vocab"])] if is_told else []
    words += [] if machine.is_here else ["--gpu", f"{ranks}x{machine.label}" if ranks > 1 else machine.label]
    words += ["--ranks", str(ranks)] if machine.is_here and ranks > 1 else []
    words += ["--ways", given["ways"]] if given.get("ways") not in (None, "ours") else []
    words += [f"--{switch}" for switch in ("fp8", "probe") if given.get(switch)]
    return f"{command_name()} {shlex.join(words)}"


def _tokenizers(corpus: str, vocab: int) -> Sequence[str]:
    return (f"{corpus}-{vocab}", corpus) if vocab == 32_768 else (f"{corpus}-{vocab}",)


def _flags(given: Mapping[str, Any], keys: Sequence[str] = PASSED_ON) -> list[str]:
    words = []
    for key in keys:
        if given.get(key) is not None:
            value = given[key]
            words += [f"--{key.replace('_', '-')}", f"{value:g}" if isinstance(value, float) else str(value)]
    return words
