"""The ways to shut a program in, which of them this machine offers, and what the interpreter needs to read.

bubblewrap   namespaces and a file tree of its own, made by bwrap
namespaces   the same from the kernel directly, files kept apart by Landlock
landlock     where namespaces are forbidden (containers): Landlock and the filter of system calls alone

Every one of them also has limits, no capabilities, and the filter of system calls (seccomp.py, inside.py).
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fathom.generate.sandbox import seccomp

INSIDE = Path(__file__).with_name("inside.py")
_SYSTEM = (
    *("/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib", "/lib", "/lib32", "/lib64", "/nix/store"),
    *("/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives"),
    *("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"),
)
_MAPPED = "import ctypes, resource\nfor line in open('/proc/self/maps'): print('/' + line.strip().partition('/')[2])"
_BWRAP = "--unshare-user --unshare-ipc --unshare-pid --unshare-net --unshare-uts --die-with-parent --cap-drop ALL"


@dataclass(frozen=True)
class Mechanism:
    """A way to shut a program in."""

    name: str
    namespaces: bool
    """Whether the interpreter makes its own namespaces."""
    landlock: int
    """The least version of Landlock that makes it whole; 0 where it is one wall too many."""

    def command(self, scratch: str, plan: int, status: int, info: int) -> list[str]:
        """What to start, given descriptors: of the plan, and two of the status pipe (bwrap closes its own)."""
        interpreter = [python(), "-s", "-S", "-P", "-B", "-X", "utf8", str(INSIDE), scratch, str(plan), str(status)]
        if self.name != "bubblewrap":
            return interpreter
        program = shutil.which("bwrap") or "bwrap"
        seen = [part for path in (*readable(), str(INSIDE)) for part in _bound(path)]
        here = ["--bind", scratch, scratch, "--chdir", scratch, "--info-fd", str(info)]
        return [program, *_BWRAP.split(), *seen, *here, "--remount-ro", "/", "--", *interpreter]


MECHANISMS = (
    Mechanism("bubblewrap", namespaces=False, landlock=0),
    Mechanism("namespaces", namespaces=True, landlock=1),
    Mechanism("landlock", namespaces=False, landlock=3),  # older ones leave truncation open
)


def _bound(path: str) -> list[str]:
    if os.path.islink(path) and os.path.isdir(path):
        return ["--symlink", os.readlink(path), path]
    return ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]


def missing(mechanism: Mechanism) -> str:
    """Why it cannot even be tried here; empty where it can."""
    if sys.platform != "linux":
        return "only Linux can limit a program's memory, files and network together"
    if not seccomp.machine_is_known():
        return f"the system calls of this processor ({platform.machine()}) are not known to it"
    if mechanism.name == "bubblewrap" and not shutil.which("bwrap"):
        return "not installed"
    return ""


@cache
def python() -> str:
    """The interpreter itself, outside any virtual environment."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@cache
def readable() -> tuple[str, ...]:
    """What a bare interpreter needs to read: the system's libraries, itself, and its own library.

    No part of the home folder, but for an interpreter that is installed there: its binary and library folders.
    """
    prefix = Path(python()).parents[1]
    folders = [str(prefix / "lib"), str(prefix / "lib64"), sysconfig.get_path("stdlib"), python()]
    listing = subprocess.run([python(), "-s", "-S", "-c", _MAPPED], capture_output=True, text=True, check=True)
    mapped = [line for line in listing.stdout.split("\n") if len(line) > 1]
    found: list[str] = []
    for path in (*_SYSTEM, *folders, *mapped):
        if os.path.exists(path) and not any(Path(path).is_relative_to(known) for known in found):
            found.append(path)
    return tuple(found)
