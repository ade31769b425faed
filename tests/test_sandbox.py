"""What a program gets in the sandbox, what its end is called, and what happens where the sandbox cannot be had."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sandbox_attacks import ATTACKS, CALLS, Attack
from sandbox_world import World

from fathom.errors import FathomError
from fathom.generate import sandbox
from fathom.generate.sandbox import Limits, available, mechanism, run_python, seccomp, trial
from fathom.generate.sandbox.mechanism import MECHANISMS, Mechanism, missing

SOURCE = Path(sandbox.__file__).parents[3]
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


@pytest.fixture
def works() -> None:
    if available().mechanism is None:
        pytest.skip(f"no sandbox here: {available().reason}")


@pytest.fixture
def weakest() -> Mechanism:
    """Landlock and the filter, without namespaces."""
    if why := missing(MECHANISMS[2]) or trial.held(MECHANISMS[2]):
        pytest.skip(why)
    return MECHANISMS[2]


@pytest.mark.parametrize(
    ("program", "why", "stdout", "stderr"),
    [
        ("print('here')", "passed", "here\n", ""),
        ("print(input() + '!')", "passed", "given!\n", ""),
        ("print('é→😀')", "passed", "é→😀\n", ""),
        ("import os; os.write(1, b'\\xff')", "passed", "\ufffd", ""),
        ("assert 1 == 2, 'so it is not'", "failed", "", "AssertionError: so it is not"),
        ("def f(:", "failed", "", "SyntaxError"),
        ("x = '\\ud800'; print(x)", "failed", "", "UnicodeEncodeError"),
        ("import sys; sys.exit(3)", "failed", "", ""),
        ("import sys; print('all'); sys.exit(0)", "exited", "all\n", ""),
        ("raise KeyboardInterrupt", "failed", "", "KeyboardInterrupt"),
        ("import atexit; atexit.register(print, 'at the end')", "passed", "at the end\n", ""),
        ("x = [0] * 10**9", "memory", "", "MemoryError"),
        ("import os; os.abort()", "crashed", "", ""),
        ("", "passed", "", ""),
    ],
)
def test_what_becomes_of_a_program(works: None, program: str, why: str, stdout: str, stderr: str) -> None:
    outcome = run_python(program, stdin="given\n")
    assert (outcome.why, outcome.ok, outcome.stdout) == (why, why == "passed", stdout), outcome.stderr
    assert stderr in outcome.stderr if stderr else not outcome.stderr or why == "crashed"


def test_an_error_reads_as_the_interpreter_would_print_it(works: None) -> None:
    program = "def divide(x):\n    return 1 / x\n\ndivide(0)\n"
    lines = run_python(program).stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1:4] == ['  File "program.py", line 4, in <module>', "    divide(0)", lines[3]]
    assert "    return 1 / x" in lines and "inside.py" not in "\n".join(lines)
    assert lines[-1] == "ZeroDivisionError: division by zero"


def test_what_programs_need_is_there(works: None) -> None:
    """The standard library, a scratch folder, modules that know `__main__`, coroutines; the same order of sets."""
    program = """
import asyncio, dataclasses, decimal, hashlib, itertools, json, os, pickle, random, re, sqlite3, tempfile, typing

@dataclasses.dataclass
class Point:
    x: "int"

assert typing.get_type_hints(Point) == {"x": int} and pickle.loads(pickle.dumps(Point(3))) == Point(3)
assert __name__ == "__main__" and hashlib.sha256(b"").hexdigest().startswith("e3b0")

async def later(x):
    await asyncio.sleep(0.001)
    return x

async def main():
    return await asyncio.gather(*map(later, range(3)))

assert asyncio.run(main()) == [0, 1, 2]
with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "kept")
    with open(path, "w") as file:
        file.write("here")
    os.rename(path, "moved")
assert open("moved").read() == "here" and sqlite3.connect("base").execute("select 1").fetchone() == (1,)
assert os.path.expanduser("~") == os.getcwd()
print(sorted(os.environ), set("abcdef"))
"""
    first, second = run_python(program), run_python(program)
    assert first.ok, first.stderr
    assert first.stdout == second.stdout


def test_limits_are_as_asked_for(works: None) -> None:
    loop = run_python("while True: pass", Limits(seconds=0.3))
    assert loop.why == "timeout" and 0.3 <= loop.seconds < 3
    assert run_python("print(len(bytearray(2**28)))", Limits(memory=2**30)).ok
    written = run_python("print('x' * 3000)", Limits(output=1000))
    assert written.why == "output" and written.stdout == "x" * 1000
    assert run_python("open('f', 'wb').write(bytes(2**21))", Limits(disk=2**20)).why in ("failed", "disk")
    assert run_python("open('f', 'wb').write(bytes(2**21))", Limits(disk=2**22)).ok


def test_many_at_once_from_a_pool(works: None) -> None:
    programs = [f"print({i} * 2)" if i % 3 else "while True: pass" for i in range(24)]
    with ThreadPoolExecutor(12) as pool:
        outcomes = list(pool.map(lambda program: run_python(program, Limits(seconds=1.5)), programs))
    for i, outcome in enumerate(outcomes):
        assert (outcome.why, outcome.stdout) == (("passed", f"{i * 2}\n") if i % 3 else ("timeout", ""))


def test_nothing_is_left_open(works: None) -> None:
    run_python("1")
    before = sorted(os.listdir("/proc/self/fd"))
    for program in ("1", "while True: pass", "1 / 0"):
        run_python(program, Limits(seconds=0.2))
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("how", MECHANISMS, ids=lambda mechanism: mechanism.name)
def test_it_dies_with_its_caller(how: Mechanism, tmp_path: Path) -> None:
    if why := missing(how) or trial.held(how):
        pytest.skip(why)
    program = f"""
import tempfile
from fathom.generate.sandbox import running, mechanism
tempfile.tempdir = {str(tmp_path)!r}
found = next(m for m in mechanism.MECHANISMS if m.name == {how.name!r})
running.execute(found, "import time; time.sleep(600)", running.Limits(seconds=600), "")
"""
    caller = subprocess.Popen([sys.executable, "-c", program])
    try:
        assert _soon(lambda: _processes(tmp_path))
    finally:
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    assert _soon(lambda: not _processes(tmp_path))


def _processes(folder: Path) -> list[str]:
    """Those that were started for a scratch folder in here, and live."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{folder}/".encode() in (process / "cmdline").read_bytes():
                found.append(process.name)
        except OSError:
            continue
    return found


def _soon(is_so: object, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not is_so():  # type: ignore[operator]
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


# Where it cannot be had


def test_nothing_is_run_where_nothing_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sandbox, "missing", lambda mechanism: f"no {mechanism.name}")
    available.cache_clear()
    try:
        with pytest.raises(FathomError) as refusal:
            run_python(f"open({str(tmp_path / 'file')!r}, 'w')")
    finally:
        available.cache_clear()
    assert "bubblewrap: no bubblewrap, namespaces: no namespaces, landlock: no landlock" in str(refusal.value)
    assert "install bubblewrap" in str(refusal.value)
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(("platform", "machine"), [("darwin", "arm64"), ("linux", "riscv64")])
def test_other_systems_are_refused_in_one_sentence(
    platform: str, machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mechanism.sys, "platform", platform)
    monkeypatch.setattr(mechanism.platform, "machine", lambda: machine)
    available.cache_clear()
    try:
        found = available()
    finally:
        available.cache_clear()
    assert found.mechanism is None and "x86-64 or ARM64" in found.remedy
    assert found.reason.count("processor" if platform == "linux" else "only Linux") == 1


REPORT = """
import json
from fathom.generate.sandbox import available, mechanism, run_python, trial
from fathom.errors import FathomError
try:
    said = run_python("print(6 * 7)").stdout
except FathomError as error:
    said = str(error)
failed = {m.name: mechanism.missing(m) or trial.held(m) for m in mechanism.MECHANISMS}
print(json.dumps([said, failed, available().mechanism and available().mechanism.name]))
"""


def report(*around: str, python: str = sys.executable, source: Path = SOURCE) -> tuple[str, dict[str, str], str | None]:
    """What another process says of its sandbox, started with these words before the interpreter's."""
    command = [*around, python, "-B", "-c", REPORT]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd="/", env={**os.environ, "PYTHONPATH": str(source)}
    )
    if done.returncode:
        pytest.skip(f"{around[0]} does not work here: {done.stderr.strip()[-200:]}")
    return tuple(json.loads(done.stdout))


def test_where_user_namespaces_are_forbidden(weakest: Mechanism) -> None:
    """As in most containers: Landlock and the filter are enough."""
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    said, failed, name = report("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    assert (said, name) == ("42\n", "landlock")
    assert "unshare" in failed["namespaces"]


def test_where_there_is_neither(works: None) -> None:
    """No namespaces and no Landlock: it says what it found of each, and what to do."""
    without = """
import os, struct, sys
from fathom.generate.sandbox import inside
calls = {"x86_64": (272, 435, 56, 444), "aarch64": (97, 435, 220, 444)}[os.uname().machine]
deny = [line for call in calls[:1] + calls[3:] for line in ((0x15, 0, 1, call), (0x06, 0, 0, 0x50000 | 38))]
code = [(0x20, 0, 0, 0), *deny, (0x06, 0, 0, 0x7FFF0000)]
inside._call("prctl", 38, 1, 0, 0, 0)
inside.install_filter(b"".join(struct.pack("=HBBI", *line) for line in code))
os.environ["PATH"] = "/nowhere"
os.execv(sys.argv[1], sys.argv[1:])
"""
    said, failed, name = report(sys.executable, "-c", without)
    assert name is None
    assert "unshare" in failed["namespaces"] and "Landlock" in failed["landlock"]
    assert said.startswith("code that a model wrote is not run on this machine: bubblewrap: not installed, namespaces:")
    assert "install bubblewrap" in said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_without_privileges(works: None) -> None:
    """As an ordinary user, with an interpreter and a copy of the sources that such a user can read."""
    python = next((p for p in ("/usr/bin/python3", "/usr/local/bin/python3") if _is_recent(p)), None)
    if python is None:
        pytest.skip("no Python 3.11 that another user could start")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        for part in ("__init__.py", "errors.py", "generate/__init__.py"):
            (Path(folder) / "fathom" / part).parent.mkdir(exist_ok=True)
            shutil.copy(SOURCE / "fathom" / part, Path(folder) / "fathom" / part)
        shutil.copytree(SOURCE / "fathom/generate/sandbox", Path(folder) / "fathom/generate/sandbox")
        become = (
            "setpriv",
            "--reuid",
            "65534",
            "--regid",
            "65534",
            "--clear-groups",
            "--bounding-set=-all",
            "--inh-caps=-all",
        )
        said, failed, name = report(*become, python=python, source=Path(folder))
    assert said == "42\n" and name
    assert failed["landlock"] == trial.held(MECHANISMS[2])


def _is_recent(python: str) -> bool:
    check = "import sys; sys.exit(sys.version_info < (3, 11))"
    return Path(python).exists() and subprocess.run([python, "-c", check], capture_output=True).returncode == 0


# Each wall is needed: without it, the tests see what gets through


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path) as world:
        yield world


def weakened(monkeypatch: pytest.MonkeyPatch, folder: Path, *changes: tuple[str, str]) -> Mechanism:
    """The weakest mechanism, with other words in what shuts it in."""
    text = mechanism.INSIDE.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "inside.py").write_text(text)
    monkeypatch.setattr(mechanism, "INSIDE", folder / "inside.py")
    return MECHANISMS[2]


NO_FILTER = ('install_filter(bytes.fromhex(plan["filter"]))', "pass")
NO_LANDLOCK = ('landlock(plan["readable"], scratch, plan["landlock"])', "pass")
LANDLOCK_3 = ("    within = (", "    version = 3\n    within = (")  # Linux 6.2 to 6.6: files only


def attack_named(name: str) -> Attack:
    return next(attack for attack in ATTACKS if attack.name == name)


OUTWARD = [
    ("a TCP connection", "it was heard"),
    ("unix sockets, by path and abstract", "it was heard"),
    ("killing its parent", "the caller got a signal"),
    ("signals sent by the kernel in its name", "the caller got a signal"),
    ("changing, moving and removing what is outside", "changed: files"),
    ("limits, priority and processors of the caller", "changed: limits"),
]


@pytest.mark.parametrize(("name", "harm"), OUTWARD)
def test_an_older_landlock_needs_the_filter(
    weakest: Mechanism, name: str, harm: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack = attack_named(name)
    with monkeypatch.context() as patched:
        without = weakened(patched, tmp_path, LANDLOCK_3, NO_FILTER)
        assert harm in world.attacked(attack, without)[1]
    world.begin()
    assert world.attacked(attack, weakened(monkeypatch, tmp_path, LANDLOCK_3))[1] == []


@pytest.mark.parametrize(
    ("name", "harm"),
    [
        ("the home folder", "the secret came out"),
        ("roundabout ways to a file: /proc, .., descriptors of folders", "the secret came out"),
    ],
)
def test_the_filter_needs_landlock(
    weakest: Mechanism, name: str, harm: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = weakened(monkeypatch, tmp_path, NO_LANDLOCK)
    assert harm in world.attacked(attack_named(name), without)[1]


@pytest.mark.parametrize(
    ("change", "door"), [(NO_LANDLOCK, "it can read outside, write outside"), (NO_FILTER, "start a process")]
)
def test_a_door_left_open_is_found_by_the_trial(
    weakest: Mechanism, change: tuple[str, str], door: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert door in trial.held(weakened(monkeypatch, tmp_path, change))


def test_the_numbers_of_system_calls_are_those_of_the_kernel() -> None:
    if not HEADER.exists():
        pytest.skip("the kernel's headers are not installed")
    numbers = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text()))
    rows = [call.split() for call in [*seccomp._ALLOWED.split(","), *seccomp._ALLOWED_WITH]]
    assert {name: number for name, number, _ in rows} == {name: numbers[name] for name, _, _ in rows}


def test_nothing_dangerous_is_allowed() -> None:
    for column in (1, 2):
        allowed = {row.split()[column] for row in seccomp._ALLOWED.split(",")}
        dangerous = {row.split()[0]: row.split()[column] for row in CALLS.split(",")}
        overlap = {name for name, number in dangerous.items() if number in allowed - {"-"}}
        assert overlap <= {"open", "openat"}  # Landlock is for these
