"""What pretraining and fine-tuning set up alike: the device, the run's folder and its lock, and how often to look.

A run that exists is never overwritten: it is resumed when that was asked for, else refused.
"""

from __future__ import annotations

import fcntl
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from fathom import __version__, hardware, kernels
from fathom.errors import FathomError
from fathom.evaluate.bpb import bits_per_byte
from fathom.home import names, run_dir
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
from fathom.record import Record, Silent, events, read_config
from fathom.screen import bar, say
from fathom.train import checkpoint
from fathom.train.core_watch import CoreWatch
from fathom.train.display import clock
from fathom.train.loop import LoopSettings, Outcome, Source, attempt, is_due, train
from fathom.train.progress import Progress, load_progress
from fathom.train.sharing import UNSHARED, Sharing, in_turns
from fathom.train.trackers import tracking

COMPILE_FROM = 30
COMPILE_FLOPS_CPU = 1.5e14  # about ten minutes on two cores without bf16: what a compilation's minute is worth
EVALUATIONS_SHARE = 0.05
FORWARD_SHARE = 1 / 3  # of a training step's time, the forward pass alone


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


def look_at_machine(dtype: str, quiet: bool = False, own_kernels: bool = True) -> Machine:
    """Choose device and dtype, and say why. `own_kernels`: this process is to make ours."""
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
        say(f"  dtype   {chosen.value}: {chosen.reason}; {peak / 1e12:.2g} TFLOP/s ({source})")
    return Machine(device.value, chosen.value, peak, source, hardware.device_name(device.value))


def measured_pace(machine: Machine, shape: Shape, batch_tokens: int) -> float:
    """Tokens/s of training such a network here, a step's batch in one piece."""
    return batch_tokens / sum(measured_step(machine, shape, batch_tokens // shape.seq_len))


def measured_step(machine: Machine, shape: Shape, rows: int) -> tuple[float, float]:
    """Seconds of a micro-batch of `rows` and of an update, from three steps of a throw-away network (the first not
    counted).
    """
    model = GPT(shape, machine.torch_dtype)
    model.init_weights(torch.Generator().manual_seed(0))
    model.to(machine.device)
    optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 0.0, 1.0), 0.0, machine.torch_dtype)
    optimizer.has_cpu_kernels = use_own_kernels(model)
    context = DenseContext(shape.seq_len, machine.device)
    ids = torch.arange(rows * shape.seq_len, device=machine.device).view(rows, -1) % shape.vocab_size
    micro, update = [], []
    for _ in range(3):
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
    return min(micro[1:]), min(update[1:])


def choose_kernels(asked: str, model: GPT, machine: Machine, run_flops: float) -> int | None:
    """Kernels of our own where a CPU can have them; else the step from which torch's are compiled. Says so once."""
    if asked in ("auto", "on") and use_own_kernels(model):
        tiles = "; products on AMX tiles" if kernels.has_tiles() else ""
        say(f"  kernels ours, compiled with {Path(build.compiler()).name}{tiles}")
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


def evaluation_plan(
    every: int | None, tokens: int | None, steps: int, batch_tokens: int, seq_len: int, available_rows: int | None
) -> tuple[int, int]:
    """(eval every so many steps, validation rows each time): by default at most 5 % of the run's time in all.

    Raises FathomError when so few tokens are asked for that they fill no row.
    """
    if every is not None and every < 0:
        raise FathomError(f"--eval-every is {every}", "give a number of steps, or 0 for the end only")
    every = max(250, math.ceil(steps / 40)) if every is None else every
    if tokens is not None and tokens < seq_len:
        raise FathomError(f"--eval-tokens {tokens} fills no row of {seq_len} tokens", "ask for more")
    times = max(1, -(-steps // every)) if every else 1
    budget = EVALUATIONS_SHARE / FORWARD_SHARE * steps * batch_tokens / times
    rows = max(1, int((budget if tokens is None else tokens) // seq_len))
    if tokens is None:
        rows = min(rows, 80 * 524_288 // seq_len)
    return every, rows if available_rows is None else min(rows, available_rows)


def parse_save_every(text: str) -> tuple[int | None, float | None]:
    """ "500" is steps, "10m" minutes, "30s" seconds -> (steps, seconds)."""
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:])
    try:
        number = float(text[:-1] if unit else text)
    except ValueError:
        number = 0.0
    if not 0 < number < math.inf or (unit is None and number != int(number)):
        raise FathomError(f"--save-every {text!r} says no interval", "write steps (500) or minutes (10m)")
    return (None, number * unit) if unit else (int(number), None)


@dataclass(frozen=True)
class Saving:
    """When a checkpoint is due, by steps or by seconds, how many of the newest are kept, and which for good."""

    every_steps: int | None
    every_s: float | None
    keep: int
    keep_every: int = 0
    keep_step: int | None = None


def saving(every: str, keep: int, keep_every: int = 0, keep_step: int | None = None) -> Saving:
    """From what --save-every, --keep and --keep-every say."""
    if keep < 1:
        raise FathomError(f"--keep is {keep}", "keep at least one checkpoint")
    if keep_every < 0:
        raise FathomError(f"--keep-every is {keep_every}", "give a number of steps, or 0 for none")
    return Saving(*parse_save_every(every), keep, keep_every, keep_step)


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
                look = partial(_measure_bpb, model, validation, token_bytes, record, tags, here, document_start)
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
    attention = choose_attention(shape, machine.device, document_start is not None, model.dtype)
    say(f"  attend  {attention.value}: {attention.reason}")
    if fp8:
        model.train_in_fp8()
        say("  fp8     the blocks' large products while training, head and evaluation not; MFU is of the bf16 rate")
    ways = {"attention": attention.value, "attention_reason": attention.reason, "fp8": fp8}
    circumstances = _circumstances(machine, settings, model, sharing) | ways
    record.machine(circumstances)
    record.event("training", step=progress.step, **circumstances)
    with tracking(track if here.is_main else (), name, record, read_config(name)):
        outcome = train(model, optimizer, schedule, source, settings, record, progress, evaluate, label=name, here=here)
    model.eval()
    if not outcome.finished:
        say(f"stopped after step {outcome.step:,}; the same command goes on there (pretrain and sft want --resume)")
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
        "first_step_s": round(outcome.first_step_s, 3),
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
    here: Ranks,
    document_start: int | None,
) -> dict[str, float]:
    batches = in_turns(validation.batches(), here)
    with bar("  validating", validation.n_rows / here.world) as progress:
        found = bits_per_byte(model, batches, token_bytes, progress.advance, document_start, here.gather)
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
        "compile_from": 0 if model.has_cpu_kernels else settings.compile_from,
        "kernels": "ours" if model.has_cpu_kernels else "torch",
        "torch": torch.__version__,
    }


def _last_found(folder: Path, kind: str, key: str, step: int) -> float | None:
    """What a measurement after the last step found; None where it failed."""
    found = [line[key] for line in events(folder) if line["event"] == kind and line["step"] == step]
    return float(found[-1]) if found else None


def say_finished(result: Mapping[str, Any], *advice: str) -> None:
    """The last lines of a training: what it took, what came of it, where it is, and what to do next."""
    bpb = "" if result.get("val_bpb") is None else f", {result['val_bpb']:.4f} bits per byte"
    say(f"\n{result['run']}: {result['steps']:,} steps in {clock(result['seconds'])}{bpb}", style="bold green")
    say(f"  kept in {run_dir(result['run'])}", style="dim")
    for line in advice:
        say(f"  {line}")


def print_samples(record: Record, step: int, pairs: list[tuple[str, str]]) -> None:
    """Show the sample sheet and keep it."""
    for prompt, text in pairs:
        record.sample(step=step, prompt=prompt, text=text)
        say(f"    {prompt} … {' '.join(text.split())}")


def say_if_new(name: str) -> None:
    """Tell whoever asked for --resume that there is nothing to resume: the name may be mistyped."""
    if not (run_dir(name) / "run.toml").exists():
        others = [run for run in names("runs") if (run_dir(run) / "run.toml").exists()]
        near = get_close_matches(name, others, n=1)
        hint = f"; did you mean {near[0]!r}? Ctrl-C stops this one" if near else ""
        say(f"there is no run {name!r} to resume, so it begins anew{hint}", style="yellow")


@contextmanager
def locked_run(name: str, here: Ranks = ALONE) -> Iterator[Path]:
    """The run's folder, held by this process (or these ranks) alone; the lock goes with it, however that ends."""
    folder = run_dir(name)
    if not here.is_main:
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        if not _obtained(file):
            raise FathomError(f"the run {name!r} is being trained by another process", "wait for it or stop it")
        try:
            yield folder
        finally:
            if [path.name for path in folder.iterdir()] == [".lock"]:  # refused before it began: no trace of it
                (folder / ".lock").unlink()
                folder.rmdir()


def _obtained(file: IO[str]) -> bool:
    """Whether the lock is ours now. Whoever looks if a run goes on holds it for an instant, so ask more than once."""
    for patience_s in (0.01, 0.05, 0.2, 0.0):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            time.sleep(patience_s)
    return False


def begin(
    name: str, folder: Path, resume: bool, tables: Mapping[str, Mapping[str, Any]], here: Ranks = ALONE
) -> tuple[Record, bool]:
    """Open the run's record. Returns it and whether the run was there before.

    `tables` is what run.toml will hold; on resuming all but the table "origin" must be what the run began with. The
    main rank sees to it, and the others are told; all of them have to see the folder.
    """
    record = Record(folder) if here.is_main else Silent(folder)
    token = here.from_main(lambda: _marked(folder / ".lock") if here.world > 1 else "")
    if not all(here.gather(here.is_main or _says(folder / ".lock", token))):
        raise FathomError(
            f"not every rank sees the run's folder, {folder}",
            "put FATHOM_HOME on a disk that all machines share",
        )
    return record, here.from_main(lambda: _begin(name, record, resume, tables))


def _marked(path: Path) -> str:
    token = f"{time.time_ns()}"
    path.write_text(token)
    return token


def _says(path: Path, token: str) -> bool:
    """Whether the file has this text, or gets it within a few seconds: a network's disk takes its time."""
    for _ in range(50):
        with suppress(OSError):
            if path.read_text() == token:
                return True
        time.sleep(0.1)
    return False


def _begin(name: str, record: Record, resume: bool, tables: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the run was there before."""
    folder = record.folder
    if (folder / "run.toml").exists():
        if not resume:
            raise FathomError(f"the run {name!r} exists already", "go on with --resume, or choose another --run")
        before = known = read_config(name)
        if imported_run(name):
            if not checkpoint.has_moments(checkpoint.find(name)):
                raise FathomError(
                    f"the run {name!r} was imported without its optimizer's state",
                    "import it with its optim files, or fine-tune it with `fathom sft`",
                )
            known = {table: {**tables.get(table, {}), **values} for table, values in before.items()}
        for table, values in tables.items():
            if table not in ("origin", "machine"):
                _same(name, known.get(table, {}), values)
        if known != before:  # what no import could know: corpus, precision
            record.config(known)
        return True
    head = {
        "name": name,
        "fathom": __version__,
        "torch": torch.__version__,
        "created": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    record.config({"run": head | dict(tables["run"]), **{k: v for k, v in tables.items() if k != "run"}})
    record.event("started")
    return False


def imported_run(name: str | None) -> dict[str, Any] | None:
    """run.toml of a run that began elsewhere and was imported; None for every other, and where there is none."""
    if name is None or not (run_dir(name) / "run.toml").exists():
        return None
    tables = read_config(name)
    return tables if "imported" in tables.get("run", {}) else None


def finished_result(folder: Path) -> dict[str, Any] | None:
    """What the run printed when it came to its end, None while it has not."""
    done = [line["result"] for line in events(folder) if line["event"] == "finished"]
    return done[-1] if done else None


def _same(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    for key, value in now.items():
        was = before.get(key, value)  # an older version may not have noted it
        if value != was and not (isinstance(value, float) and was is not None and math.isclose(value, was)):
            if key.endswith("_digest"):
                what = {"data_digest": "data"}.get(key, key.removesuffix("_digest"))
                raise FathomError(
                    f"the {what} of the run {name!r} had other contents when it began",
                    f"put the old {what} back, or start another run",
                )
            raise FathomError(
                f"the run {name!r} began with {key} = {was}, not {value}",
                f"`fathom pretrain --extend {name} --steps {value}` trains it for longer, from before its rate fell"
                if key == "steps" and isinstance(was, int) and value > was
                else "resume it with what it began with, or start another run",
            )


def restore(record: Record, model: GPT, optimizer: Optimizer, here: Ranks = ALONE) -> Progress:
    """Go on from the newest whole checkpoint, or from the start where there is none.

    One that cannot be read is put aside where there is one before it. FathomError where there is not.
    """
    saved = here.from_main(lambda: checkpoint.steps(record.folder))
    if not saved:
        record.event("resumed", step=0)
        return Progress()
    for step in reversed(saved):
        progress, failed = Progress(), None
        try:
            progress = load_progress(record.folder, step, model, optimizer)
        except FathomError as error:
            failed = error
        problem = next((word for word in here.gather(failed.problem if failed else "") if word), "")
        if not problem:
            break
        if step == saved[0]:
            raise failed or FathomError(problem, "use another checkpoint, or remove that folder")
        say(f"{problem}; going on from the one before, it is kept as {step:06d}.damaged", style="yellow")
        here.from_main(partial(checkpoint.put_aside, record.folder, step))
        record.event("damaged", step=step, why=problem[:300])
    record.event("resumed", step=step)
    say(f"  going on from step {step:,}")
    return progress
