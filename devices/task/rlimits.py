"""Resource limits: their numbers, what a process starts with, and the rules of changing them (kernel/sys.c).

A limit is a pair (soft, hard). Each subsystem looks at the limits that it enforces.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError

if TYPE_CHECKING:
    from devices.kernel import Kernel

RLIM_INFINITY = (1 << 64) - 1
RLIMIT_CPU, RLIMIT_FSIZE, RLIMIT_DATA, RLIMIT_STACK, RLIMIT_CORE, RLIMIT_RSS, RLIMIT_NPROC, RLIMIT_NOFILE = range(8)
RLIMIT_MEMLOCK, RLIMIT_AS, RLIMIT_LOCKS, RLIMIT_SIGPENDING, RLIMIT_MSGQUEUE = range(8, 13)
RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_RTTIME = range(13, 16)
RLIM_NLIMITS = 16

NR_OPEN = 1 << 20
"""The hard limit of RLIMIT_NOFILE can be at most this (/proc/sys/fs/nr_open)."""

Limit = tuple[int, int]


def default_rlimits(kernel: Kernel) -> list[Limit]:
    """INIT_RLIMITS of include/asm-generic/resource.h, with the limits that depend on the machine's size filled in."""
    limits = [(RLIM_INFINITY, RLIM_INFINITY)] * RLIM_NLIMITS
    tasks = kernel.max_tasks
    limits[RLIMIT_STACK] = (8 << 20, RLIM_INFINITY)
    limits[RLIMIT_CORE] = (0, RLIM_INFINITY)
    limits[RLIMIT_NPROC] = (tasks, tasks)
    limits[RLIMIT_NOFILE] = (1024, NR_OPEN)
    limits[RLIMIT_MEMLOCK] = (8 << 20, 8 << 20)
    limits[RLIMIT_SIGPENDING] = (tasks, tasks)
    limits[RLIMIT_MSGQUEUE] = (819200, 819200)
    limits[RLIMIT_NICE] = (0, 0)
    limits[RLIMIT_RTPRIO] = (0, 0)
    return limits


def check_change(resource: int, old: Limit, new: Limit, may_raise: bool) -> None:
    """do_prlimit(): EINVAL for a soft limit above the hard one, EPERM for a hard one that is too high, or raised
    without CAP_SYS_RESOURCE (`may_raise`)."""
    soft, hard = new
    if soft > hard:
        raise SysError(errno.EINVAL, "soft limit above the hard one")
    if resource == RLIMIT_NOFILE and hard > NR_OPEN:
        raise SysError(errno.EPERM, "above nr_open")
    if hard > old[1] and not may_raise:
        raise SysError(errno.EPERM, "the hard limit would be raised")
