"""Compiling the kernels for this processor, once: the library is kept under `home()/kernels`."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path

from fathom import kernels
from fathom.home import home

SOURCES = ("loss.cpp", "layer.cpp", "attention.cpp", "weights.cpp", "muon.cpp", "pages.cpp")
HEADERS = ("numbers.h", "products.h")
# NaN and infinity stay what they are: a run's health is judged by them.
FLAGS = (
    *("-O3", "-march=native", "-std=c++17", "-fPIC", "-fopenmp"),
    *("-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-fassociative-math", "-freciprocal-math"),
)
TIMEOUT_S = 120


def compiler() -> str:
    """GCC's C++ compiler, "" for none; $CXX outranks g++. Clang's OpenMP has threads of its own."""
    asked = (os.environ.get("CXX") or "g++").split()[0]
    return "" if "clang" in asked else shutil.which(asked) or shutil.which("g++") or ""


def prepare() -> None:
    """Begin to compile, beside what else a command has to do first."""
    threading.Thread(target=_built, daemon=True).start()


def load() -> bool:
    """Whether the kernels are there to be used; they are compiled and loaded where that was not done yet."""
    if kernels.library() is not None:
        return True
    found = _built()
    return found is not None and kernels.load(found)


_building = threading.Lock()


def _built() -> Path | None:
    """The library's file, compiled where it is not there yet; None where it cannot be had."""
    with _building:
        return _build()


@cache
def _build() -> Path | None:
    with_compiler = compiler()
    if sys.platform != "linux" or not with_compiler or sys.byteorder != "little":
        return None
    here = Path(__file__).parent
    text = b"".join((here / name).read_bytes() for name in (*SOURCES, *HEADERS))
    made_for = f"{FLAGS}{with_compiler}{os.stat(with_compiler).st_mtime_ns}{_processor()}"
    digest = hashlib.sha256(text + made_for.encode()).hexdigest()[:16]
    for folder in (home() / "kernels", Path(tempfile.gettempdir()) / f"fathom-kernels-{os.getuid()}"):
        target = folder / f"{digest}.so"
        try:
            if target.exists() and target.stat().st_uid == os.getuid():
                return target
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return target if _compile(with_compiler, here, target) else None
        except OSError:
            continue  # a read-only home: the system's own place for such things
    return None


def _compile(with_compiler: str, here: Path, target: Path) -> bool:
    """Each file by a process of its own, then one library of them, written aside and renamed."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as made:
        objects = [Path(made) / f"{Path(name).stem}.o" for name in SOURCES]
        jobs = [
            subprocess.Popen(
                [with_compiler, *FLAGS, *_wide_vectors(), "-c", str(here / name), "-o", str(out)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )
            for name, out in zip(SOURCES, objects, strict=True)
        ]  # fmt: skip
        try:
            if any([job.wait(TIMEOUT_S) for job in jobs]):
                return False
            aside = Path(made) / "library.so"
            linked = subprocess.run(
                [with_compiler, "-shared", "-fopenmp", *map(str, objects), "-o", str(aside)],
                stdin=subprocess.DEVNULL, capture_output=True, timeout=TIMEOUT_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            for job in jobs:
                job.kill()
                job.wait()
            return False
        if linked.returncode:
            return False
        os.replace(aside, target)
    return True


def _wide_vectors() -> list[str]:
    return ["-mprefer-vector-width=512"] if "avx512f" in _processor() else []


@cache
def _processor() -> str:
    """What the machine code depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "model", "Features", "CPU part"))}))


if __name__ == "__main__":  # the launcher does, once it has installed
    _built()
