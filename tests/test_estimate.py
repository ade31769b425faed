"""Memory by part: golden sizes of REFERENCE 11 and the seeds, and our activations counted again from autograd."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom import kernels
from fathom.estimate import (
    CHUNK_NUMBERS,
    Work,
    checkpoint_bytes,
    device_memory_gb,
    memory_parts,
    optimizer_bytes,
    weights_bytes,
)
from fathom.gpus import gpu_named
from fathom.kernels import build
from fathom.model.attention import DenseContext
from fathom.model.gpt import GPT
from fathom.model.loss import chunk_rows
from fathom.model.shape import Shape
from fathom.optim.optimizer import Optimizer
from fathom.optim.rates import Rates, adam_groups

D12_L = Shape(12, 6, 6, 128, 32_768, 2048, "L")
SEEDS = Work(D12_L, rows=8, grad_accum=4, ways="reference")


def test_the_checkpoint_of_the_seeds_to_the_byte() -> None:
    assert weights_bytes(SEEDS) == 792_725_384
    assert optimizer_bytes(SEEDS) == 1_246_153_072
    assert checkpoint_bytes(SEEDS) == 792_725_384 + 1_246_153_072


def test_the_seeds_peak_on_an_rtx_4070() -> None:
    """9,448 MiB with 8 rows of 2,048 in a micro-batch, REFERENCE 16."""
    peak = sum(memory_parts(SEEDS).values()) * 1e9 / 2**20
    assert peak == pytest.approx(9_448, rel=0.10)
    assert memory_parts(SEEDS)["logits"] == pytest.approx(8 * 2048 * 32_768 * 4 / 1e9)
    assert peak * 2**20 / 1e9 < device_memory_gb(gpu_named("RTX 4070").memory_gb, "cuda")


@pytest.mark.parametrize(
    ("depth", "vocab", "seq_len", "window", "rows", "peak_gb"),
    [
        (4, 8192, 512, "L", 8, 1.197),
        (4, 8192, 512, "L", 16, 1.780),
        (4, 1024, 256, "L", 16, 1.042),
        (4, 1024, 256, "L", 32, 1.662),
        (4, 1024, 1024, "L", 8, 1.687),
        (4, 1024, 1024, "SSSL", 8, 1.789),
        (6, 1024, 512, "L", 8, 1.852),
        (6, 1024, 512, "SSSL", 8, 1.862),
        (8, 1024, 256, "L", 16, 2.948),
    ],
)
def test_real_runs_on_two_cores(depth: int, vocab: int, seq_len: int, window: str, rows: int, peak_gb: float) -> None:
    """`peak_memory_gb` of trainings in float32 on Linux, torch 2.13; bench/plan.py measures others.

    Of trainings without a checkpoint on its way to the disk, whose copy is added to the estimate as it is.
    """
    work = Work(Shape(depth, depth, depth, 64, vocab, seq_len, window), rows, device="cpu", dtype="fp32")
    without_copy = sum(memory_parts(work).values()) - checkpoint_bytes(work) / 1e9
    assert without_copy == pytest.approx(peak_gb, rel=0.06)


def test_what_fits_where_in_the_reference() -> None:
    """On cards of 80 GB its miniseries takes 32 rows up to depth 18, 16 from depth 20; 34 GB at depth 12 (14)."""

    def needs(depth: int, rows: int, fp8: bool = False) -> float:
        heads = depth // 2
        shape = Shape(depth, heads, heads, 128, 32_768, 2048)
        return sum(memory_parts(Work(shape, rows, ranks=8, ways="reference", fp8=fp8)).values())

    assert needs(12, 32) == pytest.approx(34, rel=0.1)
    room = device_memory_gb(gpu_named("H100").memory_gb, "cuda")
    assert needs(18, 32) < room
    assert needs(24, 16) < room < needs(24, 32)
    assert needs(26, 16) - needs(26, 16, fp8=True) == pytest.approx(9, abs=2.5)


def test_the_chunked_loss_needs_no_more_for_more_rows() -> None:
    ours = [memory_parts(Work(D12_L, rows))["logits"] for rows in (8, 16, 64)]
    assert ours[0] == ours[1] == ours[2]
    whole = [memory_parts(Work(D12_L, rows, ways="reference"))["logits"] for rows in (8, 16, 64)]
    assert whole[1] == 2 * whole[0]
    assert whole[2] > 3 * ours[2]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_chunk_is_that_of_the_loss(device: str) -> None:
    assert max(64, CHUNK_NUMBERS[device] // 8192) == chunk_rows(8192, device)


def saved_bytes(shape: Shape, rows: int, dtype: torch.dtype, own_kernels: bool = False) -> int:
    """Of everything that autograd keeps for the backward pass, weights and their casts apart, and what it starts from.

    The slow truth: every tensor that is saved, each storage once.
    """
    model = GPT(shape, dtype)
    model.init_weights(torch.Generator().manual_seed(0))
    if own_kernels:
        model.use_cpu_kernels()
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    ids = torch.arange(rows * shape.seq_len).view(rows, -1) % shape.vocab_size
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model(ids, DenseContext(shape.seq_len, "cpu", own_kernels))
        model.loss(hidden, ids)
    kept.append(hidden)
    matrices = {tuple(weight.shape) for block in model.blocks for weight in block.parameters()}
    matrices |= {tuple(reversed(size)) for size in matrices} | {tuple(model.head.shape)}
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in kept
        if tensor.untyped_storage().data_ptr() not in weights and tuple(tensor.shape) not in matrices
    }
    return sum(storages.values())


@pytest.mark.parametrize("window", ["L", "SSSL"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("depth", [3, 6])
def test_our_activations_are_what_autograd_keeps(window: str, dtype: str, depth: int) -> None:
    shape = Shape(depth, 3, 3, 32, 300, 384, window)
    work = Work(shape, rows=2, device="cpu", dtype=dtype)
    counted = saved_bytes(shape, 2, torch.bfloat16 if dtype == "bf16" else torch.float32) / 1e9
    assert memory_parts(work)["activations"] == pytest.approx(counted, rel=0.06)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("window", ["L", "SSSL"])
def test_with_kernels_of_our_own_fewer_are_kept(window: str, dtype: str) -> None:
    if not build.load():
        pytest.skip("no compiler for the kernels")
    if dtype == "bf16" and not kernels.multiplied_by():
        pytest.skip("neither AMX nor AVX512-BF16: attention is torch's")
    shape = Shape(6, 4, 4, 64, 300, 512, window)
    work = Work(shape, rows=2, device="cpu", dtype=dtype, own_kernels=True)
    counted = saved_bytes(shape, 2, torch.bfloat16 if dtype == "bf16" else torch.float32, own_kernels=True) / 1e9
    assert memory_parts(work)["activations"] == pytest.approx(counted, rel=0.06)


def test_weights_and_moments_are_those_of_the_model() -> None:
    for dtype, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        shape = Shape(5, 3, 3, 32, 300, 64)
        work = Work(shape, rows=1, device="cpu", dtype=dtype)
        model = GPT(shape, kind)
        assert weights_bytes(work) == sum(w.numel() * w.element_size() for w in model.parameters())
        optimizer = Optimizer(model.parameter_kinds(), adam_groups(Rates(), 1.0, 1.0), 0.02, kind)
        optimizer.prime()
        state = optimizer.state()
        moments = [m for values in state["adam"].values() for key, m in values.items() if key != "step"]
        moments += [m for values in state["muon"].values() for m in values.values()]
        assert optimizer_bytes(work) == sum(m.numel() * m.element_size() for m in moments)


works = st.builds(
    Work,
    st.builds(
        Shape, st.integers(1, 30), st.just(4), st.just(4), st.sampled_from([32, 128]), st.integers(300, 70_000),
        st.sampled_from([128, 2048]), st.sampled_from(["L", "SSSL"]),
    ),
    rows=st.integers(1, 64),
    grad_accum=st.integers(1, 8),
    ranks=st.integers(1, 16),
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    dtype=st.sampled_from(["bf16", "fp16", "fp32"]),
    ways=st.sampled_from(["ours", "reference"]),
)  # fmt: skip


@settings(deadline=None)
@given(works)
def test_every_part_is_there_and_more_rows_never_need_less(work: Work) -> None:
    parts = memory_parts(work)
    assert set(parts) == {"weights", "gradients", "optimizer", "activations", "logits", "other"}
    assert all(part >= 0 for part in parts.values())
    more = memory_parts(replace(work, rows=work.rows + 1))
    assert sum(more.values()) >= sum(parts.values()) - 1e-9  # GB: but for the rounding of a sum
    assert memory_parts(replace(work, ranks=work.ranks + 1))["optimizer"] < parts["optimizer"]
