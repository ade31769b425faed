"""The machine that a plan is for, a GPU of the table or the one at hand, and how fast it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fathom import hardware
from fathom.errors import FathomError
from fathom.estimate import Work
from fathom.gpus import Gpu, find_gpu, gpu_named
from fathom.home import names, run_dir
from fathom.model.shape import Shape
from fathom.pace import SPREAD, muon_flops, step_parts

MOST_RANKS = 100_000
PROBE_S = 40.0
PROBE_TOKENS = 2048  # a probe takes at least so many at once, so that its products are as long as training's
PROBE_SHARE = 0.5  # of the peak rate, what a network reaches that was not measured yet
PROBED_SPREAD = 0.15
REMEMBERED_SPREAD = 0.3
RUNS_LOOKED_AT = 5
UPDATE_FLOPS_PER_PARAMETER = 300  # what AdamW's bytes cost beside Muon's products, in FLOPs of a CPU


@dataclass(frozen=True)
class Machine:
    device: str
    """cuda, mps or cpu."""
    label: str
    gpu: Gpu | None
    """Its row in the table."""
    memory_gb: float | None
    dtype: str
    ranks: int
    is_here: bool


@dataclass(frozen=True)
class Speed:
    """Seconds of a step, from wherever they are known."""

    step_s: Callable[[Work], float]
    spread: float
    """Half width of the interval, as a share."""
    source: str

    def tokens_per_s(self, work: Work) -> float:
        return work.step_tokens / self.step_s(work)


def machine_for(gpu: str | None, ranks: int) -> Machine:
    """The GPU that was named, else what is here. Raises FathomError for an unknown name or a number of none."""
    if not 1 <= ranks <= MOST_RANKS:
        raise FathomError(f"--ranks is {str(ranks)[:40]}", f"give the number of GPUs, from 1 to {MOST_RANKS:,}")
    if gpu is not None:
        row = gpu_named(gpu)
        return Machine("cuda", row.label, row, row.memory_gb, "bf16", ranks, is_here=False)
    device = hardware.likely_device()
    if device != "cuda" and ranks > 1:
        raise FathomError(
            f"--ranks {ranks} shares the work between GPUs, and there is none here", "name one with --gpu"
        )
    if device == "cpu":
        dtype = "bf16" if hardware.bf16_instructions() else "fp32"
        return Machine("cpu", hardware.device_name("cpu"), None, hardware.memory_gb("cpu"), dtype, 1, is_here=True)
    if device == "mps":
        return Machine("mps", "Apple GPU", None, hardware.memory_gb("mps"), "bf16", 1, is_here=True)
    name, memory = hardware.likely_gpu() or ("GPU", None)
    return Machine("cuda", name, find_gpu(name), memory, "bf16", ranks, is_here=True)


def speed_of(machine: Machine) -> Speed | None:
    """What is known without measuring: the table's, else that of a run done here; None where there is neither."""
    if machine.gpu is not None:
        gpu, spread = machine.gpu, SPREAD[machine.gpu.family.is_measured]
        known = "its shares of peak are guessed" if not gpu.family.is_measured else "calibrated on published runs"
        return Speed(lambda work: sum(step_parts(work, gpu).values()), spread, f"data sheet; {known}")
    return _remembered(machine)


def _remembered(machine: Machine) -> Speed | None:
    """The newest runs that were trained on this device tell its FLOP/s, pretraining before anything else."""
    from fathom.report.history import history_of, series

    runs = [name for name in names("runs") if (run_dir(name) / "metrics.jsonl").exists()]
    found: list[tuple[bool, Speed]] = []
    for name in sorted(runs, key=lambda run: -(run_dir(run) / "metrics.jsonl").stat().st_mtime)[:RUNS_LOOKED_AT]:
        try:
            history = history_of(name)
        except FathomError:
            continue
        facts, (_, seconds) = history.circumstances, series(history, "step_s")
        if (facts.get("device"), facts.get("device_name")) != (machine.device, machine.label) or len(seconds) < 8:
            continue
        if history.shape is None or not history.batch_tokens:
            continue
        rate = history.shape.flops_per_token * history.batch_tokens / float(np.median(seconds[len(seconds) // 2 :]))
        speed = Speed(_by_flops(rate), REMEMBERED_SPREAD, f"as fast as your run {name} was here, by FLOPs")
        found.append((history.stage != "pretrain", speed))
    return min(found, key=lambda one: one[0])[1] if found else None


def _by_flops(rate: float) -> Callable[[Work], float]:
    return lambda work: work.step_tokens * work.shape.flops_per_token / rate


def probed_speed(work: Work) -> Speed:
    """Measured now, on this machine: a micro-batch and an update of the network, or of a few of its layers."""
    from fathom.train.session import look_at_machine, measured_step

    here = look_at_machine("auto", quiet=True)
    shape, rows = probe_size(work.shape, work.rows, here.peak_flops)
    micro_s, update_s = measured_step(here, shape, rows)
    rate = rows * shape.seq_len * shape.flops_per_token / micro_s
    update_rate = _update_cost(shape) / update_s

    def step_s(work: Work) -> float:
        passes = work.micro_tokens * work.grad_accum * work.shape.flops_per_token / rate
        return passes + _update_cost(work.shape) / update_rate

    of = f"{shape.n_layer} of {work.shape.n_layer} layers" if shape.n_layer < work.shape.n_layer else "this network"
    return Speed(step_s, PROBED_SPREAD, f"measured here on {of}, {rows} × {shape.seq_len} tokens")


def probe_size(shape: Shape, rows: int, peak_flops: float) -> tuple[Shape, int]:
    """Fewer rows, then fewer layers of the same width, so that three steps take about PROBE_S at most."""

    def too_long(shape: Shape, rows: int) -> bool:
        flops = rows * shape.seq_len * shape.flops_per_token + _update_cost(shape)
        return 3 * flops / (PROBE_SHARE * peak_flops) > PROBE_S

    while rows > 1 and (rows // 2) * shape.seq_len >= PROBE_TOKENS and too_long(shape, rows):
        rows //= 2
    while shape.n_layer > 1 and too_long(shape, rows):
        shape = replace(shape, n_layer=max(1, shape.n_layer // 2))
    return shape, rows


def _update_cost(shape: Shape) -> float:
    return muon_flops(shape) + UPDATE_FLOPS_PER_PARAMETER * shape.parameters["total"]
