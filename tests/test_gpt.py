"""The network against the golden numbers of REFERENCE section 17 and against its own slow twin."""

from __future__ import annotations

import math

import pytest
import torch

from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT, rotary_table
from fathom.model.loss import IGNORE, head_loss
from fathom.model.shape import Shape


def fill(weight: torch.Tensor, c: float, amplitude: float) -> None:
    """Element i, row by row, is amplitude·sin(0.7·i + c)."""
    index = torch.arange(weight.numel(), dtype=torch.float64)
    with torch.no_grad():
        weight.copy_((amplitude * torch.sin(0.7 * index + c)).float().view(weight.shape))


def golden_model(seq_len: int, n_head: int, n_kv_head: int) -> GPT:
    shape = Shape(4, n_head, n_kv_head, 64 // n_head, 100, seq_len)
    model = GPT(shape)
    model.init_weights()
    fill(model.token_embedding, 1, 1.0)
    fill(model.head, 2, 0.3)
    for layer, block in enumerate(model.blocks):
        for c, weight in zip((3, 4, 5, 6, 7), (block.q, block.k, block.v, block.out, block.up), strict=True):
            fill(weight, c + 10 * layer, 0.2)
        fill(block.down, 8 + 10 * layer, 0.1)
        if block.value_gate is not None:
            fill(model.value_embeddings[str(layer)], 9 + 10 * layer, 0.5)
            fill(block.value_gate, 10 + 10 * layer, 0.5)
    fill(model.smear_gate, 11, 0.5)
    with torch.no_grad():
        model.smear_scale.fill_(0.3)
    return model


def golden_batch(seq_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    t = torch.arange(seq_len)
    ids = torch.stack([(7 * t + 3 * b + (t * t) % 5) % 100 for b in range(2)])
    targets = torch.full_like(ids, IGNORE)
    targets[:, :-1] = ids[:, 1:]
    return ids, targets


def mean_loss(model: GPT, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    hidden = model(ids, DenseContext(ids.shape[1], ids.device))
    total = head_loss(hidden.flatten(0, 1), model.head, targets.flatten(), None, model.shape.vocab_size)
    return total / (targets != IGNORE).sum()


@pytest.mark.parametrize(
    ("seq_len", "n_head", "n_kv_head", "loss", "first", "last"),
    [
        (16, 2, 2, 5.477354, (2.193063, -0.300595, -2.593774), (0.26359, 0.994545, 1.096758)),
        (16, 4, 2, 5.260139, (0.909667, 0.093999, -0.781503), (0.680329, 0.861685, 0.49893)),
        (512, 2, 2, 5.506859, (2.193063, -0.300595, -2.593774), (-1.113458, -1.205564, -0.536793)),
    ],
)
def test_forward_gives_the_golden_numbers(
    seq_len: int, n_head: int, n_kv_head: int, loss: float, first: tuple[float, ...], last: tuple[float, ...]
) -> None:
    model = golden_model(seq_len, n_head, n_kv_head)
    ids, targets = golden_batch(seq_len)
    assert mean_loss(model, ids, targets).item() == pytest.approx(loss, abs=2e-5)
    logits = model.logits(model(ids, DenseContext(seq_len, "cpu")))
    assert logits[0, 0, :3].tolist() == pytest.approx(first, abs=2e-5)
    assert logits[1, -1, :3].tolist() == pytest.approx(last, abs=2e-5)


def test_backward_gives_the_golden_gradient_norms() -> None:
    model = golden_model(16, 2, 2)
    mean_loss(model, *golden_batch(16)).backward()
    expected = {
        "keep": 0.371543,
        "add_first": 0.719009,
        "smear_scale": 0.629234,
        "backout_scale": 0.093531,
        "token_embedding": 0.08872,
        "head": 1.467175,
        "blocks.0.q": 0.190644,
        "blocks.3.up": 0.60755,
    }
    found = {name: model.get_parameter(name).grad.norm().item() for name in expected}
    assert found == pytest.approx(expected, abs=2e-5)


def test_rotary_table_at_the_first_position() -> None:
    cos, sin = rotary_table(torch.tensor([1]), 128, torch.float32)
    assert cos[0, 0, :3].tolist() == pytest.approx([0.5403023, 0.6709089, 0.766238], abs=1e-6)
    assert sin[0, 0, :3].tolist() == pytest.approx([0.841471, 0.7415398, 0.6425569], abs=1e-6)


def test_a_token_moves_no_logit_before_it() -> None:
    model = golden_model(16, 2, 2)
    ids, _ = golden_batch(16)
    context = DenseContext(16, "cpu")
    before = model.logits(model(ids, context))
    ids[:, 9] = 99
    after = model.logits(model(ids, context))
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_rows_do_not_know_each_other() -> None:
    model = golden_model(16, 2, 2)
    ids, _ = golden_batch(16)
    context = DenseContext(16, "cpu")
    swapped = model(ids.flip(0), context).flip(0)
    torch.testing.assert_close(model(ids, context), swapped)


def test_starting_values_are_those_of_the_table() -> None:
    model = GPT(Shape(4, 4, 4, 64, 8192, 512))
    model.init_weights(torch.Generator().manual_seed(42))
    width, last = 256, 3
    assert model.token_embedding.std().item() == pytest.approx(0.8, rel=0.01)
    assert model.head.std().item() == pytest.approx(0.001, rel=0.01)
    assert model.keep.tolist() == pytest.approx([1.15 - 0.10 * i / last for i in range(4)])
    assert model.add_first.tolist() == pytest.approx([0.20 - 0.15 * i / last for i in range(4)])
    assert model.smear_scale.item() == 0
    assert model.backout_scale.item() == pytest.approx(0.2)
    block = model.blocks[3]
    for weight, share in ((block.q, 1), (block.k, 1), (block.v, 1), (block.up, 0.4)):
        bound = share * math.sqrt(3 / width)
        assert weight.std().item() == pytest.approx(share / math.sqrt(width), rel=0.02)
        assert weight.abs().max().item() <= bound
    assert not block.out.any()
    assert not block.down.any()
    assert 0 <= block.value_gate.min() <= block.value_gate.max() <= 0.02
    assert model.value_embeddings["3"].std().item() == pytest.approx(1 / math.sqrt(width), rel=0.02)


def test_every_parameter_has_one_kind_and_the_counts_are_the_shapes() -> None:
    model = GPT(Shape(4, 4, 4, 64, 1000, 512))
    kinds = model.parameter_kinds()
    grouped = [id(p) for group in kinds.values() for p in group]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())
    counts = model.shape.parameters
    assert sum(p.numel() for p in model.parameters()) == counts["total"]
    assert sum(p.numel() for p in kinds["matrices"]) == counts["block_matrices"]
    assert sum(p.numel() for p in kinds["value_embeddings"]) == counts["value_embeddings"]
