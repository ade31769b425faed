"""Windowed attention against the naive oracle; what a window hides cannot matter."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.model import attention, fused
from fathom.model.attention import attend, flex_is_there, kernel_for
from fathom.model.attention_choice import choose_attention
from fathom.model.shape import Shape
from tests.oracles import attention as oracle


@settings(max_examples=40, deadline=None)
@given(
    seq_len=st.integers(1, 300),
    window=st.integers(0, 320),
    kv_heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 10),
)
def test_attention_is_the_oracles_forward_and_backward(seq_len: int, window: int, kv_heads: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def draw(heads: int) -> torch.Tensor:
        return torch.randn(2, seq_len, heads, 8, generator=generator, requires_grad=True)

    inputs = (draw(4), draw(kv_heads), draw(kv_heads))
    upstream = torch.randn(2, seq_len, 4, 8, generator=generator)
    fast, slow = attend(*inputs, window), oracle.attend(*inputs, window)
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-3)


def test_a_window_of_w_sees_itself_and_w_tokens_before() -> None:
    seq_len, window = 400, 130
    q, k, v = (torch.randn(1, seq_len, 1, 8) for _ in range(3))
    before = attend(q, k, v, window)
    v[:, 100] += 1000
    changed = (attend(q, k, v, window) != before).any(-1).flatten().nonzero().flatten()
    assert changed.tolist() == list(range(100, 100 + window + 1))


@pytest.mark.parametrize(
    ("device", "window", "kernel"),
    [("cpu", 512, "full"), ("cpu", 511, "full"), ("cpu", 128, "blocks"), ("cuda", 128, "flex"), ("mps", 128, "blocks")],
)
def test_the_kernel_is_chosen_by_device_and_window(device: str, window: int, kernel: str) -> None:
    assert kernel_for(device, window, 512) == kernel


@pytest.mark.parametrize("lacking", ["", "Ampere", "Triton", "a C compiler"])
def test_flex_is_for_ampere_and_later_with_triton_and_a_compiler(monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (7, 5) if lacking == "Ampere" else (8, 9))
    monkeypatch.setattr(attention, "find_spec", lambda name: None if lacking == "Triton" else name)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(attention.shutil, "which", lambda name: None if lacking == "a C compiler" else name)
    flex_is_there.cache_clear()
    try:
        assert kernel_for("cuda", 128, 512) == ("blocks" if lacking else "flex")
    finally:
        flex_is_there.cache_clear()


def test_a_mask_first_made_in_an_evaluation_serves_training_too() -> None:
    attention._flex_mask.cache_clear()
    with torch.inference_mode():
        mask = attention._flex_mask(256, 64, torch.device("cpu"))
    assert not mask.kv_num_blocks.is_inference() and not mask.q_indices.is_inference()


SHORT, LONG = Shape(4, 2, 2, 32, 300, 512, "SSSL"), Shape(4, 2, 2, 32, 300, 512, "L")


def test_what_a_cpu_runs_is_said_with_the_reason() -> None:
    choice = choose_attention(SHORT, "cpu", False)
    assert choice.value == "torch's causal kernel for whole rows, blocks of queries for windows"
    assert choice.reason == "there is no NVIDIA GPU; FlexAttention trains on NVIDIA GPUs only"
    assert choose_attention(LONG, "cpu", False).value == "torch's causal kernel for whole rows"
    assert choose_attention(LONG, "cpu", True).value == "blocks of queries for documents"


def test_where_kernels_of_our_own_attend_they_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused.kernels, "attends_in", lambda dtype: dtype == torch.bfloat16)
    assert "of our own" in choose_attention(SHORT, "cpu", False, torch.bfloat16, own=True).value
    for apart, dtype, own in (
        (True, torch.bfloat16, True),
        (False, torch.float32, True),
        (False, torch.bfloat16, False),
    ):
        assert "of our own" not in choose_attention(SHORT, "cpu", apart, dtype, own).value


@pytest.mark.parametrize(
    ("capability", "activates", "value", "reason"),
    [
        ((9, 0), True, "FlashAttention 3", "its package is there"),
        ((10, 0), True, "FlashAttention 4", "its package is there"),
        ((9, 0), False, "FlashAttention 2", "FA3 is not usable here (No module named"),
        ((8, 9), True, "FlashAttention 2", "3 and 4 are for Hopper"),
        ((12, 0), True, "FlashAttention 2", "not compute capability 12"),
        ((7, 5), True, "memory-efficient", "wants a GPU from Ampere on"),
    ],
)
def test_newer_flash_attention_is_switched_on_where_torch_can(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], activates: bool, value: str, reason: str
) -> None:
    asked: list[str] = []

    def activate(name: str) -> None:
        asked.append(name)
        if not activates:
            raise ModuleNotFoundError("No module named 'flash_attn_interface'")

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.nn.attention, "activate_flash_attention_impl", activate, raising=False)
    choice = choose_attention(LONG, "cuda", False)
    assert value in choice.value and reason in choice.reason
    assert asked == {9: ["FA3"], 10: ["FA4"]}.get(capability[0], [])


def test_a_torch_that_cannot_take_another_keeps_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.delattr(torch.nn.attention, "activate_flash_attention_impl", raising=False)
    choice = choose_attention(LONG, "cuda", False)
    assert "FlashAttention 2" in choice.value and f"torch {torch.__version__} cannot take another" in choice.reason


def test_no_mask_is_as_large_as_the_square_of_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    real = attention.F.scaled_dot_product_attention

    def watch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
        mask = options.get("attn_mask")
        sizes.append(0 if mask is None else mask.numel())
        return real(q, k, v, **options)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watch)
    q = torch.randn(1, 2048, 1, 8)
    attend(q, q, q, 512)
    assert max(sizes) <= 128 * (128 + 512)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("window", [64, 128, 500, 2048])
def test_attention_on_a_gpu_is_the_oracles(window: int) -> None:
    q, k, v = (torch.randn(2, 1024, 4, 64, device="cuda", requires_grad=True) for _ in range(3))
    fast, slow = attend(q, k, v, window), oracle.attend(q.cpu(), k.cpu(), v.cpu(), window)
    torch.testing.assert_close(fast.cpu(), slow, atol=2e-3, rtol=1e-2)
