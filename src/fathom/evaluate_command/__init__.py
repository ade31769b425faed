"""`fathom eval`: bits per byte, CORE, chat tasks and samples of a run, kept in its folder task by task."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fathom.errors import FathomError
from fathom.evaluate.foreign_folder import is_foreign
from fathom.home import names
from fathom.screen import say

if TYPE_CHECKING:
    from fathom.ranks import Ranks

GROUPS = ("bpb", "core", "chat", "samples")
OF_STAGE = {"pretrain": ("bpb", "core", "samples")}
OF_OTHERS = ("bpb", "chat", "samples")


@dataclass(frozen=True)
class Eval:
    """Measure a run: bits per byte, CORE, chat tasks, samples.

    Each finished task is kept in the run's folder; interrupted, the same command goes on at the next. Under torchrun
    (.venv/bin/torchrun --nproc-per-node 4 -m fathom eval …) the ranks share the items.
    """

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run; or the folder of a Hugging Face model, for CORE."""
    tasks: str = ""
    """Comma-separated: bpb, core, chat, samples, or of chat arc-easy, arc-challenge, mmlu, gsm8k, humaneval, spelling.
    Default bpb,core,samples for a base model, bpb,chat,samples for a fine-tuned one."""
    limit: int | None = None
    """At most so many items of each task (rows, for bpb); 0 for all. Default all, but for bpb a sample of 262,144
    tokens of each set."""
    step: int | None = None
    """The checkpoint of this step. Default the newest."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Numbers to compute with. Default by the machine."""
    bundle: str | None = None
    """CORE's bundle, the zip or the folder it unpacks to. Default the one in $FATHOM_HOME, which is fetched once."""
    data: str | None = None
    """Folder with the sets of the chat tasks. Default those in $FATHOM_HOME, which are fetched from the hub once."""
    corpus: str | None = None
    """Corpus to measure bpb on. Default the one that the run, or its base, was trained on."""
    task: tuple[str, ...] = ()
    """Python files, each with a task of your own; without --tasks nothing else is measured."""
    harness: str = ""
    """Tasks of EleutherAI's lm-eval, comma-separated; without --tasks nothing else is measured."""
    dump: str | None = None
    """Write every item of CORE and chat tasks to this .jsonl file; measures them anew."""
    again: bool = False
    """Measure anew what has been measured."""
    json: bool = False
    """Print the results as one JSON object."""

    def run(self) -> dict[str, Any]:
        from fathom import ranks

        if self.limit is not None and self.limit < 0:
            raise FathomError(f"--limit is {self.limit}", "give a number of items, or 0 for all")
        try:
            return ranks.shared(lambda here: evaluate(self, here))
        except KeyboardInterrupt:
            say("finished tasks are kept; the same command goes on with the next", style="yellow")
            raise


def evaluate(config: Eval, here: Ranks) -> dict[str, Any]:
    """Open everything that the tasks need, then measure them one after another. Returns what --json prints."""
    from fathom.record import read_config
    from fathom.train import checkpoint

    if not _is_foreign(config.name):
        checkpoint.look_up(config.name, config.step)  # refused before torch is imported, which takes seconds
    say("looking for the texts and questions that it is measured on …", style="dim")

    from fathom.evaluate.scorer import ModelScorer
    from fathom.evaluate_command.chat import chat, open_chat
    from fathom.evaluate_command.core import core, open_core
    from fathom.evaluate_command.foreign import evaluate_foreign
    from fathom.evaluate_command.harness import harness, open_harness
    from fathom.evaluate_command.session import open_session, unless_missing
    from fathom.evaluate_command.text import bpb, open_text, samples

    if _is_foreign(config.name):
        return evaluate_foreign(config, Path(config.name), here)
    stage = str(read_config(config.name)["run"]["stage"])
    tasks = chosen(config, stage)
    refuse_unwritable(config.dump)
    text = open_text(config) if "bpb" in tasks else None
    questions = open_chat(config, tasks, here)
    bundle = None
    if "core" in tasks:
        asked = bool(config.tasks or config.bundle)
        bundle = unless_missing("core", asked, here, lambda: open_core(config.bundle, here))
    of_harness = open_harness(_words(config.harness)) if config.harness else []
    session = open_session(config, here)
    found: dict[str, Any] = {}
    if text is not None:
        found["bpb"] = bpb(session, text)
    if bundle is not None:
        scorer = ModelScorer(session.model, session.tokenizer.bos_id)
        found["core"] = core(session, bundle, scorer, session.tokenizer)
    if questions:
        found |= chat(session, questions)
    if of_harness:
        found["harness"] = harness(session, of_harness)
    if "samples" in tasks:
        found["samples"] = samples(session)
    return session.about | found


def _is_foreign(name: str) -> bool:
    """Whether `name` is no run, but a folder that holds a model of transformers."""
    return name not in names("runs") and is_foreign(Path(name))


def chosen(config: Eval, stage: str) -> list[str]:
    """The tasks to measure, in order, each once; "chat" stands for its six."""
    from fathom.evaluate.chat import NAMES

    known = (*GROUPS, *NAMES)
    asked = _words(config.tasks)
    for word in asked:
        if word not in known:
            near = get_close_matches(word, known, n=1, cutoff=0.5)
            raise FathomError(
                f"there is no task {word[:60]!r}",
                f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(known)}",
            )
    if config.tasks and not asked:
        raise FathomError("--tasks names none", f"choose among {', '.join(known)}")
    if not asked and not config.task and not config.harness:
        asked = list(OF_STAGE.get(stage, OF_OTHERS))
    if "chat" in asked and stage == "pretrain":
        say(
            f"{config.name} is a base model, which has not learnt to answer: its chat scores are those of guessing",
            style="yellow",
        )
    wanted = [name for word in asked for name in (NAMES if word == "chat" else (word,))]
    return list(dict.fromkeys(wanted))


def _words(listed: str) -> list[str]:
    return [word for part in listed.split(",") if (word := part.strip())]


def refuse_unwritable(path: str | None) -> None:
    """Find out before the work begins that the dump has no place."""
    if path is None:
        return
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise FathomError(f"--dump {path} cannot be written ({error.strerror})", "name another file") from None
