"""Files of strangers: the tokenizer's pickle and torch's files hold what they should, or nothing in them is done."""

from __future__ import annotations

import copyreg
import functools
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiktoken
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom import tokenizer as tokenizers
from fathom.errors import FathomError
from fathom.interop.encoding_pickle import read_encoding
from fathom.interop.torch_file import read_torch_file
from fathom.tokenizer import SPECIALS, Tokenizer
from tests.oracles import reference_layout as layout
from tests.oracles.tiny_runs import texts

MARK = "was_here"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return tokenizers.train(texts(60), 300)


@pytest.fixture(autouse=True)
def _nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Every attack here would leave a mark in the working folder."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / MARK).exists()


class Calling:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class Stated:
    """Pickles as a tiktoken Encoding with any state."""

    def __init__(self, state: Any) -> None:
        self.state = state

    @property
    def __class__(self) -> type:  # which the pickler compares
        return tiktoken.Encoding

    def __reduce_ex__(self, protocol: Any) -> Any:
        return copyreg.__newobj__, (tiktoken.Encoding,), self.state  # type: ignore[attr-defined]


TOUCH = f"touch {MARK}"
WRITE = f"open({MARK!r}, 'w')"

ATTACKS = {
    "posix.system": Calling(os.system, TOUCH),
    "builtins.eval": Calling(eval, WRITE),
    "builtins.exec": Calling(exec, WRITE),
    "builtins.list": Calling(list, Calling(map, Calling(getattr, Calling(__import__, "os"), "system"), [TOUCH])),
    "builtins.getattr": Calling(getattr, Calling(__import__, "os"), "system"),
    "builtins.__import__": Calling(__import__, "antigravity"),
    "io.open": Calling(open, MARK, "w"),
    "builtins.map": Calling(map, os.system, [TOUCH]),
    "subprocess.Popen": Calling(subprocess.Popen, ["touch", MARK]),
    "functools.partial": Calling(functools.partial(os.system, TOUCH)),
    "tiktoken.get_encoding": Calling(tiktoken.get_encoding, "gpt2"),
    "builtins.bytearray": bytearray(b"x"),
}


def pickled(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol))
    return path


@pytest.mark.parametrize("name", ATTACKS)
def test_no_pickle_calls_anything(tmp_path: Path, tokenizer: Tokenizer, name: str) -> None:
    attack, state = ATTACKS[name], layout.encoding(tokenizer).__getstate__()
    assert isinstance(state, dict)
    places = {
        "alone": attack,
        "as the state": Stated(attack),
        "as a value": Stated(state | {"pat_str": attack}),
        "as a key": Stated(state | {"special_tokens": {attack if attack.__hash__ else "x": attack}}),
        "nested": Stated(state | {"mergeable_ranks": {b"a": {b"b": {b"c": attack}}}}),
    }
    for place, content in places.items():
        for protocol in (0, 2, 4, 5):
            path = pickled(tmp_path / "tokenizer.pkl", content, protocol)
            with pytest.raises(FathomError) as caught:
                read_encoding(path)
            assert "\n" not in str(caught.value)
            if protocol == 4 and place != "alone":
                assert f"{name.rpartition('.')[2]}, which is no part" in str(caught.value) or name.endswith("bytearray")


HANDMADE = {
    "os.system": b"cos\nsystem\n(S'touch was_here'\ntR.",
    "posix.system": b"(\x8c\x0etouch was_hereiposix\nsystem\n.",
    "builtins.exec": b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x05print\x85R.",
    "the pickle instruction": b"\x80\x02\x82\x01.",  # an extension by its number
    "damaged": b"\x80\x04r\xff\xff\xff\xff.",  # a memo number that would fill the memory
    "no tokenizer": b"\x80\x04}.",
    "damaged (": b"",
}


@pytest.mark.parametrize("name", HANDMADE)
def test_a_handmade_pickle_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(FathomError, match=name.replace("(", r"\(")):
        read_encoding(pickled(tmp_path / "tokenizer.pkl", HANDMADE[name]))


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = pickled(tmp_path_factory.getbasetemp() / "any.pkl", data)
    with pytest.raises(FathomError):
        read_encoding(path)
    with pytest.raises(FathomError):
        read_torch_file(path)


@pytest.mark.parametrize("protocol", [4, 5])
def test_a_tokenizer_comes_over_whole(tmp_path: Path, tokenizer: Tokenizer, protocol: int) -> None:
    theirs = layout.encoding(tokenizer)
    ours = read_encoding(pickled(tmp_path / "tokenizer.pkl", theirs, protocol))
    assert ours.digest == tokenizer.digest
    for text in (*texts(5, seed=3), "I'm 12345 tokens\n\n  hi!! x=1", "日本 🎉 <|bos|> \x00\ud7ff", ""):
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text
    assert [ours.special(name) for name in SPECIALS] == [theirs.encode_single_token(name) for name in SPECIALS]


def test_an_encoding_by_name_is_not_fetched(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="only names tiktoken's encoding 'gpt2'"):
        read_encoding(pickled(tmp_path / "tokenizer.pkl", Stated("gpt2")))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda s: s.pop("pat_str"), "not what tiktoken writes"),
        (lambda s: s.update(explicit_n_vocab=5), "not what tiktoken writes"),
        (lambda s: s.update(pat_str=b"x"), "not what tiktoken writes"),
        (lambda s: s.update(pat_str="("), "its pattern does not split text"),
        (lambda s: s["mergeable_ranks"].update({b"zzz": 7}), "ids are not"),
        (lambda s: s["mergeable_ranks"].update({b"zzz": 2**31 - 1}), "ids are not"),
        (lambda s: s["mergeable_ranks"].update({b"zzz": -1}), "ids are not"),
        (lambda s: s["mergeable_ranks"].update({"zzz": 299}), "ids are not"),
        (lambda s: s["mergeable_ranks"].update({b"a": 98, b"b": 97}), "256 bytes in order"),
        (lambda s: s["special_tokens"].update({"<|more|>": 301}), "ids are not"),
        (lambda s: s.update(special_tokens={"<|end|>": len(s["mergeable_ranks"])}), r"no special token <\|bos\|>"),
        (lambda s: s.update(mergeable_ranks={}), "ids are not"),
    ],
)
def test_an_encoding_that_is_no_vocabulary_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, change: Callable[[Any], Any], why: str
) -> None:
    state = layout.encoding(tokenizer).__getstate__()
    change(state)
    with pytest.raises(FathomError, match=why):
        read_encoding(pickled(tmp_path / "tokenizer.pkl", Stated(state)))


# Torch's files


@pytest.mark.parametrize("name", ATTACKS)
def test_no_torch_file_calls_anything(tmp_path: Path, name: str) -> None:
    path = tmp_path / "model.pt"
    for content in (ATTACKS[name], {"lm_head.weight": ATTACKS[name]}, [torch.zeros(3), {"a": (ATTACKS[name],)}]):
        torch.save(content, path)
        if name == "builtins.bytearray":
            continue  # which weights-only loading knows, and which holds nothing but bytes
        with pytest.raises(FathomError) as caught:
            read_torch_file(path)
        assert "\n" not in str(caught.value)


class Foreign:
    pass


def test_a_foreign_class_in_a_torch_file_is_named(tmp_path: Path) -> None:
    torch.save({"weights": Foreign()}, tmp_path / "model.pt")
    with pytest.raises(FathomError, match=r"holds .*test_import_pickles\.Foreign, which is no tensor"):
        read_torch_file(tmp_path / "model.pt")
    torch.save(torch.nn.Linear(3, 3), tmp_path / "model.pt")
    with pytest.raises(FathomError, match=r"holds torch\.nn\.modules\.linear\.Linear"):
        read_torch_file(tmp_path / "model.pt")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(1_000_000)}, tmp_path / "honest.pt")
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(tmp_path / "honest.pt") as honest, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for entry in honest.namelist():
            packed.writestr(entry, honest.read(entry))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(FathomError, match="packed to unfold"):
        read_torch_file(bomb)


def test_a_tensor_larger_than_its_file_takes_no_memory(tmp_path: Path) -> None:
    """Sizes are in the pickle, and nothing keeps an attacker from writing larger ones than the file has numbers."""
    small = {"weights": torch.zeros(100, 7)}
    torch.save(small, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        parts = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "large.pt", "w", zipfile.ZIP_STORED) as archive:
        for entry, content in parts.items():
            if entry.endswith("data.pkl"):
                assert content.count(b"Kd") == 1  # the 100 of the shape
                content = content.replace(b"Kd", b"J\xff\xff\xff\x7f")
            archive.writestr(entry, content)
    with pytest.raises(FathomError, match=r"large\.pt cannot be read"):
        read_torch_file(tmp_path / "large.pt")


def test_a_file_that_is_none_of_torchs(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="there is no .*missing.pt"):
        read_torch_file(tmp_path / "missing.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(FathomError, match="folder.pt cannot be read"):
        read_torch_file(tmp_path / "folder.pt")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(FathomError, match="other.pt cannot be read"):
        read_torch_file(tmp_path / "other.pt")
    torch.save({"a": 1}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(FathomError, match="old.pt is truncated or no file of torch.save's"):
        read_torch_file(tmp_path / "old.pt")
