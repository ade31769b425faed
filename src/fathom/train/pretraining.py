"""The training of a base model, once it is known what is to be trained: device, network, optimizer, the loop."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

from fathom import hardware
from fathom.data.batches import PretrainBatches, ValidationRows, rows_measured
from fathom.data.packing import Packing
from fathom.data.token_store import TokenStore
from fathom.estimate import Work
from fathom.evaluate.core import open_bundle
from fathom.evaluate.samples import sample_sheet
from fathom.model.gpt import GPT
from fathom.optim.rates import adam_groups
from fathom.screen import say
from fathom.train.beginning import begin, finished_result
from fathom.train.core_watch import core_watch
from fathom.train.extend import bring_checkpoint, record_extension, same_texts, say_extension
from fathom.train.fit import fitted_rows
from fathom.train.intervals import evaluation_plan
from fathom.train.loop import attempt
from fathom.train.pretrain import Intent, Pretrain
from fathom.train.progress import Progress, load_progress
from fathom.train.session import Validation, look_at_machine, print_samples, restore, run_to_the_end
from fathom.train.settings import micro_rows
from fathom.train.sharing import Sharing, placed, rows_a_rank


def train_base(
    config: Pretrain, intent: Intent, folder: Path, store: TokenStore, sharing: Sharing, made_by: Sequence[str]
) -> tuple[dict[str, Any], bool]:
    """Returns what --json prints, and whether the run came to its end. `folder` is held by this process."""
    here, settings, name, more = sharing.here, intent.settings, intent.name, intent.more
    shape, fp8, document_mask = settings.shape, *(intent.tables["config"][key] for key in ("fp8", "document_mask"))
    device = hardware.device_type().value
    rows_of = config.validation_rows or ("best-fit" if settings.rules == "reference" else "lossless")
    validation = ValidationRows(store, rows_of, shape.seq_len)
    every, eval_rows = evaluation_plan(
        config.eval_every,
        config.eval_tokens,
        settings.steps,
        settings.batch_tokens,
        shape.seq_len,
        validation.n_rows,
    )
    dtype = hardware.choose_dtype(intent.dtype, device).value
    if fp8:
        hardware.refuse_fp8_where_there_is_none(device, dtype)
    own_rows = rows_a_rank(settings.rows_per_step, here.world)
    whole = Work(shape, own_rows, ranks=here.world, device=device, dtype=dtype, fp8=fp8)
    micro = micro_rows(config.device_batch, whole, hardware.memory_gb(device))
    bundle = open_bundle() if config.core_every else None  # before anything is trained
    decided = {"data_digest": store.digest, "dtype": dtype}
    tables = {**intent.tables, "config": {**intent.tables["config"], **decided}}
    if more:
        same_texts(more, tables)
        if here.is_main and not (folder / "run.toml").exists():
            bring_checkpoint(more, folder)
    record, existed = begin(name, folder, config.resume, tables, here, made_by, more.step if more else None)
    if existed and (result := here.from_main(lambda: finished_result(folder))) is not None:
        say(f"the run {name!r} is finished; nothing to train")
        return result, True

    say(f"{name}: depth {settings.depth}, {shape.parameters['total']:,} parameters", style="bold")
    if more:
        say_extension(more)
    machine = look_at_machine(
        intent.dtype, own_kernels=sharing.wants_kernels(config.compile), goes_on=existed or more is not None
    )
    source = PretrainBatches(
        store,
        packing=cast(Packing, settings.packing),
        seq_len=shape.seq_len,
        rows_per_step=settings.rows_per_step,
        seed=settings.seed,
    )
    say(
        f"  data    {intent.corpus.name}: {store.n_tokens('train'):,} tokens; {settings.packing} packing "
        f"drops {100 * source.share_dropped:.1f} %"
    )
    say(
        f"  plan    {settings.steps:,} steps of {settings.batch_tokens:,} tokens; "
        f"rates × {settings.lr_scale:.3g}, decay {settings.weight_decay:.3g}"
    )
    model = GPT(shape, machine.torch_dtype)
    model.init_weights(torch.Generator().manual_seed(settings.seed))
    rates = adam_groups(settings.rates, settings.lr_scale, settings.width_scale)
    optimizer = placed(model, machine.device, rates, settings.rates.matrix_lr * settings.lr_scale, sharing)
    if more and not existed:
        progress = load_progress(folder, more.step, model, optimizer)
        if here.is_main:
            record_extension(more, name, record)
    else:
        progress = restore(record, model, optimizer, here) if existed else Progress()
    if config.device_batch is not None:
        progress.extra.pop("fits", None)  # what fitted before does not bind what is asked for
    start = intent.tokenizer.bos_id if document_mask else None
    if here.world == 1:  # a pass of one rank alone would be waited for by the others
        optimizer.prime()
        micro = fitted_rows(config.device_batch, micro, settings.rows_per_step, model, progress.extra, start)
    outcome, result = run_to_the_end(
        name,
        record,
        model,
        optimizer,
        settings.schedule,
        source,
        machine,
        progress,
        Validation(
            lambda: (validation.rows(i, min(i + micro, eval_rows)) for i in range(0, eval_rows, micro)),
            eval_rows,
            every,
            {"rows_of": rows_measured(rows_of, document_mask), "data_digest": store.digest},
        ),
        intent.tokenizer.token_bytes(),
        rows_per_step=settings.rows_per_step,
        micro_rows=micro,
        saving=intent.saving,
        compile=config.compile,
        skip_spikes=config.skip_spikes,
        fp8=fp8,
        document_start=start,
        track=intent.track,
        sharing=sharing,
        core=core_watch(config.core_every, config.core_limit, bundle, model, intent.tokenizer) if bundle else None,
    )
    if outcome.finished:
        if config.sample and (here.is_main or config.shard_model):
            sheet = attempt("the sample sheet", lambda: sample_sheet(model, intent.tokenizer), record, outcome.step)
            print_samples(record, outcome.step, sheet or [])
        record.event("finished", result=result)
    return result, outcome.finished
