"""Our own CPU kernels compute what the plain network does: values and every gradient, in float32 and bf16."""

import os
import subprocess

import pytest
import torch
from torch import Tensor

from fathom import kernels
from fathom.kernels import build
from fathom.model import fused, products
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT, Block, rotary_table
from fathom.model.loss import chunk_gradient
from fathom.model.shape import Shape
from tests.oracles.attention import attend as plain_attention

pytestmark = pytest.mark.skipif(not build.load(), reason="no C++ compiler whose kernels this machine can load")

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPES = list(TOLERANCE)


def distance(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def rounded(*size: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Numbers that bf16 holds exactly, in float64."""
    made = torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * scale
    return made.bfloat16().double()


def networks(dtype: torch.dtype, shape: Shape) -> tuple[GPT, GPT]:
    """One that runs on the kernels, and the same one in float64."""
    model, plain = GPT(shape, dtype), GPT(shape, torch.float64)
    model.init_weights(torch.Generator().manual_seed(1))
    with torch.no_grad():
        for block in model.blocks:
            block.out.copy_(rounded(*block.out.shape, seed=2, scale=0.05))
            block.down.copy_(rounded(*block.down.shape, seed=3, scale=0.05))
        model.smear_scale.fill_(0.3)
        model.head.copy_(rounded(*model.head.shape, seed=4, scale=0.1))
        for weight in model.parameters():
            weight.copy_(weight.bfloat16())
    plain.double().load_state_dict(model.state_dict())
    model.use_cpu_kernels()
    return model, plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_kv_head", [4, 2])
@pytest.mark.parametrize("with_value_embedding", [True, False])
def test_the_halves_of_a_layer(dtype: torch.dtype, n_kv_head: int, with_value_embedding: bool) -> None:
    shape = Shape(4, 4, n_kv_head, 32, 100, 64, "L")
    models = networks(dtype, shape)
    cos, sin = rotary_table(torch.arange(64), 32, torch.bfloat16)
    found = []
    for model, halves in zip(
        models,
        ((fused.before_attention, fused.after_attention), (Block.before_attention, Block.after_attention)),
        strict=True,
    ):
        block, flows = model.blocks[3], model.dtype
        x, first, extra = (
            rounded(3, 64, width, seed=seed).to(flows).requires_grad_()
            for seed, width in ((5, shape.d_model), (6, shape.d_model), (7, shape.d_kv))
        )
        table = extra if with_value_embedding else None
        out = halves[0](block, x, first, model.keep[3], model.add_first[3], table, cos.to(flows), sin.to(flows))
        torch.autograd.backward(out, [rounded(*part.shape, seed=8 + i).to(flows) for i, part in enumerate(out)])
        y = rounded(3, 64, 4, 32, seed=12).to(flows).requires_grad_()
        residual = x.detach().clone().requires_grad_()
        after = halves[1](block, residual, y)
        after.backward(rounded(*after.shape, seed=13).to(flows))
        given = {"x": x, "first": first, "y": y, "residual": residual, "keep": model.keep, "add": model.add_first}
        weights = dict(block.named_parameters())
        if not with_value_embedding:
            del weights["value_gate"]
        else:
            given["extra"] = extra
        gradients = {name: tensor.grad for name, tensor in (given | weights).items()}
        found.append(dict(enumerate((*out, after))) | gradients)
    for name, wanted in found[1].items():
        # In bf16 the two factors are rounded, which their own gradients show most.
        allowed = TOLERANCE[dtype] * (5 if name in ("keep", "add") else 1)
        assert distance(found[0][name], wanted) < allowed, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_loss_of_a_chunk(dtype: torch.dtype) -> None:
    raw, targets = rounded(70, 515, scale=20), torch.arange(70) * 7 % 515
    scale = torch.linspace(0, 1, 70)  # the first row is not learnt from
    wanted, wanted_gradient = chunk_gradient(raw.clone(), targets, scale.double())
    loss, gradient = fused.chunk_gradient(raw.to(dtype), targets, scale)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-3 if dtype == torch.bfloat16 else 1e-6)
    assert distance(gradient, wanted_gradient) < TOLERANCE[dtype]
    assert not gradient[0].any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_kv_head", "pattern"), [(2, "SL"), (1, "L")])
def test_a_whole_network(dtype: torch.dtype, n_kv_head: int, pattern: str) -> None:
    """T = 160 and a window of 128: rows that no power of two divides, and keys that the window hides."""
    shape = Shape(3, 2, n_kv_head, 32, 300, 160, pattern)
    models = networks(dtype, shape)
    ids = torch.arange(2 * 160).view(2, 160) * 31 % 300
    targets = ids.roll(-1, 1).masked_fill(ids % 5 == 0, -1)
    losses = []
    for model in models:
        loss = model.loss(model(ids, DenseContext(160, "cpu", model.has_cpu_kernels)), targets)
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], rel=2e-3 if dtype == torch.bfloat16 else 1e-6)
    for (name, found), (_, wanted) in zip(models[0].named_parameters(), models[1].named_parameters(), strict=True):
        assert distance(found.grad, wanted.grad) < 6 * TOLERANCE[dtype], name


needs_products = pytest.mark.skipif(
    not kernels.multiplied_by(), reason="the CPU has neither AMX nor AVX512-BF16, or the system does not lend it"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_products)])
@pytest.mark.parametrize(
    ("seq_len", "n_head", "n_kv_head", "head_dim", "window"),
    [(64, 2, 2, 64, 64), (128, 4, 2, 32, 40), (256, 2, 1, 128, 17), (160, 1, 1, 64, 0), (96, 3, 3, 96, 31)],
)
def test_attention(seq_len: int, n_head: int, n_kv_head: int, head_dim: int, window: int, dtype: torch.dtype) -> None:
    sizes = [(2, seq_len, heads, head_dim) for heads in (n_head, n_kv_head, n_kv_head)]
    upstream = rounded(2, seq_len, n_head, head_dim, seed=9)
    found, wanted = (
        [rounded(*size, seed=i).to(numbers).requires_grad_() for i, size in enumerate(sizes)]
        for numbers in (dtype, torch.float64)
    )
    y, plain = fused.attend(*found, window), plain_attention(*wanted, window)
    assert fused.can_attend(found[0], found[1])
    y.backward(upstream.to(dtype))
    plain.backward(upstream)
    assert distance(y, plain) < (5e-3 if dtype == torch.bfloat16 else 1e-6)
    for mine, other in zip(found, wanted, strict=True):
        if window:  # alone with itself a query has no choice: its gradient is zero but for rounding
            assert distance(mine.grad, other.grad) < (8e-3 if dtype == torch.bfloat16 else 1e-6)
    if not window:
        assert float(found[0].grad.abs().max()) < 0.05


@needs_products
def test_a_weight_gradient_is_summed_in_float32() -> None:
    dy, x = rounded(1056, 96, seed=1), rounded(1056, 64, seed=2)
    gradient = torch.ones(96, 64)
    wide = torch.cat([x, x], dim=1).bfloat16()[:, :64]  # rows further apart than they are long
    products.add_weight_gradient(gradient, dy.bfloat16(), wide)
    assert distance(gradient, dy.T @ x + 1) < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_what_is_no_number_does_not_pass_for_one(dtype: torch.dtype, broken: float) -> None:
    model, _ = networks(dtype, Shape(2, 2, 2, 32, 100, 64, "L"))
    with torch.no_grad():
        model.blocks[0].up[3, 5] = broken
    ids = torch.arange(128).view(2, 64) % 100
    loss = model.loss(model(ids, DenseContext(64, "cpu", model.has_cpu_kernels)), ids)
    loss.backward()
    gradients = torch.stack([weight.grad.float().norm() for weight in model.parameters()])
    assert not (loss + gradients.sum()).isfinite()


def test_the_same_again_and_on_one_thread() -> None:
    """What the threads do is put together in a fixed order."""
    model, _ = networks(torch.float32, Shape(2, 2, 2, 32, 100, 64, "L"))
    ids = torch.arange(8 * 64).view(8, 64) * 7 % 100

    def gradients() -> Tensor:
        model.zero_grad()
        model.loss(model(ids, DenseContext(64, "cpu", model.has_cpu_kernels)), ids).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    assert torch.equal(gradients(), gradients())


def test_without_a_compiler_there_are_none(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert build.compiler() == ""


def test_a_compiler_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setenv("FATHOM_HOME", str(tmp_path))
    false = subprocess.run(["sh", "-c", "command -v false"], capture_output=True, text=True).stdout.strip()
    monkeypatch.setenv("CXX", false)
    build._build.cache_clear()
    try:
        assert build._build() is None
        assert not any(name.endswith(".so") for _, _, files in os.walk(str(tmp_path)) for name in files)
    finally:
        build._build.cache_clear()
