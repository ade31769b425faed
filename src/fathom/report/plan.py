"""`fathom plan`: what a run will be, before it starts. Needs no torch, no corpus and no tokenizer."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from fathom import hardware
from fathom.screen import console
from fathom.train.settings import Settings, device_rows, read_recipe, resolve


@dataclass(frozen=True)
class Plan:
    """Say what a run will be: parameters, FLOPs, tokens, batch, steps and rates, each with its rule."""

    depth: int | None = None
    """Layers; sets everything that is not given."""
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
    """Rows of a micro-batch. Default by the machine."""
    json: bool = False
    """Print one JSON object on standard output."""

    def run(self) -> dict[str, Any]:
        settings = resolve(asdict(self), read_recipe(self.recipe), self.vocab)
        shape = settings.shape
        rows = device_rows(self.device_batch, settings.rows_per_step, shape.seq_len, hardware.likely_device())
        result = {
            "parameters": shape.parameters,
            "windows": list(shape.windows),
            "flops_per_token": shape.flops_per_token,
            "tokens": settings.steps * settings.batch_tokens,
            "batch_tokens": settings.batch_tokens,
            "steps": settings.steps,
            "lr_scale": settings.lr_scale,
            "weight_decay": settings.weight_decay,
            "device_batch": rows,
            "grad_accum": settings.rows_per_step // rows,
            "packing": settings.packing,
            "rules": settings.rules,
        }
        if not self.json:
            _print(settings, result)
        return result


def _print(settings: Settings, result: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    for kind, count in settings.shape.parameters.items():
        table.add_row("parameters" if kind == "total" else kind.replace("_", " "), f"{count:,}")
    table.add_row()
    for row in _rows(settings, result):
        table.add_row(*row)
    console().print(table)


def _rows(settings: Settings, result: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What, how much, and where it comes from."""
    shape, origin = settings.shape, settings.origin
    ratio = result["tokens"] / shape.scaling_parameters
    return [
        ("layers", f"{shape.n_layer:,}", origin["depth"]),
        ("width", f"{shape.d_model:,}", f"{shape.n_head} heads of {shape.head_dim}"),
        ("context", f"{shape.seq_len:,}", f"windows: {_windows(shape.windows)}"),
        ("FLOPs a token", f"{shape.flops_per_token:,}", "forward and backward"),
        ("batch", f"{result['batch_tokens']:,}", f"tokens a step; {origin['batch_tokens']}"),
        ("micro-batch", f"{result['device_batch']} × {shape.seq_len:,}", f"{result['grad_accum']:,} for each step"),
        ("steps", f"{result['steps']:,}", origin.get("steps") or origin["flops"]),
        ("tokens", f"{result['tokens']:,}", f"{ratio:.3g} for each parameter in blocks and head"),
        ("FLOPs in all", f"{result['tokens'] * shape.flops_per_token:.3g}", ""),
        ("rates", f"× {result['lr_scale']:.4g}", origin["lr_scale"]),
        ("weight decay", f"{result['weight_decay']:.4g}", origin["weight_decay"]),
        ("packing", settings.packing, origin["packing"]),
    ]


def _windows(windows: tuple[int, ...]) -> str:
    """How many layers see how far: (512, 512, 512, 2048) is 3 × 512, 1 × 2,048."""
    return ", ".join(f"{count} × {window:,}" for window, count in sorted(Counter(windows).items()))
