"""What a process asks about itself and its machine: ids, names, limits, resources, random bytes (kernel/sys.c).

identity.py, scheduling.py, prctl.py and lifecycle.py hold the rest of the calls about tasks.
"""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet, Int, Pid, Ptr, Size
from devices.bus import syscall
from devices.errors import SysError
from devices.task import rlimits
from devices.task import usage as usage_of
from devices.task.capabilities import CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from devices.task.permissions import find_task
from devices.task.policy import current_cpu
from devices.time.abi import CLOCK_BOOTTIME, NSEC_PER_SEC
from devices.time.cputime import task_cpu_ns
from vmm.layout import PAGE_SHIFT, TASK_SIZE

if TYPE_CHECKING:
    from devices.task.task import Task

# Who and where


@syscall("getpid")
def getpid(task: Task) -> int:
    """man 2 getpid."""
    return task.process.pid


@syscall("getppid")
def getppid(task: Task) -> int:
    """man 2 getppid."""
    return task.process.parent_pid


@syscall("gettid")
def gettid(task: Task) -> int:
    """man 2 gettid."""
    return task.tid


@syscall("set_tid_address")
def set_tid_address(task: Task, tidptr: Ptr) -> int:
    """man 2 set_tid_address."""
    task.clear_child_tid = tidptr
    return task.tid


@syscall("getcpu")
def getcpu(task: Task, cpu: Ptr, node: Ptr) -> int:
    """man 2 getcpu. There is one memory node."""
    if cpu:
        task.memory.write_u32(cpu, current_cpu(task))
    if node:
        task.memory.write_u32(node, 0)
    return 0


# Names

SYSNAME, RELEASE, VERSION, MACHINE = b"Linux", b"6.1.0-pyvmm", b"#1 SMP pyvmm", b"x86_64"
UTS_LEN = 64
"""Longest host and domain name; each field of struct utsname has one byte more."""


@syscall("uname")
def uname(task: Task, buf: Ptr) -> int:
    """man 2 uname."""
    kernel = task.kernel
    fields = (SYSNAME, kernel.hostname, RELEASE, VERSION, MACHINE, kernel.domainname)
    task.memory.write(buf, b"".join(field.ljust(UTS_LEN + 1, b"\0") for field in fields))
    return 0


def _read_name(task: Task, name: int, length: int) -> bytes:
    if not task.credentials.capable(CAP_SYS_ADMIN):
        raise SysError(errno.EPERM)
    if not 0 <= length <= UTS_LEN:
        raise SysError(errno.EINVAL, "length of the name")
    return task.memory.read(name, length)


@syscall("sethostname")
def sethostname(task: Task, name: Ptr, len: Int) -> int:
    """man 2 sethostname."""
    task.kernel.hostname = _read_name(task, name, len)
    return 0


@syscall("setdomainname")
def setdomainname(task: Task, name: Ptr, len: Int) -> int:
    """man 2 setdomainname."""
    task.kernel.domainname = _read_name(task, name, len)
    return 0


# Limits

RLIMIT = Struct("<QQ")

Resource = Annotated[
    int,
    EnumSet(
        {name: value for name, value in vars(rlimits).items() if name.startswith("RLIMIT_") and isinstance(value, int)},
        code="{r} & 0xFFFFFFFF",
    ),
]


def _change_limit(task: Task, target: Task, resource: int, new: tuple[int, int] | None) -> tuple[int, int]:
    """do_prlimit(): set a limit, if `new` is given; what it was. EINVAL, EPERM."""
    if resource >= rlimits.RLIM_NLIMITS:
        raise SysError(errno.EINVAL, "unknown resource")
    limits = target.process.rlimits
    old = limits[resource]
    if new is not None:
        rlimits.check_change(resource, old, new, task.credentials.capable(CAP_SYS_RESOURCE))
        limits[resource] = new
    return old


@syscall("getrlimit")
def getrlimit(task: Task, resource: Resource, rlim: Ptr) -> int:
    """man 2 getrlimit."""
    task.memory.write(rlim, RLIMIT.pack(*_change_limit(task, task, resource, None)))
    return 0


@syscall("setrlimit")
def setrlimit(task: Task, resource: Resource, rlim: Ptr) -> int:
    """man 2 setrlimit."""
    soft, hard = task.memory.read_struct(rlim, RLIMIT)
    _change_limit(task, task, resource, (soft, hard))
    return 0


@syscall("prlimit64")
def prlimit64(task: Task, pid: Pid, resource: Resource, new_limit: Ptr, old_limit: Ptr) -> int:
    """man 2 prlimit."""
    new = None
    if new_limit:
        soft, hard = task.memory.read_struct(new_limit, RLIMIT)
        new = soft, hard
    target = find_task(task, pid)
    if target is not task:
        own, other = task.credentials, target.credentials
        same = own.uid == other.euid == other.suid == other.uid and own.gid == other.egid == other.sgid == other.gid
        if not same and not own.capable(CAP_SYS_RESOURCE):
            raise SysError(errno.EPERM)
    old = _change_limit(task, target, resource, new)
    if old_limit:
        task.memory.write(old_limit, RLIMIT.pack(*old))
    return 0


# Resources

RUSAGE_SELF, RUSAGE_CHILDREN, RUSAGE_THREAD = 0, -1, 1
SYSINFO = Struct("<q9QHxxxxxxQQI4x")
"""struct sysinfo: uptime, loads[3], totalram, freeram, sharedram, bufferram, totalswap, freeswap, procs, totalhigh,
freehigh, mem_unit."""

Who = Annotated[
    int,
    EnumSet({"RUSAGE_SELF": RUSAGE_SELF, "RUSAGE_CHILDREN": RUSAGE_CHILDREN, "RUSAGE_THREAD": RUSAGE_THREAD}),
]


@syscall("getrusage")
def getrusage(task: Task, who: Who, usage: Ptr) -> int:
    """man 2 getrusage; see usage.py."""
    process = task.process
    if who == RUSAGE_SELF:
        used = usage_of.used(process)
    elif who == RUSAGE_THREAD:
        used = task_cpu_ns(task), usage_of.used(process)[1]
    elif who == RUSAGE_CHILDREN:
        used = usage_of.used_by_children(process)
    else:
        raise SysError(errno.EINVAL, "who")
    task.memory.write(usage, usage_of.pack_usage(*used))
    return 0


@syscall("sysinfo")
def sysinfo(task: Task, info: Ptr) -> int:
    """man 2 sysinfo. No load averages are kept: they are 0."""
    kernel = task.kernel
    uptime = -(-kernel.clock.now(CLOCK_BOOTTIME, task) // NSEC_PER_SEC)
    total = kernel.memory.total << PAGE_SHIFT
    free = kernel.memory.frames.free << PAGE_SHIFT
    processes = min(len(kernel.tasks), 0xFFFF)
    task.memory.write(info, SYSINFO.pack(uptime, 0, 0, 0, total, free, 0, 0, 0, 0, processes, 0, 0, 1))
    return 0


# Random bytes

GRND_NONBLOCK, GRND_RANDOM, GRND_INSECURE = 1, 2, 4
MAX_RW_COUNT = 0x7FFF_F000
RANDOM_CHUNK = 1 << 18
"""Bytes that are made while the kernel lock is held."""

RandomFlags = Annotated[
    int,
    FlagSet(
        {"GRND_NONBLOCK": GRND_NONBLOCK, "GRND_RANDOM": GRND_RANDOM, "GRND_INSECURE": GRND_INSECURE},
        code="{r} & 0xFFFFFFFF",
    ),
]


@syscall("getrandom")
def getrandom(task: Task, buf: Ptr, buflen: Size, flags: RandomFlags) -> int:
    """man 2 getrandom. A signal or a bad page ends a long request early."""
    if flags & ~(GRND_NONBLOCK | GRND_RANDOM | GRND_INSECURE) or flags & 6 == GRND_RANDOM | GRND_INSECURE:
        raise SysError(errno.EINVAL, "flags")
    count = min(buflen, MAX_RW_COUNT)
    if buf + count > TASK_SIZE:
        raise SysError(errno.EFAULT)
    if count <= RANDOM_CHUNK:
        return _fill_random(task, buf, count)
    done = 0
    while done < count:
        with task.unlocked():
            pass  # let others have the kernel lock; and where calls are served in place, leave for this one
        size = min(RANDOM_CHUNK, count - done)
        try:
            filled = _fill_random(task, buf + done, size)
        except SysError:
            if not done:
                raise
            break
        done += filled
        if filled < size or (task.work and task.signal_pending_locked()):
            break
    return done


def _fill_random(task: Task, address: int, count: int) -> int:
    """Random bytes into the program's memory; how many, which is less where a page is bad. EFAULT."""
    if not count:
        return 0
    return task.memory.write_partial(address, task.kernel.random.bytes(count))
