"""What a run is: the network, the configuration, the data, the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fathom.report import measures, words
from fathom.report.document import Section, Table, Text, facts, section
from fathom.report.history import History
from fathom.report.recipe import IN_MODEL, Difference
from fathom.report.surroundings import CorpusFacts
from fathom.report.words import duration, figure, large, memory, percent
from fathom.screen import plural

KINDS = {
    "token_embedding": "token embedding",
    "value_embeddings": "value embeddings",
    "head": "head",
    "block_matrices": "block matrices",
    "scalars": "scalars",
}
LEADER_FLOPS_PER_S = 0.98e6 * 4_775_225_616
"""Of the fastest training to GPT-2's capability: depth 24 on 8×H100 in 1.65 h (REFERENCE section 13)."""
SHOWN = (
    *(
        "depth",
        "batch_tokens",
        "steps",
        "tokens",
        "ratio",
        "horizon",
        "matrix_lr",
        "embedding_lr",
        "head_lr",
        "scalar_lr",
        "lr_scale",
    ),
    *("width_scale", "weight_decay", "warmup_steps", "warmdown_share", "final_lr", "packing", "rules", "seed", "dtype"),
)


def network(history: History) -> Section | None:
    """Parameters by kind, sizes and FLOPs."""
    shape = history.shape
    if shape is None:
        return None
    counts = shape.parameters
    rows = [(KINDS[kind], f"{counts[kind]:,}", percent(counts[kind] / counts["total"])) for kind in KINDS]
    rows.append(("all", f"{counts['total']:,}", "100 %"))
    rows.append(
        (
            "of these in blocks and head",
            f"{shape.scaling_parameters:,}",
            percent(shape.scaling_parameters / counts["total"]),
        )
    )
    tokens = measures.tokens_judged(history) or 0
    shared = "" if shape.n_kv_head == shape.n_head else f" (each for {shape.n_head // shape.n_kv_head} heads)"
    return section(
        "Model",
        Table(("parameters", "count", "share"), tuple(rows), frozenset({1, 2})),
        facts(
            ("layers", f"{shape.n_layer}"),
            ("width", f"{shape.d_model:,}"),
            ("heads", f"{shape.n_head} of {shape.head_dim}, {shape.n_kv_head} for keys and values{shared}"),
            ("context", f"{shape.seq_len:,} tokens"),
            ("windows", f"{shape.window_pattern}: {words.windows(shape.windows)} tokens"),
            ("vocabulary", f"{shape.vocab_size:,}"),
            ("FLOPs per token", f"{shape.flops_per_token:,} (forward and backward)"),
            ("FLOPs of training", f"{tokens * shape.flops_per_token:.4g}") if tokens else None,
        ),
    )


def configuration(history: History) -> Section | None:
    """Every setting with where it came from."""
    about, origin = dict(measures.settings(history)), history.config.get("origin", {})
    origin = dict(origin) if isinstance(origin, Mapping) else {}
    _tell_the_horizon(history, about, origin)
    names = [name for name in SHOWN if name in about] + sorted(
        set(about) - set(SHOWN) - {"corpus", "data_digest", "data"}
    )
    rows = [(name.replace("_", " "), _value(name, about), str(origin.get(name, ""))) for name in names]
    model = history.config.get("model", {})
    others = {name: model[key] for name, key in IN_MODEL.items() if name not in about and key in model}
    rows += [(name.replace("_", " "), _value(name, others), str(origin.get(name, ""))) for name in others]
    told = about.keys() | others.keys()
    rows += [(name.replace("_", " "), "", str(why)) for name, why in origin.items() if name not in told and why]
    return section("Configuration", Table(("setting", "value", "from"), tuple(rows)), Text(_rates(history, about)))


def _tell_the_horizon(history: History, about: dict[str, Any], origin: dict[str, Any]) -> None:
    """Which tokens are meant: what the ratio gives, on which rates and decay go by, or what the steps come to."""
    planned, horizon = measures.tokens_planned(history), about.pop("tokens", None)
    if type(horizon) is not int:
        return
    if history.shape is not None:
        about["ratio"] = round(horizon / history.shape.scaling_parameters, 4)
    if planned is not None:
        about["tokens"], origin["tokens"] = planned, "steps × batch"
    if planned is None or abs(planned - horizon) > (history.batch_tokens or 1):
        about["horizon"] = horizon
        origin["horizon"] = "ratio × parameters in blocks and head; rates and decay go by it, the steps do not"


def _value(name: str, about: Mapping[str, Any]) -> str:
    value = about[name]
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"{value:,}" if type(value) is int and name != "seed" else str(value)


def _rates(history: History, about: Mapping[str, Any]) -> str:
    """The rates in a sentence, as they reach the weights."""
    scale = measures.number(about, "lr_scale")
    matrix = measures.number(about, "matrix_lr") * scale
    begin = measures.warmdown_from(history)
    parts = ["Optimizers: Muon for the block matrices, AdamW for embeddings, head and scalars."]
    if math.isfinite(matrix):
        parts.append(f"Muon's peak rate is {figure(matrix)} (rate × scale).")
    if begin is not None and history.steps_planned:
        share = 1 - begin / history.steps_planned
        parts.append(f"The warm-down begins at step {begin:,} and takes the last {percent(share)} of the run.")
    return " ".join(parts)


def deviations(recipe: str, found: list[Difference] | None) -> Section | None:
    """Where the run differs from the recipe that it was meant to be; None for `found` is a recipe that is gone."""
    if not recipe:
        return None
    if found is None:
        return Section("Recipe", (Text(f"The recipe {recipe}, which the run names, is no longer there."),))
    if not found:
        return Section("Recipe", (Text(f"The run is what the recipe {recipe} says, in every setting."),))
    says = ", ".join(f"{one.setting} = {one.meant}" for one in found)
    text = f"The recipe {recipe} says {says}, but the run did otherwise: it is not that recipe's."
    rows = tuple((one.setting.replace("_", " "), one.meant, one.was) for one in found)
    return Section("Recipe", (Text(text), Table(("setting", "recipe", "run"), rows)))


def data(history: History, corpus: CorpusFacts | None) -> Section | None:
    """The text: what there is, what was read, how often."""
    about, done, planned = measures.settings(history), history.tokens_done, measures.tokens_planned(history)
    known = history.epoch[(history.epoch == history.epoch) & (history.epoch > 0)]
    epochs = float(known[-1]) if len(known) else math.nan
    there = done / epochs if done and epochs > 0 else math.nan
    digest = str(about.get("data_digest", ""))[:12]
    files = about.get("data")
    return section(
        "Data and tokens",
        facts(
            ("corpus", str(about["corpus"])) if about.get("corpus") else None,
            ("files", ", ".join(map(str, files))) if isinstance(files, list) and files else None,
            ("tokenizer", str(about["tokenizer"])) if about.get("tokenizer") else None,
            ("digest", digest) if digest else None,
            _on_disk(corpus),
            ("from", corpus.source) if corpus and corpus.source else None,
            ("tokens there", f"{large(there)}") if math.isfinite(there) else None,
            ("tokens read", f"{large(done)} ({figure(epochs, 3)} epochs)" if epochs > 0 else large(done))
            if done
            else None,
            ("tokens planned", _planned(planned, there)) if planned else None,
        ),
    )


def _on_disk(corpus: CorpusFacts | None) -> tuple[str, str] | None:
    if corpus is None:
        return None
    sizes = f"{figure(corpus.text_bytes / 1e6)} MB of text, {figure(corpus.disk_bytes / 1e6)} MB on disk"
    return "on disk", f"{corpus.documents:,} documents, {sizes}, {plural(corpus.files, 'shard')}"


def _planned(planned: int, there: float) -> str:
    share = f" ({percent(planned / there)} of what is there)" if there > 0 else ""
    return f"{planned:,}{share}"


def hardware(history: History) -> Section | None:
    """The machine, and how fast the run was on it."""
    about, used = history.circumstances, measures.utilisation(history)
    rate, speed, peak = measures.flops_per_s(history), measures.tokens_per_s(history), measures.peak_memory_gb(history)
    overall = measures.overall_tokens_per_s(history)
    total, wait = measures.number(about, "device_memory_gb"), measures.waiting_share(history)
    share = f", {percent(peak / total, 3)} of {figure(total)} GB" if 0 < peak <= total else ""
    micro = measures.number(about, "device_batch")
    seq_len = history.shape.seq_len if history.shape else 0
    kernels = "compiled" if "compile_from" in about and about["compile_from"] is not None else "eager"
    return section(
        "Hardware and speed",
        facts(
            ("device", _device(about)) if about else None,
            ("devices", f"{measures.ranks(history)}") if measures.ranks(history) > 1 else None,
            ("dtype", str(about["dtype"])) if about.get("dtype") else None,
            ("kernels", kernels) if "compile_from" in about else None,
            ("attention", str(about["attention"])) if about.get("attention") else None,
            ("device batch", _micro(micro, seq_len, about)) if micro > 0 else None,
            ("throughput", f"{overall:,.0f} tokens/s over all") if math.isfinite(overall) else None,
            ("usual step", f"{1000 * measures.step_seconds(history):,.0f} ms, {speed:,.0f} tokens/s (median)")
            if math.isfinite(speed)
            else None,
            ("arithmetic", f"{figure(rate / 1e12)} TFLOP/s") if math.isfinite(rate) else None,
            ("MFU", f"{percent(used.share)} {used.of_what}") if used else None,
            ("peak memory", memory(peak) + share) if math.isfinite(peak) else None,
            ("waiting for data", percent(wait)) if math.isfinite(wait) else None,
            ("training time", duration(measures.trained_s(history))),
            ("beside 8×H100", _beside_the_leader(rate)) if math.isfinite(rate) and rate > 0 else None,
        ),
    )


def _device(about: Mapping[str, Any]) -> str:
    total = measures.number(about, "device_memory_gb")
    room = f", {figure(total, 3)} GB" if math.isfinite(total) else ""
    return f"{about.get('device_name') or about.get('device', words.NOTHING)}{room}"


def _micro(rows: float, seq_len: int, about: Mapping[str, Any]) -> str:
    accumulated = measures.number(about, "grad_accum")
    times = f", {accumulated:,.0f} for each step" if accumulated > 0 else ""
    return f"{rows:,.0f} rows of {seq_len:,} = {rows * seq_len:,.0f} tokens{times}"


def _beside_the_leader(rate: float) -> str:
    return (
        f"the fastest run to GPT-2's capability (1.65 h) computed {figure(LEADER_FLOPS_PER_S / rate, 2)} times as fast"
    )
