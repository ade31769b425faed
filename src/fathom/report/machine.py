"""What `fathom doctor` asks of the machine: processor, GPUs, memory, limits."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fathom import hardware
from fathom.kernels import build
from fathom.report.probes import Grade, Line
from fathom.report.words import gb, rate
from fathom.screen import plural

NEWER = "a GPU from 2020 or later"
KERNELS = {"full": "torch's causal kernel", "flex": "FlexAttention, compiled", "blocks": "blocks of torch's kernel"}


def processor() -> Iterator[Line]:
    name, cores = hardware.device_name("cpu"), usable_cores()
    few = f" of {os.cpu_count()}" if cores < (os.cpu_count() or cores) else ""
    yield Line("CPU", "good", f"{name}, {plural(cores, 'core')}{few} for this process")
    bf16 = hardware.bf16_instructions()
    if bf16:
        yield Line("CPU", "good", f"it has {bf16}", "training takes bf16")
    else:
        found = "no bf16 instructions (AMX, AVX512-BF16, Arm BF16)"
        yield Line("CPU", "note", found, "training on the CPU takes fp32, which is slower", "a newer CPU, or a GPU")
    yield from _threads(cores)


def usable_cores() -> int:
    """What the scheduler grants this process, by affinity and by its control group."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = read_first("/sys/fs/cgroup/cpu.max").split()
    if len(quota) == 2 and quota[0].isdecimal() and quota[1].isdecimal():
        return max(1, min(affinity, -(-int(quota[0]) // int(quota[1]))))
    return affinity


def read_first(path: str) -> str:
    """A file's first line; empty where there is none."""
    try:
        return Path(path).read_text(errors="replace").partition("\n")[0]
    except OSError:
        return ""


def _threads(cores: int) -> Iterator[Line]:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(asked) if asked.isdecimal() else 0
    shown, fix = f"OMP_NUM_THREADS={asked[:20]}", f"unset it, or export OMP_NUM_THREADS={cores}"
    if asked and threads < 1:
        yield Line("threads", "broken", f"{shown} is no number of threads", "it is ignored", fix)
    elif not asked and (os.cpu_count() or 1) > cores:
        found = f"OMP_NUM_THREADS is not set, and this process may use {cores} of {os.cpu_count()} cores"
        slower = "torch may start more threads than there are cores, which is slower"
        yield Line("threads", "lack", found, slower, f"export OMP_NUM_THREADS={cores}")
    elif not asked:
        yield Line("threads", "good", "OMP_NUM_THREADS is not set", "torch chooses")
    elif threads == cores:
        yield Line("threads", "good", shown)
    elif threads < cores:
        yield Line("threads", "lack", shown, f"training uses {threads} of {plural(cores, 'core')}", fix)
    else:
        yield Line("threads", "lack", shown, f"more threads than the {plural(cores, 'core')}, which is slower", fix)


def gpus() -> Iterator[Line]:
    import torch

    if torch.backends.mps.is_available():
        yield Line("GPU", "good", f"{hardware.device_name('mps')} (MPS)", "bf16; kernels are not compiled")
    elif torch.cuda.is_available():
        driver = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", read_first("/proc/driver/nvidia/version"))
        if driver:
            yield Line("driver", "good", f"NVIDIA {driver[1]}")
        for index in range(torch.cuda.device_count()):
            yield from _gpu(index)
    elif hardware.likely_device() != "cuda":
        on_cpu = "training runs on the CPU, for small models (`fathom plan` says how long one takes)"
        yield Line("GPU", "note", "none", on_cpu, "a machine with a GPU, for larger models")


def _gpu(index: int) -> Iterator[Line]:
    import torch

    facts = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    figures = hardware.gpu_figures(facts.name)
    peak = f"{rate(figures[0] * 1e12)} in bf16 (data sheet)" if figures else "peak rate measured when a run starts"
    found = f"{facts.name}, compute capability {facts.major}.{facts.minor}, {gb(total / 1e9)}, {peak}"
    if (facts.major, facts.minor) < (8, 0):
        yield Line("GPU", "lack", found, "it has no bf16: training takes fp32, which is slower", NEWER)
    else:
        yield Line("GPU", "good", found)
    if free < 0.8 * total:
        taken = "another process has the rest, so less of a model fits"
        yield Line("GPU", "note", f"{gb(free / 1e9)} of {gb(total / 1e9)} are free", taken, "nvidia-smi shows which")


def attention() -> Iterator[Line]:
    import torch

    from fathom.model.attention import kernel_for

    device = hardware.device_type().value
    whole, short = (KERNELS.get(kernel := kernel_for(device, window, 2048), kernel) for window in (2048, 512))
    found = f"whole rows by {whole}, short windows by {short}"
    if device != "cuda":
        has_own = device == "cpu" and sys.platform == "linux" and build.compiler()
        yield Line("attention", "good", found + ("; training by kernels of its own" if has_own else ""))
    elif torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability() >= (8, 0):
        yield Line("attention", "good", f"{found}; FlashAttention is in this torch")
    else:
        yield Line("attention", "lack", f"{found}; no FlashAttention", "long rows are slower", NEWER)


def memory() -> Iterator[Line]:
    import psutil

    have, swap = psutil.virtual_memory(), psutil.swap_memory()
    limit = read_first("/sys/fs/cgroup/memory.max")
    most = min(int(limit), have.total) if limit.isdecimal() else have.total
    free = min(have.available, most) / 1e9
    found = f"{gb(free)} free of {gb(most / 1e9)}" + (f", {gb(swap.total / 1e9)} swap" if swap.total else "")
    if free < 2:
        yield Line("memory", "lack", found, "even small runs may be killed for want of it", "close other programs")
    elif most < have.total:
        less = f"the machine has {gb(have.total / 1e9)}, this process's control group grants less"
        yield Line("memory", "note", found, less, "raise the container's limit, if larger models are wanted")
    else:
        yield Line("memory", "good", found)


def limits() -> Iterator[Line]:
    import torch

    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= files < 1024:
        few = "a corpus of many shards cannot be opened"
        yield Line("limits", "lack", f"{files:,} open files", few, "ulimit -n 4096")
    else:
        many = "any number of" if files == resource.RLIM_INFINITY else f"{files:,}"
        yield Line("limits", "good", f"{many} open files")
    for name, kind, flag in (
        ("address space", resource.RLIMIT_AS, "v"),
        ("size of a file", resource.RLIMIT_FSIZE, "f"),
    ):
        most = resource.getrlimit(kind)[0]
        if most != resource.RLIM_INFINITY:
            found = f"{name}: at most {gb(most / 1e9)}"
            yield Line("limits", "lack", found, "larger runs fail", f"ulimit -{flag} unlimited")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if cards > 1 and 0 <= locked < 1 << 26:
        found = f"locked memory: at most {gb(locked / 1e9)}"
        yield Line("limits", "note", found, "GPUs may not be able to talk to each other", "ulimit -l unlimited")
    if sys.platform == "linux":
        yield from _shared_memory(Path("/dev/shm"), "lack" if cards > 1 else "note")


def _shared_memory(folder: Path, grade: Grade) -> Iterator[Line]:
    free = shutil.disk_usage(folder).free if folder.is_dir() else 0
    if free < 64 << 20:
        found = f"{gb(free / 1e9)} free" if free else "not there, or full"
        fix = "in a container: --shm-size=1g, or --ipc=host"
        yield Line(str(folder), grade, found, "several GPUs could not train together", fix)
    else:
        yield Line(str(folder), "good", f"{gb(free / 1e9)} free")
