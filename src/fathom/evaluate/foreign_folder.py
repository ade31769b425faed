"""Telling a folder that holds a model of transformers, before anything that takes seconds is imported."""

from __future__ import annotations

from pathlib import Path


def is_foreign(path: Path) -> bool:
    """Whether this is a folder as transformers writes one."""
    return (path / "config.json").is_file()
