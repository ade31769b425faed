"""`fathom plan`: the golden plan, GPUs, hours, worth, data, nonsense, and how it looks in a window of 80 columns."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from fathom import cli, hardware, screen
from fathom.errors import FathomError
from fathom.estimate import Work, rows_that_fit
from fathom.gpus import gpu_named
from fathom.model.shape import Shape
from fathom.report import plan_instead, plan_machine, plan_view
from fathom.report.plan import Plan
from fathom.report.plan_machine import Machine, Speed, probe_size
from fathom.report.plan_outlook import bytes_per_token
from fathom.report.plan_search import work_of
from fathom.train.settings import resolve


@pytest.fixture(scope="module", autouse=True)
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test plans by what its user has at home."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FATHOM_HOME", str(tmp_path_factory.mktemp("home")))
        yield


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
    golden = {
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
    assert {key: found[key] for key in golden} == golden


def test_what_is_not_given_comes_from_the_rules(planned: Any) -> None:
    _, short, _ = planned("--depth", "12")
    _, long, _ = planned(
        *("--depth", "12", "--head-dim", "128", "--seq-len", "2048", "--vocab", "32768"),
        *("--window", "SSSL", "--ratio", "12", "--batch-tokens", "524288", "--device-batch", "4"),
    )
    typed = {"commands": None, "instead": None}
    assert short | typed == long | typed
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
    monkeypatch.setattr(hardware, "likely_gpu", lambda: None)
    _, found, _ = planned("--depth", "12", "--batch-tokens", "65536")
    assert (found["device_batch"], found["grad_accum"]) == (16, 2)
    assert (found["fits"], found["hours"], found["device_memory_gb"]) == (None, None, None)


NUMERIC = (
    *("depth", "head-dim", "seq-len", "vocab", "ratio", "steps", "flops", "batch-tokens", "device-batch"),
    *("ranks", "price", "watts", "hours"),
)
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


# Much, and free, but numbers.
ACCEPTED = {
    *(("flops", "1" + "0" * 30), ("price", "0"), ("price", "-0.0"), ("watts", "0"), ("watts", "-0.0")),
    *(("price", "1" + "0" * 30), ("watts", "1" + "0" * 30)),
}


@pytest.mark.parametrize("flag", NUMERIC)
def test_nonsense_is_refused_in_one_sentence(planned: Any, flag: str) -> None:
    depth = () if flag == "depth" else ("--depth", "4") if flag != "hours" else ("--depth", "4", "--gpu", "RTX 4070")
    for value in NONSENSE:
        code, found, err = planned(*depth, f"--{flag}={value}")
        if (flag, value) in ACCEPTED:
            assert code == 0, err
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


@settings(deadline=None)
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
    monkeypatch.setattr(plan_view, "console", lambda: console)
    monkeypatch.setattr(hardware, "likely_device", lambda: "cpu")
    Plan(**flags).run()
    return file.getvalue()


@pytest.mark.parametrize("depth", [1, 4, 12, 26])
@pytest.mark.parametrize("rules", ["auto", "reference"])
@pytest.mark.parametrize("gpu", [None, "RTX 4070"])
def test_every_row_fits_a_window_of_80(
    monkeypatch: pytest.MonkeyPatch, fathom_home: Path, depth: int, rules: str, gpu: str | None
) -> None:
    text = shown(monkeypatch, depth=depth, rules=rules, gpu=gpu)
    table, outlook = text.split("\nOn ")
    assert all(len(line) <= 80 for line in text.splitlines() if not line.startswith("  fathom"))
    assert all(line[:1] != " " for line in table.splitlines()[:-1] if line.strip()), "a row was wrapped"
    labels = [line.split()[0] for line in outlook.splitlines()[1:] if line[:1].isalpha()]
    rest = ["Takes", "Worth", "bpb", "CORE", "Data", "Disk"] if "not even one row" not in outlook else []
    commands = ["Better", "Or,"] if rest and (gpu is None or depth == 1) else ["Next,"]
    assert labels == ["Fits", *rest, *commands]


def test_a_newcomer_reads_what_to_do(monkeypatch: pytest.MonkeyPatch, fathom_home: Path) -> None:
    text = shown(monkeypatch, depth=12, gpu="RTX 4070", device_batch=32)
    assert "not with 32 rows at once" in text and "--device-batch 8 does" in text
    assert "GPT-1 sized" in text and "nine times in ten" in text and "kWh, $" in text
    assert "there is no corpus here yet" in " ".join(text.split())
    commands = text.split("Next, on the machine with the RTX 4070, type\n")[1].splitlines()
    assert [line.split()[1] for line in commands] == ["data", "tokenizer", "pretrain"]
    assert commands[2].endswith("--depth 12 --device-batch 8")


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


def test_what_is_not_worth_it_says_what_is() -> None:
    machine = Machine("cpu", "x", None, 64.0, "fp32", 1, is_here=True)
    slow = plan_instead.instead({"depth": 12, "vocab": 32_768}, shape_of(12), 12.0, 225 * 24.0, machine)
    assert slow is not None and "225 d 0 h are not worth it" in slow["why"]
    assert slow["commands"][0].endswith("plan --hours 8") and slow["commands"][1].endswith("quickstart")
    scraps = plan_instead.instead({"depth": 12, "steps": 20, "vocab": 32_768}, shape_of(12), 0.1, 3.0, machine)
    assert scraps is not None and "0.1 tokens a parameter" in scraps["why"]
    tables = plan_instead.instead({"hours": 0.1, "vocab": 32_768}, shape_of(2), 12.0, 0.1, machine)
    assert tables is not None and tables["commands"][0].endswith("plan --hours 0.1 --vocab 8192")
    assert plan_instead.instead({"hours": 0.1, "vocab": 8192}, shape_of(2, 8192), 12.0, 0.1, machine) is None
    assert plan_instead.instead({"depth": 12, "vocab": 32_768}, shape_of(12), 12.0, 10.0, machine) is None


def test_a_time_that_is_not_known_is_to_be_measured_first(
    planned: Any, monkeypatch: pytest.MonkeyPatch, fathom_home: Path
) -> None:
    _, found, _ = planned("--depth", "4")
    assert found["instead"]["commands"] == ["fathom plan --depth 4 --probe", "fathom quickstart"]
    text = " ".join(shown(monkeypatch, depth=4).split())
    assert "Takes unknown: speed not measured on this machine yet; --probe does" in text
    assert "not known, and may be days. Instead, type one of fathom plan --depth 4 --probe" in text
    monkeypatch.setattr(hardware, "likely_device", lambda: "cuda")
    monkeypatch.setattr(hardware, "likely_gpu", lambda: ("A card of tomorrow", 24.0))
    _, several, _ = planned("--depth", "4", "--ranks", "2")
    assert (several["hours"], several["instead"]) == (None, None) and "--probe" not in several["speed_from"]


def test_what_is_typed_instead_keeps_what_was_given(planned: Any, fathom_home: Path) -> None:
    flags = ("--price", "2", "--watts", "300", "--ways", "reference", "--gpu", "RTX 3070")
    _, tables, _ = planned("--depth", "2", "--device-batch", "2", *flags)
    ends = "--price 2 --watts 300 --vocab 8192 --gpu 'RTX 3070' --ways reference"
    assert tables["instead"]["commands"] == [f"fathom plan --depth 2 --device-batch 2 {ends}"]
    code, again, err = planned(*shlex.split(tables["instead"]["commands"][0])[2:])
    assert (code, err, again["ways"], again["price_per_gpu_h"], again["device_batch"]) == (0, "", "reference", 2, 2)
    _, large, _ = planned("--depth", "40", *flags)
    assert large["commands"] == [f"fathom plan --depth {large['depth_that_fits']} {ends.replace('--vocab 8192 ', '')}"]
    machine = Machine("cpu", "x", None, 64.0, "fp32", 1, is_here=True)
    given = {"depth": 12, "batch_tokens": 6144, "device_batch": 3, "watts": 65.0, "probe": True}
    slow = plan_instead.instead(given, shape_of(12), 12.0, 225 * 24.0, machine)
    assert slow is not None and slow["commands"][0] == "fathom plan --hours 8 --watts 65 --probe", "of another batch"


def shape_of(depth: int, vocab: int = 32_768) -> Shape:
    return resolve({"depth": depth}, {}, vocab).shape


def test_the_seeds_plan(planned: Any) -> None:
    seeds = ("--depth", "12", "--window", "L", "--batch-tokens", "65536", "--device-batch", "8", "--steps", "10000")
    code, found, err = planned("--gpu", "RTX 4070", "--ways", "reference", *seeds)
    assert (code, err) == (0, "")
    assert (found["parameters"]["total"], found["grad_accum"], found["fits"]) == (286_261_730, 4, True)
    assert found["memory_gb"] * 1e9 / 2**20 == pytest.approx(9_448, rel=0.10)
    assert found["memory_gb"] == pytest.approx(sum(found["memory"].values()), abs=0.01)
    assert found["tokens_per_s"] == pytest.approx(55_700, rel=0.15)
    assert found["hours"] * 60 == pytest.approx(196, rel=0.15)
    assert found["kwh"] == pytest.approx(found["hours"] * 0.2)
    assert found["checkpoint_gb"] == 2.039
    assert found["expected_core"]["expected"] is None
    _, ours, _ = planned("--gpu", "RTX 4070", *seeds)
    assert ours["fits"] and ours["memory"]["weights_gb"] == found["memory"]["weights_gb"]


def test_the_speedrun_plan(planned: Any) -> None:
    code, found, _ = planned(
        *("--depth", "24", "--ratio", "8", "--gpu", "H100", "--ranks", "8", "--fp8"),
        *("--ways", "reference", "--rules", "reference", "--price", "3"),
    )
    assert (code, found["steps"], found["grad_accum"]) == (0, 5_568, 4)
    assert found["hours"] == pytest.approx(1.65, rel=0.15)
    assert found["cost"] == pytest.approx(found["hours"] * 24)
    assert found["expected_bpb"]["low"] < 0.718 < found["expected_bpb"]["high"]
    assert found["expected_core"]["low"] < 0.2626 < found["expected_core"]["high"]


@pytest.mark.parametrize(("gpu", "hours"), [("RTX 4070", 8), ("H100", 0.5), ("RTX 3060", 2), ("H200", 1000)])
def test_hours_on_a_gpu_are_filled(planned: Any, gpu: str, hours: float) -> None:
    code, found, _ = planned("--gpu", gpu, "--hours", str(hours))
    assert code == 0
    assert found["hours"] == pytest.approx(hours, rel=0.05)
    assert 6 < found["ratio"] < 24
    pretrain = found["commands"][-1].split()
    assert pretrain[pretrain.index("--depth") + 1] == str(found["depth"])
    assert float(pretrain[pretrain.index("--ratio") + 1]) == found["ratio"], "one number, shown and typed"
    again = planned(*pretrain[6:], "--gpu", gpu)[1]
    assert (again["steps"], again["batch_tokens"]) == (found["steps"], found["batch_tokens"])


def test_hours_with_a_depth_or_a_ratio_leave_only_the_other_open(planned: Any) -> None:
    _, deep, _ = planned("--gpu", "RTX 4070", "--hours", "8", "--depth", "16")
    assert deep["depth"] == 16 and deep["ratio"] < 6 and deep["hours"] == pytest.approx(8, rel=0.05)
    _, long, _ = planned("--gpu", "RTX 4070", "--hours", "8", "--ratio", "100")
    assert long["depth"] < 12 and long["hours"] < 8.2


def test_flops_alone_find_the_depth(planned: Any) -> None:
    """REFERENCE 3.1: 1.00e18 is depth 12's own, 4.18e19 depth 24's."""
    assert planned("--flops", "1e18")[1]["depth"] == 12
    assert planned("--flops", "4.2e19")[1]["depth"] == 24
    assert planned("--flops", "1e18", "--depth", "8")[1]["depth"] == 8


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--depth", "12", "--gpu", "RTX 4071"), "no GPU 'RTX 4071' is in the table; the nearest there are RTX 407"),
        (("--gpu", "H100", "--hours", "0"), "--hours is 0; give a time"),
        (("--gpu", "H100", "--hours", "1e9"), "--hours is 1e+09; give a time"),
        (("--gpu", "H100", "--hours", "0.001"), "--hours is 0.001; give a time from six minutes (0.1) to ten years"),
        (
            ("--gpu", "RTX 3070", "--hours", "0.1", "--depth", "40"),
            "nothing worth training fits into 0.1 h on RTX 3070",
        ),
        (("--gpu", "8xH100", "--ranks", "4", "--depth", "24"), "--gpu names 8 GPUs and --ranks 4; give one of them"),
        (("--gpu", "0xH100", "--depth", "24"), "--ranks is 0; give the number of GPUs"),
        (("--gpu", "H100", "--hours", "1", "--steps", "9"), "--hours and --steps both say how long"),
        (("--gpu", "H100", "--hours", "1", "--flops", "1e18"), "--hours and --flops both say how long"),
        (("--depth", "12", "--gpu", "H100", "--ranks", "0"), "--ranks is 0; give the number of GPUs"),
        (
            ("--depth", "12", "--ranks", "2"),
            "no plan reckons with several processes on CPUs; leave it out, or name a GPU",
        ),
        (("--depth", "12", "--price", "-1"), "--price is -1; give a number that is not negative"),
        (("--depth", "12", "--fp8", "--gpu", "A100"), "A100 has no fp8 that is known of"),
        (("--depth", "12", "--ways", "reference"), "the reference's memory and speed are known for GPUs only"),
        (("--depth", "12", "--probe", "--gpu", "A100"), "--probe measures this machine, and the plan is for A100"),
        (("--depth", "12", "--corpus", "nowhere"), "there is no corpus 'nowhere'"),
        (("--hours", "8", "--seq-len", "0"), "--seq-len is 0"),
        ((), "no depth was given, and no time; try --depth 4 on a CPU, --depth 12 on a GPU, or --hours 8"),
    ],
)
def test_bad_input_is_one_sentence(planned: Any, fathom_home: Path, flags: tuple[str, ...], sentence: str) -> None:
    code, found, err = planned(*flags)
    assert (code, found) == (2, None)
    assert sentence in err
    assert err.count("\n") == 1


def test_what_does_not_fit_is_said_with_what_would(planned: Any) -> None:
    _, found, _ = planned("--depth", "12", "--gpu", "RTX 4070", "--device-batch", "64")
    rows = found["device_batch_that_fits"]
    assert found["fits"] is False and 1 <= rows < 64
    assert planned("--depth", "12", "--gpu", "RTX 4070", "--device-batch", str(rows))[1]["fits"]
    assert not planned("--depth", "12", "--gpu", "RTX 4070", "--device-batch", str(rows * 2))[1]["fits"]


def test_where_nothing_fits_neither_time_nor_a_command_that_must_fail_is_told(
    planned: Any, monkeypatch: pytest.MonkeyPatch, fathom_home: Path
) -> None:
    _, huge, _ = planned("--depth", "40", "--gpu", "RTX 3070")
    assert (huge["fits"], huge["device_batch_that_fits"], huge["hours"], huge["cost"]) == (False, None, None, None)
    assert huge["commands"] == [f"fathom plan --depth {huge['depth_that_fits']} --gpu 'RTX 3070'"]
    most = huge["depth_that_fits"]
    assert planned("--depth", str(most), "--gpu", "RTX 3070")[1]["fits"] is True
    assert planned("--depth", str(most + 2), "--gpu", "RTX 3070")[1]["fits"] is False
    text = shown(monkeypatch, depth=40, gpu="RTX 3070")
    assert "no, not even one row: " in text and f"depth {most} does" in text
    assert "Takes" not in text and "$" not in text and "pretrain" not in text


@pytest.mark.parametrize("depth", [200, 1000])
def test_a_speed_of_next_to_nothing_is_still_one(
    monkeypatch: pytest.MonkeyPatch, fathom_home: Path, planned: Any, depth: int
) -> None:
    monkeypatch.setattr(hardware, "memory_gb", lambda device: 1e9)
    monkeypatch.setattr(hardware, "device_name", lambda device: "this very processor")
    run_folder(fathom_home, "mine", "this very processor", steps=40, peak_flops=1e11)
    assert "years) of training at 0.0" in " ".join(shown(monkeypatch, depth=depth).split())
    _, found, _ = planned("--depth", str(depth))
    assert 0 < found["tokens_per_s_low"] < found["tokens_per_s"] < found["tokens_per_s_high"]


def test_the_micro_batch_is_what_the_card_holds(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, found, _ = planned("--depth", "12", "--gpu", "RTX 4070")
    assert found["fits"] is True
    assert "--device-batch" not in found["commands"][-1]
    assert not planned("--depth", "12", "--gpu", "RTX 4070", "--device-batch", str(found["device_batch"] * 2))[1][
        "fits"
    ]
    assert "of 12.9 GB (sold as 12 GB, counted in GiB)" in " ".join(shown(monkeypatch, depth=12, gpu="4070").split())


def test_several_gpus_are_planned_for_and_trained_on(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, named, _ = planned("--depth", "24", "--gpu", "8×H100")
    _, ranked, _ = planned("--depth", "24", "--gpu", "H100", "--ranks", "8")
    assert named == ranked
    start = "torchrun --nproc-per-node 8 -m fathom -- pretrain --corpus climbmix --tokenizer climbmix-32768"
    assert (named["ranks"], named["commands"][-1]) == (8, f"{start} --depth 24")
    _, filled, _ = planned("--hours", "8", "--gpu", "8xH100", "--vocab", "65536", "--fp8")
    assert filled["commands"][-1].startswith(start.replace("32768", "65536") + f" --depth {filled['depth']} --ratio ")
    assert filled["commands"][-1].endswith(" --fp8")
    _, nodes, _ = planned("--depth", "24", "--gpu", "16xH100")
    assert nodes["commands"][-1].startswith("torchrun --nnodes 2 --nproc-per-node 8 -m fathom -- pretrain ")
    _, large, _ = planned("--depth", "60", "--gpu", "8xRTX 4070")
    assert large["commands"] == [f"fathom plan --depth {large['depth_that_fits']} --gpu '8xRTX 4070'"]
    assert "On       8 × H100, bf16, linear layers in fp8" in shown(monkeypatch, depth=24, gpu="8xH100", fp8=True)
    _, uneven, _ = planned("--depth", "24", "--gpu", "7xH100")
    whole = -(-uneven["batch_tokens"] // (2048 * 7))
    assert uneven["device_batch"] * uneven["grad_accum"] == whole, "as many rows on each, the last ones masked"
    text = shown(monkeypatch, depth=24, gpu="8xH100")
    assert "On       8 × H100" in text and "Next, on the machine with the H100s, type" in text
    assert "the last on each machine as docs/multi-gpu.md says, type" in shown(monkeypatch, depth=24, gpu="16xH100")
    assert "`pretrain --shard-model`" in " ".join(shown(monkeypatch, depth=60, gpu="8xRTX 4070").split())


def test_an_old_card_is_planned_in_float32(planned: Any) -> None:
    _, found, _ = planned("--depth", "12", "--gpu", "T4")
    assert (found["dtype"], found["device"]) == ("fp32", "T4")
    assert found["hours"] > 10


def test_what_does_not_fit_another_machine_says_nothing_of_this_one(planned: Any) -> None:
    _, found, _ = planned("--depth", "20", "--gpu", "RTX 4070")
    assert found["tokens_per_s"] is None and found["depth_that_fits"] is not None
    assert "memory of the RTX 4070, whose data sheet" in found["speed_from"] and "--probe" not in found["speed_from"]


def test_a_plan_says_whether_the_batch_was_made_smaller(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "rule: grows with horizon^0.383" in shown(monkeypatch, depth=12, gpu="H100")
    small = shown(monkeypatch, depth=2, steps=100)
    assert "rule: smaller for a short run" in small
    assert "1 head of 128" in small


def test_commands_are_written_as_they_are_typed(planned: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FATHOM_COMMAND", "./fathom")
    for flags in (("--depth", "4"), ("--depth", "24", "--gpu", "8xH100"), ("--depth", "64", "--gpu", "4070")):
        starts = ("./fathom ", ".venv/bin/torchrun ") if "8xH100" in flags else ("./fathom ",)
        assert all(command.startswith(starts) for command in planned(*flags)[1]["commands"])


@pytest.mark.parametrize(("extra", "depth"), [((), "2"), (("--hours", "4", "--gpu", "RTX 4070"), "1")])
def test_too_little_training_for_a_depth_is_said_with_what_is_better(
    planned: Any, fathom_home: Path, extra: tuple[str, ...], depth: str
) -> None:
    length = () if extra else ("--ratio", "0.0335")
    code, found, err = planned("--depth", "8" if not extra else "18", *length, *extra)
    assert (code, err) == (0, "")
    assert "the same budget trains depth" in found["capability"]
    assert found["capability"].split("trains depth ")[1].startswith(depth)


@settings(deadline=None)
@given(st.integers(1, 300), st.floats(1, 200))
def test_the_most_rows_that_fit_divide_the_step(own: int, memory_gb: float) -> None:
    work = Work(Shape(8, 4, 4, 128, 32_768, 2048), rows=own)
    rows = rows_that_fit(work, memory_gb)
    assert rows is None or own % rows == 0


def test_worth_is_not_claimed_where_nothing_is_known(planned: Any, fathom_home: Path) -> None:
    _, small, _ = planned("--depth", "4")
    _, odd, _ = planned("--depth", "12", "--vocab", "1024")
    for found in (small, odd):
        for value in (found["expected_bpb"], found["expected_core"]):
            assert (value["low"], value["expected"], value["high"]) == (None, None, None)
            assert value["from"].startswith("unknown: ")


def run_folder(
    home: Path,
    name: str,
    device_name: str,
    steps: int = 40,
    step_s: float = 2.0,
    depth: int = 4,
    peak_flops: float | None = None,
    training: dict[str, Any] | None = None,
    **config: Any,
) -> None:
    """A finished run on the corpus `c`, as the record has it."""
    from fathom.record import Record

    record = Record(home / "runs" / name)
    shape = {"n_layer": depth, "n_head": 4, "n_kv_head": 4, "head_dim": 64, "vocab_size": 1024, "seq_len": 256}
    record.config(
        {
            "run": {"name": name, "stage": "pretrain"},
            "model": shape | {"window_pattern": "L"},
            "config": {"corpus": "c", "batch_tokens": 4096, "steps": steps} | config,
            "origin": dict.fromkeys(config, "flag"),
        }
    )
    record.event("started")
    facts = {"device": "cpu", "device_name": device_name, "peak_flops": peak_flops} | (training or {})
    record.event("training", step=0, **facts)
    for step in range(steps):
        record.metric(step=step, loss=3.0, step_s=step_s, train_s=step_s * (step + 1))
    record.event("finished", result={"steps": steps, "tokens": steps * 4096, "val_bpb": 1.5})


SMALL = ("--depth", "4", "--head-dim", "64", "--seq-len", "256", "--window", "L", "--vocab", "1024")


def test_a_run_done_here_tells_the_speed(planned: Any, fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: "this very processor")
    run_folder(fathom_home, "elsewhere", "another processor")
    _, found, _ = planned(*SMALL, "--batch-tokens", "4096", "--steps", "20")
    assert (found["tokens_per_s"], found["hours"], found["cost"]) == (None, None, None)
    assert "--probe" in found["speed_from"]
    run_folder(fathom_home, "mine", "this very processor")
    _, found, _ = planned(*SMALL, "--batch-tokens", "4096", "--steps", "20", "--watts", "100", "--price", "0")
    assert found["tokens_per_s"] == 2048
    assert found["hours"] == pytest.approx(40 / 3600)
    assert found["kwh"] == pytest.approx(4 / 3600)
    assert found["cost"] == 0
    assert "mine" in found["speed_from"]


def test_the_most_similar_run_tells_the_speed(planned: Any, fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: "this very processor")
    monkeypatch.setattr(hardware, "memory_gb", lambda device: 500.0)
    run_folder(fathom_home, "like-it", "this very processor", steps=40, step_s=2.0, peak_flops=1e11)
    run_folder(fathom_home, "deeper", "this very processor", steps=40, step_s=1.0, depth=12, peak_flops=1e11)
    run_folder(fathom_home, "short", "this very processor", steps=15, step_s=0.5, peak_flops=1e11)
    flags = ("--batch-tokens", "4096", "--steps", "960")
    _, same, _ = planned(*SMALL, *flags)
    assert same["tokens_per_s"] == 2048 and same["speed_from"] == "as your run like-it had it here"
    _, near, _ = planned(*SMALL, *flags, "--head-dim", "96")
    assert "FLOP/s of your run like-it, the most similar here (depth 4, context 256)" in near["speed_from"]
    assert near["tokens_per_s"] < 2048
    _, far, _ = planned(*SMALL, *flags, "--depth", "40", "--head-dim", "128")
    assert "half of the 100 GFLOP/s that products reached here" in far["speed_from"]
    widths = [found["hours_high"] / found["hours_low"] for found in (same, near, far)]
    assert widths == sorted(widths) and len(set(widths)) == 3
    for found in (same, near, far):
        assert found["hours_low"] < found["hours"] < found["hours_high"]


def test_a_run_far_away_is_better_than_nothing_and_says_so(
    planned: Any, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "device_name", lambda device: "this very processor")
    monkeypatch.setattr(hardware, "memory_gb", lambda device: 500.0)
    run_folder(fathom_home, "mine", "this very processor")
    _, far, _ = planned("--depth", "20")
    assert "far from this one; --probe measures" in far["speed_from"]
    assert far["hours_high"] / far["hours_low"] > 4


def test_a_gpu_here_is_known_by_its_runs_before_its_data_sheet(
    planned: Any, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.report.plan_remembered import speed_of

    gpu = gpu_named("RTX 4070")
    run_folder(fathom_home, "mine", "RTX 4070", peak_flops=5e13)
    folder = fathom_home / "runs" / "mine" / "events.jsonl"
    folder.write_text(folder.read_text().replace('"cpu"', '"cuda"'))
    work = Work(Shape(4, 4, 4, 64, 1024, 256, "L"), rows=16)
    here = Machine("cuda", "RTX 4070", gpu, 12.0, "bf16", 1, is_here=True)
    for machine, source in ((here, "your run mine"), (replace(here, is_here=False), "data sheet")):
        speed = speed_of(machine, work)
        assert speed is not None and source in speed.source
    far = speed_of(here, Work(Shape(24, 16, 16, 128, 32_768, 2048), rows=8))
    assert far is not None and "data sheet" in far.source


def test_a_run_of_several_devices_tells_the_speed_of_one(fathom_home: Path) -> None:
    from fathom.report.plan_remembered import speed_of

    run_folder(fathom_home, "eight", "A card", peak_flops=8e13, training={"device": "cuda", "ranks": 8})
    alone = Machine("cuda", "A card", None, 12.0, "bf16", 1, is_here=True)
    step = Work(Shape(4, 4, 4, 64, 1024, 256, "L"), rows=16)  # 4,096 tokens, however many share them
    for ranks, seconds in ((8, 2.0), (2, 8.0), (1, 16.0)):
        work = replace(step, rows=16 // ranks, ranks=ranks)
        speed = speed_of(replace(alone, ranks=ranks), work)
        assert speed is not None and "your run eight" in speed.source
        assert speed.step_s(work) == pytest.approx(seconds)
    guess = speed_of(alone, Work(Shape(24, 16, 16, 128, 32_768, 2048), rows=8))
    assert guess is not None and "half of the 10,000 GFLOP/s" in guess.source
    run_folder(fathom_home, "two", "A processor", training={"ranks": 2})
    processor = Machine("cpu", "A processor", None, 64.0, "fp32", 1, is_here=True)
    assert speed_of(processor, step) is None, "two processes shared it"


def test_only_a_run_of_the_same_rates_tells_what_to_expect(planned: Any, fathom_home: Path) -> None:
    from fathom.data.corpus import write_corpus

    write_corpus("c", ["some words"] * 10, ["others"], source="test")
    run_folder(fathom_home, "hot", "some processor", matrix_lr=0.06)
    flags = (*SMALL, "--batch-tokens", "4096", "--steps", "40", "--corpus", "c")
    assert planned(*flags)[1]["expected_bpb"]["expected"] is None
    recipe = fathom_home / "hot.toml"
    recipe.write_text("matrix_lr = 0.06\n")
    assert "your run hot" in planned(*flags, "--recipe", str(recipe))[1]["expected_bpb"]["from"]
    run_folder(fathom_home, "by-the-rules", "some processor", matrix_lr=0.02)
    assert "your run by-the-rules" in planned(*flags)[1]["expected_bpb"]["from"]


def test_text_that_is_far_too_little_is_not_trained_on(
    planned: Any, fathom_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fathom.data.corpus import write_corpus

    write_corpus("mine2", ["some words, and more of them"] * 300, ["others"], source="test")
    _, found, _ = planned("--depth", "4", "--corpus", "mine2")
    assert found["data"]["epochs"] > 40
    assert "data get climbmix" in found["commands"][0]
    assert not any("mine2" in command for command in found["commands"])
    text = shown(monkeypatch, depth=4, corpus="mine2")
    assert "far too often to learn by" in text and "Or, as planned, with text enough, type" in text


def test_a_run_on_the_same_corpus_tells_what_to_expect(planned: Any, fathom_home: Path) -> None:
    from fathom.data.corpus import write_corpus

    write_corpus("c", ["some words"] * 10, ["others"], source="test")
    run_folder(fathom_home, "mine", "some processor")
    _, found, _ = planned(*SMALL, "--batch-tokens", "4096", "--steps", "40", "--corpus", "c")
    assert found["expected_bpb"]["expected"] == pytest.approx(1.5)
    assert "mine" in found["expected_bpb"]["from"]
    _, far, _ = planned(*SMALL, "--batch-tokens", "4096", "--steps", "40000", "--corpus", "c")
    assert far["expected_bpb"]["expected"] is None


def test_a_run_of_a_few_steps_tells_nothing_of_another(planned: Any, fathom_home: Path) -> None:
    from fathom.data.corpus import write_corpus

    write_corpus("c", ["some words"] * 10, ["others"], source="test")
    run_folder(fathom_home, "hardly", "some processor", steps=6)
    assert (
        planned(*SMALL, "--batch-tokens", "4096", "--steps", "40", "--corpus", "c")[1]["expected_bpb"]["expected"]
        is None
    )


def test_data_present_is_counted(planned: Any, fathom_home: Path) -> None:
    from fathom.data.corpus import write_corpus

    _, none, _ = planned("--depth", "4", "--steps", "10")
    assert none["data"]["corpus"] is None
    assert none["data"]["tokens_needed"] == none["tokens"]
    assert "data get climbmix" in none["commands"][0]
    write_corpus("small", ["ab"], ["cd"], source="test")
    write_corpus("large", ["abcdefgh " * 1000], ["cd"], source="test")
    _, found, _ = planned("--depth", "4", "--steps", "10")
    data = found["data"]
    assert (data["corpus"], data["bytes_present"]) == ("large", 9000)
    assert data["tokens_present"] == round(9000 / 4.7)
    assert data["epochs"] == pytest.approx(data["tokens_needed"] / data["tokens_present"], abs=1e-3)
    assert planned("--depth", "4", "--corpus", "small")[1]["data"]["bytes_present"] == 2
    _, best_fit, _ = planned("--depth", "4", "--steps", "10", "--packing", "best-fit")
    assert best_fit["data"]["tokens_needed"] == pytest.approx(found["tokens"] / 0.654, abs=1)
    command = planned("--depth", "4", "--steps", "1", "--batch-tokens", "8192", "--corpus", "large")[1]["commands"]
    assert command == [
        "fathom tokenizer train --corpus large --vocab 32768 --name large-32768",
        "fathom pretrain --corpus large --tokenizer large-32768 --depth 4 --steps 1 --batch-tokens 8192",
    ]


def test_a_little_over_four_times_is_not_called_four() -> None:
    text = {"tokens_needed": 4.2e6, "bytes_needed": 2e7, "corpus": "c", "tokens_present": 1e6, "bytes_present": 5e6}
    words, _ = plan_view._data({"data": text | {"epochs": 4.2}})
    assert "gone through 4.2 times; after 4 it teaches little" in words


def test_bytes_per_token_by_vocabulary() -> None:
    assert bytes_per_token(256) == 1
    assert bytes_per_token(32_768) == pytest.approx(4.7)
    assert 1 < bytes_per_token(1024) < 3


def test_hours_here_are_measured(planned: Any, monkeypatch: pytest.MonkeyPatch, fathom_home: Path) -> None:
    asked: list[int] = []

    def probed(work: Work) -> Speed:
        asked.append(work.shape.n_layer)
        return Speed(lambda work: work.step_tokens * work.shape.flops_per_token / 1e11, 0.1, "measured")

    monkeypatch.setattr("fathom.report.plan.probed_speed", probed)
    code, found, err = planned("--hours", "8")
    assert (code, err) == (0, "")
    assert asked == [4, found["depth"]]
    assert found["hours"] == pytest.approx(8, rel=0.05)
    assert found["speed_from"] == "measured"


def test_a_probe_is_short() -> None:
    shape = Shape(24, 12, 12, 128, 32_768, 2048)
    assert probe_size(shape, 16, 1e15) == (shape, 16)
    small, rows = probe_size(shape, 4, 1e11)
    assert rows == 1 and small.n_layer < 24 and small.d_model == shape.d_model


def test_a_probe_puts_any_step_together(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    from fathom.train import session

    monkeypatch.setattr(session, "look_at_machine", lambda *_, **__: SimpleNamespace(peak_flops=1e15))
    monkeypatch.setattr(session, "measured_step", lambda machine, shape, rows, for_s: (3.0, 2.0))
    settings = resolve({"depth": 4, "batch_tokens": 65_536}, {}, 32_768)
    machine = Machine("cpu", "x", None, 64.0, "fp32", 1, is_here=True)
    work = work_of(settings, machine, None)
    screen.console.cache_clear()
    speed = plan_machine.probed_speed(work)
    assert "measuring this machine" in capfd.readouterr().err
    screen.console.cache_clear()
    assert speed.step_s(work) == pytest.approx(work.grad_accum * 3.0 + 2.0)
    assert speed.tokens_per_s(work) == pytest.approx(65_536 / (work.grad_accum * 3.0 + 2.0))


def test_plan_imports_no_torch() -> None:
    code = (
        "import sys; from fathom.report.plan import Plan; Plan(depth=12, gpu='H100', json=True).run(); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.long
def test_a_real_run_takes_the_time_and_memory_that_were_planned() -> None:
    """Two short trainings on this machine against their plans: time within 15 %, peak memory within 10 %."""
    bench = Path(__file__).resolve().parents[1] / "bench" / "plan.py"
    done = subprocess.run([sys.executable, str(bench)], capture_output=True, text=True, check=True)
    for run in json.loads(done.stdout)["runs"]:
        assert run["tokens_per_s"]["planned"] == pytest.approx(run["tokens_per_s"]["measured"], rel=0.15), run
        assert run["memory_gb"]["planned"] == pytest.approx(run["memory_gb"]["measured"], rel=0.10), run


def test_flops_outrank_the_steps_of_a_recipe(planned: Any, tmp_path: Path) -> None:
    recipe = tmp_path / "steps.toml"
    recipe.write_text("steps = 100\n")
    _, plain, _ = planned("--flops", "1e17")
    code, found, err = planned("--flops", "1e17", "--recipe", str(recipe))
    assert (code, err) == (0, "") and (found["depth"], found["steps"]) == (plain["depth"], plain["steps"])


def test_few_tokens_for_a_depth_are_spent_on_the_depth_that_is_named(planned: Any, fathom_home: Path) -> None:
    _, found, _ = planned("--depth", "16", "--ratio", "0.5", "--gpu", "RTX 4070")
    depth = found["capability"].split("trains depth ")[1].split()[0]
    (line,) = found["instead"]["commands"]
    assert f"the same budget trains depth {depth} best" in found["instead"]["why"]
    assert planned(*shlex.split(line)[2:])[1]["depth"] == int(depth)


def test_a_tokenizer_that_is_there_says_its_vocabulary_and_is_what_is_typed(planned: Any, fathom_home: Path) -> None:
    from fathom import tokenizer as tokenizers
    from tests.oracles.tiny_runs import furnish

    furnish()
    _, found, _ = planned("--depth", "2", "--tokenizer", "tiny")
    vocab = tokenizers.load("tiny").vocab_size
    assert found["parameters"]["head"] == 128 * -(-vocab // 64) * 64
    assert "--tokenizer tiny" in found["commands"][-1] and "tokenizer train" not in " ".join(found["commands"])
    code, _, err = planned("--depth", "2", "--tokenizer", "nowhere")
    assert code == 2 and "nowhere" in err


def test_what_is_to_be_fetched_is_told(planned: Any, fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, found, _ = planned("--depth", "12", "--gpu", "RTX 4070")
    assert found["fetch_gb"] == pytest.approx(2.9) and "--shards 29" in found["commands"][0]
    with pytest.raises(SystemExit):
        cli.main(["plan", "--depth", "12", "--gpu", "RTX 4070"])
    assert "enough of it is 2.9 GB to fetch" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("hours", "told"), [(10.0, False), (20.0, True)])
def test_a_processor_is_not_kept_busy_for_days_without_a_word(hours: float, told: bool) -> None:
    here = plan_machine.Machine("cpu", "a CPU", None, 16.0, "fp32", 1, is_here=True)
    shape = resolve({"depth": 4}, {}, 8192).shape
    found = plan_instead.instead({"depth": 4, "vocab": 8192}, shape, 12.0, hours, here)
    assert (found is not None and "not worth it" in found["why"]) == told
