"""Speed on GPUs of the table: every training run that REFERENCE, FIELD and the seeds give figures of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fathom.estimate import Work
from fathom.gpus import GPUS, gpu_named
from fathom.model.shape import Shape
from fathom.pace import muon_flops, step_parts, tokens_per_s, visible_keys


@dataclass(frozen=True)
class HalfWindows(Shape):
    """As the reference was until March 2026: S is half the context."""

    @property
    def short_window(self) -> int:
        return self.seq_len // 2


def dial(depth: int, window: str = "SSSL", kind: type[Shape] = Shape, vocab: int = 32_768) -> Shape:
    return kind(depth, depth // 2, depth // 2, 128, vocab, 2048, window)


def reference(shape: Shape, rows: int, grad_accum: int, ranks: int = 1, fp8: bool = False) -> Work:
    return Work(shape, rows, grad_accum, ranks, ways="reference", fp8=fp8)


def test_the_seeds_speed_on_an_rtx_4070() -> None:
    work = reference(dial(12, "L"), 8, 4)
    assert work.step_tokens == 65_536
    assert tokens_per_s(work, gpu_named("RTX 4070")) == pytest.approx(55_700, rel=0.15)


def test_the_speedrun_takes_an_hour_and_forty_minutes() -> None:
    """Run 6 of REFERENCE 13: depth 24, ratio 8, fp8, 8×H100: 5,568 steps of 1,048,576 tokens in 1.65 h."""
    work = reference(dial(24), 16, 4, ranks=8, fp8=True)
    assert work.step_tokens == 1_048_576
    assert 5_568 * work.step_tokens / tokens_per_s(work, gpu_named("H100")) / 3600 == pytest.approx(1.65, rel=0.15)


@pytest.mark.parametrize(
    ("gpu", "work", "published", "within"),
    [
        ("H100", reference(dial(24, kind=HalfWindows), 16, 2, 8), 800e3, 0.08),  # run 1, REFERENCE 13
        ("H100", reference(dial(26, kind=HalfWindows), 16, 2, 8, fp8=True), 744e3, 0.08),  # run 2
        ("H100", reference(dial(26, kind=HalfWindows), 16, 4, 8, fp8=True), 764e3, 0.08),  # run 3
        ("H100", reference(dial(26, kind=HalfWindows), 16, 4, 8), 630e3, 0.08),
        ("H100", reference(dial(26, kind=HalfWindows), 16, 4, 8, fp8=True), 740e3, 0.08),
        ("H100", reference(dial(12, kind=HalfWindows), 32, 1, 8), 4.04e6, 0.08),  # 41 % MFU, REFERENCE 14
        ("RTX 4090", reference(dial(20, "L", vocab=65_536), 4, 64), 38e3, 0.15),  # FIELD C, without value embeddings
        ("RTX 3090", reference(dial(12), 8, 32), 40e3, 0.15),  # dense masks, FIELD B
        ("A100", reference(Shape(12, 6, 6, 128, 50_304, 1024, "L"), 64, 1, 8), 1.85e6, 0.08),  # llm.c, FIELD C
        ("H100", reference(Shape(12, 6, 6, 128, 50_304, 1024, "L"), 64, 1, 8), 3.70e6, 0.08),
        ("H100", reference(Shape(48, 25, 25, 64, 50_304, 1024, "L"), 16, 8, 8), 389e3, 0.08),
    ],
)
def test_published_speeds(gpu: str, work: Work, published: float, within: float) -> None:
    assert tokens_per_s(work, gpu_named(gpu)) == pytest.approx(published, rel=within)


def test_windows_cost_the_reference_a_quarter_where_masks_are_dense_and_gain_us_something() -> None:
    """8×A100: 226k tokens/s with dense masks, 309k without windows (FIELD C; its depth is not told)."""
    a100 = gpu_named("A100")
    short, full = (reference(dial(20, window), 16, 4, 8) for window in ("SSSL", "L"))
    assert tokens_per_s(short, a100) / tokens_per_s(full, a100) == pytest.approx(226 / 309, abs=0.06)
    ours = [tokens_per_s(replace(work, ways="ours"), a100) for work in (short, full)]
    assert 1.0 < ours[0] / ours[1] < 1.15


def test_flops_of_an_update_by_hand() -> None:
    """Four squares of C: 5·(4+2)·C³ each; two of C×4C: 5·(16+2)·C³ each: 300·C³ a layer."""
    assert muon_flops(dial(12)) == 12 * 300 * 768**3


@pytest.mark.parametrize(("window", "seq_len", "keys"), [(4, 4, 2.0), (9, 4, 2.0), (2, 4, 1.5), (512, 2048, 448.0)])
def test_keys_that_a_query_sees(window: int, seq_len: int, keys: float) -> None:
    assert visible_keys(window, seq_len) == keys


@settings(deadline=None)
@given(st.sampled_from(GPUS), st.integers(1, 16), st.integers(1, 8), st.sampled_from(["ours", "reference"]))
def test_speed_is_less_than_the_data_sheet_s_and_more_accumulation_never_slows(gpu, half, accum, ways) -> None:  # type: ignore[no-untyped-def]
    work = Work(dial(2 * half), 8, accum, ways=ways)
    rate = tokens_per_s(work, gpu)
    assert all(part >= 0 for part in step_parts(work, gpu).values())
    assert rate * work.shape.flops_per_token < 1.1 * gpu.tflops * 1e12
    assert tokens_per_s(replace(work, grad_accum=accum + 1), gpu) >= rate
    alone = tokens_per_s(replace(work, grad_accum=8 * accum), gpu)
    assert tokens_per_s(replace(work, ranks=8), gpu) <= 8 * alone * 1.000001
