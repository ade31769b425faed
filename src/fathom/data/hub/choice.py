"""Which files of a dataset to train on and which to validate on (pure: paths in, choice out)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from fathom.data.corpus.files import COLUMN
from fathom.data.corpus.readers import KNOWN, kind_of
from fathom.data.hub.fetching import RemoteFile
from fathom.errors import FathomError

Shards = int | Literal["all"]

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPLIT_WORD = re.compile(r"(?<![a-z0-9])(train|training|validation|valid|val|dev|test|testing)(?![a-z0-9])")
_MEANING = {"train": "train", "training": "train", "test": "test", "testing": "test"}


@dataclass(frozen=True)
class KnownDataset:
    """A dataset whose files are numbered; the last one is for validation, always."""

    repo: str
    n_files: int

    def path(self, number: int) -> str:
        return f"shard_{number:05d}.parquet"


KNOWN_DATASETS = {
    "climbmix": KnownDataset("karpathy/climbmix-400b-shuffle", 6543),
    "fineweb-edu": KnownDataset("karpathy/fineweb-edu-100b-shuffle", 1823),
}


@dataclass(frozen=True)
class Request:
    """What is to be fetched, under which name."""

    repo: str
    name: str
    shards: Shards
    known: KnownDataset | None = None
    pattern: str = "*"
    revision: str = "main"
    column: str = COLUMN
    skip_broken: bool = False
    workers: int = 4

    def __post_init__(self) -> None:
        if self.shards != "all" and self.shards < 1:
            raise FathomError(f"{self.shards} shards are none", "give --shards a number above 0, or all")
        if self.workers < 1:
            raise FathomError(f"{self.workers} workers would fetch nothing", "give --workers a number above 0")


def request(what: str, shards: Shards, name: str = "", **settings: Any) -> Request:
    """The request for "climbmix", "fineweb-edu" or "OWNER/NAME"; `settings` are fields of Request."""
    known = KNOWN_DATASETS.get(what)
    repo = known.repo if known else what.removeprefix("https://huggingface.co/").removeprefix("datasets/").rstrip("/")
    if not _REPO.fullmatch(repo):
        raise FathomError(
            f"{what!r} is no dataset", f"give one of {', '.join(KNOWN_DATASETS)}, or OWNER/NAME as on the hub"
        )
    return Request(repo, name or (what if known else repo.split("/")[1]), shards, known, **settings)


@dataclass(frozen=True)
class Choice:
    """The files wanted, in the order in which shards are counted, and how many there are to train on in all."""

    train: list[RemoteFile]
    validation: list[RemoteFile]
    n_train_there: int


def choose_files(files: Sequence[RemoteFile], wanted: Request) -> Choice:
    """Which files are training shards and which validation.

    Of a known dataset by its numbers. Else Parquet files where there are any, else JSON lines, else text, in sorted
    order: those whose path says validation (or, without such, test) validate, and test files never train; where no
    path says so, the last file validates. A single file is all for training: it is divided later.
    """
    if wanted.known is not None:
        return _choose_known(files, wanted.known, wanted.shards)
    usable = [f for f in files if fnmatch.fnmatchcase(f.path, wanted.pattern) and _is_data(f.path)]
    for kind in ("parquet", "lines", "text"):
        of_kind = sorted((f for f in usable if file_kind(f.path) == kind), key=lambda f: f.path)
        if of_kind:
            train, validation = _divide(of_kind)
            return Choice(_first(train, wanted.shards), validation, len(train))
    where = "" if wanted.pattern == "*" else f" that match {wanted.pattern!r}"
    raise FathomError(f"{wanted.repo} has no data files{where}", f"types known here are {KNOWN}")


def file_kind(path: str) -> str:
    """ "text", "lines", "parquet", or "" for what is not read here."""
    known = kind_of(path)
    return known[0] if known else ""


def _choose_known(files: Sequence[RemoteFile], known: KnownDataset, shards: Shards) -> Choice:
    by_path = {f.path: f for f in files}
    last = known.n_files - 1
    wanted = [known.path(number) for number in _first(range(last), shards)] + [known.path(last)]
    missing = [path for path in wanted if path not in by_path]
    if missing:
        raise FathomError(
            f"{known.repo} lacks {missing[0]} and {len(missing) - 1:,} more files that it should have",
            f"if it was rearranged, fetch it by its name (`fathom data get {known.repo}`)",
        )
    chosen = [by_path[path] for path in wanted]
    return Choice(chosen[:-1], chosen[-1:], last)


def _first(items: Sequence[Any], shards: Shards) -> list[Any]:
    return list(items if shards == "all" else items[:shards])


def _divide(files: list[RemoteFile]) -> tuple[list[RemoteFile], list[RemoteFile]]:
    said: dict[str, list[RemoteFile]] = {"train": [], "validation": [], "test": [], "": []}
    for file in files:
        said[split_word(file.path)].append(file)
    held_out = said["validation"] or said["test"]
    train = said["train"] or said[""]
    if not train:
        return (files[:-1], files[-1:]) if len(files) > 1 else (files, [])
    if not held_out and len(train) > 1:
        return train[:-1], train[-1:]
    return train, held_out


def split_word(path: str) -> str:
    """ "train", "validation", "test" or "": the split that a path names, the last such word counting."""
    words = _SPLIT_WORD.findall(path.lower())
    return _MEANING.get(words[-1], "validation") if words else ""


def _is_data(path: str) -> bool:
    hidden = any(part.startswith(".") for part in path.split("/"))
    return not hidden and kind_of(path) is not None and not path.lower().endswith((".md", ".markdown"))
