"""The memory that a training run needs on one device, by part, and its checkpoints on the disk (pure, no torch).

The parts are those of the code, counted: how often a number of a layer is kept for the backward pass was read off the
tensors that autograd saves (ours; tests/test_estimate.py counts them again) and off the graph that AOTAutograd's
partitioner makes of the reference (its compiled step).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fathom.model.shape import Shape

FLOW_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}

# Numbers kept for the backward pass by a layer, per token and channel. Ours, on torch's kernels, not compiled (a
# run's first 30 steps never are): the layer's input, the normed input, queries and keys before and after their norm,
# values, what attention gave, the residual after it and its norm, and twice 4 of the feed-forward. A layer with a
# value embedding keeps that too.
OURS_A_LAYER = 19.0
OURS_VALUE_EMBEDDING = 1.0
OURS_BY_KERNELS = 15.5  # the same by our own kernels on a CPU, which form again what costs little, in either dtype
OURS_NORMS = 4.0  # of them inputs of norms, which on a CPU are kept in float32
OURS_FP8_SAVES = 1.5  # inputs of products in one byte: out 0 and 1 more, up 1 and down 4 fewer of two; q, k, v 3 for 2
OURS_BLOCKED = 1.0  # on a CPU a short window's parts are kept beside the whole
OURS_AROUND = 6.0  # embedding, smear, first, middle and last residual, the gradient of what the head reads
REFERENCE_A_LAYER = 18.0
REFERENCE_VALUE_EMBEDDING = 1.0
REFERENCE_AROUND = 3.0
REFERENCE_FP8_SAVES = 3.5  # inputs of linear layers kept in one byte instead of two; -9 GB at d26 in REFERENCE 14
BACKWARD = 9.0  # numbers per token and channel at work at once in a layer's backward pass

LOGIT_BYTES_REFERENCE = 4  # float32, whole; or bf16 with its bf16 gradient beside, which is as much
CHUNK_NUMBERS = {"cpu": 2**22, "cuda": 2**27, "mps": 2**27}  # of logits at once: model/loss.py
MUON_COPIES = 8  # of the largest stack of matrices, at once in an update
GATE_CHANNELS = 12
ATTENTION_BLOCK = 128  # of queries, where a CPU attends within a window: model/attention.py

# What a process holds besides tensors (Python, torch, pyarrow, the tokenizer, the threads that read ahead), and how
# many times the size of its tensors glibc's heap grows to when training on a CPU: blocks that a tensor leaves are
# rarely taken whole by the next one. Both measured on Linux with torch 2.13, see docs/plan.md.
CPU_PROCESS_GB = {"fp32": 0.33, "bf16": 0.51, "fp16": 0.51}
CPU_HEAP = 1.7
CPU_HEAP_KERNELS = {"bf16": 1.2, "fp32": 1.4}  # kernels of our own make few tensors besides those that are kept
# What a CUDA driver takes of a card before any tensor, and must be left besides what torch reserves.
CUDA_CONTEXT_GB = 0.6


@dataclass(frozen=True)
class Work:
    """What one device does in a step: everything that memory and time depend on."""

    shape: Shape
    rows: int
    """Of a micro-batch, on one device."""
    grad_accum: int = 1
    ranks: int = 1
    """Devices that share a step's rows and the optimizer's state."""
    device: str = "cuda"
    dtype: str = "bf16"
    ways: str = "ours"
    """ours: the loss in chunks, our kernels. reference: logits whole in float32, its kernels."""
    fp8: bool = False
    own_kernels: bool = False
    """Whether a CPU trains on our own kernels."""

    @property
    def micro_tokens(self) -> int:
        return self.rows * self.shape.seq_len

    @property
    def step_tokens(self) -> int:
        return self.micro_tokens * self.grad_accum * self.ranks

    @property
    def flow_bytes(self) -> int:
        """Of a number that flows through the network."""
        return FLOW_BYTES[self.dtype]

    @property
    def table_bytes(self) -> int:
        """Of a number of the embedding tables (REFERENCE 1.5)."""
        return 2 if self.dtype == "bf16" else 4

    @property
    def table_parameters(self) -> int:
        counts = self.shape.parameters
        return counts["token_embedding"] + counts["value_embeddings"]

    @property
    def short_layers(self) -> int:
        """Layers whose window is shorter than the context."""
        return sum(window < self.shape.seq_len - 1 for window in self.shape.windows)


def weights_bytes(work: Work) -> int:
    """Of the parameters as they are stored: tables in what flows, all else in float32."""
    rest = work.shape.parameters["total"] - work.table_parameters
    return work.table_parameters * work.table_bytes + 4 * rest


def optimizer_bytes(work: Work) -> int:
    """Moments of the whole run: two of AdamW's, one and a vector of Muon's, each in its parameter's dtype."""
    counts, shape = work.shape.parameters, work.shape
    adam = 2 * work.table_parameters * work.table_bytes + 2 * 4 * (counts["head"] + counts["scalars"])
    gates = shape.n_value_embeddings * max(GATE_CHANNELS, shape.n_kv_head)
    vectors = shape.n_layer * (4 * shape.d_model + 2 * shape.d_ff) + gates
    return adam + 4 * (counts["block_matrices"] + vectors)


def checkpoint_bytes(work: Work) -> int:
    return weights_bytes(work) + optimizer_bytes(work)


def memory_parts(work: Work) -> dict[str, float]:
    """Peak memory of one device in GB (10^9 bytes), by part; their sum is what the device needs.

    The peak is where the backward pass begins, with the gradients of the micro-batches before it in place.
    """
    flow = _flow(work)
    parts = {
        "weights": float(weights_bytes(work)),
        "gradients": float(weights_bytes(work)),
        "optimizer": optimizer_bytes(work) / work.ranks,
        "activations": _activations(work),
        "logits": _logits(work),
    }
    casts = float(work.flow_bytes * work.shape.matmul_parameters) if work.dtype != "fp32" else 0.0
    if work.fp8:
        casts /= 2
    at_work = max(0.0, BACKWARD * flow - parts["logits"]) if work.ways == "ours" else 0.0
    update = max(0.0, _update_bytes(work) - parts["activations"] - parts["logits"])
    other = max(casts + at_work, update)
    if work.device == "cpu":
        heap = CPU_HEAP_KERNELS.get(work.dtype, CPU_HEAP) if work.own_kernels else CPU_HEAP
        other += (heap - 1) * (parts["activations"] + at_work) + CPU_PROCESS_GB[work.dtype] * 1e9
        other += checkpoint_bytes(work) / work.ranks  # the copy that is on its way to the disk
    return {name: part / 1e9 for name, part in (parts | {"other": other}).items()}


def device_memory_gb(memory_gb: float, device: str) -> float:
    """Of a device's memory, what training may take: less the driver's share or a tenth of a computer's."""
    return memory_gb - CUDA_CONTEXT_GB if device == "cuda" else 0.9 * memory_gb


def fits(work: Work, memory_gb: float | None) -> bool | None:
    """Whether a device's memory holds it; None where that is not known."""
    if memory_gb is None:
        return None
    return sum(memory_parts(work).values()) <= device_memory_gb(memory_gb, work.device)


def rows_that_fit(work: Work, memory_gb: float | None) -> int | None:
    """The most rows of a micro-batch, a divisor of what a device does in a step; None where not even one fits."""
    own = work.rows * work.grad_accum
    low, high = 0, own
    while low < high:
        middle = (low + high + 1) // 2
        if fits(replace(work, rows=middle, grad_accum=1), memory_gb) is False:
            high = middle - 1
        else:
            low = middle
    return next((rows for rows in range(low, max(0, low - 100_000), -1) if own % rows == 0), None)


def _flow(work: Work) -> float:
    """Bytes of one number per token and channel."""
    return float(work.micro_tokens * work.shape.d_model * work.flow_bytes)


def _activations(work: Work) -> float:
    shape = work.shape
    if work.ways == "reference":
        kept = REFERENCE_A_LAYER - (REFERENCE_FP8_SAVES if work.fp8 else 0)
        extra, around = REFERENCE_VALUE_EMBEDDING, REFERENCE_AROUND
        masks = 0.0
    else:
        extra, around = OURS_VALUE_EMBEDDING, OURS_AROUND
        kept = OURS_BY_KERNELS if work.own_kernels else OURS_A_LAYER
        kept += OURS_NORMS if work.device == "cpu" and work.dtype != "fp32" and not work.own_kernels else 0
        kept -= OURS_FP8_SAVES if work.fp8 else 0
        in_blocks = work.device == "cpu" and not work.own_kernels
        masks = _masks(work) if in_blocks else 0.0
        around += OURS_BLOCKED * work.short_layers if in_blocks else 0
    numbers = kept * shape.n_layer + extra * shape.n_value_embeddings + around
    return numbers * _flow(work) + masks


def _masks(work: Work) -> float:
    """Bytes of the bands that a CPU's blocks of queries look through, kept by every short layer."""
    blocks = -(-work.shape.seq_len // ATTENTION_BLOCK)
    band = ATTENTION_BLOCK * (work.shape.short_window + ATTENTION_BLOCK)
    return float(work.short_layers * blocks * band * work.flow_bytes)


def _logits(work: Work) -> float:
    """Bytes: whole, or a chunk's with what its gradient is made of, and the head's gradient twice."""
    shape = work.shape
    if work.ways == "reference":
        return float(LOGIT_BYTES_REFERENCE * work.micro_tokens * shape.padded_vocab)
    tokens = min(work.micro_tokens, max(64, CHUNK_NUMBERS[work.device] // shape.vocab_size))
    chunk = tokens * shape.vocab_size * (4 * 4 + work.flow_bytes)
    return float(chunk + 2 * 4 * shape.parameters["head"])


def _update_bytes(work: Work) -> float:
    """Working copies of Muon's largest stack, one of the feed-forward's two."""
    return MUON_COPIES * 4 * work.shape.n_layer * work.shape.d_model * work.shape.d_ff / work.ranks
