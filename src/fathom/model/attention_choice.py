"""Which attention kernels this machine runs, and why; FlashAttention 3 or 4 is switched on where torch can."""

from __future__ import annotations

import torch

from fathom.hardware import Choice
from fathom.model import fused
from fathom.model.attention import flex_is_there
from fathom.model.shape import Shape

NEWER = {9: "FA3", 10: "FA4", 11: "FA4"}
"""By the first figure of a GPU's compute capability: Hopper, Blackwell (not GeForce's, which is 12)."""


def choose_attention(
    shape: Shape, device: str, document_mask: bool, dtype: torch.dtype = torch.float32, own: bool = False
) -> Choice:
    """The kernels of a run's layers, in words, and the reasons for them. `own`: the others are our own."""
    row = torch.empty(1, shape.seq_len, 1, shape.head_dim, dtype=dtype, device="meta")
    if own and not document_mask and fused.can_attend(row, row):
        return Choice("kernels of our own for all rows", "they are compiled for this CPU")
    short = any(window < shape.seq_len - 1 for window in shape.windows)
    layers = "windows" if short and not document_mask else "documents" if document_mask else ""
    whole = _whole_rows(device) if not document_mask and (not short or shape.seq_len in shape.windows) else None
    parts = [] if whole is None else [whole]
    if layers:
        parts.append(_masked(device, layers))
    return Choice(", ".join(part.value for part in parts), "; ".join(part.reason for part in parts))


def _masked(device: str, what: str) -> Choice:
    if device == "cuda" and flex_is_there():
        return Choice(f"FlexAttention for {what}", "it skips what the mask hides on any GPU from Ampere on")
    why = (
        "FlexAttention wants a GPU from Ampere on, and Triton"
        if device == "cuda"
        else "FlexAttention trains on NVIDIA GPUs only"
    )
    return Choice(f"blocks of queries for {what}", why)


def _whole_rows(device: str) -> Choice:
    if device != "cuda":
        return Choice("torch's causal kernel for whole rows", "there is no NVIDIA GPU")
    major, _ = torch.cuda.get_device_capability()
    if major < 8:
        return Choice("memory-efficient attention for whole rows", "FlashAttention wants a GPU from Ampere on")
    return newer_flash(major)


def newer_flash(major: int) -> Choice:
    """FlashAttention 3 or 4 in place of torch's own 2, where the GPU, this torch and its package are there."""
    wanted = NEWER.get(major)
    usual = "FlashAttention 2 for whole rows"
    if wanted is None:
        return Choice(usual, f"3 and 4 are for Hopper and data-centre Blackwell, not compute capability {major}")
    try:
        from torch.nn.attention import activate_flash_attention_impl
    except ImportError:  # before torch 2.11
        return Choice(usual, f"torch {torch.__version__} cannot take another")
    try:
        activate_flash_attention_impl(wanted)
    except Exception as error:  # a package that is missing, or made for another torch
        return Choice(usual, f"{wanted} is not usable here ({str(error).splitlines()[0][:120]})")
    return Choice(
        f"FlashAttention {wanted[-1]} for whole rows", f"for compute capability {major}, its package is there"
    )
