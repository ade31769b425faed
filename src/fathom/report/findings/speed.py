"""MFU and what holds it down, waiting for data, memory to spare, drift."""

from __future__ import annotations

import math

import numpy as np

from fathom.estimate import Work, optimizer_bytes, weights_bytes
from fathom.model.shape import Shape
from fathom.pace import muon_flops
from fathom.report import measures
from fathom.report.findings.finding import Finding, Severity
from fathom.report.history import History
from fathom.report.words import figure, large, listed, percent

HEALTHY_MFU = 0.40
IMPOSSIBLE_MFU = 1.0
WAITING, WAITING_MUCH = 0.02, 0.05
OPTIMIZER_MUCH = 0.10
SMALL_MICRO_TOKENS = 16_384
USABLE = 0.92
"""Share of a device's memory that a run can count on."""
ROOMY = 0.60
TIGHT = 0.95
DRIFT = 0.05
UNEVEN = 0.10
SEGMENTS = 10


def mfu(history: History) -> Finding | None:
    """Share of the peak rate that is used, and the likely causes where it is low."""
    used = measures.utilisation(history)
    if used is None:
        return _unknown_peak(history)
    rate = f"{large(measures.tokens_per_s(history))} tokens/s in a usual step" if history.batch_tokens else "its speed"
    figures = f"{percent(used.share)} at {rate}"
    evidence = (f"{percent(used.share)} {used.of_what}", "40 to 60 % is usual for training")
    if used.share > IMPOSSIBLE_MFU:
        sentence = f"MFU tells nothing here: {figures}, more than the whole rate, which was measured too low."
        advice = "Something else kept this machine busy while it was measured; a later run measures it anew."
        return Finding("mfu", "note", sentence, evidence, advice)
    if used.share >= HEALTHY_MFU:
        return Finding("mfu", "good", f"The device is well used: MFU {figures}.", evidence)
    causes = _causes(history)
    brief = measures.is_brief(history)
    sentence = f"{'' if brief else 'The device is badly used: '}MFU {figures}, below {percent(HEALTHY_MFU)}"
    likely = listed([cause for cause, _ in causes[:2]])
    sentence += f"; likely for {likely}." if likely else "; the record shows no cause."
    advice = " ".join(cure for _, cure in causes) or "Profile a step; nothing that is recorded explains it."
    severity: Severity = "note" if brief or history.circumstances.get("device") == "cpu" else "warn"
    return Finding("mfu", severity, sentence, evidence, advice)


def _unknown_peak(history: History) -> Finding | None:
    rate = measures.flops_per_s(history)
    if not math.isfinite(rate):
        return None
    told = history.circumstances.get("device_name")
    name = told if isinstance(told, str) and told else "this device"
    sentence = f"MFU cannot be told: no peak rate is known for {name}; it computes {figure(rate / 1e12, 3)} TFLOP/s."
    return Finding("mfu", "note", sentence)


def _causes(history: History) -> list[tuple[str, str]]:
    """(likely cause with its figure, cure), the surest first."""
    about = history.circumstances
    found: list[tuple[str, str]] = []
    on_cpu = about.get("device") == "cpu"
    wait = measures.waiting_share(history)
    if wait >= WAITING_MUCH:
        found.append((f"waiting for data, {percent(wait)} of the time", "Bring the data to a faster disk."))
    if on_cpu and about.get("dtype") == "fp32":
        found.append(("a CPU without bf16 (fp32)", "A CPU with bf16 instructions or a GPU computes faster."))
    share = optimizer_share(history)
    if share >= OPTIMIZER_MUCH:
        cure = "Raise --batch-tokens, so that there are fewer updates for the same text."
        found.append((f"the optimizer, {percent(share)} of the arithmetic with so small a batch", cure))
    if about and about.get("compile_from", 0) is None:
        found.append(("kernels that are not compiled", "Install a C++ compiler, or train with --compile on."))
    micro = measures.number(about, "device_batch") * (history.shape.seq_len if history.shape else math.nan)
    total = measures.number(about, "device_memory_gb")
    used = measures.peak_memory_gb(history) / total if total > 0 else math.nan
    if not on_cpu and micro <= SMALL_MICRO_TOKENS and used < ROOMY:
        cause = f"a device batch of {micro:,.0f} tokens, with {percent(used)} of the memory used"
        found.append((cause, "Raise --device-batch."))
    if measures.ranks(history) > 1:
        count = measures.ranks(history)
        cause = f"synchronisation of {count} devices"
        found.append((cause, "Raise --batch-tokens or --device-batch, so that they meet more seldom."))
    return found


def optimizer_share(history: History) -> float:
    """Muon's share of a step's arithmetic, by counting; NaN where shape or batch are unknown."""
    shape, batch = history.shape, history.batch_tokens
    if shape is None or not batch:
        return math.nan
    update = muon_flops(shape)
    return update / (update + shape.flops_per_token * batch)


def waiting(history: History) -> Finding | None:
    """Time spent waiting for batches."""
    share = measures.waiting_share(history)
    if not math.isfinite(share):
        return None
    if share < WAITING:
        return Finding("input", "good", f"Data comes fast enough: {percent(share)} of the time went by waiting for it.")
    severity: Severity = "warn" if share >= WAITING_MUCH else "note"
    sentence = f"Training waited for data {percent(share)} of the time."
    advice = "Keep the tokens on a local disk, and leave the processor to this run."
    return Finding("input", severity, sentence, (f"above {percent(WAITING)} it is felt",), advice)


def memory(history: History) -> Finding | None:
    """How much of the GPU's memory was used, and what larger device batch the rest would allow."""
    about = history.circumstances
    peak, total = measures.peak_memory_gb(history), measures.number(about, "device_memory_gb")
    if about.get("device") != "cuda" or not 0 < peak <= total:
        return None
    used = f"{figure(peak, 3)} of {figure(total, 3)} GB ({percent(peak / total)})"
    room = larger_device_batch(history)
    if peak / total > TIGHT:
        sentence = f"Memory is tight: {used}."
        return Finding(
            "memory", "note", sentence, (), "Should it run out, halve --device-batch: the result is the same."
        )
    if room is None:
        return Finding("memory", "good", f"Memory is used with room to breathe: {used}.")
    rows, now, fits, needs = room
    if fits > now:
        sentence = f"Memory to spare: {used} used; a device batch of {fits} rows instead of {now} would fit."
        evidence = (f"estimated: {figure(needs, 3)} GB for {fits} rows of {rows}",)
        return Finding("memory", "note", sentence, evidence, f"Try --device-batch {fits}: fewer, larger products.")
    more = (
        "the whole batch is in one" if now == rows else f"the next device batch would need about {figure(needs, 3)} GB"
    )
    return Finding("memory", "good", f"Memory is well used: {used}; {more}.")


def larger_device_batch(history: History) -> tuple[int, int, int, float] | None:
    """(a device's rows of a step, rows now, the most that fit, GB of those, or of the next more where no more fit).

    Memory is taken to be a fixed part (weights, gradients, moments) and one that grows with the rows.
    """
    about, shape = history.circumstances, history.shape
    now, peak = measures.number(about, "device_batch"), measures.peak_memory_gb(history)
    total = measures.number(about, "device_memory_gb")
    if shape is None or not history.batch_tokens or not now >= 1 or history.batch_tokens > 1e12:
        return None
    rows = -(-(history.batch_tokens // shape.seq_len) // measures.ranks(history))
    fixed = fixed_memory_gb(history, shape)
    each = (peak - fixed) / now
    if rows < 1 or not each > 0:
        return None
    divisors = [n for n in range(int(now) + 1, min(rows, 4096) + 1) if rows % n == 0]
    fitting = [n for n in divisors if fixed + n * each <= USABLE * total]
    chosen = fitting[-1] if fitting else divisors[0] if divisors else int(now)
    return rows, int(now), fitting[-1] if fitting else int(now), fixed + chosen * each


def fixed_memory_gb(history: History, shape: Shape) -> float:
    """GB of weights, gradients and moments on one device."""
    about, ranks = history.circumstances, measures.ranks(history)
    work = Work(shape, 1, dtype=str(about.get("dtype")))
    parts = ranks if about.get("weights") == "split" else 1
    return (2 * weights_bytes(work) / parts + optimizer_bytes(work) / ranks) / 1e9


def drift(history: History) -> Finding | None:
    """Whether the speed changed in the course of the newest phase, beyond what single steps scatter."""
    chosen = measures.steady(history)
    times, steps = history.step_s[chosen], history.step[chosen]
    if len(times) < 8 * SEGMENTS:
        return None
    parts = np.array_split(times, SEGMENTS)
    middles = np.array([np.median(part) for part in parts])
    scatter = 1.4826 * float(np.median([np.median(np.abs(part - np.median(part))) for part in parts]))
    first, last = float(middles[:2].mean()), float(middles[-2:].mean())
    change, sure = last / first - 1, 4 * 1.25 * scatter / math.sqrt(2 * len(parts[0]))
    batch = history.batch_tokens
    speeds = f"{large(batch / first)} → {large(batch / last)} tokens/s" if batch else _step_times(first, last)
    if abs(last - first) <= sure or abs(change) < DRIFT:
        spread = float(middles.max() / middles.min() - 1)
        usual = float(np.median(times))
        speed = f"{large(batch / usual)} tokens/s" if batch else f"{figure(usual, 3)} s a step"
        how = "is steady" if spread < UNEVEN else "scatters, but neither falls nor rises"
        sentence = f"The speed {how}: {speed}, tenths of the run within"
        return Finding("drift", "good", f"{sentence} {percent(spread)}.")
    evidence = (
        f"step time {figure(first, 3)} s in the first fifth of the newest phase, {figure(last, 3)} s in the last",
        f"{len(times):,} steps from {int(steps[0]):,} to {int(steps[-1]):,}",
    )
    if change < 0:
        return Finding("drift", "note", f"It became faster by {percent(1 - last / first)}: {speeds}.", evidence)
    advice = "Look for heat (a GPU that throttles), another process, or a disk that fills."
    severity: Severity = "note" if measures.is_brief(history) else "warn"
    return Finding("drift", severity, f"It became slower by {percent(change)}: {speeds}.", evidence, advice)


def _step_times(first: float, last: float) -> str:
    return f"{figure(first, 3)} → {figure(last, 3)} s a step"
