"""CORE of an imported checkpoint, item by item, beside the reference's own code.

    python bench/core_reference.py CHECKOUT --bundle ZIP [--items 3] [--limit 100] [--json]

CHECKOUT is karpathy/nanochat with its packages (rustbpe, tiktoken, jinja2) beside ours. It learns a vocabulary from the
bundle's words and saves a random network of depth 4, which `fathom import` makes a run of. Of every task the first
`--items` of the `--limit` shuffled items are then scored by `fathom eval --dump`'s code here, and by the checkout in a
process of its own: rows of tokens, spans, losses and right or wrong are compared. Nothing of either is changed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

THEIRS = r"""
import csv, json, random, sys, zipfile
from pathlib import Path
import torch, yaml
from nanochat import core_eval
from nanochat.checkpoint_manager import load_model, save_checkpoint
from nanochat.gpt import GPT, GPTConfig
from nanochat.tokenizer import RustBPETokenizer

what, bundle, base, limit, count = sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
archive = zipfile.ZipFile(bundle)
tasks = yaml.safe_load(archive.read("eval_bundle/core.yaml"))["icl_tasks"]

def items(task):
    with archive.open("eval_bundle/eval_data/" + task["dataset_uri"]) as file:
        rows = [json.loads(line) for line in file]
    random.Random(1337).shuffle(rows)
    return rows[:limit]

if what == "make":
    words = (str(value) for task in tasks for item in items(task) for value in item.values())
    tokenizer = RustBPETokenizer.train_from_iterator(words, 4096)
    tokenizer.save(str(base / "tokenizer"))
    sizes = dict(sequence_len=512, n_layer=4, n_head=2, n_kv_head=2, n_embd=128)
    config = dict(sizes, vocab_size=4096, window_pattern="SSSL")
    torch.manual_seed(0)
    model = GPT(GPTConfig(**config))
    model.init_weights()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    meta = {"step": 1, "model_config": config, "user_config": {}}
    save_checkpoint(str(base / "base_checkpoints" / "d4"), 1, model.state_dict(), None, meta)
else:
    model, tokenizer, _ = load_model("base", torch.device("cpu"), phase="eval")
    model.rotary_seq_len = 2**15  # some prompts are longer than ten contexts
    model.cos, model.sin = model._precompute_rotary_embeddings(2**15, 64)
    seen = {}
    for name in ("batch_sequences_mc", "batch_sequences_schema", "batch_sequences_lm"):
        def batched(*words, real=getattr(core_eval, name)):
            seen["rows"] = real(*words)
            return seen["rows"]
        setattr(core_eval, name, batched)
    def forward(*words, real=core_eval.forward_model):
        seen["losses"], likeliest = real(*words)
        return seen["losses"], likeliest
    core_eval.forward_model = forward
    for task in tasks:
        meta = dict(task_type=task["icl_task_type"], num_fewshot=task["num_fewshot"][0],
                    continuation_delimiter=task.get("continuation_delimiter", " "))
        data = items(task)
        for index in range(min(count, len(data))):
            right = core_eval.evaluate_example(index, model, tokenizer, data, torch.device("cpu"), meta)
            rows, starts, ends = seen["rows"]
            losses = [seen["losses"][i, s - 1 : e - 1].tolist() for i, (s, e) in enumerate(zip(starts, ends))]
            print(json.dumps(dict(task=task["label"], index=index, tokens=rows, start=starts, end=ends,
                                  losses=losses, correct=bool(right))))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--items", type=int, default=3)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"FATHOM_HOME": folder + "/home", "NANOCHAT_BASE_DIR": folder}
        reference(options, folder, "make")
        ours = measured(options, folder)
        theirs = [json.loads(line) for line in reference(options, folder, "score").splitlines() if line[:1] == "{"]
    found = compared(ours, theirs)
    print(json.dumps(found) if options.json else "\n".join(f"{key:32}{value:g}" for key, value in found.items()))


def reference(options: argparse.Namespace, folder: str, what: str) -> str:
    """What the checkout prints when asked to `make` a checkpoint or to `score` it."""
    env = os.environ | {
        "PYTHONPATH": str(options.checkout),
        "NANOCHAT_DTYPE": "float32",
        "TORCHDYNAMO_DISABLE": "1",
    }
    words = [what, options.bundle.resolve(), folder, options.limit, options.items]
    command = [sys.executable, "-c", THEIRS, *map(str, words)]
    done = subprocess.run(command, env=env, cwd=options.checkout, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit("the checkout failed, as it says above")
    return done.stdout


def measured(options: argparse.Namespace, folder: str) -> list[dict[str, Any]]:
    """The same items by ours, as --dump writes them."""
    sys.path.insert(0, str(ROOT / "src"))
    from fathom.evaluate.core import open_bundle, score_task
    from fathom.evaluate.scorer import ModelScorer
    from fathom.interop.command import import_checkpoint
    from fathom.train.checkpoint import load_model

    import_checkpoint(folder + "/base_checkpoints/d4", "theirs", None, None)
    model, tokenizer, _ = load_model("theirs", dtype="fp32")
    found: list[dict[str, Any]] = []
    for task in open_bundle(options.bundle).tasks:
        scorer = ModelScorer(model, tokenizer.bos_id)
        n = min(options.limit, len(task.items()))
        for index in range(min(options.items, n)):
            score_task(scorer, tokenizer, task, limit=options.limit, share=(index, n), dump=found.append)
    return found


def compared(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, float]:
    pairs = list(zip(ours, theirs, strict=True))
    assert all(one["task"] == other["task"] and one["index"] == other["index"] for one, other in pairs)
    spans = [
        (x, y)
        for one, other in pairs
        if one["tokens"] == other["tokens"]
        for mine, yours in zip(one["losses"], other["losses"], strict=True)
        for x, y in zip(mine, yours, strict=True)
    ]
    return {
        "tasks": len({one["task"] for one in ours}),
        "items": len(pairs),
        "rows of tokens": sum(len(one["tokens"]) for one in ours),
        "longest row": max(len(row) for one in ours for row in one["tokens"]),
        "items with other tokens": sum(one["tokens"] != other["tokens"] for one, other in pairs),
        "items with other spans": sum(any(one[k] != other[k] for k in ("start", "end")) for one, other in pairs),
        "items judged otherwise": sum(one["correct"] != other["correct"] for one, other in pairs),
        "items right": sum(one["correct"] for one in ours),
        "largest loss": max(x for x, _ in spans),
        "losses differ by": max(abs(x - y) for x, y in spans),
    }


if __name__ == "__main__":
    main()
