"""The chunked loss against the plain one, and its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fathom.model import loss
from fathom.model.loss import IGNORE, SOFT_CAP, head_loss, token_nll


def plain(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Cross-entropy of each token, with all logits at once."""
    logits = SOFT_CAP * torch.tanh((hidden @ head.T)[:, :vocab_size] / SOFT_CAP)
    return F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none")


def draw(n: int, width: int, rows: int, vocab_size: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(n, width, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(rows, width, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, vocab_size, (n,), generator=generator)
    targets[::5] = IGNORE
    weights = torch.rand(n, generator=generator, dtype=torch.float64)
    return hidden, head, targets, weights


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 rows is the smallest chunk; 150 tokens then make three, the last one short."""
    monkeypatch.setattr(loss, "CHUNK_NUMBERS", 1)


def test_gradcheck() -> None:
    hidden, head, targets, weights = draw(70, 4, 12, 11)
    assert torch.autograd.gradcheck(lambda h, w: head_loss(h, w, targets, weights, 11), (hidden, head))


@pytest.mark.parametrize("weighted", [False, True])
def test_loss_and_gradients_are_those_of_all_logits_at_once(weighted: bool) -> None:
    hidden, head, targets, weights = draw(150, 8, 64, 50)
    used = weights if weighted else torch.ones_like(weights)
    fast = head_loss(hidden, head, targets, weights if weighted else None, 50)
    slow = (plain(hidden, head, targets, 50) * used).sum()
    torch.testing.assert_close(fast, slow)
    for a, b in zip(
        torch.autograd.grad(3 * fast, (hidden, head)), torch.autograd.grad(3 * slow, (hidden, head)), strict=True
    ):
        torch.testing.assert_close(a, b)


def test_nll_is_the_loss_token_by_token() -> None:
    hidden, head, targets, _ = draw(150, 8, 64, 50)
    torch.testing.assert_close(token_nll(hidden, head, targets, 50), plain(hidden, head, targets, 50).detach())


def test_padding_rows_of_the_head_get_no_gradient() -> None:
    hidden, head, targets, _ = draw(70, 4, 12, 11)
    head_loss(hidden, head, targets, None, 11).backward()
    assert not head.grad[11:].any()


def test_a_batch_without_targets_is_zero_and_moves_nothing() -> None:
    hidden, head, targets, _ = draw(70, 4, 12, 11)
    total = head_loss(hidden, head, torch.full_like(targets, IGNORE), None, 11)
    total.backward()
    assert total.item() == 0
    assert not hidden.grad.any()
    assert not head.grad.any()


def test_bf16_stays_near_float32() -> None:
    hidden, head, targets, _ = (x.float() if x.is_floating_point() else x for x in draw(150, 8, 64, 50))
    half = head_loss(hidden.bfloat16(), head, targets, None, 50)
    assert half.item() == pytest.approx(head_loss(hidden, head, targets, None, 50).item(), rel=0.01)
