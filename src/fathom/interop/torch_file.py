"""Files that torch.save wrote and that nobody vouches for: read as tensors and plain values, or refused."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fathom.errors import FathomError

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
ANOTHER_COPY = "take the file from another copy"


def read_torch_file(path: Path) -> Any:
    """What torch.save wrote; large tensors stay on the disk until they are looked at.

    Raises FathomError for a missing, truncated or packed file, and names whatever is no tensor or plain value in it.
    """
    _refuse_packed(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # damaged bytes make torch stumble in many ways
        said = str(error).strip()
        foreign = re.search(r"(?:GLOBAL|class|type) ([\w.]+)", said)
        if "eights only" in said and foreign:
            problem, remedy = f"{path} holds {foreign[1]}, which is no tensor or plain value", "do not use it"
        else:
            first = re.split(r"\n|\. (?=[A-Z])", re.sub(r"^\[.*?\] \. ", "", said))[0] or type(error).__name__
            problem, remedy = f"{path} cannot be read ({first[:200]})", ANOTHER_COPY
        raise FathomError(problem, remedy) from None


def _refuse_packed(path: Path) -> None:
    """Torch stores without compression: nothing in an honest file unpacks to more than the file has."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except FileNotFoundError:
        raise FathomError(f"there is no {path}", "give the folder of a whole checkpoint") from None
    except OSError as error:
        raise FathomError(f"{path} cannot be read ({error.strerror})", "see to its permissions") from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise FathomError(f"{path} is truncated or no file of torch.save's ({error})", ANOTHER_COPY) from None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise FathomError(f"{path} is packed to unfold to more than it holds, as torch never does", "do not use it")


def float_tensor(found: Any, shape: tuple[int, ...], name: str, path: Path) -> Tensor:
    """`found`, if it is a dense tensor of floats of that shape; else FathomError."""
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.dtype not in FLOATS:
        raise FathomError(f"{name} in {path} is no tensor of floating-point numbers", ANOTHER_COPY)
    if tuple(found.shape) != shape or not found.is_contiguous():
        raise FathomError(
            f"{name} in {path} is {_times(tuple(found.shape))} where the metadata means {_times(shape)}",
            "files of different checkpoints may have been mixed",
        )
    return found.detach()


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a single number"
