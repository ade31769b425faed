"""Compiled kernels compute what the eager ones do. Takes a minute or two of compiling, so it is a long test."""

from __future__ import annotations

import pytest
import torch

from fathom.hardware import can_compile
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.shape import Shape


@pytest.mark.long
@pytest.mark.filterwarnings("default")  # the compiler's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loss_and_gradients_are_those_of_the_eager_kernels(dtype: torch.dtype) -> None:
    if can_compile("cpu").value == "no":
        pytest.skip(can_compile("cpu").reason)
    shape = Shape(3, 2, 2, 32, 300, 64, "SL")
    ids = torch.arange(4 * 64).view(4, 64) * 7 % 300

    def trained(dtype: torch.dtype, compiled: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model = GPT(shape, dtype)
        model.init_weights(torch.Generator().manual_seed(1))
        with torch.no_grad():
            for block in model.blocks:
                block.out.normal_(0, 0.02, generator=torch.Generator().manual_seed(2))
                block.down.normal_(0, 0.02, generator=torch.Generator().manual_seed(3))
        if compiled:
            model.compile_kernels()
        loss = model.loss(model(ids, DenseContext(64, "cpu")), ids.roll(-1, 1)) / ids.numel()
        loss.backward()
        return loss.detach(), {name: weight.grad.float() for name, weight in model.named_parameters()}

    exact_loss, exact = trained(torch.float32, compiled=False)
    eager_loss, eager = trained(dtype, compiled=False)
    compiled_loss, compiled = trained(dtype, compiled=True)
    assert (compiled_loss - exact_loss).abs() <= 2 * (eager_loss - exact_loss).abs() + 1e-4
    for name, gradient in exact.items():  # rounding in bf16 is judged by what eager kernels lose to it
        lost = (eager[name] - gradient).norm()
        assert (compiled[name] - gradient).norm() <= 2 * lost + 1e-5 * gradient.norm() + 1e-7, name
