"""Training speed and first step beside the reference system, an untouched checkout given by its path.

    python bench/train.py --texts FOLDER --reference CHECKOUT --reference-python PYTHON [--steps 20 --repeats 3]

FOLDER holds Parquet shards with a column `text`, the last of them validation. Both sides train depth 4, head_dim 64,
full windows, 512 tokens of context, 16,384 tokens a step in micro-batches of 16 rows, a vocabulary of 8,192, in turn:
ours, the reference in its default float32, and the reference with bf16 forced (--no-bf16 leaves that out where the
CPU has no bf16 instructions). tokens/s is the median of the steps after the fifth; the first step is counted from the
start of the process, in the first repeat with cold compile caches. With --eval-tokens both are also measured in bits
per byte at the end, on best-fit rows of the same validation texts, by the reference's rules.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = {"depth": 4, "head-dim": 64, "batch": 16_384, "context": 512, "rows": 16, "vocab": 8192}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--reference", type=Path)
    parser.add_argument("--reference-python", default=sys.executable)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-bf16", action="store_true")
    parser.add_argument("--dtype", default="auto", help="of ours; fp32 shows what a CPU without bf16 has")
    parser.add_argument("--eval-tokens", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare_ours(work, options.texts)
        rivals = {"ours": lambda: ours(work, options)}
        if options.reference:
            prepare_reference(work, options)
            rivals["reference float32"] = lambda: reference(work, options, "float32")
            if not options.no_bf16:
                rivals["reference bf16"] = lambda: reference(work, options, "bfloat16")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in rivals}
        for repeat in range(options.repeats):
            for name, run in rivals.items():
                found[name].append(run())
                print(f"repeat {repeat + 1} {name}: {found[name][-1]}", file=sys.stderr, flush=True)
    print(json.dumps(summary(found), indent=1))


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for name, runs in found.items():
        result[name] = {key: spread([run[key] for run in runs]) for key in runs[0]}
        if name != "ours":
            ratios = [a["tokens_per_s"] / b["tokens_per_s"] for a, b in zip(found["ours"], runs, strict=True)]
            result[f"ours / {name}"] = spread(ratios)
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def prepare_ours(work: Path, texts: Path) -> None:
    last = sorted(texts.glob("*.parquet"))[-1]
    fathom(work, "data", "add", "texts", str(texts), "--validation", str(last), "--keep-order")
    fathom(work, "tokenizer", "train", "--corpus", "texts", "--vocab", str(SIZES["vocab"]), "--name", "t")


def fathom(work: Path, *words: str) -> str:
    env = os.environ | {"FATHOM_HOME": str(work / "fathom"), "PYTHONPATH": str(Path(__file__).parents[1] / "src")}
    done = subprocess.run([sys.executable, "-m", "fathom", *words], env=env, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return done.stdout


def ours(work: Path, options: argparse.Namespace) -> dict[str, float]:
    shutil.rmtree(work / "fathom" / "runs", ignore_errors=True)
    flags = {
        "corpus": "texts",
        "tokenizer": "t",
        "depth": SIZES["depth"],
        "head-dim": SIZES["head-dim"],
        "seq-len": SIZES["context"],
        "window": "L",
        "batch-tokens": SIZES["batch"],
        "device-batch": SIZES["rows"],
        "steps": options.steps,
        "rules": "reference",
        "dtype": options.dtype,
        "eval-tokens": options.eval_tokens or SIZES["context"] * SIZES["rows"],
        "run": "speed",
    }
    words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
    result = json.loads(fathom(work, "pretrain", *words, "--json"))
    return {key: result[key] for key in ("tokens_per_s", "first_step_s", "seconds", "val_bpb")}


def reference_env(work: Path, dtype: str) -> dict[str, str]:
    return os.environ | {
        "NANOCHAT_BASE_DIR": str(work / "reference"),
        "NANOCHAT_DTYPE": dtype,
        "PYTHONUNBUFFERED": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled" / dtype),
    }


def prepare_reference(work: Path, options: argparse.Namespace) -> None:
    data = work / "reference" / "base_data_climbmix"
    data.mkdir(parents=True)
    for shard in sorted(options.texts.glob("*.parquet")):
        (data / shard.name).symlink_to(shard.resolve())
    subprocess.run(
        [options.reference_python, "-m", "scripts.tok_train", "--vocab-size", str(SIZES["vocab"])],
        cwd=options.reference,
        env=reference_env(work, "float32"),
        check=True,
        capture_output=True,
    )


def reference(work: Path, options: argparse.Namespace, dtype: str) -> dict[str, float]:
    flags = {
        "depth": SIZES["depth"],
        "head-dim": SIZES["head-dim"],
        "window-pattern": "L",
        "max-seq-len": SIZES["context"],
        "device-batch-size": SIZES["rows"],
        "total-batch-size": SIZES["batch"],
        "num-iterations": options.steps,
        "eval-every": options.steps if options.eval_tokens else -1,
        "eval-tokens": options.eval_tokens or -1,
        "core-metric-every": -1,
        "sample-every": -1,
        "save-every": -1,
    }
    words = [f"--{key}={value}" for key, value in flags.items()]
    command = [options.reference_python, "-m", "scripts.base_train", *words]
    began = time.monotonic()
    process = subprocess.Popen(
        command, cwd=options.reference, env=reference_env(work, dtype), stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    speeds, first, bpb, said = [], 0.0, 0.0, []
    for line in process.stdout or ():
        said.append(line)
        if found := re.match(r"step (\d+)/.*tok/sec: ([\d,]+)", line):
            first = first or time.monotonic() - began
            if int(found[1]) >= 5:
                speeds.append(float(found[2].replace(",", "")))
        if found := re.search(r"[Vv]alidation bpb: ([\d.]+)", line):
            bpb = float(found[1])
    if process.wait() and not speeds:
        sys.exit("".join(said[-30:]))
    return {"tokens_per_s": statistics.median(speeds), "first_step_s": first, "val_bpb": bpb}


if __name__ == "__main__":
    main()
