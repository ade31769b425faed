"""What `fathom doctor` asks of programs and libraries: each probe says what it found, what that means, and the fix."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import fathom
from fathom import hardware
from fathom.generate.sandbox import available
from fathom.kernels import build
from fathom.screen import plural

Grade = Literal["good", "note", "lack", "broken"]
ROOT = Path(fathom.__file__).resolve().parents[2]
PATIENCE_S = 10.0
ANEW = "delete .venv and start ./fathom again"
WITHOUT = {"eval": "`fathom eval` runs, without the tasks of lm-eval", "hf": "Hugging Face models are not scored"}


@dataclass(frozen=True)
class Line:
    """One thing about this machine."""

    topic: str
    grade: Grade
    """good; note: worth knowing; lack: something is slower or not possible; broken: it has to be mended."""
    found: str
    consequence: str = ""
    fix: str = ""


Probe = Callable[[], Iterator[Line]]


def look(topic: str, probe: Probe) -> list[Line]:
    """What a probe finds. One that fails is a line of its own, after what it had found before."""
    found: list[Line] = []
    try:
        for line in probe():
            found.append(line)
    except Exception as error:  # a probe looks at what may be broken in any way
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        why = f"{type(error).__name__}: {reason}" if reason else type(error).__name__
        found.append(
            Line(topic, "broken", f"could not be looked at ({why})", "it may not work", "mend what that names")
        )
    return found


def output_of(*command: str) -> str:
    """What a program prints on either stream. Raises OSError or subprocess.SubprocessError where it does not run."""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=PATIENCE_S, check=True)
    return (done.stdout + done.stderr).strip()


def installed(package: str) -> str:
    """Its version; empty where it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def python() -> Iterator[Line]:
    where = "in .venv" if Path(sys.prefix) == ROOT / ".venv" else f"in {sys.prefix}"
    found = f"fathom {fathom.__version__}, Python {platform.python_version()} {where}"
    if (3, 11) <= sys.version_info[:2] <= (3, 14):
        yield Line("python", "good", found)
    else:
        yield Line("python", "note", found, "fathom is made for 3.11 to 3.14", f"install one of these, {ANEW}")
    yield Line("system", "good", f"{platform.system()} {platform.release()} on {platform.machine()}")


def pins() -> dict[str, str]:
    """Package -> version that constraints.txt asks for; empty where that file is not beside the program."""
    path = ROOT / "constraints.txt"
    text = path.read_text() if path.is_file() else ""
    return dict(line.strip().split("==", 1) for line in text.splitlines() if re.match(r"[\w.-]+==", line))


def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml; empty where that file is not beside the program."""
    path = ROOT / "pyproject.toml"
    found: dict[str, Any] = tomllib.loads(path.read_text()).get("project", {}) if path.is_file() else {}
    return found


def bare(requirement: str) -> str:
    """The name alone: torch of torch>=2.9."""
    found = re.match(r"[\w.-]+", requirement)
    return found[0] if found else requirement


def packages() -> Iterator[Line]:
    """Are the packages here that fathom needs, and have the pinned ones the pinned version? torch has its own line."""
    needed = [bare(one) for one in project().get("dependencies", [])]
    missing = [name for name in needed if not installed(name)]
    if missing:
        yield Line("packages", "broken", f"not installed: {', '.join(missing)}", "some commands do not run", ANEW)
    pinned = {name: wanted for name, wanted in pins().items() if name != "torch"}
    if not pinned:
        yield Line("packages", "note", "constraints.txt is not beside the program", "versions cannot be compared")
        return
    there = {name: has for name in pinned if (has := installed(name))}
    others = [f"{name} {has} (pinned {pinned[name]})" for name, has in there.items() if has != pinned[name]]
    if others:
        found = f"of another version than the pinned: {', '.join(others)}"
        yield Line("packages", "note", found, "fathom is tested with the pinned ones", ANEW)
    else:
        yield Line("packages", "good", f"{plural(len(there), 'package')} of the pinned versions")


def optional() -> Iterator[Line]:
    """What pyproject.toml names as optional."""
    for extra, wanted in project().get("optional-dependencies", {}).items():
        missing = [name for one in wanted if not installed(name := bare(one))]
        if not missing:
            yield Line("optional", "good", f"all of {extra}: {', '.join(map(bare, wanted))}")
        elif extra == "test":
            found = f"for tests, without {', '.join(missing)}"
            yield Line("optional", "note", found, "tests do not run yet", "./fathom test installs them")
        else:
            fix = f".venv/bin/python -m pip install -c constraints.txt -e '.[{extra}]', in the project's folder"
            lost = WITHOUT.get(extra, f"no {extra}")
            yield Line("optional", "note", f"of {extra}, without {', '.join(missing)}", lost, fix)


def torch_build() -> Iterator[Line]:
    has, pinned = installed("torch"), pins().get("torch", "")
    if not has:
        yield Line("torch", "broken", "not installed", "nothing can be trained", ANEW)
        return
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    if getattr(torch.version, "hip", None):
        built = f"for ROCm {torch.version.hip}"
    found = f"torch {torch.__version__}, built {built}"
    if pinned and has.partition("+")[0] != pinned:
        yield Line("torch", "note", f"{found}; pinned is {pinned}", "fathom is tested with the pinned one", ANEW)
    else:
        yield Line("torch", "good", found)
    if hardware.likely_device() == "cuda" and not torch.cuda.is_available():
        why = "this torch has no CUDA" if not torch.version.cuda else "torch cannot reach the driver"
        fix = f"{ANEW}; if that changes nothing, update the driver (nvidia-smi shows it)"
        slow = "training runs on the CPU, many times slower"
        yield Line("GPU", "lack", f"an NVIDIA driver is here, and {why}", slow, fix)


def compiler() -> Iterator[Line]:
    device = hardware.device_type().value
    can = hardware.can_compile(device)
    if can.value == "yes":
        name = can.reason.removeprefix("compiled with ")
        first = output_of(name.split()[0], "--version").partition("\n")[0]
        triton = f", Triton {installed('triton')}" if installed("triton") else ""
        own = device == "cpu" and sys.platform == "linux" and build.compiler()
        words = "training has kernels of its own, compiled with it" if own else "kernels are compiled in longer runs"
        yield Line("compiler", "good", f"{first}{triton}", words)
    elif device == "mps":
        yield Line("compiler", "note", can.reason, "kernels run as they are")
    else:
        fix = "install g++ (on Debian and Ubuntu: sudo apt install g++)" if "C++" in can.reason else ANEW
        found = can.reason.partition(";")[0]
        yield Line("compiler", "lack", found, "kernels are not compiled, and training is slower", fix)


def sandbox() -> Iterator[Line]:
    found = available()
    if found.mechanism:
        yield Line("sandbox", "good", f"{found.mechanism.name} held in a trial", "for code that a model writes")
    else:
        without = "code that a model writes (HumanEval) is not run here; training and chat need none"
        yield Line("sandbox", "note", found.reason, without, found.remedy)


def browser() -> Iterator[Line]:
    known = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    there = [name for name in known if shutil.which(name)]
    if there:
        yield Line("browser", "good", there[0], "for the tests of pages")
    else:
        without = "the tests of pages are skipped; nothing else needs it"
        yield Line("browser", "note", "no Chromium", without, "install chromium from your system's packages")


NETWORK = (
    ("HF_ENDPOINT", "corpora are fetched from this mirror"),
    ("HF_HOME", "the hub's cache is there"),
    ("HF_HUB_CACHE", "the hub's cache is there"),
    ("HF_HUB_OFFLINE", "nothing is fetched from the hub"),
    ("HF_HUB_DISABLE_XET", "the hub is read over plain HTTP"),
    ("HF_HUB_DOWNLOAD_TIMEOUT", ""),
    ("HTTPS_PROXY", "the hub is reached through it"),
    ("HTTP_PROXY", ""),
    ("ALL_PROXY", ""),
    ("NO_PROXY", ""),
    ("SSL_CERT_FILE", "certificates are checked against it"),
    ("REQUESTS_CA_BUNDLE", "certificates are checked against it"),
)


def network() -> Iterator[Line]:
    """Settings alone; nothing is asked of any host."""
    found = list(_network_settings())
    yield from found
    if os.environ.get("HF_TOKEN") or os.environ.get("HUGGING_FACE_HUB_TOKEN"):
        yield Line("network", "good", "HF_TOKEN is set (not shown)", "corpora that ask for a name can be fetched")
    if not found:
        yield Line(
            "network", "good", "no mirror, proxy or offline setting", "the hub is asked directly (not tried here)"
        )


def _network_settings() -> Iterator[Line]:
    for name, meaning in NETWORK:
        value = os.environ.get(name) or os.environ.get(name.lower())
        if not value:
            continue
        if name == "HF_HUB_OFFLINE" and value.upper() in ("1", "ON", "YES", "TRUE"):
            yield Line("network", "note", f"{name}={value}", meaning, "unset it to fetch corpora")
        elif name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") and not Path(value).exists():
            yield Line("network", "broken", f"{name}={value} is not there", "fetching fails", f"mend or unset {name}")
        else:
            yield Line("network", "good", f"{name}={without_secret(value)}", meaning)


def without_secret(value: str) -> str:
    """An address without the name and password that may stand in it."""
    if "@" not in value:
        return value
    try:
        parts = urlsplit(value)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "(set, not shown)"
    if not parts.hostname:
        return "(set, not shown)"
    return urlunsplit((parts.scheme, f"***@{parts.hostname}{port}", parts.path, "", ""))
