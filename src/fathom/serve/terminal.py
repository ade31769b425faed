"""`fathom chat`: talk to a run in the terminal, or ask it one thing from a pipe."""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fathom.errors import FathomError
from fathom.screen import say

if TYPE_CHECKING:
    from fathom.generate.sampling import Sampling
    from fathom.serve.talk import Talk

MAX_PIPED_BYTES = 10_000_000


@dataclass(frozen=True)
class Chat:
    """Talk to a run. In a pipe, standard input is one message and standard output the reply."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """The run; by default the one that was last taught to chat."""
    prompt: str = ""
    """Answer this one message and end."""
    system: str = ""
    """What the model is told before the first message."""
    temperature: float = 0.6
    """0 always takes the most likely token, more is more varied."""
    top_k: int = 50
    """Choose among this many of the most likely tokens; 0 for all."""
    top_p: float = 1.0
    """Choose among the most likely tokens that together have this probability."""
    min_p: float = 0.0
    """Choose among tokens at least this share as likely as the most likely one."""
    max_tokens: int = 256
    """The longest answer."""
    seed: int | None = None
    """Repeats an answer; by default every answer is another."""
    step: int | None = None
    """The checkpoint of this step; by default the newest."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Numbers to compute with; by default what the machine is quick in."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile what says the answers, on a GPU as CUDA graphs; by default on NVIDIA GPUs. Off is without a kernel of
    our own on a CPU, too."""
    json: bool = False
    """Print the answer to one message as a JSON object."""

    def run(self) -> dict[str, Any]:
        from fathom.train import checkpoint

        typed = not self.prompt and sys.stdin is not None and sys.stdin.isatty()
        if typed and self.json:
            raise FathomError("--json answers one message", "give it with --prompt or on standard input")
        if self.max_tokens < 1:
            raise FathomError(f"--max-tokens is {self.max_tokens}", "allow at least 1")
        name = self.name or newest()
        checkpoint.look_up(name, self.step)
        message = "" if typed else self.prompt or _piped()
        say(f"loading {name} …", style="dim")

        from fathom.generate.sampling import Sampling
        from fathom.serve.dialogue import Dialogue, clean

        sampling = Sampling(self.temperature, self.top_k, self.top_p, self.min_p)
        talk, info = self._open(name)
        if typed:
            return info | {"answers": Dialogue(talk, sampling, self.max_tokens, self._seed).run()}
        return info | self._answer(talk, clean(message), sampling)

    def _open(self, name: str) -> tuple[Talk, dict[str, Any]]:
        """Load the run and say which it is."""
        from fathom.generate.decode import choose_decode
        from fathom.generate.engine import Engine
        from fathom.record import CHAT_STAGES
        from fathom.serve.dialogue import clean
        from fathom.serve.talk import Talk
        from fathom.train.checkpoint import load_model

        model, tokenizer, info = load_model(name, self.step, self.dtype)
        say(f"{info['run']} at step {info['step']:,} ({info['dtype']})", style="bold")
        if info["stage"] not in CHAT_STAGES:
            say(f"it was not taught to chat: `fathom sft {name} --data FILE` does that", style="yellow")
        engine = Engine(model, tokenizer, max_batch=1, decode=choose_decode(self.compile, model.device.type))
        talk = Talk(engine, clean(self.system))
        return talk, {"run": info["run"], "step": info["step"]}

    def _answer(self, talk: Talk, message: str, sampling: Sampling) -> dict[str, Any]:
        """One message, one reply: on standard output, or with --json in the result."""
        from fathom.serve.dialogue import explain, shown, wrapping, write

        text, finish = "", None
        lines = wrapping()
        for event in talk.ask(message, sampling, self.max_tokens, self._seed(0)):
            finish = event.finished
            if event.part == "text":
                text += event.text
                if not self.json:
                    lines.write(shown(event.text) if sys.stdout.isatty() else event.text)
        if not self.json:
            lines.flush()
            write("\n")
        explain(finish, talk, self.max_tokens)
        content = talk.messages()[-1]["content"]
        return {"reply": text, "content": content, "tokens": len(talk.turns[-1].reply), "finish_reason": finish}

    def _seed(self, n_answer: int) -> int:
        """Another for every answer, and the same ones again with --seed."""
        return random.SystemRandom().getrandbits(32) if self.seed is None else self.seed + n_answer


def newest() -> str:
    """The run that was last taught to chat."""
    from fathom.record import CHAT_STAGES, newest_run

    name = newest_run(CHAT_STAGES)
    if not name:
        raise FathomError(
            "there is no run that can chat yet",
            "make one with `fathom quickstart`, or teach a run with `fathom sft RUN --data FILE`",
        )
    return name


def _piped() -> str:
    """Standard input as one message, without the line's end that `echo` adds."""
    raw = sys.stdin.buffer.read(MAX_PIPED_BYTES + 1) if sys.stdin else b""
    if len(raw) > MAX_PIPED_BYTES:
        raise FathomError(f"standard input holds more than {MAX_PIPED_BYTES:,} bytes", "send a shorter message")
    text = raw.decode("utf-8", "replace").removesuffix("\n").removesuffix("\r")
    if not text.strip():
        raise FathomError("standard input holds no message", "pipe one in, or give it with --prompt")
    return text
