"""A finished run trained for longer in two ways, and one planned for it: the table of docs/results/extend.md.

    python bench/extend.py [--steps 100] [--longer 160] [--seeds 3]

A run comes to the end of its warm-down and is then extended. `fathom pretrain --extend` goes on from before its rate
fell; with --from-end it goes on from its end, as resuming with a longer horizon would. Depth 2 on texts of the embedded
primer, whole validation documents, in bits per byte.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "src")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--longer", type=int, default=160)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["FATHOM_HOME"] = folder
        furnish()
        found = [trained(seed, options.steps, options.longer) for seed in range(1, options.seeds + 1)]
    print("| seed | " + " | ".join(found[0]) + " |\n|" + "---|" * (len(found[0]) + 1))
    for seed, one in enumerate(found, 1):
        print(f"| {seed} | " + " | ".join(f"{value:.4f}" for value in one.values()) + " |")
    print("| mean | " + " | ".join(f"{statistics.mean(one[key] for one in found):.4f}" for key in found[0]) + " |")


def furnish() -> None:
    from fathom import hardware
    from fathom import tokenizer as tokenizers
    from fathom.data import primer
    from fathom.data.corpus import write_corpus
    from fathom.home import tokenizer_dir

    hardware.peak_flops = lambda device, dtype: (1e12, "not measured")  # type: ignore[assignment]
    texts = list(primer.documents(1, 3_000_000))
    write_corpus("primer", texts, list(primer.documents(1_000_004, 100_000)), source="the embedded primer")
    tokenizers.train(texts[:2000], 512).save(tokenizer_dir("primer"))


def trained(seed: int, steps: int, longer: int) -> dict[str, float]:
    """Bits per byte of the run, of its two extensions, and of one that was planned for the longer time."""
    first = f"s{seed}"
    plain = {"corpus": "primer", "tokenizer": "primer", "depth": 2, "head_dim": 32, "seq_len": 64, "window": "L"}
    plain |= {"batch_tokens": 512, "seed": seed}
    more: dict[str, Any] = {"extend": first, "steps": longer}
    return {
        f"{steps} steps": bpb(name=first, steps=steps, **plain),
        f"extended to {longer} from before the fall": bpb(name=f"{first}-before", **more),
        f"extended to {longer} from the end": bpb(name=f"{first}-end", from_end=True, **more),
        f"{longer} steps from the start": bpb(name=f"{first}-whole", steps=longer, **plain),
    }


def bpb(**settings: Any) -> float:
    from fathom.train.pretrain import Pretrain, pretrain

    config = Pretrain(eval_every=0, eval_tokens=20_480, sample=False, compile="off", dtype="fp32", **settings)
    return float(pretrain(config)[0]["val_bpb"])


if __name__ == "__main__":
    main()
