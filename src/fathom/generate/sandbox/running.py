"""Start a program shut in, watch it from outside, end it, and say what became of it."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import secrets
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Self

from fathom.errors import FathomError
from fathom.generate.sandbox import seccomp
from fathom.generate.sandbox.mechanism import Mechanism, readable

START_S = 60.0
_LOOK_S = 0.05
_MOST_ENTRIES = 1000


@dataclass(frozen=True)
class Limits:
    """What a program may use up."""

    seconds: float = 5.0
    """By the clock, from its first line on."""
    memory: int = 256 * 2**20
    """Bytes of address space, the interpreter's own included."""
    output: int = 2**20
    """Bytes written to standard output, and as many to standard error."""
    disk: int = 16 * 2**20
    """Bytes in the scratch folder, and in one file."""


@dataclass(frozen=True)
class Outcome:
    """What became of a program."""

    ok: bool
    """It ran to its last line, and the interpreter ended with 0."""
    why: str
    """passed; failed (an exception, or another exit status); exited (with 0, before its end); crashed (a signal);
    timeout, memory, output, disk (the limit that it met)."""
    stdout: str
    stderr: str
    seconds: float
    """By the clock, from its first line on."""


def execute(mechanism: Mechanism, program: str, limits: Limits, stdin: str) -> Outcome:
    """Run it shut in by this mechanism. Raises FathomError where it could not be shut in; then it was not run."""
    with ExitStack() as stack:
        scratch = stack.enter_context(_scratch())
        token = secrets.token_hex(16)
        plan = {
            "program": program,
            "token": token,
            "readable": readable(),
            "namespaces": mechanism.namespaces,
            "landlock": mechanism.landlock,
            "filter": seccomp.program().hex(),
            "limits": _resource_limits(limits),
        }
        plan_handle = _handed_over(json.dumps(plan))
        stack.callback(os.close, plan_handle)
        given = _handed_over(stdin)
        stack.callback(os.close, given)
        status_handle, says = os.pipe()
        status = stack.enter_context(open(status_handle, "rb", buffering=0))
        with open(says, "wb", buffering=0), open(os.dup(says), "wb", buffering=0) as again:
            handles = (plan_handle, says, again.fileno())
            process = subprocess.Popen(
                mechanism.command(scratch, *handles),
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=handles,
                cwd=scratch,
                env={"HOME": scratch, "TMPDIR": scratch, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"},
                start_new_session=True,
            )
        with _Watch(process, status.fileno(), scratch, limits, token) as watch:
            return watch.outcome()


class _Watch:
    """Reads what a program writes, and looks at the clock and at its scratch folder."""

    def __init__(self, process: subprocess.Popen[bytes], status: int, scratch: str, limits: Limits, token: str) -> None:
        assert process.stdout and process.stderr
        self.process, self.scratch, self.limits, self.token = process, scratch, limits, token
        self.said = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), status: bytearray()}
        self.stdout, self.stderr, self.status = self.said.values()
        self.asked_at = time.monotonic()
        self.began_at: float | None = None
        self.first: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()

    def outcome(self) -> Outcome:
        met = self._met_limit()
        if met:
            self._end()
        code = self.process.wait()
        now = time.monotonic()
        if self.began_at is None:
            raise FathomError(f"the sandbox did not close ({self._refusal(met)})")
        last = self.status.decode(errors="replace").split("\n")
        why = met or _why(code, "memory" in last, self.token in last)
        stdout, stderr = (text[: self.limits.output].decode(errors="replace") for text in (self.stdout, self.stderr))
        return Outcome(why == "passed", why, stdout, stderr, seconds=now - self.began_at)

    def _met_limit(self) -> str:
        """Returns when the program has ended (""), or has met a limit (its name) and is to be ended."""
        look_at = 0.0
        with selectors.DefaultSelector() as selector:
            for handle in self.said:
                selector.register(handle, selectors.EVENT_READ)
            while selector.get_map() or self.process.poll() is None:
                if not selector.get_map():  # it is ending, or has closed its output and goes on
                    with suppress(subprocess.TimeoutExpired):
                        self.process.wait(_LOOK_S)
                for key, _ in selector.select(_LOOK_S if selector.get_map() else 0):
                    self._read(selector, key.fd)
                now = time.monotonic()
                if any(len(text) > self.limits.output for text in self.said.values()):
                    return "output"
                if now > (self.asked_at + START_S if self.began_at is None else self.began_at + self.limits.seconds):
                    return "timeout"
                if now > look_at:
                    if overfull(self.scratch, self.limits.disk):
                        return "disk"
                    look_at = now + _LOOK_S
        return ""

    def _read(self, selector: selectors.BaseSelector, handle: int) -> None:
        if not (chunk := os.read(handle, 2**16)):
            selector.unregister(handle)
        self.said[handle] += chunk
        if self.began_at is None and b"ready\n" in self.status:
            self.began_at = time.monotonic()
            first = re.search(rb'"child-pid": (\d+)', self.status.partition(b"ready\n")[0])  # what follows is not ours
            self.first = int(first[1]) if first else None

    def _end(self) -> None:
        """It is dead afterwards, with all that it started: those are one process group, which nobody can leave.

        In namespaces the first process there takes the rest with it, and those outside reap it and end.
        """
        if self.process.poll() is None and self.first:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.kill(self.first, signal.SIGKILL)
                self.process.wait(10.0)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _refusal(self, met: str) -> str:
        if met:
            return f"it had not started after {START_S:.0f} s"
        said = (self.status or self.stderr).decode(errors="replace").strip().removeprefix("refused ")
        return said.splitlines()[-1][:200] if said else f"the interpreter ended with {self.process.returncode}"


def _why(code: int, out_of_memory: bool, came_to_its_end: bool) -> str:
    code = code if code >= 0 else 128 - code
    if code == 0:
        return "passed" if came_to_its_end else "exited"
    if out_of_memory or code == 128 + signal.SIGKILL:  # nobody else but the kernel, short of memory, kills it
        return "memory"
    if code == 128 + signal.SIGXCPU:
        return "timeout"
    return "crashed" if code > 128 else "failed"


def _resource_limits(limits: Limits) -> dict[str, int]:
    """Hard limits, by their names in the module `resource`. The clock is watched outside; CPU is for orphans."""
    return {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_CPU": math.ceil(limits.seconds) + 1,
        "RLIMIT_FSIZE": limits.disk,
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
    }


def _handed_over(text: str) -> int:
    """A descriptor to read the text from, which nobody can change: no pipe that has to be fed, no file on the disk."""
    handle = os.memfd_create("fathom", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(handle, "wb", closefd=False) as file:
        file.write(text.encode(errors="surrogatepass"))
    os.lseek(handle, 0, os.SEEK_SET)
    fcntl.fcntl(handle, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    return handle


@contextmanager
def _scratch() -> Iterator[str]:
    folder = os.path.realpath(tempfile.mkdtemp(prefix="fathom-scratch-"))
    try:
        yield folder
    finally:
        remove(folder)


def remove(folder: str) -> None:
    """A tree of any depth, with folders that may have been made unreadable. Links are never followed."""
    try:
        os.rmdir(folder)
    except OSError:
        subprocess.run(["chmod", "-R", "u+rwx", folder], capture_output=True)
        subprocess.run(["rm", "-rf", "--", folder], capture_output=True)
        shutil.rmtree(folder, ignore_errors=True)


def overfull(folder: str, most: int) -> bool:
    """Whether it holds more bytes than this, too many entries, or anything that cannot be looked at."""
    folders, entries, used = [folder], 0, 0
    while folders:
        try:
            with os.scandir(folders.pop()) as inside:
                for entry in inside:
                    entries += 1
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entries > _MOST_ENTRIES or used > most:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except FileNotFoundError:
            continue
        except OSError:
            return True
    return False
