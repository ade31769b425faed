"""Stages in a row, each going on where it was: speedrun, and quickstart, which is one on the embedded corpus."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom import hardware
from fathom.errors import FathomError
from fathom.home import home, run_dir, tokenizer_dir, write_atomic
from fathom.screen import bar, command_name, say, working
from fathom.train.resuming import line

STOPPED = 130
PRIMER = "primer"
PRIMER_BYTES = 5_000_000
PRIMER_CONVERSATIONS = 9_000
PRIMER_SHAPE = {"depth": 4, "head_dim": 64, "seq_len": 256, "window": "L"}
PRIMER_VOCAB = 1024
PRIMER_BATCH = 4096
PRIMER_MOST_TOKENS = 3_200_000
PRIMER_MINUTES = 8.0  # for both trainings, on a CPU without AMX
PRIMER_FEW_MINUTES = 3.1  # elsewhere
PRIMER_LOOK_S = 5.0  # at the machine's pace
GOOD_QUIZ = 0.9
PRIMER_FEW_STEPS = 150  # below, the quiz is guessed
PRIMER_SFT_SHARE = 0.2  # of the time for both trainings


@dataclass
class Stages:
    """Says which stage is on, and remembers how long each took."""

    total: int
    words: tuple[str, ...]
    """What to type to go on with these stages."""
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        say(f"\n[{len(self.seconds) + 1}/{self.total}] {what}", style="bold cyan")
        began = time.perf_counter()
        self.seconds[name] = 0.0
        try:
            yield
        except KeyboardInterrupt:
            say(f"stopped; {line(*self.words)} goes on", style="yellow")
            sys.exit(STOPPED)
        self.seconds[name] = round(time.perf_counter() - began, 2)

    def train(self, stage: Callable[..., tuple[dict[str, Any], bool]], config: Any) -> dict[str, Any]:
        """The result of a training, which has said how to go on where it was stopped."""
        result, finished = stage(config, made_by=self.words)
        if not finished:
            sys.exit(STOPPED)
        return result


def words_for(command: str, config: Any) -> tuple[str, ...]:
    """What to type for `config` again: the command, and the options that are not at their defaults."""
    words = [command]
    for one in fields(config):
        value = getattr(config, one.name)
        if one.name != "json" and value != one.default:
            option = "run" if one.name == "name" else one.name.replace("_", "-")
            words += [f"--{option}", *(str(part) for part in (value if isinstance(value, tuple) else [value]))]
    return tuple(words)


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
        tokenizer = config.tokenizer or _tokenizer_of(config.corpus, config.vocab)
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
        samples = _sheet(f"{name}-sft", config.dtype) + _talk(f"{name}-sft", TRY_SAYING, config.dtype)
    _summary(
        [
            ("parameters", _parameters(name), ""),
            ("pretraining", f"{base['tokens']:,} tokens", _time(base)),
            ("  bits per byte", _bpb(base), "validation documents"),
            ("fine-tuning", f"{tuned['tokens']:,} tokens", _time(tuned)),
            ("  bits per byte", _bpb(tuned), "held-out answers"),
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


TRY_SAYING = ("Hello!", "What is the capital of France?", "Why is the sky blue?")


@dataclass(frozen=True)
class Quickstart:
    """From nothing to a small model that talks: corpus, tokenizer, pretraining, fine-tuning, quiz, in minutes."""

    minutes: float | None = None
    """Time for both trainings together. Default 8, or 3.1 on a GPU and a CPU with AMX; less on a fast machine."""
    name: Annotated[str, tyro.conf.arg(name="run")] = "quickstart"
    """Name of the base run; the fine-tuned one is NAME-sft."""
    seed: int = 1
    """Seed of the corpus, the weights and the orders."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """What flows through the network. Default by the machine."""
    json: bool = False
    """Print one JSON object on standard output at the end."""

    def run(self) -> dict[str, Any]:
        return quickstart(self)


def quickstart(config: Quickstart) -> dict[str, Any]:
    """The stages on the embedded corpus, the quiz before and after fine-tuning, a sample sheet and a conversation."""
    if config.minutes is not None and not 0 < config.minutes < float("inf"):
        raise FathomError(f"--minutes is {config.minutes}", "give a number above zero")
    stages = Stages(8, words_for("quickstart", config))
    say("fathom quickstart: a small model, made and trained here, from nothing.", style="bold")
    with stages.stage("corpus", "a small world, written down"):
        corpus, chat = _primer(config.seed)
    with stages.stage("tokenizer", "tokenizer"):
        tokenizer = _tokenizer_of(corpus, PRIMER_VOCAB)
    with stages.stage("pretrain", "pretraining: reading the small world"):
        from fathom.train.pretrain import Pretrain, pretrain
        from fathom.train.sft import Sft, sft

        steps = _primer_steps(config)
        base = stages.train(
            pretrain,
            Pretrain(
                corpus,
                tokenizer,
                config.name,
                steps=steps,
                batch_tokens=PRIMER_BATCH,
                seed=config.seed,
                dtype=config.dtype,
                resume=True,
                sample=False,
                **PRIMER_SHAPE,  # type: ignore[arg-type]
            ),
        )
    with stages.stage("eval_base", "the quiz, as text to go on with: it has no calculator yet"):
        before, _ = _quiz(config.name, config, can_chat=False)
    with stages.stage("sft", "fine-tuning: learning to answer and to use the calculator"):
        tuned = stages.train(
            sft,
            Sft(
                config.name,
                (str(chat),),
                name=f"{config.name}-sft",
                steps=_sft_steps(config, base),
                batch_tokens=PRIMER_BATCH,
                seed=config.seed,
                dtype=config.dtype,
                resume=True,
            ),
        )
    with stages.stage("eval_sft", "the quiz: questions it has never seen"):
        after, kinds = _quiz(f"{config.name}-sft", config, can_chat=True)
        _print_kinds(kinds)
    with stages.stage("samples", "how it goes on with a text"):
        from fathom.data import primer

        samples = _sheet(f"{config.name}-sft", config.dtype, primer.samples())
    with stages.stage("conversation", "a short conversation"):
        samples += _talk(f"{config.name}-sft", primer.short_conversation(), config.dtype, one_conversation=True)
    _summary(
        [
            ("parameters", _parameters(config.name), ""),
            ("pretraining", f"{base['tokens']:,} tokens", _time(base)),
            ("fine-tuning", f"{tuned['tokens']:,} tokens", _time(tuned)),
            ("bits per byte", _bpb(base), "validation documents"),
            ("quiz before", f"{100 * before:.1f} %", "base model, without the calculator"),
            ("quiz after", f"{100 * after:.1f} %", "fine-tuned, on questions held out from all training"),
        ]
    )
    if after < GOOD_QUIZ:
        minutes = config.minutes or _primer_minutes(hardware.device_type().value)
        _say_how_to_do_better(config.name, base["steps"], minutes)
    again = "" if config.name == "quickstart" else f" {config.name}-sft"
    say(f"\nNow talk to it: {command_name()} chat{again}", style="bold green")
    say("Then train on your own text: `fathom data add NAME FILES…`, and `fathom speedrun --help`")
    return {
        "seconds": stages.seconds,
        "quiz_accuracy": round(after, 4),
        "quiz_accuracy_base": round(before, 4),
        "quiz_by_kind": {kind: round(share, 4) for kind, share in kinds.items()},
        "val_bpb": base["val_bpb"],
        "samples": samples,
        "pretrain": base,
        "sft": tuned,
    }


def _primer(seed: int) -> tuple[str, Path]:
    """Write the embedded corpus and its conversations, where they are not there yet."""
    from fathom.data import primer
    from fathom.data.corpus import write_corpus

    name = PRIMER if seed == 1 else f"{PRIMER}-{seed}"
    with working("  writing it"):
        corpus = write_corpus(
            name,
            primer.documents(seed, PRIMER_BYTES),
            primer.documents(seed + 1_000_003, PRIMER_BYTES // 40),
            source=f"embedded, seed {seed}",
        )
    chat = home() / "conversations" / f"{name}.jsonl"
    lines = [
        json.dumps({"messages": messages}, ensure_ascii=False)
        for messages in primer.conversations(seed, PRIMER_CONVERSATIONS)
    ]
    write_atomic(chat, "\n".join(lines) + "\n")
    say(f"  {corpus.n_documents('train'):,} short texts and {len(lines):,} conversations")
    return name, chat


def _tokenizer_of(corpus_name: str, vocab: int) -> str:
    """The tokenizer of a corpus, trained now where it is not there yet; its name holds the vocabulary asked for."""
    from fathom import tokenizer as tokenizers
    from fathom.data.corpus import open_corpus

    name = f"{corpus_name}-{vocab}"
    if not (tokenizer_dir(name) / tokenizers.FILE).exists():
        corpus = open_corpus(corpus_name)
        trained = tokenizers.train(corpus.documents("train"), vocab)
        trained.save(tokenizer_dir(name), origin={"corpus": corpus_name, "corpus_digest": corpus.digest})
    say(f"  {name}: {tokenizers.load(name).vocab_size:,} tokens")
    return name


def _primer_steps(config: Quickstart) -> int:
    """Steps of pretraining: those that it began with, else what this machine does in its share of the time."""
    from fathom.train.settings import resolve

    if begun := _begun(config.name):
        if config.minutes is not None:
            say(f"  {config.name} has begun already and takes as long as it was to take then")
        return begun
    shape = resolve({"batch_tokens": PRIMER_BATCH, **PRIMER_SHAPE}, {}, PRIMER_VOCAB).shape
    with working("  measuring how fast this machine trains"):
        from fathom.train.session import look_at_machine, measured_pace

        machine = look_at_machine(config.dtype, quiet=True)
        tokens_per_s = measured_pace(machine, shape, PRIMER_BATCH, PRIMER_LOOK_S)
    minutes = config.minutes or _primer_minutes(machine.device)
    most = math.inf if config.minutes else PRIMER_MOST_TOKENS / (1 - PRIMER_SFT_SHARE)
    steps = min(tokens_per_s * 60 * minutes, most) / PRIMER_BATCH
    if steps < PRIMER_FEW_STEPS:
        say(
            f"  {steps:.0f} steps of both trainings fit into {minutes:g} min here: enough to see every stage, too few "
            f"to learn from; the quizzes take their time besides",
            style="yellow",
        )
    return max(1, round(steps * (1 - PRIMER_SFT_SHARE)))


def _sft_steps(config: Quickstart, base: Mapping[str, Any]) -> int:
    """Steps of fine-tuning: those that it began with, else its share, of which as many as the time allows that a
    pretraining slower than expected has left, but at least half.
    """
    if begun := _begun(f"{config.name}-sft"):
        return begun
    share = base["steps"] * PRIMER_SFT_SHARE / (1 - PRIMER_SFT_SHARE)
    minutes = config.minutes or _primer_minutes(hardware.device_type().value)
    left = (60 * minutes - base["seconds"]) * base["steps"] / base["seconds"]
    return max(1, round(min(share, max(share / 2, left))))


def _primer_minutes(device: str) -> float:
    """The whole way is to take five minutes with AMX, and on a GPU, and ten without."""
    return PRIMER_FEW_MINUTES if device != "cpu" or hardware.bf16_instructions() == "AMX" else PRIMER_MINUTES


def _say_how_to_do_better(name: str, steps: int, minutes: float) -> None:
    longer = f"{command_name()} quickstart --minutes {math.ceil(2.5 * minutes)} --run {name}-2"
    say(f"  {steps:,} steps taught it this much; `{longer}` takes more", style="yellow")


def _begun(run: str) -> int | None:
    """How many steps a run that exists was to take."""
    from fathom.record import read_config

    return int(read_config(run)["config"]["steps"]) if (run_dir(run) / "run.toml").exists() else None


def _quiz(run: str, config: Quickstart, can_chat: bool) -> tuple[float, dict[str, float]]:
    """Share of right answers, of all questions and by kind; a quiz that this run has finished is not taken again."""
    from fathom.evaluate.results import find_result
    from fathom.hardware import choose_dtype, device_type
    from fathom.train.checkpoint import find

    how = {"seed": config.seed, "dtype": choose_dtype(config.dtype, device_type().value).value}
    known = find_result(run, int(find(run).name), "quiz", how)
    found = known or _taken_quiz(run, config, can_chat)
    accuracy, kinds = found["accuracy"], found["by_kind"]
    before = " (it was finished before)" if known else ""
    say(f"  {100 * accuracy:.1f} % of {found['questions']:,} questions of {len(kinds)} kinds{before}")
    return accuracy, kinds


def _taken_quiz(run: str, config: Quickstart, can_chat: bool) -> dict[str, Any]:
    from fathom.data import primer
    from fathom.evaluate.quiz import accuracy, by_kind, take_quiz, take_quiz_as_text
    from fathom.record import Record
    from fathom.train.checkpoint import load_model

    model, tokenizer, info = load_model(run, dtype=config.dtype)
    questions = primer.quiz(config.seed)
    with bar("  quiz", len(questions)) as progress:
        take = take_quiz if can_chat else take_quiz_as_text
        graded = take(model, tokenizer, questions, lambda: progress.advance(1))
    wrong = [
        {"kind": g.question.kind, "expected": g.question.sentence, "reply": g.reply} for g in graded if not g.right
    ]
    found = {"accuracy": accuracy(graded), "questions": len(graded), "by_kind": by_kind(graded), "seed": config.seed}
    found |= {**info, "wrong": wrong}
    Record(run_dir(run)).evaluation(f"quiz-{info['step']:06d}", found)
    return found


def _print_kinds(kinds: dict[str, float]) -> None:
    names = [f"{kind.replace('_', ' ')} {100 * share:.0f} %" for kind, share in kinds.items()]
    say("  " + ", ".join(names), style="dim")


def _sheet(run: str, dtype: str, prompts: Sequence[str] = ()) -> list[dict[str, str]]:
    from fathom.evaluate.samples import PROMPTS, sample_sheet
    from fathom.train.checkpoint import load_model

    model, tokenizer, info = load_model(run, dtype=dtype)
    pairs = sample_sheet(model, tokenizer, tuple(prompts) or PROMPTS)
    for prompt, text in pairs:
        say(f"  {prompt} … {' '.join(text.split())}")
    return _kept(run, info["step"], [{"prompt": prompt, "text": text} for prompt, text in pairs])


def _kept(run: str, step: int, samples: list[dict[str, str]]) -> list[dict[str, str]]:
    """The samples, which are now in the run's record, once however often a finished pipeline is started again."""
    from fathom.record import Record, read_lines

    known = read_lines(run_dir(run) / "samples.jsonl")
    for sample in samples:
        if {"step": step, **sample} not in known:
            Record(run_dir(run)).sample(step=step, **sample)
    return samples


def _talk(run: str, turns: Sequence[str], dtype: str, one_conversation: bool = False) -> list[dict[str, str]]:
    """Say each turn to the model, greedily; print and return the exchanges."""
    from fathom.data.conversations import parse_reply, render_for_completion
    from fathom.generate.engine import Engine
    from fathom.generate.running import Request
    from fathom.train.checkpoint import load_model

    model, tokenizer, info = load_model(run, dtype=dtype)
    engine = Engine(model, tokenizer, max_batch=1)
    said: list[dict[str, str]] = []
    history: list[Any] = []
    for turn in turns:
        history = (
            [*history, {"role": "user", "content": turn}] if one_conversation else [{"role": "user", "content": turn}]
        )
        prompt = render_for_completion(history, tokenizer)
        if len(prompt) >= model.shape.seq_len - 32:
            history = history[-1:]
            prompt = render_for_completion(history, tokenizer)
        if len(prompt) >= model.shape.seq_len:
            say(f"  {turn}: too long for a context of {model.shape.seq_len} tokens", style="dim")
            history = []
            continue
        parts = parse_reply(engine.generate([Request(tuple(prompt), max_tokens=96)])[0].ids, tokenizer)
        reply = "".join(part["text"] for part in parts if part["type"] == "text")
        calls = [part["text"] for part in parts if part["type"] == "python"]
        history = [*history, {"role": "assistant", "content": parts}]
        say(f"  you    {turn}", style="cyan")
        say(f"  model  {' '.join(reply.split())}" + (f"   (calculator: {'; '.join(calls)})" if calls else ""))
        said.append({"prompt": turn, "text": reply})
    return _kept(run, info["step"], said)


def _parameters(run: str) -> str:
    from fathom.model.shape import Shape
    from fathom.record import read_config

    return f"{Shape(**read_config(run)['model']).parameters['total']:,}"


def _time(result: dict[str, Any]) -> str:
    from fathom.train.display import clock

    return f"{clock(result['seconds'])}, {result['tokens_per_s']:,.0f} tokens/s in a usual step"


def _bpb(result: dict[str, Any]) -> str:
    return "not measured" if result["val_bpb"] is None else f"{result['val_bpb']:.4f}"


def _summary(rows: Sequence[tuple[str, str, str]]) -> None:
    from rich.table import Table

    from fathom.screen import console

    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for row in rows:
        table.add_row(*row)
    say()
    console().print(table)
