from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.data.corpus import readers
from fathom.data.corpus.readers import break_at, cut, find_sources, read_documents
from fathom.errors import FathomError


def documents(path: Path, column: str = "text", left_out: list[str] | None = None) -> list[str]:
    [source] = find_sources([path]).sources
    return list(read_documents(source, column, on_broken=None if left_out is None else left_out.append))


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def zstd(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as packed:
        packed.write(content)
    return sink.getvalue().to_pybytes()


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", "One.\n\nTwo, äöü 🙂.\n")) == ["One.\n\nTwo, äöü 🙂.\n"]
    assert documents(write(tmp_path / "a.md", "# Head\n")) == ["# Head\n"]
    assert documents(write(tmp_path / "empty.txt", "")) == [""]


def test_byte_order_mark_and_line_ends_are_made_plain(tmp_path: Path) -> None:
    assert documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\rthree\n")) == ["one\ntwo\nthree\n"]
    assert documents(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a\\r\\nb"}\r\n')) == ["a\r\nb"]


@pytest.mark.parametrize("pack", [gzip.compress, zstd], ids=["gz", "zst"])
def test_packed_files_read_like_plain_ones(tmp_path: Path, pack: object) -> None:
    ending = "gz" if pack is gzip.compress else "zst"
    text = "".join(f"line {i}\n" for i in range(100_000))
    lines = "".join(json.dumps({"text": f"document {i}"}) + "\n" for i in range(1000)).encode()
    assert documents(write(tmp_path / f"a.txt.{ending}", pack(text.encode()))) == [text]  # type: ignore[operator]
    packed = write(tmp_path / f"a.jsonl.{ending}", pack(lines[:5000]) + pack(lines[5000:]))  # type: ignore[operator]
    assert documents(packed) == [f"document {i}" for i in range(1000)], "several members in one file are one stream"
    whole = pack(text.encode())  # type: ignore[operator]
    with pytest.raises(FathomError, match=rf"b\.txt\.{ending} (ends too early|cannot be read)"):
        documents(write(tmp_path / f"b.txt.{ending}", whole[: len(whole) // 2]))
    with pytest.raises(FathomError, match=rf"c\.txt\.{ending} cannot be read"):
        documents(write(tmp_path / f"c.txt.{ending}", b"not packed at all"))


def test_lines_of_json(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"text": "one", "id": 1}\n\n  \n{"text": null}\n{"id": 2, "text": "two"}')
    assert documents(path) == ["one", "", "two"]
    assert documents(write(tmp_path / "b.ndjson", '{"body": "x"}\n'), "body") == ["x"]
    half = write(tmp_path / "c.jsonl", '{"text": "\\ud83d\\ude42 and \\ud83d alone"}\n')
    assert documents(half) == ["🙂 and � alone"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": ', r"line 3 of .*a\.jsonl is not JSON \(Expecting value, column 9\); mend that line"),
        (b'["text"]', r"line 3 of .*a\.jsonl is not a JSON object"),
        (b'{"body": 1, "x": 2}', r"line 3 of .* has no field 'text', only 'body', 'x'; give the name .* --column"),
        (b'{"messages": []}', r"line 3 of .* has no field 'text'.*fathom sft --data"),
        (b'{"text": 5}', r"field 'text' in line 3 of .* is not a string"),
        (b'{"text": "\xff"}', r"line 3 of .* is not UTF-8 \(at its byte 10\)"),
        (b"[" * 200_000, r"line 3 of .* is not JSON"),
        (b'{"text": ' + b"9" * 10_000 + b"}", r"line 3 of .* is not JSON"),
    ],
    ids=["json", "array", "field", "messages", "number", "utf8", "deep", "digits"],
)
def test_a_broken_line_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}\n')
    with pytest.raises(FathomError, match=problem + ".*--skip-broken"):
        documents(path)
    left_out: list[str] = []
    assert documents(path, left_out=left_out) == ["one", "two"]
    assert len(left_out) == 1 and "line 3 of" in left_out[0]


def test_a_line_without_end_is_not_held_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_LINE_BYTES", 1000)
    long = b'{"text": "' + b"x" * 3_000_000 + b'"}\n'
    path = write(tmp_path / "a.jsonl", b'{"text": "one"}\n' + long + b'{"text": "two"}\n' + long[:2000])
    left_out: list[str] = []
    assert documents(path, left_out=left_out) == ["one", "two"]
    assert [sentence.split(" of ")[0] for sentence in left_out] == ["line 2", "line 4"]


@pytest.mark.parametrize("place", [0, 1, 5000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_a_bad_byte_is_named_by_its_place_in_the_file(tmp_path: Path, place: int) -> None:
    for mark in (b"", b"\xef\xbb\xbf"):
        good = mark + b"x" * (place - len(mark)) if place >= len(mark) else b"x" * place
        path = write(tmp_path / "a.txt", good + b"\xe9" + b"y" * 100)
        with pytest.raises(FathomError, match=rf"a\.txt is not UTF-8 \(0xe9 at byte {place:,}\); convert it"):
            documents(path)


def test_a_character_cut_off_at_the_end_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"x" * 1_048_575 + "🙂".encode()[:3])
    with pytest.raises(FathomError, match=r"0xf0 at byte 1,048,575"):
        documents(path)
    assert documents(write(tmp_path / "b.txt", b"x" * 1_048_574 + "🙂".encode()))[0].endswith("x🙂")


def test_utf16_is_recognised(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match=r"a\.txt is UTF-16, not UTF-8; convert it \(iconv -f UTF-16 -t UTF-8\)"):
        documents(write(tmp_path / "a.txt", "hello".encode("utf-16")))


@pytest.mark.parametrize(
    "kind", [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())], ids=str
)
def test_parquet_of_any_kind_of_string(tmp_path: Path, kind: pa.DataType) -> None:
    texts = ["one", None, "two", "one"]
    column = pa.array(texts).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(texts, kind)
    pq.write_table(pa.table({"id": [1, 2, 3, 4], "text": column}), tmp_path / "a.parquet", row_group_size=3)
    assert documents(tmp_path / "a.parquet") == ["one", "", "two", "one"]


def test_parquet_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "a.parquet"
    pq.write_table(pa.table({"body": ["x"], "n": [1], "bytes": [b"x"]}), whole)
    with pytest.raises(FathomError, match=r"a\.parquet has no column 'text', only 'body', 'n', 'bytes'.*--column"):
        documents(whole)
    with pytest.raises(FathomError, match="column 'n' of .* holds int64, not text"):
        documents(whole, "n")
    half = write(tmp_path / "b.parquet", whole.read_bytes()[:200])
    with pytest.raises(FathomError, match=r"b\.parquet is not whole Parquet"):
        documents(half)
    bad = tmp_path / "c.parquet"
    pq.write_table(pa.table({"text": pa.array([b"\xff"], pa.binary()).view(pa.string())}), bad)
    with pytest.raises(FathomError, match=r"c\.parquet holds text that is not UTF-8"):
        documents(bad)
    left_out: list[str] = []
    assert documents(half, left_out=left_out) == [] and len(left_out) == 1


def test_rows_are_fetched_few_at_a_time_when_they_are_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PARQUET_BATCH_BYTES", 10_000)
    texts = [os.urandom(1000).hex() for _ in range(50)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    with pq.ParquetFile(tmp_path / "a.parquet") as file:
        batches = list(readers.parquet_batches(file, "text"))
    assert [text for batch in batches for text in batch] == texts
    assert len(batches) >= 10 and max(map(len, batches)) <= 6


def test_folders_are_searched_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b/2.txt", "b/10.txt", "a/z.md", "c.txt", ".hidden/x.txt", "b/.x.txt", "b/x.pdf", "x.HTML", "README"):
        write(tmp_path / name, "x")
    found = find_sources([tmp_path])
    assert [os.path.relpath(source.path, tmp_path) for source in found.sources] == [
        "a/z.md",
        "b/10.txt",
        "b/2.txt",
        "c.txt",
    ]
    assert found.skipped == {".pdf": 1, ".html": 1, "no ending": 1}
    assert found.size == 4


def test_paths_keep_the_order_in_which_they_were_named(tmp_path: Path) -> None:
    second, first = write(tmp_path / "a.txt", "x"), write(tmp_path / "b.txt", "x")
    assert [source.path for source in find_sources([first, second]).sources] == [str(first), str(second)]


def test_no_file_is_taken_twice(tmp_path: Path) -> None:
    a, b = write(tmp_path / "in/a.txt", "x"), write(tmp_path / "in/b.txt", "x")
    assert [source.path for source in find_sources([b, tmp_path / "in"]).sources] == [str(b), str(a)]
    taken: set[tuple[int, int]] = set()
    find_sources([b], taken)
    (tmp_path / "in/also_b.txt").symlink_to(b)
    assert [source.path for source in find_sources([tmp_path / "in"], taken).sources] == [str(a)]


def test_links_that_lead_in_circles_or_nowhere_end(tmp_path: Path) -> None:
    write(tmp_path / "in/deep/a.txt", "x")
    (tmp_path / "in/deep/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "in/elsewhere").symlink_to(write(tmp_path / "out/b.txt", "x").parent)
    found = find_sources([tmp_path / "in"])
    assert [os.path.basename(source.path) for source in found.sources] == ["a.txt", "b.txt"]
    assert found.skipped == {"broken link": 1}


def test_named_files_must_be_there_and_of_a_known_type(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match=r"nothing\.txt cannot be read \(No such file"):
        find_sources([tmp_path / "nothing.txt"])
    with pytest.raises(FathomError, match=r"a\.pdf is of a type that is not known here; known are \.txt"):
        find_sources([write(tmp_path / "a.pdf", "x")])
    with pytest.raises(FathomError, match="rename it to .jsonl"):
        find_sources([write(tmp_path / "a.json", "{}")])
    with pytest.raises(FathomError, match="type that is not known"):
        find_sources([write(tmp_path / "a.parquet.gz", "x")])


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "x")
    path.chmod(0)
    with pytest.raises(FathomError, match=r"a\.txt cannot be read \(Permission denied\)"):
        documents(path)


def test_progress_counts_every_byte_of_the_file(tmp_path: Path) -> None:
    texts = [os.urandom(500).hex() for _ in range(3000)]
    plain = "\n".join(json.dumps({"text": text}) for text in texts).encode()
    paths = [write(tmp_path / "a.jsonl", plain), write(tmp_path / "b.jsonl.gz", gzip.compress(plain, 1))]
    paths.append(write(tmp_path / "c.jsonl.zst", zstd(plain)))
    pq.write_table(pa.table({"text": texts}), tmp_path / "d.parquet", row_group_size=500)
    for path in [*paths, tmp_path / "d.parquet"]:
        steps: list[int] = []
        [source] = find_sources([path]).sources
        assert list(read_documents(source, advance=steps.append)) == texts
        assert sum(steps) == path.stat().st_size
        assert len(steps) > 2


@given(
    st.lists(st.text(st.sampled_from("ab \n"), max_size=30), max_size=20),
    st.integers(min_value=1, max_value=40),
)
def test_cutting_loses_nothing_and_keeps_to_the_limit(chunks: list[str], limit: int) -> None:
    pieces = list(cut(chunks, limit))
    assert "".join(pieces) == "".join(chunks)
    assert pieces == [""] or all(0 < len(piece) <= limit for piece in pieces)


def test_cuts_are_made_after_paragraphs_then_lines_then_words() -> None:
    assert "aaaaaaaa\n\nbb\nb b"[: break_at("aaaaaaaa\n\nbb\nb b", 14)] == "aaaaaaaa\n\n"
    assert "aaaaaaaa\nbb b"[: break_at("aaaaaaaa\nbb b", 12)] == "aaaaaaaa\n"
    assert "aaaaaaaa bbb"[: break_at("aaaaaaaa bbb", 11)] == "aaaaaaaa "
    assert break_at("a" * 30, 11) == 11


def test_a_huge_text_file_becomes_documents_of_bounded_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(readers, "MAX_DOCUMENT", 4000)
    monkeypatch.setattr(readers.cut, "__defaults__", (4000,))
    text = "".join(f"Paragraph {i} with some words in it.\n\n" for i in range(1000))
    pieces = documents(write(tmp_path / "a.txt", text))
    assert "".join(pieces) == text
    assert len(pieces) > 9 and all(len(piece) <= 4000 and piece.endswith(".\n\n") for piece in pieces)
    long = json.dumps({"text": text})
    assert documents(write(tmp_path / "a.jsonl", long)) == pieces
