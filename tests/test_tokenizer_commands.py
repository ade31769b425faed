from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import tiktoken.registry

from fathom.cli import main
from fathom.data.corpus import write_corpus
from fathom.errors import FathomError
from fathom.tokenizer import load, train
from fathom.tokenizer_commands import PUBLISHED, cached_encoding, parse_ids
from fathom.tokenizer_samples import SAMPLES

TEXTS = [f"Day {i}: it's {'very ' * (i % 4)}cold, and the dogs don't mind.\n" for i in range(40)]


@pytest.fixture(autouse=True)
def no_published_vocabularies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


@pytest.fixture
def small(fathom_home: Path) -> Path:
    """A tokenizer named small."""
    folder = fathom_home / "tokenizers" / "small"
    train(TEXTS, 300).save(folder)
    return folder


class Standard(io.TextIOWrapper):
    """Standard input that a test fills."""

    def __init__(self, data: bytes, terminal: bool = False) -> None:
        super().__init__(io.BytesIO(data))
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def fathom(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["tokenizer", *arguments])
    assert stop.value.code == 0


def refused(capsys: pytest.CaptureFixture[Any], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["tokenizer", *arguments])
    assert stop.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out and "Traceback" not in captured.err
    return str(captured.err)


def test_train_writes_a_tokenizer_and_tells_of_it(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus("days", TEXTS, ["kept aside"], "here")
    fathom("train", "--corpus", "days", "--vocab", "280", "--name", "t", "--json")
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    learned = load("t")
    assert told["vocab_size"] == learned.vocab_size == 280 and told["merges"] == 15
    assert told["digest"] == learned.digest == train(TEXTS, 280).digest
    assert (told["documents"], told["characters"]) == (40, sum(map(len, TEXTS)))
    assert "Tokenizer t: 280 tokens, learned from 40 documents" in captured.err
    assert "Not read" not in captured.err
    written = json.loads((fathom_home / "tokenizers" / "t" / "tokenizer.json").read_text())
    assert written["trained_on"]["corpus_digest"] == corpus.digest


def test_train_reads_no_more_than_it_is_told_to(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus("days", TEXTS, ["kept aside"], "here")
    fathom(
        "train", "--corpus", "days", "--vocab", "270", "--name", "t", "--doc-cap", "5", "--max-chars", "1e1", "--json"
    )
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["documents"], told["characters"]) == (3, 15)
    said = " ".join(captured.err.split())
    assert "Not read: what 3 documents have beyond their first 5 characters (--doc-cap), and 37 documents" in said
    assert "37 documents after the first 10 characters (--max-chars)." in said


def test_train_never_overwrites(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (small / "tokenizer.json").read_bytes()
    assert "'small' already" in refused(capsys, "train", "--corpus", "days", "--name", "small")
    assert (small / "tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--corpus", "nowhere", "--name", "t"], "no corpus 'nowhere'"),
        (["--corpus", "days", "--name", "t", "--vocab", "264"], "at least 265"),
        (["--corpus", "days", "--name", "t", "--vocab", "-5"], "at least 265"),
        (["--corpus", "days", "--name", "t", "--doc-cap", "0"], "--doc-cap is 0"),
        (["--corpus", "days", "--name", "t", "--max-chars", "nan"], "--max-chars is nan"),
        (["--corpus", "days", "--name", "../t"], "cannot be the name of a tokenizer"),
    ],
)
def test_train_refuses(
    fathom_home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    write_corpus("days", TEXTS, ["kept aside"], "here")
    assert problem in refused(capsys, "train", *arguments).replace("\n", " ")
    assert not (fathom_home / "tokenizers").exists()


@pytest.mark.parametrize("text", [b"", b"two\r\n lines \n\n", b" \xff<|bos|>\x00", "naïve 🎉".encode()])
def test_encode_and_decode_are_inverse_to_the_last_byte(
    small: Path, text: bytes, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    for as_json in ([], ["--json"]):
        monkeypatch.setattr("sys.stdin", Standard(text))
        fathom("encode", "small", *as_json)
        printed = capfdbinary.readouterr().out
        if as_json:
            assert json.loads(printed) == {"ids": load("small").encode_bytes(text)}
        assert load("small").bos_id not in parse_ids(printed)
        monkeypatch.setattr("sys.stdin", Standard(printed))
        fathom("decode", str(small))
        assert capfdbinary.readouterr().out == text


def test_decode_as_json(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", Standard(b"72, 255"))
    fathom("decode", "small", "--json")
    assert json.loads(capsys.readouterr().out) == {"text": "H�"}


def test_a_person_at_the_keyboard_is_told_how_to_end(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Standard(b"H", terminal=True))
    fathom("encode", "small")
    captured = capsys.readouterr()
    assert captured.out == "72\n" and "Ctrl-D" in captured.err


@pytest.mark.parametrize(
    "text", [b"1 2 3", b"1,2, 3\n", b"[1, 2, 3]", b'{"ids": [1, 2, 3]}\n', b"\n1\n2\n3\n"], ids=repr
)
def test_ids_are_read_in_every_form(text: bytes) -> None:
    assert parse_ids(text) == [1, 2, 3]


@pytest.mark.parametrize(
    "text",
    [b"one", b"1.5", b'{"ids": "12"}', b'{"ids": [true]}', b'{"ids": [1.0]}', b"{}", b'{"ids": [', b"\xff", b"{1}"],
    ids=repr,
)
def test_other_things_than_ids_are_refused(text: bytes) -> None:
    with pytest.raises(FathomError, match="something else than token ids"):
        parse_ids(text)


def test_ids_that_do_not_exist_are_refused(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", Standard(b"72 300"))
    assert "no token 300" in refused(capsys, "decode", "small")


def test_eval_measures_every_kind_of_text(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus("days", TEXTS, TEXTS[:5], "here")
    fathom("eval", "small", "--corpus", "days", "--json")
    told = json.loads(capsys.readouterr().out)
    ours, tokenizer = told["bytes_per_token"]["small"], load("small")
    for kind, text in SAMPLES.items():
        assert ours[kind] == pytest.approx(len(text.encode()) / len(tokenizer.encode(text)), abs=1e-4)
    n_tokens = sum(len(tokenizer.encode(text)) for text in TEXTS[:5])
    assert ours["days (validation)"] == pytest.approx(sum(map(len, TEXTS[:5])) / n_tokens, abs=1e-4)
    assert ours["all kinds"] == pytest.approx(sum(ours[kind] for kind in SAMPLES) / len(SAMPLES), abs=1e-3)
    assert told["not_here"] == list(PUBLISHED) and told["vocab_size"] == {"small": 300}


def test_eval_shows_a_table_and_what_was_not_at_hand(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fathom("eval", "small")
    captured = capsys.readouterr()
    assert not captured.out and all(kind in captured.err for kind in SAMPLES)
    assert "Not compared with gpt2, cl100k_base, o200k_base" in captured.err


def test_eval_stands_beside_a_published_vocabulary_that_is_here(
    small: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    every_byte = {bytes([byte]): byte for byte in range(256)}
    stand_in = tiktoken.Encoding("gpt2", pat_str=r"\S+|\s+", mergeable_ranks=every_byte, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", stand_in)
    fathom("eval", "small", "--json")
    told = json.loads(capsys.readouterr().out)
    assert set(told["bytes_per_token"]["gpt2"].values()) == {1.0} and told["not_here"] == list(PUBLISHED[1:])


@pytest.mark.parametrize("name", PUBLISHED)
def test_no_vocabulary_is_ever_fetched(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import requests

    monkeypatch.setattr(requests, "get", lambda *_: pytest.fail("the network was asked"))
    assert cached_encoding(name) is None
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    assert cached_encoding(name) is None


def test_a_damaged_cache_is_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    (tmp_path / "cache").mkdir()
    url = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / "cache" / hashlib.sha1(url.encode()).hexdigest()).write_bytes(b"torn")
    assert cached_encoding("cl100k_base") is None


def test_samples_are_of_many_kinds() -> None:
    assert len(SAMPLES) >= 8 and all(len(text.encode()) > 300 for text in SAMPLES.values())
