"""The training of a fine-tuning, once it is known what is to be trained: device, network, optimizer, the loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fathom import hardware
from fathom.data.conversations.batches import SftBatches
from fathom.model.gpt import GPT
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import adam_groups
from fathom.optim.schedule import Schedule
from fathom.screen import say
from fathom.train import checkpoint
from fathom.train.beginning import begin, finished_result
from fathom.train.progress import Progress, load_weights_and_moments
from fathom.train.session import Validation, look_at_machine, restore, run_to_the_end
from fathom.train.settings import device_rows
from fathom.train.sft import Intent, Rendered, Sft
from fathom.train.sharing import Sharing, placed, rows_a_rank, state_of

WARMDOWN_SHARE = 0.5
MOMENTUM = (0.85, 0.95)
MOMENTUM_WARMUP = 300


def train_tuned(
    config: Sft,
    intent: Intent,
    folder: Path,
    source: SftBatches,
    held_out: list[Rendered],
    sharing: Sharing,
    made_by: Sequence[str],
) -> tuple[dict[str, Any], bool]:
    """Returns what --json prints, and whether the run came to its end. `folder` is held by this process."""
    here, name, shape, base = sharing.here, intent.name, intent.shape, intent.base["config"]
    rows_per_step, document_mask = source.rows_per_step, intent.tables["config"]["document_mask"]
    steps = config.steps or max(1, math.ceil(config.epochs * source.steps_per_epoch))
    device = hardware.device_type().value
    dtype = hardware.choose_dtype(config.dtype, device).value
    if config.fp8:
        hardware.refuse_fp8_where_there_is_none(device, dtype)
    micro = device_rows(config.device_batch, rows_a_rank(rows_per_step, here.world), shape.seq_len, device)
    measured = _whole_epoch(held_out, shape.seq_len)
    batch_share = math.sqrt(rows_per_step * shape.seq_len / base["batch_tokens"])
    lr_scale = base["lr_scale"] * config.lr_share * batch_share
    decided = {
        "data_digest": source.digest,
        "batch_tokens": rows_per_step * shape.seq_len,
        "steps": steps,
        "lr_scale": lr_scale,
        "dtype": dtype,
    }
    tables = {**intent.tables, "config": {**intent.tables["config"], **decided}}
    record, existed = begin(name, folder, config.resume, tables, here, made_by)
    if existed and (result := here.from_main(lambda: finished_result(folder))) is not None:
        say(f"the run {name!r} is finished; nothing to train")
        return result, True

    base_step = int(intent.checkpoint.name)
    say(f"{name}: from {config.base}, step {base_step:,}", style="bold")
    machine = look_at_machine(config.dtype, own_kernels=sharing.wants_kernels(config.compile), goes_on=existed)
    say(
        f"  data    {source.n_conversation:,} conversations, {len(held_out):,} held out; "
        f"{source.cut:,} cut to the context, {source.dropped:,} dropped without a target"
    )
    say(f"  plan    {steps:,} steps of {rows_per_step * shape.seq_len:,} tokens; rates × {lr_scale:.3g}")
    model = GPT(shape, machine.torch_dtype)
    width_scale = base.get("width_scale", (shape.d_model / 768) ** -0.5)
    groups = adam_groups(intent.rates, lr_scale, width_scale)
    optimizer = placed(model, machine.device, groups, intent.rates.matrix_lr * lr_scale, sharing)
    progress = restore(record, model, optimizer, here) if existed else Progress()
    if config.device_batch is not None:
        progress.extra.pop("fits", None)  # what fitted before does not bind what is asked for
    if progress.step == 0:
        _start_from(intent.checkpoint, model, optimizer)
    eval_rows = measured.rows_per_step
    outcome, result = run_to_the_end(
        name,
        record,
        model,
        optimizer,
        _schedule(steps),
        source,
        machine,
        progress,
        Validation(
            lambda: (measured.batch(0, i, min(i + micro, eval_rows)) for i in range(0, eval_rows, micro)),
            eval_rows,
            config.eval_every if config.eval_every is not None else max(1, math.ceil(steps / 4)),
            {"rows_of": "held-out answers", "data_digest": measured.digest},
        ),
        intent.tokenizer.token_bytes(),
        rows_per_step=rows_per_step,
        micro_rows=micro,
        saving=intent.saving,
        compile=config.compile,
        skip_spikes=config.skip_spikes,
        fp8=config.fp8,
        document_start=intent.tokenizer.bos_id if document_mask else None,
        track=intent.track,
        sharing=sharing,
    )
    if outcome.finished:
        record.event("finished", result=result)
    return result, outcome.finished


def _schedule(steps: int) -> Schedule:
    return Schedule(
        steps,
        warmup_steps=0,
        warmdown_share=WARMDOWN_SHARE,
        final_lr=0.0,
        momentum_start=MOMENTUM[0],
        momentum_peak=MOMENTUM[1],
        momentum_end=MOMENTUM[1],
        momentum_warmup_steps=min(MOMENTUM_WARMUP, max(1, steps // 5)),
    )


def _whole_epoch(conversations: list[Rendered], seq_len: int) -> SftBatches:
    """Batches whose first step holds every conversation once, whatever the seed of training and the device batch."""
    rows = SftBatches(conversations, seq_len, 1, seed=0).steps_per_epoch
    return SftBatches(conversations, seq_len, rows, seed=0)


def _start_from(folder: Any, model: GPT, optimizer: Optimizer) -> None:
    """The base run's weights and moments: a warm optimizer starts slightly better than a cold one."""
    if checkpoint.has_moments(folder):
        load_weights_and_moments(folder, model, optimizer)
    else:
        checkpoint.load(folder, {"model": state_of(model, optimizer)["model"]})
