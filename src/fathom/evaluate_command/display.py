"""How `fathom eval` shows what came out: a table for each kind of task, at most 100 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import Any

from fathom.report.tables import figure, print_table
from fathom.report.words import percent
from fathom.screen import console, say

KINDS = {"lossless": "whole documents", "best-fit": "best-fit rows"}
ABOUT_HARNESS = ("n", "n_shot", "version", "sample_len")
GPT2_CORE = 0.256525  # REFERENCE 6.1


def show_bpb(result: Mapping[str, Any]) -> None:
    rows = [
        (
            one["split"],
            KINDS[one["rows_of"]],
            f"{one['tokens']:,}",
            f"{one['bytes']:,}",
            percent(one["share"]) if "share" in one else "",
            figure(one["bpb"], ".4f"),
            _error(one["standard_error"], 1, 4),
        )
        for one in result["sets"]
    ]
    say(f"\nbits per byte on {result['data']['corpus']}", style="bold cyan")
    print_table(("", "rows of", "tokens", "bytes", "of all", "bpb", "±"), rows, left=(0, 1))


def show_core(result: Mapping[str, Any], crops: bool) -> None:
    """`crops` says what became of prompts beyond the context: cropped to their last tokens, or scored whole."""
    tasks = result["tasks"]
    rows = [
        (
            label,
            f"{one['n']:,}",
            figure(100 * one["accuracy"], ".1f"),
            _error(one["standard_error"], 100, 1),
            figure(one["centered"], "+.4f"),
        )
        for label, one in tasks.items()
    ]
    rows.append(("CORE", "", "", _error(result["standard_error"], 1, 4), figure(result["value"], "+.4f")))
    say("\nCORE", style="bold cyan")
    print_table(("task", "items", "% right", "±", "centred"), rows)
    say(f"centred: 0 is guessing, 1 all right; CORE is their mean. GPT-2 (1.5 billion parameters) has {GPT2_CORE}.")
    if result["settings"]["limit"] is not None:
        say("With --limit the shots come from fewer items, so this is not the full CORE.", style="yellow")
    longer = sum(one["n_long"] for one in tasks.values())
    if longer:
        how = "of which the last tokens were scored" if crops else "scored whole all the same"
        say(f"{_counted(longer, 'item')} with a prompt longer than the model's context, {how}.")
    short = sum(one["pool_short"] > 0 for one in tasks.values())
    if short:
        say(f"{_counted(short, 'task')} with too few items for all shots: those that there are were shown.")


def show_chat(results: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, tuple[float, float]]) -> None:
    rows = [
        (
            name,
            f"{one['n']:,}",
            figure(100 * one["accuracy"], ".1f"),
            _error(one["standard_error"], 100, 1),
            f"{100 * one['chance']:.0f}",
            figure(one["centered"], "+.4f"),
        )
        for name, one in results.items()
    ]
    for metric, label in (("chatcore", "ChatCORE"), ("chatcore_cat", "ChatCORE_cat")):
        if metric in metrics:
            value, error = metrics[metric]
            rows.append((label, "", "", _error(error, 1, 4), "", f"{value:+.4f}"))
    say("\nchat tasks", style="bold cyan")
    print_table(("task", "items", "% right", "±", "guessing", "centred"), rows)
    for name, one in results.items():
        if one["n_long"] or one["n_cut"]:
            what = [f"{_counted(one['n_long'], 'prompt')} longer than the context"] if one["n_long"] else []
            what += [f"{_counted(one['n_cut'], 'answer')} cut off at its end"] if one["n_cut"] else []
            say(f"{name}: {', '.join(what)}.")


def show_harness(results: Mapping[str, Mapping[str, Any]]) -> None:
    rows = []
    for result in results.values():
        for task, values in result["tasks"].items():
            metrics = [key for key in values if key not in ABOUT_HARNESS and not key.endswith("_stderr")]
            for place, metric in enumerate(metrics):
                counts = [str(values.get(key, "")) for key in ("n_shot", "n")]
                error = values.get(f"{metric}_stderr")
                lead = [task, *counts] if place == 0 else ["", "", ""]
                rows.append((*lead, metric, figure(values[metric], ".4f"), _error(error, 1, 4)))
    say("\nlm-eval", style="bold cyan")
    print_table(("task", "shots", "items", "metric", "value", "±"), rows, left=(0, 3))


def show_samples(result: Mapping[str, Any]) -> None:
    say("\nsamples", style="bold cyan")
    for sample in result["samples"]:
        line = f"{sample['prompt']} … {' '.join(sample['text'].split())}"
        say(textwrap.fill(line, console().width, initial_indent="  ", subsequent_indent="      "))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _error(value: float | None, scale: float, digits: int) -> str:
    return "" if value is None or not math.isfinite(value) else f"{scale * value:.{digits}f}"
