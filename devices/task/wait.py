"""wait4 and waitid: which children there are to wait for, and what has become of them (kernel/exit.c, do_wait())."""

from __future__ import annotations

import errno
from struct import Struct
from typing import TYPE_CHECKING, Annotated, NamedTuple

from devices.args import EnumSet, FlagSet, Pid, Ptr
from devices.bus import syscall
from devices.errors import SysError
from devices.signals.abi import SIGCHLD, SIGCONT
from devices.task.exit import reap_locked
from devices.task.parent import CLD_CONTINUED, CLD_STOPPED, code_and_status, owner_of
from devices.task.usage import pack_usage, used_with_children

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.process import Process
    from devices.task.task import Task

WNOHANG, WUNTRACED, WEXITED, WCONTINUED, WNOWAIT = 1, 2, 4, 8, 0x0100_0000
WSTOPPED = WUNTRACED
WNOTHREAD, WALL, WCLONE = 1 << 29, 1 << 30, 1 << 31
P_ALL, P_PID, P_PGID, P_PIDFD = range(4)
INT_MIN = -(1 << 31)
WAIT4_OPTIONS = WNOHANG | WUNTRACED | WCONTINUED | WNOTHREAD | WALL | WCLONE
WAITID_OPTIONS = WAIT4_OPTIONS | WEXITED | WNOWAIT
CONTINUED_STATUS = 0xFFFF
SIGINFO_HEAD = Struct("<iii4xiIi")
"""What waitid writes of siginfo_t: si_signo, si_errno, si_code, si_pid, si_uid, si_status."""

NAMES = {
    "WNOHANG": WNOHANG,
    "WUNTRACED": WUNTRACED,
    "WEXITED": WEXITED,
    "WCONTINUED": WCONTINUED,
    "WNOWAIT": WNOWAIT,
    "__WNOTHREAD": WNOTHREAD,
    "__WALL": WALL,
    "__WCLONE": WCLONE,
}
WaitOptions = Annotated[int, FlagSet(NAMES, code="{r} & 0xFFFFFFFF")]
IdType = Annotated[int, EnumSet({"P_ALL": P_ALL, "P_PID": P_PID, "P_PGID": P_PGID, "P_PIDFD": P_PIDFD})]


class Found(NamedTuple):
    """News of a child."""

    pid: int
    uid: int
    code: int
    """CLD_*."""
    value: int
    """si_status: exit code or signal."""
    status: int
    """As wait4 gives it."""
    usage: bytes
    """struct rusage."""


class Wanted(NamedTuple):
    """What a call waits for: P_* and its id, W*."""

    kind: int
    number: int
    options: int

    def covers(self, task: Task, child: Process) -> bool:
        """Is the child one of those (eligible_child())?"""
        if self.kind == P_PID and child.pid != self.number:
            return False
        if self.kind == P_PGID and child.pgid != self.number:
            return False
        options = self.options
        if options & WNOTHREAD and child.parent_task is not task:
            return False
        return bool(options & WALL) or (child.exit_signal != SIGCHLD) == bool(options & WCLONE)


@syscall("wait4")
def wait4(task: Task, upid: Pid, stat_addr: Ptr, options: WaitOptions, ru: Ptr) -> int:
    """man 2 wait4."""
    if options & ~WAIT4_OPTIONS:
        raise SysError(errno.EINVAL, "options")
    if upid == INT_MIN:
        raise SysError(errno.ESRCH)
    if upid == -1:
        kind, number = P_ALL, 0
    elif upid <= 0:
        kind, number = P_PGID, -upid or task.process.pgid
    else:
        kind, number = P_PID, upid
    found = wait_locked(task, Wanted(kind, number, options | WEXITED))
    if found is None:
        return 0
    if stat_addr:
        task.memory.write_u32(stat_addr, found.status)
    if ru:
        task.memory.write(ru, found.usage)
    return found.pid


@syscall("waitid")
def waitid(task: Task, which: IdType, upid: Pid, infop: Ptr, options: WaitOptions, ru: Ptr) -> int:
    """man 2 waitid; `ru` is the kernel's own addition."""
    failure: SysError | None = None
    found = None
    try:
        found = wait_locked(task, waitid_wanted(task, which, upid, options))
    except SysError as error:
        failure = error
    if found is not None and ru:
        task.memory.write(ru, found.usage)
    if infop:
        head = (0, 0, 0, 0, 0, 0) if found is None else (SIGCHLD, 0, found.code, found.pid, found.uid, found.value)
        task.memory.write(infop, SIGINFO_HEAD.pack(*head))
    if failure is not None:
        raise failure
    return 0


def waitid_wanted(task: Task, which: int, upid: int, options: int) -> Wanted:
    if options & ~WAITID_OPTIONS or not options & (WEXITED | WSTOPPED | WCONTINUED):
        raise SysError(errno.EINVAL, "options")
    if which not in (P_ALL, P_PID, P_PGID, P_PIDFD):
        raise SysError(errno.EINVAL, "idtype")
    if (which == P_PID and upid <= 0) or (which in (P_PGID, P_PIDFD) and upid < 0):
        raise SysError(errno.EINVAL, "id")
    if which == P_PIDFD:
        raise SysError(errno.EBADF, "no descriptor is a pidfd")
    if which == P_PGID:
        upid = upid or task.process.pgid
    return Wanted(which, upid, options)


def wait_locked(task: Task, wanted: Wanted) -> Found | None:
    """News of a wanted child, waited for if need be; None: none yet (WNOHANG). SysError(ECHILD), Interrupted."""
    process = task.process
    while True:
        hope = False
        for child in eligible(task, wanted):
            found = news_of(child, wanted.options)
            if found is not None:
                if wanted.options & WNOWAIT == 0:
                    take_locked(process, child, found)
                return found
            hope = hope or not child.zombie
        if not hope:
            raise SysError(errno.ECHILD)
        if wanted.options & WNOHANG:
            return None
        task.block(process.child_wait)


def eligible(task: Task, wanted: Wanted) -> Iterator[Process]:
    process = task.process
    if wanted.kind == P_PID:
        child = process.kernel.processes.get(wanted.number)
        children = [child] if child is not None and child.parent is process else []
    else:
        children = list(process.children)
    return (child for child in children if wanted.covers(task, child))


def news_of(child: Process, options: int) -> Found | None:
    """What there is to tell of a child that the options ask for (wait_consider_task())."""
    if child.zombie:
        if not options & WEXITED:
            return None
        code, value = code_and_status(child.status)
        return found_of(child, code, value, child.status)
    if options & WSTOPPED and child.stopped_by:
        return found_of(child, CLD_STOPPED, child.stopped_by, child.stopped_by << 8 | 0x7F)
    if options & WCONTINUED and child.continued:
        return found_of(child, CLD_CONTINUED, SIGCONT, CONTINUED_STATUS)
    return None


def found_of(child: Process, code: int, value: int, status: int) -> Found:
    return Found(child.pid, owner_of(child), code, value, status, pack_usage(*used_with_children(child)))


def take_locked(process: Process, child: Process, found: Found) -> None:
    """The news has been told: a zombie goes, and what it used counts as its parent's children's."""
    if found.code == CLD_STOPPED:
        child.stopped_by = 0
    elif found.code == CLD_CONTINUED:
        child.continued = False
    else:
        ns, resident = used_with_children(child)
        process.children_ns += ns
        process.children_resident = max(process.children_resident, resident)
        reap_locked(child)
