"""How a comparison looks on a screen of 100 columns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fathom.report.measured import AXES, ValidationSet
from fathom.report.tables import figure, print_table, span
from fathom.report.words import duration, listed
from fathom.screen import say

COLOURS = {"better": "green", "worse": "red", "not shown": "yellow"}
SAID = {"not shown": "undecided"}
"""A verdict in words for people, where --json has another."""
MOST_DIFFERENCES = 24


def show(found: Mapping[str, Any]) -> None:
    """Print what `compare` returned."""
    groups = found["groups"]
    say(f"bits per byte on {ValidationSet(**found['validation']).words}", style="bold")
    print_table(
        ["", "seeds", "final bpb", f"{100 * found['level']:.0f} % interval", "time", "FLOPs", "tokens", "tokens/s"],
        [
            [
                group["name"],
                str(len(group["runs"])),
                figure(group["final_bpb"]["value"], ".4f"),
                span(group["final_bpb"], ".4f"),
                spent(group["seconds"]),
                figure(group["flops"], ".3g"),
                figure(group["tokens"], ",.0f"),
                figure(group["tokens_per_s"], ",.0f"),
            ]
            for group in groups
        ],
    )
    if found["loss_comparable"]:
        losses = ", ".join(f"{group['name']} {figure(group['train_loss'], '.4f')}" for group in groups)
        say(f"training loss at the end, nats a token: {losses}", style="dim")
    else:
        say(f"training losses are not compared: {'; '.join(found['loss_reasons'])}", style="yellow")
    say(f"\nto reach {found['target_bpb']:.4f} ({found['target_is']})", style="bold")
    print_table(["", *AXES.values()], [[group["name"], *(_reached(group, axis) for axis in AXES)] for group in groups])
    _cores(found)
    _differences(found)
    say("\nverdicts", style="bold")
    for pair in found["pairs"]:
        _verdict(pair)
    for note in found["notes"]:
        say(f"  {note}", style="yellow")
    if found["next"]:
        say("a second seed of each would tell:", style="dim")
        for line in found["next"]:
            say(f"  {line}")


def _cores(found: Mapping[str, Any]) -> None:
    """CORE of each group, where all were measured alike."""
    if not found["core"]:
        return
    limit = found["core"][0]["limit"]
    say(f"\nCORE at the end{f', at most {limit:,} items a task' if limit else ''}", style="bold")
    rows = [[one["name"], figure(one["value"], "+.4f"), figure(one["standard_error"], ".4f")] for one in found["core"]]
    print_table(["", "CORE", "±"], rows)


def _reached(group: Mapping[str, Any], axis: str) -> str:
    shown = {"steps": lambda v: f"{v:,.0f}", "flops": lambda v: f"{v:.3g}", "seconds": spent}[axis]
    cost = group["to_target"][axis]
    if cost["value"] is None:
        return f"never ({cost['never']} of {len(group['runs'])})" if not math.isnan(group[axis]) else "unknown"
    if cost["low"] is None:
        return shown(cost["value"])
    return f"{shown(cost['value'])} ({shown(cost['low'])} to {shown(cost['high'])})"


def _differences(found: Mapping[str, Any]) -> None:
    differing = list(found["differences"].items())
    for names in found["identical"]:
        say(f"\n{listed(names)} ended with the same weights, bit for bit: they are one run", style="bold")
    if not differing:
        if not found["identical"]:
            say("\nnothing in their settings differs: they differ in code, machine or seed", style="bold")
        return
    say("\nwhat differs", style="bold")
    names = [group["name"] for group in found["groups"]]
    print_table(
        ["", *names],
        [[key.replace("_", " "), *(_setting(by[name]) for name in names)] for key, by in differing[:MOST_DIFFERENCES]],
    )
    if len(differing) > MOST_DIFFERENCES:
        say(f"  and {len(differing) - MOST_DIFFERENCES} more, with --json", style="dim")


def _verdict(pair: Mapping[str, Any]) -> None:
    """`b against a: better` and the four intervals under it."""
    why = f" ({_said(pair['reason'])})" if pair["reason"] else ""
    say(f"  {pair['run']} against {pair['against']}: {_said(pair['verdict'])}{why}", style=COLOURS[pair["verdict"]])
    bpb = _difference(pair["final_bpb"], lambda v: f"{v:+.4f}")
    rows = [["final bpb (lower is better)", bpb, _word(pair["final_bpb"], pair)]]
    for axis, name in AXES.items():
        shown = _difference(pair[axis], lambda v: f"{100 * v:+.1f} %")
        rows.append([f"{name} to target", shown, _word(pair[axis], pair)])
    if core := pair["core"]:
        rows.append(["CORE at the end", _difference(core, lambda v: f"{v:+.4f}"), _word(core, pair)])
    print_table(["", "", ""], [["   ", *row] for row in rows], header=False)


def _difference(verdict: Mapping[str, Any], shown: Any) -> str:
    interval = verdict["interval"]
    if interval is None:
        middle = verdict["difference"]
        return f"{shown(middle)} (no interval)" if math.isfinite(middle) else "none"
    return f"{shown(interval['mid'])} ({shown(interval['low'])} to {shown(interval['high'])})"


def _word(verdict: Mapping[str, Any], pair: Mapping[str, Any]) -> str:
    """The verdict of one axis, with its reason where that is not the pair's own, which stands above."""
    is_said = verdict["reason"] in ("", pair["reason"])
    word = _said(verdict["verdict"])
    return word if is_said else f"{word}: {verdict['reason']}"


def _said(words: str) -> str:
    for meant, said in SAID.items():
        words = words.replace(meant, said)
    return words


def spent(seconds: float) -> str:
    """ "2 h 41 min"."""
    return duration(seconds) if math.isfinite(seconds) else "unknown"


def _setting(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "–" if value is None else str(value)[:12]
