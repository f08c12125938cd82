"""fork, vfork, clone, exit and the per-thread CPU state: how a task begins and ends (kernel/fork.c, kernel/exit.c)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet, HexArg, Int, Ptr, Size
from devices.bus import syscall
from devices.errors import SysError, TaskExit
from devices.task import fork as fork_rules
from devices.task.fork import (
    CLONE_DETACHED,
    CLONE_INTO_CGROUP,
    CLONE_PARENT,
    CLONE_PARENT_SETTID,
    CLONE_PIDFD,
    CLONE_THREAD,
    CLONE_VFORK,
    CLONE_VM,
    CloneArgs,
    clone_locked,
)
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from devices.task.task import Task

CSIGNAL = 0xFF
CLONE_NAMES = {name: value for name, value in vars(fork_rules).items() if name.startswith("CLONE_")}
CLONE_KNOWN = (1 << 34) - 1
CLONE_ARGS_SIZES = (64, 4096)
"""CLONE_ARGS_SIZE_VER0, and the page size that clone3 takes at most."""

ARCH_SET_GS, ARCH_SET_FS, ARCH_GET_FS, ARCH_GET_GS = 0x1001, 0x1002, 0x1003, 0x1004

CloneFlags = Annotated[int, FlagSet(CLONE_NAMES, code="{r}")]
ArchCode = Annotated[
    int,
    EnumSet(
        {
            "ARCH_SET_GS": ARCH_SET_GS,
            "ARCH_SET_FS": ARCH_SET_FS,
            "ARCH_GET_FS": ARCH_GET_FS,
            "ARCH_GET_GS": ARCH_GET_GS,
        }
    ),
]
Stack = Annotated[int, HexArg("void *")]


@syscall("fork", in_place=False)
def fork(task: Task) -> int:
    """man 2 fork."""
    return clone_locked(task, CloneArgs(0))


@syscall("vfork", in_place=False)
def vfork(task: Task) -> int:
    """man 2 vfork."""
    return clone_locked(task, CloneArgs(CLONE_VFORK | CLONE_VM))


@syscall("clone", in_place=False)
def clone(task: Task, flags: CloneFlags, stack: Stack, parent_tid: Ptr, child_tid: Ptr, tls: Ptr) -> int:
    """man 2 clone, with the argument order of x86-64."""
    flags &= 0xFFFF_FFFF
    exit_signal = flags & CSIGNAL
    if flags & CLONE_PIDFD and flags & CLONE_PARENT_SETTID:
        raise SysError(errno.EINVAL, "two numbers for one place")
    return clone_locked(task, CloneArgs(flags & ~CSIGNAL, exit_signal, stack, parent_tid, child_tid, tls))


@syscall("clone3", in_place=False)
def clone3(task: Task, cl_args: Ptr, size: Size) -> int:
    """man 2 clone3."""
    smallest, largest = CLONE_ARGS_SIZES
    if size > largest:
        raise SysError(errno.E2BIG)
    if size < smallest:
        raise SysError(errno.EINVAL)
    raw = task.memory.read(cl_args, size)
    if any(raw[88:]):
        raise SysError(errno.E2BIG, "fields of a newer kernel")
    fields = struct.unpack("<11Q", raw[:88].ljust(88, b"\0"))
    flags, _, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, _ = fields
    if flags & ~CLONE_KNOWN or flags & (CLONE_DETACHED | (CSIGNAL & ~0x80)) or exit_signal > 64:
        raise SysError(errno.EINVAL)
    if flags & (CLONE_THREAD | CLONE_PARENT) and exit_signal:
        raise SysError(errno.EINVAL, "a thread has no exit signal")
    if bool(stack) != bool(stack_size) or bool(set_tid) != bool(set_tid_size):
        raise SysError(errno.EINVAL)
    if stack and stack + stack_size > TASK_SIZE:
        raise SysError(errno.EINVAL, "stack outside of the address space")
    if set_tid or flags & CLONE_INTO_CGROUP:
        raise SysError(errno.EINVAL, "set_tid and cgroups are not there")
    return clone_locked(task, CloneArgs(flags, exit_signal, stack + stack_size, parent_tid, child_tid, tls))


@syscall("exit", in_place=False)
def exit_(task: Task, status: Int) -> int:
    """End the calling thread. The process's status is its leader's, whoever ends last."""
    task.exit_status = (status & 0xFF) << 8
    if task.tid == task.process.pid:
        task.process.status = task.exit_status
    raise TaskExit


@syscall("exit_group", in_place=False)
def exit_group(task: Task, status: Int) -> int:
    task.process.exit_group_locked((status & 0xFF) << 8)
    raise TaskExit


@syscall("arch_prctl", in_place=False)
def arch_prctl(task: Task, code: ArchCode, addr: Ptr) -> int:
    """man 2 arch_prctl; a base outside of the program's half is EPERM."""
    cpu = task.cpu
    if code in (ARCH_SET_FS, ARCH_SET_GS):
        if addr >= TASK_SIZE:
            raise SysError(errno.EPERM, "base outside of the address space")
        if code == ARCH_SET_FS:
            cpu.fs_base = addr
        else:
            cpu.gs_base = addr
        return 0
    if code in (ARCH_GET_FS, ARCH_GET_GS):
        task.memory.write_u64(addr, cpu.fs_base if code == ARCH_GET_FS else cpu.gs_base)
        return 0
    raise SysError(errno.EINVAL, "unknown code")
