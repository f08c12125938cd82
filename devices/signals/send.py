"""Generation: a signal is sent, made pending where it belongs, and the task that is to take it is told.

Also the changes of a task's mask, since blocking a signal may leave it to another task. All needs the kernel lock.
kernel/signal.c: prepare_signal(), __send_signal_locked(), complete_signal(), force_sig_info_to_task(),
__set_task_blocked().
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.abi import (
    CAP_KILL,
    DUMPS_CORE,
    IGNORED_BY_DEFAULT,
    NSIG,
    RLIMIT_SIGPENDING,
    SI_USER,
    SIG_IGN,
    SIGCONT,
    SIGINT,
    SIGKILL,
    SIGQUIT,
    SIGRTMIN,
    SIGTSTP,
    STOP_SIGNALS,
    UNBLOCKABLE,
    sigmask,
)
from devices.signals.info import SigInfo
from devices.signals.stop import continue_locked
from devices.task.process import Process

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.signals.queue import SignalQueue
    from devices.task.task import Task
    from devices.wait import Waiter

NOT_FATAL_AT_ONCE = IGNORED_BY_DEFAULT | STOP_SIGNALS | DUMPS_CORE
FROM_KEYBOARD = (SIGINT, SIGQUIT, SIGTSTP)


def send_locked(target: Task | Process, signo: int, info: SigInfo | None = None, *, first: Task | None = None) -> None:
    """Send signal `signo` (1-64) to a task, or to a process, of which one task will take it.

    Without `info` it comes from the kernel itself (SI_KERNEL). `first` is the task of the process that is asked first,
    its leader if not given. SysError(EAGAIN): a real-time signal that would exceed RLIMIT_SIGPENDING. Permission is
    not checked here.
    """
    if isinstance(target, Process):
        process, queue = target, target.pending
        first = first or leader_locked(process)
    else:
        process, queue = target.process, target.pending
        first = target
    if first is None or process.exiting:
        return
    bit = 1 << signo - 1
    if bit & STOP_SIGNALS:
        discard_locked(process, sigmask(SIGCONT))
    elif signo == SIGCONT:
        discard_locked(process, STOP_SIGNALS)
        continue_locked(process)
    if not first.sigmask & bit and process.actions.is_ignored(bit):
        return  # a blocked one is kept: there may be a handler by the time it is unblocked
    info = info or SigInfo.kernel(signo)
    if signo == SIGKILL:
        _end_locked(first, info)
    elif signo >= SIGRTMIN or not queue.bits & bit:  # a standard signal is pending once at most
        _queue_locked(queue, first, info)
        chosen = _choose_locked(first, bit, alone=queue is first.pending)
        if chosen is not None:
            _tell_locked(chosen, bit, info)


def kill_process_locked(process: Process) -> None:
    """SIGKILL, from the kernel."""
    send_locked(process, SIGKILL)


def send_from_host_locked(process: Process, signo: int) -> None:
    """A signal from the person who runs the machine: keyboard signals come from the terminal, hence from the kernel,
    others from a process that the guest cannot see (si_pid 0, as from another pid namespace)."""
    if not 1 <= signo <= NSIG:
        raise ValueError(f"{signo} is no signal")
    info = SigInfo.kernel(signo) if signo in FROM_KEYBOARD else SigInfo(signo, SI_USER)
    send_locked(process, signo, info)


def force_locked(task: Task, info: SigInfo, *, default: bool = False) -> None:
    """A signal that `task` cannot escape (force_sig_info_to_task()): blocked or ignored, or with `default`, it gets the
    default action; with a handler, the handler runs."""
    signo = info.signo
    bit = 1 << signo - 1
    actions = task.process.actions
    blocked = task.sigmask & bit
    if blocked or default or actions[signo].handler == SIG_IGN:
        actions.set_default(signo)
        task.sigmask &= ~bit
    send_locked(task, signo, info)
    task.work = True  # also if it was pending, blocked, before


def check_permission(sender: Task, target: Task | Process, signo: int, info: SigInfo) -> None:
    """May `sender` send this? kill(2), check_kill_permission(). SysError EINVAL (no such signal) or EPERM."""
    check_number(signo)
    process = target if isinstance(target, Process) else target.process
    if info.code > 0 or process is sender.process:
        return
    receiver = leader_locked(target) or target.leader if isinstance(target, Process) else target
    if receiver is None:
        raise SysError(errno.ESRCH)
    ours, theirs = sender.credentials, receiver.credentials
    allowed = {ours.euid, ours.uid} & {theirs.suid, theirs.uid} or ours.capable(CAP_KILL)
    if not allowed and not (signo == SIGCONT and process.sid == sender.process.sid):
        raise SysError(errno.EPERM)


def check_permission_for_init(sender: Task, signo: int) -> None:
    """The same for process 1, which the monitor plays: root's, and deaf to all signals (pid_namespaces(7))."""
    check_number(signo)
    ours = sender.credentials
    if ours.euid and ours.uid and not ours.capable(CAP_KILL):
        raise SysError(errno.EPERM)


def check_number(signo: int) -> None:
    if not 0 <= signo <= NSIG:
        raise SysError(errno.EINVAL, "no such signal")


def set_mask_locked(task: Task, mask: int) -> None:
    """Set the signals that `task` blocks. SIGKILL and SIGSTOP cannot be blocked."""
    mask &= ~UNBLOCKABLE
    shared = task.process.pending.bits
    newly = shared & mask & ~task.sigmask
    task.sigmask = mask
    if newly:
        _retarget_locked(task, newly)
    if (task.pending.bits | shared) & ~mask:
        task.work = True


def task_exits_locked(task: Task) -> None:
    """`task` takes no more signals: what its process was sent and it was told of goes to others (exit_signals())."""
    process = task.process
    if process.pending.target is task:
        process.pending.target = None
    if not process.exiting:
        _retarget_locked(task, process.pending.bits & ~task.sigmask)


def leader_locked(process: Process) -> Task | None:
    """The task that stands for the process: its leader, the eldest when that has ended, None when all have."""
    return process.tasks.get(process.pid) or next(iter(process.tasks.values()), None)


def queued_for_user_locked(kernel: Kernel, uid: int) -> int:
    """Signals that are queued for the tasks of a user: what RLIMIT_SIGPENDING limits.

    Counted anew each time, which costs little with some hundreds of tasks and cannot drift.
    """
    total = 0
    for process in kernel.processes.values():
        queues = [task.pending for task in process.tasks.values() if task.credentials.uid == uid]
        if queues:
            total += process.pending.queued + sum(queue.queued for queue in queues)
    return total


# How it is done


def discard_locked(process: Process, mask: int) -> None:
    """Forget what is pending for the process or any of its tasks out of a signal set."""
    process.pending.discard(mask)
    for task in process.tasks.values():
        task.pending.discard(mask)


def _queue_locked(queue: SignalQueue, task: Task, info: SigInfo) -> None:
    """Make the signal pending, with its siginfo if RLIMIT_SIGPENDING allows that or does not hold for it."""
    process = task.process
    signo = info.signo
    if (signo < SIGRTMIN and info.code >= 0) or (
        queued_for_user_locked(process.kernel, task.credentials.uid) < process.rlimits[RLIMIT_SIGPENDING][0]
    ):
        queue.put(signo, info)
    elif signo >= SIGRTMIN and info.code != SI_USER:
        raise SysError(errno.EAGAIN, "RLIMIT_SIGPENDING")
    else:
        queue.put(signo, None)  # kill() must not fail: the signal counts, what it says about itself is lost


def _awaiting(task: Task) -> Waiter | None:
    """The task's sleep in rt_sigtimedwait; its key is the set that it waits for."""
    waiters = task.process.pending.waiters
    if waiters:
        for waiter in waiters:
            if waiter.task is task:
                return waiter
    return None


def _blocked(task: Task) -> int:
    """What the task would not take now: a set that it waits for counts as unblocked."""
    waiter = _awaiting(task)
    return task.sigmask if waiter is None else task.sigmask & ~waiter.key


def _choose_locked(first: Task, bit: int, alone: bool) -> Task | None:
    """The task that is told of a signal (complete_signal()): `first` if it does not block it, else one of the others in
    turn; one that is to look at its signals anyway only if there is no other. None: all block it or are stopped."""
    process = first.process
    if process.pending.stop_signal:
        return None
    takes = not _blocked(first) & bit
    if alone or len(process.tasks) < 2 or (takes and not first.work):
        return first if takes else None
    tasks = list(process.tasks.values())
    target = process.pending.target
    start = tasks.index(target) if target in tasks else 0
    takers = [task for task in tasks[start:] + tasks[:start] if not _blocked(task) & bit]
    chosen = next((task for task in takers if not task.work), first if takes else takers[0] if takers else None)
    process.pending.target = chosen or target
    return chosen


def _tell_locked(task: Task, bit: int, info: SigInfo) -> None:
    """A task takes the signal: the whole process ends at once if that is what it means, else the task is woken."""
    ends = not bit & NOT_FATAL_AT_ONCE and task.process.actions.is_default(bit) and not task.sigmask & bit
    if ends:
        _end_locked(task, info)
    else:
        _wake_locked(task, bit)


def _end_locked(task: Task, info: SigInfo) -> None:
    tracer = task.kernel.tracer
    if tracer:
        from devices.signals.show import describe

        tracer.signal(task, info.signo, *describe(info))
    task.process.exit_group_locked(info.signo)


def _wake_locked(task: Task, bits: int) -> None:
    waiter = _awaiting(task)
    if waiter is not None and waiter.key & bits:
        waiter.wake()
    else:
        task.notify_locked()


def _retarget_locked(task: Task, signals: int) -> None:
    """Others are told of signals pending for the process that `task` will not take (retarget_shared_pending())."""
    for other in task.process.tasks.values():
        if not signals:
            break
        takes = signals & ~_blocked(other)
        if other is not task and takes:
            signals &= ~takes
            _wake_locked(other, takes)
