"""`fathom sft`: fine-tune a run on conversations. What can be refused is refused before torch is imported."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom.data.conversations import read_conversations, render
from fathom.data.conversations import view as conversation_view
from fathom.data.conversations.batches import SftBatches
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.model.shape import Shape
from fathom.optim.rates import Rates
from fathom.ranks import ALONE, Ranks, shared
from fathom.record import read_config
from fathom.tokenizer import Tokenizer
from fathom.train import checkpoint
from fathom.train.beginning import gone_on_with, locked_run, say_if_new
from fathom.train.display import say_finished
from fathom.train.intervals import Saving, saving
from fathom.train.settings import KNOBS
from fathom.train.sharing import Sharing
from fathom.train.trackers import asked_for

RATE_SHARE = 0.8  # of the base run's peak rates, at the base run's batch
FEWEST_STEPS = 200
HELD_OUT_EVERY = 50
MOST = 10**6  # of --epochs and --lr-share

Rendered = tuple[list[int], list[int]]  # ids and mask


@dataclass(frozen=True)
class Sft:
    """Fine-tune a run on conversations, in the usual `messages` form, one JSON object a line."""

    base: tyro.conf.Positional[str]
    """The run to start from."""
    data: tuple[str, ...] = ()
    """Files of conversations (.jsonl, also .gz and .zst). Needed, but to resume."""
    name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Name of the new run. Default BASE-sft."""
    validation: tuple[str, ...] = ()
    """Files to measure on. Default every 50th conversation, which is then not trained on."""
    step: int | None = None
    """Checkpoint of the base run to start from. Default its newest."""
    epochs: float = 1.0
    """How many times to go through the conversations."""
    steps: int | None = None
    """Train so many steps instead."""
    batch_tokens: int | None = None
    """Tokens a step. Default the base run's, or fewer so that there are 200 steps."""
    device_batch: int | None = None
    """Rows of a micro-batch. Default by the machine."""
    lr_share: float = RATE_SHARE
    """Peak rates, as a share of the base run's."""
    seed: int = 1
    """Seed of the order of conversations."""
    eval_every: int | None = None
    """Measure bpb of held-out answers every so many steps, and at the end. Default four times."""
    save_every: str = "10m"
    """Checkpoint interval: steps (500) or minutes (10m)."""
    keep: int = 2
    """Newest checkpoints to keep; the one with the best bits per byte stays besides."""
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
    show: int | None = None
    """Print so many conversations with their mask in colour, and do not train."""
    resume: bool = False
    """Go on from the run's newest checkpoint; on a finished run, only print its result."""
    shard_model: bool = False
    """Under torchrun: split the weights over the ranks (FSDP), for models larger than a GPU."""
    shard_within: int | None = None
    """With --shard-model: split over so many ranks (of one node, say), and keep a copy a group. Default all ranks."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    def run(self) -> dict[str, Any]:
        if self.show is not None:
            return show(self)
        result, finished = shared(self._train)
        if not finished:
            sys.exit(130)
        say_finished(
            result, f"`fathom chat {result['run']}` talks to it; `fathom report {result['run']}` says how it went"
        )
        return result

    def _train(self, here: Ranks) -> tuple[dict[str, Any], bool]:
        if self.resume:
            say_if_new(self.name or f"{self.base}-sft")
        return sft(self, here)


def show(config: Sft) -> dict[str, Any]:
    """Print the first conversations as training would see them; returns their ids and masks."""
    base = read_config(config.base)
    if not config.data:
        raise FathomError("no conversations were given", "say which with --data FILE…")
    if config.show is not None and config.show < 1:
        raise FathomError(f"--show is {config.show}", "show at least one conversation")
    tokenizer = checkpoint.tokenizer_of(config.base)
    row_tokens = base["model"]["seq_len"] + 1
    few = islice(read_conversations(config.data), min(config.show or 1, sys.maxsize))
    rendered = [(ids[:row_tokens], mask[:row_tokens]) for ids, mask in (render(m, tokenizer) for m in few)]
    if not config.json:
        conversation_view.show(rendered, tokenizer)
    return {"conversations": [{"ids": ids, "mask": mask} for ids, mask in rendered]}


@dataclass(frozen=True)
class Intent:
    """A fine-tuning as it is meant to be: what can be known without a device."""

    name: str
    checkpoint: Path
    """What it starts from."""
    tokenizer: Tokenizer
    base: Mapping[str, Mapping[str, Any]]
    """run.toml of the run that it starts from."""
    tables: Mapping[str, Mapping[str, Any]]
    """What run.toml will hold, but for what depends on the conversations and on the device."""
    rates: Rates
    saving: Saving
    track: tuple[str, ...]

    @property
    def shape(self) -> Shape:
        return Shape(**self.base["model"])


def sft(config: Sft, here: Ranks = ALONE, made_by: Sequence[str] = ()) -> tuple[dict[str, Any], bool]:
    """Fine-tune as `config` says. Returns what --json prints, and whether the run came to its end.

    `made_by` is what was typed for the pipeline that this is a stage of.
    """
    sharing = Sharing(here, config.shard_model, config.shard_within)
    sharing.check()
    base = read_config(config.base)
    config = _as_it_began(config)
    intent = _looked_over(config, base, here)
    with locked_run(intent.name, here) as folder:
        training, held_out = _conversations(config, intent.tokenizer)
        rows = _rows_per_step(config, training, base["config"]["batch_tokens"], intent.shape.seq_len)
        source = SftBatches(training, intent.shape.seq_len, rows, config.seed)
        from fathom.train.fine_tuning import train_tuned

        return train_tuned(config, intent, folder, source, held_out, sharing, made_by)


def _looked_over(config: Sft, base: Mapping[str, Any], here: Ranks) -> Intent:
    """FathomError for all that is wrong with `config`, as far as no conversation is read and no device is asked."""
    name = config.name or f"{config.base}-sft"
    if name == config.base:
        raise FathomError(f"the new run would be its own base, {name!r}", "choose another --run")
    refuse_nonsense(config)
    start = _start(config, name)
    tokenizer = checkpoint.tokenizer_of(config.base)
    rates = Rates(**{key: base["config"][key] for key in asdict(Rates())})
    tables = {
        "run": {"stage": "sft", "base": config.base, "tokenizer_digest": tokenizer.digest},
        "model": asdict(Shape(**base["model"])),
        "config": {
            "tokenizer": base["config"]["tokenizer"],
            "base_step": int(start.name),
            "data": list(config.data),
            "validation": list(config.validation) or None,
            "lr_share": config.lr_share,
            "fp8": config.fp8,
            "document_mask": config.document_mask or base["config"].get("document_mask", False),
            "seed": config.seed,
            **asdict(rates),
        },
    }
    dtype = None if config.dtype == "auto" else config.dtype
    told = {"steps": config.steps, "batch_tokens": config.batch_tokens, "dtype": dtype}
    given = {key: value for key, value in told.items() if value is not None}
    here.from_main(lambda: gone_on_with(name, config.resume, tables | {"config": tables["config"] | given}))
    checkpoints = saving(config.save_every, config.keep)
    return Intent(name, start, tokenizer, base, tables, rates, checkpoints, asked_for(config.track))


def _start(config: Sft, name: str) -> Path:
    """The checkpoint of the base run to start from. It may be gone, where the run has one of its own to go on from."""
    step, own = config.step, run_dir(name)
    if (own / "run.toml").exists():
        step = read_config(name).get("config", {}).get("base_step") if step is None else step
        if step is not None and checkpoint.steps(own):
            return checkpoint.folder_of(run_dir(config.base), step)
    return checkpoint.find(config.base, step)


def _as_it_began(config: Sft) -> Sft:
    """With the settings of the run that is resumed, where no conversations are named with it."""
    if config.data:
        return config
    name = config.name or f"{config.base}-sft"
    if not (config.resume and (run_dir(name) / "run.toml").exists()):
        raise FathomError("no conversations were given", "say which with --data FILE…")
    begun = read_config(name)["config"]
    if "data" not in begun:
        raise FathomError(f"the run {name!r} does not say what it was fine-tuned on", "say which with --data FILE…")
    return replace(
        config,
        data=tuple(begun["data"]),
        validation=tuple(begun.get("validation", ())),
        step=begun["base_step"],
        steps=begun["steps"],
        batch_tokens=begun["batch_tokens"],
        lr_share=begun.get("lr_share", config.lr_share),
        seed=begun["seed"],
        dtype=begun.get("dtype", "auto") if config.dtype == "auto" else config.dtype,
        fp8=config.fp8 or begun.get("fp8", False),
        document_mask=config.document_mask or begun.get("document_mask", False),
    )


def refuse_nonsense(config: Sft) -> None:
    """FathomError for numbers that no fine-tuning can have."""
    for option, number in (("--epochs", config.epochs), ("--lr-share", config.lr_share)):
        if not 0 < number <= MOST:
            raise FathomError(f"{option} is {number}", f"give a number above zero, up to {MOST:,}, or leave it out")
    for key in ("steps", "batch_tokens", "seed"):
        if (number := getattr(config, key)) is not None:
            KNOBS[key].check(key, number, "flag")
    if config.eval_every is not None and config.eval_every < 0:
        raise FathomError(f"--eval-every is {config.eval_every}", "give a number of steps, or 0 for the end only")


def _conversations(config: Sft, tokenizer: Tokenizer) -> tuple[list[Rendered], list[Rendered]]:
    """Rendered conversations to train on and to measure on."""
    every = [render(messages, tokenizer) for messages in read_conversations(config.data)]
    if config.validation:
        return every, [render(messages, tokenizer) for messages in read_conversations(config.validation)]
    if len(every) < 2:
        raise FathomError(
            f"there is {len(every)} conversation in {', '.join(config.data)}", "give at least two, one is held out"
        )
    stride = min(HELD_OUT_EVERY, len(every))
    return [c for i, c in enumerate(every) if i % stride], every[::stride]


def _rows_per_step(config: Sft, training: list[Rendered], base_batch: int, seq_len: int) -> int:
    if config.batch_tokens is not None:
        if config.batch_tokens < seq_len or config.batch_tokens % seq_len:
            raise FathomError(
                f"a batch of {config.batch_tokens} tokens is not a whole number of rows of {seq_len}",
                f"choose --batch-tokens as a multiple of {seq_len}",
            )
        return config.batch_tokens // seq_len
    tokens = sum(min(len(ids), seq_len) for ids, _ in training)
    most = max(1, int(tokens * config.epochs / FEWEST_STEPS / seq_len))
    return min(base_batch // seq_len, 2 ** int(math.log2(most)))
