"""Programs that try to get out of the sandbox, to hurt the caller, or to use up the machine.

Each begins with PRELUDE (`world` says where things are) and prints GOT THROUGH where it has done what it should not be
able to do; what leaves traces is looked for from outside (sandbox_world.py).
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field

from fathom.generate.sandbox.running import Limits

GOT_THROUGH = "GOT THROUGH"
PRELUDE = '''
import ctypes, errno, fcntl, glob, json, mmap, os, resource, shutil, signal, socket, struct, subprocess, sys, time
world = json.loads(input())
libc = ctypes.CDLL(None, use_errno=True)

def tried(what, *arguments, **named):
    """Call it; a success is a breach."""
    try:
        result = what(*arguments, **named)
    except (Exception, SystemExit) as error:
        return error
    print("GOT " + "THROUGH", what, arguments, result)

def reads(*paths):
    for path in paths:
        tried(lambda: open(path, "rb").read(100000) and 1)
        try: print(open(path, "rb").read(100000))
        except OSError: pass

def calls(*names_and_arguments):
    """Raw system calls, by name or number; one that does not fail is a breach."""
    for name, *arguments in names_and_arguments:
        number = name if isinstance(name, int) else world["calls"].get(name, 10000)
        wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in (number, *arguments)]
        if libc.syscall(*wide) >= 0:
            print("GOT " + "THROUGH", name, arguments)
'''
# name, number on x86-64, number on 64-bit ARM
CALLS = """
    fork 57 -, vfork 58 -, clone 56 220, clone3 435 435, execve 59 221, execveat 322 281, tkill 200 130,
    tgkill 234 131, rt_sigqueueinfo 129 138, pidfd_open 434 434, pidfd_getfd 438 438, ptrace 101 117,
    process_vm_readv 310 270, process_vm_writev 311 271, open 2 -, openat 257 56, openat2 437 437,
    name_to_handle_at 303 264, open_by_handle_at 304 265, link 86 -, linkat 265 37, mknodat 259 33,
    fchmodat 268 53, fchownat 260 54, utimensat 280 88, socket 41 198, unshare 272 97, setns 308 268, mount 165 40,
    umount2 166 39, chroot 161 51, pivot_root 155 41, mount_setattr 442 442, fsopen 430 430, io_uring_setup 425 425,
    bpf 321 280, perf_event_open 298 241, userfaultfd 323 282, keyctl 250 219, add_key 248 217, shmget 29 194,
    msgget 68 186, semget 64 190, mq_open 240 180, memfd_create 319 279, memfd_secret 447 447, init_module 175 105,
    personality 135 92, inotify_init1 294 26, fanotify_init 300 262, syslog 103 116, setuid 105 146, setgid 106 144,
    setresuid 117 147, setgroups 116 159, capset 126 91, prctl 157 167, seccomp 317 277, sethostname 170 161,
    landlock_create_ruleset 444 444, landlock_restrict_self 446 446, mlockall 151 230, timer_create 222 107
"""


def calls() -> dict[str, int]:
    """Numbers of system calls on this machine, by name."""
    column = {"x86_64": 1, "aarch64": 2}[platform.machine()]
    rows = [row.split() for row in CALLS.split(",")]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


_CALM = Limits(seconds=10.0)
_PATIENT = Limits(seconds=60.0)  # for what has to come to its end however busy the machine is
_SHORT = Limits(seconds=0.4)


@dataclass(frozen=True)
class Attack:
    """One program, and how it may end (with nothing got through)."""

    name: str
    program: str
    ends: tuple[str, ...] = ("passed",)
    limits: Limits = field(default=_CALM)


ATTACKS = [
    # More processes
    Attack("fork bomb", "while True:\n    tried(os.fork)\n    break\nwhile True: os.fork()", ("failed",)),
    Attack("fork through every call there is", """
calls(("fork",), ("vfork",), ("clone", 17, 0, 0, 0, 0), ("clone", 0x3D0F00, 0, 0, 0, 0), ("clone3", bytes(88), 88))
calls(("execve", b"/bin/true", 0, 0), ("execveat", -100, b"/bin/true", 0, 0, 0))
"""),
    Attack("another program: subprocess, posix_spawn, system, exec", """
tried(subprocess.run, ["/bin/sh", "-c", "true"])
tried(os.posix_spawn, "/bin/true", ["true"], {})
if os.system("true") == 0: print("GOT " + "THROUGH")
tried(os.execv, "/bin/true", ["true"])
tried(os.execv, sys.executable, [sys.executable, "-c", "1"])
"""),
    Attack("a bomb of threads", """
import threading
for _ in range(1000): tried(threading.Thread(target=time.sleep, args=(60,), daemon=True).start)
"""),
    Attack("a daemon: forked twice, a session of its own, writes later", """
def daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(1); open(world["file"], "w").write("late")
        os._exit(0)
tried(daemon)
tried(os.setsid); tried(os.setpgid, 0, 0)
"""),
    Attack("zombie children, never waited for", "for _ in range(500): tried(os.fork)"),
    # Memory
    Attack("memory bomb in one block", "held = bytearray(10**10)", ("memory",)),
    Attack("memory bomb in small pieces", """
held = []
while True: held.append(bytearray(2**16))""", ("memory",), _PATIENT),
    Attack("memory bomb over children", """
for _ in range(100):
    if tried(os.fork) is None: held = bytearray(2**27)
"""),
    Attack("memory outside the address space: memfd, System V, POSIX shared memory", """
from multiprocessing import shared_memory
tried(os.memfd_create, "x")
tried(shared_memory.SharedMemory, world["mark"], create=True, size=2**28)
calls(("shmget", 0, 2**28, 0o1600), ("memfd_create", b"x", 0), ("memfd_secret", 0))
tried(open, "/dev/shm/" + world["mark"], "w")
"""),
    Attack("memory in the buffers of pipes and sockets", """
held = []
try:
    while True:
        for reading, writing in (os.pipe(), [one.detach() for one in socket.socketpair()]):
            held += [reading, writing]
            tried(fcntl.fcntl, writing, 1031, 2**20)
            os.set_blocking(writing, False)
            try:
                while True: os.write(writing, bytes(2**16))
            except BlockingIOError: pass
except OSError: pass
if len(held) > 64: print("GOT " + "THROUGH")
"""),
    Attack("locked memory, huge pages", """
area = mmap.mmap(-1, 2**24)
if libc.mlockall(3) == 0 or libc.mlock(ctypes.addressof(ctypes.c_char.from_buffer(area)), 2**24) == 0:
    print("GOT " + "THROUGH")
tried(mmap.mmap, -1, 2**30, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)
"""),
    # Output and time
    Attack("endless output", "while True: print('x' * 1000)", ("output",)),
    Attack("endless complaints", "while True: sys.stderr.write('x' * 1000)", ("output",)),
    Attack("endless output on every descriptor", """
while True:
    for handle in range(64):
        try: os.write(handle, bytes(10000))
        except OSError: pass
""", ("output",)),
    Attack("an endless loop", "while True: pass", ("timeout",), _SHORT),
    Attack("endless sleep", "time.sleep(10**6)", ("timeout",), _SHORT),
    Attack("endless sleep after all output is closed", "os.closerange(0, 64)\ntime.sleep(10**6)", ("timeout",), _SHORT),
    Attack("a huge power, in one uninterruptible step", "print(len(str(7 ** 7 ** 9)))", ("timeout", "failed"), _SHORT),
    Attack("signals handled and ignored", """
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: pass
""", ("timeout",), _SHORT),
    Attack("an end that never ends", """
import atexit
class Last:
    def __del__(self): time.sleep(10**6)
last = Last()
atexit.register(lambda: time.sleep(10**6))
""", ("timeout",), _SHORT),
    Attack("waiting for input", "tried(input)\nsys.stdin.read()", ("passed",)),
    Attack("stopping itself", "tried(signal.raise_signal, 19); tried(os.kill, os.getpid(), signal.SIGSTOP)"),
    # The caller and others
    Attack("killing its parent", """
for pid in (os.getppid(), world["caller"]):
    for number in (0, signal.SIGUSR1): tried(os.kill, pid, number)
    calls(("tgkill", pid, pid, 10), ("tkill", pid, 10), ("rt_sigqueueinfo", pid, 10, bytes(128)))
    calls(("pidfd_open", pid, 0))
"""),
    Attack("killing everything", "for pid in (-1, 0, 1, -os.getpgrp()): tried(os.kill, pid, signal.SIGWINCH)"),
    Attack("signals sent by the kernel in its name", """
reading, writing = os.pipe()
for owner in (world["caller"], os.getppid()):
    for command, value in ((10, signal.SIGUSR1), (8, owner), (15, struct.pack("ii", 1, owner))):
        tried(fcntl.fcntl, reading, command, value)
    fcntl.fcntl(reading, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    os.write(writing, b"x")
"""),
    Attack("limits, priority and processors of the caller", """
caller = world["caller"]
tried(resource.prlimit, caller, resource.RLIMIT_CORE, (1, 1))
tried(os.setpriority, os.PRIO_PROCESS, caller, 19); tried(os.nice, -5); tried(os.nice, 1)
tried(os.sched_setaffinity, caller, {0}); tried(os.sched_setaffinity, 0, {0})
tried(os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(1))
"""),
    Attack("raising its own limits", """
for name in ("AS", "CPU", "FSIZE", "NOFILE", "CORE"):
    kind = getattr(resource, "RLIMIT_" + name)
    most = resource.getrlimit(kind)[1]
    tried(resource.setrlimit, kind, (most + 1, most + 1)); tried(resource.setrlimit, kind, (-1, -1))
"""),
    Attack("ptrace, and another's memory", """
caller = world["caller"]
calls(("ptrace", 16, caller, 0, 0), ("ptrace", 0, 0, 0, 0), ("pidfd_getfd", 0, 0, 0))
for name in ("process_vm_readv", "process_vm_writev"): calls((name, caller, bytes(16), 1, bytes(16), 1, 0))
reads(f"/proc/{caller}/mem", f"/proc/{os.getppid()}/mem", "/proc/self/mem", "/proc/kcore", "/dev/mem")
"""),
    # Secrets
    Attack("the home folder", """
reads(world["file"], os.path.expanduser("~root/.bashrc"))
for folder in (world["home"], "/", "/root", "/home", "/tmp", "/etc", "/var", world["temporary"]):
    try: print(folder, os.listdir(folder), glob.glob(folder + "/*/*"))
    except OSError: pass
"""),
    Attack("the system's secrets", "reads('/etc/shadow', '/etc/passwd', '/etc/ssh/ssh_host_rsa_key', '/etc/hostname')"),
    Attack("the environment", """
print(dict(os.environ))
reads("/proc/self/environ", f"/proc/{os.getppid()}/environ", f"/proc/{world['caller']}/environ", "/proc/1/environ")
libc.getenv.restype = ctypes.c_char_p
print(libc.getenv(b"FATHOM_TEST_SECRET"))
"""),
    Attack("descriptors left open by the caller", """
for handle in range(3, 1024):
    try: print(os.pread(handle, 1000, 0))
    except OSError: pass
    tried(os.listdir, f"/proc/self/fd/{handle}"); tried(open, f"/proc/{world['caller']}/fd/{handle}")
"""),
    Attack("roundabout ways to a file: /proc, .., descriptors of folders", """
name, caller = world["file"], world["caller"]
reads("/proc/self/root" + name, "/proc/1/root" + name, f"/proc/{caller}/root" + name, f"/proc/{caller}/cwd")
reads("../" * 20 + name.lstrip("/"), f"/dev/fd/../../..{name}", "/proc/self/cwd/../../home/secret.txt")
for path in ("..", "/", world["home"]):
    try: folder = os.open(path, os.O_PATH | os.O_DIRECTORY)
    except OSError: continue
    tried(lambda: os.open(os.path.relpath(name, os.path.realpath(path)), os.O_RDONLY, dir_fd=folder))
    try: os.fchdir(folder)
    except OSError: continue
    reads(os.path.relpath(name, os.getcwd()))
"""),
    Attack("opening by raw calls and handles", """
path = world["file"].encode()
calls(("open", path, 0, 0), ("openat", -100, path, 0, 0), ("openat2", -100, path, bytes(24), 24))
calls(("name_to_handle_at", -100, path, bytes(200), bytes(8), 0), ("open_by_handle_at", -100, bytes(200), 0))
calls(("link", path, b"hard"), ("linkat", -100, path, -100, b"hard", 0), ("mknodat", -100, b"disk", 0o60600, 0x800))
"""),
    Attack("links out", """
for make in (os.symlink, os.link):
    tried(make, world["file"], "way")
tried(os.symlink, world["home"], "folder")
reads("way", "folder/secret.txt")
tried(open, "folder/new", "w")
"""),
    # Writing
    Attack("writing outside", """
home, scratch = world["home"], os.getcwd()
for folder in (home, world["temporary"], os.path.dirname(scratch), "/", "/tmp", "/var/tmp", "/dev/shm", "/run", "/root",
               "/usr/local/lib", os.path.dirname(os.__file__), "/etc"):
    tried(open, os.path.join(folder, world["mark"]), "w"); tried(os.mkdir, os.path.join(folder, world["mark"]))
"""),
    Attack("changing, moving and removing what is outside", """
name, home = world["file"], world["home"]
open("mine", "w").write("mine")
tried(open, name, "a"); tried(open, name, "r+"); tried(os.truncate, name, 0); tried(os.open, name, os.O_TRUNC)
tried(os.remove, name); tried(os.rename, name, "taken"); tried(os.replace, "mine", name); tried(os.rmdir, home)
tried(os.chmod, name, 0o777); tried(os.chmod, home, 0); tried(os.utime, name, (0, 0))
tried(os.setxattr, name, "user.x", b"x"); tried(os.chown, name, os.getuid(), os.getgid())
tried(os.rename, os.getcwd(), home + "/moved"); tried(shutil.rmtree, home)
path = name.encode()
calls(("fchmodat", -100, path, 0o777, 0), ("fchownat", -100, path, 0, 0, 0), ("utimensat", -100, path, 0, 0))
"""),
    Attack("a full disk: one file", """
with open("big", "wb") as file:
    while True: file.write(bytes(2**20))
""", ("failed", "disk")),
    Attack("a full disk: many files", """
for i in range(10**6):
    with open(f"file{i}", "wb") as file: file.write(bytes(2**20))
""", ("disk",)),
    Attack("a full disk: a million empty files", "for i in range(10**6): open(f'file{i}', 'w').close()", ("disk",)),
    Attack("folders too deep to remove", """
for i in range(10**6):
    os.mkdir("d" * 100); os.chdir("d" * 100)
""", ("disk",)),
    Attack("folders that cannot be looked into", """
os.mkdir("dark"); os.mkdir("dark/er"); open("dark/er/file", "w").close()
os.mkdir("shut", 0o300); os.mkdir("shut/in", 0o300); open("shut/in/file", "w").close()
""", ("passed", "disk")),
    # The network
    Attack("a TCP connection", """
tried(lambda: socket.create_connection(("127.0.0.1", world["tcp"]), 2))
calls(("socket", 2, 1, 0), ("socket", 10, 1, 0), ("socket", 1, 1, 0))
"""),
    Attack("a datagram, a name, other families", """
tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", world["udp"])))
tried(socket.getaddrinfo, "localhost", 80)
for family in (socket.AF_INET6, socket.AF_PACKET, socket.AF_NETLINK, 38, 40):
    tried(socket.socket, family, socket.SOCK_RAW)
"""),
    Attack("unix sockets, by path and abstract", """
for address in (world["home"] + "/socket", chr(0) + world["abstract"], "/run/docker.sock", "/tmp/.X11-unix/X0"):
    tried(lambda: socket.socket(socket.AF_UNIX).connect(address))
tried(socket.socket, socket.AF_UNIX, socket.SOCK_DGRAM)
"""),
    Attack("a pair of sockets turned outwards", """
tried(socket.socketpair, socket.AF_UNIX, socket.SOCK_DGRAM)
one, other = socket.socketpair()
for address in (world["home"] + "/datagrams", world["home"] + "/socket", chr(0) + world["abstract"]):
    tried(one.connect, address); tried(one.sendto, b"out", address); tried(one.sendmsg, [b"out"], [], 0, address)
tried(one.bind, "here"); tried(one.listen)
tried(lambda: one.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", 0))]))
"""),
    # The kernel
    Attack("namespaces, mounts and roots", """
for flags in (0x10000000, 0x00020000, 0x40000000, 0x20000000): calls(("unshare", flags), ("setns", 0, flags))
calls(("mount", b"none", b".", b"tmpfs", 0, 0), ("umount2", b"/", 2), ("fsopen", b"tmpfs", 0))
calls(("mount_setattr", -100, b"/", 0, bytes(32), 32), ("pivot_root", b".", b"."), ("chroot", b"."))
"""),
    Attack("io_uring, bpf, perf, userfaultfd, keys, queues, modules", """
calls(("io_uring_setup", 8, bytes(120)), ("bpf", 0, bytes(128), 128), ("perf_event_open", bytes(128), 0, -1, -1, 0))
calls(("userfaultfd", 1), ("keyctl", 0, -3, 1), ("add_key", b"user", b"x", b"x", 1, -3), ("init_module", 0, 0, b""))
calls(("personality", 0x40000), ("fanotify_init", 0, 0), ("syslog", 3, bytes(99), 99), ("sethostname", b"x", 1))
"""),
    Attack("becoming another user, taking back rights", """
for user in (0, 1, 65534): calls(("setuid", user), ("setgid", user), ("setresuid", user, user, user))
calls(("setgroups", 1, bytes(4)), ("capset", struct.pack("Ii", 0x20080522, 0), b"\\xff" * 24))
for option in (4, 8, 24, 38): calls(("prctl", option, 1, 0, 0, 0))
"""),
    Attack("loosening the filter and Landlock", """
allow = struct.pack("HBBI", 6, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(allow)
filter_ = struct.pack("@HP", 1, ctypes.addressof(buffer))
calls(("prctl", 22, 2, filter_, 0, 0), ("seccomp", 1, 0, filter_), ("prctl", 22, 0, 0, 0, 0))
calls(("landlock_create_ruleset", bytes(24), 24, 0), ("landlock_restrict_self", 3, 0))
tried(os.fork); reads(world["file"])
"""),
    Attack("system calls of another architecture", """
import platform
if platform.machine() == "x86_64":
    calls((0x40000000 | 57,), (0x40000000 | 41, 2, 1, 0), (0x40000000 | 2, world["file"].encode(), 0, 0))
    area = mmap.mmap(-1, 4096, prot=7)
    area.write(b"\\xb8\\x14\\x00\\x00\\x00\\xcd\\x80\\xc3")  # mov eax, 20; int 0x80; ret: getpid in 32 bits
    getpid = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    if getpid() > 0: print("GOT " + "THROUGH")
""", ("crashed", "passed")),
    Attack("a terminal", """
reads("/dev/tty", "/dev/pts/0", "/dev/console", "/dev/ptmx")
tried(os.openpty)
for handle in range(3): tried(fcntl.ioctl, handle, 0x5412, b"x")
"""),
    Attack("things left behind: shared memory, semaphores, notifications", """
import multiprocessing
tried(multiprocessing.Semaphore); tried(multiprocessing.Queue)
calls(("mq_open", world["mark"].encode(), 0o102, 0o600, 0), ("msgget", 0, 0o1600), ("semget", 0, 1, 0o1600))
calls(("inotify_init1", 0), ("timer_create", 0, 0, bytes(8)))
tried(open, "/dev/shm/" + world["mark"], "w"); tried(open, "/run/lock/" + world["mark"], "w")
"""),
    # The interpreter
    Attack("endless recursion", "def f(): f()\nf()", ("failed",)),
    Attack("recursion without a limit", """
sys.setrecursionlimit(10**9)
class Deep:
    def __getattr__(self, name): return getattr(self, name)
    def __repr__(self): return repr(self)
repr(Deep())
""", ("crashed", "memory", "failed", "timeout")),
    Attack("a broken interpreter", "ctypes.string_at(0)", ("crashed",)),
    Attack("an abort with a core file", "os.abort()", ("crashed",)),
    Attack("brackets too deep for the parser", "exec('(' * 10**6)", ("failed", "memory", "crashed")),
    # Success that is none
    Attack("leaving before the tests: os._exit(0)", "os._exit(0)", ("exited",)),
    Attack("leaving before the tests: sys.exit()", "sys.exit()", ("exited",)),
    Attack("saying that it is done", """
for handle in range(3, 64):
    try: os.write(handle, b"ready\\ndone\\npassed\\n")
    except OSError: pass
os._exit(0)
""", ("exited",)),
]  # fmt: skip
