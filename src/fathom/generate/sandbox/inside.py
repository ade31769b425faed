"""What the confined interpreter does first: it shuts itself in, for good, and then runs the program.

Run as a file by a bare interpreter (`python -s -S -P inside.py SCRATCH PLAN STATUS`: a folder, two descriptors), so it
knows nothing but the standard library. It reads the plan, says `ready` on the status pipe once nothing more is open to
it, runs the program in this same process as `__main__`, and says the token of the plan when the program has come to
its end. `refused WHY` comes instead of `ready` where the kernel did not do its part; then nothing was run.

Flags and numbers are those of Linux: mount_setattr(2), landlock(7), capabilities(7), seccomp(2).
"""

from __future__ import annotations

import builtins
import ctypes
import json
import linecache
import os
import resource
import signal
import struct
import sys
import traceback
import types
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_MOUNT, _NEW_PID, _NEW_NET, _NEW_IPC, _NEW_UTS = (
    0x10000000, 0x00020000, 0x20000000, 0x40000000, 0x08000000, 0x04000000,
)  # fmt: skip
_BIND, _RECURSIVE, _PRIVATE = 0x1000, 0x8000, 0x40000
_READ_ONLY, _NO_SUID, _HERE = 1, 2, -100
_MOUNT_SETATTR, _LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 442, 444, 445, 446
_DEATH_SIGNAL, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 4, 22, 38
_FILTER = 2

# Landlock's rights over files, in the order of their bits
_READ_FILE, _READ_FOLDER, _WRITE = 1 << 2, 1 << 3, 1 << 1
_REMOVE, _MAKE_FOLDER, _MAKE_FILE = 1 << 4 | 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_FIRST_RIGHTS = (1 << 13) - 1


def main() -> None:
    scratch, plan_handle, status = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    with open(plan_handle, "rb") as file:
        plan = json.load(file)
    try:
        shut_in(plan, scratch, status)
    except OSError as error:
        os.write(status, f"refused {error.strerror}\n".encode())
        os._exit(1)
    os.write(status, b"ready\n")
    run(plan["program"], status)
    os.write(status, plan["token"].encode())


def shut_in(plan: dict[str, Any], scratch: str, status: int) -> None:
    """Every wall there is, outermost first; raises OSError where one that the plan demands cannot be had."""
    if plan["namespaces"]:
        enter_namespaces(scratch, status)
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL)
    _call("prctl", _NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    _call("prctl", _DUMPABLE, 0)  # no core file, also where a program of the system collects them
    for name, value in plan["limits"].items():
        limit(getattr(resource, name), value)
    landlock(plan["readable"], scratch, plan["landlock"])
    drop_capabilities()
    install_filter(bytes.fromhex(plan["filter"]))


def limit(kind: int, value: int) -> None:
    """As low as asked for, or lower where it already is."""
    most = resource.getrlimit(kind)[1]
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def enter_namespaces(scratch: str, status: int) -> None:
    """Processes, network, IPC and mounts of its own: everything is mounted read-only but the scratch folder.

    Goes on in the second process there: the first ignores signals that it does not handle, so it only waits. Who that
    first one is, is said on the status pipe as bwrap says it: with it everything in there ends.
    """
    uid, gid = os.getuid(), os.getgid()
    _call("unshare", _NEW_USER | _NEW_MOUNT | _NEW_PID | _NEW_NET | _NEW_IPC | _NEW_UTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    _call("mount", scratch.encode(), scratch.encode(), None, _BIND, None)
    _mount_attributes("/", _RECURSIVE, struct.pack("=4Q", _READ_ONLY | _NO_SUID, 0, _PRIVATE, 0))
    _mount_attributes(scratch, 0, struct.pack("=4Q", 0, _READ_ONLY, 0, 0))
    os.chdir(scratch)
    announced, announce = os.pipe()
    if child := os.fork():
        os.write(status, f'"child-pid": {child}\n'.encode())
        os.close(announce)
        wait_for(child)
    os.close(announce)
    os.read(announced, 1)  # what is said after `ready` is not believed
    os.close(announced)
    _call("prctl", _DEATH_SIGNAL, signal.SIGKILL)
    if child := os.fork():
        wait_for(child)


def wait_for(child: int) -> None:
    """Ends as it ends."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _mount_attributes(path: str, flags: int, attributes: bytes) -> None:
    _syscall("mount", _MOUNT_SETATTR, _HERE, path.encode(), flags, attributes, len(attributes))


def landlock(readable: list[str], scratch: str, least: int) -> None:
    """Files: `readable` to read, `scratch` to read and write, nothing else. TCP, abstract sockets, signals: none.

    `least` is the version of Landlock without which the rest would not be enough; 0 takes what is there.
    """
    version = _libc.syscall(ctypes.c_long(_LANDLOCK_CREATE), None, ctypes.c_size_t(0), ctypes.c_uint(1))
    if version < max(least, 1):
        if least == 0:
            return
        has = f"has version {version} of it" if version > 0 else "has none switched on"
        raise OSError(0, f"Landlock {least} or newer is needed and this kernel {has}")
    within = (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0)
    governed = _FIRST_RIGHTS | within | (_IOCTL_DEVICE if version >= 5 else 0)
    rules = struct.pack("=3Q", governed, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = _syscall("Landlock", _LANDLOCK_CREATE, rules, ctypes.c_size_t(len(rules)), ctypes.c_uint(0))
    for path in readable:
        _permit(ruleset, path, _READ_FILE | _READ_FOLDER | (_WRITE if path.startswith("/dev/") else 0))
    _permit(ruleset, scratch, _READ_FILE | _READ_FOLDER | _WRITE | _REMOVE | _MAKE_FOLDER | _MAKE_FILE | within)
    _syscall("Landlock", _LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0))
    os.close(ruleset)


def _permit(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        rights &= ~_READ_FOLDER
    rule = struct.pack("=Qi", rights, handle)
    _syscall("Landlock", _LANDLOCK_ADD, ruleset, ctypes.c_int(1), rule, ctypes.c_uint(0))
    os.close(handle)


def drop_capabilities() -> None:
    """What root may do beyond others; without new privileges they never come back."""
    version_3, this_process = 0x20080522, 0
    _call("capset", struct.pack("=Ii", version_3, this_process), bytes(24))


def install_filter(filter_: bytes) -> None:
    buffer = ctypes.create_string_buffer(filter_, len(filter_))
    program = struct.pack("@HP", len(filter_) // 8, ctypes.addressof(buffer))
    _call("prctl", _SECCOMP, _FILTER, program, 0, 0)


def _call(name: str, *arguments: Any) -> int:
    """A function of the C library that answers -1 and sets errno where it fails. Integers are passed as longs."""
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(name, getattr(_libc, name)(*wide))


def _syscall(name: str, number: int, *arguments: Any) -> int:
    wide = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    return _checked(name, _libc.syscall(ctypes.c_long(number), *wide))


def _checked(name: str, result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def run(program: str, status: int) -> None:
    """Returns when it has come to its end; an exception is printed as the interpreter would, and exits with 1."""
    name = "program.py"
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = module
    sys.argv = [name]
    linecache.cache[name] = (len(program), None, program.splitlines(keepends=True), name)
    try:
        exec(compile(program, name, "exec", dont_inherit=True), vars(module))
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, MemoryError):
            os.write(status, b"memory\n")
        traceback.print_exception(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        sys.exit(1)


if __name__ == "__main__":
    main()
