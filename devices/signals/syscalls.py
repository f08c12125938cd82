"""kill, rt_sigaction, rt_sigprocmask and their families: decode, check, let the model do it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Pid, Ptr, Size, TimespecPtr
from devices.bus import syscall
from devices.errors import ERESTARTNOHAND, Interrupted, LeaveGuest, SysError
from devices.signals import altstack, delivery, send
from devices.signals.abi import (
    KERNEL_SIGINFO_SIZE,
    NSIG,
    SA_FLAGS,
    SI_TKILL,
    SIG_BLOCK,
    SIG_SETMASK,
    SIG_UNBLOCK,
    SIGACTION,
    SIGINFO_SIZE,
    SIGSET_SIZE,
    STACK,
    UNBLOCKABLE,
    SigactionOut,
    SigactionPtr,
    SigHow,
    Signal,
    SigsetOut,
    SigsetPtr,
    StackOut,
    StackPtr,
)
from devices.signals.info import SigInfo
from devices.signals.queue import Action
from devices.time.abi import read_timespec
from devices.wait import Waiter, WaitQueue
from vmm.cpu import RSP

if TYPE_CHECKING:
    from collections.abc import Iterable

    from devices.task.process import Process
    from devices.task.task import Task

INT_MIN = -(1 << 31)


def check_size(sigsetsize: int) -> None:
    if sigsetsize != SIGSET_SIZE:
        raise SysError(errno.EINVAL, "sigsetsize is not 8")


# Dispositions and masks


@syscall("rt_sigaction")
def rt_sigaction(task: Task, signum: Signal, act: SigactionPtr, oldact: SigactionOut, sigsetsize: Size) -> int:
    """man 2 sigaction."""
    check_size(sigsetsize)
    new = task.memory.read_struct(act, SIGACTION) if act else None
    if not 1 <= signum <= NSIG or (new and UNBLOCKABLE >> signum - 1 & 1):
        raise SysError(errno.EINVAL)
    process = task.process
    old = process.actions[signum]
    if new:
        handler, flags, restorer, mask = new
        process.actions[signum] = Action(handler, flags & SA_FLAGS, restorer, mask & ~UNBLOCKABLE)
        if process.actions.is_ignored(1 << signum - 1):
            send.discard_locked(process, 1 << signum - 1)
    if oldact:
        task.memory.write_struct(oldact, SIGACTION, old.handler, old.flags, old.restorer, old.mask)
    return 0


@syscall("rt_sigprocmask")
def rt_sigprocmask(task: Task, how: SigHow, nset: SigsetPtr, oldset: SigsetOut, sigsetsize: Size) -> int:
    """man 2 sigprocmask. What it unblocks is delivered before it returns."""
    check_size(sigsetsize)
    old = mask = task.sigmask
    if nset:
        change = task.memory.read_u64(nset)
        if how == SIG_BLOCK:
            mask = old | change
        elif how == SIG_UNBLOCK:
            mask = old & ~change
        elif how == SIG_SETMASK:
            mask = change
        else:
            raise SysError(errno.EINVAL)
        if mask != old:
            if task.in_place and (task.pending.bits | task.process.pending.bits) & old & ~mask:
                raise LeaveGuest
            send.set_mask_locked(task, mask)
    if oldset:
        task.memory.write_u64(oldset, old)
    return 0


@syscall("rt_sigpending")
def rt_sigpending(task: Task, uset: SigsetOut, sigsetsize: Size) -> int:
    """man 2 sigpending. A shorter set is allowed here."""
    if sigsetsize > SIGSET_SIZE:
        raise SysError(errno.EINVAL)
    blocked = (task.pending.bits | task.process.pending.bits) & task.sigmask
    task.memory.write(uset, blocked.to_bytes(SIGSET_SIZE, "little")[:sigsetsize])
    return 0


@syscall("sigaltstack")
def sigaltstack(task: Task, ss: StackPtr, old_ss: StackOut) -> int:
    """man 2 sigaltstack."""
    new = task.memory.read(ss, STACK.size) if ss else b""
    sp = task.cpu.save()[RSP]
    old = altstack.describe(task, sp)
    if new:
        altstack.set_from(task, new, sp)
    if old_ss:
        task.memory.write(old_ss, old)
    return 0


@syscall("rt_sigreturn", in_place=False)
def rt_sigreturn(task: Task) -> int:
    """man 2 sigreturn: only the C library's sa_restorer calls it."""
    return delivery.return_locked(task)


@syscall("restart_syscall", in_place=False)
def restart_syscall(task: Task) -> int:
    """man 2 restart_syscall: go on with the sleep that a stop has cut short."""
    again, task.restart_block = task.restart_block, None
    if again is None:
        raise SysError(errno.EINTR)
    return again(task)


# Waiting


@syscall("pause", in_place=False)
def pause(task: Task) -> int:
    """man 2 pause."""
    queue = WaitQueue()
    while True:
        task.block(queue, restart=ERESTARTNOHAND)


@syscall("rt_sigsuspend", in_place=False)
def rt_sigsuspend(task: Task, unewset: SigsetPtr, sigsetsize: Size) -> int:
    """man 2 sigsuspend. The old mask comes back once the signal has been delivered."""
    check_size(sigsetsize)
    mask = task.memory.read_u64(unewset)
    task.saved_sigmask = task.sigmask
    send.set_mask_locked(task, mask)
    return pause(task)


@syscall("rt_sigtimedwait")
def rt_sigtimedwait(task: Task, uthese: SigsetPtr, uinfo: Ptr, uts: TimespecPtr, sigsetsize: Size) -> int:
    """man 2 sigtimedwait. Never restarted: what interrupts it gives EINTR."""
    check_size(sigsetsize)
    these = task.memory.read_u64(uthese) & ~UNBLOCKABLE
    timeout = read_timespec(task.memory, uts) if uts else None
    info = take_locked(task, these)
    if info is None:
        info = wait_for_locked(task, these, timeout)
    if uinfo:
        task.memory.write(uinfo, info.pack())
    return info.signo


def take_locked(task: Task, these: int) -> SigInfo | None:
    return task.pending.take(these) or task.process.pending.take(these)


def wait_for_locked(task: Task, these: int, timeout: int | None) -> SigInfo:
    """Sleep until one of `these` comes. SysError: EAGAIN at the end of the time, EINTR for any other signal."""
    if timeout == 0:
        raise SysError(errno.EAGAIN)
    clock = task.kernel.clock
    shared = task.process.pending
    if shared.waiters is None:
        shared.waiters = WaitQueue()
    deadline = None if timeout is None else clock.monotonic_ns() + timeout
    woken = False
    while not woken:
        try:
            woken = task.block(shared.waiters, deadline, waiter=Waiter(task, these))
        except Interrupted:
            woken = True
        info = take_locked(task, these)
        if info is not None:
            return info
        if deadline is not None and not woken and clock.monotonic_ns() >= deadline:
            raise SysError(errno.EAGAIN)
    raise SysError(errno.EINTR)  # also when another task was quicker to take the signal


# Sending


@syscall("kill", in_place=False)
def kill(task: Task, pid: Pid, sig: Signal) -> int:
    """man 2 kill. A signal to the caller that it does not block is delivered before this returns."""
    info = SigInfo.sent_by(task, sig)
    if pid > 0:
        send_to_pid_locked(task, pid, info)
    elif pid == -1:
        others = [p for p in task.kernel.processes.values() if p.pid > 1 and p is not task.process]
        send_to_all_locked(task, others, info, allow=errno.EPERM)
    elif pid == INT_MIN:
        raise SysError(errno.ESRCH)
    else:
        group = -pid or task.process.pgid
        send_to_all_locked(task, [p for p in task.kernel.processes.values() if p.pgid == group], info)
    return 0


@syscall("tkill", in_place=False)
def tkill(task: Task, tid: Pid, sig: Signal) -> int:
    """man 2 tkill."""
    send_to_tid_locked(task, 0, tid, SigInfo.sent_by(task, sig, SI_TKILL))
    return 0


@syscall("tgkill", in_place=False)
def tgkill(task: Task, tgid: Pid, tid: Pid, sig: Signal) -> int:
    """man 2 tgkill."""
    if tgid <= 0:
        raise SysError(errno.EINVAL)
    send_to_tid_locked(task, tgid, tid, SigInfo.sent_by(task, sig, SI_TKILL))
    return 0


@syscall("rt_sigqueueinfo", in_place=False)
def rt_sigqueueinfo(task: Task, tgid: Pid, sig: Signal, info: Ptr) -> int:
    """man 2 rt_sigqueueinfo."""
    siginfo = read_info(task, sig, info)
    if siginfo.impersonates() and tgid != task.tid:
        raise SysError(errno.EPERM, "only the kernel and kill() may say that")
    send_to_pid_locked(task, tgid, siginfo)
    return 0


@syscall("rt_tgsigqueueinfo", in_place=False)
def rt_tgsigqueueinfo(task: Task, tgid: Pid, tid: Pid, sig: Signal, info: Ptr) -> int:
    """man 2 rt_tgsigqueueinfo."""
    siginfo = read_info(task, sig, info)
    if tgid <= 0 or tid <= 0:
        raise SysError(errno.EINVAL)
    if siginfo.impersonates() and tid != task.tid:
        raise SysError(errno.EPERM, "only the kernel and kill() may say that")
    send_to_tid_locked(task, tgid, tid, siginfo)
    return 0


def read_info(task: Task, sig: int, address: int) -> SigInfo:
    """A program's siginfo_t. SysError: EFAULT; E2BIG when it has more than the kernel would keep."""
    info = SigInfo.unpack(sig, task.memory.read(address, KERNEL_SIGINFO_SIZE))
    rest = SIGINFO_SIZE - KERNEL_SIGINFO_SIZE
    if not info.layout_known() and any(task.memory.read(address + KERNEL_SIGINFO_SIZE, rest)):
        raise SysError(errno.E2BIG)
    return info


def send_to_pid_locked(task: Task, pid: int, info: SigInfo) -> None:
    """To the process with this pid, or to that of the task with this tid (kill_pid_info()). SysError: EINVAL, EPERM,
    ESRCH, EAGAIN."""
    kernel = task.kernel
    first = kernel.tasks.get(pid)
    process = first.process if first else kernel.processes.get(pid)
    if process is not None:
        send_checked_locked(task, process, info, first)
    elif pid == kernel.INIT_PID:
        send.check_permission_for_init(task, info.signo)
    else:
        raise SysError(errno.ESRCH)


def send_to_tid_locked(task: Task, tgid: int, tid: int, info: SigInfo) -> None:
    """To one task; `tgid` 0 is any process (do_send_specific())."""
    if tid <= 0:
        raise SysError(errno.EINVAL)
    target = task.kernel.tasks.get(tid)
    if target is None or (tgid and target.process.pid != tgid):
        raise SysError(errno.ESRCH)
    send.check_permission(task, target, info.signo, info)
    if info.signo:
        send.send_locked(target, info.signo, info)


def send_checked_locked(task: Task, process: Process, info: SigInfo, first: Task | None = None) -> None:
    """Signal 0 only asks whether it could be sent."""
    send.check_permission(task, process, info.signo, info)
    if info.signo:
        send.send_locked(process, info.signo, info, first=first)


def send_to_all_locked(task: Task, processes: Iterable[Process], info: SigInfo, allow: int = 0) -> None:
    """To each of them; an error only if none took it (__kill_pgrp_info()). `allow` is an errno that does not count."""
    failure: SysError | None = SysError(errno.ESRCH)
    for process in processes:
        try:
            send_checked_locked(task, process, info)
            failure = None
        except SysError as error:
            if error.errno == allow:
                failure = None
            elif failure is not None:
                failure = error
    if failure is not None:
        raise failure
