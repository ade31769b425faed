"""`fathom speedrun`: every stage in a row on your own text and conversations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom.errors import FathomError
from fathom.pipeline import Stages, bpb_of, parameters_of, print_summary, sheet, talk, time_of, tokenizer_of, words_for
from fathom.screen import command_name, say

TRY_SAYING = ("Hello!", "What is the capital of France?", "Why is the sky blue?")


@dataclass(frozen=True)
class Speedrun:
    """Every stage in a row on your own text and conversations; stopped anywhere, the same command goes on."""

    corpus: str
    """Corpus to pretrain on."""
    chat: tuple[str, ...]
    """Files of conversations to fine-tune on."""
    depth: int
    """Layers; sets everything that is not given."""
    name: Annotated[str | None, tyro.conf.arg(name="run")] = None
    """Name of the base run; the fine-tuned one is NAME-sft. Default d and the depth."""
    tokenizer: str | None = None
    """Tokenizer to use. Default one of --vocab tokens, trained on the corpus."""
    vocab: int = 32_768
    """Vocabulary of the tokenizer, where it is trained here."""
    recipe: str | None = None
    """TOML file with settings of pretraining; a flag outranks it."""
    rules: Literal["auto", "reference"] | None = None
    """auto: ours, which differ below depth 12. reference: exactly the reference system's."""
    packing: Literal["best-fit", "lossless"] | None = None
    """How documents fill rows."""
    head_dim: int | None = None
    """Width of an attention head."""
    seq_len: int | None = None
    """Context in tokens."""
    window: str | None = None
    """Attention windows by layer: S short, L the whole context."""
    ratio: float | None = None
    """Tokens for each parameter in blocks and head."""
    steps: int | None = None
    """Pretrain so many steps."""
    batch_tokens: int | None = None
    """Tokens a step."""
    device_batch: int | None = None
    """Rows of a micro-batch."""
    epochs: float = 1.0
    """How many times fine-tuning goes through the conversations."""
    seed: int | None = None
    """Seed of weights and orders."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What flows through the network. Default by the machine."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    def run(self) -> dict[str, Any]:
        return speedrun(self)


def speedrun(config: Speedrun) -> dict[str, Any]:
    """Tokenizer, pretraining, fine-tuning, samples, summary."""
    from fathom.data.corpus import open_corpus
    from fathom.train.pretrain import Pretrain, pretrain
    from fathom.train.sft import Sft, sft

    open_corpus(config.corpus)
    _look_over(config)
    name = config.name or f"d{config.depth}"
    stages = Stages(4, words_for("speedrun", config))
    with stages.stage("tokenizer", "tokenizer"):
        tokenizer = config.tokenizer or tokenizer_of(config.corpus, config.vocab)
    shared = ("rules", "packing", "head_dim", "seq_len", "window", "ratio", "steps", "batch_tokens")
    with stages.stage("pretrain", f"pretraining {name}"):
        base = stages.train(
            pretrain,
            Pretrain(
                config.corpus,
                tokenizer,
                name,
                depth=config.depth,
                recipe=config.recipe,
                device_batch=config.device_batch,
                seed=config.seed,
                dtype=config.dtype,
                resume=True,
                **{key: getattr(config, key) for key in shared},
            ),
        )
    with stages.stage("sft", f"fine-tuning {name}-sft"):
        tuned = stages.train(
            sft,
            Sft(
                name,
                config.chat,
                name=f"{name}-sft",
                epochs=config.epochs,
                seed=1 if config.seed is None else config.seed,
                dtype=config.dtype,
                resume=True,
            ),
        )
    with stages.stage("samples", "what it says"):
        samples = sheet(f"{name}-sft", config.dtype) + talk(f"{name}-sft", TRY_SAYING, config.dtype)
    print_summary(
        [
            ("parameters", parameters_of(name), ""),
            ("pretraining", f"{base['tokens']:,} tokens", time_of(base)),
            ("  bits per byte", bpb_of(base), "validation documents"),
            ("fine-tuning", f"{tuned['tokens']:,} tokens", time_of(tuned)),
            ("  bits per byte", bpb_of(tuned), "held-out answers"),
            ("peak memory", f"{max(base['peak_memory_gb'], tuned['peak_memory_gb']):.1f} GB", ""),
        ]
    )
    say(f"\nTalk to it: {command_name()} chat {name}-sft", style="bold green")
    return {"seconds": stages.seconds, "pretrain": base, "sft": tuned, "samples": samples}


def _look_over(config: Speedrun) -> None:
    """What would be refused at a later stage is refused now: settings, and every line of the conversations."""
    from fathom.data.conversations import read_conversations
    from fathom.train.settings import read_recipe, resolve
    from fathom.train.sft import Sft, refuse_nonsense

    for path in config.chat:
        if not Path(path).is_file():
            raise FathomError(f"{path} is no file", "give files of conversations after --chat")
    if not config.chat:
        raise FathomError("no conversations were given", "give files of them after --chat")
    flags = {key: value for key, value in asdict(config).items() if key not in ("chat", "corpus", "epochs")}
    resolve(flags, read_recipe(config.recipe), config.vocab)
    refuse_nonsense(Sft("", epochs=config.epochs))
    found = sum(1 for _ in read_conversations(config.chat))
    if found < 2:
        raise FathomError(
            f"there is {found} conversation in {', '.join(config.chat)}", "give at least two, one is held out"
        )
