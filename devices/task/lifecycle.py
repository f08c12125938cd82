"""clone, exit and the per-thread CPU state: how a task begins and ends (kernel/fork.c, kernel/exit.c).

Threads of one process only: what asks for a new process (no CLONE_THREAD) gets ENOSYS.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet, HexArg, Int, Ptr, Size
from devices.bus import syscall
from devices.errors import ERESTARTNOINTR, SysError, TaskExit
from devices.task.task import Task
from vmm.cpu import RAX, RSP
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from vmm.cpu import Cpu

CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PIDFD, CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT, CLONE_THREAD = 0x1000, 0x2000, 0x4000, 0x8000, 0x10000
CLONE_NEWNS, CLONE_SYSVSEM, CLONE_SETTLS, CLONE_PARENT_SETTID = 0x20000, 0x40000, 0x80000, 0x100000
CLONE_CHILD_CLEARTID, CLONE_DETACHED, CLONE_UNTRACED, CLONE_CHILD_SETTID = 0x200000, 0x400000, 0x800000, 0x1000000
CLONE_NEWUSER, CLONE_NEWPID = 0x10000000, 0x20000000
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 1 << 32, 1 << 33
CSIGNAL = 0xFF
CLONE_NAMES = {name: value for name, value in list(globals().items()) if name.startswith("CLONE_")}
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


@syscall("clone", in_place=False)
def clone(task: Task, flags: CloneFlags, stack: Stack, parent_tid: Ptr, child_tid: Ptr, tls: Ptr) -> int:
    """man 2 clone, with the argument order of x86-64."""
    return start_thread(task, flags & ~CSIGNAL & 0xFFFF_FFFF, stack, parent_tid, child_tid, tls)


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
    return start_thread(task, flags, stack + stack_size, parent_tid, child_tid, tls)


def check_clone_flags(flags: int) -> None:
    """The rules of copy_process() in kernel/fork.c."""
    bad = (
        (flags & CLONE_THREAD and not flags & CLONE_SIGHAND)
        or (flags & CLONE_SIGHAND and not flags & CLONE_VM)
        or (flags & CLONE_FS and flags & (CLONE_NEWNS | CLONE_NEWUSER))
        or (flags & CLONE_THREAD and flags & (CLONE_NEWUSER | CLONE_NEWPID))
        or (flags & CLONE_PIDFD and flags & (CLONE_DETACHED | CLONE_THREAD | CLONE_PARENT_SETTID))
        or (flags & CLONE_SIGHAND and flags & CLONE_CLEAR_SIGHAND)
    )
    if bad:
        raise SysError(errno.EINVAL, "flags that exclude or need each other")
    if not flags & CLONE_THREAD:
        raise SysError(errno.ENOSYS, "new processes are not there yet")


def start_thread(parent: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int) -> int:
    """Make a thread of `parent`'s process that returns 0 from the call; its tid."""
    check_clone_flags(flags)
    parent.check_may_wait_locked(ERESTARTNOINTR)  # a process that is being stopped or ended starts nothing
    kernel = parent.kernel
    if flags & CLONE_SETTLS and tls >= TASK_SIZE:
        raise SysError(errno.EPERM, "TLS outside of the address space")
    child = Task(parent.process, kernel.new_pid_locked(), parent.credentials)
    child.comm = parent.comm
    child.sigmask = parent.sigmask
    child.scheduling = parent.scheduling.for_child()
    child.no_new_privs = parent.no_new_privs
    child.timer_slack_ns = child.default_timer_slack_ns = parent.timer_slack_ns
    if flags & CLONE_CHILD_CLEARTID:
        child.clear_child_tid = child_tid
    state = parent.cpu.save()
    state[RAX] = 0
    if stack:
        state[RSP] = stack
    fs_base = tls if flags & CLONE_SETTLS else parent.cpu.fs_base
    gs_base = parent.cpu.gs_base
    fpu = parent.cpu.get_fpu()
    if flags & CLONE_PARENT_SETTID:
        parent.memory.write_u32(parent_tid, child.tid)
    if flags & CLONE_CHILD_SETTID:
        parent.memory.write_u32(child_tid, child.tid)

    def enter(cpu: Cpu) -> None:
        cpu.load(state)
        cpu.fs_base = fs_base
        cpu.gs_base = gs_base
        cpu.set_fpu(fpu)

    kernel.add_task_locked(child)
    try:
        kernel.threads.start_task(child, enter)
    except OSError as error:
        kernel.discard_task_locked(child)
        raise SysError(errno.EAGAIN, f"no vCPU: {error}") from error
    return child.tid


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
