from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter, namedtuple
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom import cli
from fathom.data.corpus import Corpus, add_corpus, aside, builder, files, open_corpus, write_corpus
from fathom.data.corpus.aside import gigabytes, only_one
from fathom.data.corpus.builder import Options, build, threshold, validation_target
from fathom.data.corpus.commands import counted, printable
from fathom.data.corpus.duplicates import nothing_dropped
from fathom.data.corpus.readers import find_sources
from fathom.data.corpus.shuffle import key
from fathom.errors import FathomError


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def lines(path: Path, texts: list[str]) -> Path:
    return write(path, "".join(json.dumps({"text": text}) + "\n" for text in texts))


def numbered(path: Path, count: int, size: int = 30) -> Path:
    return lines(path, [f"document {i} ".ljust(size, "x") for i in range(count)])


def built(train: list[str], validation: list[str] | None = None, **options: object) -> dict[str, list[str]]:
    """What comes out of `build`, without a home around it."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "corpus"
        folder.mkdir()
        found = find_sources([lines(Path(place) / "train.jsonl", train)])
        held_out = None if validation is None else find_sources([lines(Path(place) / "held_out.jsonl", validation)])
        build(folder, found, held_out, Options(**options), source=["test"])  # type: ignore[arg-type]
        corpus = Corpus("test", folder, json.loads((folder / "corpus.json").read_text()))
        return {split: list(corpus.documents(split)) for split in ("train", "validation")} | {  # type: ignore[arg-type]
            "left out": [json.dumps(corpus.manifest["dropped"])]
        }


def is_text(document: str) -> bool:
    return bool(document) and not document.isspace()


documents = st.lists(st.text(max_size=20), min_size=1, max_size=40)
sizes = st.fixed_dictionaries({"shard_bytes": st.integers(1, 3000), "bucket_bytes": st.integers(1, 300)})


@settings(max_examples=40, deadline=None)
@given(documents, st.integers(0, 2**32), st.booleans(), sizes)
def test_every_document_comes_out_exactly_once(
    texts: list[str], seed: int, keep_order: bool, small: dict[str, int]
) -> None:
    texts = [*texts, "a first", "a second"]
    out = built(texts, seed=seed, keep_order=keep_order, **small)
    assert Counter(out["train"] + out["validation"]) == Counter(filter(is_text, texts))
    assert out["train"] and out["validation"]
    if keep_order:
        positions = iter(filter(is_text, texts))
        assert all(text in positions for text in out["train"]), "a subsequence of the input"


@settings(max_examples=25, deadline=None)
@given(documents, documents, st.booleans(), sizes)
def test_named_validation_documents_are_validation_and_no_others(
    train: list[str], held_out: list[str], keep_order: bool, small: dict[str, int]
) -> None:
    train, held_out = [*train, "to train on"], [*held_out, "to validate on"]
    out = built(train, held_out, keep_order=keep_order, **small)
    same = list if keep_order else Counter
    assert same(out["train"]) == same(filter(is_text, train))
    assert same(out["validation"]) == same(filter(is_text, held_out))


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(["a", "b", "c", "d", " "]), max_size=30), st.lists(st.sampled_from("abx"), max_size=5))
def test_dedup_keeps_the_first_of_equal_documents_validation_before_training(
    train: list[str], held_out: list[str]
) -> None:
    train, held_out = [*train, "only here"], [*held_out, "only there"]
    out = built(train, held_out, keep_order=True, dedup=True)
    assert out["validation"] == list(dict.fromkeys(held_out))
    assert out["train"] == [text for text in dict.fromkeys(filter(is_text, train)) if text not in held_out]
    left_out = json.loads(out["left out"][0])
    n_kept = len(out["train"]) + len(out["validation"])
    assert left_out["duplicate_documents"] == len(train) + len(held_out) - left_out["empty_documents"] - n_kept


def test_dedup_alone_leaves_no_document_in_both_parts() -> None:
    texts = [f"document {i % 50}" for i in range(500)]
    out = built(texts, dedup=True, validation_share=0.2)
    assert Counter(out["train"] + out["validation"]) == Counter(set(texts))
    assert out["validation"] and json.loads(out["left out"][0])["duplicate_documents"] == 450


def test_order_depends_on_the_seed_alone() -> None:
    texts = [f"document {i}" for i in range(300)]
    once = built(texts, seed=1)
    assert once == built(texts, seed=1, bucket_bytes=100)
    assert once["train"] != built(texts, seed=2)["train"]
    assert once["train"] != sorted(once["train"], key=lambda text: int(text.split()[1])), "it is shuffled"


def test_the_same_input_gives_the_same_digest(fathom_home: Path, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 500)
    first, again = add_corpus("first", [path]), add_corpus("again", [path])
    other = add_corpus("other", [path], options=Options(seed=1))
    assert first.digest == again.digest != other.digest


def test_files_and_rows_keep_their_order_when_asked(fathom_home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    pq.write_table(pa.table({"text": [f"c{i}" for i in range(100)]}), write(folder / "c.parquet", ""), row_group_size=7)
    lines(folder / "b/x.jsonl", [f"b{i}" for i in range(100)])
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"a0"))
    held_out = [lines(tmp_path / "v2.jsonl", ["v2", "v1"]), write(tmp_path / "v1.txt", "v0")]
    corpus = add_corpus("ordered", [folder], held_out, Options(keep_order=True))
    expected = ["a0"] + [f"b{i}" for i in range(100)] + [f"c{i}" for i in range(100)]
    assert list(corpus.documents("train")) == expected
    assert list(corpus.documents("validation")) == ["v2", "v1", "v0"]


def test_a_validation_file_inside_a_training_folder_is_taken_out(fathom_home: Path, tmp_path: Path) -> None:
    write(tmp_path / "in/a.txt", "train")
    held_out = write(tmp_path / "in/b.txt", "held out")
    corpus = add_corpus("c", [tmp_path / "in"], [held_out])
    assert list(corpus.documents("train")) == ["train"]
    assert list(corpus.documents("validation")) == ["held out"]


def test_real_shards_with_the_last_for_validation(fathom_home: Path, shared: Path) -> None:
    shards = [shared / "pretrain" / f"shard_{i:05d}.parquet" for i in (7, 8, 9)]
    corpus = add_corpus("books", shards, [shards[2]])
    assert (corpus.n_documents("train"), corpus.n_bytes("train")) == (947 + 896, 11848602 + 11714656)
    assert (corpus.n_documents("validation"), corpus.n_bytes("validation")) == (431, 7111452)
    read = [text for path in shards[:2] for text in pq.read_table(path)["text"].to_pylist()]
    assert Counter(corpus.documents("train")) == Counter(read)
    for path in corpus.files("train"):
        footer = pq.read_metadata(path)
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        assert max(group.num_rows for group in groups) <= 1024
        assert max(group.total_byte_size for group in groups) < 8_100_000
        assert groups[0].column(0).compression == "ZSTD"


def test_output_is_divided_into_shards_of_the_asked_size(fathom_home: Path, tmp_path: Path) -> None:
    texts = [os.urandom(500).hex() for _ in range(6000)]
    corpus = add_corpus("c", [lines(tmp_path / "a.jsonl", texts)], options=Options(shard_bytes=1_000_000))
    files = corpus.described_files("train")
    assert [file.name for file in files] == [f"train-{i:05d}.parquet" for i in range(len(files))]
    assert len(files) >= 3
    assert all(1_000_000 <= file.file_bytes < 1_700_000 for file in files[:-1])
    assert sum(file.documents for file in files) == corpus.n_documents("train")


def test_counts_and_checksums_are_those_of_the_files(fathom_home: Path, tmp_path: Path) -> None:
    corpus = add_corpus("c", [lines(tmp_path / "a.jsonl", ["äöü", "🙂", "plain"])])
    texts = [*corpus.documents("train"), *corpus.documents("validation")]
    assert corpus.n_documents("train") + corpus.n_documents("validation") == 3
    assert corpus.n_characters("train") + corpus.n_characters("validation") == sum(map(len, texts)) == 9
    assert corpus.n_bytes("train") + corpus.n_bytes("validation") == sum(len(text.encode()) for text in texts) == 15
    for split in ("train", "validation"):
        for file in corpus.described_files(split):  # type: ignore[arg-type]
            content = (corpus.folder / file.name).read_bytes()
            assert file.sha256 == hashlib.sha256(content).hexdigest() and file.file_bytes == len(content)


def test_the_default_validation_part_has_sensible_bounds() -> None:
    assert validation_target(1_000_000, None) == 100_000
    assert validation_target(10_000_000, None) == 256_000
    assert validation_target(100_000_000, None) == 1_000_000
    assert validation_target(100_000_000_000, None) == 20_000_000
    assert validation_target(1000, 0.25) == 250
    assert validation_target(100_000_000_000, 0.25) == 25_000_000_000


def test_about_the_share_asked_for_is_held_out() -> None:
    out = built([f"{i:050d}" for i in range(2000)], validation_share=0.3)
    assert 500 < len(out["validation"]) < 700


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000), st.floats(0, 1), st.sets(st.integers(0, 59)))
def test_a_threshold_leaves_something_on_both_sides(n: int, seed: int, share: float, repeated: set[int]) -> None:
    repeated = {index for index in repeated if index < n - 2}
    dropped = nothing_dropped(n)
    for index in repeated:
        dropped.bits[index >> 3] |= 1 << (index & 7)
    limit = threshold(seed, n, dropped, share)
    sides = [key(seed, index) < limit for index in range(n) if index not in repeated]
    assert any(sides) and not all(sides)


def test_a_single_document_is_divided(fathom_home: Path, tmp_path: Path) -> None:
    text = "".join(f"Paragraph {i}, quite short.\n\n" for i in range(1000))
    corpus = add_corpus("c", [write(tmp_path / "input.txt", text)])
    [train], [held_out] = list(corpus.documents("train")), list(corpus.documents("validation"))
    assert train + held_out == text
    assert train.endswith("short.\n\n") and 0.08 < len(held_out) / len(text) < 0.12
    with pytest.raises(FathomError, match="one document of 1 bytes is too little to divide"):
        add_corpus("d", [write(tmp_path / "x.txt", "x")])


@pytest.mark.parametrize(
    ("train", "held_out", "options", "problem"),
    [
        ([" ", ""], None, {}, "there is no text in these files"),
        (["a"], [" "], {}, "there is no text in the validation files"),
        ([" "], ["a"], {}, "nothing is left to train on beside the validation files"),
        (["a", "a", "b"], ["b", "a"], {"dedup": True}, "every document to train on is in the validation files too"),
        (["a"], None, {"validation_share": 1.0}, "a validation share of 1.0 is no share"),
        (["a"], None, {"validation_share": -0.1}, "a validation share of -0.1 is no share"),
        (["a"], None, {"shard_bytes": 0}, "give --shard-mb a number above 0"),
    ],
)
def test_an_empty_part_is_refused(
    train: list[str], held_out: list[str] | None, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(FathomError, match=problem):
        built(train, held_out, **options)


def test_paths_that_leave_nothing_are_refused(fathom_home: Path, tmp_path: Path) -> None:
    a = write(tmp_path / "in/a.txt", "text")
    write(tmp_path / "odd/x.pdf", "")
    with pytest.raises(FathomError, match=r"nothing is left to train on in .*in beside the validation files"):
        add_corpus("c", [tmp_path / "in"], [a])
    with pytest.raises(FathomError, match=r"no file to read in .*odd, only 1 \.pdf; known are"):
        add_corpus("c", [tmp_path / "odd"])
    with pytest.raises(FathomError, match="no file to read was found for validation"):
        add_corpus("c", [a], [tmp_path / "odd"])
    with pytest.raises(FathomError, match="both given"):
        add_corpus("c", [a], [a], Options(validation_share=0.1))
    with pytest.raises(FathomError, match="cannot be the name of a corpus"):
        add_corpus("../c", [a])


def test_what_cannot_be_read_stops_or_is_counted(fathom_home: Path, tmp_path: Path) -> None:
    lines(tmp_path / "in/a.jsonl", ["one", "two", "", "three"])
    (tmp_path / "in/b.txt").write_bytes(b"caf\xe9")
    write(tmp_path / "in/c.jsonl", '{"text": "four"}\n{"text"\n')
    write(tmp_path / "in/d.pdf", "")
    with pytest.raises(FathomError, match=r"b\.txt is not UTF-8 .*--skip-broken"):
        add_corpus("c", [tmp_path / "in"])
    assert not list((fathom_home / "corpora").glob("*c*ing")) and not (fathom_home / "corpora/c").exists()
    corpus = add_corpus("c", [tmp_path / "in"], options=Options(skip_broken=True))
    assert sorted([*corpus.documents("train"), *corpus.documents("validation")]) == ["four", "one", "three", "two"]
    left_out = corpus.manifest["dropped"]
    assert (left_out["broken"], left_out["empty_documents"], left_out["files_of_unknown_type"]) == (2, 1, {".pdf": 1})
    assert len(left_out["broken_examples"]) == 2


def test_an_existing_corpus_is_not_overwritten(fathom_home: Path, tmp_path: Path) -> None:
    before = add_corpus("c", [numbered(tmp_path / "a.jsonl", 10)])
    with pytest.raises(FathomError, match="corpus 'c' exists already"):
        add_corpus("c", [numbered(tmp_path / "b.jsonl", 20)])
    assert open_corpus("c").digest == before.digest
    with pytest.raises(FathomError, match="not UTF-8"):
        (tmp_path / "bad.txt").write_bytes(b"\xff")
        add_corpus("c", [tmp_path / "bad.txt"], replace=True)
    assert open_corpus("c").digest == before.digest, "a replacement that fails replaces nothing"
    after = add_corpus("c", [numbered(tmp_path / "b.jsonl", 20)], replace=True)
    assert open_corpus("c").digest == after.digest != before.digest
    assert sorted(path.name for path in (fathom_home / "corpora").iterdir()) == [".c.lock", "c"]


def test_what_a_crash_left_is_cleared_away(fathom_home: Path, tmp_path: Path) -> None:
    write(fathom_home / "corpora/.c.making/train-00000.parquet", "half")
    assert add_corpus("c", [numbered(tmp_path / "a.jsonl", 10)]).n_documents("train") > 0
    assert not (fathom_home / "corpora/.c.making").exists()
    os.replace(fathom_home / "corpora/c", fathom_home / "corpora/.c.replaced")
    with pytest.raises(FathomError, match="corpus 'c' exists already"):
        add_corpus("c", [tmp_path / "a.jsonl"])
    assert open_corpus("c").n_documents("train") > 0, (
        "a replacement that was cut off in between brings the old one back"
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "killed"])
def test_an_interrupted_build_leaves_nothing_that_looks_whole(fathom_home: Path, tmp_path: Path, how: int) -> None:
    fifo = tmp_path / "slow.jsonl"
    os.mkfifo(fifo)
    command = [sys.executable, "-m", "fathom", "data", "add", "c", str(fifo)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with fifo.open("w") as pipe:
        pipe.write('{"text": "one"}\n' * 100_000)
        pipe.flush()
        process.send_signal(how)
        _, said = process.communicate(timeout=10)
    assert "Traceback" not in said
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert not (fathom_home / "corpora/c").exists()
    if how == signal.SIGINT:
        assert not (fathom_home / "corpora/.c.making").exists()
    assert add_corpus("c", [numbered(tmp_path / "a.jsonl", 10)]).name == "c", "the name is free again"


def test_a_full_disk_is_said_before_and_during(
    fathom_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = numbered(tmp_path / "a.jsonl", 1000)
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(aside.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10_000))
        with pytest.raises(FathomError, match=r"a corpus of about .* of text needs about .* and .* has 10\.0 KB free"):
            add_corpus("c", [path])

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(builder.Spool, "add", full)
    with pytest.raises(FathomError, match="is full; make room, then run the command again"):
        add_corpus("c", [path])
    assert sorted(item.name for item in (fathom_home / "corpora").iterdir()) == [".c.lock"]


def test_a_home_that_is_no_folder_is_said(fathom_home: Path, tmp_path: Path) -> None:
    path = numbered(tmp_path / "a.jsonl", 10)
    write(fathom_home, "a file")
    with pytest.raises(FathomError, match=r"cannot be written .* set FATHOM_HOME to a folder of yours"):
        add_corpus("c", [path])


def test_builders_of_one_name_wait_for_each_other(fathom_home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    inside: list[str] = []
    first_is_in, let_go = threading.Event(), threading.Event()

    def first() -> None:
        with only_one("c", "making"):
            inside.append("first")
            first_is_in.set()
            assert let_go.wait(10)

    holder = threading.Thread(target=first)
    holder.start()
    assert first_is_in.wait(10)
    threading.Timer(1.0, let_go.set).start()
    with only_one("c", "fetching", poll_s=0.01) as waited:
        inside.append("second")
    holder.join()
    assert inside == ["first", "second"] and waited
    assert f"Corpus c: waiting for process {os.getpid()} on" in capfd.readouterr().err


def test_documents_at_hand_become_a_corpus(fathom_home: Path) -> None:
    corpus = write_corpus("primer", (f"t{i}" for i in range(3000)), ["v1", "", "v0"], "made here")
    assert list(corpus.documents("train")) == [f"t{i}" for i in range(3000)]
    assert list(corpus.documents("validation")) == ["v1", "v0"]
    assert corpus.source == ["made here"]
    (corpus.folder / "tokens").mkdir()
    again = write_corpus("primer", (f"t{i}" for i in range(3000)), ["v1", "v0"], "made here")
    assert again.digest == corpus.digest and (corpus.folder / "tokens").exists(), "the same is left as it is"
    with pytest.raises(FathomError, match="corpus 'primer' is there with other documents .* rm -r "):
        write_corpus("primer", ["other"], ["v"], "made here")
    with pytest.raises(FathomError, match="would have no validation documents"):
        write_corpus("other", ["a"], [" "], "made here")
    assert list(open_corpus("primer").documents("validation")) == ["v1", "v0"]


def test_the_same_documents_in_other_files_are_the_same_corpus(
    fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of pyarrow, whose version every file names."""
    train, validation = [f"t{i}" for i in range(3000)], ["v0", "v1"]
    corpus = write_corpus("primer", train, validation, "made here")
    monkeypatch.setattr(files, "GROUP_DOCUMENTS", 100)
    assert write_corpus("other", train, validation, "made here").digest != corpus.digest
    assert write_corpus("primer", train, validation, "made here").manifest == corpus.manifest
    for others in ((train[::-1], validation), (train[:-1], validation), (train, validation[::-1])):
        with pytest.raises(FathomError, match="corpus 'primer' is there with other documents"):
            write_corpus("primer", *others, "made here")
    assert open_corpus("primer").manifest == corpus.manifest


def test_any_document_can_be_read_alone(fathom_home: Path) -> None:
    texts = [f"document {i} " + "x" * (i % 7000) for i in range(5000)]
    corpus = write_corpus("c", texts, ["v"], "test")
    assert pq.read_metadata(corpus.files("train")[0]).num_row_groups > 3
    for index in (0, 1, 1023, 1024, 2500, 4999):
        assert corpus.document("train", index) == texts[index]
    for index in (5000, -1):
        with pytest.raises(IndexError):
            corpus.document("train", index)
    with pytest.raises(ValueError, match="not 'test'"):
        corpus.files("test")  # type: ignore[arg-type]


def test_a_corpus_that_is_not_whole_is_refused(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="there is no corpus 'c', there are none yet; make it with"):
        open_corpus("c")
    corpus = write_corpus("books", ["a"], ["b"], "test")
    with pytest.raises(FathomError, match="there is no corpus 'boks'; did you mean 'books'?"):
        open_corpus("boks")
    with pytest.raises(FathomError, match="there is no corpus 'zzz', those here are books"):
        open_corpus("zzz")
    manifest = corpus.folder / "corpus.json"
    good = manifest.read_text()
    for bad in ("", "[]", "{}", good[:100]):
        manifest.write_text(bad)
        with pytest.raises(FathomError, match=r"corpus\.json is missing or damaged; remove"):
            open_corpus("books")
    manifest.write_text(good.replace(corpus.digest, "0" * 64))
    with pytest.raises(FathomError, match="was changed by hand"):
        open_corpus("books")
    manifest.write_text(good)
    corpus.files("train")[0].unlink()
    with pytest.raises(FathomError, match=r"train-00000\.parquet is missing or was changed"):
        open_corpus("books")


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(list(argv))
    return int(stop.value.code or 0)


def test_the_commands_together(fathom_home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = lines(tmp_path / "a.jsonl", ["a1", "a2"]), write(tmp_path / "b.txt", "b1")
    c, d = write(tmp_path / "c.txt", "c1"), write(tmp_path / "d.txt", "d1")
    assert run("data", "add", "n", str(a), str(b), "--validation", str(c), str(d), "--keep-order", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["corpus"] == "n" and result["source"] == [str(a), str(b)]
    assert (result["train"]["documents"], result["validation"]["documents"]) == (3, 2)
    assert run("data", "show", "n", "--split", "validation") == 0
    assert capsys.readouterr().out == "c1\n\nd1\n\n"
    assert run("data", "show", "n", "--count", "1", "--characters", "1", "--json") == 0
    [shown] = json.loads(capsys.readouterr().out)["documents"]
    assert len(shown["text"]) == 1 and shown["characters"] == 2
    write_corpus("damaged", ["x"], ["y"], "test").files("train")[0].unlink()
    (fathom_home / "corpora" / ".far.fetching").mkdir()
    assert run("data", "list", "--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [corpus["corpus"] for corpus in listed["corpora"]] == ["n"]
    assert [corpus["corpus"] for corpus in listed["damaged"]] == ["damaged"] and listed["unfinished"] == ["far"]
    assert run("data", "list") == 0
    assert capsys.readouterr().out == "", "for a person it is on standard error"
    assert run("data", "add", "n", str(a)) == 2
    assert run("data", "add", "m") == 2
    assert run("data", "show", "n", "--count", "0") == 2


def test_control_characters_of_strangers_do_not_reach_the_terminal() -> None:
    assert printable("a\x1b[31mred\x07\n\tb\x9b") == "a␛[31mred␇\n\tb\ufffd"


def test_numbers_for_people() -> None:
    assert [gigabytes(n) for n in (0, 999, 1000, 38_100_000, 999_960_000, 2.4e9, 3e12)] == [
        "0 bytes",
        "999 bytes",
        "1.0 KB",
        "38.1 MB",
        "1.0 GB",
        "2.4 GB",
        "3000.0 GB",
    ]
    assert counted(1, "file of unknown type") == "1 file of unknown type"
    assert counted(2000, "file of unknown type") == "2,000 files of unknown type"
    assert counted(2, "broken line or file") == "2 broken lines or files"


MEMORY_PROGRAM = """
import resource, sys
from pathlib import Path
import pyarrow.parquet, fathom.data.corpus
from fathom.data.corpus import add_corpus, Options
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
add_corpus("big", [Path(sys.argv[1])], options=Options(bucket_bytes=4_000_000, dedup=True))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_stays_bounded(fathom_home: Path, tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    block = "".join(os.urandom(50).hex() + " words that can be compressed\n" for _ in range(8000)) + "\n"
    with path.open("w") as file:
        for _ in range(200):
            file.write(block)
    assert path.stat().st_size > 200_000_000
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, str(path)], capture_output=True, text=True, timeout=60, check=True
    )
    grown = int(done.stdout)
    assert grown < 200_000_000, f"memory grew by {grown / 1e6:.0f} MB"


def test_a_corpus_of_the_hub_that_is_not_here_is_to_be_fetched(fathom_home: Path) -> None:
    with pytest.raises(FathomError, match=r"fetch it with `fathom data get climbmix`"):
        open_corpus("climbmix")
    with pytest.raises(FathomError, match=r"make it with `fathom data add mine PATH`"):
        open_corpus("mine")
