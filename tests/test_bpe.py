from __future__ import annotations

import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom import bpe
from fathom.bpe import Sample, cut_runs, learn_tokens, without_surrogates
from fathom.errors import FathomError
from fathom.tokenizer import PATTERN
from tests.oracles import bpe as oracle


def test_sample_caps_documents_and_stops_after_the_one_that_exceeds() -> None:
    sample = Sample(iter(["abcdef", "gh", "ijk", "never read"]), max_chars=7, doc_cap=4)
    assert list(sample) == ["abcd", "gh", "ijk"]
    assert (sample.documents, sample.characters) == (3, 9)


def test_sample_of_exactly_the_limit_goes_on() -> None:
    assert list(Sample(["abcd", "efgh", "i"], max_chars=4)) == ["abcd", "efgh"]


@given(st.lists(st.text("ab cA1'é\n", max_size=30), min_size=1, max_size=6).filter(any), st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_merges_equal_the_oracle(texts: list[str], n_merges: int) -> None:
    assert learn_tokens(Sample(texts), 256 + n_merges, PATTERN) == oracle.train(texts, n_merges, PATTERN)


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_refused(texts: list[str]) -> None:
    with pytest.raises(FathomError, match="no text"):
        learn_tokens(Sample(texts), 300, PATTERN)


def test_lone_surrogates_and_endless_blanks_do_no_harm() -> None:
    tokens = learn_tokens(Sample(["ab\ud800ab", " " * 1_200_000 + "x"], doc_cap=2_000_000), 258, PATTERN)
    assert tokens[256:] == [b"  ", b"    "]


def test_surrogates() -> None:
    assert without_surrogates("plain é") == "plain é"
    assert without_surrogates("\ud83d\ude00 \ud800 \udc80") == "😀 � �"


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000", "\x1c"])
def test_runs_are_cut_and_nothing_is_lost(blank: str) -> None:
    text = "a" * 10 + blank * 1_100_000 + "b" * 600_000 + blank * 5
    parts = cut_runs(text)
    assert "".join(parts) == text and [len(part) for part in parts] == [500_010, 500_000, 700_005]
    assert cut_runs(text[:1000]) == [text[:1000]]


def test_an_error_in_the_documents_is_passed_on() -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield "some text"
        raise FathomError("the file is torn")

    with pytest.raises(FathomError, match="torn"):
        learn_tokens(Sample(broken()), 300, PATTERN)


def test_the_heartbeat_speaks_and_ends(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bpe, "_BEAT", bpe._BEAT.replace("2.0", "0.01"))
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def note(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(bpe.subprocess, "Popen", note)
    with bpe._heartbeat("Thinking") as start:
        start()
        give_up = time.monotonic() + 10
        said = ""
        while "Thinking … 0 s" not in said and time.monotonic() < give_up:
            said += capfd.readouterr().err
    assert "Thinking … 0 s" in said
    assert [process.poll() for process in started] == [0]
