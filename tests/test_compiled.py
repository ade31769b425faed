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

    def trained(compiled: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
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
        return loss.detach(), {name: weight.grad for name, weight in model.named_parameters()}

    (eager, slow), (compiled, fast) = trained(False), trained(True)
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(compiled, eager, rtol=tolerance, atol=tolerance)
    for name, gradient in slow.items():
        scale = gradient.float().norm()
        assert (fast[name].float() - gradient.float()).norm() <= tolerance * scale + 1e-7, name
