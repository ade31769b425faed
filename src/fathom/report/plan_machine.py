"""The machine that a plan is for, a GPU of the table or the one at hand, and how fast it trains."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fathom import hardware
from fathom.errors import FathomError
from fathom.estimate import Work
from fathom.gpus import Gpu, find_gpu, gpu_named, several
from fathom.model.shape import Shape
from fathom.pace import SPREAD, muon_flops, step_parts
from fathom.screen import say, working

MOST_RANKS = 100_000
PROBE_S = 40.0  # what the least of a probe may take, three steps
LOOK_S = 20.0  # over which steps are averaged where more of them are done
PROBE_TOKENS = 2048  # a probe takes at least so many at once, so that its products are as long as training's
PROBE_SHARE = 0.5  # of the peak rate, what a network reaches that was not measured yet
PROBED_SPREAD = 0.15
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
    """1 + this is the factor of the interval's ends."""
    source: str

    def tokens_per_s(self, work: Work) -> float:
        return work.step_tokens / self.step_s(work)


def machine_for(gpu: str | None, ranks: int | None) -> Machine:
    """The GPU that was named ("8xH100" is eight), else what is here. FathomError for an unknown name or number."""
    count, named = several(gpu or "")
    if None not in (count, ranks) and ranks != count:
        raise FathomError(f"--gpu names {count:,} GPUs and --ranks {str(ranks)[:40]}", "give one of them")
    ranks = next((number for number in (count, ranks) if number is not None), 1)
    if not 1 <= ranks <= MOST_RANKS:
        raise FathomError(f"--ranks is {str(ranks)[:40]}", f"give the number of GPUs, from 1 to {MOST_RANKS:,}")
    if gpu is not None:
        row = gpu_named(named)
        return Machine("cuda", row.label, row, row.memory_gb, row.dtype, ranks, is_here=False)
    device = hardware.likely_device()
    if device != "cuda" and ranks > 1:
        processes = "of an Apple GPU" if device == "mps" else "on CPUs"
        raise FathomError(
            f"--ranks {ranks} shares the work between GPUs, and no plan reckons with several processes {processes}",
            "leave it out, or name a GPU with --gpu",
        )
    if device == "cpu":
        dtype = "bf16" if hardware.bf16_instructions() else "fp32"
        return Machine("cpu", hardware.device_name("cpu"), None, hardware.memory_gb("cpu"), dtype, 1, is_here=True)
    if device == "mps":
        return Machine("mps", "Apple GPU", None, hardware.memory_gb("mps"), "bf16", 1, is_here=True)
    name, memory = hardware.likely_gpu() or ("GPU", None)
    row_here = find_gpu(name)
    return Machine("cuda", name, row_here, memory, row_here.dtype if row_here else "bf16", ranks, is_here=True)


def can_probe(machine: Machine) -> bool:
    """Whether --probe measures it: one device, and here."""
    return machine.is_here and machine.ranks == 1


def listed_speed(gpu: Gpu) -> Speed:
    """The table's."""
    known = "calibrated on published runs" if gpu.family.is_measured else "its shares of peak are guessed"
    spread = SPREAD[gpu.family.is_measured]
    return Speed(lambda work: sum(step_parts(work, gpu).values()), spread, f"data sheet; {known}")


def probed_speed(work: Work) -> Speed:
    """Measured now, on this machine: a micro-batch and an update of the network, or of a few of its layers."""
    say("measuring this machine on a throw-away network of the planned size, about a minute …", style="dim")
    from fathom.train.session import look_at_machine, measured_step

    here = look_at_machine("auto", quiet=True)
    shape, rows = probe_size(work.shape, work.rows, here.peak_flops)
    with working(f"steps of {shape.n_layer} layers, {rows} × {shape.seq_len:,} tokens at once"):
        micro_s, update_s = measured_step(here, shape, rows, LOOK_S)
    rate = rows * shape.seq_len * shape.flops_per_token / micro_s
    update_rate = _update_cost(shape) / update_s

    def step_s(work: Work) -> float:
        passes = work.micro_tokens * work.grad_accum * work.shape.flops_per_token / rate
        return passes + _update_cost(work.shape) / update_rate

    of = f"{shape.n_layer} of {work.shape.n_layer} layers" if shape.n_layer < work.shape.n_layer else "this network"
    return Speed(step_s, PROBED_SPREAD, f"measured here on {of}, {rows} × {shape.seq_len:,} tokens")


def probe_size(shape: Shape, rows: int, peak_flops: float) -> tuple[Shape, int]:
    """Fewer rows, then fewer layers of the same width, so that three steps take about PROBE_S at most."""

    def too_long(shape: Shape, rows: int) -> bool:
        return 3 * work_cost(shape, rows * shape.seq_len) / (PROBE_SHARE * peak_flops) > PROBE_S

    while rows > 1 and (rows // 2) * shape.seq_len >= PROBE_TOKENS and too_long(shape, rows):
        rows //= 2
    while shape.n_layer > 1 and too_long(shape, rows):
        shape = replace(shape, n_layer=max(1, shape.n_layer // 2))
    return shape, rows


def work_cost(shape: Shape, tokens: int) -> float:
    """FLOPs of a step of so many tokens, its update with them."""
    return tokens * shape.flops_per_token + _update_cost(shape)


def _update_cost(shape: Shape) -> float:
    return muon_flops(shape) + UPDATE_FLOPS_PER_PARAMETER * shape.parameters["total"]
