"""CORE of a Hugging Face model in a local folder. Its results are kept in $FATHOM_HOME/foreign/NAME/evals/."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fathom.errors import FathomError
from fathom.evaluate.foreign import open_foreign
from fathom.evaluate_command import refuse_unwritable
from fathom.evaluate_command.core import core, open_core
from fathom.evaluate_command.session import Session, emptied, introduce
from fathom.hardware import device_type
from fathom.home import home
from fathom.screen import say

if TYPE_CHECKING:
    from fathom.evaluate_command import Eval
    from fathom.ranks import Ranks


def evaluate_foreign(config: Eval, folder: Path, here: Ranks) -> dict[str, Any]:
    """Measure CORE; everything else needs a run of ours. Returns what --json prints."""
    if config.tasks not in ("", "core") or config.task or config.harness or config.step is not None:
        raise FathomError(f"{folder} is a Hugging Face model, and only CORE is measured on such", "use --tasks core")
    if config.dtype not in ("auto", "fp32"):
        raise FathomError(f"a Hugging Face model is measured in fp32, not {config.dtype}", "leave --dtype out")
    refuse_unwritable(config.dump)
    bundle = here.main_first(lambda: open_core(config.bundle, here))
    say(f"loading {folder} …", style="dim")
    device = device_type().value
    scorer, tokenizer = open_foreign(folder, device)
    name = folder.resolve().name
    introduce(f"{name}: a Hugging Face model, fp32 on {device}", config, here)
    about = {"run": name, "step": 0, "stage": "foreign", "dtype": "fp32", "limit": config.limit or None}
    place = home() / "foreign" / f"{name}-{_fingerprint(folder)}"
    session = Session(place, about, here, config.again, emptied(config.dump, here))
    return about | {"core": core(session, bundle, scorer, tokenizer)}


def _fingerprint(folder: Path) -> str:
    """Changes with the files of the folder: another model in its place has results of its own."""
    files = sorted((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in folder.iterdir())
    return hashlib.sha256(repr(files).encode()).hexdigest()[:6]
