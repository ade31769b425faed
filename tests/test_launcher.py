"""The launcher in a small project of its own, whose packages are wheels made here: real pip, no network, no torch."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from fathom import install

ROOT = Path(__file__).resolve().parents[1]
NVIDIA = os.path.exists("/dev/nvidiactl")
cpu_only = pytest.mark.skipif(NVIDIA or sys.platform != "linux", reason="tells what happens on Linux without a GPU")

PYPROJECT = """
[project]
name = "fathom"
dependencies = ["torch>=0.5", "greeting"]
[project.optional-dependencies]
test = ["pytest"]
"""
CONSTRAINTS = "greeting==1.0\npytest==9.0\ntorch==1.0\n"
PROGRAM = """
import json, os, signal, sys, time
import greeting, torch
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
if sys.argv[1:2] == ["sleep"]:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(9))
    print("ready", flush=True)
    time.sleep(60)
print(json.dumps({"arguments": sys.argv[1:], "folder": os.getcwd(), "greeting": greeting.VERSION,
                  "torch": torch.VERSION, "typed": os.environ["FATHOM_COMMAND"]}))
"""
PYTEST = """
import os, sys
print(os.getcwd(), *sys.argv[1:])
sys.exit(5)
"""


def make_wheel(folder: Path, name: str, version: str, **files: str) -> None:
    info = f"{name}-{version}.dist-info"
    contents = {f"{name}/__init__.py": f"VERSION = {version!r}\n"}
    contents |= {f"{name}/{file}.py": text for file, text in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in contents.items():
            wheel.writestr(path, text)


class Machine:
    """A PATH with a few tools, wheels, and an empty home, in which launchers are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tools, wheels = folder / "tools", folder / "wheels"
        for new in (self.tools, wheels, folder / "home"):
            new.mkdir()
        for tool in ("cat", "cksum", "dirname", "readlink"):
            (self.tools / tool).symlink_to(str(shutil.which(tool)))
        (self.tools / "python3").symlink_to(os.path.realpath(sys.executable))
        make_wheel(wheels, "torch", "1.0")
        make_wheel(wheels, "torch", "1.0+cpu")
        make_wheel(wheels, "greeting", "1.0")
        make_wheel(wheels, "greeting", "2.0")
        make_wheel(wheels, "pytest", "9.0", __main__=PYTEST)
        self.environment = {
            "PATH": str(self.tools),
            "HOME": str(folder / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_NO_CACHE_DIR": "1",
            "PIP_FIND_LINKS": str(wheels),
        }

    def copy(self, folder: Path) -> Machine:
        """The same machine, with tools that may be changed."""
        machine = object.__new__(Machine)
        machine.folder = folder
        machine.tools = folder / "tools"
        shutil.copytree(self.tools, machine.tools, symlinks=True)
        machine.environment = self.environment | {"PATH": str(machine.tools)}
        return machine

    def start(self, launcher: Path, *arguments: str, **more: object) -> subprocess.Popen[str]:
        options: dict = {"cwd": self.folder, "env": self.environment, "stdin": subprocess.DEVNULL} | more
        pipe = subprocess.PIPE
        return subprocess.Popen([str(launcher), *arguments], stdout=pipe, stderr=pipe, text=True, **options)

    def run(self, launcher: Path, *arguments: str, **more: object) -> SimpleNamespace:
        program = self.start(launcher, *arguments, **more)
        out, err = program.communicate(timeout=120)
        return SimpleNamespace(status=program.returncode, out=out, err=err)


def make_project(folder: Path) -> Path:
    """A project with our launcher and installer and a program of its own; returns the launcher."""
    package = folder / "src" / "fathom"
    package.mkdir(parents=True)
    shutil.copy(ROOT / "fathom", folder)
    shutil.copy(ROOT / "src" / "fathom" / "install.py", package)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PROGRAM)
    (package / "kernels").mkdir()
    (package / "kernels" / "build.py").write_text("print('compiled here')\nraise SystemExit(1)\n")
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "constraints.txt").write_text(CONSTRAINTS)
    return folder / "fathom"


def refused(result: SimpleNamespace) -> str:
    """The one sentence of a refusal."""
    assert result.status == 2
    assert result.out == ""
    *_, sentence = result.err.splitlines()
    assert sentence.startswith("fathom: ") and sentence.endswith(".")
    assert "Traceback" not in result.err
    return sentence


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Two starts at once in a fresh project, in a folder with an awkward name: installed once for all tests here."""
    machine = Machine(tmp_path_factory.mktemp("machine"))
    launcher = make_project(machine.folder / "it's a folder, with blanks")
    programs = [machine.start(launcher, "hello", str(number)) for number in range(2)]
    results = []
    for program in programs:
        out, err = program.communicate(timeout=120)
        results.append(SimpleNamespace(status=program.returncode, out=out, err=err))
    return SimpleNamespace(machine=machine, launcher=launcher, results=results)


@pytest.fixture
def machine(first: SimpleNamespace, tmp_path: Path) -> Machine:
    return first.machine.copy(tmp_path)


@pytest.fixture
def launcher(first: SimpleNamespace, tmp_path: Path) -> Path:
    """An installed project that a test may spoil: the first one, moved to another place."""
    shutil.copytree(first.launcher.parent, tmp_path / "project", symlinks=True)
    return tmp_path / "project" / "fathom"


def ask_for(launcher: Path, version: str) -> None:
    constraints = launcher.parent / "constraints.txt"
    constraints.write_text(CONSTRAINTS.replace("greeting==1.0", f"greeting=={version}"))


# The first start


def test_two_first_starts_at_once_install_once_and_both_run(first: SimpleNamespace) -> None:
    for number, result in enumerate(first.results):
        assert result.status == 0, result.err
        assert json.loads(result.out)["arguments"] == ["hello", str(number)]
    said = "".join(result.err for result in first.results)
    assert said.count("making .venv with Python") == 1
    assert said.count("installed in") == 1
    assert "another fathom is installing here" in said


def test_first_start_says_the_size_before_it_fetches(first: SimpleNamespace) -> None:
    said = "".join(result.err for result in first.results)
    assert re.search(r"fetching about [\d.]+ GB with pip; torch 1\.0 is ", said)


def test_the_first_start_compiles_once_and_does_without_where_that_fails(first: SimpleNamespace) -> None:
    log = (first.launcher.parent / ".venv.log").read_text()
    assert log.count("compiled here") == 1 and "fathom.kernels.build" in log


@cpu_only
def test_takes_the_cpu_build_where_no_gpu_is(first: SimpleNamespace) -> None:
    assert json.loads(first.results[0].out)["torch"] == "1.0+cpu"


@cpu_only
def test_takes_the_normal_build_when_a_gpu_turns_up_and_keeps_it(machine: Machine, launcher: Path) -> None:
    (machine.tools / "nvidia-smi").symlink_to(machine.tools / "cat")
    with_gpu = machine.run(launcher)
    assert json.loads(with_gpu.out)["torch"] == "1.0"
    assert "built for NVIDIA GPUs" in with_gpu.err
    (machine.tools / "nvidia-smi").unlink()
    without = machine.run(launcher)
    assert (json.loads(without.out)["torch"], without.err) == ("1.0", "")


def test_what_was_cut_short_is_made_anew(machine: Machine, tmp_path: Path) -> None:
    launcher = make_project(tmp_path / "fresh")
    program = machine.start(launcher, start_new_session=True)
    packages = launcher.parent / ".venv" / "lib"
    deadline = time.monotonic() + 60
    while not packages.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate()
    torn = next(packages.glob("python3*/site-packages")) / "greeting"
    torn.mkdir()  # half of a package
    result = machine.run(launcher)
    assert result.status == 0, result.err
    assert json.loads(result.out)["greeting"] == "1.0"
    assert "cut short" in result.err


# Every later start


def test_installed_it_says_nothing_and_needs_no_other_python(machine: Machine, launcher: Path) -> None:
    (machine.tools / "python3").unlink()
    result = machine.run(launcher, "hello")
    assert (result.status, result.err) == (0, "")


def test_overhead_is_below_50_ms(machine: Machine, launcher: Path) -> None:
    python, true = launcher.parent / ".venv" / "bin" / "python", str(shutil.which("true"))
    python.unlink()
    python.symlink_to(true)

    def seconds(program: Path) -> float:
        begun = time.perf_counter()
        subprocess.run([str(program)], env=machine.environment, check=True)
        return time.perf_counter() - begun

    pairs = [(seconds(launcher), seconds(Path(true))) for _ in range(15)]
    assert statistics.median(ours - bare for ours, bare in pairs) < 0.050


@pytest.mark.parametrize("link", ["../project/fathom", "{project}/fathom"], ids=["relative", "absolute"])
def test_runs_through_links_from_any_folder(machine: Machine, launcher: Path, tmp_path: Path, link: str) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "inner").symlink_to(link.format(project=launcher.parent))
    (folder / "outer").symlink_to("inner")
    (folder / "json.py").write_text("raise ImportError('the user has a json.py of his own')")
    result = machine.run(folder / "outer", "a b", "", "*", cwd=folder)
    assert result.status == 0, result.err
    answer = json.loads(result.out)
    assert answer["arguments"] == ["a b", "", "*"]
    assert answer["folder"] == str(folder)


def test_the_program_is_told_how_it_was_started(machine: Machine, launcher: Path) -> None:
    for started, folder in (("./fathom", launcher.parent), (str(launcher), machine.folder)):
        command = [started, "status"]
        said = subprocess.run(command, cwd=folder, env=machine.environment, capture_output=True, check=True)
        assert json.loads(said.stdout)["typed"] == started


def test_exit_status_passes_through(machine: Machine, launcher: Path) -> None:
    assert machine.run(launcher, "exit", "7").status == 7


def test_signals_reach_the_program(machine: Machine, launcher: Path) -> None:
    program = machine.start(launcher, "sleep")
    assert program.stdout and program.stdout.readline() == "ready\n"
    program.terminate()
    program.communicate(timeout=10)
    assert program.returncode == 9


# When the project asks for something else


def test_changed_constraints_are_installed_once(machine: Machine, launcher: Path) -> None:
    ask_for(launcher, "2.0")
    changed = machine.run(launcher)
    assert json.loads(changed.out)["greeting"] == "2.0"
    assert "installed in" in changed.err and "making .venv" not in changed.err
    assert machine.run(launcher).err == ""


def test_other_changes_of_pyproject_do_not_start_pip(machine: Machine, launcher: Path) -> None:
    with (launcher.parent / "pyproject.toml").open("a") as file:
        file.write("[tool.ruff]\nline-length = 120\n")
    (launcher.parent / ".venv.log").unlink()
    result = machine.run(launcher)
    assert (result.status, result.err) == (0, "")
    assert not (launcher.parent / ".venv.log").exists()


def test_failed_update_leaves_what_was_there(machine: Machine, launcher: Path) -> None:
    ask_for(launcher, "3.0")
    sentence = refused(machine.run(launcher))
    assert "greeting" in sentence and str(launcher.parent / ".venv.log") in sentence
    ask_for(launcher, "1.0")
    assert machine.run(launcher).err == ""


def test_test_command_brings_its_tools_and_runs_pytest(machine: Machine, launcher: Path) -> None:
    result = machine.run(launcher, "test", "-k", "one or two")
    assert result.status == 5, result.err  # pytest's own
    assert result.out.startswith(str(launcher.parent) + " ")
    assert result.out.endswith("-k one or two\n")
    assert "installed in" in result.err
    assert machine.run(launcher, "test").err == ""
    assert machine.run(launcher).err == ""


# When it cannot


def test_no_python(machine: Machine, tmp_path: Path) -> None:
    (machine.tools / "python3").unlink()
    result = machine.run(make_project(tmp_path / "fresh"))
    assert "no Python 3.11" in refused(result)
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("status, expected", [(1, "no Python 3.11"), (3, "python3.12-venv")], ids=["old", "no venv"])
def test_python_that_does_not_do(machine: Machine, tmp_path: Path, status: int, expected: str) -> None:
    python = machine.tools / "python3"
    python.unlink()
    python.write_text(f'#!/bin/sh\ncase "$*" in *ensurepip*) exit {status} ;; esac\necho 3.12\n')
    python.chmod(0o755)
    result = machine.run(make_project(tmp_path / "fresh"))
    assert expected in refused(result)
    assert result.err.count("\n") == 1


def test_no_network(machine: Machine, launcher: Path) -> None:
    ask_for(launcher, "2.0")
    settings = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "1"}
    environment = {k: v for k, v in machine.environment.items() if k not in ("PIP_NO_INDEX", "PIP_FIND_LINKS")}
    sentence = refused(machine.run(launcher, env=environment | settings))
    assert "could not reach its package index" in sentence
    ask_for(launcher, "1.0")
    assert machine.run(launcher).err == ""


def test_folder_that_cannot_be_written(machine: Machine, tmp_path: Path) -> None:
    launcher = make_project(tmp_path / "fresh")
    (launcher.parent / ".venv.lock").mkdir()  # root may write everywhere, so permissions would not do
    assert "cannot be written" in refused(machine.run(launcher))


def test_venv_of_somebody_else_is_not_touched(machine: Machine, tmp_path: Path) -> None:
    launcher = make_project(tmp_path / "fresh")
    theirs = launcher.parent / ".venv" / "precious"
    theirs.mkdir(parents=True)
    assert "was not made by this launcher" in refused(machine.run(launcher))
    assert theirs.exists()


def test_disk_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = make_project(tmp_path / "fresh")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0.4e9))
    with pytest.raises(install.Refusal, match=r"takes 1\.5 GB and the disk of .* has 0\.4 GB left"):
        install.install(launcher.parent, "wanted", "", install.Screen(io.StringIO()))
    assert not (launcher.parent / ".venv").exists()


def test_disk_that_fills_up(tmp_path: Path) -> None:
    worker = install.Worker(install.Environment(tmp_path), install.Screen(io.StringIO()), 0)
    lines = ["Installing collected packages: a\n", "ERROR: Could not install: [Errno 28] No space left on device\n"]
    assert str(worker.refusal(lines)) == f"the disk of {tmp_path} is full; free some room and start again."
    assert "is full" in install.sentence_of(OSError(28, "No space left on device"), tmp_path)


# Choices and words


@pytest.mark.parametrize(
    "gpu, found, requirement, options, fetch_gb",
    [
        (False, {"+cpu"}, ("torch==1.0+cpu",), (), 0.3),
        (False, {"+cpu index"}, ("torch==1.0+cpu",), ("--extra-index-url", install.CPU_INDEX), 0.3),
        (False, set(), (), (), 3),
        (True, {"+cpu", "normal"}, ("torch==1.0,!=1.0+cpu",), (), 3),
        (True, {"+cpu"}, (), (), 3),
    ],
)
def test_choice_of_torch(gpu: bool, found: set[str], requirement: tuple, options: tuple, fetch_gb: float) -> None:
    def offers(requirement: str, *options: str) -> bool:
        kind = "normal" if "!=" in requirement else "+cpu"
        return f"{kind} index" in found if install.CPU_INDEX in options else kind in found

    torch = install.choose_torch("1.0", gpu, offers, "linux")
    assert (torch.requirement, torch.options, torch.fetch_gb) == (requirement, options, fetch_gb)


def test_other_systems_have_one_build() -> None:
    torch = install.choose_torch("1.0", False, lambda *_: pytest.fail("asked pip"), "darwin")
    assert (torch.requirement, torch.options) == ((), ())


@pytest.mark.parametrize(
    "line, words",
    [
        ("Collecting huggingface_hub>=1.0 (from -c here)", "looking up huggingface_hub"),
        ("Processing /some/where/torch-2.13.0+cpu-cp311-cp311-linux.whl", "looking up torch"),
        ("  Downloading numpy-2.4.6-cp311-cp311-linux.whl (16.9 MB)", "fetching numpy 2.4.6 (16.9 MB)"),
        ("Installing collected packages: a, b, c", "unpacking 3 packages"),
        ("WARNING: nothing of interest", ""),
    ],
)
def test_words_for_what_pip_does(line: str, words: str) -> None:
    assert install.what_pip_does(["", line + "\n"]) == words


def test_says_something_every_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "SPEAK_EVERY_S", 0.3)
    screen = io.StringIO()
    environment = install.Environment(tmp_path)
    environment.folder.mkdir()
    with open(os.devnull) as lock:
        worker = install.Worker(environment, install.Screen(screen), lock.fileno())
        quiet = [sys.executable, "-c", "import time; time.sleep(1.5)"]
        assert worker.run(quiet, "waiting for a quiet program") == (0, [""])
    assert screen.getvalue().count("waiting for a quiet program · 0 MB in .venv · ") >= 2
