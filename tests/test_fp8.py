"""Products in fp8, real ones (torch has them on a CPU too), beside an oracle that rounds and multiplies in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fathom import hardware
from fathom.errors import FathomError
from fathom.model.attention import DenseContext
from fathom.model.fp8 import GRADIENTS, INPUTS, fp8_linear, quantised, takes
from fathom.model.gpt import GPT, linear
from fathom.model.shape import Shape
from fathom.train.pretrain import pretrain
from tests.oracles.tiny_runs import furnish, hurry, pretraining

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def scaled_products_run_here() -> bool:
    if DEVICE == "cuda":
        return torch.cuda.get_device_capability() >= (8, 9)
    a, one = torch.zeros(16, 16).to(INPUTS), torch.tensor(1.0)
    try:
        torch._scaled_mm(a, a.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
    except (RuntimeError, NotImplementedError):
        return False
    return True


needs_products = pytest.mark.skipif(not scaled_products_run_here(), reason="this torch has no fp8 products here")


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The slow way: scale, round, scale back, in float64."""
    most = torch.finfo(dtype).max
    scale = most / max(float(x.abs().max()), 1e-12)
    return (x.double() * scale).clamp(-most, most).float().to(dtype).double() / scale


def draw(*size: int, spread: float = 1.0, seed: int = 0) -> Tensor:
    found = torch.randn(*size, generator=torch.Generator().manual_seed(seed)) * spread
    return found.to(DEVICE, torch.bfloat16)


@needs_products
@pytest.mark.parametrize("spread", [1e-4, 1.0, 300.0])
@pytest.mark.parametrize(("rows", "inner", "columns"), [(64, 128, 256), (32, 512, 128)])
def test_a_product_and_its_gradients_are_those_of_rounded_factors(
    rows: int, inner: int, columns: int, spread: float
) -> None:
    x, weight, upstream = draw(rows, inner, spread=spread), draw(columns, inner, seed=1).float(), draw(rows, columns)
    x.requires_grad_(), weight.requires_grad_()
    y = fp8_linear(x, weight)
    dx, dw = torch.autograd.grad(y, (x, weight), upstream)
    x8, w8, g8 = rounded(x.detach(), INPUTS), rounded(weight.detach(), INPUTS), rounded(upstream, GRADIENTS)
    for found, exact in ((y, x8 @ w8.T), (dx, g8 @ w8), (dw, g8.T @ x8)):
        assert (found.double() - exact).norm() < 0.006 * exact.norm()  # bf16 has 8 bits
    assert dx.dtype == x.dtype and dw.dtype == torch.float32
    truth = x.detach().double() @ weight.detach().double().T
    assert 0.01 < (y.double() - truth).norm() / truth.norm() < 0.06, "and it is fp8, with three bits after the point"


def test_quantising_fills_the_range_and_never_leaves_it() -> None:
    for dtype in (INPUTS, GRADIENTS):
        for x in (draw(8, 8, spread=1e-30), draw(8, 8), torch.tensor([[1.0, -3e38]]), torch.zeros(2, 2)):
            eight, back = quantised(x, dtype)
            assert eight.float().isfinite().all() and back.isfinite()
            if x.abs().max() > 1e-12:
                assert eight.float().abs().max() == torch.finfo(dtype).max
            error = (eight.float() * back - x.float()).abs().max()
            assert error <= 0.13 * x.float().abs().max() or x.abs().max() < 1e-12


def test_small_and_odd_matrices_are_left_alone() -> None:
    assert takes(torch.empty(128, 256)) and not takes(torch.empty(112, 256)) and not takes(torch.empty(136, 256))
    for rows, columns in ((7, 256), (32, 12)):
        x, weight = draw(rows, 128), draw(columns, 128, seed=1).float()
        assert torch.equal(fp8_linear(x, weight), linear(x, weight))


def made_model(fp8: bool) -> GPT:
    model, generator = GPT(Shape(2, 2, 2, 64, 300, 64, "L"), torch.bfloat16), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        for block in model.blocks:
            block.out.normal_(0, 0.05, generator=generator)
            block.down.normal_(0, 0.05, generator=generator)
        model.head.normal_(0, 0.05, generator=generator)
    if fp8:
        model.train_in_fp8()
    return model.to(DEVICE)


def gradients(model: GPT) -> tuple[float, dict[str, Tensor]]:
    ids = (torch.arange(2 * 64, device=DEVICE).view(2, 64) * 7) % 300
    loss = model.loss(model(ids, DenseContext(64, DEVICE)), ids.roll(-1, 1)) / ids.numel()
    loss.backward()
    return float(loss.detach()), {n: w.grad.float() for n, w in model.named_parameters() if w.grad is not None}


@needs_products
def test_a_network_learns_in_nearly_the_same_direction() -> None:
    (loss, exact), (loss8, found) = gradients(made_model(False)), gradients(made_model(True))
    assert loss8 == pytest.approx(loss, abs=0.03) and loss8 != loss
    for name in ("blocks.0.q", "blocks.0.up", "blocks.1.down", "blocks.1.out", "token_embedding"):
        likeness = torch.cosine_similarity(exact[name].flatten(), found[name].flatten(), dim=0)
        assert likeness > 0.97, name


@needs_products
def test_evaluation_is_not_in_fp8() -> None:
    plain, eight = made_model(False), made_model(True)
    ids = torch.arange(64, device=DEVICE)[None]
    with torch.no_grad():
        assert not torch.equal(eight(ids, DenseContext(64, DEVICE)), plain(ids, DenseContext(64, DEVICE)))
        assert torch.equal(eight.eval()(ids, DenseContext(64, DEVICE)), plain.eval()(ids, DenseContext(64, DEVICE)))


def test_flops_are_those_of_the_shape_with_it_too() -> None:
    """REFERENCE 15.9: counted from converted layers, they were a twelfth."""
    assert made_model(True).shape.flops_per_token == made_model(False).shape.flops_per_token


def test_it_is_refused_where_the_hardware_lacks_it(fathom_home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    furnish()
    with pytest.raises(FathomError, match="this machine's cpu does not multiply in fp8; leave --fp8 out"):
        pretrain(pretraining(fp8=True))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "NVIDIA GeForce RTX 3090")
    for capability, dtype, words in (
        ((8, 6), "bf16", r"RTX 3090 \(compute capability 8.6\) has no fp8"),
        ((9, 0), "fp32", "--fp8 goes with --dtype bf16, not with fp32"),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, found=capability: found)
        with pytest.raises(FathomError, match=words):
            hardware.refuse_fp8_where_there_is_none("cuda", dtype)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (8, 9))
    hardware.refuse_fp8_where_there_is_none("cuda", "bf16")
