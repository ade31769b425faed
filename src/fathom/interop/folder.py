"""The reference's folders: which files make up a checkpoint, and what its metadata says. REFERENCE section 11."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fathom.errors import FathomError

MOST_META_BYTES = 10_000_000
FINE_TUNED = ("chatsft_checkpoints", "chatrl_checkpoints")
ONLY_IN_SFT = ("init_lr_frac", "chatcore_every", "mmlu_epochs")


@dataclass(frozen=True)
class Found:
    """A checkpoint of the reference on disk."""

    folder: Path
    step: int
    model: Path
    meta_path: Path
    meta: Mapping[str, Any]
    optimizer: tuple[Path, ...]
    """A file for each rank, by rank; empty where the state was not kept."""

    @property
    def stage(self) -> str:
        """pretrain, or sft for what was fine-tuned in either way: told by the folder's place, else by the flags."""
        flags = self.meta.get("user_config")
        fine_tuned = isinstance(flags, dict) and any(key in flags for key in ONLY_IN_SFT)
        return "sft" if fine_tuned or self.folder.parent.name in FINE_TUNED else "pretrain"

    @property
    def tokenizer(self) -> Path:
        """Where the reference keeps the tokenizer: BASE/tokenizer beside BASE/base_checkpoints/TAG."""
        return self.folder.parent.parent / "tokenizer"


def find_checkpoint(path: str, step: int | None) -> Found:
    """The checkpoint of `step`, the newest without it. Raises FathomError that names what is missing."""
    folder = Path(os.path.abspath(path))
    steps = _steps(folder)
    if step is not None and step not in steps:
        raise FathomError(f"{folder} has no model_{step:06d}.pt", f"the steps there are {', '.join(map(str, steps))}")
    step = steps[-1] if step is None else step
    meta_path = folder / f"meta_{step:06d}.json"
    meta = _read_meta(meta_path)
    told = meta.get("step", step)
    if told != step:
        raise FathomError(
            f"{meta_path} is of step {str(told)[:40]!r}", "files of different checkpoints have been mixed"
        )
    return Found(folder, step, folder / f"model_{step:06d}.pt", meta_path, meta, _ranks(folder, step))


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        raise FathomError(f"there is no folder {folder}", "give one that holds model_NNNNNN.pt")
    names = [path.name for path in folder.iterdir()]
    steps = sorted(int(match[1]) for name in names if (match := re.fullmatch(r"model_(\d{6,12})\.pt", name)))
    if not steps:
        inside = sorted(path.parent for pattern in ("*/model_*.pt", "*/*/model_*.pt") for path in folder.glob(pattern))
        hint = f"did you mean {inside[-1]}?" if inside else "give the folder of a checkpoint of the reference"
        raise FathomError(f"{folder} holds no model_NNNNNN.pt", hint)
    return steps


def _ranks(folder: Path, step: int) -> tuple[Path, ...]:
    pattern = re.compile(rf"optim_{step:06d}_rank(\d{{1,6}})\.pt")
    ranks = sorted(int(match[1]) for path in folder.iterdir() if (match := pattern.fullmatch(path.name)))
    missing = next((rank for rank, there in enumerate(ranks) if rank != there), None)
    if missing is not None:
        raise FathomError(
            f"there is no {folder / f'optim_{step:06d}_rank{missing}.pt'}, but one of rank {ranks[-1]}",
            "bring the files of all ranks, or none",
        )
    return tuple(folder / f"optim_{step:06d}_rank{rank}.pt" for rank in ranks)


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_META_BYTES:
            raise FathomError(f"{path} has more than {MOST_META_BYTES:,} bytes", "no metadata is that large")
        meta = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FathomError(f"there is no {path}", "give the folder of a whole checkpoint") from None
    except OSError as error:
        raise FathomError(f"{path} cannot be read ({error.strerror})", "see to its permissions") from None
    except (ValueError, RecursionError) as error:
        raise FathomError(f"{path} is damaged ({str(error)[:200]})", "take the file from another copy") from None
    if not isinstance(meta, dict) or not isinstance(meta.get("model_config"), dict):
        raise FathomError(f"{path} has no model_config", "it is not the metadata of a checkpoint")
    return meta
