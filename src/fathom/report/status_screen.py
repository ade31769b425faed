"""How a run's standing looks on a terminal: one screen for one run, one line each for several."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from fathom.report.outlook import Trend
from fathom.report.standing import Standing
from fathom.report.words import count, duration, gb, lately, percent, rate
from fathom.report.worries import Worry
from fathom.screen import plural, typed

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

BARS = "▁▂▃▄▅▆▇█"
IN_A_WORD = {"report": "see its report"}
"""Of worries, what a list of runs calls them where their rule's name says too little."""
STATE_STYLE = {"running": "green", "finished": "cyan", "stopped": "yellow", "broken off": "red"}
ACTIVITY = {
    "starting": "starting, no step yet",
    "compiling": "compiling its kernels",
    "measuring": "saving or measuring",
    "evaluating": "trained to its end; being evaluated",
}
SAMPLES = 3
LABEL = 12
"""Columns of the labels at the left."""
LOW = 32
"""Lines of a window in which not everything has room."""
UNTOLD = 0.05


def screen(
    run: Standing,
    found: Sequence[Worry],
    now: float,
    newest: bool = False,
    others: Sequence[str] = (),
    height: int | None = None,
    with_next: bool = True,
) -> RenderableType:
    """Everything about one run. `newest` says how it was chosen, `others` what else is being trained; in a window of a
    `height` that is LOW samples and what did not happen are left out, so that worries can be seen. Without `next_lines`
    where those are printed after it.
    """
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    facts = _facts(run, now, is_low=height is not None and height < LOW)
    parts: list[RenderableType] = [_head(run, now, newest, others), _bar(run), Padding(facts, (1, 0))]
    parts.append(_worried(run, found))
    if with_next:
        parts.append(Text("\n".join(typed(line) for line in next_lines(run))))
    return Group(*parts)


def next_lines(run: Standing) -> list[str]:
    """What a person may do after looking, labelled."""
    return [f"{'' if place else 'next':<{LABEL}}{advice}" for place, advice in enumerate(next_steps(run))]


def lines(rows: Sequence[tuple[Standing, Sequence[Worry]]], broken: Sequence[tuple[str, str]], now: float) -> Table:
    """One line a run; `broken` are names of folders that cannot be read, and why."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("run", "stage", "state", "steps", "bpb", "last sign", "worries"):
        table.add_column(name, justify="right" if name in ("steps", "bpb") else "left", overflow="fold")
    for run, found in rows:
        table.add_row(
            Text(run.run, style="bold"),
            Text(run.stage),
            Text(run.state, style=STATE_STYLE.get(run.state, "")),
            f"{run.steps_done:,}" + (f"/{run.steps_planned:,}" if run.steps_planned else ""),
            f"{run.bpb[-1][1]:.4f}" if run.bpb else "–",
            _last_sign(run, now),
            Text(
                ", ".join(IN_A_WORD.get(worry.rule, worry.rule) for worry in found) or "none",
                style="yellow" if found else "dim",
            ),
        )
    for name, why in broken:
        table.add_row(Text(name, style="bold"), "", Text("unreadable", style="red"), "", "", "", Text(why, "yellow"))
    return table


def _last_sign(run: Standing, now: float) -> str:
    if run.state == "running" and run.ends_at is not None:
        return f"ends {lately(run.ends_at, now)}"
    return "–" if run.last_sign is None else f"{lately(run.last_sign, now)}"


def _head(run: Standing, now: float, newest: bool, others: Sequence[str]) -> Text:
    from rich.text import Text

    text = Text(run.run, style="bold")
    text.append(f"  {run.stage}" + (f" · {run.size}" if run.size else ""), style="not bold dim")
    text.append(f"\n{_state(run, now)}", style=f"not bold {STATE_STYLE.get(run.state, '')}")
    if newest:
        text.append("  (the run that did something last; --all shows every one)", style="not bold dim")
    if others:
        text.append(f"\nalso running: {', '.join(others)}", style="not bold dim")
    return text


def _state(run: Standing, now: float) -> str:
    ago = "" if run.silence_s is None else f", {duration(run.silence_s)} ago"
    at = "" if run.last_sign is None else f" {lately(run.last_sign, now)}"
    if run.state == "running":
        since = run.phase_began
        begun = "" if since is None else f" since {lately(since, now)} ({duration(max(0.0, now - since))})"
        return f"running{begun}" + (f": {ACTIVITY[run.activity]}" if run.activity in ACTIVITY else "")
    if run.state == "stopped":
        return f"stopped by {run.stopped_by}{at}{ago}"
    return f"{run.state}{at}{ago}"


def _bar(run: Standing) -> RenderableType:
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    if not run.steps_planned:
        return f"step {run.steps_done:,}; how many are planned is not known"
    share = min(1.0, run.steps_done / run.steps_planned)
    grid = Table.grid(padding=(0, 2))
    shown = f"step {run.steps_done:,} of {run.steps_planned:,} ({math.floor(1000 * share) / 10:g} %)"
    grid.add_row(ProgressBar(run.steps_planned, min(run.steps_done, run.steps_planned), width=40), shown)
    return grid


def _facts(run: Standing, now: float, is_low: bool) -> RenderableType:
    rows = [*_progress(run, now), *_machine(run), *_quality(run), *_safety(run, is_low)]
    rows += [] if is_low else _samples(run)
    rows += [("record" if i == 0 else "", trouble, "") for i, trouble in enumerate(run.troubles)]
    return _labelled(rows)


def _labelled(rows: Sequence[tuple[str, str, str]]) -> Table:
    """Label, fact, and what is said beside it."""
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True, min_width=LABEL - 2)
    grid.add_column(overflow="fold")
    for label, fact, note in rows:
        text = Text(typed(fact))
        if note:
            text.append(("  " if fact else "") + note, style="dim")
        grid.add_row(label, text)
    return grid


def _progress(run: Standing, now: float) -> Iterator[tuple[str, str, str]]:
    if run.came_from:
        yield "came from", run.came_from, ""
    if run.goes_on_in:
        yield "goes on in", ", ".join(run.goes_on_in), ""
    if run.tokens_done is not None:
        planned = f" of {count(run.tokens_planned)}" if run.tokens_planned else ""
        yield "tokens", f"{count(run.tokens_done)}{planned}", ""
    if run.train_s is not None:
        end = ""
        if run.ends_at is not None and run.remaining_s is not None:
            end = f", about {duration(run.remaining_s)} to go: ends {lately(run.ends_at, now)}"
        elif run.remaining_s is not None:
            end = f", about {duration(run.remaining_s)} were to come"
        yield "time", f"{duration(run.train_s)} of training{end}", ""
    if run.tokens_per_s is not None or run.tokens_per_s_now is not None:
        late = f"{run.tokens_per_s_now:,.0f} tokens/s of late" if run.tokens_per_s_now else ""
        over_all = f"{run.tokens_per_s:,.0f} over all" if run.tokens_per_s else ""
        if not late or (run.state != "running" and over_all):
            late, over_all = "", f"{run.tokens_per_s or 0:,.0f} tokens/s over all"
        shown = ", ".join(filter(None, [late, over_all]))
        yield "speed", shown, _step_words(run)
    elif run.step_s_now:
        yield "speed", _step_words(run), ""


def _step_words(run: Standing) -> str:
    step_s, when = (run.step_s_now, "") if run.state == "running" else (run.step_s_usual, "usual ")
    return f"{step_s:.3g} s a {when}step" if step_s else ""


def _machine(run: Standing) -> Iterator[tuple[str, str, str]]:
    on = " on ".join(filter(None, [run.dtype, run.device])) + (f", {run.device_name}" if run.device_name else "")
    if run.mfu is not None:
        of = f" of {rate(run.peak_flops)} ({run.peak_source or 'source unknown'})" if run.peak_flops else ""
        too_low = "; the rate was measured too low" if run.mfu > 1 else ""
        yield "MFU", f"{percent(run.mfu)}{of}{too_low}", on
    elif on:
        yield "machine", on, ""
    if run.memory_gb is not None:
        most = "at most so far" if run.state == "running" else "at most"
        if run.device_memory_gb:
            share = percent(run.memory_gb / run.device_memory_gb)
            yield "memory", f"{gb(run.memory_gb)} of {gb(run.device_memory_gb)} {most} ({share})", ""
        else:
            yield "memory", f"{gb(run.memory_gb)} {most}", ""


def _quality(run: Standing) -> Iterator[tuple[str, str, str]]:
    if run.loss is not None:
        yield "loss", f"{run.loss:.4f} nats a token, smoothed", trend_words(run.loss_trend, run.loss)
        if len(run.losses) > 8:
            yield "", curve(run.losses), f"from {run.losses[0]:.3g}"
    if run.bpb:
        step, last = run.bpb[-1]
        yield "bpb", f"{last:.4f} bits per byte at step {step:,}", _bpb_note(run)
        if len(run.bpb) > 1:
            earlier = "  ".join(f"{at:,}: {bpb:.4f}" for at, bpb in run.bpb[-5:-1])
            yield "", "", f"before, by step   {earlier}"


def _bpb_note(run: Standing) -> str:
    if run.bpb_trend is not None:
        return trend_words(run.bpb_trend, run.bpb[-1][1])
    if len(run.bpb) < 2:
        return ""
    (before, was), (_, last) = run.bpb[-2:]
    return f"{last - was:+.4f} since step {before:,}".replace("-", "−")


def trend_words(line: Trend | None, level: float | None = None) -> str:
    """ "falls by 0.21 ± 0.05 per 1,000 steps (since step 250)"; where chance explains the slope, that.

    Where chance could hide a change by more than UNTOLD of the `level` that the curve is at, nothing is told.
    """
    if line is None:
        return ""
    window = line.last_step - line.first_step
    untold = line.direction == "level" and level and (line.high - line.low) / 2 * window > UNTOLD * abs(level)
    if not math.isfinite(line.high) or untold:
        return f"too few points, or too noisy, to tell a trend (since step {line.first_step:,})"
    per = 1000 if window >= 500 else 100 if window >= 100 else window
    width = per * (line.high - line.low) / 2
    slope, since = per * line.slope, f"per {per:,} steps (since step {line.first_step:,})"
    if per == window:
        since = f"since step {line.first_step:,}"
    digits = min(6, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 4
    if line.direction == "level":
        return f"level within chance: {slope:+.{digits}f} ± {width:.{digits}f} {since}".replace("-", "−")
    return f"{'falls' if slope < 0 else 'rises'} by {abs(slope):.{digits}f} ± {width:.{digits}f} {since}"


def curve(values: Sequence[float]) -> str:
    """A line of blocks, each as high as its value among the others."""
    low, high = min(values), max(values)
    if not 0 < high - low < math.inf:
        return BARS[0] * len(values)
    return "".join(BARS[round((value - low) / (high - low) * (len(BARS) - 1))] for value in values)


def _safety(run: Standing, is_low: bool) -> Iterator[tuple[str, str, str]]:
    lost = ""
    if run.unsaved_steps:
        of = f" ({duration(run.unsaved_s)} of training)" if run.unsaved_s is not None else ""
        verb = "would be lost now" if run.state == "running" else "are lost"
        lost = f"{plural(run.unsaved_steps, 'step')}{of} {verb}"
    free = "" if run.disk_free_gb is None else f", {gb(run.disk_free_gb)} left on the disk"
    if run.checkpoint is not None:
        fact = f"step {run.checkpoint.step:,}, {duration(run.checkpoint.age_s)} ago"
        whole = f"damaged: {run.checkpoint.trouble}" if run.checkpoint.trouble else ""
        yield "checkpoint", f"{fact}; {whole or lost or 'nothing is unsaved'}", f"{gb(run.checkpoint.gb)}{free}"
    else:
        none = "none yet" if run.state == "running" else "none"
        yield "checkpoint", f"{none}; {lost}" if lost and run.state != "finished" else none, ""
    words = {
        "skipped": "step left out",
        "rolled_back": "return to a checkpoint",
        "out_of_memory": "step that did not fit into memory",
        "save_failed": "failed save",
        "evaluation_failed": "failed evaluation",
    }
    many = {
        "skipped": "steps left out",
        "rolled_back": "returns to a checkpoint",
        "out_of_memory": "steps that did not fit into memory",
    }
    mishaps = [
        plural(run.counts[kind], word, many.get(kind, "")) for kind, word in words.items() if run.counts.get(kind)
    ]
    if mishaps or not is_low:
        yield "mishaps", ", ".join(mishaps) or "none: no step left out, no return to a checkpoint, nothing failed", ""


def _samples(run: Standing) -> Iterator[tuple[str, str, str]]:
    for place, (prompt, text) in enumerate(run.samples[:SAMPLES]):
        cut = text if len(text) <= 60 else text[:59] + "…"
        yield ("samples" if place == 0 else ""), f"{prompt} … {cut}", ""


def _worried(run: Standing, found: Sequence[Worry]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    if not found:
        return Text("Nothing to worry about.", style="green" if run.state != "stopped" else "")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for worry in found:
        style = "bold red" if worry.grade == "act" else "yellow"
        grid.add_row(Text("!", style=style), Text(worry.found, style=style))
        grid.add_row("", Text(f"→ {typed(worry.do)}"))
    return grid


def next_steps(run: Standing) -> list[str]:
    """What a person may do after looking; nothing where a worry says it."""
    can_talk = run.is_described and run.checkpoint is not None and not run.checkpoint.trouble
    if run.state == "finished" and not can_talk:
        return [f"`fathom report {run.run}` says what its record tells"]
    if run.state == "finished":
        tuned = f"{run.run}-sft" if f"{run.run}-sft" in run.goes_on_in else ""
        talk = f"`fathom chat {tuned or run.run}` talks to {'what was fine-tuned from it' if tuned else 'it'}"
        found = [f"`fathom report {run.run}` tells the whole story", talk]
        if run.resume:
            return [f"{run.resume} goes on with the next stage", *found]
        found += [f"{run.longer} trains it for longer: it was short"] if run.longer else []
        teach = [f"`fathom sft {run.run} --data FILE` teaches it to answer"]
        return found + teach if run.stage == "pretrain" and not tuned else found
    if run.state == "stopped":
        at = run.checkpoint.step if run.checkpoint else 0
        return [f"{run.resume or 'the command that began it, with --resume,'} goes on from step {at:,}"]
    return []
