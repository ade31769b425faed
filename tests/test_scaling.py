"""The dial, pinned to the tables of REFERENCE section 3.1; what `auto` does for small models by its properties."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom import scaling
from fathom.model.shape import Shape
from fathom.train.settings import Settings, resolve


def settings_of(depth: int, vocab_size: int = 32_768, **flags: object) -> Settings:
    return resolve({"depth": depth} | flags, {}, vocab_size)


@pytest.mark.parametrize(
    ("depth", "tokens", "batch", "steps", "lr_scale", "decay", "flops"),
    [
        (4, 138_412_608, 262_144, 528, 0.707107, 1.889903, "1.11e+16"),
        (8, 503_318_784, 262_144, 1_920, 0.707107, 0.519723, "1.49e+17"),
        (12, 1_321_210_944, 524_288, 2_520, 1, 0.28, "1.00e+18"),
        (16, 2_818_581_504, 524_288, 5_376, 1, 0.13125, "4.47e+18"),
        (20, 5_221_922_880, 1_048_576, 4_980, 1.414214, 0.100188, "1.51e+19"),
        (24, 8_757_727_488, 1_048_576, 8_352, 1.414214, 0.059738, "4.18e+19"),
        (26, 11_021_082_384, 1_048_576, 10_510, 1.414214, 0.04747, "6.60e+19"),
    ],
)
def test_the_reference_at_every_depth(
    depth: int, tokens: int, batch: int, steps: int, lr_scale: float, decay: float, flops: str
) -> None:
    found = settings_of(depth, rules="reference")
    assert (found.tokens, found.batch_tokens, found.steps) == (tokens, batch, steps)
    assert found.lr_scale == pytest.approx(lr_scale, abs=5e-7)
    assert found.weight_decay == pytest.approx(decay, abs=5e-7)
    assert f"{steps * batch * found.shape.flops_per_token:.2e}" == flops
    assert found.packing == "best-fit"
    assert (found.warmup_steps, found.schedule.momentum_warmup_steps) == (40, 400)
    assert (found.warmdown_share, found.final_lr) == (0.65, 0.05)


@pytest.mark.parametrize(("first", "last", "exponent"), [(4, 8, 18), (10, 16, 19), (18, 28, 20), (32, 32, 21)])
def test_the_batch_by_depth(first: int, last: int, exponent: int) -> None:
    for depth in range(first, last + 1, 2):
        assert settings_of(depth, rules="reference").batch_tokens == 2**exponent


def test_the_user_of_the_seeds() -> None:
    """Depth 12 with 65,536 tokens a step; only the batch term acts there."""
    found = settings_of(12, rules="reference", batch_tokens=65_536, window="L")
    assert found.lr_scale == pytest.approx(0.353553, abs=5e-7)
    assert found.weight_decay == pytest.approx(0.0989949, abs=5e-8)


def test_depth_12_is_taken_with_the_run_s_own_vocabulary_and_heads() -> None:
    assert Shape(12, 6, 6, 128, 32_768, 2048).scaling_parameters == 110_100_912
    assert Shape(12, 12, 12, 64, 8_192, 2048).scaling_parameters == 91_226_976
    small = settings_of(4, 8_192, head_dim=64, seq_len=512, rules="reference")
    ratio = small.shape.scaling_parameters / 91_226_976
    assert small.weight_decay == pytest.approx(0.28 * small.lr_scale / ratio, rel=1e-6)


def test_decay_and_batch_use_the_horizon_of_the_rule_whatever_is_trained() -> None:
    whole = settings_of(4, rules="reference")
    for other in (settings_of(4, rules="reference", steps=7), settings_of(4, rules="reference", flops=1e15)):
        assert (other.batch_tokens, other.weight_decay, other.tokens) == (
            whole.batch_tokens,
            whole.weight_decay,
            whole.tokens,
        )


def test_which_horizon_counts() -> None:
    per_step = settings_of(4, rules="reference").shape.flops_per_token * 262_144
    assert settings_of(4, rules="reference", flops=10.4 * per_step).steps == 10
    assert settings_of(4, rules="reference", flops=10.6 * per_step).steps == 11
    assert settings_of(4, rules="reference", flops=1.0).steps == 1
    assert (
        settings_of(4, rules="reference", ratio=6.0).steps
        == 69_206_304 // settings_of(4, rules="reference", ratio=6.0).batch_tokens
    )


@pytest.mark.parametrize(("head_dim", "width"), [(128, 256), (64, 256), (96, 288), (250, 500), (300, 300)])
def test_widths_are_whole_heads(head_dim: int, width: int) -> None:
    assert scaling.d_model(4, head_dim) == width
    assert scaling.n_head(4, head_dim) * head_dim == width


def test_rates_fall_with_the_width() -> None:
    assert scaling.width_scale(768) == 1
    assert scaling.width_scale(192) == 2


given_flags = st.fixed_dictionaries(
    {},
    optional={
        "head_dim": st.sampled_from([64, 128]),
        "seq_len": st.sampled_from([512, 1024, 2048]),
        "ratio": st.floats(0.01, 200),
        "steps": st.integers(1, 10**6),
        "flops": st.floats(1, 1e24),
        "batch_tokens": st.sampled_from([2**15, 2**19, 2**22]),
        "window": st.sampled_from(["L", "SSSL"]),
    },
).filter(lambda flags: not {"steps", "flops"} <= flags.keys())


@given(st.integers(12, 32), given_flags, st.sampled_from([300, 8_192, 32_768]))
def test_from_depth_12_auto_is_the_reference_in_all_but_packing(
    depth: int, flags: dict[str, object], vocab_size: int
) -> None:
    auto = settings_of(depth, vocab_size, rules="auto", **flags)
    reference = settings_of(depth, vocab_size, rules="reference", **flags)
    assert auto.packing == "lossless"
    assert reference.packing == "best-fit"
    differs = {"packing", "rules"}
    assert {k: v for k, v in auto.flat().items() if k not in differs} == {
        k: v for k, v in reference.flat().items() if k not in differs
    }
    assert auto.schedule == reference.schedule
    assert auto.shape == reference.shape


def boost(depth: int, tokens: int) -> float:
    """What `auto` multiplies all rates by in a run of so many tokens."""
    batch = 2**15
    found = settings_of(depth, batch_tokens=batch, steps=max(1, tokens // batch))
    return found.lr_scale / scaling.lr_scale(batch)


horizons = st.integers(2**16, 2**38)


@given(st.integers(1, 11), horizons, st.floats(1, 3))
def test_the_boost_of_small_models_falls_gently_with_the_horizon(depth: int, tokens: int, factor: float) -> None:
    here, later = boost(depth, tokens), boost(depth, int(tokens * factor))
    assert 1 <= later <= here <= 32
    assert here / later <= factor**1.5 * 1.01


def test_a_minute_s_run_is_boosted_and_a_week_s_is_not() -> None:
    assert boost(4, 5_000_000) > 2
    assert boost(4, 10**11) == pytest.approx(1)


@given(st.integers(1, 11), st.floats(0.001, 100), st.sampled_from([128, 512, 2048, 1000]))
def test_the_batch_of_small_models_is_at_most_the_reference_s(depth: int, ratio: float, seq_len: int) -> None:
    shape = settings_of(depth, seq_len=seq_len, batch_tokens=seq_len * 64).shape
    at_12 = settings_of(12, seq_len=seq_len, batch_tokens=seq_len * 64).shape
    tokens, tokens_12 = ratio * shape.scaling_parameters, ratio * at_12.scaling_parameters
    most = scaling.batch_tokens(tokens, tokens_12)
    batch = scaling.auto_batch(depth, int(tokens), tokens, tokens_12, seq_len)
    assert seq_len <= batch <= max(most, seq_len)
    assert batch == seq_len or math.log2(batch).is_integer()
    larger = scaling.auto_batch(depth, int(tokens * 2), tokens, tokens_12, seq_len)
    assert batch <= larger <= 2 * batch


@given(st.integers(1, 10**6))
def test_warm_ups_of_small_models_take_a_small_share_and_never_longer_than_the_reference_s(steps: int) -> None:
    for warm_up, longest in ((scaling.warmup, 40), (scaling.momentum_warmup, 400)):
        assert warm_up("reference", steps) == longest
        assert 1 <= warm_up("auto", steps) <= max(1, min(longest, steps // 2))
        assert warm_up("auto", steps) <= warm_up("auto", steps + 1)
    assert scaling.warmup("auto", 10**6) == 40
    assert scaling.momentum_warmup("auto", 10**6) == 400


def test_decay_never_takes_more_than_half_a_weight_away_in_a_step() -> None:
    tiny = {"vocab_size": 1024, "head_dim": 64, "seq_len": 256, "batch_tokens": 65_536, "steps": 30}
    reference, auto = (settings_of(1, rules=rules, **tiny) for rules in ("reference", "auto"))
    assert auto.rates.matrix_lr * auto.lr_scale * reference.weight_decay > 4
    assert auto.rates.matrix_lr * auto.lr_scale * auto.weight_decay == pytest.approx(0.5)
    usual = (settings_of(4, rules=rules, batch_tokens=262_144) for rules in ("reference", "auto"))
    assert len({one.weight_decay for one in usual}) == 1, "where it takes less, the same"
    given = settings_of(1, **tiny, weight_decay=50.0)
    assert given.weight_decay == 50.0, "what is asked for is taken"
    assert settings_of(1, **tiny, lr_scale=0.0).weight_decay == reference.weight_decay
