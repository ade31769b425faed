"""What the launcher runs when .venv is missing or is not what the project asks for.

Only the standard library is here yet. One process at a time installs, behind a lock that the kernel lets go of when
its last holder dies. What was cut short is made anew, since pip takes a half-unpacked package for a whole one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PIP_INSTALL = ["-I", "-m", "pip", "--no-input", "--disable-pip-version-check", "install", "--no-user"]
SPEAK_EVERY_S = 2.0
SPIN_EVERY_S = 0.2
NO_NETWORK = re.compile(
    r"connection broken by|NewConnectionError|NameResolutionError|Failed to establish a new connection|Max retries"
    r"|Network is unreachable|Connection refused|ConnectTimeout|ReadTimeout|Read timed out|ProxyError"
)
NO_SPACE = re.compile(r"No space left on device|Disk quota exceeded")


class Refusal(Exception):
    """One sentence for the person at the keyboard."""


class Screen:
    """Standard error: what goes on now is a line that changes on a terminal, and one every 2 seconds elsewhere."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._live = stream, stream.isatty()
        self._last = time.monotonic()

    def say(self, text: str) -> None:
        self._print(f"fathom: {text}")

    def now(self, text: str) -> None:
        if self._live:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + f"  {text}"[:width])
            self._stream.flush()
        elif time.monotonic() - self._last >= SPEAK_EVERY_S:
            self._print(f"  {text}")

    def _print(self, line: str) -> None:
        self._stream.write(("\r\x1b[2K" if self._live else "") + line + "\n")
        self._stream.flush()
        self._last = time.monotonic()


class Environment:
    """The folder .venv beside the launcher, and what was written in it about how it was made.

    `installed` and `installedtest` hold the line by which the launcher knows that nothing has to be done; `asked` and
    `askedtest` hold what pip was given, since most changes of pyproject.toml need no installation.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / ".venv"
        self.python = self.folder / "bin" / "python"
        self._mark = self.folder / "made-by-fathom"

    def works(self) -> bool:
        """Whether the last installation came to its end and its Python is still there."""
        return self._read("installed") is not None and os.access(self.python, os.X_OK)

    def for_gpu(self) -> bool:
        return (self._read("installed") or "").endswith(" gpu")

    def is_installed(self, wanted: str, extra: str) -> bool:
        """Whether the launcher takes it as it is: a build for GPUs serves a machine without one, too."""
        return self.works() and self._read(f"installed{extra}") in (wanted, f"{wanted} gpu")

    def has_packages(self, asked: str, extra: str) -> bool:
        return self.works() and self._read(f"asked{extra}") == asked

    def record(self, extra: str, wanted: str, asked: str) -> None:
        (self.folder / f"asked{extra}").write_text(asked)
        (self.folder / f"installed{extra}").write_text(wanted)

    def begin(self) -> Callable[[], None]:
        """From now on .venv counts as broken until it is recorded anew; the function handed out takes that back."""
        records = {path: path.read_text() for path in self.folder.glob("installed*")}
        for path in records:
            path.unlink()

        def take_back() -> None:
            for path, text in records.items():
                path.write_text(text)

        return take_back

    def empty(self) -> bool:
        """Make room for a new one; True where an unfinished one was in the way. What others made is not touched."""
        self.folder.mkdir(exist_ok=True)
        if not self._mark.exists() and any(self.folder.iterdir()):
            raise Refusal(f"{self.folder} was not made by this launcher; move it away and start again.")
        self._mark.touch()
        leftovers = [path for path in self.folder.iterdir() if path != self._mark]
        for path in leftovers:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        return bool(leftovers)

    def see_sources(self) -> None:
        """Put src on the path by a relative line, so that the whole folder can be moved."""
        packages = next((self.folder / "lib").glob("python3*/site-packages"))
        (packages / "fathom.pth").write_text(os.path.relpath(self.root / "src", packages) + "\n")

    def size_mb(self) -> int:
        size = 0
        for folder, _, files in os.walk(self.folder):
            for file in files:
                with contextlib.suppress(OSError):
                    size += os.lstat(os.path.join(folder, file)).st_size
        return size // 10**6

    def _read(self, name: str) -> str | None:
        with contextlib.suppress(OSError):
            return (self.folder / name).read_text()
        return None


class Worker:
    """Runs a program with its output in the log, and tells the screen how it gets on."""

    def __init__(self, environment: Environment, screen: Screen, lock: int) -> None:
        self.log = environment.root / ".venv.log"
        self._environment, self._screen, self._lock = environment, screen, lock
        self.log.write_text("")

    def run(self, command: Sequence[str], doing: str) -> tuple[int, list[str]]:
        """Exit status and lines of output. The program inherits the lock: while it lives, nobody else installs."""
        temporary = self._environment.folder / "tmp"  # /tmp may be too small for gigabytes
        temporary.mkdir(exist_ok=True)
        begun, lines = time.monotonic(), [""]
        with (
            self.log.open("a") as log,
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={"TMPDIR": str(temporary), **os.environ},
                pass_fds=(self._lock,),
            ) as program,
        ):
            print("$", *command, file=log, flush=True)
            reader = threading.Thread(target=_read_lines, args=(program.stdout, lines, log), daemon=True)
            reader.start()
            try:
                told = begun
                while reader.is_alive():
                    reader.join(SPIN_EVERY_S)
                    if time.monotonic() - told >= SPEAK_EVERY_S:
                        told, size = time.monotonic(), self._environment.size_mb()
                        what = what_pip_does(lines) or doing
                        self._screen.now(f"{what} · {size:,} MB in .venv · {time.monotonic() - begun:.0f} s")
            except BaseException:
                program.terminate()
                raise
        shutil.rmtree(temporary, ignore_errors=True)
        return program.returncode, lines

    def refusal(self, lines: list[str]) -> Refusal:
        """Why pip failed, in a sentence."""
        said = "".join(lines)
        if NO_SPACE.search(said):
            return Refusal(disk_full(self._environment.root))
        if NO_NETWORK.search(said):
            return Refusal(
                "pip could not reach its package index; connect this machine, or set up a mirror or a proxy for pip, "
                f"and start again (what pip said is in {self.log})."
            )
        errors = [line for line in lines if line.startswith("ERROR:") and "for help visit" not in line]
        problem = [*lines, *errors][-1].removeprefix("ERROR:").strip().rstrip(".") or "it ended without a word"
        return Refusal(f"pip could not install what fathom needs: {problem}; see {self.log}, mend it and start again.")


def _read_lines(stream: TextIO, lines: list[str], log: TextIO) -> None:
    for line in stream:
        lines.append(line)
        log.write(line)
        log.flush()


def what_pip_does(lines: list[str]) -> str:
    """What pip last said about its progress, in a few words; empty where it has not said anything."""
    for line in reversed(lines):
        match line.split():
            case ["Installing", "collected", "packages:", *names]:
                return f"unpacking {len(names)} packages"
            case ["Downloading", file, *size]:
                name, version, *_ = [*file.rpartition("/")[2].split("-"), ""]
                return " ".join(["fetching", name, version, *size])
            case ["Collecting" | "Processing", package, *_]:
                return f"looking up {re.split('[-<>=!~]', package.rpartition('/')[2])[0]}"
    return ""


@dataclass(frozen=True)
class Torch:
    """A build of torch to ask pip for; the sizes are those of everything that is installed with it."""

    why: str
    fetch_gb: float
    disk_gb: float
    requirement: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


def choose_torch(version: str, gpu: bool, offers: Callable[..., bool], platform: str = sys.platform) -> Torch:
    """The build for this machine.

    `offers(requirement, *options)` says whether pip finds it. A local version (+cpu) goes before the plain one in
    pip's eyes, so the plain one has to be asked for where a GPU waits.
    """
    cpu, normal = f"torch=={version}+cpu", f"torch=={version},!={version}+cpu"
    if platform != "linux":
        return Torch("the build for this system", 0.3, 1.5)
    if gpu:
        if offers(normal):
            return Torch("built for NVIDIA GPUs", 3, 9, (normal,))
        return Torch("not the build for NVIDIA GPUs, which pip does not find", 3, 9)
    if offers(cpu):
        return Torch("the CPU build, no NVIDIA GPU is here", 0.3, 1.5, (cpu,))
    from_pytorch = ("--extra-index-url", CPU_INDEX)
    if offers(cpu, *from_pytorch, "--retries", "1", "--timeout", "15"):
        return Torch("the CPU build, no NVIDIA GPU is here", 0.3, 1.5, (cpu,), from_pytorch)
    return Torch("the build with GPU libraries, since pip does not find the CPU build", 3, 9)


def disk_full(folder: Path) -> str:
    return f"the disk of {folder} is full; free some room and start again."


def sentence_of(error: OSError, root: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return disk_full(root)
    where = error.filename or root
    return f"{where} cannot be written ({error.strerror}); put the folder of fathom where you may write, or mend that."


def check_disk(folder: Path, needed_gb: float) -> None:
    free_gb = shutil.disk_usage(folder).free / 1e9
    if free_gb < needed_gb:
        raise Refusal(
            f"installing takes {needed_gb} GB and the disk of {folder} has {free_gb:.1f} GB left; "
            "free some room, or move this folder to another disk, and start again."
        )


@contextlib.contextmanager
def only_one(root: Path, screen: Screen) -> Iterator[int]:
    """Hold the lock of this folder; waits, saying so, while another process installs here."""
    lock = os.open(root / ".venv.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        begun, told = time.monotonic(), False
        while not _locked(lock):
            if not told:
                screen.say("another fathom is installing here; waiting for it.")
            told = True
            screen.now(f"waiting · {time.monotonic() - begun:.0f} s")
            time.sleep(SPIN_EVERY_S)
        yield lock
    finally:
        os.close(lock)


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: go on as if alone
        pass
    return True


def install(root: Path, wanted: str, extra: str, screen: Screen) -> None:
    """Make .venv what the project asks for. `wanted` is the launcher's line for its state, `extra` is "" or "test"."""
    environment = Environment(root)
    with only_one(root, screen) as lock:
        if environment.is_installed(wanted, extra):
            return
        gpu = wanted.endswith(" gpu") or environment.for_gpu()
        wanted = wanted.removesuffix(" gpu") + " gpu" * gpu
        constraints = root / "constraints.txt"
        project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
        asked = {"": project["dependencies"]}
        if extra:
            asked[extra] = asked[""] + project["optional-dependencies"][extra]
        texts = {name: "\n".join([*packages, constraints.read_text(), gpu * "gpu"]) for name, packages in asked.items()}
        if not all(environment.has_packages(text, name) for name, text in texts.items()):
            fill(environment, asked[extra], gpu, Worker(environment, screen, lock), screen)
        for name, text in texts.items():
            environment.record(name, wanted, text)


def fill(environment: Environment, packages: list[str], gpu: bool, worker: Worker, screen: Screen) -> None:
    """Install `packages` and what they need, at the pinned versions, in a .venv that is made where there is none."""
    begun = time.monotonic()
    root = environment.root
    constraints = root / "constraints.txt"
    pip = [str(environment.python), *PIP_INSTALL]
    fresh = not environment.works()
    if fresh:
        make_venv(environment, worker, screen)

    def offers(requirement: str, *options: str) -> bool:
        status, lines = worker.run(
            [*pip, "--dry-run", "--no-deps", *options, requirement], "looking for the right build of torch"
        )
        if status and "(from versions: none)" in "".join(lines) and NO_NETWORK.search("".join(lines)):
            raise worker.refusal(lines)
        return not status

    pins = dict(line.split("==") for line in constraints.read_text().splitlines() if "==" in line)
    torch = choose_torch(pins["torch"], gpu, offers)
    if fresh:
        check_disk(root, torch.disk_gb)
        size = f"fetching about {torch.fetch_gb} GB"
    else:
        size = f"fetching what .venv lacks, at most about {torch.fetch_gb} GB,"
    screen.say(f"{size} with pip; torch {pins['torch']} is {torch.why}.")
    command = [*pip, "--progress-bar", "off", *torch.options, "-c", str(constraints), *packages, *torch.requirement]
    take_back = environment.begin()
    status, lines = worker.run(command, "asking pip")
    if status:
        if not any(line.startswith("Installing collected") for line in lines):
            take_back()
        raise worker.refusal(lines)
    environment.see_sources()
    if fresh:  # so that the first run need not wait for it; where it fails, that run tries again, or does without
        worker.run([str(environment.python), "-P", "-m", "fathom.kernels.build"], "compiling for this processor")
    screen.say(f"installed in {time.monotonic() - begun:.0f} s.")


def make_venv(environment: Environment, worker: Worker, screen: Screen) -> None:
    check_disk(environment.root, 1.5)
    version = ".".join(str(part) for part in sys.version_info[:3])
    broken = environment.empty()
    why = "the last installation was cut short, or its Python is gone" if broken else "the first start here"
    screen.say(f"{why}: making .venv with Python {version}.")
    # The real path: where that Python goes away, .venv is seen to be broken instead of running another version.
    command = [os.path.realpath(sys.executable), "-I", "-m", "venv", "--prompt", "fathom", str(environment.folder)]
    status, lines = worker.run(command, "making .venv")
    if status:
        raise worker.refusal(lines)


def main(root: str, wanted: str, extra: str, *command: str) -> NoReturn:
    """Install, then become `command`."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    screen = Screen(sys.stderr)
    try:
        install(Path(root), wanted, extra, screen)
    except Refusal as refusal:
        screen.say(str(refusal))
        sys.exit(2)
    except OSError as error:
        screen.say(sentence_of(error, Path(root)))
        sys.exit(2)
    except KeyboardInterrupt:
        screen.say("stopped; the next start installs anew.")
        sys.exit(130)
    os.execv(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
