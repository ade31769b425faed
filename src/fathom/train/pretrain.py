"""`fathom pretrain`: a base model from a corpus."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
import tyro

from fathom import hardware
from fathom import tokenizer as tokenizers
from fathom.data.batches import PretrainBatches, ValidationRows
from fathom.data.corpus import open_corpus
from fathom.data.packing import Packing
from fathom.data.shards import tokenize
from fathom.errors import FathomError
from fathom.estimate import Work
from fathom.evaluate.samples import sample_sheet
from fathom.home import run_dir
from fathom.model.gpt import GPT
from fathom.optim.rates import adam_groups
from fathom.ranks import ALONE, Ranks, shared
from fathom.record import read_config
from fathom.screen import say
from fathom.train.core_watch import core_bundle, core_watch
from fathom.train.extend import Extension, bring_checkpoint, extension, record_extension, same_texts, say_extension
from fathom.train.fit import fitted_rows
from fathom.train.loop import attempt
from fathom.train.progress import Progress, load_progress
from fathom.train.session import (
    Validation,
    begin,
    evaluation_plan,
    finished_result,
    imported_run,
    locked_run,
    look_at_machine,
    print_samples,
    restore,
    run_to_the_end,
    saving,
    say_finished,
    say_if_new,
)
from fathom.train.settings import continued, micro_rows, read_recipe, resolve
from fathom.train.sharing import Sharing, placed, rows_a_rank
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
    resume: bool = False
    """Go on from the run's newest checkpoint; on a finished run, only print its result."""
    shard_model: bool = False
    """Under torchrun: split the weights over the ranks (FSDP), for models larger than a GPU."""
    shard_within: int | None = None
    """With --shard-model: split over so many ranks (of one node, say), and keep a copy a group. Default all ranks."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    sample: bool = True
    """Whether the sample sheet is written at the end."""

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
        if self.resume:
            say_if_new(self.name or f"d{self.depth}")
        return pretrain(self, here)


def pretrain(config: Pretrain, here: Ranks = ALONE) -> tuple[dict[str, Any], bool]:
    """Train as `config` says. Returns what --json prints, and whether the run came to its end (else it was stopped)."""
    sharing = Sharing(here, config.shard_model, config.shard_within)
    sharing.check()
    more, begun = _extension(config), _begun(config)
    corpus_name, tokenizer_name = _texts(config, more.tables if more else begun)
    tokenizer = tokenizers.load(tokenizer_name)
    corpus = open_corpus(corpus_name)
    flags, recipe = asdict(config), read_recipe(config.recipe)
    if more:
        settings = more.settings
    elif begun:
        settings = continued(begun, flags, recipe)
    else:
        settings = resolve(flags, recipe, tokenizer.vocab_size)
    shape, track = settings.shape, asked_for(config.track)
    before = (more.tables if more else begun) or {"config": {}}
    fp8, document_mask = (getattr(config, key) or before["config"].get(key, False) for key in ("fp8", "document_mask"))
    name = config.name or (f"{more.base}-{settings.steps}" if more else f"d{settings.depth}")
    with locked_run(name, here) as folder:
        store = tokenize(corpus, tokenizer)
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
        dtype = hardware.choose_dtype(config.dtype, device).value
        if fp8:
            hardware.refuse_fp8_where_there_is_none(device, dtype)
        own_rows = rows_a_rank(settings.rows_per_step, here.world)
        whole = Work(shape, own_rows, ranks=here.world, device=device, dtype=dtype, fp8=fp8)
        micro = micro_rows(config.device_batch, whole, hardware.memory_gb(device))
        checkpoints = saving(config.save_every, config.keep, config.keep_every, settings.schedule.extendable_from)
        bundle = core_bundle(config.core_every, config.core_limit)
        run_in = {"stage": "pretrain", "corpus_digest": corpus.digest, "tokenizer_digest": tokenizer.digest}
        names = {"corpus": corpus_name, "tokenizer": tokenizer_name, "data_digest": store.digest}
        tables = {
            "run": run_in,
            "model": asdict(shape),
            "config": names | {"dtype": dtype, "fp8": fp8, "document_mask": document_mask} | settings.flat(),
            "origin": settings.origin | ({"recipe": str(Path(config.recipe).resolve())} if config.recipe else {}),
        }
        if more:
            same_texts(more, tables)
            if here.is_main and not (folder / "run.toml").exists():
                bring_checkpoint(more, folder)
        record, existed = begin(name, folder, config.resume, tables, here)
        if existed and (result := here.from_main(lambda: finished_result(folder))) is not None:
            say(f"the run {name!r} is finished; nothing to train")
            return result, True

        say(f"{name}: depth {settings.depth}, {shape.parameters['total']:,} parameters", style="bold")
        if more:
            say_extension(more)
        machine = look_at_machine(config.dtype, own_kernels=sharing.wants_kernels(config.compile))
        source = PretrainBatches(
            store,
            packing=cast(Packing, settings.packing),
            seq_len=shape.seq_len,
            rows_per_step=settings.rows_per_step,
            seed=settings.seed,
        )
        say(
            f"  data    {corpus.name}: {store.n_tokens('train'):,} tokens; {settings.packing} packing "
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
        start = tokenizer.bos_id if document_mask else None
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
                {"rows_of": rows_of + ", documents apart" * document_mask, "data_digest": store.digest},
            ),
            tokenizer.token_bytes(),
            rows_per_step=settings.rows_per_step,
            micro_rows=micro,
            saving=checkpoints,
            compile=config.compile,
            skip_spikes=config.skip_spikes,
            fp8=fp8,
            document_start=start,
            track=track,
            sharing=sharing,
            core=core_watch(config.core_every, config.core_limit, bundle, model, tokenizer) if bundle else None,
        )
        if outcome.finished:
            if config.sample and (here.is_main or config.shard_model):
                sheet = attempt("the sample sheet", lambda: sample_sheet(model, tokenizer), record, outcome.step)
                print_samples(record, outcome.step, sheet or [])
            record.event("finished", result=result)
        return result, outcome.finished


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
