"""Whether an imported checkpoint is the reference's: logits and one further optimizer step beside the reference's own.

    PYTHONPATH=src python bench/import_reference.py CHECKOUT [--window SSSL] [--json]

CHECKOUT is karpathy/nanochat, run here eagerly in float32 with the same torch. A small network with every weight
random is trained there for a few steps, saved by its own code and imported by ours; then both take one more step on the
same batch.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

BEFORE = 5
SIZES = {"sequence_len": 192, "n_layer": 4, "n_head": 2, "n_kv_head": 2, "n_embd": 128}
FLAGS = {"num_iterations": 50, "max_seq_len": 192, "depth": 4, "aspect_ratio": 32, "head_dim": 64, "warmup_steps": 2}


def batch(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.random.default_rng(seed).integers(0, vocab_size, (4, SIZES["sequence_len"] + 1))
    return ids[:, :-1].copy(), ids[:, 1:].copy()


def train_reference(work: Path, window: str) -> tuple[Any, Any, Any, Path]:
    """Its network, optimizer and rule of rates after some steps, and the checkpoint that it saved then."""
    from nanochat.checkpoint_manager import save_checkpoint
    from nanochat.gpt import GPT, GPTConfig
    from nanochat.tokenizer import RustBPETokenizer

    texts = [f"{i} tokens of text, {'and more ' * (i % 7)}words: {i * i}" for i in range(400)]
    tokenizer = RustBPETokenizer.train_from_iterator(iter(texts), 300)
    tokenizer.save(str(work / "tokenizer"))
    torch.save(lengths(tokenizer), work / "tokenizer" / "token_bytes.pt")
    config = {**SIZES, "vocab_size": 300, "window_pattern": window}
    model = GPT(GPTConfig(**config))
    model.init_weights()
    dice = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():  # no starting value is zero now
            weight.add_(0.1 * torch.randn(weight.shape, generator=dice))
    tokens = 4 * SIZES["sequence_len"]
    scale = (tokens / 2**19) ** 0.5
    optimizer = model.setup_optimizer(0.008 * scale, 0.3 * scale, 0.02 * scale, 0.28 * scale, 0.5 * scale)
    for step in range(BEFORE):
        reference_step(model, optimizer, step, scale)
    folder = work / "base_checkpoints" / "d4"
    flags = FLAGS | {"total_batch_size": tokens, "window_pattern": window}
    meta = {"step": BEFORE, "val_bpb": 1.0, "model_config": config, "user_config": flags, "total_batch_size": tokens}
    save_checkpoint(str(folder), BEFORE, model.state_dict(), optimizer.state_dict(), meta)
    return model, optimizer, scale, folder


def lengths(tokenizer: Any) -> torch.Tensor:
    special = {tokenizer.encode_special(name) for name in tokenizer.get_special_tokens()}
    sizes = [0 if i in special else len(tokenizer.decode_single_token_bytes(i)) for i in range(300)]
    return torch.tensor(sizes, dtype=torch.int32)


def reference_step(model: Any, optimizer: Any, step: int, scale: float) -> float:
    """One update at the rates that its training script would have set at `step`, with λ0 = 0.28·scale."""
    from fathom.optim.schedule import Schedule

    rates = Schedule(FLAGS["num_iterations"], warmup_steps=FLAGS["warmup_steps"], weight_decay=0.28 * scale)
    inputs, targets = batch(300, step)
    loss = model(torch.from_numpy(inputs), torch.from_numpy(targets))
    loss.backward()
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * rates.lr(step)
        if group["kind"] == "muon":
            group["momentum"], group["weight_decay"] = rates.momentum(step), rates.decay(step)
    optimizer.step()
    model.zero_grad(set_to_none=True)
    return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--window", default="SSSL")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    os.environ |= {"NANOCHAT_DTYPE": "float32", "TORCHDYNAMO_DISABLE": "1"}
    sys.path.insert(0, str(options.checkout))
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FATHOM_HOME": folder + "/home", "NANOCHAT_BASE_DIR": folder}
        found = compare(Path(folder), options.window)
    print(json.dumps(found) if options.json else "\n".join(f"{key:32}{value:.3g}" for key, value in found.items()))


def compare(work: Path, window: str) -> dict[str, float]:
    from fathom.interop.command import import_checkpoint
    from fathom.interop.weights import their_name
    from fathom.model.attention import DenseContext
    from fathom.model.gpt import GPT
    from fathom.optim.optimizer import Optimizer
    from fathom.optim.rates import adam_groups
    from fathom.record import read_config
    from fathom.train.checkpoint import find
    from fathom.train.progress import load_weights_and_moments
    from fathom.train.settings import imported

    theirs, their_optimizer, scale, folder = train_reference(work, window)
    import_checkpoint(str(folder), "ours", None, None)
    settings = imported(read_config("ours"), {}, {})
    ours = GPT(settings.shape)
    groups = adam_groups(settings.rates, settings.lr_scale, settings.width_scale)
    rate = settings.rates.matrix_lr * settings.lr_scale
    optimizer = Optimizer(ours.parameter_kinds(), groups, rate, torch.float32)
    load_weights_and_moments(find("ours"), ours, optimizer)
    context = DenseContext(SIZES["sequence_len"], "cpu")
    inputs, targets = (torch.from_numpy(part) for part in batch(300, BEFORE))
    with torch.no_grad():
        their_logits, our_logits = theirs(inputs), ours.logits(ours(inputs, context))
    before = {name: weight.detach().clone() for name, weight in theirs.state_dict().items()}
    their_loss = reference_step(theirs, their_optimizer, BEFORE, scale)
    our_loss = ours.loss(ours(inputs, context), targets) / targets.numel()
    our_loss.backward()
    # The decay by the rules belongs to a network of this width; the reference was told another here.
    optimizer.step(
        settings.schedule.lr(BEFORE),
        settings.schedule.momentum(BEFORE),
        settings.schedule.decay(BEFORE) * 0.28 * scale / settings.weight_decay,
    )
    optimizer.zero_grad()
    after, moved = theirs.state_dict(), ours.state_dict()
    names = {name: their_name(name) for name in moved}
    with torch.no_grad():
        later = (theirs(inputs) - ours.logits(ours(inputs, context))).abs().max()
    return {
        "largest logit": float(their_logits.abs().max()),
        "logits differ by": float((their_logits - our_logits).abs().max()),
        "losses differ by": abs(their_loss - our_loss.item()),
        "a step moves a weight by up to": max(float((after[n] - before[n]).abs().max()) for n in before),
        "after it weights differ by": max(float((moved[o] - after[t]).abs().max()) for o, t in names.items()),
        "after it logits differ by": float(later),
    }


if __name__ == "__main__":
    main()
