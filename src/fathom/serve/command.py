"""`fathom serve`: a run behind OpenAI's interface, and a page to talk to it."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fathom.errors import FathomError
from fathom.screen import say

if TYPE_CHECKING:
    from fathom.serve.serving import Loaded, Serving

PORTS_TRIED = 20


@dataclass(frozen=True)
class Serve:
    """Serve a run to programs (OpenAI's API) and people (a chat page). Ctrl-C ends it."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")] = ""
    """The run; by default the one that was last taught to chat."""
    host: str = "127.0.0.1"
    """The address it listens on. Another one than this machine's own lets others in."""
    port: int = 8000
    """Where it listens; 0 takes any free port."""
    api_key: str = ""
    """Wanted of every client of the API; @FILE reads it from a file, which other users of this machine cannot see."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may ask, such as https://chat.example; * for all."""
    max_batch: int = 32
    """Answers that are made at once; others wait."""
    queue: int = 64
    """Answers that may wait; beyond, clients are told to come back (429)."""
    max_tokens: int = 0
    """The longest answer; by default what the context holds."""
    cache_tokens: int = 0
    """Tokens that the key/value cache holds for all answers together; by default the engine's choice."""
    body_mb: float = 8.0
    """The largest request, MB."""
    timeout: float = 600.0
    """Seconds that one request may take."""
    patience: float = 30.0
    """Seconds that a client may take to send its request, or to read what was sent."""
    drain: float = 30.0
    """Seconds that running answers have to finish once the server is told to end."""
    step: int | None = None
    """The checkpoint of this step; by default the newest."""
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Numbers to compute with; by default what the machine is quick in."""
    compile: Literal["auto", "on", "off"] = "auto"
    """Compile what says the answers, on a GPU as CUDA graphs; by default on NVIDIA GPUs. Off is without a kernel of
    our own on a CPU, too."""
    log: bool = False
    """Print a line for every request."""
    json: bool = False
    """Print one JSON object on standard output when it ends."""

    def run(self) -> dict[str, Any]:
        self._check()
        key = _key(self.api_key)
        name = self._name()
        with _listener(self.host, self.port) as listener:
            url = _url(self.host, listener.getsockname()[1])
            if not _is_loopback(self.host) and not key:
                say(
                    "anyone who can reach that address can use this run; --api-key @FILE asks for a key", style="yellow"
                )
            say(f"loading {name} …", style="dim")
            serving = asyncio.run(self._serve(name, key, listener, url))
        if serving.problem:
            raise serving.problem
        say("ended", style="dim")
        return {"run": name, "url": url}

    def _check(self) -> None:
        for flag, value, least in (
            ("--max-batch", self.max_batch, 1),
            ("--queue", self.queue, 0),
            ("--max-tokens", self.max_tokens, 0),
            ("--cache-tokens", self.cache_tokens, 0),
        ):
            if value < least:
                raise FathomError(f"{flag} is {value}", f"give at least {least}")
        for flag, seconds in (("--timeout", self.timeout), ("--patience", self.patience), ("--body-mb", self.body_mb)):
            if not 0 < seconds < 1e6:
                raise FathomError(f"{flag} is {seconds}", "give a number above 0")
        if not 0 <= self.drain < 1e6:
            raise FathomError(f"--drain is {self.drain}", "give seconds, 0 for none")

    def _name(self) -> str:
        """The run, which has a checkpoint and its tokenizer: what is wrong with it is said before anything listens."""
        from fathom.serve.terminal import newest
        from fathom.train import checkpoint

        name = self.name or newest()
        checkpoint.look_up(name, self.step)
        return name

    async def _serve(self, name: str, key: str, listener: socket.socket, url: str) -> Serving:
        from fathom.serve.api import Access, app
        from fathom.serve.connection import server
        from fathom.serve.serving import Limits, Serving

        limits = Limits(self.queue, self.max_tokens or None, self.body_mb, self.timeout, self.patience)
        serving = Serving(name, lambda: self._load(name), limits, self.max_batch)
        access = Access(key, self.cors, self.host, self.log)
        loop = asyncio.get_running_loop()
        http = server(app(serving, access), self.patience, lambda: loop.call_soon_threadsafe(serving.drain))
        work = asyncio.create_task(http.serve(sockets=[listener]))
        serving.start()
        await self._attend(serving, url, work)
        http.should_exit = True
        await work
        serving.end()
        return serving

    async def _attend(self, serving: Serving, url: str, work: asyncio.Task[None]) -> None:
        """Say what happens on the screen, until the server has to end."""
        said = False
        while serving.state in ("loading", "ok") and not work.done():
            if serving.state == "ok" and not said:
                said = True
                _welcome(serving, url)
            serving.changed.clear()
            watch = asyncio.create_task(serving.changed.wait())
            await asyncio.wait({watch, work}, return_when=asyncio.FIRST_COMPLETED)
            watch.cancel()
        if serving.state == "draining":
            n = serving.n_stream
            if n:
                say(f"ending: {n} running answer{'s' * (n > 1)} may finish, Ctrl-C again ends at once", style="dim")
            await serving.wait_until_idle(self.drain)
            await asyncio.sleep(0.05)

    def _load(self, name: str) -> Loaded:
        from fathom.generate.decode import choose_decode
        from fathom.generate.engine import Engine
        from fathom.serve.serving import Loaded
        from fathom.train.checkpoint import load_model

        model, tokenizer, info = load_model(name, self.step, self.dtype)
        parameters = sum(weight.numel() for weight in model.parameters())
        more: dict[str, Any] = {"cache_tokens": self.cache_tokens} if self.cache_tokens else {}
        decode = choose_decode(self.compile, model.device.type)
        engine = Engine(model, tokenizer, max_batch=self.max_batch, decode=decode, **more)
        return Loaded(engine, info | {"parameters": parameters})


def _welcome(serving: Serving, url: str) -> None:
    from fathom.record import CHAT_STAGES

    loaded = serving.loaded
    info, seq_len = loaded.info, loaded.engine.seq_len
    size = f"{info['parameters'] / 1e6:,.1f} M parameters"
    say(
        f"{info['run']} at step {info['step']:,} ({info['dtype']}, {size}, a context of {seq_len:,} tokens)",
        style="bold",
    )
    if info["stage"] not in CHAT_STAGES:
        say(f"it was not taught to chat: `fathom sft {info['run']} --data FILE` does that", style="yellow")
    say(f"  page  {url}/")
    say(f"  API   {url}/v1   (OpenAI's; described at {url}/openapi.json)")
    say("  Ctrl-C ends it: running answers may finish, a second Ctrl-C ends at once", style="dim")


def _key(given: str) -> str:
    """The key itself, from a file where @FILE was given."""
    if not given.startswith("@"):
        key = given
    else:
        try:
            key = Path(given[1:]).expanduser().read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            raise FathomError(f"the key's file {given[1:]} cannot be read ({why.lower()})", "check --api-key") from None
        if not key:
            raise FathomError(f"the key's file {given[1:]} is empty", "write a key into it")
    if not (key.isascii() and (key.isprintable() or not key)) or " " in key:
        raise FathomError("the API key holds spaces or characters that no header can carry", "use letters and digits")
    return key


def _listener(host: str, port: int) -> socket.socket:
    """A socket that listens there. Where the port is taken, FathomError names the next that is free."""
    from fathom.report.dashboard import listen

    try:
        return listen(host, port)
    except FathomError:
        if not _is_taken(host, port):
            raise
    for other in range(port + 1, min(port + 1 + PORTS_TRIED, 65_536)):
        try:
            listen(host, other).close()
        except FathomError:
            continue
        raise FathomError(f"port {port} is taken by another program", f"--port {other} is free")
    raise FathomError(f"port {port} is taken by another program", "choose another with --port, 0 takes any")


def _is_taken(host: str, port: int) -> bool:
    """Whether somebody answers there already."""
    try:
        socket.create_connection((_reachable(host), port), timeout=1).close()
    except (OSError, OverflowError, UnicodeError):
        return False
    return True


def _is_loopback(host: str) -> bool:
    from fathom.report.dashboard import is_loopback

    return is_loopback(host)


def _reachable(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)


def _url(host: str, port: int) -> str:
    shown = _reachable(host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
