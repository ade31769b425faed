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


def has_tiles() -> bool:
    """Whether those on AMX tiles are among them, and the system lets this process use them."""
    found = library()
    return found is not None and _may_use_tiles(found)


@cache
def _may_use_tiles(found: ctypes.CDLL) -> bool:
    return bool(found.tiles_ready())


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
