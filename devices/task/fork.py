"""New tasks and processes: what they share with their parent and what they get a copy of (copy_process()).

The rules are in man 2 clone; the calls that lead here are in lifecycle.py.
"""

from __future__ import annotations

import errno
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import ERESTARTNOINTR, SysError, TaskExit
from devices.signals import altstack
from devices.signals.abi import SIGCHLD
from devices.task.capabilities import CAP_SYS_ADMIN, CAP_SYS_RESOURCE
from devices.task.process import Process
from devices.task.rlimits import RLIMIT_NPROC
from devices.task.task import Task
from vmm.cpu import RAX, RSP
from vmm.layout import TASK_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from vmm.cpu import Cpu

CLONE_NEWTIME = 0x80
CLONE_VM, CLONE_FS, CLONE_FILES, CLONE_SIGHAND = 0x100, 0x200, 0x400, 0x800
CLONE_PIDFD, CLONE_PTRACE, CLONE_VFORK, CLONE_PARENT, CLONE_THREAD = 0x1000, 0x2000, 0x4000, 0x8000, 0x10000
CLONE_NEWNS, CLONE_SYSVSEM, CLONE_SETTLS, CLONE_PARENT_SETTID = 0x20000, 0x40000, 0x80000, 0x100000
CLONE_CHILD_CLEARTID, CLONE_DETACHED, CLONE_UNTRACED, CLONE_CHILD_SETTID = 0x200000, 0x400000, 0x800000, 0x1000000
CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWUSER = 0x2000000, 0x4000000, 0x8000000, 0x10000000
CLONE_NEWPID, CLONE_NEWNET, CLONE_IO = 0x20000000, 0x40000000, 0x80000000
CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP = 1 << 32, 1 << 33
NAMESPACES = (
    CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
    | CLONE_NEWTIME
)  # fmt: skip


class CloneArgs(NamedTuple):
    """struct kernel_clone_args: what clone, clone3, fork and vfork come down to."""

    flags: int
    exit_signal: int = SIGCHLD
    stack: int = 0
    """The child's first stack pointer; 0: the parent's."""
    parent_tid: int = 0
    child_tid: int = 0
    tls: int = 0


def check_flags(flags: int) -> None:
    """The rules of copy_process() in kernel/fork.c. SysError(EINVAL)."""
    bad = (
        (flags & CLONE_THREAD and not flags & CLONE_SIGHAND)
        or (flags & CLONE_SIGHAND and not flags & CLONE_VM)
        or (flags & CLONE_FS and flags & (CLONE_NEWNS | CLONE_NEWUSER))
        or (flags & CLONE_THREAD and flags & (CLONE_NEWUSER | CLONE_NEWPID))
        or (flags & CLONE_PIDFD and flags & CLONE_DETACHED)
        or (flags & CLONE_SIGHAND and flags & CLONE_CLEAR_SIGHAND)
    )
    if bad:
        raise SysError(errno.EINVAL, "flags that exclude or need each other")
    if flags & (NAMESPACES | CLONE_PIDFD | CLONE_INTO_CGROUP):
        raise SysError(errno.EINVAL, "namespaces, pidfds and cgroups are not there")
    if flags & CLONE_THREAD and not flags & CLONE_FS:
        raise SysError(errno.EINVAL, "a thread with a working directory of its own is not there")


def check_limits(task: Task) -> None:
    """SysError(EAGAIN) when the user has as many tasks as RLIMIT_NPROC allows."""
    own = task.credentials
    limit = task.process.rlimits[RLIMIT_NPROC][0]
    if own.uid == 0 or own.capable(CAP_SYS_RESOURCE) or own.capable(CAP_SYS_ADMIN):
        return
    kernel = task.kernel
    if limit <= len(kernel.tasks) + len(kernel.processes):  # else it cannot be reached
        zombies = sum(p.zombie and p.leader is not None and p.leader.credentials.uid == own.uid
                      for p in kernel.processes.values())  # fmt: skip
        if sum(t.credentials.uid == own.uid for t in kernel.tasks.values()) + zombies >= limit:
            raise SysError(errno.EAGAIN, "RLIMIT_NPROC")


def clone_locked(parent: Task, args: CloneArgs) -> int:
    """Make a task that goes on where `parent` does, with the result 0; its tid, once a vfork'ed one lets go."""
    flags = args.flags
    check_flags(flags)
    parent.check_may_wait_locked(ERESTARTNOINTR)  # a process that is being stopped or ended starts nothing
    check_limits(parent)
    if flags & CLONE_SETTLS and args.tls >= TASK_SIZE:
        raise SysError(errno.EPERM, "TLS outside of the address space")
    tid = parent.kernel.new_pid_locked()
    if flags & CLONE_THREAD:
        child = Task(parent.process, tid, parent.credentials)
        if not flags & CLONE_FILES:
            child.files = parent.files.copy()
        elif parent.files is not parent.process.files:
            child.files = parent.files
            child.files.users += 1
    else:
        process = copy_process_locked(parent, tid, flags, args.exit_signal)
        child = Task(process, tid, parent.credentials)
    copy_task(parent, child, flags)
    parent.kernel.add_task_locked(child)
    try:
        start(parent, child, args)
    except BaseException:
        abandon_locked(child, flags)
        raise
    if flags & CLONE_VFORK:
        child.vfork_parent = parent
        wait_vfork_locked(parent, child)
    return tid


def wait_vfork_locked(parent: Task, child: Task) -> None:
    """Until the child has ended or called execve. Raises TaskExit."""
    try:
        while child.vfork_parent is not None:
            parent.sleep_killable()
    except TaskExit:
        child.vfork_parent = None
        raise


def abandon_locked(child: Task, flags: int) -> None:
    """The child could not be started."""
    if not flags & CLONE_THREAD:
        child.kernel.abandon_locked(child.process)
        return
    if child.files is not child.process.files:
        child.files.release_locked()
    child.kernel.discard_task_locked(child)


def copy_task(parent: Task, child: Task, flags: int) -> None:
    """What a task has of its own."""
    child.comm = parent.comm
    child.sigmask = parent.sigmask
    child.scheduling = parent.scheduling.for_child()
    child.no_new_privs = parent.no_new_privs
    child.timer_slack_ns = child.default_timer_slack_ns = parent.timer_slack_ns
    child.altstack = parent.altstack if flags & (CLONE_VM | CLONE_VFORK) != CLONE_VM else altstack.NONE


def start(parent: Task, child: Task, args: CloneArgs) -> None:
    """Write the tids where they are wanted and give the child its CPU, with the parent's state. SysError(EAGAIN)."""
    flags = args.flags
    if flags & CLONE_CHILD_CLEARTID:
        child.clear_child_tid = args.child_tid
    if flags & CLONE_PARENT_SETTID:
        with suppress(SysError):  # the kernel does not look whether it can be written either
            parent.memory.write_u32(args.parent_tid, child.tid)
    if flags & CLONE_CHILD_SETTID:
        with suppress(SysError):
            child.memory.write_u32(args.child_tid, child.tid)
    state = parent.cpu.save()
    state[RAX] = 0
    if args.stack:
        state[RSP] = args.stack
    fs_base = args.tls if flags & CLONE_SETTLS else parent.cpu.fs_base
    gs_base = parent.cpu.gs_base
    fpu = parent.cpu.get_fpu()

    def enter(cpu: Cpu) -> None:
        cpu.load(state)
        cpu.fs_base = fs_base
        cpu.gs_base = gs_base
        cpu.set_fpu(fpu)

    try:
        parent.kernel.threads.start_task(child, enter)
    except OSError as error:
        raise SysError(errno.EAGAIN, f"no vCPU: {error}") from error


# Processes


def copy_process_locked(task: Task, pid: int, flags: int, exit_signal: int) -> Process:
    """A process like the caller's, without a task yet. SysError(ENOMEM)."""
    parent = task.process
    kernel = parent.kernel
    shared = flags & CLONE_VM
    try:
        memory = parent.memory.share() if shared else parent.memory.fork()
    except OutOfFrames:
        raise SysError(errno.ENOMEM, "the machine's memory is used up") from None
    files = task.files
    if flags & CLONE_FILES:
        files.users += 1
    else:
        files = files.copy()
    fs = parent.fs.share() if flags & CLONE_FS else parent.fs.copy()
    child = Process(kernel, pid, memory, files, fs)
    child.job = parent.job
    child.pgid, child.sid = parent.pgid, parent.sid
    cleared = bool(flags & CLONE_CLEAR_SIGHAND)
    child.actions = parent.actions if flags & CLONE_SIGHAND else parent.actions.copy(clear=cleared)
    child.rlimits = list(parent.rlimits)
    if not shared:
        memory.rlimits = child.rlimits
    inherit(parent, child)
    if flags & CLONE_PARENT:
        child.exit_signal = parent.exit_signal
        child.set_parent_locked(parent.parent_task)
    else:
        child.exit_signal = exit_signal
        child.set_parent_locked(task)
    kernel.processes[pid] = child
    return child


INHERITED = ("dumpable", "thp_disable", "comm", "exe", "argv", "environ", "auxv")


def inherit(parent: Process, child: Process) -> None:
    for name in INHERITED:
        setattr(child, name, getattr(parent, name))
    if parent.executable is not None:
        child.executable = parent.executable.share()
