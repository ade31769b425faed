"""What a person types next, rebuilt from a run's record: how to go on with it, how to train it for longer (pure)."""

from __future__ import annotations

import math
from itertools import chain, count
from typing import Any

from fathom.report import measures
from fathom.report.history import History
from fathom.report.reproduce import given_settings, recorded, was_extended, ways
from fathom.train.resuming import line, pipeline, resume_line
from fathom.train.settings import KNOBS

LENGTHS = {"steps", "ratio", "flops"}


def resume(history: History) -> str:
    """The line that goes on with a run that was stopped or broke off; "" where its record does not say what it is."""
    return resume_line(history.name, history.config, measures.ranks(history))


def awaited_stage(history: History) -> str:
    """The line that goes on with a pipeline whose first training is finished and whose second has not begun, or ""."""
    is_first = history.stage == "pretrain" and history.state == "finished" and bool(pipeline(history.config))
    return resume(history) if is_first and not fine_tuning(history) else ""


def fine_tuning(history: History) -> str:
    """The run that by its name was fine-tuned from this one, or ""."""
    name = f"{history.name}-sft"
    return name if (history.folder.with_name(name) / "run.toml").exists() else ""


def extendable_step(history: History) -> int | None:
    """The newest kept checkpoint of a finished run from before its rate fell; None where there is none."""
    planned = measures.schedule(history)
    if history.stage != "pretrain" or history.state != "finished" or planned is None:
        return None
    before = [step for step, _ in history.checkpoints if 0 < step <= planned.warmdown_from]
    return before[-1] if before else None


def longer(history: History, ratio: float) -> str:
    """The line that trains a run's network on so many tokens per parameter: on from a kept checkpoint, else anew.

    "" where its record does not say how it was trained.
    """
    name, asked = f"{history.name}-longer", f"{ratio:.3g}"
    if extendable_step(history) is not None:
        name = unused(history, name)
        return line("pretrain", ranks=measures.ranks(history), extend=history.name, ratio=asked, run=name)
    return again(history, name, ratio=asked)


def unused(history: History, name: str) -> str:
    """`name`, or with the first number behind it that makes it the name of no run beside this one."""
    names = chain([name], (f"{name}-{number}" for number in count(2)))
    return next(one for one in names if not history.folder.with_name(one).exists())


def again(history: History, name: str, **changes: Any) -> str:
    """The line that trains such a run from the beginning, with these settings changed; "" where nothing tells how."""
    config = history.config.get("config", {})
    if history.shape is None or history.stage != "pretrain" or not config.get("corpus") or was_extended(history):
        return ""
    chosen = (given_settings(history) | {"depth"}) - (LENGTHS if changes.keys() & LENGTHS else set())
    flags = {key: value for key in KNOBS if key in chosen and (value := recorded(history, key)) is not None}
    if flags.get("seed") == 1:
        del flags["seed"]
    texts = {key: config.get(key) for key in ("corpus", "tokenizer")} | dict.fromkeys(ways(history), True)
    return line("pretrain", ranks=measures.ranks(history), **(texts | flags | changes | {"run": unused(history, name)}))


def fine_tuned_again(history: History, name: str, **changes: Any) -> str:
    """The same for a fine-tuning."""
    base, config = history.config.get("run", {}).get("base"), history.config.get("config", {})
    if history.stage != "sft" or not base or not isinstance(config.get("data"), list) or not config["data"]:
        return ""
    kept = {"data": config["data"], "validation": config.get("validation") or None, "step": config.get("base_step")}
    kept |= {key: config.get(key) for key in ("batch_tokens", "lr_share", "seed")}
    length = {} if "epochs" in changes else {"steps": config.get("steps")}
    flags = kept | length | dict.fromkeys(ways(history), True) | changes | {"run": unused(history, name)}
    return line("sft", base, ranks=measures.ranks(history), **flags)


def quickstart_in_full(history: History) -> str:
    """The line that makes such a quickstart in the time that it takes unasked; "" where it was no shorter one."""
    words = pipeline(history.config)
    if words[:1] != ("quickstart",) or "--minutes" not in words:
        return ""
    base = str(history.config.get("run", {}).get("base", "quickstart"))
    return line("quickstart", run=unused(history, f"{base}-2"))


def gentler(history: History) -> str:
    """The line that trains such a run from the beginning at half the rates; "" where the record does not tell them."""
    config, name = history.config.get("config", {}), f"{history.name}-gentler"
    rate = config.get("lr_share" if history.stage == "sft" else "lr_scale")
    if type(rate) not in (int, float) or not 0 < rate < math.inf:
        return ""
    half = f"{rate / 2:.4g}"
    return fine_tuned_again(history, name, lr_share=half) or again(history, name, lr_scale=half)
