"""Optimizer updates against the golden numbers of REFERENCE section 17."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fathom.kernels import build
from fathom.optim import adam, fused
from fathom.optim.muon import muon_step, orthogonalise, second_moment_shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import AdamGroup


def test_adamw_golden() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    optimizer = Optimizer({"a": [weight], "matrices": []}, {"a": AdamGroup(0.1, (0.8, 0.95), 0.05)}, 0, torch.float32)
    for gradient, expected in (
        ((0.1, -0.2, 0.0), (0.895, -1.89, 0.4975)),
        ((0.3, 0.1, -0.4), (0.7970669, -1.8593041, 0.5725916)),
    ):
        weight.grad = torch.tensor(gradient)
        optimizer.step(lr=1.0, momentum=0, weight_decay=0)
        assert weight.tolist() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("on_kernels", [False, True])
@pytest.mark.parametrize(
    ("shape", "after_1", "after_2", "second"),
    [
        (
            (2, 3),
            (0.4900654, 0.4604235, 0.4027474, 0.2965145, 0.1796673, 0.0489313),
            (0.4743074, 0.4460148, 0.4007826, 0.291672, 0.1899792, 0.0654829),
            (0.0658045, 0.0593769, 0.0648186),
        ),
        (
            (3, 2),
            (0.5069192, 0.4577332, 0.3916849, 0.308987, 0.1880461, 0.0541527),
            (0.4991283, 0.4391738, 0.3735178, 0.3207512, 0.2015588, 0.0695124),
            (0.0570156, 0.0935289, 0.0394555),
        ),
    ],
)
def test_muon_golden(
    shape: tuple[int, int],
    after_1: tuple[float, ...],
    after_2: tuple[float, ...],
    second: tuple[float, ...],
    on_kernels: bool,
) -> None:
    if on_kernels and not build.load():
        pytest.skip("no C++ compiler whose kernels this machine can load")
    index = torch.arange(6.0)
    weights = torch.stack([(0.5 * torch.cos(0.3 * index + k)).view(shape) for k in range(2)])
    momentum = torch.zeros_like(weights)
    moment = torch.zeros(2, *second_moment_shape(*shape))
    for step, expected in enumerate((after_1, after_2)):
        gradients = torch.stack([torch.sin(0.9 * index + step + 2 * k).view(shape) for k in range(2)])
        settings = {"lr": 0.02, "momentum": 0.95, "beta2": 0.9, "weight_decay": 0.1, "dtype": torch.float32}
        if on_kernels:
            step_on_kernels(weights, gradients, momentum, moment, settings)
        else:
            muon_step(weights, gradients, momentum, moment, **settings)
        assert weights[0].flatten().tolist() == pytest.approx(expected, abs=2e-6)
    assert moment[0].flatten().tolist() == pytest.approx(second, abs=2e-6)
    buffer = (0.0420736, 0.0845231, 0.0630072, -0.0061913, -0.0707043, -0.0817097)
    assert momentum[0].flatten().tolist() == pytest.approx(buffer, abs=2e-6)


def step_on_kernels(
    weights: Tensor, gradients: Tensor, momentum: Tensor, moment: Tensor, settings: dict[str, Any]
) -> None:
    stack = [nn.Parameter(weight) for weight in weights]
    for weight, gradient in zip(stack, gradients, strict=True):
        weight.grad = gradient.clone()
    fused.muon_step(stack, momentum, moment, **settings)
    weights.copy_(torch.stack([weight.detach() for weight in stack]))


@pytest.mark.skipif(not build.load(), reason="no C++ compiler whose kernels this machine can load")
@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (64, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_muon_on_kernels_goes_the_same_way(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(5)
    start = torch.randn(3, *shape, generator=generator)
    states = [(start.clone(), torch.zeros_like(start), torch.zeros(3, *second_moment_shape(*shape))) for _ in range(2)]
    for _ in range(3):
        gradients = torch.randn(3, *shape, generator=generator)
        settings = {"lr": 0.02, "momentum": 0.9, "beta2": 0.9, "weight_decay": 0.1, "dtype": dtype}
        muon_step(states[0][0], gradients.clone(), *states[0][1:], **settings)
        step_on_kernels(states[1][0], gradients, *states[1][1:], settings)
    moved = states[0][0] - start
    allowed = 0.05 if dtype == torch.bfloat16 else 1e-5
    assert float((states[1][0] - states[0][0]).norm() / moved.norm()) < allowed
    for found, wanted in zip(states[1][1:], states[0][1:], strict=True):
        assert float((found - wanted).norm() / wanted.norm()) < allowed


@pytest.mark.parametrize("shape", [(48, 32), (32, 48), (32, 32)])
def test_orthogonalised_matrices_have_singular_values_near_one(shape: tuple[int, int]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(x, torch.float32))
    assert values.min() > 0.7
    assert values.max() < 1.3


def matrices_and_table() -> tuple[list[nn.Parameter], nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes = [(4, 6), (6, 4), (4, 6), (4, 4)]
    return [nn.Parameter(torch.randn(s, generator=generator)) for s in shapes], nn.Parameter(torch.ones(5, 4))


def stepped(n: int, resume_at: int | None) -> list[list[float]]:
    matrices, table = matrices_and_table()
    kinds = {"table": [table], "matrices": matrices}

    def build() -> Optimizer:
        return Optimizer(kinds, {"table": AdamGroup(0.1, (0.8, 0.95), 0.01)}, 0.02, torch.float32)

    optimizer = build()
    for step in range(n):
        if step == resume_at:
            saved = optimizer.state()
            optimizer = build()
            optimizer.load_state(saved)
        for i, weight in enumerate([*matrices, table]):
            weight.grad = torch.sin(torch.arange(weight.numel()) * (0.3 + i) + step).view(weight.shape)
        optimizer.step(lr=1.0, momentum=0.9, weight_decay=0.1)
        optimizer.zero_grad()
    return [weight.flatten().tolist() for weight in (*matrices, table)]


def test_state_carries_everything_a_resumed_run_needs() -> None:
    assert stepped(6, resume_at=3) == stepped(6, resume_at=None)


def test_a_stack_moves_as_its_matrices_would_alone() -> None:
    together, _ = matrices_and_table()
    alone, _ = matrices_and_table()
    adam = {"table": AdamGroup(0.1, (0.8, 0.9), 0)}

    def build(matrices: list[nn.Parameter]) -> Optimizer:
        return Optimizer({"table": [nn.Parameter(torch.ones(1))], "matrices": matrices}, adam, 0.02, torch.float32)

    stacked, singles = build(together), [build([weight]) for weight in alone]
    for step in range(3):
        for a, b in zip(together, alone, strict=True):
            a.grad = torch.cos(torch.arange(a.numel()) + step).view(a.shape)
            b.grad = a.grad.clone()
        for optimizer in (stacked, *singles):
            optimizer.step(1.0, 0.9, 0.1)
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a, b)


def test_moments_made_beforehand_lie_where_their_weights_do() -> None:
    """A fused AdamW keeps even its count of steps on the device; torch's own first step says what is there."""
    elsewhere = torch.optim.AdamW([nn.Parameter(torch.zeros(2, device="meta"))])
    adam.prime(elsewhere)
    (state,) = elsewhere.state.values()
    assert {name: value.device.type for name, value in state.items()} == dict.fromkeys(state, "meta")
    primed, stepped = (torch.optim.AdamW([nn.Parameter(torch.zeros(2))], fused=True) for _ in range(2))
    adam.prime(primed)
    stepped.param_groups[0]["params"][0].grad = torch.zeros(2)
    stepped.step()
    (mine,), (its,) = primed.state.values(), stepped.state.values()
    assert {key: (value.shape, value.dtype) for key, value in mine.items()} == {
        key: (value.shape, value.dtype) for key, value in its.items()
    }
