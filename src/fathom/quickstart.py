"""`fathom quickstart`: every stage in a row on the embedded corpus, from nothing to a small model that talks."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fathom import hardware
from fathom.errors import FathomError
from fathom.home import home, run_dir, write_atomic
from fathom.pipeline import Stages, bpb_of, parameters_of, print_summary, sheet, talk, time_of, tokenizer_of, words_for
from fathom.screen import bar, command_name, say, working

PRIMER = "primer"
BYTES = 5_000_000
CONVERSATIONS = 9_000
SHAPE = {"depth": 4, "head_dim": 64, "seq_len": 256, "window": "L"}
VOCAB = 1024
BATCH = 4096
MOST_TOKENS = 3_200_000
MINUTES = 8.0  # for both trainings, on a CPU without AMX
FEW_MINUTES = 3.1  # elsewhere
LOOK_S = 5.0  # at the machine's pace
BASE_QUIZ_EVERY = 4  # questions: what goes on after each as text takes three times as long as an answer
GOOD_QUIZ = 0.9
FEW_STEPS = 150  # below, the quiz is guessed
SFT_SHARE = 0.2  # of the time for both trainings


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
        tokenizer = tokenizer_of(corpus, VOCAB)
    with stages.stage("pretrain", "pretraining: reading the small world"):
        from fathom.train.pretrain import Pretrain, pretrain
        from fathom.train.sft import Sft, sft

        steps = _base_steps(config)
        base = stages.train(
            pretrain,
            Pretrain(
                corpus,
                tokenizer,
                config.name,
                steps=steps,
                batch_tokens=BATCH,
                seed=config.seed,
                dtype=config.dtype,
                resume=True,
                sample=False,
                **SHAPE,  # type: ignore[arg-type]
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
                batch_tokens=BATCH,
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

        samples = sheet(f"{config.name}-sft", config.dtype, primer.samples())
    with stages.stage("conversation", "a short conversation"):
        samples += talk(f"{config.name}-sft", primer.short_conversation(), config.dtype, one_conversation=True)
    print_summary(
        [
            ("parameters", parameters_of(config.name), ""),
            ("pretraining", f"{base['tokens']:,} tokens", time_of(base)),
            ("fine-tuning", f"{tuned['tokens']:,} tokens", time_of(tuned)),
            ("bits per byte", bpb_of(base), "validation documents"),
            ("quiz before", f"{100 * before:.1f} %", "base model, without the calculator"),
            ("quiz after", f"{100 * after:.1f} %", "fine-tuned, questions held out from training"),
        ]
    )
    if after < GOOD_QUIZ:
        minutes = config.minutes or _minutes(hardware.device_type().value)
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
            primer.documents(seed, BYTES),
            primer.documents(seed + 1_000_003, BYTES // 40),
            source=f"embedded, seed {seed}",
        )
    chat = home() / "conversations" / f"{name}.jsonl"
    lines = [
        json.dumps({"messages": messages}, ensure_ascii=False) for messages in primer.conversations(seed, CONVERSATIONS)
    ]
    write_atomic(chat, "\n".join(lines) + "\n")
    say(f"  {corpus.n_documents('train'):,} short texts and {len(lines):,} conversations")
    return name, chat


def _base_steps(config: Quickstart) -> int:
    """Steps of pretraining: those that it began with, else what this machine does in its share of the time."""
    from fathom.train.settings import resolve

    if begun := _begun(config.name):
        if config.minutes is not None:
            say(f"  {config.name} has begun already and takes as long as it was to take then")
        return begun
    shape = resolve({"batch_tokens": BATCH, **SHAPE}, {}, VOCAB).shape
    with working("  measuring how fast this machine trains"):
        from fathom.train.beginning import locked_run
        from fathom.train.session import look_at_machine, measured_pace

        with locked_run(config.name):  # so that `status` knows that it has begun
            machine = look_at_machine(config.dtype, quiet=True)
            tokens_per_s = measured_pace(machine, shape, BATCH, LOOK_S)
    minutes = config.minutes or _minutes(machine.device)
    most = math.inf if config.minutes else MOST_TOKENS / (1 - SFT_SHARE)
    steps = min(tokens_per_s * 60 * minutes, most) / BATCH
    if steps < FEW_STEPS:
        say(
            f"  {steps:.0f} steps of both trainings fit into {minutes:g} min here: enough to see every stage, too few "
            f"to learn from; the quizzes take their time besides",
            style="yellow",
        )
    return max(1, round(steps * (1 - SFT_SHARE)))


def _sft_steps(config: Quickstart, base: Mapping[str, Any]) -> int:
    """Steps of fine-tuning: those that it began with, else its share, of which as many as the time allows that a
    pretraining slower than expected has left, but at least half.
    """
    if begun := _begun(f"{config.name}-sft"):
        return begun
    share = base["steps"] * SFT_SHARE / (1 - SFT_SHARE)
    minutes = config.minutes or _minutes(hardware.device_type().value)
    left = (60 * minutes - base["seconds"]) * base["steps"] / base["seconds"]
    return max(1, round(min(share, max(share / 2, left))))


def _minutes(device: str) -> float:
    """The whole way is to take five minutes with AMX, and on a GPU, and ten without."""
    return FEW_MINUTES if device != "cpu" or hardware.bf16_instructions() == "AMX" else MINUTES


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
    from fathom.train.beginning import locked_run
    from fathom.train.checkpoint import load_model

    questions = primer.quiz(config.seed)[:: 1 if can_chat else BASE_QUIZ_EVERY]
    with locked_run(run), bar("  quiz", len(questions)) as progress:  # so that `status` knows of it
        model, tokenizer, info = load_model(run, dtype=config.dtype)
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
