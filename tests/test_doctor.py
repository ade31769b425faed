"""`fathom doctor`: every probe answers on any machine, no failure is a traceback, and bug reports name nobody."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fathom import cli, hardware, screen
from fathom.generate.sandbox import Availability
from fathom.generate.sandbox.mechanism import MECHANISMS
from fathom.home import run_dir
from fathom.record import Record
from fathom.report import doctor, machine, probes, stock
from fathom.report.probes import Line, look

PROBES = doctor.QUICK + doctor.WITH_TORCH + doctor.AROUND


def lines(probe: Any) -> list[Line]:
    return list(probe())


def only(found: list[Line], topic: str) -> Line:
    (line,) = [line for line in found if line.topic == topic]
    return line


@pytest.mark.parametrize(
    ("topic", "probe"), PROBES, ids=[f"{probe.__module__}.{probe.__name__}" for _, probe in PROBES]
)
def test_every_probe_answers_here(fathom_home: Path, topic: str, probe: Any) -> None:
    for line in look(topic, probe):
        assert "could not be looked at" not in line.found
        assert line.found and line.grade in doctor.GRADES
        if line.grade in ("lack", "broken"):
            assert line.consequence and line.fix, "what is lacking has a consequence and a fix"


def test_a_probe_that_fails_is_a_line_after_what_it_found() -> None:
    def breaks() -> Iterator[Line]:
        yield Line("x", "good", "first")
        raise RuntimeError("CUDA driver version is insufficient\nand more")

    first, second = look("x", breaks)
    assert first.found == "first"
    assert second.grade == "broken" and "CUDA driver version is insufficient" in second.found
    assert "more" not in second.found


def asked(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[Any, Any, str]:
    with pytest.raises(SystemExit) as stop:
        cli.main(["doctor", *argv])
    said = capsys.readouterr()
    return stop.value.code, json.loads(said.out) if said.out else None, said.err


def test_json_is_one_object(fathom_home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found, err = asked(capsys, "--json")
    assert (code, err) == (0, "")
    topics = {line["topic"] for line in found["lines"]}
    assert {"python", "packages", "torch", "CPU", "attention", "memory", "home", "disk", "runs", "network"} <= topics
    assert sum(found["counts"].values()) == len(found["lines"])
    assert not fathom_home.exists(), "looking makes nothing"


def test_what_a_person_reads(
    fathom_home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    code, found, err = asked(capsys)
    assert (code, found) == (0, None)
    assert "OMP_NUM_THREADS=many is no number of threads" in err and "→ unset it" in err
    assert "to mend" in err.splitlines()[-1]


def test_bug_reports_name_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home" / "adalovelace"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USER", "adalovelace")
    monkeypatch.setenv("LOGNAME", "adalovelace")
    monkeypatch.setenv("FATHOM_HOME", str(home / "fathom"))
    monkeypatch.setenv("HF_HOME", "/data/adalovelace/hub")
    monkeypatch.setenv("HF_TOKEN", "hf_secretsecret")
    monkeypatch.setenv("HTTPS_PROXY", "http://adalovelace:pass-word@proxy.example:3128")
    _, found, _ = asked(capsys, "--json")
    text = json.dumps(found)
    assert "adalovelace" not in text and "secret" not in text and "pass-word" not in text
    assert "~/fathom" in text and "/data/USER/hub" in text and "***@proxy.example:3128" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("http://proxy:3128", "http://proxy:3128"),
        ("http://a:b@proxy:3128/x?key=b", "http://***@proxy:3128/x"),
        ("a:b@proxy", "(set, not shown)"),
        ("http://a:b@[broken", "(set, not shown)"),
        ("http://a:b@host:port", "(set, not shown)"),
        ("localhost,.example", "localhost,.example"),
    ],
)
def test_secrets_in_addresses(value: str, shown: str) -> None:
    assert probes.without_secret(value) == shown


def test_only_whole_names_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/al")
    monkeypatch.setenv("LOGNAME", "al")
    hide = doctor.hiding()
    assert hide("/home/al/x /home/alice algorithm al /data/al/y") == "~/x /home/alice algorithm USER /data/USER/y"
    monkeypatch.setenv("HOME", "/")
    monkeypatch.setenv("LOGNAME", "root")
    assert doctor.hiding()("/root/x is of root") in ("/root/x is of root", "~/x is of root")


# Programs and libraries


def test_packages_of_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "pins", lambda: {"rich": "0.0.1", "torch": "1", "not-here": "2"})
    (line,) = lines(probes.packages)
    assert line.grade == "note" and "(pinned 0.0.1)" in line.found and "not-here" not in line.found
    monkeypatch.setattr(probes, "project", lambda: {"dependencies": ["rich>=1", "gone-altogether[x]>=2"]})
    assert only(lines(probes.packages)[:1], "packages").found == "not installed: gone-altogether"
    monkeypatch.setattr(probes, "pins", dict)
    assert lines(probes.packages)[1].grade == "note"


def test_optional_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = {"test": ["not-here"], "plots": ["rich"], "other": ["rich", "gone>=1"]}
    monkeypatch.setattr(probes, "project", lambda: {"optional-dependencies": extras})
    assert [line.grade for line in lines(probes.optional)] == ["note", "good", "note"]
    assert "./fathom test" in lines(probes.optional)[0].fix and "[other]" in lines(probes.optional)[2].fix


def test_without_lm_eval_the_rest_of_eval_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "project", lambda: {"optional-dependencies": {"eval": ["gone"], "other": ["gone"]}})
    assert [line.consequence for line in lines(probes.optional)] == [
        "`fathom eval` runs, without the tasks of lm-eval",
        "no other",
    ]


def test_commands_are_written_as_they_are_typed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen.console.cache_clear()
    monkeypatch.setenv("FATHOM_COMMAND", "./fathom")
    doctor.show([Line("x", "lack", "`fathom a` did", "`fathom b` cannot", "type `fathom c`")])
    screen.console.cache_clear()
    said = capsys.readouterr().err
    assert all(f"`./fathom {word}`" in said for word in "abc")


def test_torch_that_is_not_the_pinned_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "pins", lambda: {"torch": "0.1"})
    assert "pinned is 0.1" in only(lines(probes.torch_build), "torch").found
    monkeypatch.setattr(probes, "installed", lambda name: "")
    assert only(lines(probes.torch_build), "torch").grade == "broken"


def test_a_gpu_that_torch_does_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "likely_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = only(lines(probes.torch_build), "GPU")
    assert line.grade == "lack" and "NVIDIA driver is here" in line.found and "slower" in line.consequence


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (line,) = lines(probes.compiler)
    assert line.grade == "lack" and "C++" in line.found and "g++" in line.fix


def program(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def test_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "g++", "echo 'g++ (A) 13.1'; echo more")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    (line,) = lines(probes.compiler)
    assert line.grade == "good" and line.found.startswith("g++ (A) 13.1")
    program(tmp_path, "g++", "exit 1")
    assert look("compiler", probes.compiler)[0].grade == "broken"


def test_the_sandbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "available", lambda: Availability(None, "bubblewrap: not installed", "install it"))
    line = only(lines(probes.sandbox), "sandbox")
    assert (line.grade, line.found, line.fix) == ("note", "bubblewrap: not installed", "install it")
    monkeypatch.setattr(probes, "available", lambda: Availability(MECHANISMS[1]))
    line = only(lines(probes.sandbox), "sandbox")
    assert (line.grade, line.found) == ("good", "namespaces held in a trial")


def test_a_program_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path, "slow", "exec /bin/sleep 30")
    monkeypatch.setattr(probes, "PATIENCE_S", 0.2)
    with pytest.raises(subprocess.TimeoutExpired):
        probes.output_of(str(tmp_path / "slow"))


def test_browsers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert lines(probes.browser)[0].grade == "note"
    program(tmp_path, "chromium", "")
    assert lines(probes.browser)[0].found == "chromium"


def test_network_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, _ in probes.NETWORK:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert ["no mirror" in line.found for line in lines(probes.network)] == [True]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("https_proxy", "http://u:p@proxy:1")
    monkeypatch.setenv("SSL_CERT_FILE", "/not/there.pem")
    found = {line.found: line for line in lines(probes.network)}
    assert found["HF_HUB_OFFLINE=1"].grade == "note" and found["HF_HUB_OFFLINE=1"].fix
    assert "HTTPS_PROXY=http://***@proxy:1" in found
    assert found["SSL_CERT_FILE=/not/there.pem is not there"].grade == "broken"


# The machine


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    grades = {}
    for asked_for in ("", "4", "2", "9", "x", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", asked_for)
        grades[asked_for] = only(lines(machine.processor), "threads").grade
    assert grades == {"": "lack", "4": "good", "2": "lack", "9": "lack", "x": "broken", "0": "broken"}
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert only(lines(machine.processor), "threads").grade == "good"


def test_cores_that_a_control_group_grants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for quota, cores in (
        ("150000 100000", 2),
        ("max 100000", 16),
        ("", 16),
        ("5000 100000", 1),
        ("9900000 100000", 16),
    ):
        monkeypatch.setattr(machine, "read_first", lambda _, quota=quota: quota)
        assert machine.usable_cores() == cores


def test_a_processor_without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    for feature, grade in (("", "note"), ("AMX", "good")):
        monkeypatch.setattr(hardware, "bf16_instructions", lambda feature=feature: feature)
        assert lines(machine.processor)[1].grade == grade


class Card:
    def __init__(self, name: str, major: int, minor: int) -> None:
        self.name, self.major, self.minor = name, major, minor


@pytest.mark.parametrize(
    ("card", "free", "grades"),
    [
        (Card("NVIDIA GeForce RTX 4070", 8, 9), 11.5e9, ["good"]),
        (Card("NVIDIA GeForce RTX 4070", 8, 9), 3e9, ["good", "note"]),
        (Card("Tesla V100-SXM2-16GB", 7, 0), 12e9, ["lack"]),
    ],
)
def test_gpus(monkeypatch: pytest.MonkeyPatch, card: Card, free: float, grades: list[str]) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: card)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, 12e9))
    driver = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar 5 22:23:56 UTC 2024"
    monkeypatch.setattr(machine, "read_first", lambda _: driver)
    first, *rest = lines(machine.gpus)
    assert first.found == "NVIDIA 550.54.15"
    assert [line.grade for line in rest] == grades
    assert f"compute capability {card.major}.{card.minor}" in rest[0].found
    if "4070" in card.name:
        assert "58.3 TFLOP/s in bf16 (data sheet)" in rest[0].found


def test_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "read_first", lambda _: "1000000000")
    (line,) = lines(machine.memory)
    assert line.grade == "lack" and "of 1 GB" in line.found


def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = machine._shared_memory(tmp_path / "not", "lack")
    assert line.grade == "lack" and "--shm-size" in line.fix
    for free, grade in ((64 << 20, "good"), ((64 << 20) - 1, "lack"), (0, "lack")):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        (line,) = machine._shared_memory(tmp_path, "lack")
        assert line.grade == grade and ("free" in line.found) == bool(free)


# What lies under FATHOM_HOME


def test_a_home_that_is_not_there_yet(fathom_home: Path) -> None:
    first = lines(stock.place)[0]
    assert first.grade == "good" and "is not there yet" in first.found


def test_a_home_that_is_a_file(fathom_home: Path) -> None:
    fathom_home.write_text("")
    assert [line.grade for line in lines(stock.place)] == ["broken"]
    for _, probe in doctor.AROUND:
        assert all("could not be looked at" not in line.found for line in look("x", probe))


def test_a_home_that_may_not_be_written(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fathom_home.mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (line,) = lines(stock.place)
    assert line.grade == "broken" and "may not be written" in line.found and line.fix


def test_a_home_that_can_be_used(fathom_home: Path) -> None:
    fathom_home.mkdir()
    assert "it can be written, and takes locks" in only(lines(stock.place), "home").found
    assert list(fathom_home.iterdir()) == [], "nothing is left behind"


def test_a_home_without_locks(fathom_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fathom_home.mkdir()

    def refuse(*_: Any) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    line = only(lines(stock.place), "home")
    assert line.grade == "lack" and "No locks available" in line.found


@pytest.mark.parametrize(("kind", "grade"), [("nfs4", "note"), ("fuse.sshfs", "note"), ("tmpfs", "note"), ("ext4", "")])
def test_the_disk_under_it(fathom_home: Path, monkeypatch: pytest.MonkeyPatch, kind: str, grade: str) -> None:
    fathom_home.mkdir()
    monkeypatch.setattr(stock, "file_system", lambda _: kind)
    assert [line.grade for line in lines(stock.place) if line.topic == "disk"][1:] == ([grade] if grade else [])
    monkeypatch.setattr(stock, "LITTLE_GB", 1e9)
    assert [line.grade for line in lines(stock.place) if line.topic == "disk"][0] == "lack"


def test_the_file_system_is_that_of_the_nearest_mount(tmp_path: Path) -> None:
    table = tmp_path / "mounts"
    folder = tmp_path / "a b" / "c"
    folder.mkdir(parents=True)
    point = str(tmp_path / "a b").replace(" ", "\\040")
    table.write_text(f"dev / ext4 rw\nserver:/x {point} nfs4 rw\nnone {tmp_path}/a tmpfs rw\nbroken\n")
    assert stock.file_system(folder, table) == "nfs4"
    assert stock.file_system(tmp_path, table) == "ext4"
    assert stock.file_system(tmp_path, tmp_path / "gone") == ""


def test_what_is_kept_and_how_large(fathom_home: Path) -> None:
    for name, size in (("small", 1000), ("large", 5_000_000)):
        folder = fathom_home / "runs" / name / "checkpoints"
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(b"x" * size)
        (folder / "link").symlink_to(folder / "weights")
    found = {line.topic: line.found for line in lines(stock.kept)}
    assert found["corpora"] == found["tokenizers"] == "none"
    assert found["runs"].startswith("2, 5 MB: large 5 MB, small ")


def begun(name: str) -> Path:
    record = Record(run_dir(name))
    record.config({"run": {"name": name, "stage": "pretrain"}, "config": {"steps": 10}})
    record.event("started")
    record.metric(step=0, loss=1.0)
    return record.folder


def test_runs_that_are_broken(fathom_home: Path) -> None:
    begun("killed")
    (begun("saved") / "checkpoints" / "000007").mkdir(parents=True)
    (run_dir("saved") / "checkpoints" / "000007" / "COMPLETE").touch()
    Record(begun("done")).event("finished", result={})
    (begun("garbled") / "run.toml").write_text("[")
    with open(begun("torn") / "metrics.jsonl", "a") as file:
        file.write("{")
    run_dir("empty").mkdir()
    (run_dir("empty") / ".lock").touch()
    run_dir("odd").mkdir()
    (run_dir("odd") / "run.toml").write_text("[")
    found = [(line.grade, line.found, line.fix) for line in lines(stock.runs)]

    def about(name: str) -> list[tuple[str, str, str]]:
        return [line for line in found if line[1].startswith(name)]

    assert about("killed") == [
        (
            "note",
            "killed was killed or crashed after step 1",
            "`fathom pretrain --run killed --resume --corpus CORPUS --tokenizer TOKENIZER`: it begins anew",
        )
    ]
    assert "from step 7" in about("saved")[0][2]
    assert about("done") == [("note", "done is finished and has no checkpoint", "train it again")]
    assert about("garbled")[0][0] == about("odd")[0][0] == "broken"
    assert about("empty")[0][1] == "empty never began"
    assert any("torn or not JSON" in line[1] for line in about("torn"))


def test_what_interrupted_work_left(fathom_home: Path) -> None:
    for name in ("corpora/.a.fetching", "corpora/.b.making", "corpora/.c.replaced"):
        (fathom_home / name).mkdir(parents=True)
    (begun("r") / "checkpoints" / ".000004.partial").mkdir(parents=True)
    (run_dir("r") / ".lock").touch()
    found = lines(stock.remains)
    assert "half fetched" in found[0].found and "fathom data get" in found[0].fix
    assert len(found) == 4
    with open(run_dir("r") / ".lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert len(lines(stock.remains)) == 3, "a checkpoint that is being written is no remains"
        assert "the run r" in only(lines(stock.locks), "at work").found
        assert not any("never began" in line.found for line in lines(stock.runs))
    assert "no process" in only(lines(stock.locks), "at work").found
