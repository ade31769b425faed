"""Kernels of our own for a CPU: for training what lies between the matrix products, in one pass over memory each.

A few C++ files without torch's headers, compiled for this very processor in seconds (`build`). They share torch's
OpenMP threads. Where no compiler is, or compiling fails, there is no `library()`, and torch does it all.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SUFFIX = {"torch.float32": "f32", "torch.bfloat16": "bf16"}
"""Of a kernel's name, by the type of its numbers."""

_loaded: list[ctypes.CDLL] = []


def load(file: Path) -> bool:
    """Use this library from now on; False where it is none."""
    import torch  # noqa: F401  (its OpenMP has to be there first)

    if not _loaded:
        try:
            _loaded.append(ctypes.CDLL(str(file)))
        except OSError:
            return False
    return True


def library() -> ctypes.CDLL | None:
    """The kernels, where they were loaded."""
    return _loaded[0] if _loaded else None


def multiplied_by() -> str:
    """The instructions that those with products of bf16 use, "AMX" or "AVX512-BF16"; "" where there are none such."""
    found = library()
    return "" if found is None else _multiplied_by(found)


def attends_in(dtype: torch.dtype) -> bool:
    """Whether there is attention between numbers of this type."""
    return bool(multiplied_by()) if str(dtype) == "torch.bfloat16" else str(dtype) in SUFFIX and library() is not None


@cache
def _multiplied_by(found: ctypes.CDLL) -> str:
    return ("", "AVX512-BF16", "AMX")[found.multiplied_by()]


def call(name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Run the kernel of this name for numbers of this type, one of `SUFFIX`.

    Tensors go by their address, None as no address, whole numbers and floats as they are.
    """
    found = library()
    assert found is not None
    getattr(found, f"{name}_{SUFFIX[str(dtype)]}")(*(_plain(argument) for argument in arguments))


def _plain(argument: Any) -> Any:
    if argument is None:
        return ctypes.c_void_p(0)
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if isinstance(argument, ctypes.Structure | ctypes.Array):
        return ctypes.byref(argument)
    return ctypes.c_void_p(argument.data_ptr())
