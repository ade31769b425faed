"""Corpora from the Hugging Face hub: choose files, fetch them in parallel, put them in place as they are.

    listing ──choose──▶ files ──fetch, check──▶ corpora/.NAME.fetching/ ──link──▶ corpora/NAME/

What has arrived stays in the hidden folder until the corpus is whole, so a fetch that was stopped goes on where it
was. More shards of the same corpus can be fetched later; the validation part stays what it is.
"""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from fathom.data.corpus import Corpus, open_corpus
from fathom.data.corpus.aside import aside_dir, disk_errors, gigabytes, making, only_one, require_space
from fathom.data.corpus.builder import DISK_PER_TEXT_BYTE, Options, build
from fathom.data.corpus.commands import counted, summary, tell
from fathom.data.corpus.files import COLUMN, CorpusFile, shard_name
from fathom.data.corpus.manifest import write_manifest
from fathom.data.corpus.readers import Found
from fathom.data.hub.choice import Choice, Request, Shards, choose_files, file_kind, request
from fathom.data.hub.fetching import Patience, RemoteFile, in_parallel
from fathom.data.hub.repo import Repository, hub_errors
from fathom.data.hub.shelf import Arrived, Shelf
from fathom.errors import FathomError
from fathom.home import corpus_dir
from fathom.screen import bar, say

_GUESSED_EXPANSION = 4


def fetch_corpus(wanted: Request, *, patience: Patience | None = None, endpoint: str | None = None) -> Corpus:
    """The corpus `wanted`, fetched as far as it is not here. One process works, others wait for it.

    Raises FathomError when the name is taken by something else, the disk is too small, the hub refuses, or keeps
    failing beyond `patience`.
    """
    existing = _existing(wanted)
    if existing is not None and _has_enough(existing, wanted):
        say(f"Corpus {wanted.name} is here already.")
        return existing
    with only_one(wanted.name, "fetching"):
        existing = _existing(wanted)
        if existing is not None and _has_enough(existing, wanted):
            say(f"Corpus {wanted.name} was fetched meanwhile.")
            return existing
        hub = Repository(wanted.repo, patience or Patience(), endpoint)
        commit, files = hub.listing(existing.manifest["hub"]["revision"] if existing else wanted.revision)
        _Fetch(wanted, hub, commit, choose_files(files, wanted), existing).run()
    return open_corpus(wanted.name)


def _existing(wanted: Request) -> Corpus | None:
    if not corpus_dir(wanted.name).exists():
        return None
    corpus = open_corpus(wanted.name)
    hub = corpus.manifest.get("hub", {})
    if hub.get("repo") != wanted.repo:
        raise FathomError(
            f"corpus {wanted.name!r} exists already and is not of {wanted.repo}", "choose another name with --name"
        )
    if hub["pattern"] != wanted.pattern or hub["column"] != wanted.column:
        raise FathomError(
            f"corpus {wanted.name!r} was fetched with --files {hub['pattern']!r} and --column {hub['column']!r}",
            "give the same, or choose another name with --name",
        )
    asked = hub.get("asked", wanted.revision)  # which an older version did not note
    if wanted.revision not in (asked, hub["revision"]):
        raise FathomError(
            f"corpus {wanted.name!r} was fetched with --revision {asked!r}",
            "give the same, or choose another name with --name",
        )
    return corpus


def _has_enough(corpus: Corpus, wanted: Request) -> bool:
    hub = corpus.manifest["hub"]
    there = hub["train_shards_there"]
    return bool(len(hub["train"]) >= (there if wanted.shards == "all" else min(wanted.shards, there)))


@dataclass
class _Fetch:
    """One fetch: what is missing of `choice` comes onto the shelf, then everything is put in place."""

    wanted: Request
    hub: Repository
    commit: str
    choice: Choice
    existing: Corpus | None
    done_bytes: int = 0
    fetched_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.shelf = Shelf(aside_dir(self.wanted.name, "fetching"), self.wanted.column, self.wanted.skip_broken)
        self.hub.fetcher.moved = self._moved

    def run(self) -> None:
        train, validation = self._missing()
        self._check_space([*validation, *train])
        with disk_errors(self.shelf.folder), hub_errors(self.wanted.repo):
            self.shelf.folder.mkdir(parents=True, exist_ok=True)
            if not self.choice.validation:
                self._build_of_single_file(train[0])
            else:
                self._put_in_place(train, validation, self._fetch_all([*validation, *train]))
        shutil.rmtree(self.shelf.folder)

    def _missing(self) -> tuple[list[RemoteFile], list[RemoteFile]]:
        """Training and validation files that the corpus does not hold yet."""
        if self.existing is None:
            return self.choice.train, self.choice.validation
        have = self.existing.manifest["hub"]["train"]
        if [remote.path for remote in self.choice.train[: len(have)]] != have:
            raise FathomError(
                f"the files of {self.wanted.repo} are no longer those that corpus {self.wanted.name!r} began with",
                "fetch it under another name with --name",
            )
        return self.choice.train[len(have) :], []

    def _check_space(self, files: list[RemoteFile]) -> None:
        missing = sum(file.size - self.shelf.bytes_here(file) for file in files)
        all_rewritten = self.wanted.column != COLUMN or not self.choice.validation
        rewritten = sum(file.size for file in files if all_rewritten or file_kind(file.path) != "parquet")
        needed = missing + rewritten * _GUESSED_EXPANSION * DISK_PER_TEXT_BYTE
        require_space(needed, f"fetching {counted(len(files), 'file')} of {self.wanted.repo}")
        if not self.hub.offline:
            at_a_time = min(self.wanted.workers, len(files))
            what = f"{counted(len(files), 'file')}, {gigabytes(missing)}"
            say(f"{self.wanted.repo}: fetching {what}, {at_a_time} at a time.")

    def _fetch_all(self, files: list[RemoteFile]) -> dict[str, Arrived]:
        arrived: dict[str, Arrived] = {}

        def bring(remote: RemoteFile) -> None:
            if not self.shelf.is_read(remote):
                self._bring(remote)
            arrived[remote.path] = self.shelf.read(remote)

        self._work(files, bring)
        return arrived

    def _bring(self, remote: RemoteFile) -> None:
        """Have the remote file on the shelf, whole and checked: from the hub's cache on this disk, else by the net."""
        place, part = self.shelf.place(remote), self.shelf.part(remote)
        if place.exists():
            return
        if (cached := self.hub.cached(remote, self.commit)) is not None:
            part.unlink(missing_ok=True)
            _link_or_copy(cached, part)
            self._moved(remote.size)
        elif self.hub.offline:
            raise FathomError(f"{remote.path} in the hub's cache is damaged, and HF_HUB_OFFLINE is set", "unset it")
        else:
            self.hub.fetcher.fetch(remote, part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, place)

    def _moved(self, n_bytes: int) -> None:
        with self.lock:
            self.done_bytes += n_bytes
            self.fetched_bytes += n_bytes

    def _work(self, files: list[RemoteFile], task: Callable[[RemoteFile], None]) -> None:
        """Do `task` for each file in parallel, with a bar that moves (and speaks) whether or not bytes arrive."""
        self.done_bytes, self.fetched_bytes = sum(map(self.shelf.bytes_here, files)), 0
        finished: list[str] = []

        def counting(remote: RemoteFile) -> Callable[[], None]:
            def do() -> None:
                task(remote)
                finished.append(remote.path)

            return do

        started, shown_bytes = time.monotonic(), 0
        with bar("fetching", sum(file.size for file in files)) as shown:
            for _ in in_parallel([counting(file) for file in files], self.wanted.workers, self.hub.fetcher.stop):
                rate = self.fetched_bytes / 1e6 / max(time.monotonic() - started, 1e-3)
                done = self.done_bytes
                shown.advance(done - shown_bytes, f"{len(finished)} of {len(files)} files, {rate:.1f} MB/s")
                shown_bytes = done

    def _put_in_place(self, train: list[RemoteFile], validation: list[RemoteFile], arrived: dict[str, Arrived]) -> None:
        if self.existing is not None:
            self._fill(self.existing.folder, train, validation, arrived)
            return
        with making(self.wanted.name) as folder:
            self._fill(folder, train, validation, arrived)

    def _fill(
        self, folder: Path, train: list[RemoteFile], validation: list[RemoteFile], arrived: dict[str, Arrived]
    ) -> None:
        """Link the new files into `folder` behind those that are there; the manifest, last, makes them count."""
        old = self.existing
        files = {
            "train": old.described_files("train") if old else [],
            "validation": old.described_files("validation") if old else [],
        }
        for split, new in (("train", train), ("validation", validation)):
            for there in (arrived[remote.path] for remote in new):
                if there.file is not None:
                    name = shard_name(split, len(files[split]))
                    (folder / name).unlink(missing_ok=True)
                    _link_or_copy(there.path, folder / name)
                    files[split].append(CorpusFile(**(there.file.as_json() | {"name": name})))
            if not files[split]:
                raise FathomError(f"the {split} files of {self.wanted.repo} hold no text", "choose others with --files")
        broken = sum(there.broken for there in arrived.values()) + (old.manifest["dropped"]["broken"] if old else 0)
        write_manifest(
            folder, files, source=[self._source()], dropped={"broken": broken}, hub=self._record(train, validation)
        )

    def _build_of_single_file(self, remote: RemoteFile) -> None:
        """A dataset of one file is divided into training and validation like files of one's own."""
        self._work([remote], self._bring)
        options = Options(column=self.wanted.column, skip_broken=self.wanted.skip_broken)
        with making(self.wanted.name) as folder:
            found = Found([self.shelf.source(remote)])
            build(folder, found, None, options, source=[self._source()], hub=self._record([remote], []))

    def _source(self) -> str:
        return f"{self.wanted.repo} on the hub"

    def _record(self, train: list[RemoteFile], validation: list[RemoteFile]) -> dict[str, Any]:
        new: dict[str, Any] = {"asked": self.wanted.revision, "train": [], "validation": []}
        had = self.existing.manifest["hub"] if self.existing else new
        return {
            **had,
            "repo": self.wanted.repo,
            "revision": self.commit,
            "pattern": self.wanted.pattern,
            "column": self.wanted.column,
            "train_shards_there": self.choice.n_train_there,
            "train": had["train"] + [remote.path for remote in train],
            "validation": had["validation"] + [remote.path for remote in validation],
        }


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@dataclass(frozen=True)
class Get:
    """Fetch a corpus from the Hugging Face hub.

    HF_TOKEN, HF_ENDPOINT (a mirror) and HF_HUB_OFFLINE are honoured. A fetch that was stopped goes on where it was;
    with a larger --shards the missing ones are added.
    """

    what: tyro.conf.Positional[str]
    """climbmix, fineweb-edu, or the OWNER/NAME of a dataset."""
    shards: Shards = 8
    """How many training files to have, or all."""
    name: str = ""
    """What to call the corpus (by default as the dataset)."""
    files: str = "*"
    """Only files whose path in the repository matches, such as 'sample/10BT/*'."""
    revision: str = "main"
    """A branch, tag or commit of the dataset."""
    column: str = COLUMN
    """The column with the text."""
    skip_broken: bool = False
    """Go on without lines that cannot be read, instead of stopping at the first."""
    workers: int = 4
    """How many files to fetch at a time."""
    json: bool = False
    """Print the result as one JSON object."""

    def run(self) -> dict[str, Any]:
        started = time.monotonic()
        wanted = request(
            self.what,
            self.shards,
            self.name,
            pattern=self.files,
            revision=self.revision,
            column=self.column,
            skip_broken=self.skip_broken,
            workers=self.workers,
        )
        corpus = fetch_corpus(wanted)
        tell(corpus)
        return summary(corpus) | {"seconds": round(time.monotonic() - started, 3)}
