"""How fast text becomes tokens and tokens become batches: MB/s a core, tokens/s a core, documents/s.

    python bench/data.py FILE.parquet… [--vocab 8192] [--training-tokens-per-s 20000] [--json]

Everything runs on one thread. `cpu` figures divide by processor time, so they hold on a busy machine too; `wall` ones
divide by the clock. Beside ours stands, measured in the same run, tiktoken with the reference's pattern verbatim; and
the loader is set against the rate of training that is given.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tiktoken

from fathom.data.batches import PretrainBatches
from fathom.data.corpus import open_corpus, write_corpus
from fathom.data.corpus.files import read_texts
from fathom.data.packing import Packing, pack
from fathom.data.shards import tokenize
from fathom.tokenizer import PATTERN, Tokenizer, train

PACKINGS: tuple[Packing, ...] = ("best-fit", "lossless")
SEQ_LEN, ROWS_PER_STEP, STEPS = 512, 32, 500


def timed(work: Callable[[], object], repeats: int = 3) -> tuple[float, float]:
    """Seconds by the clock and of the processor, of the quickest of some repeats."""
    best = (float("inf"), float("inf"))
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        best = min(best[0], time.perf_counter() - wall), min(best[1], time.process_time() - cpu)
    return best


def encoding(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """MB/s of encoding, and of tiktoken with the same vocabulary and the reference's pattern."""
    ranks = {token: rank for rank, token in enumerate(tokenizer.tokens)}
    verbatim = tiktoken.Encoding("verbatim", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    ours = timed(lambda: [tokenizer.encode_to_array(text) for text in texts])
    theirs = timed(lambda: [verbatim.encode_ordinary(text) for text in texts])
    return {
        "encode_mb_per_s_wall": megabytes / ours[0],
        "encode_mb_per_s_cpu": megabytes / ours[1],
        "encode_verbatim_pattern_mb_per_s_cpu": megabytes / theirs[1],
    }


def sharding(tokenizer: Tokenizer, texts: list[str]) -> dict[str, float]:
    """MB/s from Parquet to shards on disk with one worker, and the loader's speed on them."""
    corpus = write_corpus("bench", texts, texts[:1], "bench")
    megabytes = (corpus.n_bytes("train") + corpus.n_bytes("validation")) / 1e6
    wall, cpu = timed(lambda: tokenize(corpus, tokenizer, workers=1), repeats=1)
    store = tokenize(open_corpus("bench"), tokenizer)
    figures = {"shards_mb_per_s_wall": megabytes / wall, "shards_mb_per_s_cpu": megabytes / cpu}
    for packing in PACKINGS:
        made = PretrainBatches(store, packing=packing, seq_len=SEQ_LEN, rows_per_step=ROWS_PER_STEP, seed=1)
        _, cpu = timed(lambda made=made: [made.batch(step) for step in range(STEPS)], repeats=1)  # type: ignore[misc]
        figures[f"loader_{packing}_tokens_per_s_cpu"] = STEPS * ROWS_PER_STEP * SEQ_LEN / cpu
    return figures


def packing(documents: int = 500_000) -> dict[str, float]:
    """Documents/s of packing made-up lengths, 1,000 tokens on average, into rows of 2,048."""
    lengths = np.random.default_rng(0).lognormal(np.log(1000) - 0.5, 1.0, documents).astype(np.int64) + 1
    figures = {}
    for kind in PACKINGS:
        _, cpu = timed(lambda kind=kind: list(pack(lengths.__getitem__, documents, 2049, kind)), repeats=1)  # type: ignore[misc]
        figures[f"packing_{kind}_documents_per_s_cpu"] = documents / cpu
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="Parquet files with a column `text`")
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--training-tokens-per-s", type=float, default=20_000, help="what the loader is set against")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    texts = [text for path in options.files for text in read_texts(path)]
    with tempfile.TemporaryDirectory() as home:
        os.environ["FATHOM_HOME"] = home
        wall = time.perf_counter()
        tokenizer = train(texts, options.vocab)
        figures = {"train_tokenizer_s": time.perf_counter() - wall} | encoding(tokenizer, texts[:2000])
        figures |= sharding(tokenizer, texts) | packing()
    slowest = min(figures[f"loader_{kind}_tokens_per_s_cpu"] for kind in PACKINGS)
    figures["loader_over_training"] = slowest / options.training_tokens_per_s
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{name:<44}{value:>18,.1f}" for name, value in figures.items()))


if __name__ == "__main__":
    main()
