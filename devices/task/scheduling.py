"""How a task wants to be scheduled: policy, priority, niceness, CPUs (kernel/sched/syscalls.c, kernel/sys.c).

The host schedules the tasks' threads and is not told of any of this: a guest could otherwise starve other machines.
So the values are checked and kept as Linux does, for whoever asks; `sched_yield` alone has an effect. SCHED_DEADLINE
is never admitted (EBUSY): it is a promise that only the host could keep.
"""

from __future__ import annotations

import errno
import os
from struct import Struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, Int, Pid, Ptr, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.task.capabilities import CAP_SYS_NICE
from devices.task.permissions import find_task, same_owner
from devices.task.policy import (
    FAIR,
    POLICIES,
    REALTIME,
    SCHED_BATCH,
    SCHED_DEADLINE,
    SCHED_FIFO,
    SCHED_IDLE,
    SCHED_NORMAL,
    SCHED_RESET_ON_FORK,
    SCHED_RR,
)
from devices.task.rlimits import RLIMIT_NICE, RLIMIT_RTPRIO
from devices.time.abi import write_timespec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

KEEP_POLICY = -1
"""SETPARAM_POLICY."""

FLAG_RESET_ON_FORK, FLAG_KEEP_POLICY, FLAG_KEEP_PARAMS = 0x01, 0x08, 0x10
FLAG_UTIL_CLAMP = 0x60
FLAG_ALL = 0x7F

MIN_NICE, MAX_NICE = -20, 19
MAX_RT_PRIORITY = 99
RR_INTERVAL_NS = 100_000_000
FAIR_INTERVAL_NS = 4_000_000
DL_MIN_RUNTIME_NS = 1 << 10
DL_PERIOD_NS = (100_000, 4_194_304_000)
"""Shortest and longest period of SCHED_DEADLINE (sched_deadline_period_{min,max}_us)."""

PRIO_PROCESS, PRIO_PGRP, PRIO_USER = range(3)

ATTR = Struct("<IIQiIQQQII")
"""struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period, util_min, util_max."""
ATTR_SIZE_VER0 = 48
PAGE_SIZE = 4096

Policy = Annotated[
    int,
    EnumSet(
        {
            "SCHED_OTHER": SCHED_NORMAL,
            "SCHED_FIFO": SCHED_FIFO,
            "SCHED_RR": SCHED_RR,
            "SCHED_BATCH": SCHED_BATCH,
            "SCHED_IDLE": SCHED_IDLE,
            "SCHED_DEADLINE": SCHED_DEADLINE,
        }
    ),
]
Which = Annotated[int, EnumSet({"PRIO_PROCESS": PRIO_PROCESS, "PRIO_PGRP": PRIO_PGRP, "PRIO_USER": PRIO_USER})]


class Attributes:
    """struct sched_attr, as far as it is used."""

    __slots__ = ("deadline", "flags", "nice", "period", "policy", "priority", "runtime")

    def __init__(self, policy: int, priority: int, nice: int, flags: int = 0) -> None:
        self.policy = policy
        self.priority = priority
        self.nice = nice
        self.flags = flags
        self.runtime = self.deadline = self.period = 0


# Rules


def _nice_allowed(target: Task, nice: int) -> bool:
    """is_nice_reduction(): does RLIMIT_NICE allow this niceness?"""
    return 20 - nice <= target.process.rlimits[RLIMIT_NICE][0]


def _check_subset(task: Task, target: Task) -> None:
    """cap_safe_nice(): EPERM for a target that may do what the caller may not."""
    own = task.credentials
    if target.credentials.permitted & ~own.permitted and not own.capable(CAP_SYS_NICE):
        raise SysError(errno.EPERM)


def _deadline_valid(wanted: Attributes) -> bool:
    """__checkparam_dl()."""
    period = wanted.period or wanted.deadline
    return (
        wanted.deadline != 0
        and wanted.runtime >= DL_MIN_RUNTIME_NS
        and not (wanted.deadline | wanted.period) >> 63
        and period >= wanted.deadline >= wanted.runtime
        and DL_PERIOD_NS[0] <= period <= DL_PERIOD_NS[1]
    )


def _may(task: Task, target: Task, policy: int, wanted: Attributes, reset_on_fork: bool) -> bool:
    """user_check_sched_setscheduler(): is it allowed without CAP_SYS_NICE?"""
    now = target.scheduling
    if policy in FAIR and wanted.nice < now.nice and not _nice_allowed(target, wanted.nice):
        return False
    if policy in REALTIME:
        limit = target.process.rlimits[RLIMIT_RTPRIO][0]
        if (policy != now.policy and not limit) or (wanted.priority > now.priority and wanted.priority > limit):
            return False
    if policy == SCHED_DEADLINE:
        return False
    if now.policy == SCHED_IDLE and policy != SCHED_IDLE and not _nice_allowed(target, now.nice):
        return False
    if now.reset_on_fork and not reset_on_fork:
        return False
    return same_owner(task.credentials, target.credentials)


def set_scheduler(task: Task, target: Task, wanted: Attributes) -> None:
    """__sched_setscheduler(): check and keep. EINVAL, EPERM, EOPNOTSUPP (utilization clamps), EBUSY."""
    now = target.scheduling
    policy = wanted.policy
    reset_on_fork = now.reset_on_fork
    if policy == KEEP_POLICY:
        policy = now.policy
    else:
        reset_on_fork = bool(wanted.flags & FLAG_RESET_ON_FORK)
        if policy not in POLICIES:
            raise SysError(errno.EINVAL, "unknown policy")
    if wanted.flags & ~FLAG_ALL or wanted.priority > MAX_RT_PRIORITY:
        raise SysError(errno.EINVAL)
    if policy == SCHED_DEADLINE and not _deadline_valid(wanted):
        raise SysError(errno.EINVAL, "deadline parameters")
    if (policy in REALTIME) != (wanted.priority != 0):
        raise SysError(errno.EINVAL, "priority")
    if not _may(task, target, policy, wanted, reset_on_fork) and not task.credentials.capable(CAP_SYS_NICE):
        raise SysError(errno.EPERM)
    _check_subset(task, target)
    if wanted.flags & FLAG_UTIL_CLAMP:
        raise SysError(errno.EOPNOTSUPP, "utilization clamps")
    if policy == SCHED_DEADLINE:
        raise SysError(errno.EBUSY, "no bandwidth for deadlines")
    now.reset_on_fork = reset_on_fork
    if not wanted.flags & FLAG_KEEP_PARAMS:
        now.policy = policy
        now.priority = wanted.priority
        if policy in FAIR:
            now.nice = wanted.nice


# Policies


def _read_param(task: Task, pid: int, param: int) -> int:
    """The priority in a struct sched_param. EINVAL, EFAULT."""
    if not param or pid < 0:
        raise SysError(errno.EINVAL)
    return task.memory.read_i32(param)


@syscall("sched_setscheduler")
def sched_setscheduler(task: Task, pid: Pid, policy: Policy, param: Ptr) -> int:
    """man 2 sched_setscheduler."""
    if policy < 0:
        raise SysError(errno.EINVAL, "negative policy")
    priority = _read_param(task, pid, param)
    target = find_task(task, pid)
    flags = FLAG_RESET_ON_FORK if policy & SCHED_RESET_ON_FORK else 0
    wanted = Attributes(policy & ~SCHED_RESET_ON_FORK, priority & 0xFFFF_FFFF, target.scheduling.nice, flags)
    set_scheduler(task, target, wanted)
    return 0


@syscall("sched_setparam")
def sched_setparam(task: Task, pid: Pid, param: Ptr) -> int:
    """man 2 sched_setparam."""
    priority = _read_param(task, pid, param)
    target = find_task(task, pid)
    set_scheduler(task, target, Attributes(KEEP_POLICY, priority & 0xFFFF_FFFF, target.scheduling.nice))
    return 0


@syscall("sched_getscheduler")
def sched_getscheduler(task: Task, pid: Pid) -> int:
    """man 2 sched_getscheduler."""
    if pid < 0:
        raise SysError(errno.EINVAL)
    found = find_task(task, pid).scheduling
    return found.policy | (SCHED_RESET_ON_FORK if found.reset_on_fork else 0)


@syscall("sched_getparam")
def sched_getparam(task: Task, pid: Pid, param: Ptr) -> int:
    """man 2 sched_getparam."""
    if not param or pid < 0:
        raise SysError(errno.EINVAL)
    task.memory.write_u32(param, find_task(task, pid).scheduling.priority)
    return 0


@syscall("sched_setattr")
def sched_setattr(task: Task, pid: Pid, attr: Ptr, flags: UInt) -> int:
    """man 2 sched_setattr."""
    if not attr or pid < 0 or flags:
        raise SysError(errno.EINVAL)
    wanted = _read_attributes(task, attr)
    if wanted.policy < 0:
        raise SysError(errno.EINVAL, "negative policy")
    if wanted.flags & FLAG_KEEP_POLICY:
        wanted.policy = KEEP_POLICY
    target = find_task(task, pid)
    if wanted.flags & FLAG_KEEP_PARAMS:
        if target.scheduling.policy in REALTIME:
            wanted.priority = target.scheduling.priority
        else:
            wanted.nice = target.scheduling.nice
    set_scheduler(task, target, wanted)
    return 0


def _read_attributes(task: Task, address: int) -> Attributes:
    """sched_copy_attr(): copy in a struct sched_attr of the size that it names. E2BIG, having told ours; EFAULT,
    EINVAL."""
    memory = task.memory
    size = memory.read_u32(address) or ATTR_SIZE_VER0
    raw = memory.read(address, size) if ATTR_SIZE_VER0 <= size <= PAGE_SIZE else b""
    if not raw or any(raw[ATTR.size :]):
        memory.write_u32(address, ATTR.size)
        raise SysError(errno.E2BIG)
    _, policy, flags, nice, priority, runtime, deadline, period, _, _ = ATTR.unpack(
        raw[: ATTR.size].ljust(ATTR.size, b"\0")
    )
    if flags & FLAG_UTIL_CLAMP and size < ATTR.size:
        raise SysError(errno.EINVAL, "clamps without a place for them")
    nice = min(max(nice, MIN_NICE), MAX_NICE)
    found = Attributes((policy ^ 0x8000_0000) - 0x8000_0000, priority, nice, flags)
    found.runtime, found.deadline, found.period = runtime, deadline, period
    return found


@syscall("sched_getattr")
def sched_getattr(task: Task, pid: Pid, attr: Ptr, size: UInt, flags: UInt) -> int:
    """man 2 sched_getattr."""
    if not attr or pid < 0 or not ATTR_SIZE_VER0 <= size <= PAGE_SIZE or flags:
        raise SysError(errno.EINVAL)
    found = find_task(task, pid).scheduling
    realtime = found.policy in REALTIME
    size = min(size, ATTR.size)
    raw = ATTR.pack(
        size,
        found.policy,
        FLAG_RESET_ON_FORK if found.reset_on_fork else 0,
        0 if realtime else found.nice,
        found.priority if realtime else 0,
        *(0, 0, 0, 0, 0),
    )
    task.memory.write(attr, raw[:size])
    return 0


@syscall("sched_get_priority_max")
def sched_get_priority_max(task: Task, policy: Policy) -> int:
    """man 2 sched_get_priority_max."""
    if policy not in POLICIES:
        raise SysError(errno.EINVAL)
    return MAX_RT_PRIORITY if policy in REALTIME else 0


@syscall("sched_get_priority_min")
def sched_get_priority_min(task: Task, policy: Policy) -> int:
    """man 2 sched_get_priority_min."""
    if policy not in POLICIES:
        raise SysError(errno.EINVAL)
    return int(policy in REALTIME)


@syscall("sched_rr_get_interval")
def sched_rr_get_interval(task: Task, pid: Pid, tp: Ptr) -> int:
    """man 2 sched_rr_get_interval."""
    if pid < 0:
        raise SysError(errno.EINVAL)
    policy = find_task(task, pid).scheduling.policy
    interval = {SCHED_RR: RR_INTERVAL_NS, SCHED_FIFO: 0}.get(policy, FAIR_INTERVAL_NS)
    write_timespec(task.memory, tp, interval)
    return 0


@syscall("sched_yield", in_place=False)
def sched_yield(task: Task) -> int:
    """man 2 sched_yield."""
    with task.unlocked():
        os.sched_yield()
    return 0


# CPUs


def _mask_size(cpus: int) -> int:
    """cpumask_size(): bytes of the kernel's own mask."""
    return (cpus + 63) // 64 * 8


@syscall("sched_setaffinity")
def sched_setaffinity(task: Task, pid: Pid, cpusetsize: UInt, mask: Ptr) -> int:
    """man 2 sched_setaffinity."""
    cpus = task.kernel.cpus
    wanted = int.from_bytes(task.memory.read(mask, min(cpusetsize, _mask_size(cpus))), "little")
    target = find_task(task, pid)
    if not same_owner(task.credentials, target.credentials) and not task.credentials.capable(CAP_SYS_NICE):
        raise SysError(errno.EPERM)
    _check_subset(task, target)
    wanted &= (1 << cpus) - 1
    if not wanted:
        raise SysError(errno.EINVAL, "no CPU of the machine")
    target.scheduling.affinity = wanted
    return 0


@syscall("sched_getaffinity")
def sched_getaffinity(task: Task, pid: Pid, cpusetsize: UInt, mask: Ptr) -> int:
    """man 2 sched_getaffinity; returns the bytes written, as the call itself does."""
    cpus = task.kernel.cpus
    if cpusetsize * 8 & 0xFFFF_FFFF < cpus or cpusetsize & 7:
        raise SysError(errno.EINVAL, "size of the mask")
    found = find_task(task, pid).scheduling.affinity
    size = _mask_size(cpus)
    task.memory.write(mask, found.to_bytes(size, "little")[:cpusetsize])
    return min(size, cpusetsize)


# Niceness


def _selected(task: Task, which: int, who: int) -> Iterator[Task]:
    """The tasks that getpriority and setpriority mean. EINVAL."""
    tasks = task.kernel.tasks
    if which == PRIO_PROCESS:
        target = tasks.get(who) if who else task
        return iter([] if target is None else [target])
    if which == PRIO_PGRP:
        group = who or task.process.pgid
        return iter([t for t in tasks.values() if t.process.pgid == group])
    if which == PRIO_USER:
        user = who & 0xFFFF_FFFF if who else task.credentials.uid
        return iter([t for t in tasks.values() if t.credentials.uid == user])
    raise SysError(errno.EINVAL, "which")


@syscall("getpriority")
def getpriority(task: Task, which: Which, who: Int) -> int:
    """man 2 getpriority; returns 20 - niceness, as the call itself does."""
    found = max((20 - target.scheduling.nice for target in _selected(task, which, who)), default=None)
    if found is None:
        raise SysError(errno.ESRCH)
    return found


@syscall("setpriority")
def setpriority(task: Task, which: Which, who: Int, prio: Int) -> int:
    """man 2 setpriority."""
    nice = min(max(prio, MIN_NICE), MAX_NICE)
    error: int | None = errno.ESRCH
    for target in _selected(task, which, who):
        try:
            _set_one_nice(task, target, nice)
        except SysError as refused:
            error = refused.errno
        else:
            error = None if error == errno.ESRCH else error
    if error:
        raise SysError(error)
    return 0


def _set_one_nice(task: Task, target: Task, nice: int) -> None:
    """set_one_prio(): EPERM, EACCES."""
    own, other = task.credentials, target.credentials
    if own.euid not in (other.uid, other.euid) and not own.capable(CAP_SYS_NICE):
        raise SysError(errno.EPERM)
    if nice < target.scheduling.nice and not _nice_allowed(target, nice) and not own.capable(CAP_SYS_NICE):
        raise SysError(errno.EACCES)
    _check_subset(task, target)
    target.scheduling.nice = nice
