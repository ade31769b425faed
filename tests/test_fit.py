"""The device batch from a measured pass: on a GPU that is made up here, on a real one where there is one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.train.fit import SPARE, bytes_of_a_pass, fitted_rows, rows_measured


def gpu(fixed: float, a_row: float, free: float) -> Callable[[int], float]:
    def needs(rows: int) -> float:
        if fixed + rows * a_row > free:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return fixed + rows * a_row

    return needs


@given(
    rows=st.integers(1, 256),
    per_step=st.sampled_from([1, 12, 64, 256, 250]),
    fixed=st.floats(0, 10),
    a_row=st.floats(0.01, 5),
    free=st.floats(1, 200),
)
def test_what_is_measured_fits_and_nothing_larger_would(
    rows: int, per_step: int, fixed: float, a_row: float, free: float
) -> None:
    rows = max(n for n in range(1, min(rows, per_step) + 1) if per_step % n == 0)
    found = rows_measured(rows, per_step, free, gpu(fixed, a_row, free))
    assert per_step % found == 0
    room = (1 - SPARE) * free - fixed
    larger = [n for n in range(found + 1, per_step + 1) if per_step % n == 0]
    few, half = max(1, rows // 4), max(2, rows // 2)
    if few < rows and fixed + half * a_row <= free:
        assert found == 1 or found * a_row <= room * (1 + 1e-9)
        assert not larger or larger[0] * a_row > room * (1 - 1e-9)
    else:
        assert found <= rows


def model() -> GPT:
    made = GPT(Shape(1, 1, 1, 32, 100, 16, "L"))
    made.init_weights(torch.Generator().manual_seed(0))
    return made


def test_a_run_that_is_resumed_is_split_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: dict[str, object] = {}
    assert fitted_rows(None, 8, 16, model(), notes, None) == 8 and notes == {}, "a CPU tells nothing of its memory"
    assert fitted_rows(None, 8, 16, model(), {"fits": [4, False]}, None) == 4
    assert fitted_rows(None, 8, 12, model(), {"fits": [8, False]}, None) == 8
    assert fitted_rows(2, 2, 16, model(), {}, None) == 2


def test_a_pass_that_runs_out_of_memory_leaves_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The layers that it came to have one, and the first step would add to it."""
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    network = GPT(Shape(2, 1, 1, 32, 50, 8, "L"), torch.float32)
    network.init_weights(torch.Generator().manual_seed(0))
    had: list[int] = []

    def out_of_memory(gradient: torch.Tensor) -> None:
        had.append(sum(weight.grad is not None for weight in network.parameters()))
        raise torch.OutOfMemoryError("injected")

    network.token_embedding.register_hook(out_of_memory)  # the last one of a backward pass
    with pytest.raises(torch.OutOfMemoryError, match="injected"):
        bytes_of_a_pass(network)(2)
    assert had and had[0] > 0
    assert all(weight.grad is None for weight in network.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_pass_on_a_gpu_costs_more_for_more_rows() -> None:
    needs = bytes_of_a_pass(GPT(Shape(4, 4, 4, 64, 1000, 512, "SSSL"), torch.bfloat16).cuda())
    assert 0 < needs(4) < needs(8)
