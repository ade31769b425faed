"""`fathom plan`: what a run will be, before it starts. Needs no torch (but to measure), no corpus and no tokenizer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fathom.errors import FathomError
from fathom.estimate import Work, fits, memory_parts, rows_that_fit
from fathom.expectation import RATIOS, capability
from fathom.pace import step_parts
from fathom.report.plan_instead import instead
from fathom.report.plan_machine import Machine, Speed, can_probe, machine_for, probed_speed
from fathom.report.plan_outlook import SHARD_GB, commands, data_for, disk_gb, expectations, plan_command, shards_to_get
from fathom.report.plan_remembered import speed_of
from fathom.report.plan_search import (
    better_depth,
    check_hours,
    deepest_that_fits,
    fill_flops,
    fill_hours,
    fitted,
    work_of,
)
from fathom.train.settings import Settings, combined, read_recipe, resolve


@dataclass(frozen=True)
class Plan:
    """Say what a run will be, each number with its rule: size, memory, hours, cost, worth, data, and how to start it.

    Give --depth, or a budget: --hours finds the depth that this machine (or the --gpu) trains best in that time,
    --flops the one that so much compute trains best.
    """

    depth: int | None = None
    """Layers; sets everything that is not given."""
    hours: float | None = None
    """Time to train in; finds depth and ratio, on this machine by measuring it for about a minute."""
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
    vocab: int = 32_768
    """Vocabulary of the tokenizer."""
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
    gpu: str | None = None
    """A GPU to plan for instead of this machine, such as "RTX 4070" or "8xH100"; from its data sheet."""
    ranks: int | None = None
    """How many such GPUs share the work. Default 1."""
    price: float | None = None
    """Dollars for an hour of one GPU. Default what renting the --gpu typically costs."""
    watts: float | None = None
    """What one GPU, or this computer, draws. Default the most that the GPU is built for."""
    corpus: str | None = None
    """Corpus to train on. Default the largest here."""
    tokenizer: str | None = None
    """Tokenizer to train with; its vocabulary outranks --vocab. Default one trained on the corpus."""
    probe: bool = False
    """Measure this machine for about a minute instead of looking its speed up."""
    ways: Literal["ours", "reference"] = "ours"
    """Whose memory and speed: reference keeps all logits in float32 and has its own kernels."""
    fp8: bool = False
    """Linear layers in fp8."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        if self.tokenizer is None:
            return self._plan()
        from fathom.tokenizer import load

        return replace(self, vocab=load(self.tokenizer).vocab_size)._plan()

    def _plan(self) -> dict[str, Any]:
        recipe = read_recipe(self.recipe)
        given = combined({key: value for key, value in asdict(self).items() if value is not None}, recipe)
        resolve(asdict(self) | ({} if "depth" in given else {"depth": 12}), recipe, self.vocab)
        if "depth" not in given and self.hours is None and self.flops is None:
            raise FathomError(
                "no depth was given, and no time",
                "try --depth 4 on a CPU, --depth 12 on a GPU, or --hours 8 to find what is trained best in that time",
            )
        machine = machine_for(self.gpu, self.ranks)
        self._check(machine)
        speed: Speed | None = None
        found: dict[str, Any] = {}
        if self.hours is not None:
            check_hours(self.hours, given)
            speed, found = self._fill(self.hours, given, machine)
        elif given.get("depth") is None and self.flops is not None:
            found = {"depth": fill_flops(self.flops, given, self.vocab)}
        settings = resolve(asdict(self) | found, recipe, self.vocab)
        for key in found:
            if given.get(key) is None:
                settings.origin[key] = f"fills {'--hours' if self.hours is not None else '--flops'}"
        work = self._work(settings, machine)
        if speed is None:
            speed = self._probed(work, machine) if self.probe else speed_of(machine, work)
        result = self._result(settings, work, machine, speed, found)
        if not self.json:
            from fathom.report.plan_view import show

            show(settings, machine, result)
        return result

    def _check(self, machine: Machine) -> None:
        """Raises FathomError for what no machine does."""
        for name, value in (("price", self.price), ("watts", self.watts)):
            if value is not None and not 0 <= value < math.inf:
                raise FathomError(f"--{name} is {value:g}", "give a number that is not negative")
        if self.ways == "reference" and machine.device != "cuda":
            raise FathomError("the reference's memory and speed are known for GPUs only", "name one with --gpu")
        if self.fp8 and (machine.gpu is None or machine.gpu.fp8_tflops is None):
            raise FathomError(f"{machine.label} has no fp8 that is known of", "leave --fp8 out")
        if self.probe and not machine.is_here:
            raise FathomError(f"--probe measures this machine, and the plan is for {machine.label}", "leave one out")
        if self.probe and machine.ranks > 1:
            raise FathomError("--probe measures one device", "leave --ranks or --probe out")

    def _work(self, settings: Settings, machine: Machine) -> Work:
        return work_of(settings, machine, self.device_batch, self.ways, self.fp8)

    def _works(self, machine: Machine) -> Callable[[Settings], Work]:
        """What a device does in a step of any settings, in micro-batches that fit."""
        return lambda settings: fitted(self._work(settings, machine), machine)

    def _probed(self, work: Work, machine: Machine) -> Speed:
        if rows_that_fit(work, machine.memory_gb) is None:
            raise FathomError(
                f"a network of depth {work.shape.n_layer} does not fit into the memory here to be measured",
                "plan for a GPU with --gpu, or leave --probe out",
            )
        return probed_speed(work)

    def _fill(self, hours: float, given: dict[str, Any], machine: Machine) -> tuple[Speed, dict[str, Any]]:
        """The run that fills the hours; here what was chosen by a run that is known, or by measuring, is measured."""
        works = self._works(machine)

        def fill(speed: Speed) -> dict[str, Any]:
            return fill_hours(hours, given, self.vocab, machine, speed, works)

        depth = given.get("depth") or (12 if machine.device == "cuda" else 4)
        work = works(resolve(given | {"depth": depth}, {}, self.vocab))
        known = speed_of(machine, work)
        if not machine.is_here:
            assert known is not None  # a row of the table
            return known, fill(known)
        speed = known if known and given.get("depth") is None else self._probed(work, machine)
        found = fill(speed)
        if speed is known or found["depth"] != depth:
            speed = self._probed(works(resolve(given | found, {}, self.vocab)), machine)
            found = fill(speed)
        return speed, found

    def _result(
        self, settings: Settings, work: Work, machine: Machine, speed: Speed | None, found: dict[str, Any]
    ) -> dict[str, Any]:
        flags, given = asdict(self), asdict(self) | found
        shape = settings.shape
        tokens = settings.steps * settings.batch_tokens
        memory = memory_parts(work)
        does_fit = fits(work, machine.memory_gb)
        other_rows = rows_that_fit(work, machine.memory_gb) if does_fit is False else None
        is_too_large = does_fit is False and other_rows is None
        data = data_for(settings, self.corpus)
        bpb, core = expectations(settings, data.corpus)
        one, disk = disk_gb(work, data)
        smaller = deepest_that_fits(given, self.vocab, machine, self._works(machine)) if is_too_large else None
        if is_too_large:
            lines = [] if smaller is None else [plan_command(flags | {"depth": smaller}, machine)]
        else:
            lines = commands(given, settings, data, other_rows or self.device_batch, machine)
        ratio = found.get("ratio") or tokens / shape.scaling_parameters  # as it is to be typed, before whole steps
        flops = float(tokens * shape.flops_per_token)
        better = None
        if ratio < RATIOS[0]:
            better = better_depth(self.hours, flops, given, self.vocab, machine, speed, self._works(machine))
        for_these = None if better is None else (better, flops)
        takes = self._time(tokens, fitted(work, machine), machine, speed, is_too_large)
        return {
            "parameters": shape.parameters,
            "windows": list(shape.windows),
            "flops_per_token": shape.flops_per_token,
            "tokens": tokens,
            "batch_tokens": settings.batch_tokens,
            "steps": settings.steps,
            "lr_scale": settings.lr_scale,
            "weight_decay": settings.weight_decay,
            "device_batch": work.rows,
            "grad_accum": work.grad_accum,
            "packing": settings.packing,
            "rules": settings.rules,
            "depth": settings.depth,
            "ratio": ratio,
            "device": machine.label,
            "ranks": machine.ranks,
            "dtype": machine.dtype,
            "fp8": self.fp8,
            "ways": self.ways,
            "memory": _rounded({f"{part}_gb": value for part, value in memory.items()}),
            "memory_gb": round(sum(memory.values()), 3),
            "device_memory_gb": None if machine.memory_gb is None else round(machine.memory_gb, 2),
            "fits": does_fit,
            "device_batch_that_fits": work.rows if does_fit else other_rows,
            "depth_that_fits": smaller,
            **takes,
            "expected_bpb": bpb,
            "expected_core": core,
            "capability": capability(settings.depth, ratio, better),
            "data": data.as_json(),
            "checkpoint_gb": round(one, 3),
            "disk_gb": round(disk, 3),
            "fetch_gb": round(SHARD_GB * shards_to_get(given, data), 3),
            "commands": lines,
            "instead": None if is_too_large else instead(flags, shape, ratio, takes["hours"], machine, for_these),
        }

    def _time(
        self, tokens: int, work: Work, machine: Machine, speed: Speed | None, is_too_large: bool
    ) -> dict[str, Any]:
        """Speed, hours of training alone, energy and cost; null where they are not known, or nothing fits."""
        gpu, speed = machine.gpu, None if is_too_large else speed
        price = self.price if self.price is not None else gpu.price_per_h if gpu and not machine.is_here else None
        watts = self.watts if self.watts is not None else gpu.watts if gpu else None
        rate = speed.tokens_per_s(work) if speed else None
        hours = tokens / rate / 3600 if rate else None
        spread = speed.spread if speed else 0.0
        parts = step_parts(work, gpu) if gpu is not None else {}
        return {
            "tokens_per_s": None if rate is None else _figures(rate),
            "tokens_per_s_low": None if rate is None else _figures(rate / (1 + spread)),
            "tokens_per_s_high": None if rate is None else _figures(rate * (1 + spread)),
            "speed_from": speed.source if speed else _no_speed(machine, is_too_large),
            "step_s": None if rate is None else work.step_tokens / rate,
            "step_parts_s": _rounded(parts, 6),
            "hours": hours,
            "hours_low": None if hours is None else hours / (1 + spread),
            "hours_high": None if hours is None else hours * (1 + spread),
            "kwh": None if hours is None or watts is None else hours * watts * machine.ranks / 1000,
            "price_per_gpu_h": price,
            "cost": None if hours is None or price is None else hours * price * machine.ranks,
        }


def _no_speed(machine: Machine, is_too_large: bool) -> str:
    if not is_too_large:
        probe = "; --probe does in about a minute" if can_probe(machine) else ""
        return f"not measured on this machine yet{probe}"
    where = "here" if machine.is_here else f"of the {machine.label}, whose data sheet tells the speed of what fits"
    return f"none: it does not fit into the memory {where}"


def _figures(value: float) -> float:
    """To six figures, however small: nothing that is left of a speed becomes 0."""
    return float(f"{value:.6g}")


def _rounded(values: dict[str, float], digits: int = 4) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}
