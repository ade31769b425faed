"""Runs code that a model wrote, shut off from everything: one process in a scratch folder, with limits.

No network, no file but those of the interpreter and its scratch folder, no other process, no environment; the kernel
sees to that (mechanism.py), and the watcher outside to time, output and disk (running.py). The code gets Python's
standard library, one process and one thread. `docs/results/sandbox.md` lists what was tried against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from fathom.errors import FathomError
from fathom.generate.sandbox.mechanism import MECHANISMS, Mechanism, missing
from fathom.generate.sandbox.running import Limits, Outcome, execute
from fathom.generate.sandbox.trial import held

__all__ = ["Availability", "Limits", "Outcome", "available", "run_python"]


@dataclass(frozen=True)
class Availability:
    """Whether code can be run here, and how or why not."""

    mechanism: Mechanism | None
    reason: str = ""
    """Why there is none: what was found of each."""
    remedy: str = ""


def run_python(program: str, limits: Limits = Limits(), stdin: str = "") -> Outcome:  # noqa: B008 (it is frozen)
    """Run a program shut in, from any thread. Raises FathomError where nothing here can shut it in; then it is not run.

    It counts as passed when it came to its last line and ended with 0: sys.exit(0) before the tests is no pass. What
    this does not judge: a program that replaces what checks it, or searches the interpreter for the sign of success.
    """
    found = available()
    if found.mechanism is None:
        raise FathomError(f"code that a model wrote is not run on this machine: {found.reason}", found.remedy)
    return execute(found.mechanism, program, limits, stdin)


@cache
def available() -> Availability:
    """The first mechanism that holds in a trial here; tried once, and remembered."""
    failed = {}
    for mechanism in MECHANISMS:
        failed[mechanism.name] = missing(mechanism) or held(mechanism)
        if not failed[mechanism.name]:
            return Availability(mechanism)
    if len(set(failed.values())) == 1:
        return Availability(None, failed["landlock"], "run this on Linux, on x86-64 or ARM64 (a container will do)")
    reason = ", ".join(f"{name}: {why}" for name, why in failed.items())
    return Availability(None, reason, "install bubblewrap from your system's packages, or use Linux 6.2 or newer")
