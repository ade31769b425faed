from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fathom.errors import FathomError
from fathom.tokenizer import PATTERN, SPECIALS, Tokenizer, load, train
from tests.oracles import bpe as oracle

TEXT = (
    "The quick brown foxes don't jump over 12 lazy dogs; they're asleep!\n\n  Indented, 3.14 = pi?\t«Ça va»\r\n"
    "def f(x):\n    return x ** 2  # naïve\n"
    * 3
    + "Привет, мир! 今天早上下雪。 🎉👩‍👩‍👧 e\u0301 <|bos|><|user_start|> "
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train([TEXT], 400)


BYTES_ONLY = Tokenizer(tuple(bytes([byte]) for byte in range(256)))


def test_golden_splits() -> None:
    """REFERENCE section 4. ␤ is a line feed, ␠ a blank."""
    cases = {
        "I'm 12345 tokens\n\n  hi!! x=1": "I|'m| |12|34|5| tokens|\n\n| | hi|!!| x|=|1",
        "Don't DON'T 3.14  ": "Don|'t| DON|'T| |3|.|14|  ",
    }
    for text, pieces in cases.items():
        assert regex.findall(PATTERN, text) == pieces.split("|")
        assert _pieces(text) == pieces.split("|")


def _pieces(text: str) -> list[str]:
    """How our engine splits, seen with a vocabulary in which every stretch of the text is a token."""
    data = text.encode()
    stretches = {data[i:j] for i in range(len(data)) for j in range(i + 2, len(data) + 1)}
    tokens = BYTES_ONLY.tokens + tuple(sorted(stretches, key=lambda s: (len(s), s)))
    seen = Tokenizer(tokens)
    return [seen.decode([i]) for i in seen.encode(text)]


def test_golden_merges() -> None:
    learned = train(["ab cd ef"], 256 + 4 + 9)
    assert learned.tokens[256:] == (b" c", b" e", b"ab", b" cd")
    assert learned.encode("ab cd") == [258, 259]


def test_special_ids_come_last_in_the_order_of_the_reference() -> None:
    learned = train(["ab cd ef"], 256 + 4 + 9)
    assert learned.specials == {name: 260 + i for i, name in enumerate(SPECIALS)}
    assert [learned.bos_id, learned.special("<|output_end|>"), learned.vocab_size] == [260, 268, 269]
    assert SPECIALS[:2] == ("<|bos|>", "<|user_start|>") and len(SPECIALS) == 9
    with pytest.raises(FathomError, match="no special token <\\|end\\|>"):
        learned.special("<|end|>")


def test_every_short_text_is_split_as_the_pattern_of_the_reference_says() -> None:
    """The pattern that encodes is a quicker one: on every text of up to 4 characters of 10 classes both agree."""
    alphabet = "asL'1 \n\r!\t"
    texts = ["".join(letters) for n in range(1, 5) for letters in itertools.product(alphabet, repeat=n)]
    tokens = BYTES_ONLY.tokens + tuple(text.encode() for text in texts if len(text) > 1)
    seen = Tokenizer(tokens)
    for text in texts:
        assert [seen.decode([i]) for i in seen.encode(text)] == regex.findall(PATTERN, text), repr(text)


@given(st.text(max_size=80) | st.text("ab'stlvre \n\r\t1٣½!.\u3000\u200dé\u0301中😀", max_size=80))
@example("  \n \r\n\u2028 \u0085x")
@settings(deadline=None, max_examples=300)
def test_encoding_equals_the_pattern_of_the_reference(tokenizer: Tokenizer, text: str) -> None:
    verbatim = tiktoken.Encoding(
        "verbatim",
        pat_str=PATTERN,
        mergeable_ranks={token: i for i, token in enumerate(tokenizer.tokens)},
        special_tokens={},
    )
    assert tokenizer.encode(text) == verbatim.encode_ordinary(text)


@given(st.text("abcd dogs'tT12 \n!é", max_size=40))
@settings(deadline=None)
def test_encoding_equals_the_oracle(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.encode(text) == oracle.encode(text, list(tokenizer.tokens), PATTERN)


@given(st.text())
@settings(deadline=None)
def test_any_text_comes_back_and_holds_no_special_id(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(i < tokenizer.bos_id for i in ids)
    assert tokenizer.encode_bytes(text.encode()) == ids


@given(
    st.binary() | st.lists(st.sampled_from([b"dogs ", b"\xff", b"\xc3", "é".encode(), b"\xed\xa0\x80"])).map(b"".join)
)
@settings(deadline=None)
def test_any_bytes_come_back(tokenizer: Tokenizer, data: bytes) -> None:
    assert tokenizer.decode_bytes(tokenizer.encode_bytes(data)) == data


def test_bytes_that_are_no_text_stand_for_themselves(tokenizer: Tokenizer) -> None:
    dogs = tokenizer.encode(" dogs")
    assert tokenizer.encode_bytes(b" dogs\xff\xfe dogs") == [*dogs, 255, 254, *dogs]


@pytest.mark.parametrize("name", SPECIALS)
def test_special_tokens_in_text_are_text(tokenizer: Tokenizer, name: str) -> None:
    ids = tokenizer.encode(f"{name} and {name}")
    assert len(ids) > 3 and max(ids) < tokenizer.bos_id
    assert tokenizer.decode([tokenizer.special(name)]) == name
    assert max(tokenizer.encode_bytes(name.encode())) < tokenizer.bos_id


def test_unusual_text(tokenizer: Tokenizer) -> None:
    for text in [
        "",
        "\x00",
        "\ufeffx",
        "e\u0301",
        "👩‍👩‍👧‍👦",
        "\u202eabc",
        "𝔘𝔫𝔦",
        "ｆｕｌｌ",
        "\u0130İı",
        "a\u0300\u0301\u0302" * 50,
    ]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("a\ud800b \ud83d\ude00")) == "a�b 😀"


@pytest.mark.parametrize("text", [" " * 1_100_000, "\u3000" * 1_100_000 + "x", "x" * 1_000_000], ids=["␠", "␠x", "x"])
def test_long_runs_do_not_overflow(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_arrays_and_lists_agree(tokenizer: Tokenizer) -> None:
    array = tokenizer.encode_to_array(TEXT)
    assert array.dtype == np.uint32 and array.tolist() == tokenizer.encode(TEXT)
    assert tokenizer.decode(array) == TEXT


@pytest.mark.parametrize("ids", [[-1], [5, 400], [1 << 40]])
def test_ids_that_do_not_exist_are_refused(tokenizer: Tokenizer, ids: list[int]) -> None:
    with pytest.raises(FathomError, match=f"no token {ids[-1]}.*0 to 399"):
        tokenizer.decode_bytes(ids)


def test_half_a_character_becomes_a_replacement(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([0xC3]) == "�" and tokenizer.decode_bytes([0xC3]) == b"\xc3"


def test_token_bytes(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.token_bytes()
    assert lengths.dtype == np.int32 and len(lengths) == tokenizer.vocab_size
    assert lengths.tolist() == [len(t) for t in tokenizer.tokens] + [0] * 9
    assert int(lengths[tokenizer.encode(TEXT)].sum()) == len(TEXT.encode())


def test_fewer_merges_than_asked_are_said_and_keep_the_ids_together(capsys: pytest.CaptureFixture[str]) -> None:
    learned = train(["abab"], 1000)
    assert learned.tokens[256:] == (b"ab", b"abab") and learned.vocab_size == 267 and learned.bos_id == 258
    assert "267 tokens instead of 1,000" in capsys.readouterr().err


def test_a_vocabulary_too_small_for_the_bytes_is_refused() -> None:
    with pytest.raises(FathomError, match="at least 265"):
        train(["text"], 264)
    assert train(["text"], 265).encode("te") == [116, 101]


def test_training_reads_the_head_of_each_document() -> None:
    assert train(["ab" + "xy" * 99, "ab"], 266, doc_cap=2).tokens[256:] == (b"ab",)
    assert train(["ab", "xyxyxy"], 266, max_chars=1).tokens[256:] == (b"ab",)


def test_saved_and_loaded_it_is_the_same(tokenizer: Tokenizer, fathom_home: Path) -> None:
    folder = fathom_home / "tokenizers" / "t"
    tokenizer.save(folder, {"corpus": "letters"})
    for where in ("t", folder, str(folder), folder / "tokenizer.json"):
        loaded = load(where)
        assert loaded.digest == tokenizer.digest and loaded.tokens == tokenizer.tokens
        assert loaded.encode(TEXT) == tokenizer.encode(TEXT)
    lines = (folder / "tokenizer.json").read_text(encoding="utf-8").splitlines()
    assert '"trained_on": {"corpus": "letters"},' in lines and '[255, "\\\\xff"],' in lines
    assert json.loads("\n".join(lines))["specials"]["<|bos|>"] == 391


def test_the_digest_tells_vocabularies_apart(tokenizer: Tokenizer) -> None:
    others = [
        Tokenizer(tokenizer.tokens[:-1]),
        Tokenizer(tokenizer.tokens, SPECIALS[:-1]),
        Tokenizer(tokenizer.tokens, pattern=r"\w+|\W+"),
        Tokenizer(tokenizer.tokens[:-2] + tokenizer.tokens[:-3:-1]),
    ]
    assert len({tokenizer.digest, *(other.digest for other in others)}) == 5
    assert train([TEXT], 400).digest == tokenizer.digest


def test_another_vocabulary_is_never_overwritten(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    tokenizer.save(tmp_path)
    with pytest.raises(FathomError, match="holds another vocabulary"):
        train(["ab cd"], 266).save(tmp_path)
    assert load(tmp_path).digest == tokenizer.digest


def test_a_missing_tokenizer_names_those_that_are_there(tokenizer: Tokenizer, fathom_home: Path) -> None:
    with pytest.raises(FathomError, match="none yet.*fathom tokenizer train"):
        load("small")
    tokenizer.save(fathom_home / "tokenizers" / "smell")
    with pytest.raises(FathomError, match="did you mean 'smell'?"):
        load("small")
    with pytest.raises(FathomError, match="there is no tokenizer"):
        load(fathom_home / "elsewhere")
    with pytest.raises(FathomError, match="cannot be the name"):
        load("../small".replace("/", "\\"))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('"fathom-tokenizer"', '"other"', "no tokenizer of ours"),
        ('"version": 1', '"version": 2', "version 2"),
        ('[300, ', '[301, ', "not 0, 1, 2"),
        ('"vocab_size": 400', '"vocab_size": 401', "not 0, 1, 2"),
        ('[65, "A"]', '[65, "AA"]', "not the 256 bytes"),
        ('"<|bos|>": ', '"<|start|>": ', "no special token <|bos|>"),
        ('"\\\\xff"', '"\\\\xf"', "not escaped"),
        ('"tokens": [', '"tokens": ', "damaged"),
        ('"pattern"', '"patterns"', "damaged"),
        ('[256, ', '["256", ', "not 0, 1, 2"),
        ("}", "", "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(tokenizer: Tokenizer, tmp_path: Path, old: str, new: str, problem: str) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(FathomError) as error:
        load(tmp_path)
    assert str(path) in str(error.value) and problem in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[]", b"null", b'{"format": 3}'])
def test_a_file_of_something_else_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(FathomError, match="tokenizer.json"):
        load(tmp_path)


def test_a_token_twice_is_refused(tmp_path: Path) -> None:
    Tokenizer((*BYTES_ONLY.tokens, b"ab", b"ab")).save(tmp_path)
    with pytest.raises(FathomError, match="twice"):
        load(tmp_path)


@given(st.lists(st.binary(min_size=2, max_size=6) | st.text("\\x41é\n ", min_size=2).map(str.encode), unique=True))
@settings(deadline=None, max_examples=50)
def test_tokens_of_any_bytes_survive_the_file(tmp_path_factory: pytest.TempPathFactory, tokens: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("t")
    Tokenizer((*BYTES_ONLY.tokens, *tokens)).save(folder)
    assert load(folder).tokens[256:] == tuple(tokens)


def test_real_text(shared: Path) -> None:
    import pyarrow.parquet as pq

    texts = pq.read_table(shared / "pretrain" / "shard_00009.parquet")["text"].to_pylist()[:40]
    learned = train(texts, 1024)
    assert learned.vocab_size == 1024
    for text in texts:
        assert learned.decode(learned.encode(text)) == text
