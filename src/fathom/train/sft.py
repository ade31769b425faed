"""`fathom sft`: fine-tune a run on conversations."""

from __future__ import annotations

import math
import sys
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Annotated, Any, Literal

import tyro

from fathom import hardware
from fathom.data.conversations import read_conversations, render
from fathom.data.conversations import view as conversation_view
from fathom.data.conversations.batches import SftBatches
from fathom.errors import FathomError
from fathom.home import run_dir
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups
from fathom.optim.schedule import Schedule
from fathom.ranks import ALONE, Ranks, shared
from fathom.record import read_config
from fathom.screen import say
from fathom.tokenizer import Tokenizer
from fathom.train import checkpoint
from fathom.train.progress import Progress, load_weights_and_moments
from fathom.train.session import (
    Validation,
    begin,
    finished_result,
    locked_run,
    look_at_machine,
    restore,
    run_to_the_end,
    saving,
    say_finished,
    say_if_new,
)
from fathom.train.settings import device_rows
from fathom.train.sharing import Sharing, placed, rows_a_rank, state_of
from fathom.train.trackers import asked_for

RATE_SHARE = 0.8  # of the base run's peak rates, at the base run's batch
WARMDOWN_SHARE = 0.5
MOMENTUM = (0.85, 0.95)
MOMENTUM_WARMUP = 300
FEWEST_STEPS = 200
HELD_OUT_EVERY = 50

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
    """Newest checkpoints to keep."""
    skip_spikes: bool = True
    """Whether steps are left out whose loss is over six standard deviations above the last 128 steps'."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compiled kernels. auto: where the run is long enough to gain by them."""
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
    tokenizer = checkpoint.tokenizer_of(config.base)
    row_tokens = base["model"]["seq_len"] + 1
    few = islice(read_conversations(config.data), config.show)
    rendered = [(ids[:row_tokens], mask[:row_tokens]) for ids, mask in (render(m, tokenizer) for m in few)]
    if not config.json:
        conversation_view.show(rendered, tokenizer)
    return {"conversations": [{"ids": ids, "mask": mask} for ids, mask in rendered]}


def sft(config: Sft, here: Ranks = ALONE) -> tuple[dict[str, Any], bool]:
    """Fine-tune as `config` says. Returns what --json prints, and whether the run came to its end."""
    sharing = Sharing(here, config.shard_model, config.shard_within)
    sharing.check()
    base = read_config(config.base)
    config = _as_it_began(config)
    checkpoint_folder = checkpoint.find(config.base, config.step)
    tokenizer = checkpoint.tokenizer_of(config.base)
    shape = Shape(**base["model"])
    name = config.name or f"{config.base}-sft"
    if name == config.base:
        raise FathomError(f"the new run would be its own base, {name!r}", "choose another --run")
    _refuse_nonsense(config)
    track = asked_for(config.track)
    fp8 = config.fp8
    document_mask = config.document_mask or base["config"].get("document_mask", False)
    with locked_run(name, here) as folder:
        training, held_out = _conversations(config, tokenizer)
        rows_per_step = _rows_per_step(config, training, base["config"]["batch_tokens"], shape.seq_len)
        source = SftBatches(training, shape.seq_len, rows_per_step, config.seed)
        steps = config.steps or max(1, math.ceil(config.epochs * source.steps_per_epoch))
        device = hardware.device_type().value
        dtype = hardware.choose_dtype(config.dtype, device).value
        if fp8:
            hardware.refuse_fp8_where_there_is_none(device, dtype)
        micro = device_rows(config.device_batch, rows_a_rank(rows_per_step, here.world), shape.seq_len, device)
        checkpoints = saving(config.save_every, config.keep)
        measured = _whole_epoch(held_out, shape.seq_len)
        batch_share = math.sqrt(rows_per_step * shape.seq_len / base["config"]["batch_tokens"])
        lr_scale = base["config"]["lr_scale"] * config.lr_share * batch_share
        rates = Rates(**{key: base["config"][key] for key in asdict(Rates())})
        schedule = Schedule(
            steps,
            warmup_steps=0,
            warmdown_share=WARMDOWN_SHARE,
            final_lr=0.0,
            momentum_start=MOMENTUM[0],
            momentum_peak=MOMENTUM[1],
            momentum_end=MOMENTUM[1],
            momentum_warmup_steps=min(MOMENTUM_WARMUP, max(1, steps // 5)),
        )
        tables = {
            "run": {"stage": "sft", "base": config.base, "tokenizer_digest": tokenizer.digest},
            "model": asdict(shape),
            "config": {
                "tokenizer": base["config"]["tokenizer"],
                "base_step": int(checkpoint_folder.name),
                "data": list(config.data),
                "validation": list(config.validation) or None,
                "lr_share": config.lr_share,
                "data_digest": source.digest,
                "batch_tokens": rows_per_step * shape.seq_len,
                "steps": steps,
                "lr_scale": lr_scale,
                "dtype": dtype,
                "fp8": fp8,
                "document_mask": document_mask,
                "seed": config.seed,
                **asdict(rates),
            },
        }
        record, existed = begin(name, folder, config.resume, tables, here)
        if existed and (result := here.from_main(lambda: finished_result(folder))) is not None:
            say(f"the run {name!r} is finished; nothing to train")
            return result, True

        say(f"{name}: from {config.base}, step {int(checkpoint_folder.name):,}", style="bold")
        machine = look_at_machine(config.dtype, own_kernels=sharing.wants_kernels(config.compile))
        say(
            f"  data    {source.n_conversation:,} conversations, {len(held_out):,} held out; "
            f"{source.cut:,} cut to the context, {source.dropped:,} dropped without a target"
        )
        say(f"  plan    {steps:,} steps of {rows_per_step * shape.seq_len:,} tokens; rates × {lr_scale:.3g}")
        model = GPT(shape, machine.torch_dtype)
        width_scale = base["config"].get("width_scale", (shape.d_model / 768) ** -0.5)
        groups = adam_groups(rates, lr_scale, width_scale)
        optimizer = placed(model, machine.device, groups, rates.matrix_lr * lr_scale, sharing)
        progress = restore(record, model, optimizer, here) if existed else Progress()
        if progress.step == 0:
            _start_from(checkpoint_folder, model, optimizer)
        eval_rows = measured.rows_per_step
        outcome, result = run_to_the_end(
            name,
            record,
            model,
            optimizer,
            schedule,
            source,
            machine,
            progress,
            Validation(
                lambda: (measured.batch(0, i, min(i + micro, eval_rows)) for i in range(0, eval_rows, micro)),
                eval_rows,
                config.eval_every if config.eval_every is not None else max(1, math.ceil(steps / 4)),
                {"rows_of": "held-out answers", "data_digest": measured.digest},
            ),
            tokenizer.token_bytes(),
            rows_per_step=rows_per_step,
            micro_rows=micro,
            saving=checkpoints,
            compile=config.compile,
            skip_spikes=config.skip_spikes,
            fp8=fp8,
            document_start=tokenizer.bos_id if document_mask else None,
            track=track,
            sharing=sharing,
        )
        if outcome.finished:
            record.event("finished", result=result)
        return result, outcome.finished


def _as_it_began(config: Sft) -> Sft:
    """With the settings of the run that is resumed, where no conversations are named with it."""
    if config.data:
        return config
    name = config.name or f"{config.base}-sft"
    if not (config.resume and (run_dir(name) / "run.toml").exists()):
        raise FathomError("no conversations were given", "say which with --data FILE…")
    begun = read_config(name)["config"]
    return replace(
        config,
        data=tuple(begun["data"]),
        validation=tuple(begun.get("validation", ())),
        step=begun["base_step"],
        steps=begun["steps"],
        batch_tokens=begun["batch_tokens"],
        lr_share=begun.get("lr_share", config.lr_share),
        seed=begun["seed"],
        fp8=config.fp8 or begun.get("fp8", False),
        document_mask=config.document_mask or begun.get("document_mask", False),
    )


def _refuse_nonsense(config: Sft) -> None:
    if not (0 < config.epochs < math.inf and 0 < config.lr_share < math.inf):
        raise FathomError("epochs and lr-share must be above zero", "leave them out for the defaults")
    if config.steps is not None and config.steps < 1:
        raise FathomError(f"--steps is {config.steps}", "train at least one step")
    if config.seed < 0:
        raise FathomError(f"--seed is {config.seed}", "choose one that is not negative")
    if config.eval_every is not None and config.eval_every < 0:
        raise FathomError(f"--eval-every is {config.eval_every}", "give a number of steps, or 0 for the end only")


def _whole_epoch(conversations: list[Rendered], seq_len: int) -> SftBatches:
    """Batches whose first step holds every conversation once, whatever the seed of training and the device batch."""
    rows = SftBatches(conversations, seq_len, 1, seed=0).steps_per_epoch
    return SftBatches(conversations, seq_len, rows, seed=0)


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


def _start_from(folder: Any, model: GPT, optimizer: Optimizer) -> None:
    """The base run's weights and moments: a warm optimizer starts slightly better than a cold one."""
    if checkpoint.has_moments(folder):
        load_weights_and_moments(folder, model, optimizer)
    else:
        checkpoint.load(folder, {"model": state_of(model, optimizer)["model"]})
