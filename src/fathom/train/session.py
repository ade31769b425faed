"""What pretraining and fine-tuning do alike: choose device and kernels, go on from a checkpoint, train to the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from fathom import hardware, kernels
from fathom.errors import FathomError
from fathom.evaluate.bpb import bits_per_byte
from fathom.kernels import build
from fathom.model import fused
from fathom.model.attention import DenseContext
from fathom.model.attention_choice import choose_attention
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups
from fathom.optim.schedule import Schedule
from fathom.ranks import ALONE, Ranks
from fathom.record import Record, events, read_config
from fathom.screen import bar, say
from fathom.train import checkpoint
from fathom.train.core_watch import CoreWatch
from fathom.train.intervals import Saving
from fathom.train.loop import LoopSettings, Outcome, Source, attempt, end_noted, is_due, train
from fathom.train.progress import Progress, load_progress
from fathom.train.resuming import resume_line
from fathom.train.sharing import UNSHARED, Sharing, in_turns
from fathom.train.trackers import tracking

COMPILE_FROM = 30
COMPILE_FLOPS_CPU = 1.5e14  # about ten minutes on two cores without bf16: what a compilation's minute is worth


@dataclass(frozen=True)
class Machine:
    """What this run computes on."""

    device: str
    dtype: str
    peak_flops: float
    peak_source: str = ""
    name: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        return hardware.torch_dtype(self.dtype)


def look_at_machine(dtype: str, quiet: bool = False, own_kernels: bool = True, goes_on: bool = False) -> Machine:
    """Choose device and dtype, and say why. `own_kernels`: this process is to make ours; `goes_on`: the run has begun,
    and keeps the dtype that it began with.
    """
    hardware.keep_freed_memory()
    device = hardware.device_type()
    chosen = hardware.choose_dtype(dtype, device.value)
    if device.value == "cuda":
        torch.set_float32_matmul_precision("high")
    peak, source = hardware.peak_flops(device.value, chosen.value)
    if device.value == "cpu" and own_kernels:
        build.prepare()  # beside what is read next, not beside what is measured
    if not quiet:
        say(f"  device  {device.value}: {device.reason}")
        why = "as the run began" if goes_on and dtype != "auto" else chosen.reason
        say(f"  dtype   {chosen.value}: {why}; {peak / 1e12:.2g} TFLOP/s ({source})")
    return Machine(device.value, chosen.value, peak, source, hardware.device_name(device.value))


def measured_pace(machine: Machine, shape: Shape, batch_tokens: int, for_s: float) -> float:
    """Tokens/s of training such a network here, a step's batch in one piece."""
    return batch_tokens / sum(measured_step(machine, shape, batch_tokens // shape.seq_len, for_s))


def measured_step(machine: Machine, shape: Shape, rows: int, for_s: float) -> tuple[float, float]:
    """Seconds of a micro-batch of `rows` and of an update: means over the steps of a throw-away network that go into
    `for_s` seconds after its first, two at least. Means, as a run's time is one: a machine that others share has fast
    moments and slow ones.
    """
    model = GPT(shape, machine.torch_dtype)
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(machine.device)
    optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 0.0, 1.0), 0.0, machine.torch_dtype)
    optimizer.has_cpu_kernels = use_own_kernels(model)
    context = DenseContext(shape.seq_len, machine.device, model.has_cpu_kernels)
    ids = torch.arange(rows * shape.seq_len, device=machine.device).view(rows, -1) % shape.vocab_size
    micro: list[float] = []
    update: list[float] = []
    while len(micro) < 3 or sum(micro[1:] + update[1:]) < for_s:
        hardware.synchronize(machine.device)
        began = time.perf_counter()
        (model.loss(model(ids, context), ids) / ids.numel()).backward()
        hardware.synchronize(machine.device)
        between = time.perf_counter()
        optimizer.step(0.0, 0.9, 0.0)
        optimizer.zero_grad()
        hardware.synchronize(machine.device)
        micro.append(between - began)
        update.append(time.perf_counter() - between)
    return fmean(micro[1:]), fmean(update[1:])


def choose_kernels(asked: str, model: GPT, machine: Machine, run_flops: float) -> int | None:
    """Kernels of our own where a CPU can have them; else the step from which torch's are compiled. Says so once."""
    if asked in ("auto", "on") and use_own_kernels(model):
        by = kernels.multiplied_by() if model.dtype == torch.bfloat16 else ""
        products = f"; attention and gradients of weights by {by}" if by else ""
        say(f"  kernels ours, compiled with {Path(build.compiler()).name}{products}")
        return None
    return compile_from(asked, machine, run_flops)


def use_own_kernels(model: GPT) -> bool:
    """Train on kernels of our own from now on, where this model and machine have them; whether they do."""
    possible = fused.has_kernels_for(model.device, model.dtype) and build.load()
    if possible:
        model.use_cpu_kernels()
    return possible


def compile_from(asked: str, machine: Machine, run_flops: float) -> int | None:
    """The step from which kernels are compiled: by the size of the run, never by the clock. Says so once."""
    if asked not in ("auto", "on", "off"):
        raise FathomError(f"there is no --compile {asked!r}", "choose auto, on or off")
    possible = hardware.can_compile(machine.device)
    if asked == "off":
        return None
    if possible.value == "no":
        say(f"  kernels eager: {possible.reason}")
        return None
    worth = machine.device == "cuda" or (machine.dtype != "fp32" and run_flops > COMPILE_FLOPS_CPU / 10)
    if asked == "auto" and not worth and run_flops < COMPILE_FLOPS_CPU:
        say("  kernels eager: the run is shorter than compiling would pay for")
        return None
    say(f"  kernels {possible.reason}, from step {COMPILE_FROM} on")
    return COMPILE_FROM


@dataclass(frozen=True)
class Validation:
    """What a run is measured on: batches made anew each time, how many rows they have, and how often."""

    batches: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]]
    n_rows: int
    every: int
    tags: Mapping[str, Any]


def run_to_the_end(
    name: str,
    record: Record,
    model: GPT,
    optimizer: Optimizer,
    schedule: Schedule,
    source: Source,
    machine: Machine,
    progress: Progress,
    validation: Validation,
    token_bytes: np.ndarray,
    *,
    rows_per_step: int,
    micro_rows: int,
    saving: Saving,
    compile: str,
    core: CoreWatch | None = None,
    skip_spikes: bool = True,
    fp8: bool = False,
    document_start: int | None = None,
    track: tuple[str, ...] = (),
    sharing: Sharing = UNSHARED,
) -> tuple[Outcome, dict[str, Any]]:
    """Train, measuring bpb (and CORE) as it goes. Returns how it went, and the result that `--json` prints."""
    shape, folder, here = model.shape, record.folder, sharing.here
    looks_alone = here.is_main or sharing.shard_model  # a split model computes nothing unless all ranks do
    tokens = schedule.steps * rows_per_step * shape.seq_len

    def evaluate(step: int, seconds: float) -> Mapping[str, Any]:
        tags = {"step": step, "train_s": round(seconds, 3)}
        found: dict[str, Any] = dict(tags)
        model.eval()
        try:
            if is_due(step, validation.every, schedule.steps):
                look = partial(_measure_bpb, model, validation, token_bytes, record, tags, sharing, document_start)
                found |= attempt("the evaluation", look, record, step) or {}
            if core is not None and looks_alone and is_due(step, core.every, schedule.steps):
                found |= attempt("CORE", partial(_measure_core, core, record, tags), record, step) or {}
        finally:
            model.train()
        return found

    settings = LoopSettings(
        steps=schedule.steps,
        rows_per_step=rows_per_step,
        device_rows=micro_rows,
        save_every_steps=saving.every_steps,
        save_every_s=saving.every_s,
        eval_every=validation.every,
        core_every=core.every if core is not None else 0,
        keep=saving.keep,
        keep_every=saving.keep_every,
        keep_step=saving.keep_step,
        compile_from=_kernels(compile, model, machine, tokens, sharing),
        peak_flops=machine.peak_flops * here.world,
        skip_spikes=skip_spikes,
        document_start=document_start,
    )
    optimizer.has_cpu_kernels = model.has_cpu_kernels
    attention = choose_attention(shape, machine.device, document_start is not None, model.dtype, model.has_cpu_kernels)
    say(f"  attend  {attention.value}: {attention.reason}")
    if fp8:
        model.train_in_fp8()
        say("  fp8     the blocks' large products while training, head and evaluation not; MFU is of the bf16 rate")
    ways = {"attention": attention.value, "attention_reason": attention.reason, "fp8": fp8, "skip_spikes": skip_spikes}
    if (dropped := getattr(source, "share_dropped", None)) is not None:
        ways["share_dropped"] = round(float(dropped), 4)
    circumstances = _circumstances(machine, settings, model, sharing) | ways
    record.machine(circumstances)
    record.event("training", step=progress.step, **circumstances)
    with tracking(track if here.is_main else (), name, record, read_config(name)), end_noted(record, progress):
        outcome = train(model, optimizer, schedule, source, settings, record, progress, evaluate, label=name, here=here)
    model.eval()
    if not outcome.finished:
        say(f"stopped after step {outcome.step:,}; {resume_line(name, read_config(name), here.world)} goes on there")
        return outcome, {"run": name, "step": outcome.step}
    sha256 = checkpoint.weights_sha256(model)
    if not here.is_main:
        return outcome, {"run": name, "step": outcome.step}
    return outcome, {
        "run": name,
        "steps": schedule.steps,
        "tokens": tokens,
        "seconds": round(outcome.seconds, 3),
        "tokens_per_s": round(outcome.tokens_per_s, 1),
        "first_step_s": None if outcome.first_step_s is None else round(outcome.first_step_s, 3),
        "val_bpb": _last_found(folder, "evaluated", "val_bpb", schedule.steps),
        "peak_memory_gb": round(hardware.peak_memory_gb(machine.device), 3),
        "loader_wait_s": round(outcome.loader_wait_s, 4),
        "weights_sha256": sha256,
    } | ({"core": _last_found(folder, "core", "core", schedule.steps)} if core is not None else {})


def _kernels(asked: str, model: GPT, machine: Machine, tokens: int, sharing: Sharing) -> int | None:
    if sharing.shard_model:
        say("  kernels eager: the weights are split over ranks")
        return None
    here, flops = sharing.here, tokens * model.shape.flops_per_token
    if here.world > 1 and here.local:
        here.gather(None)  # the first of each machine makes them for the others
    chosen = choose_kernels(asked, model, machine, flops)
    if here.world > 1 and not here.local:
        here.gather(None)
    return chosen


def _measure_bpb(
    model: GPT,
    validation: Validation,
    token_bytes: np.ndarray,
    record: Record,
    tags: Mapping[str, Any],
    sharing: Sharing,
    document_start: int | None,
) -> dict[str, float]:
    here, in_step = sharing.here, sharing.shard_model
    batches = in_turns(validation.batches(), here)
    with bar("  validating", validation.n_rows / here.world) as progress:
        found = bits_per_byte(model, batches, token_bytes, progress.advance, document_start, here.gather, in_step)
        bpb = {"val_bpb": round(found, 6)}
    result = {**tags, **bpb}
    record.evaluation(f"bpb-{tags['step']:06d}", result | {"rows": validation.n_rows, **validation.tags})
    record.event("evaluated", **result)
    return bpb


def _measure_core(watch: CoreWatch, record: Record, tags: Mapping[str, Any]) -> dict[str, float]:
    measured = watch.measure()
    core = {"core": measured["value"], "core_error": measured["standard_error"]}
    whole = {"core": measured["value"]} if measured["settings"]["limit"] is None else {}  # what leaderboards read
    record.evaluation(f"core-{tags['step']:06d}", {"task": "core", **tags, **measured, **whole})
    record.event("core", **tags, **core)
    return core


def _circumstances(machine: Machine, settings: LoopSettings, model: GPT, sharing: Sharing) -> dict[str, Any]:
    """What this process trains on and how: not part of what a run is, and other after a move to another machine."""
    return {
        "device": machine.device,
        "device_name": machine.name,
        "dtype": machine.dtype,
        "peak_flops": settings.peak_flops,
        "peak_source": machine.peak_source,
        "device_memory_gb": round(hardware.memory_gb(machine.device), 3),
        "device_batch": settings.device_rows,
        "grad_accum": -(-settings.rows_per_step // (settings.device_rows * sharing.here.world)),
        "ranks": sharing.here.world,
        "weights": "split" if sharing.shard_model else "whole",
        "shard_within": sharing.within,
        "compile_from": 0 if model.has_cpu_kernels else settings.compile_from,
        "kernels": "ours" if model.has_cpu_kernels else "torch",
        "torch": torch.__version__,
    }


def _last_found(folder: Path, kind: str, key: str, step: int) -> float | None:
    """What a measurement after the last step found; None where it failed."""
    found = [line[key] for line in events(folder) if line["event"] == kind and line["step"] == step]
    return float(found[-1]) if found else None


def print_samples(record: Record, step: int, pairs: list[tuple[str, str]]) -> None:
    """Show the sample sheet and keep it."""
    for prompt, text in pairs:
        record.sample(step=step, prompt=prompt, text=text)
        say(f"    {prompt} … {' '.join(text.split())}")


def restore(record: Record, model: GPT, optimizer: Optimizer, here: Ranks = ALONE) -> Progress:
    """Go on from the newest whole checkpoint, or from the start where there is none.

    Damaged ones are put aside once one before them is loaded. FathomError where there is none, and for a newest one
    that another try may read: nothing is put aside then.
    """
    saved = here.from_main(lambda: checkpoint.steps(record.folder))
    if not saved:
        record.event("resumed", step=0)
        return Progress()
    damaged: dict[int, str] = {}
    for step in reversed(saved):
        progress, failed = Progress(), None
        try:
            progress = load_progress(record.folder, step, model, optimizer)
        except FathomError as error:
            failed = (isinstance(error, checkpoint.Damaged), error.problem, error.remedy)
        told = [one for one in here.gather(failed) if one is not None]
        if not told:
            break
        is_damaged, problem, remedy = min(told)  # what may pass on one rank outranks damage on another
        if not is_damaged or step == saved[0]:
            raise FathomError(problem, remedy)
        damaged[step] = problem
    for bad, problem in damaged.items():
        say(f"{problem}; going on from step {step:,}, it is kept as {bad:06d}.damaged", style="yellow")
        here.from_main(partial(checkpoint.put_aside, record.folder, bad))
        record.event("damaged", step=bad, why=problem[:300])
    record.event("resumed", step=step)
    say(f"  going on from step {step:,}")
    return progress
