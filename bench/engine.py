"""The engine on a network of depth 12 with random weights, which are more than a core's caches hold.

    python bench/engine.py [--dtype auto] [--weights as-trained] [--decode pages static] [--tokens 128]

Prints one JSON object, with what follows for each way of `--decode` (generate/decode.py):

one_request     tokens/s of one request; the bytes that a token has to read and the machine's measured copy rate, and so
                the share of what memory allows; how much faster than a plain loop that keeps keys and values in
                growing tensors, and than one that computes the whole text anew for each token
many_requests   tokens/s of 32 requests at once over those one after another; and how long a newcomer waits for its
                first token while 16 others stream
second_turn     time to the first token of the second turn of a conversation of 1,500 tokens, over that of the first

Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, get_args

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402

from fathom.generate.decode import Decode  # noqa: E402
from fathom.generate.engine import Engine  # noqa: E402
from fathom.generate.running import Request  # noqa: E402
from fathom.hardware import choose_dtype, device_type, torch_dtype  # noqa: E402
from fathom.model.attention import DenseContext  # noqa: E402
from fathom.model.gpt import GPT  # noqa: E402
from fathom.model.shape import Shape  # noqa: E402
from fathom.tokenizer import SPECIALS, Tokenizer  # noqa: E402

SHAPE = Shape(n_layer=12, n_head=6, n_kv_head=6, head_dim=128, vocab_size=32_768, seq_len=2_048)
PROMPT, MANY, CONVERSATION = 64, 32, 1_500
STREAMING, NEWCOMERS = 16, 24


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument("--weights", default="as-trained", choices=("as-trained", "int8"))
    parser.add_argument("--decode", default=["pages"], nargs="+", choices=get_args(Decode))
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    dtype = choose_dtype(options.dtype, device_type().value).value
    model = random_network(torch_dtype(dtype))
    result: dict[str, Any] = {"dtype": dtype, "weights": options.weights, "threads": torch.get_num_threads()}
    for decode in options.decode:
        engine = Engine(model, vocabulary(), max_batch=MANY, weights=options.weights, decode=decode)
        answer(engine, random_prompt(PROMPT, 0), 4)
        if decode == "compiled":
            measured(engine, options.tokens)  # compiling and recording are no part of the speed
        result[decode] = measured(engine, options.tokens)
    print(json.dumps(result, indent=1))


def measured(engine: Engine, n: int) -> dict[str, Any]:
    return {
        "one_request": one_request(engine, n),
        "many_requests": many_requests(engine, n // 2),
        "second_turn": second_turn(engine),
    }


@torch.no_grad()
def random_network(dtype: torch.dtype) -> GPT:
    with torch.device("meta"):
        model = GPT(SHAPE, dtype).to(dtype)
    model = model.to_empty(device=device_type().value).eval()
    for weight in model.parameters():
        weight.uniform_(-0.05, 0.05)
    model.keep.fill_(1.0)
    return model


def vocabulary() -> Tokenizer:
    singles = [bytes([i]) for i in range(256)]
    pairs = [bytes([i, j]) for i in range(256) for j in range(256)]
    return Tokenizer(tuple((singles + pairs)[: SHAPE.vocab_size - len(SPECIALS)]))


def random_prompt(n: int, seed: int) -> tuple[int, ...]:
    random = Random(seed)
    return tuple(random.randrange(30_000) for _ in range(n))


def request(prompt: tuple[int, ...], n: int) -> Request:
    return Request(prompt, max_tokens=n, stop=frozenset(), tools=False)


def answer(engine: Engine, prompt: tuple[int, ...], n: int) -> tuple[list[int], list[float]]:
    """The tokens of an answer, and when each came, in seconds from the asking."""
    start, tokens, times = time.perf_counter(), [], []
    engine.add(request(prompt, n))
    while engine.n_unfinished:
        for event in engine.step():
            tokens.append(event.token)
            times.append(time.perf_counter() - start)
    return tokens, times


def one_request(engine: Engine, n: int) -> dict[str, Any]:
    def ours() -> float:
        times = answer(engine, random_prompt(PROMPT, time.perf_counter_ns()), n)[1]
        return (len(times) - 1) / (times[-1] - times[0])

    plain_n = 24  # enough to measure, and at the context of the middle of the answer
    rates = {"engine": [], "growing": [], "anew": []}
    for _ in range(3):
        rates["engine"].append(ours())
        rates["growing"].append(plain_loop(engine.model, PROMPT + n // 2, plain_n, anew=False))
        rates["anew"].append(plain_loop(engine.model, PROMPT + n // 2, plain_n // 4, anew=True))
    best = {name: statistics.median(values) for name, values in rates.items()}
    read, copied = bytes_per_token(engine, PROMPT + n // 2), copy_rate(engine.model.device)
    return {
        "tokens_per_s": round(best["engine"], 2),
        "bytes_read_per_token": read,
        "copy_gb_per_s": round(copied / 1e9, 2),
        "bound_tokens_per_s": round(copied / read, 2),
        "share_of_bound": round(best["engine"] * read / copied, 3),
        "over_growing_tensors": round(best["engine"] / best["growing"], 2),
        "over_computing_anew": round(best["engine"] / best["anew"], 2),
    }


def bytes_per_token(engine: Engine, context: int) -> int:
    """Weights that every token is multiplied with, and the keys and values behind it."""
    weights = 1 if engine.weights == "int8" else engine.model.dtype.itemsize
    keys = sum(min(context, window) for window in SHAPE.windows)
    return SHAPE.matmul_parameters * weights + 2 * keys * SHAPE.d_kv * engine.model.dtype.itemsize


def copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a copy of 512 MB."""
    source = torch.ones(2**29, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / min(timed(lambda: target.copy_(source)) for _ in range(7))


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


class GrowingContext:
    """Keys and values in tensors that are put together anew for every token."""

    wanted: Tensor | None = None

    def __init__(self, device: torch.device) -> None:
        self.positions = torch.zeros(0, dtype=torch.int64, device=device)
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        self._last: Tensor | None = None

    def feed(self, n: int) -> None:
        first = int(self.positions[-1]) + 1 if len(self.positions) else 0
        self.positions = torch.arange(first, first + n, device=self.positions.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
        if layer in self._kept:
            k, v = (torch.cat([old, new], dim=1) for old, new in zip(self._kept[layer], (k, v), strict=True))
        self._kept[layer] = k, v
        first = q.shape[1] == k.shape[1]
        q, k, v = (
            x.transpose(1, 2) for x in (q, k if first else k[:, -window - 1 :], v if first else v[:, -window - 1 :])
        )
        return F.scaled_dot_product_attention(q, k, v, is_causal=first).transpose(1, 2)

    def previous(self, x: Tensor) -> Tensor:
        before = torch.zeros_like(x[:, :1]) if self._last is None else self._last
        self._last = x[:, -1:]
        return torch.cat([before, x[:, :-1]], dim=1)


@torch.inference_mode()
def plain_loop(model: GPT, n_prompt: int, n: int, anew: bool) -> float:
    """Tokens/s of greedy decoding by a loop of a few lines."""
    ids = list(random_prompt(n_prompt, 1))
    context, fed = GrowingContext(model.device), 0
    start = time.perf_counter()
    for i in range(n + 1):
        if i == 1:
            start = time.perf_counter()
        if anew:
            hidden = model(torch.tensor([ids], device=model.device), DenseContext(len(ids), model.device))
        else:
            context.feed(len(ids) - fed)
            hidden = model(torch.tensor([ids[fed:]], device=model.device), context)
            fed = len(ids)
        ids.append(int(model.logits(hidden[:, -1]).argmax()))
    return n / (time.perf_counter() - start)


def many_requests(engine: Engine, n: int) -> dict[str, Any]:
    alone = []
    for seed in range(4):
        start = time.perf_counter()
        answer(engine, random_prompt(2 * PROMPT, 100 + seed), n)
        alone.append(time.perf_counter() - start)
    together = timed(lambda: engine.generate([request(random_prompt(2 * PROMPT, 200 + i), n) for i in range(MANY)]))
    waits = newcomers(engine)
    return {
        "tokens_per_s": round(MANY * n / together, 1),
        "one_after_another_tokens_per_s": round(n / statistics.mean(alone), 1),
        "over_one_after_another": round(MANY * statistics.mean(alone) / together, 2),
        "first_token_median_s": round(statistics.median(waits), 3),
        "first_token_p99_s": round(sorted(waits)[int(0.99 * len(waits))], 3),
    }


def newcomers(engine: Engine) -> list[float]:
    """Seconds to the first token of requests of 200 tokens that come one by one while others stream."""
    streaming = {engine.add(request(random_prompt(PROMPT, 300 + i), 1_000)) for i in range(STREAMING)}
    while len({event.request_id for event in engine.step()}) < STREAMING:
        pass
    waits = []
    for i in range(NEWCOMERS):
        engine.step()
        start = time.perf_counter()
        newcomer = engine.add(request(random_prompt(200, 400 + i), 1))
        while newcomer not in {event.request_id for event in engine.step()}:
            pass
        waits.append(time.perf_counter() - start)
    for id in streaming:
        engine.cancel(id)
    return waits


def second_turn(engine: Engine) -> dict[str, Any]:
    first, second = [], []
    for seed in range(5):
        prompt = random_prompt(CONVERSATION, 500 + seed)
        tokens, times = answer(engine, prompt, 16)
        first.append(times[0])
        second.append(answer(engine, (*prompt, *tokens, *random_prompt(30, seed)), 1)[1][0])
    one, two = statistics.median(first), statistics.median(second)
    return {"first_s": round(one, 4), "second_s": round(two, 4), "second_over_first": round(two / one, 3)}


if __name__ == "__main__":
    main()
