"""Whether a run can be done again from its folder alone, and the command line that does it."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from fathom.errors import FathomError
from fathom.report import measures
from fathom.report.history import History
from fathom.report.measured import bpb_curves
from fathom.train.resuming import started_by
from fathom.train.settings import KNOBS, resolve

IN_SHAPE = {"head_dim": "head_dim", "seq_len": "seq_len", "window": "window_pattern"}
USUAL = {"ranks": 1, "weights": "whole", "skip_spikes": True}
"""What an older record does not say of its ways."""
COMPUTED_BY = ("device_name", "dtype", "device_batch", "compile_from", "shard_within", *USUAL)


def record_problems(run: History) -> list[str]:
    """What the folder lacks for anyone to train the same weights again and to see that they are the same."""
    found = []
    about, config = run.config.get("run", {}), run.config.get("config", {})
    digests = {"corpus": about.get("corpus_digest"), "tokenizer": about.get("tokenizer_digest")}
    found += [f"no digest of its {what}" for what, value in digests.items() if not value]
    if not config.get("data_digest"):
        found.append("no digest of its tokens")
    if run.state != "finished":
        found.append(f"it is {run.state}")
    elif not (run.result or {}).get("weights_sha256"):
        found.append("no digest of its weights")
    is_extended = was_extended(run)
    lost = run.steps_done - len(run.step)
    if lost and not is_extended:
        found.append(f"its log lacks {lost:,} of {run.steps_done:,} steps")
    if not np.isfinite(run.loss[~run.is_left_out]).all():
        found.append("a loss in its log is no number")
    if len(run.train_s) > 1 and (np.diff(run.train_s) < 0).any():
        found.append("its training time goes backwards")
    if is_extended:
        found.append("it goes on from another run")
    machines = {
        json.dumps([phase.circumstances.get(key, USUAL.get(key)) for key in COMPUTED_BY])
        for phase in run.phases
        if phase.circumstances
    }
    if not machines:
        found.append("its record, of an older version, does not say what it was computed on")
    elif len(machines) > 1:
        found.append(f"it was computed in {len(machines)} ways, one after another")
    return found


def was_extended(run: History) -> bool:
    """Whether it began with another run's weights, so that no line trains it from the beginning."""
    return any(phase.kind == "extended" for phase in run.phases)


def rebuilt_command(run: History) -> tuple[str, list[str]]:
    """The command line that trains this run again, and what stands against that.

    What was given by flag or recipe, if today's rules make the rest of it as they did then; else every value.
    """
    if run.shape is None:
        return "", ["its run.toml does not tell the network"]
    config = run.config.get("config", {})
    chosen, differ = settings_flags(run)
    problems = [f"this version would train it with another {differ[0]}"] if differ else []
    words = {"corpus": config.get("corpus"), "tokenizer": config.get("tokenizer"), "run": run.name}
    flags = {**words, **chosen, "dtype": config.get("dtype"), **_computed_with(run), **_measured_with(run)}
    parts = [f"--{k.replace('_', '-')} {shlex.quote(str(v))}" for k, v in flags.items() if v is not None]
    parts += [f"--{way.replace('_', '-')}" for way in ways(run)]
    parts += ["--shard-model"] if run.circumstances.get("weights") == "split" else []
    return " ".join([started_by(measures.ranks(run)), "pretrain", *parts]), problems


def ways(run: History) -> list[str]:
    """The switches that decide what is trained, of those that were given."""
    found = [way for way in ("fp8", "document_mask") if run.config.get("config", {}).get(way)]
    return found + ([] if run.circumstances.get("skip_spikes", True) else ["no_skip_spikes"])


def settings_flags(run: History) -> tuple[dict[str, Any], list[str]]:
    """The flags that make today's rules give this run's settings, and what they would make otherwise all the same."""
    every = {key: value for key in KNOBS if (value := recorded(run, key)) is not None}
    given = given_settings(run)
    short = {key: value for key, value in every.items() if key in given | {"depth"}}
    if "flops" in given:
        short |= {key: every[key] for key in ("steps", "batch_tokens") if key in every}
    differ = _differences(run, short)
    return (every, _differences(run, every)) if differ else (short, [])


def given_settings(run: History) -> set[str]:
    """The settings that a person chose, by flag or recipe."""
    return {key for key, why in run.config.get("origin", {}).items() if why in ("flag", "recipe")}


def recorded(run: History, key: str) -> Any:
    """The value of a setting as the run has it; None where it has none of its own."""
    config = run.config.get("config", {})
    if key in IN_SHAPE:
        return getattr(run.shape, IN_SHAPE[key])
    if key == "depth":
        return config.get("depth", run.shape.n_layer if run.shape else None)
    if key == "ratio" and run.shape is not None and isinstance(config.get("tokens"), int):
        exact = config["tokens"] / run.shape.scaling_parameters
        rounded = float(f"{exact:.6g}")
        return rounded if int(rounded * run.shape.scaling_parameters) == config["tokens"] else exact
    return config.get(key)


def _differences(run: History, flags: Mapping[str, Any]) -> list[str]:
    """What today's rules would make otherwise of these flags."""
    assert run.shape is not None
    try:
        settings = resolve(flags, {}, run.shape.vocab_size)
    except FathomError:
        return ["setting"]
    if settings.shape != run.shape:
        return ["network"]
    config = run.config.get("config", {})
    told = {key: value for key, value in settings.flat().items() if key in config and key != "planned_steps"}
    return [key for key, value in told.items() if not _alike(value, config[key])]


def _alike(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return math.isclose(a, b, rel_tol=1e-9, abs_tol=1.0 if isinstance(a, int) and a > 1e9 else 0.0)
    return bool(a == b)


def _computed_with(run: History) -> dict[str, Any]:
    facts = run.circumstances
    if not facts:
        return {}
    compiled = "off" if facts.get("compile_from") is None else "on"
    return {key: facts.get(key) for key in ("device_batch", "shard_within")} | {"compile": compiled}


def _measured_with(run: History) -> dict[str, Any]:
    """What measures it on the same rows at the same steps."""
    curves = bpb_curves(run)
    if not curves:
        return {}
    validation = max(curves, key=lambda key: len(curves[key].step))
    steps = curves[validation].step.tolist()
    regular = all(step % steps[0] == 0 for step in steps[:-1])
    every = {"eval_every": steps[0] if len(steps) > 1 else 0} if regular else {}
    if validation.rows_of not in ("best-fit", "lossless"):
        return every
    return {**every, "eval_tokens": validation.rows * validation.seq_len, "validation_rows": validation.rows_of}
