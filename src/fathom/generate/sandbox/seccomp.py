"""The system calls that a confined program may make, as a filter for the kernel (seccomp): a list of what is allowed.

Files, memory, clocks and signals to itself. No new process or thread (so no fork bomb, no child that outlives its
parent, and the memory limit of one process is the limit of all), no sockets but a connected pair (asyncio wants one),
no signals to others, no change of owner or mode, no mounts, no tracing, nothing that a later kernel invents.
"""

from __future__ import annotations

import errno
import platform
import struct
import sys
from dataclasses import dataclass

# name, number on x86-64, number on 64-bit ARM ("-": not there)
_ALLOWED = """
    read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, pwrite64 18 68, preadv 295 69, pwritev 296 70,
    open 2 -, openat 257 56, close 3 57, close_range 436 436, stat 4 -, fstat 5 80, lstat 6 -, newfstatat 262 79,
    statx 332 291, access 21 -, faccessat 269 48, faccessat2 439 439, statfs 137 43, fstatfs 138 44, lseek 8 62,
    getdents 78 -, getdents64 217 61, readlink 89 -, readlinkat 267 78, getcwd 79 17, chdir 80 49, fchdir 81 50,
    mkdir 83 -, mkdirat 258 34, rmdir 84 -, unlink 87 -, unlinkat 263 35, rename 82 -, renameat 264 38,
    renameat2 316 276, truncate 76 45, ftruncate 77 46, fallocate 285 47, fsync 74 82, fdatasync 75 83,
    fadvise64 221 223, flock 73 32, dup 32 23, dup2 33 -, dup3 292 24, pipe 22 -, pipe2 293 59, umask 95 166,
    poll 7 -, ppoll 271 73, select 23 -, pselect6 270 72, epoll_create 213 -, epoll_create1 291 20, epoll_ctl 233 21,
    epoll_wait 232 -, epoll_pwait 281 22, eventfd2 290 19, recvfrom 45 207, mmap 9 222, mprotect 10 226, munmap 11 215,
    mremap 25 216, madvise 28 233, msync 26 227, mincore 27 232, brk 12 214, rt_sigaction 13 134, rt_sigprocmask 14 135,
    rt_sigreturn 15 139, rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132,
    alarm 37 -, pause 34 -, getitimer 36 102, setitimer 38 103, nanosleep 35 101, clock_nanosleep 230 115,
    clock_gettime 228 113, clock_getres 229 114, gettimeofday 96 169, time 201 -, times 100 153, getpid 39 172,
    getppid 110 173, gettid 186 178, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177,
    getresuid 118 148, getresgid 120 150, getgroups 115 158, getpgrp 111 -, getpgid 121 155, getsid 124 156,
    getrlimit 97 163, getrusage 98 165, getpriority 140 141, sched_getaffinity 204 123, sched_yield 24 124,
    getcpu 309 168, sysinfo 99 179, uname 63 160, getrandom 318 278, futex 202 98, set_robust_list 273 99,
    get_robust_list 274 100, set_tid_address 218 96, rseq 334 293, arch_prctl 158 -, restart_syscall 219 128,
    wait4 61 260, waitid 247 95, exit 60 93, exit_group 231 94
"""


@dataclass(frozen=True)
class _Condition:
    """A call is allowed only if the low (or high) 32 bits of this argument, masked, are one of these values."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF
    high: bool = False


_DUPLICATE, _FLAGS, _LOCKS, _DUPLICATE_CLOSED = (0,), (1, 2, 3, 4), (5, 6, 7), (1030,)
_TERMINAL, _WIDTH, _UNREAD, _NONBLOCKING, _CLOSED, _KEPT = 0x5401, 0x5413, 0x541B, 0x5421, 0x5451, 0x5450
_ALLOWED_WITH = {
    # Not F_SETOWN and F_SETSIG: they would have the kernel send any signal to any process of the user.
    "fcntl 72 25": [_Condition(1, _DUPLICATE + _FLAGS + _LOCKS + _DUPLICATE_CLOSED)],
    "ioctl 16 29": [_Condition(1, (_TERMINAL, _WIDTH, _UNREAD, _NONBLOCKING, _CLOSED, _KEPT))],
    "prlimit64 302 261": [_Condition(0, (0,))],  # its own limits only
    "socketpair 53 199": [_Condition(0, (1,)), _Condition(1, (1,), mask=0xF)],  # AF_UNIX, SOCK_STREAM
    "sendto 44 206": [_Condition(4, (0,)), _Condition(4, (0,), high=True)],  # to no address
}
_MACHINES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}  # AUDIT_ARCH_*, column of the numbers
_NEWER = 424  # from here on numbers are the same everywhere, and programs are ready to live without these calls

_KILL, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_LOAD, _EQUAL, _AT_LEAST, _AND, _RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # in struct seccomp_data

Instruction = tuple[int, int, int, int]
"""struct sock_filter: code, instructions skipped if true, if false, operand."""


def machine_is_known() -> bool:
    return platform.machine() in _MACHINES and sys.maxsize > 2**32


def program(machine: str | None = None) -> bytes:
    """The filter for this machine (or the one named) as an array of struct sock_filter.

    What is not allowed fails with EPERM, newer calls with ENOSYS; calls in another architecture's numbering kill.
    """
    architecture, column = _MACHINES[machine or platform.machine()]
    code: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
    ]
    for call in _ALLOWED.split(","):
        if (number := call.split()[1 + column]) != "-":
            code += [(_EQUAL, 0, 1, int(number)), (_RETURN, 0, 0, _ALLOW)]
    for call, conditions in _ALLOWED_WITH.items():
        block = _block(conditions)
        code += [(_EQUAL, 0, len(block), int(call.split()[1 + column])), *block]
    code += [
        (_AT_LEAST, 0, 1, _NEWER),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _block(conditions: list[_Condition]) -> list[Instruction]:
    """Instructions that end: allowed if all conditions hold, else refused."""
    code: list[Instruction] = []
    for condition in conditions:
        code += [
            (_LOAD, 0, 0, _ARGUMENTS_AT + 8 * condition.argument + 4 * condition.high),
            (_AND, 0, 0, condition.mask),
        ]
        left = len(condition.values)
        code += [(_EQUAL, left - i, 0, value) for i, value in enumerate(condition.values)]
        code.append((_RETURN, 0, 0, _ERRNO | errno.EPERM))
    return [*code, (_RETURN, 0, 0, _ALLOW)]
