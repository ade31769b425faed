"""What the machine is told to be: GPUs by their names, dtypes with reasons, compiling or not."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fathom import hardware
from fathom.errors import FathomError
from fathom.gpus import GPUS, find_gpu, gpu_named, several


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 836),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A40", 149.7),
        ("NVIDIA RTX A4000", 77),
        ("NVIDIA RTX A6000", 155),
        ("NVIDIA A30", 165),
        ("NVIDIA GeForce RTX 4070", 58.3),
        ("NVIDIA GeForce RTX 4070 SUPER", 71),
        ("NVIDIA GeForce RTX 4070 Ti", 80.2),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", 88.2),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("NVIDIA GeForce RTX 3060 Ti", 32.4),
        ("NVIDIA RTX 6000 Ada Generation", 364.2),
        ("NVIDIA H20", 148),
        ("NVIDIA L20", 119.5),
        ("NVIDIA A10", 125),
        ("AMD Instinct MI210", 181),
        ("NVIDIA GeForce RTX 3090 Ti", 80),
        ("AMD Instinct MI300X", 1307.4),
        ("AMD Instinct MI355X", 2500),
        ("AMD Instinct MI250X / MI250", 191.5),
        ("nvidia geforce rtx 4070", 58.3),
    ],
)
def test_a_known_gpu_has_its_own_figure(name: str, tflops: float) -> None:
    figures = hardware.gpu_figures(name)
    assert figures is not None
    assert figures[0] == tflops


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A3000 Laptop GPU",
        "NVIDIA RTX A4500",
        "NVIDIA GeForce RTX 4070 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 2080 with Max-Q Design",
        "NVIDIA GeForce RTX 3080 with Max-Q Design",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA A10G",
        "NVIDIA T4",
        "NVIDIA GeForce RTX 2080 Ti",
        "NVIDIA RTX 5000 Ada Generation",
        "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
        "Tesla V100-SXM2-16GB",
        "NVIDIA GeForce GTX 1080 Ti",
        "NVIDIA RTX 4000 Ada Generation",
        "",
    ],
)
def test_another_gpu_never_gets_a_relative_s_figure(name: str) -> None:
    assert hardware.gpu_figures(name) is None


def test_bandwidth_by_memory() -> None:
    bandwidth = {name: figures[1] for name in A100S if (figures := hardware.gpu_figures(name))}
    assert bandwidth == A100S


A100S = {
    "NVIDIA A100-SXM4-80GB": 2039,
    "NVIDIA A100 80GB PCIe": 1935,
    "NVIDIA A100-SXM4-40GB": 1555,
    "NVIDIA A100-PCIE-40GB": 1555,
}


def test_every_row_of_the_table_is_found_by_its_own_name_and_is_plausible() -> None:
    for gpu in GPUS:
        assert find_gpu(f"NVIDIA {gpu.name.upper()}") is gpu
        assert gpu_named(gpu.label) is gpu
        assert hardware.gpu_figures(gpu.label) == ((gpu.tflops, gpu.bandwidth) if gpu.dtype == "bf16" else None)
        assert (10 if gpu.dtype == "bf16" else 5) < gpu.tflops < 5000
        assert gpu.fp8_tflops is None or 1.9 < gpu.fp8_tflops / gpu.tflops < 2.1
        assert 200 < gpu.bandwidth < 10_000
        assert 6 <= gpu.memory <= 288
        assert 0.04 < gpu.tflops / gpu.watts < 3
        assert 0 < gpu.price_per_h < 20


@pytest.mark.parametrize(
    ("text", "label"),
    [
        *[("4070", "RTX 4070"), ("rtx 4070 ti super", "RTX 4070 Ti Super"), ("h100", "H100"), ("A6000", "RTX A6000")],
        *[("rtx4070", "RTX 4070"), ("RTX4070TiSuper", "RTX 4070 Ti Super"), ("3080ti", "RTX 3080 Ti"), ("T4", "T4")],
        *[("Tesla V100-SXM2-16GB", "V100"), ("v100 pcie", "V100 PCIe"), ("RTXA6000", "RTX A6000")],
    ],
)
def test_a_person_names_a_gpu(text: str, label: str) -> None:
    assert gpu_named(text).label == label


def test_several_of_a_gpu() -> None:
    for text in ("8xH100", "8×H100", "8 x H100", "8*H100", "8X H100"):
        assert several(text) == (8, "H100")
    for text in ("H100", "RTX 4070", "4070", "8", ""):
        assert several(text) == (None, text)


@pytest.mark.parametrize("text", ["M2", "m3 max", "Apple M1", "apple"])
def test_a_mac_is_told_to_plan_on_itself(text: str) -> None:
    with pytest.raises(
        FathomError, match="no training on Apple's .*; plan on that Mac itself, with --probe or --hours"
    ):
        gpu_named(text)


def test_an_unknown_gpu_is_answered_with_the_nearest() -> None:
    with pytest.raises(FathomError, match="no GPU 'RTX 4071' is in the table; the nearest there are RTX 407"):
        gpu_named("RTX 4071")
    with pytest.raises(FathomError, match="no GPU 'abacus' is in the table; try RTX 4070"):
        gpu_named("abacus")
    with pytest.raises(FathomError, match="no GPU"):
        gpu_named("RTX 4090 Laptop GPU")
    with pytest.raises(FathomError, match="no GPU ''"):
        gpu_named("")


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("NVIDIA GeForce RTX 4070, 12282\n", ("NVIDIA GeForce RTX 4070", 12282 * 2**20 / 1e9)),
        (
            "NVIDIA A100-SXM4-80GB, 81920\nNVIDIA A100-SXM4-80GB, 81920\n",
            ("NVIDIA A100-SXM4-80GB", 81920 * 2**20 / 1e9),
        ),
        ("", None),
        ("No devices were found\n", None),
    ],
)
def test_the_driver_tells_which_gpu_is_here(monkeypatch: pytest.MonkeyPatch, said: str, found: Any) -> None:
    monkeypatch.setattr(hardware.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=said))
    assert hardware.likely_gpu() == found


def test_no_driver_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(hardware.subprocess, "run", missing)
    assert hardware.likely_gpu() is None


@pytest.fixture
def cpuinfo(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets what /proc/cpuinfo holds (None: it is not there) and which machine this is."""

    def set_to(text: str | None, machine: str = "x86_64") -> None:
        def read_text() -> str:
            if text is None:
                raise FileNotFoundError
            return text

        monkeypatch.setattr(hardware, "Path", lambda path: SimpleNamespace(read_text=read_text))
        monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
        hardware.bf16_instructions.cache_clear()

    yield set_to
    hardware.bf16_instructions.cache_clear()


X86 = "processor\t: 0\nflags\t\t: fpu sse {}\nbugs\t: none\n"


@pytest.mark.parametrize(
    ("text", "machine", "feature"),
    [
        (X86.format("avx512f amx_bf16 avx512_bf16 amx_tile amx_int8"), "x86_64", "AMX"),
        (X86.format("avx512f avx512_bf16"), "x86_64", "AVX512-BF16"),
        (X86.format("amx_bf16"), "x86_64", ""),
        (X86.format("avx2 avx512f"), "x86_64", ""),
        (X86.format("bf16"), "x86_64", ""),
        ("Features\t: fp asimd bf16 i8mm\n", "aarch64", "Arm BF16"),
        ("Features\t: fp asimd\n", "aarch64", ""),
        (None, "arm64", ""),
    ],
)
def test_instructions_for_bf16(cpuinfo: Any, text: str | None, machine: str, feature: str) -> None:
    cpuinfo(text, machine)
    assert hardware.bf16_instructions() == feature
    choice = hardware.choose_dtype("auto", "cpu")
    assert choice.value == ("bf16" if feature else "fp32")
    assert (feature or "no bf16") in choice.reason


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 0), "fp32"), ((7, 5), "fp32"), ((8, 0), "bf16"), ((8, 9), "bf16"), ((10, 0), "bf16")]
)
def test_a_gpu_s_dtype_goes_by_its_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    choice = hardware.choose_dtype("auto", "cuda")
    assert choice.value == dtype
    assert "{}.{}".format(*capability) in choice.reason


def test_apple_gpus_take_bf16() -> None:
    assert hardware.choose_dtype("auto", "mps").value == "bf16"


@pytest.mark.parametrize("asked", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_what_was_asked_for_is_taken(asked: str, device: str) -> None:
    assert hardware.choose_dtype(asked, device) == hardware.Choice(asked, "asked for")
    assert hardware.torch_dtype(asked).itemsize == (4 if asked == "fp32" else 2)


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(FathomError, match="there is no dtype 'bf17'; choose auto, bf16, fp16, fp32"):
        hardware.choose_dtype("bf17", "cpu")


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets which compilers are installed, what CXX says, and whether Triton is there."""

    def set_to(*installed: str, cxx: str | None = None, triton: bool = True) -> None:
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in installed else None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if triton else None)
        monkeypatch.delenv("CXX", raising=False)
        if cxx is not None:
            monkeypatch.setenv("CXX", cxx)

    return set_to


def test_compiling_needs_a_compiler(tools: Any) -> None:
    for device in ("cpu", "cuda"):
        tools()
        choice = hardware.can_compile(device)
        assert choice.value == "no"
        assert "g++" in choice.reason
        tools("g++")
        assert hardware.can_compile(device) == hardware.Choice("yes", "compiled with g++")
        tools("clang++", "c++")
        assert hardware.can_compile(device).reason == "compiled with clang++"
        tools("g++", cxx="/opt/missing/g++")
        assert hardware.can_compile(device).value == "no"
        tools("ccache", cxx="ccache g++")
        assert hardware.can_compile(device).value == "yes"


def test_compiling_for_a_gpu_needs_triton_and_is_not_done_on_apple_s(tools: Any) -> None:
    tools("g++", triton=False)
    assert hardware.can_compile("cuda") == hardware.Choice("no", "Triton is not installed")
    assert hardware.can_compile("cpu").value == "yes"
    assert hardware.can_compile("mps").value == "no"


@pytest.mark.parametrize(("capability", "value"), [((6, 1), "no"), ((7, 0), "yes")])
def test_what_is_older_than_triton_knows_is_not_compiled_for(
    tools: Any, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], value: str
) -> None:
    tools("g++")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    assert hardware.can_compile("cuda").value == value


def test_the_device_with_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert hardware.device_type().value == "cpu"
    assert f"{torch.get_num_threads()} thread" in hardware.device_type().reason
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert hardware.device_type().value == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert hardware.device_type() == hardware.Choice("cuda", "NVIDIA H200")


def test_the_likely_device_is_seen_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = [False]
    monkeypatch.setattr(hardware, "Path", lambda path: SimpleNamespace(exists=lambda: driver[0]))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(hardware.sys, "platform", "linux")
    assert hardware.likely_device() == "cpu"
    monkeypatch.setattr(hardware.sys, "platform", "darwin")
    monkeypatch.setattr(hardware.platform, "machine", lambda: "arm64")
    assert hardware.likely_device() == "mps"
    driver[0] = True
    assert hardware.likely_device() == "cuda"


def test_the_peak_is_from_the_data_sheet_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "measured_flops", lambda device, dtype: 7.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4070")
    assert hardware.peak_flops("cuda", "bf16") == (58.3e12, "data sheet")
    assert hardware.peak_flops("cuda", "fp32") == (7.0, "measured")
    assert hardware.peak_flops("cpu", "bf16") == (7.0, "measured")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA GeForce RTX 4070 Laptop GPU")
    assert hardware.peak_flops("cuda", "bf16") == (7.0, "measured")


def test_a_measurement_is_a_plausible_rate() -> None:
    hardware.measured_flops.cache_clear()
    assert 1e8 < hardware.measured_flops("cpu", "fp32", seconds=0.0) < 1e16
    hardware.measured_flops.cache_clear()


def test_memory_and_age_are_in_their_units(tmp_path: Path) -> None:
    assert 0.1 < hardware.memory_gb("cpu") < 100_000
    assert 0.01 < hardware.peak_memory_gb("cpu") <= hardware.memory_gb("cpu")
    assert 0 < hardware.process_age_s() < 1e6
    hardware.keep_freed_memory()
    hardware.synchronize("cpu")
