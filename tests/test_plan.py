"""`fathom plan`: the golden plan, nonsense numbers, and how it looks in a window of 80 columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fathom import cli, hardware, screen
from fathom.errors import FathomError
from fathom.report import plan
from fathom.report.plan import Plan


@pytest.fixture
def planned(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `fathom plan … --json` on a machine without a GPU: (exit code, the object or None, standard error)."""
    monkeypatch.setattr(hardware, "likely_device", lambda: "cpu")

    def run(*argv: str) -> tuple[Any, Any, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["plan", *argv, "--json"])
        said = capsys.readouterr()
        return stop.value.code, json.loads(said.out) if said.out else None, said.err

    return run


def test_the_golden_plan(planned: Any) -> None:
    code, found, err = planned("--depth", "12", "--window", "L", "--batch-tokens", "65536")
    assert (code, err) == (0, "")
    assert found.pop("lr_scale") == pytest.approx(0.353553, abs=5e-7)
    assert found.pop("weight_decay") == pytest.approx(0.0989949, abs=5e-8)
    assert found == {
        "parameters": {
            "token_embedding": 25_165_824,
            "value_embeddings": 150_994_944,
            "head": 25_165_824,
            "block_matrices": 84_935_088,
            "scalars": 50,
            "total": 286_261_730,
        },
        "windows": [2048] * 12,
        "flops_per_token": 887_098_032,
        "tokens": 1_321_205_760,
        "batch_tokens": 65_536,
        "steps": 20_160,
        "device_batch": 4,
        "grad_accum": 8,
        "packing": "lossless",
        "rules": "auto",
    }


def test_what_is_not_given_comes_from_the_rules(planned: Any) -> None:
    _, short, _ = planned("--depth", "12")
    _, long, _ = planned(
        *("--depth", "12", "--head-dim", "128", "--seq-len", "2048", "--vocab", "32768"),
        *("--window", "SSSL", "--ratio", "12", "--batch-tokens", "524288", "--device-batch", "4"),
    )
    assert short == long
    assert short["windows"] == [512, 512, 512, 2048] * 3


def test_a_recipe_is_read(planned: Any, tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('depth = 4\nwindow = "L"\nsteps = 3\n')
    code, found, _ = planned("--recipe", str(path), "--steps", "5")
    assert (code, found["steps"], found["windows"]) == (0, 5, [2048] * 4)
    path.write_text("dept = 4\n")
    code, found, err = planned("--recipe", str(path))
    assert (code, found) == (2, None)
    assert err == "fathom: the recipe sets 'dept', which is no setting; did you mean depth?\n"


def test_a_gpu_takes_more_rows_at_a_time(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "likely_device", lambda: "cuda")
    _, found, _ = planned("--depth", "12", "--batch-tokens", "65536")
    assert (found["device_batch"], found["grad_accum"]) == (16, 2)


NUMERIC = ("depth", "head-dim", "seq-len", "vocab", "ratio", "steps", "flops", "batch-tokens", "device-batch")
NONSENSE = (
    "0",
    "-1",
    "-0.0",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1" + "0" * 30,
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "",
    "x",
)


@pytest.mark.parametrize("flag", NUMERIC)
def test_nonsense_is_refused_in_one_sentence(planned: Any, flag: str) -> None:
    depth = () if flag == "depth" else ("--depth", "4")
    for value in NONSENSE:
        code, found, err = planned(*depth, f"--{flag}={value}")
        if flag == "flops" and value == "1" + "0" * 30:
            assert code == 0  # more than the world has, but a number
            continue
        assert (code, found) == (2, None), value
        assert err.startswith("fathom: ")
        assert err.count("\n") == 1
        assert len(err) < 300


def test_a_depth_that_would_take_for_ever_to_count(planned: Any) -> None:
    assert (
        planned("--depth", "1000000000")[2] == "fathom: --depth is 1000000000; choose a whole number from 1 to 1,000.\n"
    )
    assert planned("--depth", "1000")[0] == 0


@given(
    depth=st.integers(-1, 1001),
    steps=st.none() | st.integers(-1, 10**13),
    flops=st.none() | st.floats(),
    ratio=st.none() | st.floats(),
    seq_len=st.none() | st.integers(-1, 4096),
    vocab=st.integers(-1, 10**6),
    device_batch=st.none() | st.integers(-1, 64),
)
def test_any_plan_is_whole_or_refused(**flags: Any) -> None:
    try:
        found = Plan(json=True, **flags).run()
    except FathomError:
        return
    assert found["tokens"] == found["steps"] * found["batch_tokens"]
    rows = found["batch_tokens"] // (flags["seq_len"] or 2048)
    assert found["device_batch"] * found["grad_accum"] == rows
    json.dumps(found, allow_nan=False)


def shown(monkeypatch: pytest.MonkeyPatch, **flags: Any) -> str:
    file = io.StringIO()
    console = Console(file=file, width=80, highlight=False, soft_wrap=True)
    monkeypatch.setattr(plan, "console", lambda: console)
    monkeypatch.setattr(hardware, "likely_device", lambda: "cpu")
    Plan(**flags).run()
    return file.getvalue()


@pytest.mark.parametrize("depth", [1, 4, 12, 26])
@pytest.mark.parametrize("rules", ["auto", "reference"])
def test_every_row_fits_a_window_of_80(monkeypatch: pytest.MonkeyPatch, depth: int, rules: str) -> None:
    lines = shown(monkeypatch, depth=depth, rules=rules).splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert all(line[:1] != " " for line in lines if line.strip()), "a row was wrapped"


def test_windows_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "windows: 12 × 2,048" in shown(monkeypatch, depth=12, window="L")
    assert "windows: 9 × 512, 3 × 2,048" in shown(monkeypatch, depth=12)


def test_the_plan_says_where_numbers_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, depth=12, steps=100, batch_tokens=65_536)
    rows = {line[:16].strip(): line for line in text.splitlines()}
    assert rows["steps"].split()[-2:] == ["100", "flag"]
    assert "tokens a step; flag" in rows["batch"]
    assert rows["parameters"].split()[-1] == "286,261,730"
    assert "flag" in {line[:16].strip(): line for line in shown(monkeypatch, depth=4, flops=1e15).splitlines()}["steps"]


def test_the_other_screen_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    screen.console.cache_clear()
    Plan(depth=4, json=True).run()
    assert capfd.readouterr() == ("", "")
