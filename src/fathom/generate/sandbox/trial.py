"""Does a mechanism hold on this machine? A program that tries the doors, from inside."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile

from fathom.errors import FathomError
from fathom.generate.sandbox.mechanism import Mechanism
from fathom.generate.sandbox.running import Limits, execute

_DOORS = """
import json, os, socket, threading
outside = json.loads(input())

def opened(door):
    try:
        door()
    except (OSError, RuntimeError, MemoryError):
        return False
    return True

doors = {
    "read outside": lambda: open(outside).read(),
    "write outside": lambda: open(outside, "a"),
    "truncate outside": lambda: os.truncate(outside, 0),
    "make a file beside": lambda: open(outside + ".new", "x"),
    "change modes outside": lambda: os.chmod(outside, 0o777),
    "list a folder outside": lambda: os.listdir(os.path.dirname(outside)),
    "open a socket": lambda: socket.socket(),
    "start a process": lambda: os.fork() or os._exit(0),
    "start a thread": lambda: threading.Thread(target=int).start(),
    "signal its parent": lambda: os.kill(os.getppid(), 0),
    "take all memory": lambda: bytearray(2**30),
}
open("inside", "w").write("here")
print(json.dumps([name for name, door in doors.items() if opened(door)]))
"""


def held(mechanism: Mechanism) -> str:
    """Empty where every door stayed shut and the scratch folder was open; else what went wrong."""
    with tempfile.TemporaryDirectory(prefix="fathom-outside-") as folder:
        outside = os.path.join(os.path.realpath(folder), "file")
        with open(outside, "w") as file:
            file.write("outside")
        try:
            outcome = execute(mechanism, _DOORS, Limits(seconds=20.0), json.dumps(outside))
        except FathomError as error:
            return error.problem
        except (OSError, subprocess.SubprocessError) as error:
            return str(error)
    if not outcome.ok:
        last = (outcome.stderr.strip().splitlines() or [outcome.why])[-1]
        return f"it did not run there ({last[:200]})"
    doors = json.loads(outcome.stdout)
    return f"it can {', '.join(doors)}" if doors else ""
