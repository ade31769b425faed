"""The reference's tokenizer folder: the vocabulary that belongs to a checkpoint. REFERENCE section 4."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from fathom.errors import FathomError
from fathom.interop.encoding_pickle import read_encoding
from fathom.interop.folder import Found
from fathom.interop.torch_file import read_torch_file
from fathom.screen import say
from fathom.tokenizer import Tokenizer


def read_vocabulary(found: Found, path: str | None, vocab_size: int) -> Tokenizer:
    """The tokenizer in `path`, by default in the folder where the reference keeps it.

    Raises FathomError where there is none, or it is not that of a network of `vocab_size` tokens.
    """
    folder = Path(os.path.abspath(path)) if path is not None else found.tokenizer
    tokenizer = read_encoding(folder / "tokenizer.pkl")
    if tokenizer.vocab_size != vocab_size:
        raise FathomError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, and the network was trained with "
            f"{vocab_size:,}",
            "give the folder of its own tokenizer with --tokenizer",
        )
    say(f"  tokenizer {vocab_size:,} tokens from {folder}")
    _compare_lengths(folder / "token_bytes.pt", tokenizer)
    return tokenizer


def _compare_lengths(path: Path, tokenizer: Tokenizer) -> None:
    """Ours are counted from the tokens; the reference's own are only looked at, since they decide its bpb."""
    if not path.exists():
        return
    lengths = read_torch_file(path)
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int32 or lengths.shape != (tokenizer.vocab_size,):
        raise FathomError(
            f"{path} does not hold one length for each of {tokenizer.vocab_size:,} tokens",
            "give the folder of one tokenizer with --tokenizer",
        )
    others = int((lengths != torch.from_numpy(tokenizer.token_bytes())).sum())
    if others:
        say(
            f"  lengths   {others:,} tokens have another length in bytes in token_bytes.pt, as before July 2026; they "
            "are counted anew, and bits per byte read a little higher here"
        )
