"""Passes of static shapes: the logits of the plain forward pass, bits that no padding changes, each compiled once."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
import torch
from oracles.attention import attend as slow_attention
from oracles.chain_model import TOKENIZER
from oracles.generation import all_logits, random_model
from test_cache import TOLERANCE, new_cache, opened

from fathom import hardware, kernels
from fathom.generate import decode, paged
from fathom.generate.decode import Decoder, choose_decode
from fathom.generate.engine import Engine
from fathom.generate.pages import PAGE
from fathom.generate.running import Request
from fathom.generate.steady import fitting
from fathom.hardware import Choice
from fathom.kernels import build
from fathom.model.gpt import GPT

WIDTHS = (1, 2, 4, 8)
WITH_KERNELS = pytest.mark.skipif(not build.load(), reason="no C++ compiler whose kernels this machine can load")


def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "library", lambda: None)


def traced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled down to torch's own operations: what is compiled when is the same, and no compiler is waited for."""
    found = decode.regions("aot_eager")
    monkeypatch.setattr(decode, "regions", lambda: found)


def unique_graphs() -> int:
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


# Attention


def stored_pages(dtype: torch.dtype, n_page: int, n_kv_head: int, head_dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, n_page, PAGE, n_kv_head, head_dim, generator=generator).to(dtype)


def table_of(pages: Sequence[int], position: int, window: int, n_page: int) -> list[int]:
    """The pages that a query sees, padded to `n_page`."""
    seen = list(pages[max(0, position // PAGE * PAGE - window) // PAGE : position // PAGE + 1])
    return seen + seen[-1:] * (n_page - len(seen))


def attended(q: torch.Tensor, stored: torch.Tensor, rows: list[tuple[list[int], int]], window: int) -> torch.Tensor:
    table, position = zip(*rows, strict=True)
    return paged.attend(q, stored, torch.tensor(table).T.contiguous(), torch.tensor(position), window)


@pytest.mark.parametrize("way", [pytest.param("kernel", marks=WITH_KERNELS), "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("n_kv_head", "head_dim", "window"), [(4, 32, 1024), (2, 16, 128), (1, 80, 128)])
def test_attention_is_the_oracles_and_a_query_s_own(
    monkeypatch: pytest.MonkeyPatch, way: str, dtype: torch.dtype, n_kv_head: int, head_dim: int, window: int
) -> None:
    if way == "plain":
        without_kernels(monkeypatch)
    random, stored = Random(1), stored_pages(dtype, 24, n_kv_head, head_dim)
    texts = [random.sample(range(24), 8) for _ in range(16)]
    positions = [0, 1, 63, 64, 127, 128, 129, 191, 192, 200, 300, 320, 400, 510, 511, 448]
    q = torch.randn(16, 4, head_dim, generator=torch.Generator().manual_seed(2)).to(dtype)
    together = attended(
        q, stored, [(table_of(pages, at, window, 9), at) for pages, at in zip(texts, positions, strict=True)], window
    )
    for row, (pages, at) in enumerate(zip(texts, positions, strict=True)):
        least = len(table_of(pages, at, window, 0))
        for n_page in (least, least + 1):
            alone = attended(q[row : row + 1], stored, [(table_of(pages, at, window, n_page), at)], window)
            assert torch.equal(alone[0], together[row])
        keys, values = stored[:, pages].flatten(1, 2)[:, : at + 1].float()  # (at + 1, K, D)
        queries = torch.zeros(1, at + 1, 4, head_dim)
        queries[0, -1] = q[row].float()
        expected = slow_attention(queries, keys[None], values[None], window)[0, -1]
        loss = 0.02 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(together[row].float(), expected, atol=loss, rtol=loss)


def test_a_sum_over_pages_does_not_change_with_empty_ones() -> None:
    parts = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(paged.over_pages(parts[:1]), parts[0])
    torch.testing.assert_close(paged.over_pages(parts), parts.sum(0))
    for n in range(1, 8):
        for more in range(9):
            assert torch.equal(
                paged.over_pages(torch.cat([parts[:n], torch.zeros(more, 5)])), paged.over_pages(parts[:n])
            )


# Passes


def new_decoder(model: GPT, cache: Any, compiled: bool = False) -> Decoder:
    def never(*_: Any) -> torch.Tensor:
        raise AssertionError("it was not prepared")

    return Decoder(model, cache, WIDTHS, 8, compiled, never)


@torch.inference_mode()
def continued(model: GPT, decoder: Decoder, texts: list[list[int]], n_prompt: int, seed: int) -> list[torch.Tensor]:
    """Logits of what follows on prompts of `n_prompt` tokens, fed in pieces of 1 to 3 of some texts at a time."""
    random, cache = Random(seed), decoder._cache
    tables = [opened(cache, text[:n_prompt]) for text in texts]
    for table, text in zip(tables, texts, strict=True):
        prompt = [(table, text[len(table) : n_prompt])]
        assert cache.reserve(table, len(prompt[0][1]))
        context = cache.begin(prompt, len(prompt[0][1]), model.embed)
        model(context.ids, context)
        cache.commit(prompt)
    found: list[list[torch.Tensor]] = [[] for _ in texts]
    while any(len(table) < len(text) for table, text in zip(tables, texts, strict=True)):
        pieces, whose = [], []
        for i in random.sample(range(len(texts)), random.randint(1, len(texts))):
            piece = texts[i][len(tables[i]) :][: random.randint(1, 3)]
            if piece and len(piece) + len(whose) <= 8:
                assert cache.reserve(tables[i], len(piece))
                pieces.append((tables[i], piece))
                whose += [i] * len(piece)
        if pieces:
            hidden = decoder(pieces, fitting(decoder.widths, len(whose)))
            for i, row in zip(whose, model.logits(hidden), strict=False):
                found[i].append(row)
            cache.commit(pieces)
    return [torch.stack(rows) for rows in found]


@pytest.mark.parametrize(
    ("way", "sizes"),
    [
        pytest.param("kernel", {}, marks=WITH_KERNELS),
        ("plain", {}),
        ("compiled", {}),
        ("plain", {"n_kv_head": 4, "window_pattern": "L"}),
        ("plain", {"n_layer": 1, "n_kv_head": 1}),
    ],
)
def test_said_tokens_have_the_logits_of_the_plain_forward_pass(
    monkeypatch: pytest.MonkeyPatch, way: str, sizes: dict[str, Any]
) -> None:
    if way == "plain":
        without_kernels(monkeypatch)
    traced(monkeypatch)
    model, random = random_model(**sizes), Random(0)
    texts = [[random.randrange(model.shape.vocab_size) for _ in range(n)] for n in (90, 150, 210, 205)]
    texts[3][:80] = texts[2][:80]
    decoder = new_decoder(model, new_cache(model), compiled=way == "compiled")
    for got, text in zip(continued(model, decoder, texts, 80, seed=1), texts, strict=True):
        torch.testing.assert_close(got, all_logits(model, text)[80:], atol=TOLERANCE, rtol=0)


# The engine


@pytest.fixture(scope="module")
def model() -> GPT:
    return random_model(seq_len=256).eval()


def requests(n: int, seed: int = 0, longest: int = 150, max_tokens: int = 30) -> list[Request]:
    random = Random(seed)
    return [
        Request(
            tuple(random.randrange(256) for _ in range(random.randint(1, longest))),
            max_tokens=random.randint(1, max_tokens),
            temperature=random.choice([0.0, 1.0]),
            seed=random.randrange(1000),
            stop=frozenset(),
            logprobs=2,
            tools=False,
        )
        for _ in range(n)
    ]


def answers(model: GPT, asked: list[Request], way: str, **options: Any) -> Any:
    return Engine(model, TOKENIZER, decode=way, **options).generate(asked)  # type: ignore[arg-type]


def decoder_of(engine: Engine) -> Decoder:
    found = engine._said[0]
    assert isinstance(found, Decoder)
    return found


def test_a_compiled_engine_compiles_once_and_says_the_same_in_any_company(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced(monkeypatch)
    asked = requests(6)
    engine = Engine(model, TOKENIZER, max_batch=4, decode="compiled")
    together = engine.generate(asked)
    alone = [engine.generate([one])[0] for one in asked]
    assert together == alone
    assert [one.ids for one in together] == [one.ids for one in answers(model, asked, "pages")]
    decoder = decoder_of(engine)
    (width,) = decoder.widths  # the narrowest on this machine in which no row's numbers depend on the others
    assert width >= 4 and decoder._prepared.keys() == {(width, n) for n in (1, 2, 4)} and not decoder._failed
    before = unique_graphs()
    with torch.compiler.set_stance("fail_on_recompile"):
        engine.reset()
        assert engine.generate(asked[:1]) == together[:1]
        other = Engine(random_model(seq_len=256).eval(), TOKENIZER, max_batch=4, decode="compiled")
        later = requests(9, seed=2)
        assert other.generate(later) == [engine.generate([one])[0] for one in later]
        assert not decoder_of(engine)._failed and not decoder_of(other)._failed
    assert unique_graphs() == before


def test_int8_weights_are_compiled_too(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    traced(monkeypatch)
    asked = requests(3, longest=20, max_tokens=8)
    found, wanted = (answers(model, asked, way, weights="int8", max_batch=2) for way in ("compiled", "pages"))
    assert [one.ids for one in found] == [one.ids for one in wanted]


def test_what_cannot_be_compiled_goes_on_without(
    model: GPT, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no such architecture\nand much more")

    monkeypatch.setattr(decode, "regions", lambda: decode.Regions(lambda region: broken))
    asked = requests(4)
    assert answers(model, asked, "compiled") == answers(model, asked, "pages")
    told = capsys.readouterr().err
    assert told.count("could not be compiled") == 1 and "no such architecture" in told and "much more" not in told


@pytest.mark.parametrize("way", ["static", "compiled"])
def test_what_is_no_number_stays_with_its_request(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    traced(monkeypatch)
    model = random_model(seq_len=256).eval()
    with torch.no_grad():
        model.token_embedding[200] = torch.nan
    broken = Request((200,), max_tokens=5)
    sound = [Request((i, i + 1), max_tokens=5 + i, stop=frozenset(), logit_bias=((200, -100.0),)) for i in range(3)]
    engine = Engine(model, TOKENIZER, max_batch=4, decode=way)  # type: ignore[arg-type]
    never = Request((1, 2), max_tokens=3, stop=frozenset(), logit_bias=((200, 100.0),))  # says what breaks it
    found = engine.generate([broken, *sound, never])
    assert [one.finish_reason for one in found] == ["error", *["length"] * 3, "error"]
    assert found[1:4] == [engine.generate([one])[0] for one in sound]


def test_which_way_is_taken_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(decode, "can_compile", lambda device: Choice("yes", "compiled with g++"))
    assert [choose_decode(asked, "cuda") for asked in ("auto", "on", "off")] == ["compiled", "compiled", "pages"]
    assert [choose_decode(asked, "cpu") for asked in ("auto", "on", "off")] == [None, "compiled", "pages"]
    monkeypatch.setattr(decode, "can_compile", lambda device: Choice("no", "Triton is not installed"))
    assert choose_decode("auto", "cuda") is None and not capsys.readouterr().err
    assert choose_decode("on", "cuda") is None and "Triton is not installed" in capsys.readouterr().err


def test_few_sizes_are_compiled() -> None:
    widths = (1, 2, 4, 8, 16, 24, 32, 48, 64, 128)
    assert decode._few(widths, 32, "cuda") == (1, 2, 4, 8, 16, 32)
    assert decode._few(widths, 20, "cuda") == (1, 2, 4, 8, 16, 24)
    assert decode._few((4, 8), 1, "cuda") == (4,)
    assert decode._few(widths, 200, "cuda")[-1] == 128
    assert decode._few(widths, 20, "cpu") == (24,)


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_kernels_say_the_same_in_any_company(dtype: torch.dtype) -> None:
    if hardware.can_compile("cpu").value == "no":
        pytest.skip(hardware.can_compile("cpu").reason)
    model, asked = random_model(dtype, seq_len=256).eval(), requests(8)
    engine = Engine(model, TOKENIZER, max_batch=4, decode="compiled")
    together = engine.generate(asked)
    assert [engine.generate([one])[0] for one in asked] == together
    assert not decoder_of(engine)._failed
    if dtype == torch.float32:
        random = Random(0)
        texts = [[random.randrange(model.shape.vocab_size) for _ in range(n)] for n in (90, 150)]
        found = continued(model, new_decoder(model, new_cache(model), compiled=True), texts, 80, seed=1)
        for got, text in zip(found, texts, strict=True):
            torch.testing.assert_close(got, all_logits(model, text)[80:], atol=TOLERANCE, rtol=0)


@pytest.mark.gpu
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cuda_graphs_say_what_the_plain_forward_pass_says(dtype: torch.dtype) -> None:
    model, random = random_model(dtype, seq_len=256).eval(), Random(0)
    on_gpu = random_model(dtype, seq_len=256).eval().cuda()
    texts = [[random.randrange(model.shape.vocab_size) for _ in range(n)] for n in (90, 150, 210)]
    decoder = new_decoder(on_gpu, new_cache(on_gpu), compiled=True)
    found = continued(on_gpu, decoder, texts, 80, seed=1)
    assert decoder._prepared and all(isinstance(one, decode._Recorded) for one in decoder._prepared.values())
    for got, text in zip(found, texts, strict=True):
        if dtype == torch.float32:
            torch.testing.assert_close(got.cpu(), all_logits(model, text)[80:], atol=2e-3, rtol=0)
    asked, before = requests(12), unique_graphs()
    engine = Engine(on_gpu, TOKENIZER, max_batch=8, decode="compiled")
    together = engine.generate(asked)
    wanted = answers(on_gpu, asked, "pages", max_batch=8)
    same = sum(one.ids == other.ids for one, other in zip(together, wanted, strict=True))
    assert same >= (12 if dtype == torch.float32 else 8) and not decoder_of(engine)._failed
    compiled = unique_graphs()
    engine.reset()
    assert engine.generate(asked) == together and unique_graphs() == compiled >= before
