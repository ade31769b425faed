"""Where things are: corpora, tokenizers and runs, in plain folders under $FATHOM_HOME (default ~/.fathom)."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

from fathom.errors import FathomError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def home() -> Path:
    """The folder under which everything lives; not created here."""
    return Path(os.environ.get("FATHOM_HOME") or Path.home() / ".fathom")


def check_name(name: str, kind: str) -> str:
    """A name becomes a folder, so it may not hold a slash, begin with a dot or be empty."""
    if not _NAME.fullmatch(name):
        raise FathomError(
            f"{name!r} cannot be the name of a {kind}",
            "use letters, digits, dots, dashes and underscores, beginning with a letter or digit",
        )
    return name


def corpus_dir(name: str) -> Path:
    return home() / "corpora" / check_name(name, "corpus")


def tokenizer_dir(name: str) -> Path:
    return home() / "tokenizers" / check_name(name, "tokenizer")


def run_dir(name: str) -> Path:
    return home() / "runs" / check_name(name, "run")


def names(kind: str) -> list[str]:
    """What exists of "corpora", "tokenizers" or "runs", sorted."""
    folder = home() / kind
    if not folder.is_dir():
        return []
    return sorted(p.name for p in folder.iterdir() if p.is_dir() and _NAME.fullmatch(p.name))


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write aside, fsync, rename: a reader sees the old file or the new one, never a torn one.

    An OSError names `path`, and not what would have become it.
    """
    try:
        _write_aside(path, content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _write_aside(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power loss (a no-op where folders cannot be synced)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
