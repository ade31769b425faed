"""From flags and recipe to every number of a run: who wins, what is recorded, what is refused."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.errors import FathomError
from fathom.estimate import Work, fits
from fathom.model.shape import Shape
from fathom.train.settings import KNOBS, Knob, device_rows, micro_rows, read_recipe, resolve

EXAMPLES: dict[str, Any] = {
    "depth": 3,
    "rules": "reference",
    "head_dim": 64,
    "seq_len": 1024,
    "window": "L",
    "ratio": 5.0,
    "steps": 77,
    "flops": 1e15,
    "batch_tokens": 2**16,
    "packing": "best-fit",
    "lr_scale": 0.5,
    "matrix_lr": 0.03,
    "embedding_lr": 0.4,
    "head_lr": 0.009,
    "scalar_lr": 0.6,
    "weight_decay": 0.1,
    "warmup_steps": 11,
    "warmdown_share": 0.5,
    "final_lr": 0.1,
    "seed": 9,
}


def found_in(settings: Any, knob: str) -> Any:
    if knob in ("seq_len", "head_dim"):
        return getattr(settings.shape, knob)
    if knob == "window":
        return settings.shape.window_pattern
    return settings.flat()[knob]


@pytest.mark.parametrize("knob", sorted(set(KNOBS) - {"depth", "ratio", "flops"}))
def test_a_recipe_outranks_the_rule_and_a_flag_the_recipe(knob: str) -> None:
    value = EXAMPLES[knob]
    other = {"rules": "auto", "packing": "lossless", "window": "SL"}.get(knob) or value * 2
    if knob in ("warmdown_share", "final_lr"):
        other = 0.25
    base = {} if knob == "depth" else {"depth": 4}
    by_rule = resolve(base, {}, 1000)
    by_recipe = resolve(base, {knob: value}, 1000)
    by_flag = resolve(base | {knob: other}, {knob: value}, 1000)
    assert found_in(by_recipe, knob) == value
    assert found_in(by_flag, knob) == other
    assert by_recipe.origin[knob] == "recipe"
    assert by_flag.origin[knob] == "flag"
    assert by_rule.origin[knob] not in ("recipe", "flag")


@pytest.mark.parametrize(
    ("flag", "told"), [("ratio", "steps"), ("ratio", "flops"), ("steps", "flops"), ("flops", "steps")]
)
def test_a_flag_for_the_length_puts_aside_what_the_recipe_says_of_it(flag: str, told: str) -> None:
    flags = {"depth": 4, flag: EXAMPLES[flag]}
    assert resolve(flags, {told: EXAMPLES[told]}, 1000) == resolve(flags, {}, 1000)


def test_batch_and_decay_follow_the_recipe_s_ratio_whatever_is_trained() -> None:
    by_recipe = resolve({"depth": 4, "steps": 7}, {"ratio": 5.0}, 1000)
    by_flag = resolve({"depth": 4, "ratio": 5.0}, {}, 1000)
    assert by_recipe.steps == 7
    assert (by_recipe.tokens, by_recipe.weight_decay) == (by_flag.tokens, by_flag.weight_decay)


def test_a_flag_that_was_not_given_leaves_the_recipe_alone() -> None:
    found = resolve({"depth": None, "steps": None, "json": True, "corpus": "x"}, {"depth": 5, "steps": 3}, 1000)
    assert (found.depth, found.steps, found.origin["depth"]) == (5, 3, "recipe")


def test_the_record_names_the_origin_of_every_number() -> None:
    found = resolve({"depth": 4}, {}, 1000)
    recorded = set(found.origin)
    assert recorded == set(KNOBS) - {"flops"}
    assert all(found.origin.values())
    horizon = resolve({"depth": 4}, {"flops": 1e14}, 1000).origin
    assert horizon["flops"] == "recipe"


def test_a_recipe_s_words_have_dashes_or_underscores(tmp_path: Path) -> None:
    path = tmp_path / "tiny.toml"
    path.write_text('# für später\ndepth = 4\nbatch-tokens = 8192\nseq_len = 512\nwindow = "L"\nratio = 3\n', "utf-8")
    assert read_recipe(str(path)) == {"depth": 4, "batch_tokens": 8192, "seq_len": 512, "window": "L", "ratio": 3}
    assert resolve({}, read_recipe(str(path)), 1000).batch_tokens == 8192


def test_no_recipe_is_no_settings() -> None:
    assert read_recipe(None) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"depth 4", "is not TOML"),
        (b"depth = 4\ndepth = 5", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, content: bytes | None, words: str) -> None:
    path = tmp_path / "bad.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FathomError) as refusal:
        read_recipe(str(path))
    assert words in str(refusal.value)
    assert "bad.toml" in str(refusal.value)


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(FathomError, match="cannot be read"):
        read_recipe(str(tmp_path))


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"dept": 4}, "sets 'dept', which is no setting; did you mean depth?"),
        ({"zzz": 4}, "which is no setting; the settings are depth, rules"),
        ({"model": {"depth": 4}}, "sets 'model', which is no setting"),
        ({"depth": "4"}, "sets depth to '4'; it must be a whole number"),
        ({"depth": 4.0}, "sets depth to 4.0; it must be a whole number"),
        ({"depth": True}, "sets depth to True; it must be a whole number"),
        ({"ratio": True}, "sets ratio to True; it must be a number"),
        ({"ratio": "12"}, "sets ratio to '12'; it must be a number"),
        ({"window": 3}, "sets window to 3; it must be text in quotes"),
        ({"depth": [4]}, "sets depth to [4]; it must be a whole number"),
        ({"rules": "refrence"}, "sets rules to 'refrence'; did you mean reference?"),
        ({"packing": "tight"}, "sets packing to 'tight'; choose best-fit or lossless"),
        ({"lr_scale": math.nan}, "sets lr_scale to nan; choose a number from 0 to 10^6"),
        ({"warmdown_share": 1.5}, "sets warmdown_share to 1.5; choose a number from 0 to 1"),
        ({"seed": -1}, "sets seed to -1; choose a whole number from 0 to 10^18"),
        ({"steps": 7, "flops": 1e15}, "the recipe's steps and flops both say how long to train; give one of them"),
    ],
)
def test_a_recipe_with_a_wrong_value_is_refused(recipe: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError) as refusal:
        resolve({"depth": 4}, recipe, 1000)
    assert words in str(refusal.value)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "no depth was given"),
        ({"depth": 0}, "--depth is 0; choose a whole number from 1 to 1,000"),
        ({"depth": 10**9}, "--depth is 1000000000; choose"),
        ({"depth": 10**400}, "--depth is 10000"),
        ({"depth": 4, "batch_tokens": 1000}, "a batch of 1000 tokens is not a whole number of rows of 2048"),
        ({"depth": 4, "batch_tokens": 2049}, "choose --batch-tokens as a multiple of 2048"),
        ({"depth": 4, "head_dim": 63}, "an even number"),
        ({"depth": 4, "window": "SX"}, "window pattern 'SX'"),
        ({"depth": 1, "steps": 10**13}, "--steps is 10000000000000; choose a whole number from 1 to 10^12"),
        ({"depth": 4, "steps": 7, "flops": 1e15}, "--steps and --flops both say how long to train; give one of them"),
    ],
)
def test_flags_that_make_no_run_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(FathomError) as refusal:
        resolve(flags, {}, 1000)
    assert words in str(refusal.value)


@pytest.mark.parametrize("vocab_size", [0, -1, 10**12])
def test_a_vocabulary_that_cannot_be_is_refused(vocab_size: int) -> None:
    with pytest.raises(FathomError, match="vocab_size"):
        resolve({"depth": 4}, {}, vocab_size)


def values_of(knob: Knob) -> st.SearchStrategy[Any]:
    """Anything of the knob's type, often at its bounds or beyond."""
    if knob.kind is str:
        return st.sampled_from([*knob.words, "L", "SSSL", "", "x"])
    edges = st.sampled_from([knob.least, knob.most, 0, -1, 1, 10**30])
    if knob.kind is int:
        return st.one_of(edges.map(int), st.integers(1, 4096))
    return st.one_of(edges.map(float), st.floats())


@given(
    st.fixed_dictionaries(
        {"depth": values_of(KNOBS["depth"])}, optional={k: values_of(v) for k, v in KNOBS.items() if k != "depth"}
    )
)
def test_any_flags_end_in_a_run_that_can_be_counted_or_in_a_refusal(flags: dict[str, Any]) -> None:
    try:
        found = resolve(flags, {}, 32_768)
    except FathomError:
        return
    assert found.steps >= 1
    assert found.batch_tokens % found.shape.seq_len == 0
    assert found.rows_per_step >= 1
    for name in ("lr_scale", "width_scale", "weight_decay", "warmdown_share", "final_lr"):
        assert 0 <= getattr(found, name) < math.inf
    assert 0 < found.schedule.lr(0) <= 1


@given(st.integers(1, 10**5), st.sampled_from([64, 512, 2048, 100_000]), st.sampled_from(["cpu", "cuda", "mps"]))
def test_the_rows_of_a_micro_batch_divide_the_step(rows_per_step: int, seq_len: int, device: str) -> None:
    rows = device_rows(None, rows_per_step, seq_len, device)
    assert rows_per_step % rows == 0
    assert rows == 1 or rows * seq_len <= 32_768


def test_rows_that_were_asked_for() -> None:
    assert device_rows(8, 32, 512, "cpu") == 8
    for wrong in (0, -1, 5, 64):
        with pytest.raises(FathomError, match="does not divide the step's 32"):
            device_rows(wrong, 32, 512, "cpu")


@given(st.integers(1, 512), st.floats(1, 200))
def test_a_gpu_of_known_memory_takes_the_most_rows_that_it_holds(own: int, memory_gb: float) -> None:
    whole = Work(Shape(8, 4, 4, 128, 32_768, 2048), own)
    rows = micro_rows(None, whole, memory_gb)
    assert own % rows == 0
    assert rows == 1 or fits(replace(whole, rows=rows), memory_gb)
    more = next((more for more in range(rows + 1, own + 1) if own % more == 0), None)
    assert more is None or not fits(replace(whole, rows=more), memory_gb)


def test_elsewhere_memory_decides_nothing() -> None:
    whole = Work(Shape(8, 4, 4, 128, 32_768, 2048), 64)
    for device, rows in (("cpu", 4), ("mps", 16)):
        assert micro_rows(None, replace(whole, device=device), 500.0) == rows
    assert micro_rows(None, whole, None) == 16
    assert micro_rows(2, whole, 1.0) == 2
    with pytest.raises(FathomError, match="does not divide the step's 64"):
        micro_rows(5, whole, 500.0)


def test_more_rows_fit_on_a_gpu() -> None:
    assert device_rows(None, 64, 2048, "cpu") == 4
    assert device_rows(None, 64, 2048, "cuda") == 16
