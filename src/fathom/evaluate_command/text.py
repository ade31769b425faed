"""What a run makes of text: bits per byte on its corpus, and how it goes on with a few beginnings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fathom.data.batches import ValidationRows, rows_measured
from fathom.data.corpus import Corpus, open_corpus
from fathom.data.packing import Packing
from fathom.data.shards import SPLITS, tokenize
from fathom.data.token_store import Split, TokenStore
from fathom.errors import FathomError
from fathom.evaluate.bpb import nats_and_bytes, with_error
from fathom.evaluate.results import Result
from fathom.evaluate.samples import PROMPTS, sample_sheet
from fathom.evaluate_command.display import KINDS, show_bpb, show_samples
from fathom.evaluate_command.session import RunSession
from fathom.home import run_dir
from fathom.record import Record, read_config, read_lines
from fathom.screen import bar, say
from fathom.train import checkpoint
from fathom.train.settings import device_rows

if TYPE_CHECKING:
    from fathom.evaluate_command import Eval

MOST_TOKENS = 40 * 524_288  # of a set for bpb, as the reference's (REFERENCE 3.6)
SAMPLE_TOKENS = 2**18
"""Of a set where no --limit is given: half a minute each for a small model on two cores, and the same rows anywhere."""


class Text(NamedTuple):
    """What bits per byte are measured on."""

    corpus: Corpus
    packing: Packing
    trained_on: str | None
    """Digest of the tokens that the run was trained on, where it says."""
    apart: bool = False
    """Whether the run was trained with documents of a row apart."""
    is_sample: bool = False
    """Whether the first SAMPLE_TOKENS of each set are enough."""


def open_text(config: Eval) -> Text | None:
    """The corpus asked for, or else that of the run or the one it was fine-tuned from. None, with a word about it,
    where nobody asked for bpb and there is none.
    """
    settings = _pretraining(config.name)
    name = config.corpus or settings.get("corpus")
    if name is None:
        if "bpb" in config.tasks:
            raise FathomError(f"the run {config.name!r} was trained on no corpus of ours", "name one with --corpus")
        say(f"bpb is left out: {config.name!r} was trained on no corpus of ours (--corpus names one)", style="yellow")
        return None
    packing: Packing = "best-fit" if settings.get("packing") == "best-fit" else "lossless"
    trained_on = settings.get("data_digest") if name == settings.get("corpus") else None
    apart = bool(settings.get("document_mask", False))
    return Text(open_corpus(name), packing, trained_on, apart, is_sample=config.limit is None)


def _pretraining(run: str) -> Mapping[str, Any]:
    """The settings of the pretraining that a run goes back to; empty where its line breaks off."""
    seen = set[str]()
    while run not in seen and (run_dir(run) / "run.toml").exists():
        seen.add(run)
        tables = read_config(run)
        if "base" not in tables["run"]:
            return dict(tables.get("config", {}))
        run = str(tables["run"]["base"])
    return {}


def bpb(session: RunSession, text: Text) -> Result:
    """Bits per byte on training and validation documents: whole documents, and rows as the run's packing has them."""
    store = tokenize(text.corpus, session.tokenizer)
    if text.trained_on not in (None, store.digest):
        say(f"  corpus {text.corpus.name!r} is not in the state that the run was trained on", style="yellow")
    seq_len = session.model.shape.seq_len
    data = {"corpus": text.corpus.name, "digest": store.digest}

    def measure() -> dict[str, Any]:
        sets = [
            _bits(session, store, split, kind, text)
            for split in SPLITS
            for kind in dict.fromkeys(("lossless", text.packing))
            if store.n_tokens(split) > seq_len
        ]
        if not sets:
            raise FathomError(
                f"no part of corpus {text.corpus.name!r} fills a row of {seq_len:,} tokens",
                "name another with --corpus",
            )
        whole = {one["split"]: one for one in sets if one["rows_of"] == "lossless"}
        shown = whole.get("validation", sets[0])
        found = {"value": shown["bpb"], "standard_error": shown["standard_error"], "n": shown["tokens"], "sets": sets}
        if "validation" in whole:  # as training writes it, so that runs can be compared on it
            tags = {
                "rows_of": rows_measured("lossless", text.apart),
                "rows": shown["rows"],
                "data_digest": store.digest,
            }
            found |= {"val_bpb": shown["bpb"], **tags, "train_s": _train_seconds(session)}
        return found

    how = {"packing": text.packing, "seq_len": seq_len} | ({"most_tokens": SAMPLE_TOKENS} if text.is_sample else {})
    if text.is_sample:
        say(f"  bpb: the first {SAMPLE_TOKENS:,} tokens of each set; --limit 0 measures all", style="dim")
    result = session.kept("bpb", data, measure, how)
    show_bpb(result)
    return result


def _bits(session: RunSession, store: TokenStore, split: Split, kind: Packing, text: Text) -> dict[str, Any]:
    """One set's: batches go round the ranks, and the rows' sums come together in their order."""
    model, rank, world = session.model, *session.share
    seq_len = model.shape.seq_len
    rows = ValidationRows(store, kind, seq_len, split)
    most = max(1, (SAMPLE_TOKENS if text.is_sample else MOST_TOKENS) // seq_len)
    count = min(rows.rows_read_once, most, session.limit or most)
    size = device_rows(None, 2**20, seq_len, model.device.type)
    firsts = range(0, count, size)[rank::world]
    batches = (rows.rows(first, min(first + size, count)) for first in firsts)
    mine, nats, n_bytes = {}, 0.0, 0
    with bar(f"  bpb {split}, {KINDS[kind]}", sum(min(size, count - first) for first in firsts)) as progress:
        start = session.tokenizer.bos_id if text.apart else None
        sums = nats_and_bytes(model, batches, session.tokenizer.token_bytes(), start)
        for first, (row_nats, row_bytes) in zip(firsts, sums, strict=True):
            mine[first] = row_nats, row_bytes
            nats, n_bytes = nats + row_nats.sum(), n_bytes + row_bytes.sum()
            progress.advance(len(row_nats), f"{nats / n_bytes / np.log(2):.4f}" if n_bytes else "")
    found = {first: sums for part in session.ranks.gather(mine) for first, sums in part.items()}
    all_nats, all_bytes = (np.concatenate([found[first][i] for first in sorted(found)]) for i in (0, 1))
    value, error = with_error(all_nats, all_bytes)
    return {
        "split": split,
        "rows_of": kind,
        "rows": count,
        "tokens": count * seq_len,
        "share": round(count / rows.rows_read_once, 6),
        "bytes": int(all_bytes.sum()),
        "bpb": round(value, 6),
        "standard_error": round(error, 6),
    }


def _train_seconds(session: RunSession) -> float | None:
    meta = checkpoint.read_meta(checkpoint.find(session.about["run"], session.about["step"]))
    seconds = meta.get("seconds")
    return round(seconds, 3) if isinstance(seconds, float) else None


def samples(session: RunSession) -> Result:
    """What the model makes of a few beginnings, greedily; also kept among the run's samples."""

    def measure() -> dict[str, Any]:
        pairs = sample_sheet(session.model, session.tokenizer) if session.ranks.is_main else []
        return {"value": None, "n": len(pairs), "samples": [{"prompt": prompt, "text": text} for prompt, text in pairs]}

    result = session.kept("samples", {"prompts": len(PROMPTS)}, measure, {"limit": None})
    if session.ranks.is_main:
        folder, step = run_dir(session.about["run"]), session.about["step"]
        known = read_lines(folder / "samples.jsonl")
        for sample in result["samples"]:
            if {"step": step, **sample} not in known:
                Record(folder).sample(step=step, **sample)
    show_samples(result)
    return result
