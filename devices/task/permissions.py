"""Finding another task, and who may do what to whom: what several subsystems ask."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.task.capabilities import CAP_SYS_PTRACE

if TYPE_CHECKING:
    from devices.task.process import Credentials
    from devices.task.task import Task

SUID_DUMP_USER = 1


def find_task(task: Task, pid: int) -> Task:
    """The task with that tid, which may lead a process; 0 means the caller. ESRCH."""
    target = task.kernel.tasks.get(pid) if pid else task
    if target is None:
        raise SysError(errno.ESRCH)
    return target


def may_trace(task: Task, target: Task) -> bool:
    """ptrace_may_access() in kernel/ptrace.c with PTRACE_MODE_READ_REALCREDS."""
    if task.process is target.process:
        return True
    own, other = task.credentials, target.credentials
    if own.capable(CAP_SYS_PTRACE):
        return True
    same = own.uid == other.euid == other.suid == other.uid and own.gid == other.egid == other.sgid == other.gid
    return same and target.process.dumpable == SUID_DUMP_USER and not other.permitted & ~own.permitted


def same_owner(own: Credentials, other: Credentials) -> bool:
    """check_same_owner() in kernel/sched/syscalls.c: the effective user is the other's effective or real one."""
    return own.euid in (other.euid, other.uid)
