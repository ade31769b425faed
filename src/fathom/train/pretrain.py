"""`fathom pretrain`: a base model from a corpus. What can be refused is refused before torch is imported."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom import tokenizer as tokenizers
from fathom.data.corpus import Corpus, open_corpus
from fathom.data.shards import tokenize
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.ranks import ALONE, Ranks, shared
from fathom.record import read_config
from fathom.tokenizer import Tokenizer
from fathom.train.beginning import gone_on_with, imported_run, locked_run, say_if_new
from fathom.train.display import say_finished
from fathom.train.extend import Extension, extension
from fathom.train.intervals import Saving, check_core, evaluation_plan, saving
from fathom.train.settings import Settings, continued, device_rows, read_recipe, resolve
from fathom.train.sharing import Sharing, rows_a_rank
from fathom.train.trackers import asked_for


@dataclass(frozen=True)
class Pretrain:
    """Train a base model on a corpus. What is not given comes from the rules; --depth sets the size."""

    corpus: str | None = None
    """Corpus to read (see `fathom data list`). Needed, but with --extend."""
    tokenizer: str | None = None
    """Tokenizer to use (see `fathom tokenizer train`). Needed, but with --extend."""
    name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Name of the run; its folder holds everything about it. Default d and the depth."""
    depth: int | None = None
    """Layers; sets width, horizon, batch and rates."""
    recipe: str | None = None
    """TOML file with settings; a flag outranks it."""
    rules: Literal["auto", "reference"] | None = None
    """auto: ours, which differ below depth 12. reference: exactly the reference system's. Default auto."""
    packing: Literal["best-fit", "lossless"] | None = None
    """How documents fill rows. Default lossless, with --rules reference best-fit."""
    head_dim: int | None = None
    """Width of an attention head. Default 128."""
    seq_len: int | None = None
    """Context in tokens. Default 2048."""
    window: str | None = None
    """Attention windows by layer: S short, L the whole context. Default SSSL."""
    ratio: float | None = None
    """Tokens for each parameter in blocks and head. Default 12."""
    steps: int | None = None
    """Train so many steps instead."""
    flops: float | None = None
    """Train for so many FLOPs instead."""
    batch_tokens: int | None = None
    """Tokens a step."""
    device_batch: int | None = None
    """Rows of a micro-batch. Default the most that a GPU's memory holds; 8,192 tokens on a CPU."""
    lr_scale: float | None = None
    """Factor on all learning rates. Default by the rules, from batch and horizon."""
    matrix_lr: float | None = None
    """Peak rate of Muon, before scaling. Default 0.02."""
    embedding_lr: float | None = None
    """Peak rate of the embeddings, before scaling. Default 0.3."""
    head_lr: float | None = None
    """Peak rate of the head, before scaling. Default 0.008."""
    scalar_lr: float | None = None
    """Peak rate of the residual scalars, before scaling. Default 0.5."""
    weight_decay: float | None = None
    """Muon's weight decay at the start. Default by the rules."""
    warmup_steps: int | None = None
    """Steps of rate warm-up."""
    warmdown_share: float | None = None
    """Share of the run over which the rate falls. Default 0.65."""
    final_lr: float | None = None
    """Share of the peak rate at the end. Default 0.05."""
    seed: int | None = None
    """Seed of the starting weights and of the order of rows. Default 1."""
    eval_every: int | None = None
    """Measure validation bpb every so many steps, and at the end; 0 for the end only. Default at most 40 times."""
    eval_tokens: int | None = None
    """Validation tokens each time. Default at most 5 % of the run's time in all."""
    validation_rows: Literal["best-fit", "lossless"] | None = None
    """Which rows bpb is measured on: the reference's, or whole documents. Default as the rules are."""
    core_every: int = 0
    """Measure CORE every so many steps, and at the end; 0 for never."""
    core_limit: int = 500
    """Items of each CORE task; 0 for all."""
    save_every: str = "10m"
    """Checkpoint interval: steps (500) or minutes (10m)."""
    keep: int = 2
    """Newest checkpoints to keep, besides the best by bpb and the one that --extend needs."""
    keep_every: int = 0
    """Save and keep for good a checkpoint every so many steps; 0 for none."""
    extend: str | None = None
    """Train this run for longer (with --steps, --ratio or --hours), from before its rate fell, as a new run."""
    hours: float | None = None
    """With --extend: how many hours more, from where it goes on."""
    from_end: bool = False
    """With --extend: go on from the end instead, where the rate has fallen already."""
    skip_spikes: bool = True
    """Leave no step out, however high its loss; else those six standard deviations above the last 128 are."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled kernels: our own on a CPU with g++, else torch's. auto: where the run gains by them. off: none."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What flows through the network. Default by the machine."""
    fp8: bool = False
    """The products of the blocks' large matrices in fp8, on GPUs that have it (Ada, Hopper, Blackwell)."""
    document_mask: bool = False
    """Documents in one row do not see each other."""
    track: str | None = None
    """Also send the figures to tensorboard, wandb or trackio (several with commas). They never stop a run."""
    resume: bool = False
    """Go on from the run's newest checkpoint; on a finished run, only print its result."""
    shard_model: bool = False
    """Under torchrun: split the weights over the ranks (FSDP), for models larger than a GPU."""
    shard_within: int | None = None
    """With --shard-model: split over so many ranks (of one node, say), and keep a copy a group. Default all ranks."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    sample: bool = True
    """Write no sample sheet at the end."""

    def run(self) -> dict[str, Any]:
        result, finished = shared(self._train)
        if not finished:
            sys.exit(130)
        name = result["run"]
        say_finished(
            result, f"`fathom report {name}` says how it went; `fathom sft {name} --data FILE…` teaches it to chat"
        )
        return result

    def _train(self, here: Ranks) -> tuple[dict[str, Any], bool]:
        if self.resume and self.name:
            say_if_new(self.name)
        return pretrain(self, here)


@dataclass(frozen=True)
class Intent:
    """A run as it is meant to be: what can be known without a device."""

    name: str
    corpus: Corpus
    tokenizer: Tokenizer
    settings: Settings
    tables: Mapping[str, Mapping[str, Any]]
    """What run.toml will hold, but for what depends on the device and on the tokens."""
    dtype: str
    """As it was asked for, or what the run has that goes on."""
    saving: Saving
    track: tuple[str, ...]
    more: Extension | None
    """The run that this one extends."""


def pretrain(config: Pretrain, here: Ranks = ALONE, made_by: Sequence[str] = ()) -> tuple[dict[str, Any], bool]:
    """Train as `config` says. Returns what --json prints, and whether the run came to its end (else it was stopped).

    `made_by` is what was typed for the pipeline that this is a stage of.
    """
    sharing = Sharing(here, config.shard_model, config.shard_within)
    sharing.check()
    intent = _looked_over(config, here)
    if config.resume and not config.name:  # what it is called was not known before
        say_if_new(intent.name)
    with locked_run(intent.name, here) as folder:
        store = tokenize(intent.corpus, intent.tokenizer)
        from fathom.train.pretraining import train_base

        return train_base(config, intent, folder, store, sharing, made_by)


def _looked_over(config: Pretrain, here: Ranks) -> Intent:
    """FathomError for all that is wrong with `config`, as far as no device has to be asked."""
    more, begun = _extension(config), _begun(config)
    corpus_name, tokenizer_name = _texts(config, more.tables if more else begun)
    corpus = open_corpus(corpus_name)
    tokenizer = tokenizers.load(tokenizer_name)
    flags, recipe = asdict(config), read_recipe(config.recipe)
    if more:
        settings = more.settings
    elif begun:
        settings = continued(str(config.name), begun, flags, recipe)
    else:
        settings = resolve(flags, recipe, tokenizer.vocab_size)
    seq_len = settings.shape.seq_len
    evaluation_plan(config.eval_every, config.eval_tokens, settings.steps, settings.batch_tokens, seq_len, None)
    if config.device_batch is not None:
        device_rows(config.device_batch, rows_a_rank(settings.rows_per_step, here.world), seq_len, "cpu")
    check_core(config.core_every, config.core_limit)
    before = (more.tables if more else begun) or {"config": {}}
    dtype = before["config"].get("dtype", "auto") if config.dtype == "auto" else config.dtype
    ways = {key: getattr(config, key) or before["config"].get(key, False) for key in ("fp8", "document_mask")}
    run_in = {"stage": "pretrain", "corpus_digest": corpus.digest, "tokenizer_digest": tokenizer.digest}
    tables = {
        "run": run_in,
        "model": asdict(settings.shape),
        "config": {"corpus": corpus_name, "tokenizer": tokenizer_name, **ways, **settings.flat()},
        "origin": settings.origin | ({"recipe": str(Path(config.recipe).resolve())} if config.recipe else {}),
    }
    name = config.name or (f"{more.base}-{settings.steps}" if more else f"d{settings.depth}")
    given = tables | {"config": tables["config"] | ({} if dtype == "auto" else {"dtype": dtype})}
    here.from_main(lambda: gone_on_with(name, config.resume, given))
    checkpoints = saving(config.save_every, config.keep, config.keep_every, settings.schedule.extendable_from)
    return Intent(name, corpus, tokenizer, settings, tables, dtype, checkpoints, asked_for(config.track), more)


def _extension(config: Pretrain) -> Extension | None:
    """The run that this one goes on from, where --extend names one."""
    if config.extend is None:
        for flag, is_given in (("--hours", config.hours is not None), ("--from-end", config.from_end)):
            if is_given:
                raise FathomError(
                    f"{flag} goes with --extend", "`fathom plan --hours H` says what can be trained in H hours"
                )
        return None
    if config.recipe:
        raise FathomError("--recipe was given with --extend", "an extended run keeps the settings of its run")
    return extension(config.extend, asdict(config), config.hours, config.from_end)


def _begun(config: Pretrain) -> dict[str, Any] | None:
    """run.toml of a run that is resumed as it is: an imported one, or one that only its name was said of."""
    if not config.resume or config.extend is not None or config.name is None:
        return None
    if not (run_dir(config.name) / "run.toml").exists():
        return None
    is_named_alone = config.depth is None and config.recipe is None
    return read_config(config.name) if is_named_alone or imported_run(config.name) else None


def _texts(config: Pretrain, tables: Mapping[str, Mapping[str, Any]] | None) -> tuple[str, str]:
    """Names of corpus and tokenizer: as they are given, or those of the run that goes on."""
    known = tables["config"] if tables else {}
    found = {word: getattr(config, word) or known.get(word) for word in ("corpus", "tokenizer")}
    for word, name in found.items():
        if not name:
            raise FathomError(f"no {word} was given", f"say which with --{word}; {_WHERE[word]}")
    return str(found["corpus"]), str(found["tokenizer"])


_WHERE = {"corpus": "`fathom data list` shows them", "tokenizer": "`fathom tokenizer train` makes one"}
