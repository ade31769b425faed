"""Counts, windows and FLOPs pinned to REFERENCE sections 1.3, 1.6 and 1.7."""

from __future__ import annotations

import pytest

from fathom import scaling
from fathom.errors import FathomError
from fathom.model.shape import Shape


def of_depth(depth: int, window: str = "SSSL") -> Shape:
    heads = scaling.n_head(depth)
    return Shape(depth, heads, heads, 128, 32768, 2048, window)


@pytest.mark.parametrize(
    ("depth", "token", "value", "block", "scalars", "total"),
    [
        (4, 8_388_608, 16_777_216, 3_145_776, 34, 36_700_242),
        (8, 16_777_216, 67_108_864, 25_166_016, 42, 125_829_354),
        (12, 25_165_824, 150_994_944, 84_935_088, 50, 286_261_730),
        (16, 33_554_432, 268_435_456, 201_327_360, 58, 536_871_738),
        (20, 41_943_040, 419_430_400, 393_217_200, 66, 896_533_746),
        (24, 50_331_648, 603_979_776, 679_478_976, 74, 1_384_122_122),
        (26, 54_525_952, 708_837_376, 863_897_580, 78, 1_681_786_938),
    ],
)
def test_parameters_by_kind(depth: int, token: int, value: int, block: int, scalars: int, total: int) -> None:
    assert of_depth(depth).parameters == {
        "token_embedding": token,
        "value_embeddings": value,
        "head": token,
        "block_matrices": block,
        "scalars": scalars,
        "total": total,
    }


@pytest.mark.parametrize(
    ("depth", "matmul", "short", "full"),
    [
        (4, 11_534_408, 80_216_496, 94_372_272),
        (8, 41_943_256, 295_699_728, 352_322_832),
        (12, 110_100_936, 759_696_048, 887_098_032),
        (16, 234_881_816, 1_585_451_664, 1_811_944_080),
        (20, 435_160_264, 2_886_212_784, 3_240_107_184),
        (24, 729_810_648, 4_775_225_616, 5_284_833_552),
        (26, 918_423_556, 5_991_051_288, 6_573_797_400),
    ],
)
def test_flops_per_token(depth: int, matmul: int, short: int, full: int) -> None:
    assert of_depth(depth).matmul_parameters == matmul
    assert of_depth(depth).flops_per_token == short
    assert of_depth(depth, "L").flops_per_token == full


@pytest.mark.parametrize(("depth", "width"), [(5, 384), (7, 512), (12, 768), (25, 1664), (26, 1664)])
def test_odd_depths_round_up_to_whole_heads(depth: int, width: int) -> None:
    assert scaling.d_model(depth) == width


def test_windows() -> None:
    assert of_depth(6).windows == (512, 512, 512, 2048, 512, 2048)
    assert Shape(3, 2, 2, 32, 100, 1024, "ssl").windows == (256, 256, 1024)
    assert Shape(2, 2, 2, 32, 100, 512, "S").windows == (128, 512)
    assert Shape(2, 2, 2, 32, 100, 64, "S").windows == (128, 64)


def test_bytes_that_a_token_leaves_in_a_full_cache() -> None:
    assert of_depth(12).cache_bytes_per_token(2) == 2 * 12 * 768 * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n_layer": 0}, "n_layer"),
        ({"n_kv_head": 4}, "key/value"),
        ({"head_dim": 31}, "even"),
        ({"window_pattern": "SXL"}, "SXL"),
        ({"window_pattern": ""}, "window"),
        ({"head_dim": 2}, "wide"),
    ],
)
def test_impossible_shapes_are_refused(change: dict[str, object], word: str) -> None:
    sizes = {"n_layer": 2, "n_head": 6, "n_kv_head": 6, "head_dim": 32, "vocab_size": 100, "seq_len": 64}
    with pytest.raises(FathomError, match=word):
        Shape(**(sizes | change))
