"""What this machine is: device, dtypes, peak rates, memory, compiler. Chosen here, said once, with the reason."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from fathom.errors import FathomError
from fathom.gpus import find_gpu

if TYPE_CHECKING:
    import torch

DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


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


def likely_gpu() -> tuple[str, float] | None:
    """(name, memory in 10^9 bytes) of the first GPU as its driver tells, without torch; None where it does not."""
    asked = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=10)
        name, mebibytes = said.stdout.splitlines()[0].rsplit(",", 1)
        return name.strip(), float(mebibytes) * 2**20 / 1e9
    except (OSError, subprocess.TimeoutExpired, IndexError, ValueError):
        return None


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


def refuse_fp8_where_there_is_none(device: str, dtype: str) -> None:
    """FathomError with the reason, unless this GPU multiplies in fp8: Ada (8.9), Hopper, Blackwell."""
    remedy = "leave --fp8 out"
    if device != "cuda":
        raise FathomError(f"--fp8 was given, and this machine's {device} does not multiply in fp8", remedy)
    import torch

    major, minor = torch.cuda.get_device_capability()
    if torch.version.hip is not None:
        raise FathomError("--fp8 was given, and on AMD's GPUs it was never tried", remedy)
    if (major, minor) < (8, 9):
        name = torch.cuda.get_device_name()
        raise FathomError(f"--fp8 was given, and {name} (compute capability {major}.{minor}) has no fp8", remedy)
    if dtype != "bf16":
        raise FathomError(f"--fp8 goes with --dtype bf16, not with {dtype}", "leave one of the two out")


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
        import torch

        if torch.cuda.is_available() and not torch.version.hip and torch.cuda.get_device_capability() < (7, 0):
            return Choice("no", "Triton makes kernels for GPUs from Volta on")
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
    """(TFLOP/s in bf16, GB/s) of a GPU by its name; None for one that is not surely in the table with bf16."""
    gpu = find_gpu(name)
    return None if gpu is None or gpu.dtype != "bf16" else (gpu.tflops, gpu.bandwidth)


@cache
def measured_flops(device: str, dtype: str, seconds: float = 0.4) -> float:
    """FLOP/s of the best of several products: 8192×384×1536, on a GPU 8192×8192×8192, which keeps all of it busy."""
    import torch

    kind = torch_dtype(dtype)
    rows, inner, columns = (8192, 8192, 8192) if device == "cuda" else (8192, 384, 1536)
    a = torch.ones(rows, inner, dtype=kind, device=device)
    b = torch.ones(inner, columns, dtype=kind, device=device)
    best, until = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < until or best == float("inf"):
        synchronize(device)
        start = time.perf_counter()
        a @ b
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * rows * inner * columns / best


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
