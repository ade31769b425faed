"""One self-contained page: nothing from outside, nothing that breaks out of its place, every number finite."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fathom.report.charts import Chart, Curve, embed, numbers, page, plain, slot, static

ROOT = Path(__file__).resolve().parents[1]


def chart(*curves: Curve, **others: object) -> Chart:
    return Chart("Loss", "step", "nats a token", curves, **others)  # type: ignore[arg-type]


def charts_in(text: str) -> list[dict]:
    found = re.search(r'<script type="application/json" id="charts">(.*?)</script>', text, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_every_chart_stands_in_the_page_with_its_slot() -> None:
    one = chart(Curve("a", [1, 2], [3.0, 4.0]), log_y=True, marks=((1.5, "warmdown"),))
    text = page("Two", f"<h1>Two</h1>{slot(0)}{slot(1)}", [one, chart()])
    assert text.count("<figure ") == 2 and 'data-chart="0"' in text and 'data-chart="1"' in text
    first, second = charts_in(text)
    assert first["curves"] == [{"name": "a", "x": [1, 2], "y": [3, 4], "style": "line"}]
    assert first["log_y"] is True and first["log_x"] is False and first["marks"] == [[1.5, "warmdown"]]
    assert second["curves"] == []


def test_what_is_not_finite_is_a_gap_and_a_point_without_place_is_left_out() -> None:
    drawn = plain(chart(Curve("a", [1, math.nan, 3, math.inf, 5], [1.0, 2.0, math.nan, 4.0, -math.inf])))
    assert drawn["curves"][0]["x"] == [1, 3, 5]
    assert drawn["curves"][0]["y"] == [1, None, None]


def test_a_mark_nowhere_is_left_out() -> None:
    assert plain(chart(marks=((math.nan, "lost"), (2.0, "here"))))["marks"] == [[2.0, "here"]]


def test_numpy_columns_are_taken_as_they_are() -> None:
    drawn = plain(chart(Curve("a", np.arange(3), np.array([0.1, np.nan, 0.3], dtype=np.float32))))
    assert drawn["curves"][0] == {"name": "a", "x": [0, 1, 2], "y": [0.1, None, 0.3], "style": "line"}


def test_a_large_x_keeps_all_its_digits() -> None:
    assert plain(chart(Curve("a", [8_519_680_001], [1.0])))["curves"][0]["x"] == [8_519_680_001]


def test_curves_of_unequal_lengths_are_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="2 x and 1 y"):
        plain(chart(Curve("a", [1, 2], [1.0])))


@given(
    st.recursive(
        st.text() | st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_embedded_json_reads_back_and_holds_no_markup(value: object) -> None:
    text = embed(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)


@given(st.lists(st.floats()))
def test_numbers_are_finite_or_null_and_near_what_they_were(values: list[float]) -> None:
    for value, short in zip(values, numbers(values), strict=True):
        assert short is None if not math.isfinite(value) else math.isclose(short or 0.0, value, rel_tol=1e-6)


def test_a_name_cannot_leave_its_script_nor_a_title_its_tag() -> None:
    hostile = "</script><script>alert(1)</script><!--\u2028{{script}}"
    text = page(hostile, "<p>{{charts}}</p>", [Chart(hostile, "x", "y", (Curve(hostile, [1], [1.0]),))])
    assert text.count("</script>") == 2, "the page's own two elements, and no other"
    assert "<script>alert" not in text
    assert charts_in(text)[0]["title"] == hostile
    assert "<p>{{charts}}</p>" in text, "what the body holds is not a placeholder"


def test_the_policy_lets_only_this_script_run_and_fetches_nothing() -> None:
    text = page("A", "", [])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
    assert policy and script
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'") and "http" not in policy[1]


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = page("A", slot(0), [chart()])
    assert not re.search(r"""<(?:link|img|iframe)\b|\bsrc\s*=\s*["']|@import|url\(""", text)


def test_the_library_comes_with_its_licence() -> None:
    text = page("A", "", [])
    assert "Permission is hereby granted" in text and "uPlot" in static("uPlot.iife.min.js")[:200]
    assert "</script" not in static("uPlot.iife.min.js") + static("charts.js") + static("page.js")


def test_static_files_go_into_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert settings["fathom.report"] == ["static/*"]
