"""Documents apart in a row: the oracle with an explicit mask, and that nothing of a document reaches another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fathom.evaluate.bpb import bits_per_byte
from fathom.home import run_dir
from fathom.model.attention import DenseContext
from fathom.model.documents import DocumentContext, block_mask
from fathom.model.gpt import GPT
from fathom.model.shape import Shape
from fathom.record import read_config
from fathom.train import checkpoint
from fathom.train.pretrain import pretrain
from tests.oracles import attention as oracle
from tests.oracles.tiny_runs import events_of, fine_tuning, furnish, hurry, pretraining, write_conversations

BOS = 7


def rows_of(n_row: int, seq_len: int, seed: int, often: float = 0.05) -> Tensor:
    dice = np.random.default_rng(seed)
    ids = dice.integers(8, 300, (n_row, seq_len))
    return torch.from_numpy(np.where(dice.random(ids.shape) < often, BOS, ids))


@given(
    seq_len=st.integers(1, 300),
    window=st.integers(0, 320),
    kv_heads=st.sampled_from([1, 2]),
    often=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 10),
)
def test_attention_within_documents_is_the_oracles(
    seq_len: int, window: int, kv_heads: int, often: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = rows_of(2, seq_len, seed, often)

    def draw(heads: int) -> Tensor:
        return torch.randn(2, seq_len, heads, 8, generator=generator, requires_grad=True)

    inputs = (draw(2), draw(kv_heads), draw(kv_heads))
    upstream = torch.randn(2, seq_len, 2, 8, generator=generator)
    fast = DocumentContext(ids, BOS).attend(0, *inputs, window)
    slow = oracle.attend(*inputs, window, document=(ids == BOS).cumsum(1))
    torch.testing.assert_close(fast, slow, atol=2e-5, rtol=1e-4)
    for a, b in zip(
        torch.autograd.grad(fast, inputs, upstream), torch.autograd.grad(slow, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=1e-3)


def test_flex_attentions_mask_shows_what_the_oracle_shows() -> None:
    """The mask that GPUs are given, looked at here: FlexAttention's own slow form runs anywhere."""
    from torch.nn.attention.flex_attention import create_mask

    ids = rows_of(2, 200, seed=3)
    document = (ids == BOS).cumsum(1)
    mask = block_mask(document, window=50)
    shown = create_mask(mask.mask_mod, 2, None, 200, 200, device="cpu")[:, 0]
    i, j = torch.arange(200)[:, None], torch.arange(200)[None, :]
    assert torch.equal(shown, (j <= i) & (i - j <= 50) & (document[:, :, None] == document[:, None, :]))


def made_model() -> GPT:
    model, generator = GPT(Shape(3, 2, 2, 16, 300, 256, "SL")), torch.Generator().manual_seed(0)
    model.init_weights(generator)
    with torch.no_grad():
        model.smear_scale.fill_(0.7)
        model.head.normal_(0, 0.2, generator=generator)
        for block in model.blocks:
            block.out.normal_(0, 0.1, generator=generator)
            block.down.normal_(0, 0.1, generator=generator)
    return model


def test_each_document_is_read_as_if_it_were_alone() -> None:
    """Attention and smear: what a row of several gives is what each gives by itself, from position 0."""
    model, ids = made_model(), rows_of(2, 256, seed=1)
    together = model(ids, DocumentContext(ids, BOS))
    for row in range(2):
        starts = [0, *(t for t in range(1, 256) if ids[row, t] == BOS), 256]
        assert len(starts) > 5
        for begin, end in zip(starts[:-1], starts[1:], strict=True):
            alone = ids[row : row + 1, begin:end]
            expected = model(alone, DenseContext(end - begin, "cpu"))
            torch.testing.assert_close(together[row, begin:end], expected[0], atol=2e-4, rtol=1e-3)


def test_without_the_mask_documents_do_see_each_other() -> None:
    model, ids = made_model(), rows_of(1, 256, seed=1)
    assert (model(ids, DocumentContext(ids, BOS)) - model(ids, DenseContext(256, "cpu"))).abs().max() > 0.01


def test_bits_per_byte_of_rows_are_those_of_their_documents() -> None:
    model = made_model().eval()
    ids = rows_of(2, 257, seed=2).numpy()
    ids[:, 0] = BOS
    weights = np.full(300, 1, np.int32)
    weights[BOS] = 0
    whole = bits_per_byte(model, [(ids[:, :-1], ids[:, 1:])], weights, document_start=BOS)
    pieces = []
    for row in ids:
        starts = [t for t in range(257) if row[t] == BOS] + [257]
        pieces += [row[a:b] for a, b in zip(starts[:-1], starts[1:], strict=True) if b - a > 1]
    alone = bits_per_byte(model, [(p[None, :-1].copy(), p[None, 1:].copy()) for p in pieces], weights)
    assert whole == pytest.approx(alone, rel=1e-4)
    assert whole != pytest.approx(bits_per_byte(model, [(ids[:, :-1], ids[:, 1:])], weights), rel=1e-4)


def test_a_run_with_it_resumes_fine_tunes_and_says_so(fathom_home: object, monkeypatch: pytest.MonkeyPatch) -> None:
    from fathom.train.sft import sft

    hurry(monkeypatch)
    furnish()
    wide = {"seq_len": 96, "batch_tokens": 192, "eval_every": 0}
    plain, _ = pretrain(pretraining(name="plain", **wide))
    result, finished = pretrain(pretraining(document_mask=True, **wide))
    assert finished and result["weights_sha256"] != plain["weights_sha256"]
    assert read_config("base")["config"]["document_mask"] is True
    assert "blocks of queries for documents" in read_config("base")["machine"]["attention"]
    assert "documents" in events_of(run_dir("base"), "training")[0]["attention"]
    checkpoint._remove(checkpoint.folder_of(run_dir("base"), 9))
    events = run_dir("base") / "events.jsonl"
    events.write_text("".join(line for line in events.read_text().splitlines(True) if '"finished"' not in line))
    again, _ = pretrain(pretraining(document_mask=True, resume=True, **wide))
    assert plain["val_bpb"] != result["val_bpb"]
    assert again["weights_sha256"] == result["weights_sha256"] and again["val_bpb"] == result["val_bpb"]
    tuned, finished = sft(fine_tuning(write_conversations(), steps=3))
    assert finished and read_config(tuned["run"])["config"]["document_mask"] is True


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_documents_apart_on_a_gpu_are_the_oracles() -> None:
    ids = rows_of(2, 1024, seed=1, often=0.01).cuda()
    q, k, v = (torch.randn(2, 1024, 4, 64, device="cuda", requires_grad=True) for _ in range(3))
    fast = DocumentContext(ids, BOS).attend(0, q, k, v, 500)
    slow = oracle.attend(q.cpu(), k.cpu(), v.cpu(), 500, document=(ids == BOS).cumsum(1).cpu())
    torch.testing.assert_close(fast.cpu(), slow, atol=2e-3, rtol=1e-2)
