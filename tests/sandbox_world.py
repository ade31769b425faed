"""What stands around a sandbox in the tests: secrets, a home, listeners, a caller; and what harm came to it."""

from __future__ import annotations

import json
import os
import resource
import secrets
import select
import signal
import socket
import stat
import tempfile
from pathlib import Path
from types import TracebackType

from sandbox_attacks import GOT_THROUGH, PRELUDE, Attack, calls

from fathom.generate.sandbox.mechanism import Mechanism
from fathom.generate.sandbox.running import Limits, Outcome, execute


class World:
    """A folder that plays the home, and everything an attack could reach: looked at from outside after each attack."""

    def __init__(self, folder: Path) -> None:
        self.home, self.temporary = folder / "home", folder / "tmp"
        self.home.mkdir()
        self.temporary.mkdir()
        self.secret = secrets.token_hex(20)
        self.file = self.home / "secret.txt"
        self.file.write_text(self.secret)
        (self.home / f"name-{self.secret}").touch()
        self.inherited = os.open(self.file, os.O_RDWR)
        os.set_inheritable(self.inherited, True)
        self.signals: list[int] = []
        self._listeners = [
            self._listen(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            self._listen(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            self._listen(socket.AF_UNIX, socket.SOCK_STREAM, os.path.relpath(self.home / "socket")),
            self._listen(socket.AF_UNIX, socket.SOCK_DGRAM, os.path.relpath(self.home / "datagrams")),
            self._listen(socket.AF_UNIX, socket.SOCK_STREAM, f"\0fathom-{self.secret[:8]}"),
        ]
        self.facts = {
            "home": str(self.home),
            "file": str(self.file),
            "temporary": str(self.temporary),
            "caller": os.getpid(),
            "tcp": self._listeners[0].getsockname()[1],
            "udp": self._listeners[1].getsockname()[1],
            "abstract": f"fathom-{self.secret[:8]}",
            "calls": calls(),
            "mark": f"fathom-attack-{self.secret[:8]}",
        }

    def __enter__(self) -> World:
        self._before = tempfile.tempdir, signal.getsignal(signal.SIGUSR1)
        tempfile.tempdir = str(self.temporary)
        os.environ["FATHOM_TEST_SECRET"] = self.secret
        signal.signal(signal.SIGUSR1, lambda number, frame: self.signals.append(number))
        self.begin()
        return self

    def begin(self) -> None:
        """What is so now is how it should stay."""
        for listener in self._heard():
            listener.accept()[0].close() if listener.type == socket.SOCK_STREAM else listener.recv(100)
        self.signals.clear()
        self._state = self.state()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        tempfile.tempdir, handler = self._before
        del os.environ["FATHOM_TEST_SECRET"]
        signal.signal(signal.SIGUSR1, handler)
        os.close(self.inherited)
        for listener in self._listeners:
            listener.close()

    def attacked(self, attack: Attack, mechanism: Mechanism) -> tuple[Outcome, list[str]]:
        """What became of the attack, and what harm it did (nothing, if the sandbox holds)."""
        outcome = execute(mechanism, PRELUDE + attack.program, attack.limits, json.dumps(self.facts))
        return outcome, self.harm(outcome, attack.limits)

    def harm(self, outcome: Outcome, limits: Limits) -> list[str]:
        said = outcome.stdout + outcome.stderr
        wrong = {
            "it says that it got through": GOT_THROUGH in outcome.stdout,
            "the secret came out": self.secret in said,
            "it was heard": bool(self._heard()),
            "the caller got a signal": bool(self.signals),
            "it ran on past its time": outcome.seconds > limits.seconds + 5,
            "more output was kept than allowed": len(said.encode()) > 2 * limits.output + 4000,
            "processes are left": bool(self.left_processes()),
            "the scratch folder is left": any(self.temporary.iterdir()),
            "shared memory is left": any(Path("/dev/shm").glob(f"*{self.facts['mark']}*")),
        }
        changed = [f"changed: {name}" for name, value in self.state().items() if value != self._state[name]]
        return [name for name, is_so in wrong.items() if is_so] + changed

    def state(self) -> dict[str, object]:
        """The home's files, and what a process can change of another."""
        return {
            "files": sorted((str(path), _description(path)) for path in self.home.rglob("*")),
            "limits": [resource.getrlimit(getattr(resource, n)) for n in dir(resource) if n.startswith("RLIMIT_")],
            "priority": os.getpriority(os.PRIO_PROCESS, 0),
            "affinity": os.sched_getaffinity(0),
            "folder": os.getcwd(),
        }

    def left_processes(self) -> list[int]:
        """Those that were started for a scratch folder of this world."""
        mark, found = f"{self.temporary}/".encode(), []
        for process in Path("/proc").iterdir():
            try:
                if process.name.isdigit() and mark in (process / "cmdline").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    def _heard(self) -> list[socket.socket]:
        """Those of the listeners that somebody has turned to."""
        return select.select(self._listeners, [], [], 0)[0]

    def _listen(self, family: int, kind: int, address: object) -> socket.socket:
        listener = socket.socket(family, kind)
        listener.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            listener.listen()

        return listener


def _description(path: Path) -> object:
    found = path.lstat()
    content = path.read_bytes() if stat.S_ISREG(found.st_mode) else None
    return found.st_mode, found.st_mtime_ns, found.st_nlink, content
