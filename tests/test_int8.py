"""Weights as whole numbers: near the network they came from, steady like it, and the network itself untouched."""

from __future__ import annotations

import pytest
import torch
from oracles.chain_model import TOKENIZER
from oracles.generation import all_logits, random_model

from fathom.generate.engine import Engine
from fathom.generate.running import Request
from fathom.model.gpt import linear
from fathom.model.int8 import Int8Weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_near_the_exact_one(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(96, 64) * torch.rand(96, 1), torch.randn(3, 5, 64).to(dtype)
    rounded = Int8Weight(weight, dtype)
    restored = rounded.values.float() * rounded.scales.float()[:, None]
    limit = 0.5 * weight.abs().amax(1, keepdim=True) / 127 + 0.01 * weight.abs()  # and what bf16 scales add
    assert ((restored - weight).abs() <= limit).all()
    expected = x.float() @ restored.T
    found = linear(x, rounded)
    assert found.shape == (3, 5, 96) and found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-4, rtol=0.02)
    assert linear(x, Int8Weight(torch.zeros(96, 64), dtype)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rounded_network_stays_near_and_the_source_as_it_was(dtype: torch.dtype) -> None:
    model = random_model(dtype).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    rounded = model.for_inference(int8=True)
    ids = [(11 * i) % 256 for i in range(120)]
    plain, near = all_logits(model, ids), all_logits(rounded, ids)
    assert 0 < (plain - near).abs().mean() < 0.1 * plain.std()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_inference_weights_are_cast_once_and_give_the_same_logits() -> None:
    model = random_model(torch.bfloat16)
    cast = model.for_inference()
    assert cast is not model and all(weight.dtype == torch.bfloat16 for weight in cast.parameters())
    assert cast.token_embedding.data_ptr() == model.token_embedding.data_ptr()
    ids = list(range(100))
    assert torch.equal(all_logits(cast, ids), all_logits(model.eval(), ids))
    assert cast.for_inference() is cast


def test_a_rounded_engine_is_as_steady() -> None:
    model = random_model(torch.bfloat16, seq_len=128).eval()
    requests = [
        Request(tuple(range(n, 3 * n)), max_tokens=9, seed=n, temperature=1.0, logprobs=0, stop=frozenset())
        for n in (5, 20, 40)
    ]
    together = Engine(model, TOKENIZER, weights="int8").generate(requests)
    assert [Engine(model, TOKENIZER, weights="int8").generate([one])[0] for one in requests] == together
    with pytest.raises(ValueError, match="weights"):
        Engine(model, TOKENIZER, weights="int4")  # type: ignore[arg-type]
