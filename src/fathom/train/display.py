"""How training looks: one live block on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from fathom import hardware
from fathom.home import run_dir
from fathom.screen import console, plural, say

PLAIN_EVERY_S = 5.0


class Display:
    """Shows step, loss, bpb, tokens/s, MFU, memory and time left."""

    def __init__(
        self, label: str, steps: int, step_tokens: int, flops_per_token: int, peak_flops: float, device: str
    ) -> None:
        self._label, self._steps, self._step_tokens = label, steps, step_tokens
        self._flops_per_token, self._peak, self._device = flops_per_token, peak_flops, device
        self._pace = 0.0
        self._said = 0.0
        self._bpb: float | None = None
        self._live: Any = None
        self.mfu = 0.0

    def __enter__(self) -> Display:
        if console().is_terminal:
            from rich.live import Live

            self._live = Live(console=console(), transient=True, refresh_per_second=4)
            self._live.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def note(self, measured: Mapping[str, Any]) -> None:
        """What an evaluation found."""
        if "val_bpb" in measured:
            self._bpb = measured["val_bpb"]
            say(f"  validation {self._bpb:.4f} bits per byte after {plural(measured['step'], 'step')}")
        if "core" in measured:
            say(
                f"  CORE {measured['core']:.4f} ± {measured['core_error']:.4f} after {plural(measured['step'], 'step')}"
            )
        for line in measured.get("lines", ()):
            say(f"    {line}", style="dim")

    def step(self, step: int, loss: float, lr: float, seconds: float) -> None:
        self._pace = seconds if not self._pace else 0.9 * self._pace + 0.1 * seconds
        speed = self._step_tokens / self._pace
        self.mfu = speed * self._flops_per_token / self._peak
        left = (self._steps - step - 1) * self._pace
        facts = {
            "step": f"{step + 1:,}/{self._steps:,}",
            "loss": f"{loss:.3f}",
            "bpb": "–" if self._bpb is None else f"{self._bpb:.3f}",
            "tokens/s": f"{speed:,.0f}",
            "MFU": f"{100 * self.mfu:.0f} %",
            "memory": f"{hardware.peak_memory_gb(self._device):.1f} GB",
            "left": clock(left),
        }
        if self._live is not None:
            self._live.update(self._block(step + 1, facts))
        elif time.monotonic() - self._said >= PLAIN_EVERY_S or step + 1 == self._steps:
            self._said = time.monotonic()
            say(f"  {self._label} " + "  ".join(f"{name} {value}" for name, value in facts.items()))

    def _block(self, done: int, facts: Mapping[str, str]) -> Any:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_row("", *(Text(name, style="dim") for name in facts))
        table.add_row("", *(Text(value, style="bold") for value in facts.values()))
        bar = Table.grid(padding=(0, 2))
        bar.add_row(Text(f"  {self._label}", style="cyan"), ProgressBar(self._steps, done, width=40))
        return Group(bar, table)


def say_finished(result: Mapping[str, Any], *advice: str) -> None:
    """The last lines of a training: what it took, what came of it, where it is, and what to do next."""
    bpb = "" if result.get("val_bpb") is None else f", {result['val_bpb']:.4f} bits per byte"
    say(f"\n{result['run']}: {plural(result['steps'], 'step')} in {clock(result['seconds'])}{bpb}", style="bold green")
    say(f"  kept in {run_dir(result['run'])}", style="dim")
    for line in advice:
        say(f"  {line}")


def clock(seconds: float) -> str:
    """4 s, 2:05 or 1:02:03."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
