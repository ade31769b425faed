"""What this machine is: device, dtypes, peak rates, memory, compiler. Chosen here, said once, with the reason."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.errors import FathomError

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

# Dense bf16 TFLOP/s with float32 accumulation, and memory bandwidth in GB/s, from the makers' data sheets (NVIDIA's
# consumer cards: half of the figure with float16 accumulation; MI250X: one of its two dies, which is what a process
# sees). The first entry whose words are all in the device's name wins.
GPUS: tuple[tuple[str, float, float], ...] = (
    ("gb200", 2500, 8000),
    ("b200", 2250, 8000),
    ("b100", 1800, 8000),
    ("h200 nvl", 836, 4800),
    ("h200", 989, 4800),
    ("h100 nvl", 835, 3900),
    ("h100 pcie", 756, 2000),
    ("h100", 989, 3350),
    ("h800 pcie", 756, 2000),
    ("h800", 989, 3350),
    ("a100 40gb", 312, 1555),
    ("a100 pcie", 312, 1935),
    ("a100", 312, 2039),
    ("a800", 312, 2039),
    ("rtx a6000", 155, 768),
    ("rtx a4000", 77, 448),
    ("l40s", 362, 864),
    ("l40", 181, 864),
    ("l4", 121, 300),
    ("a40", 149.7, 696),
    ("a30", 165, 933),
    ("mi355x", 2500, 8000),
    ("mi325x", 1307.4, 6000),
    ("mi300x", 1307.4, 5300),
    ("mi300a", 980.6, 5300),
    ("mi250x", 191.5, 1638),
    ("rtx 5090", 209.5, 1792),
    ("rtx 5080", 112.6, 960),
    ("rtx 5070 ti", 87.9, 896),
    ("rtx 5070", 61.7, 672),
    ("rtx 4090", 165.2, 1008),
    ("rtx 4080 super", 104.4, 736),
    ("rtx 4080", 97.5, 717),
    ("rtx 4070 ti super", 88.2, 672),
    ("rtx 4070 ti", 80.2, 504),
    ("rtx 4070 super", 71, 504),
    ("rtx 4070", 58.3, 504),
    ("rtx 4060 ti", 44.1, 288),
    ("rtx 4060", 30.2, 272),
    ("rtx 3090 ti", 80, 1008),
    ("rtx 3090", 71, 936),
    ("rtx 3080 ti", 68.2, 912),
    ("rtx 3080", 59.5, 760),
    ("rtx 3070", 40.6, 448),
    ("rtx 3060", 25.6, 360),
)

ANOTHER_CARD = {"ti", "super", "d", "laptop", "mobile", "max", "mig"}
"""Words that make a different, mostly slower, card of the one whose name they follow; MIG is a slice of one."""


@dataclass(frozen=True)
class Choice:
    """A thing that the machine decided, and why."""

    value: str
    reason: str


def device_type() -> Choice:
    """cuda, else mps, else cpu."""
    import torch

    if torch.cuda.is_available():
        return Choice("cuda", torch.cuda.get_device_name())
    if torch.backends.mps.is_available():
        return Choice("mps", platform.processor() or "Apple GPU")
    threads = torch.get_num_threads()
    return Choice("cpu", f"no GPU found; {threads} thread{'s' * (threads > 1)}")


def likely_device() -> str:
    """The same without asking torch, whose import takes seconds: by the driver's traces."""
    if Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi"):
        return "cuda"
    return "mps" if sys.platform == "darwin" and platform.machine() == "arm64" else "cpu"


def choose_dtype(asked: str, device: str) -> Choice:
    """bf16, fp16 or fp32; `asked` is one of them or "auto". Raises FathomError for another word."""
    if asked in DTYPES:
        return Choice(asked, "asked for")
    if asked != "auto":
        raise FathomError(f"there is no dtype {asked!r}", f"choose auto, {', '.join(DTYPES)}")
    if device == "cuda":
        import torch

        major, minor = torch.cuda.get_device_capability()
        if (major, minor) >= (8, 0):
            return Choice("bf16", f"compute capability {major}.{minor} has it")
        return Choice("fp32", f"compute capability {major}.{minor} has no bf16")
    if device == "mps":
        return Choice("bf16", "Apple GPUs take it at the speed of float16")
    feature = bf16_instructions()
    if feature:
        return Choice("bf16", f"the CPU has {feature}")
    return Choice("fp32", "the CPU has no bf16 instructions")


@cache
def bf16_instructions() -> str:
    """The CPU's instructions for bf16 products: "AMX", "AVX512-BF16", "Arm BF16", or "" for none."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().replace("\n", " ").split())
    except OSError:
        return ""
    if {"amx_bf16", "amx_tile"} <= flags:
        return "AMX"
    if "avx512_bf16" in flags:
        return "AVX512-BF16"
    return "Arm BF16" if platform.machine() in ("aarch64", "arm64") and "bf16" in flags else ""


def torch_dtype(name: str) -> torch.dtype:
    import torch

    return {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]


def can_compile(device: str) -> Choice:
    """Whether torch.compile has what it needs here: a C++ compiler on a CPU, Triton on a GPU."""
    if device == "mps":
        return Choice("no", "compiled kernels are not dependable on MPS")
    compiler = os.environ.get("CXX") or next((c for c in ("g++", "clang++", "c++") if shutil.which(c)), "")
    if not compiler or not shutil.which(compiler.split()[0]):
        return Choice("no", "no C++ compiler; with g++ installed training is faster")
    if device == "cuda":
        from importlib.util import find_spec

        if find_spec("triton") is None:
            return Choice("no", "Triton is not installed")
    return Choice("yes", f"compiled with {compiler}")


def peak_flops(device: str, dtype: str) -> tuple[float, str]:
    """FLOP/s of a matrix product here, and where the figure is from: the table, else half a second's measurement."""
    if device == "cuda" and dtype == "bf16":
        import torch

        known = gpu_figures(torch.cuda.get_device_name())
        if known:
            return known[0] * 1e12, "data sheet"
    return measured_flops(device, dtype), "measured"


def gpu_figures(name: str) -> tuple[float, float] | None:
    """(TFLOP/s in bf16, GB/s) of a GPU by its name; None for one that is not surely in the table."""
    words = set(re.split(r"[^a-z0-9.]+", name.lower()))
    for entry, tflops, bandwidth in GPUS:
        its = set(entry.split())
        if its <= words and not (words - its) & ANOTHER_CARD:
            return tflops, bandwidth
    return None


@cache
def measured_flops(device: str, dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of the best of several products 8192×384×1536."""
    import torch

    kind = torch_dtype(dtype)
    a = torch.ones(8192, 384, dtype=kind, device=device)
    b = torch.ones(384, 1536, dtype=kind, device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * 8192 * 384 * 1536 / best


def synchronize(device: str) -> None:
    """Wait until the device has done what it was given."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def device_name(device: str) -> str:
    """What the maker calls it: the GPU, else the processor."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine()


def memory_gb(device: str) -> float:
    """The memory that a model must fit in, in 10^9 bytes."""
    import psutil

    if device == "cuda":
        import torch

        return float(torch.cuda.get_device_properties(0).total_memory) / 1e9
    return float(psutil.virtual_memory().total) / 1e9


def peak_memory_gb(device: str) -> float:
    """The most that this process has held so far: on the GPU, else resident memory. In 10^9 bytes."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_reserved() / 1e9
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9


def process_age_s() -> float:
    """Seconds since this process started."""
    import psutil

    return time.time() - psutil.Process().create_time()


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks: handing them back costs a page fault for every page of every tensor."""
    if sys.platform == "linux":
        with_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if with_mallopt is not None:
            with_mallopt(-4, 0)  # M_MMAP_MAX (M_MMAP_THRESHOLD may be at most 32 MB in older glibc)
            with_mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD
