from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fathom.data import shards
from fathom.data.batches import PretrainBatches
from fathom.data.corpus import Corpus, open_corpus, write_corpus
from fathom.data.shards import tokenize
from fathom.data.token_store import TokenStore
from fathom.errors import FathomError
from fathom.tokenizer import Tokenizer, train

TEXTS = [f"Document {i} says: {'so ' * (i % 7)}the end of no. {i * i}!" for i in range(60)]
FILES = {
    "train-00000": [TEXTS[:7], TEXTS[7:20]],
    "train-00001": [TEXTS[20:30], [], TEXTS[30:31]],
    "train-00002": [TEXTS[31:50]],
    "validation-00000": [TEXTS[50:]],
}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train(TEXTS, 300)


@pytest.fixture
def corpus(fathom_home: Path) -> Corpus:
    return make_corpus(fathom_home / "corpora" / "small", FILES)


def make_corpus(folder: Path, files: dict[str, list[list[str | None]]], digest: str = "d" * 64) -> Corpus:
    """A corpus of files with these row groups, its manifest only as far as shards read it."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, dict[str, object]] = {
        split: {"documents": 0, "bytes": 0, "characters": 0, "files": []} for split in ("train", "validation")
    }
    for name, groups in files.items():
        schema = pa.schema([pa.field("text", pa.string())])
        with pq.ParquetWriter(folder / f"{name}.parquet", schema) as writer:
            for group in groups:
                writer.write_table(pa.table([pa.array(group, pa.string())], schema=schema))
        split = splits[name.split("-")[0]]
        texts = [text or "" for group in groups for text in group]
        split["documents"] += len(texts)  # type: ignore[operator]
        split["bytes"] += sum(len(text.encode()) for text in texts)  # type: ignore[operator]
        described = {"name": f"{name}.parquet", "sha256": "", "documents": len(texts), "characters": 0, "bytes": 0}
        split["files"].append(described | {"file_bytes": 0})  # type: ignore[attr-defined]
    return Corpus(folder.name, folder, {"digest": digest, "splits": splits})


def assert_holds(store: TokenStore, tokenizer: Tokenizer, texts: list[str | None], split: str = "train") -> None:
    expected = [[tokenizer.bos_id, *tokenizer.encode(text or "")] for text in texts]
    assert store.lengths(split).tolist() == [len(ids) for ids in expected]  # type: ignore[arg-type]
    for document, ids in enumerate(expected):
        assert store.read(split, document, 0, len(ids)).tolist() == ids  # type: ignore[arg-type]


def folder_of(corpus: Corpus, tokenizer: Tokenizer) -> Path:
    return corpus.folder / "tokens" / tokenizer.digest[:16]


@pytest.mark.parametrize("workers", [1, 3])
def test_every_document_is_there_in_order_begun_by_bos(corpus: Corpus, tokenizer: Tokenizer, workers: int) -> None:
    store = tokenize(corpus, tokenizer, workers=workers)
    assert_holds(store, tokenizer, TEXTS[:50])
    assert_holds(store, tokenizer, TEXTS[50:], "validation")
    assert store.n_documents("train") == 50 and store.n_tokens("train") == store.lengths("train").sum()
    assert store.vocab_size == 300


def test_a_corpus_made_by_the_program(fathom_home: Path, tokenizer: Tokenizer) -> None:
    corpus = write_corpus("written", TEXTS[:50], TEXTS[50:], "here")
    assert_holds(tokenize(corpus, tokenizer), tokenizer, TEXTS[:50])
    assert_holds(tokenize(open_corpus("written"), tokenizer), tokenizer, TEXTS[50:], "validation")


def test_empty_documents_files_and_nulls(fathom_home: Path, tokenizer: Tokenizer) -> None:
    groups: dict[str, list[list[str | None]]] = {
        "train-00000": [["", None, "x"]],
        "train-00001": [],
        "train-00002": [["", "é"]],
    }
    store = tokenize(make_corpus(fathom_home / "corpora" / "odd", groups), tokenizer)
    assert_holds(store, tokenizer, ["", None, "x", "", "é"])


def test_any_pieces_can_be_filled_in_any_order(corpus: Corpus, tokenizer: Tokenizer) -> None:
    store = tokenize(corpus, tokenizer)
    ids = [[tokenizer.bos_id, *tokenizer.encode(text)] for text in TEXTS[:50]]
    segments = np.array([[49, 2, 3], [0, 0, len(ids[0])], [30, 1, 4], [30, 0, 0], [7, 5, 1], [49, 0, 2]])
    out = np.full(int(segments[:, 2].sum()) + 2, -1)
    store.fill("train", segments, out[1:-1])
    assert out.tolist() == [-1, *(t for d, s, n in segments.tolist() for t in ids[d][s : s + n]), -1]


@pytest.mark.parametrize("segment", [[50, 0, 1], [-1, 0, 1], [0, -1, 2], [0, 0, 10_000], [0, 3, -1]])
def test_pieces_that_do_not_exist_are_refused(corpus: Corpus, tokenizer: Tokenizer, segment: list[int]) -> None:
    store = tokenize(corpus, tokenizer)
    with pytest.raises(IndexError):
        store.fill("train", np.array([segment]), np.empty(max(segment[2], 0), dtype=np.int64))


def test_an_array_of_another_length_is_refused(corpus: Corpus, tokenizer: Tokenizer) -> None:
    with pytest.raises(IndexError, match="shape"):
        tokenize(corpus, tokenizer).fill("train", np.array([[0, 0, 3]]), np.empty(4, dtype=np.int64))


@pytest.mark.parametrize(("extra", "dtype"), [(0, "uint16"), (1, "uint32")])
def test_the_smallest_integer_that_fits(corpus: Corpus, extra: int, dtype: str) -> None:
    pairs = tuple(bytes([a, b]) for a in range(256) for b in range(255))[: (1 << 16) - 256 - 9 + extra]
    big = Tokenizer((*(bytes([byte]) for byte in range(256)), *pairs))
    store = tokenize(corpus, big)
    meta = json.loads((folder_of(corpus, big) / "meta.json").read_text())
    assert meta["dtype"] == dtype and big.vocab_size == (1 << 16) + extra
    assert int(store.read("train", 0, 0, 1)[0]) == big.bos_id == big.vocab_size - 9


def test_tokens_are_made_once(corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenize(corpus, tokenizer)
    monkeypatch.setattr(shards, "_encode_group", None)
    assert tokenize(corpus, tokenizer).digest == first.digest


def test_the_digest_tells_corpora_and_tokenizers_apart(fathom_home: Path, tokenizer: Tokenizer) -> None:
    one = make_corpus(fathom_home / "corpora" / "one", FILES, "1" * 64)
    two = make_corpus(fathom_home / "corpora" / "two", FILES, "2" * 64)
    digests = {tokenize(c, t).digest for c in (one, two) for t in (tokenizer, train(TEXTS, 290))}
    assert len(digests) == 4


def test_tokens_of_another_corpus_are_refused(corpus: Corpus, tokenizer: Tokenizer, fathom_home: Path) -> None:
    tokenize(corpus, tokenizer)
    changed = make_corpus(corpus.folder, FILES, "e" * 64)
    with pytest.raises(FathomError, match="another state of the corpus.*remove"):
        tokenize(changed, tokenizer)
    (folder_of(corpus, tokenizer) / "meta.json").unlink()
    with pytest.raises(FathomError, match="another state of the corpus.*remove"):
        tokenize(changed, tokenizer)


def test_tokens_of_another_tokenizer_are_refused(corpus: Corpus, tokenizer: Tokenizer) -> None:
    tokenize(corpus, tokenizer)
    other = train(TEXTS, 290)
    os.rename(folder_of(corpus, tokenizer), folder_of(corpus, other))
    with pytest.raises(FathomError, match="another state of the tokenizer"):
        tokenize(corpus, other)


class Killed(BaseException):
    """Stands for the end of the process."""


def test_killed_after_any_rename_it_goes_on(
    corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens, lengths, records, totals: whichever rename was the last, the next run makes what is missing."""
    folder, encoded = folder_of(corpus, tokenizer), []
    encode, replace = shards._encode_group, os.replace
    monkeypatch.setattr(shards, "_encode_group", lambda path, *rest: encoded.append(path.stem) or encode(path, *rest))
    for allowed in range(40):
        left = allowed

        def dying(source: str, target: str) -> None:
            nonlocal left
            if Path(target).parent == folder:
                if not left:
                    raise Killed
                left -= 1
            replace(source, target)

        shutil.rmtree(folder, ignore_errors=True)
        monkeypatch.setattr(os, "replace", dying)
        try:
            tokenize(corpus, tokenizer, workers=1)
            break
        except Killed:
            done = {path.stem for path in folder.glob("*-*.json")}
        monkeypatch.setattr(os, "replace", replace)
        encoded.clear()
        store = tokenize(corpus, tokenizer)
        assert set(encoded) == set(FILES) - done
        assert_holds(store, tokenizer, TEXTS[:50])
        assert_holds(store, tokenizer, TEXTS[50:], "validation")
        assert not list(folder.glob(".*"))
    assert allowed == 4 * 3 + 2 * 2 + 1, "three renames a shard, two a split, and the last"


def test_what_a_killed_run_left_is_mended_and_only_that(
    corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize(corpus, tokenizer)
    folder = folder_of(corpus, tokenizer)
    torn = folder / "train-00001.bin"
    torn.write_bytes(torn.read_bytes()[:-5])
    (folder / ".train-00002.bin").write_bytes(b"half a shard")
    encoded: list[str] = []
    encode = shards._encode_group
    monkeypatch.setattr(shards, "_encode_group", lambda path, *rest: encoded.append(path.name) or encode(path, *rest))
    assert_holds(tokenize(corpus, tokenizer), tokenizer, TEXTS[:50])
    assert set(encoded) == {"train-00001.parquet"}
    assert not (folder / ".train-00002.bin").exists()


@pytest.mark.parametrize("name", ["meta.json", "train-00001.json", "train-00000.lengths.npy", "train.offsets.npy"])
@pytest.mark.parametrize("content", [None, b"", b"{"])
def test_missing_and_torn_files_are_made_again(
    corpus: Corpus, tokenizer: Tokenizer, name: str, content: bytes | None
) -> None:
    tokenize(corpus, tokenizer)
    path = folder_of(corpus, tokenizer) / name
    path.unlink() if content is None else path.write_bytes(content)
    assert_holds(tokenize(corpus, tokenizer), tokenizer, TEXTS[:50])


def test_a_run_killed_by_the_system_goes_on(corpus: Corpus, tokenizer: Tokenizer) -> None:
    tokenizer.save(corpus.folder / "t")
    code = f"""
import os, signal, sys
from pathlib import Path
from fathom.data import shards
from fathom.tokenizer import load
from tests.test_shards import FILES, make_corpus
write = shards._save
def dying(path, array):
    if path.name.startswith("train-00001"):
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, array)
shards._save = dying
shards.tokenize(make_corpus(Path({str(corpus.folder)!r}), FILES), load(Path({str(corpus.folder / "t")!r})), workers=2)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment, check=False).returncode == -9
    assert (folder_of(corpus, tokenizer) / "train-00001.bin").exists()
    assert not (folder_of(corpus, tokenizer) / "train-00001.json").exists()
    assert_holds(tokenize(corpus, tokenizer), tokenizer, TEXTS[:50])


def test_of_two_at_once_one_works_and_the_other_waits(corpus: Corpus, tokenizer: Tokenizer) -> None:
    tokenizer.save(corpus.folder / "t")
    go = corpus.folder / "go"
    code = f"""
import time
from pathlib import Path
from fathom.data import shards
from fathom.tokenizer import load
from tests.test_shards import FILES, make_corpus, Corpus
import errno
import json
make = shards._make
def slow(*args):
    print("working", flush=True)
    while not Path({str(go)!r}).exists():
        time.sleep(0.01)
    make(*args)
shards._make = slow
folder = Path({str(corpus.folder)!r})
corpus = Corpus(folder.name, folder, json.loads((folder / "manifest").read_text()))
store = shards.tokenize(corpus, load(folder / "t"), workers=1)
print(store.n_tokens("train"), flush=True)
"""
    (corpus.folder / "manifest").write_text(json.dumps(corpus.manifest))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code]

    def begun() -> subprocess.Popen[str]:
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    worker = begun()
    assert worker.stdout is not None and worker.stdout.readline() == "working\n"
    waiter = begun()
    assert waiter.stderr is not None and "waiting for" in waiter.stderr.readline()
    go.touch()
    said = [process.communicate(timeout=60) for process in (worker, waiter)]
    assert [process.returncode for process in (worker, waiter)] == [0, 0], said
    total = f"{tokenize(corpus, tokenizer).n_tokens('train')}\n"
    assert [out for out, _ in said] == [total, total]


def test_a_corpus_without_documents_is_refused(fathom_home: Path, tokenizer: Tokenizer) -> None:
    nothing = make_corpus(fathom_home / "corpora" / "nothing", {"train-00000": []})
    with pytest.raises(FathomError, match="'nothing' has no documents to train on"):
        tokenize(nothing, tokenizer)


def test_a_split_without_documents_is_refused_when_asked_for(fathom_home: Path, tokenizer: Tokenizer) -> None:
    store = tokenize(make_corpus(fathom_home / "corpora" / "half", {"train-00000": [TEXTS]}), tokenizer)
    assert store.n_documents("validation") == 0
    with pytest.raises(FathomError, match="'half' has no validation documents"):
        store.lengths("validation")


def test_a_damaged_source_is_named(corpus: Corpus, tokenizer: Tokenizer) -> None:
    path = corpus.folder / "train-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(FathomError, match="train-00001.parquet cannot be read"):
        tokenize(corpus, tokenizer)
    path.unlink()
    with pytest.raises(FathomError, match="train-00001.parquet"):
        tokenize(corpus, tokenizer)


def test_a_full_disk_is_a_sentence_and_what_is_done_is_kept(
    corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = shards._save

    def full(path: Path, array: np.ndarray) -> None:
        if path.name.startswith("train-00002"):
            raise OSError(28, "No space left on device")
        save(path, array)

    monkeypatch.setattr(shards, "_save", full)
    with pytest.raises(FathomError, match="disk of .* is full"):
        tokenize(corpus, tokenizer)
    monkeypatch.setattr(shards, "_save", save)
    assert (folder_of(corpus, tokenizer) / "train-00001.json").exists()
    assert_holds(tokenize(corpus, tokenizer), tokenizer, TEXTS[:50])


def test_a_shard_that_ends_early_or_cannot_be_read_is_a_sentence(
    corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No signal that ends the process, as of a file that is mapped."""
    store = tokenize(corpus, tokenizer)
    expected = store.read("train", 0, 0, 2).tolist()
    shard = folder_of(corpus, tokenizer) / "train-00000.bin"
    os.truncate(shard, 1)
    with pytest.raises(FathomError, match=r"train-00000.bin ends too early; remove .*; its tokens are made again"):
        store.read("train", 0, 0, 2)

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(FathomError, match=r"train-00000.bin cannot be read \(Input/output error\)"):
        store.read("train", 0, 0, 2)
    monkeypatch.undo()
    shutil.rmtree(shard.parent)
    assert tokenize(corpus, tokenizer).read("train", 0, 0, 2).tolist() == expected


def test_progress_is_told(corpus: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("fathom.screen.PLAIN_LINE_EVERY_S", -1.0)
    tokenize(corpus, tokenizer)
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("Tokenizing small") and line.endswith("MB/s") for line in lines)
    assert "100 %" in lines[-1]


@pytest.mark.parametrize("packing", ["best-fit", "lossless"])
def test_batches_of_a_real_store_begin_and_go_on_as_the_text_does(
    corpus: Corpus, tokenizer: Tokenizer, packing: str
) -> None:
    store = tokenize(corpus, tokenizer)
    made = PretrainBatches(store, packing=packing, seq_len=24, rows_per_step=4, seed=0)  # type: ignore[arg-type]
    pieces = [tokenizer.decode(store.read("train", *s)) for s in made.plan.segments(0, 12).tolist()]
    assert all(piece.removeprefix("<|bos|>") in "\0".join(TEXTS) for piece in pieces)
    inputs, targets = (np.concatenate(parts) for parts in zip(*(made.batch(step) for step in range(3)), strict=True))
    assert tokenizer.decode(np.column_stack((inputs, targets[:, -1])).reshape(-1)) == "".join(pieces)


def test_real_text(shared: Path, fathom_home: Path) -> None:
    texts = pq.read_table(shared / "pretrain" / "shard_00009.parquet")["text"].to_pylist()[:60]
    corpus = write_corpus("real", texts[:50], texts[50:], "shared")
    learned = train(texts[:20], 700)
    assert_holds(tokenize(corpus, learned), learned, texts[:50])
