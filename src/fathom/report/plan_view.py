"""How a plan looks in a terminal: first every number with its rule, last what it comes to and what to type."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

from fathom.data.corpus.aside import gigabytes
from fathom.estimate import device_memory_gb
from fathom.expectation import HARDLY_TRAINED
from fathom.report.plan_machine import Machine
from fathom.report.plan_outlook import MOST_BY_HEART, MOST_EPOCHS
from fathom.report.words import count, duration
from fathom.screen import console, plural
from fathom.train.settings import Settings

LABEL = 9
WIDEST = 100


def show(settings: Settings, machine: Machine, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for kind, n in settings.shape.parameters.items():
        table.add_row("parameters" if kind == "total" else kind.replace("_", " "), f"{n:,}")
    table.add_row()
    for row in [*_rows(settings, result), *_memory_rows(result)]:
        table.add_row(*row)
    console().print(table)
    console().print()
    for label, words, style in _outlook(machine, result):
        for line in _wrapped(label, words):
            console().print(line, style=style, markup=False, emoji=False)
    better = result["instead"]
    if better:
        console().print()
        one_of = " one of" if better["commands"][1:] else ""
        for line in _wrapped("Better", f"{better['why']}. Instead, type{one_of}"):
            console().print(line, style="yellow", markup=False, emoji=False)
        _show_commands(better["commands"])
    if result["commands"]:
        heading = _heading(machine, result)
        console().print(f"\n{'Or, as planned,' if better else 'Next,'} {heading}", markup=False, emoji=False)
        _show_commands(result["commands"])


def _show_commands(commands: list[str]) -> None:
    for command in commands:
        console().print(f"  {command}", style="cyan", markup=False, emoji=False, soft_wrap=True)


def _heading(machine: Machine, result: dict[str, Any]) -> str:
    """What stands above the commands."""
    if result["hours"] is None and result["depth_that_fits"] is not None:
        return "for the largest even depth that fits, type"
    what = "with text enough, type" if _has_too_little_text(result) else "type"
    several = "s" if machine.ranks > 1 else ""
    where = "" if machine.is_here else f"on the machine with the {machine.label}{several}, "
    if any("--nnodes" in command for command in result["commands"]):
        where = "the last on each machine as docs/multi-gpu.md says, "
    return f"{where}{what}"


def _has_too_little_text(result: dict[str, Any]) -> bool:
    return any(" data get " in command for command in result["commands"]) and result["data"]["corpus"] is not None


def _rows(settings: Settings, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, how much, and where it comes from."""
    shape, origin = settings.shape, settings.origin
    ranks = f" on each of {result['ranks']:,}" if result["ranks"] > 1 else ""
    return [
        ("layers", f"{shape.n_layer:,}", origin["depth"]),
        ("width", f"{shape.d_model:,}", f"{plural(shape.n_head, 'head')} of {shape.head_dim}"),
        ("context", f"{shape.seq_len:,}", f"windows: {_windows(shape.windows)}"),
        ("FLOPs a token", f"{shape.flops_per_token:,}", "forward and backward"),
        ("batch", f"{result['batch_tokens']:,}", f"tokens a step; {origin['batch_tokens']}"),
        (
            "micro-batch",
            f"{result['device_batch']} × {shape.seq_len:,}",
            f"{result['grad_accum']:,} for each step{ranks}",
        ),
        ("steps", f"{result['steps']:,}", origin.get("steps") or origin["flops"]),
        ("tokens", f"{result['tokens']:,}", f"{result['ratio']:.3g} for each parameter in blocks and head"),
        ("FLOPs in all", f"{result['tokens'] * shape.flops_per_token:.3g}", ""),
        ("rates", f"× {result['lr_scale']:.4g}", origin["lr_scale"]),
        ("weight decay", f"{result['weight_decay']:.4g}", origin["weight_decay"]),
        ("packing", settings.packing, origin["packing"]),
    ]


def _memory_rows(result: dict[str, Any]) -> list[tuple[str, str, str]]:
    parts = [(name.removesuffix("_gb"), value) for name, value in result["memory"].items()]
    rows = []
    for label, some in (("memory kept", parts[:3]), ("and at work", parts[3:])):
        words = ", ".join(f"{name} {value:,.2f}" for name, value in some)
        rows.append((label, f"{sum(value for _, value in some):,.2f} GB", words))
    return rows


def _windows(windows: tuple[int, ...]) -> str:
    """How many layers see how far: (512, 512, 512, 2048) is 3 × 512, 1 × 2,048."""
    return ", ".join(f"{count} × {window:,}" for window, count in sorted(Counter(windows).items()))


def _outlook(machine: Machine, result: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    where = f"{machine.ranks} × {machine.label}" if machine.ranks > 1 else machine.label
    numbers = f"{result['dtype']}, linear layers in fp8" if result["fp8"] else result["dtype"]
    lines: list[tuple[str, str, str | None]] = [("Fits", *_fits(machine, result))]
    if result["fits"] is False and result["device_batch_that_fits"] is None:
        return [("On", f"{where}, {numbers}", "bold"), *lines]
    lines.append(("Takes", _takes(result), None))
    lines += [*_worth(result), ("Data", *_data_and_more(result)), ("Disk", _disk(result), None)]
    return [("On", f"{where}, {numbers}", "bold"), *lines]


def _fits(machine: Machine, result: dict[str, Any]) -> tuple[str, str | None]:
    has, needs = result["device_memory_gb"], f"{result['memory_gb']:,.1f} GB"
    sold = "" if machine.gpu is None or machine.is_here else f" (sold as {machine.gpu.memory:g} GB, counted in GiB)"
    if has is None:
        return f"needs {needs}; how much this GPU has is not known", None
    free = device_memory_gb(has, machine.device)
    if result["fits"]:
        return f"yes: {needs} of {has:.1f} GB{sold}", "green"
    if result["device_batch_that_fits"] is None:
        largest = result["depth_that_fits"]
        advice = "" if largest is None else f"; depth {largest} does"
        if machine.ranks > 1:
            advice += "; `pretrain --shard-model` splits the weights between the GPUs, which no plan reckons with"
        return f"no, not even one row: {needs} where {free:.1f} of {has:.1f} GB can be had{sold}{advice}", "red"
    rows = result["device_batch_that_fits"]
    return (
        f"not with {result['device_batch']} rows at once ({needs} of {has:.1f} GB{sold}); --device-batch {rows} does",
        "yellow",
    )


def _takes(result: dict[str, Any]) -> str:
    if result["hours"] is None:
        return f"unknown: speed {result['speed_from']}"
    spread = f"{duration(3600 * result['hours_low'])} to {duration(3600 * result['hours_high'])}"
    rate = result["tokens_per_s"]
    figure = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
    words = f"{duration(3600 * result['hours'])} ({spread}) of training at {figure} tokens/s"
    if result["kwh"] is not None:
        words += f", {result['kwh']:.3g} kWh"
    if result["cost"] is not None:
        words += f", ${result['cost']:,.2f} at ${result['price_per_gpu_h']:g} a GPU-hour"
    return f"{words}. Speed: {result['speed_from']}."


def _worth(result: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    is_hardly = result["ratio"] < HARDLY_TRAINED
    lines: list[tuple[str, str, str | None]] = [("Worth", result["capability"], "yellow" if is_hardly else None)]
    for label, key in (("bpb", "expected_bpb"), ("CORE", "expected_core")):
        found = result[key]
        if found["expected"] is None:
            lines.append((label, f"{found['from']}.", None))
        else:
            figures = f"{found['expected']:.3f}, nine times in ten {found['low']:.3f} to {found['high']:.3f}"
            lines.append((label, f"{figures}; from {found['from']}.", None))
    return lines


def _data_and_more(result: dict[str, Any]) -> tuple[str, str | None]:
    words, style = _data(result)
    fetched = f"; enough of it is {gigabytes(result['fetch_gb'] * 1e9)} to fetch" if result["fetch_gb"] else ""
    return words + fetched, style


def _data(result: dict[str, Any]) -> tuple[str, str | None]:
    data = result["data"]
    needs = f"needs {count(data['tokens_needed'])} tokens, about {gigabytes(data['bytes_needed'])} of text"
    if data["corpus"] is None:
        return f"{needs}; there is no corpus here yet", "yellow"
    has = f"{data['corpus']} has {count(data['tokens_present'])} ({gigabytes(data['bytes_present'])})"
    epochs = data["epochs"]
    if epochs is None:
        return f"{needs}; {has}: next to nothing", "yellow"
    if epochs <= 1:
        return f"{needs}; {has}: enough", None
    if epochs <= MOST_EPOCHS:
        return f"{needs}; {has}: gone through {epochs:.1f} times, which still teaches", None
    if epochs <= MOST_BY_HEART:
        return f"{needs}; {has}: gone through {epochs:.2g} times; after {MOST_EPOCHS} it teaches little", "yellow"
    return f"{needs}; {has}: gone through {epochs:,.0f} times, far too often to learn by", "yellow"


def _disk(result: dict[str, Any]) -> str:
    one, everything = gigabytes(result["checkpoint_gb"] * 1e9), gigabytes(result["disk_gb"] * 1e9)
    return f"{one} a checkpoint; {everything} with all that are kept and the text as tokens"


def _wrapped(label: str, words: str) -> list[str]:
    width = min(console().width, WIDEST)
    return textwrap.wrap(words, width, initial_indent=f"{label:<{LABEL}}", subsequent_indent=" " * LABEL) or [""]
