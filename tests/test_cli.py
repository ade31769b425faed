"""The command line as other tools rely on it: help, refusals in one sentence, one JSON object, exit codes."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fathom import __version__, arguments, cli

SRC = Path(cli.__file__).parents[1]


@pytest.fixture
def fathom(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process: (exit code, standard output, standard error)."""

    def run(*argv: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(list(argv))
        said = capsys.readouterr()
        return stop.value.code, said.out, said.err

    return run


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SRC)} | more


def command_class(name: str) -> Any:
    module, _, attribute = cli.COMMANDS[name][0].partition(":")
    return getattr(importlib.import_module(module), attribute)


every_command = pytest.mark.parametrize("name", cli.COMMANDS)


@every_command
def test_a_command_is_a_frozen_dataclass_that_runs_and_can_answer_in_json(name: str) -> None:
    config = command_class(name)
    assert dataclasses.is_dataclass(config)
    assert config.__dataclass_params__.frozen
    assert callable(config.run)
    fields = {field.name: field for field in dataclasses.fields(config)}
    assert fields["json"].default is False
    assert config.__doc__


@every_command
def test_every_argument_is_explained(name: str) -> None:
    config = command_class(name)
    rows = arguments.rows(config, name)
    assert len(rows) == len(dataclasses.fields(config))
    for row in rows:
        assert len(row.text) > 5, f"{row.word} of {name} has no help"
        assert "(default" not in row.text
        assert "None" not in row.text


def test_the_list_of_commands_fits_a_window_as_the_launcher_shows_it(
    fathom: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_COMMAND", "./fathom")
    code, out, _ = fathom("--help")
    assert code == 0
    assert [line for line in out.splitlines() if len(line) > 80] == []


@every_command
def test_help_of_every_command(fathom: Any, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = fathom(*name.split(), "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"fathom {name} ")
    assert all(len(line) <= 80 for line in out.splitlines())
    for row in arguments.rows(command_class(name), name):
        assert row.call in out
    assert (code, out, err) == fathom(*name.split(), "-h")


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_lists_every_command_in_a_window_of_80(fathom: Any, argv: list[str]) -> None:
    code, out, err = fathom(*argv)
    assert (code, err) == (0, "")
    for name in [*cli.COMMANDS, "test"]:
        assert f"  fathom {name} " in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_a_group_shows_its_commands(fathom: Any) -> None:
    code, out, err = fathom("data", "--help")
    assert (code, err) == (0, "")
    assert "fathom data pack" in out
    assert "pretrain" not in out


def test_version(fathom: Any) -> None:
    assert fathom("--version") == (0, f"fathom {__version__}\n", "")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["pln"], "there is no command 'pln'; did you mean `fathom plan`?"),
        (["tset"], "did you mean `fathom test`?"),
        (["test"], "run ./fathom test"),
        (["data"], "choose one of data add, data get"),
        (["data", "ad"], "did you mean `fathom data add`?"),
        (["tokenizer", "--json"], "there is no command"),
        ([""], "`fathom --help` lists the commands"),
        (["--depth"], "there is no command '--depth'"),
        (["plan", "--depht", "12"], "has no option --depht; did you mean --depth?"),
        (["plan", "--depht=12"], "has no option --depht; did you mean --depth?"),
        (["plan", "-depth", "12"], "has no option -depth; did you mean --depth?"),
        (["plan", "--zzz"], "has no option --zzz; `fathom plan --help` lists them"),
        (["pretrain", "--corpsu", "c"], "has no option --corpsu; did you mean --corpus?"),
        (["plan", "12"], "has no place for '12'"),
        (["plan", "--depth", "1", "2"], "has no place for '2'"),
        (["plan", "--depth", "abc"], "--depth cannot be 'abc'; it takes a whole number"),
        (["plan", "--vocab", "1.5"], "--vocab cannot be '1.5'; it takes a whole number"),
        (["plan", "--depth="], "--depth cannot be ''"),
        (["plan", "--depth", "1" + "0" * 5000], "--depth cannot be '1000"),
        (["plan", "--ratio", "x"], "--ratio cannot be 'x'; it takes a number"),
        (["plan", "--rules", "foo"], "--rules cannot be 'foo'; it takes auto or reference"),
        (["plan", "--rules", "refrence"], "did you mean reference?"),
        (["data", "get", "x", "--shards", "some"], "it takes a whole number or all"),
        (["report", "--run", "mine"], "NAME is missing, or stands behind an option; write it by itself"),
        (["plan", "--depth"], "--depth was given without a value; write --depth INT"),
        (["plan", "--depth", "--json"], "--depth was given without a value"),
        (["data", "add"], "`fathom data add` needs NAME (what to call the corpus)"),
        (["pretrain", "--corpus", "c"], "no tokenizer was given; say which with --tokenizer"),
        (["sft"], "`fathom sft` needs BASE"),
        (["sweep"], "`fathom sweep` needs RECIPE (TOML file with settings"),
        (["sft", "x"], "there is no run 'x'"),
        (["plan"], "no depth was given"),
    ],
)
def test_a_refusal_is_one_sentence_on_standard_error(fathom: Any, argv: list[str], words: str) -> None:
    code, out, err = fathom(*argv)
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("fathom: ")
    assert len(err) < 400
    sentence = err.removesuffix("\n")
    assert "\n" not in sentence
    assert sentence.endswith((".", "?"))
    assert ". " not in sentence


def test_a_refusal_is_the_same_in_a_window_of_any_width(fathom: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["pretrain", "--corpus", "c", "--tokenizer", "t", "--validation-rows", "best"]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = fathom(*argv)
    monkeypatch.delenv("COLUMNS")
    assert narrow == fathom(*argv)
    assert "did you mean best-fit?" in narrow[2]
    assert "COLUMNS" not in os.environ


def test_json_is_one_object_and_nothing_else(fathom: Any) -> None:
    code, out, err = fathom("plan", "--depth", "4", "--json")
    assert (code, err) == (0, "")
    assert isinstance(json.loads(out), dict)
    assert out.count("\n") == 1


def test_without_json_the_plan_goes_to_standard_error() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fathom", "plan", "--depth", "12"], env=environment(), capture_output=True, check=True
    )
    assert done.stdout == b""
    assert b"286,261,730" in done.stderr


@dataclasses.dataclass(frozen=True)
class Fake:
    """A command that does as it is told."""

    json: bool = False
    """Print one JSON object."""

    def run(self) -> object:
        return HAPPENS()


def _nothing() -> object:
    return {}


HAPPENS: Any = _nothing


@pytest.fixture
def happens(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes `fathom fake` do something."""

    def set_to(action: Any) -> None:
        monkeypatch.setitem(cli.COMMANDS, "fake", (f"{__name__}:Fake", "does as it is told"))
        monkeypatch.setattr(sys.modules[__name__], "HAPPENS", action)

    return set_to


def raises(error: BaseException) -> Any:
    def action() -> object:
        raise error

    return action


def test_what_is_no_number_is_null_in_json(fathom: Any, happens: Any) -> None:
    happens(lambda: {"bpb": float("nan"), "curve": [1.5, float("inf")], "pair": (float("-inf"), "NaN"), "name": "é"})
    code, out, _ = fathom("fake", "--json")
    assert code == 0
    assert out == '{"bpb": null, "curve": [1.5, null], "pair": [null, "NaN"], "name": "é"}\n'


def test_ctrl_c_ends_with_130(fathom: Any, happens: Any) -> None:
    happens(raises(KeyboardInterrupt()))
    assert fathom("fake") == (130, "", "fathom: stopped.\n")


def test_a_full_disk_and_a_closed_folder_are_sentences(fathom: Any, happens: Any) -> None:
    happens(raises(OSError(28, "No space left on device", "/x/y")))
    assert fathom("fake") == (2, "", "fathom: /x/y: no space left on device; see to that and start again.\n")
    happens(raises(PermissionError(13, "Permission denied", "/x/y")))
    assert fathom("fake") == (2, "", "fathom: /x/y: permission denied; see to that and start again.\n")


def test_a_home_that_cannot_be_written_says_how_to_choose_another(
    fathom: Any, happens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FATHOM_HOME", "/x")
    happens(raises(OSError(30, "Read-only file system", "/x/y")))
    assert fathom("fake") == (2, "", "fathom: /x/y: read-only file system; set FATHOM_HOME to a folder of yours.\n")
    happens(raises(OSError(30, "Read-only file system", "/xy")))
    assert "see to that" in fathom("fake")[2]


def test_our_own_faults_are_not_hidden(happens: Any) -> None:
    for error in (ValueError("a fault of ours"), FileNotFoundError(2, "No such file", "/x")):
        happens(raises(error))
        with pytest.raises(type(error)):
            cli.main(["fake"])


LIGHT = """
import sys
from fathom.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    code = stop.code
heavy = sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "tiktoken", "rustbpe", "huggingface_hub"})
print(code, *heavy, file=sys.stderr)
"""


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["plan", "--help"],
        ["plan", "--depth", "12", "--json"],
        ["data", "list", "--json"],
        ["data", "pack", "--lengths", "700,20", "--seq-len", "64", "--json"],
    ],
)
def test_light_commands_import_nothing_heavy(fathom_home: Path, argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *argv], env=environment(), capture_output=True, text=True)
    assert done.stderr == "0\n"
    assert done.stdout


def test_the_overview_needs_no_library_at_all() -> None:
    script = "import sys, fathom.cli; fathom.cli._overview([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"tyro", "rich", "numpy", "pyarrow", "torch"}


def test_a_reader_that_leaves_early_sees_no_traceback() -> None:
    code = "import sys; from fathom import cli; cli._dispatch = lambda argv: print('x' * 3_000_000); cli.main([])"
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    assert child.stdout.read(10) == b"x" * 10
    child.stdout.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0


def test_a_reader_that_has_left_before_a_short_answer_sees_no_traceback() -> None:
    code = "import sys; from fathom import cli; sys.stdin.read(1); cli.main(['--help'])"
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    child.stdout.close()
    child.stdin.write(b"x")
    child.stdin.close()
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait() == 0


def test_a_real_ctrl_c() -> None:
    code = (
        "import time; from fathom import cli; "
        "cli._dispatch = lambda argv: (print('on', flush=True), time.sleep(60)); cli.main([])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"on\n"
    child.send_signal(signal.SIGINT)
    out, err = child.communicate()
    assert (child.returncode, out, err) == (130, b"", b"fathom: stopped.\n")
