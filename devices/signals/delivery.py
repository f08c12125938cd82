"""What a task does about its signals before it goes back to the guest: handlers, default actions, calls to go on with.

get_signal() of kernel/signal.c; handle_signal() and arch_do_signal_or_restart() of arch/x86/kernel/signal.c. All of it
runs on the task's own thread with the kernel lock held, which is dropped only while the process is stopped.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTNOINTR, ERESTARTSYS, SysError, TaskExit
from devices.signals import altstack, fpstate, frame
from devices.signals.abi import (
    IGNORED_BY_DEFAULT,
    NR_RESTART_SYSCALL,
    SA_NODEFER,
    SA_RESETHAND,
    SA_RESTART,
    SIG_DFL,
    SIG_IGN,
    SIGSEGV,
    SIGSTOP,
    SS_AUTODISARM,
    STOP_SIGNALS,
    SYSCALL_LENGTH,
)
from devices.signals.info import SigInfo
from devices.signals.queue import STOP_PENDING
from devices.signals.send import force_locked, set_mask_locked
from devices.signals.stop import orphaned_locked, stop_locked, wait_stopped_locked
from vmm.cpu import GP, RAX, RIP, RSP

if TYPE_CHECKING:
    from devices.signals.queue import Action
    from devices.task.task import Task

U64 = 0xFFFF_FFFF_FFFF_FFFF
CANONICAL_HALF = 1 << 47


def pending_locked(task: Task) -> bool:
    """Is there a signal, or a stop, that the task does not block (signal_pending())?"""
    return (task.pending.bits | task.process.pending.bits) & ~task.sigmask != 0


def deliver_locked(task: Task, state: list[int] | None = None) -> None:
    """Act upon all signals that `task` does not block and decide what becomes of a call that one has cut short.

    `state` are the program's registers if they are not those of the CPU; they are changed and loaded. Raises TaskExit
    when the process ends.
    """
    pending = (task.pending.bits | task.process.pending.bits) & ~task.sigmask
    if not pending and task.restart is None and task.saved_sigmask is None and state is None:
        return
    cpu = task.cpu
    area = b""
    entered = 0
    while True:
        info = _next_locked(task)
        if info is not None:
            action = _action_locked(task, info)
            if action is not None:
                state = state or cpu.save()
                area = area or cpu.get_fpu()
                if _enter_handler_locked(task, state, area, info, action):
                    area = fpstate.initial(len(area))
                    entered = info.signo
        elif task.restart is not None:
            state = state or cpu.save()
            _go_on_locked(task, state)
        elif task.saved_sigmask is not None:
            mask, task.saved_sigmask = task.saved_sigmask, None
            set_mask_locked(task, mask)
        elif state is not None and not canonical(state[RIP]):
            # The CPU would fault at once. A handler of SIGSEGV that is there can only end in the default action.
            general_protection_locked(task, 0, default=entered == SIGSEGV)
        else:
            break
    task.work = task.process.exiting  # a frame may have used up the machine's memory
    if area:
        cpu.set_fpu(area)
    if state is not None:
        cpu.load(state)


def return_locked(task: Task) -> int:
    """rt_sigreturn(2): back to what the frame on the stack says; RAX of that."""
    old = task.cpu.save()
    try:
        saved = frame.read(task, old)
    except SysError:
        force_locked(task, SigInfo.kernel(SIGSEGV))
        return 0
    set_mask_locked(task, saved.mask)
    altstack.restore(task, saved.stack, old[RSP])
    task.restart_block = None
    try:
        fpstate.restore_locked(task, saved.fpstate)
    except SysError:
        force_locked(task, SigInfo.kernel(SIGSEGV))
    state = saved.registers
    if saved.selector:
        general_protection_locked(task, saved.selector & ~3)
    if saved.selector or not canonical(state[RIP]):
        deliver_locked(task, state)  # no CPU takes this state: only a signal handler can be entered from it
    else:
        task.cpu.load(state)
    return state[RAX]


def canonical(address: int) -> bool:
    """Are bits 47-63 of a 64-bit address alike?"""
    return address + CANONICAL_HALF & U64 < 2 * CANONICAL_HALF


def general_protection_locked(task: Task, error: int, *, default: bool = False) -> None:
    """The SIGSEGV of a #GP."""
    task.pending.trap = (GP, error, task.pending.trap[2])
    force_locked(task, SigInfo.kernel(SIGSEGV), default=default)


def _next_locked(task: Task) -> SigInfo | None:
    """Take the next signal that the task does not block, in the kernel's order. Sleeps while the process is stopped."""
    own = task.pending
    while own.bits & STOP_PENDING:
        wait_stopped_locked(task)
    unblocked = ~task.sigmask
    return own.take_synchronous(unblocked) or own.take(unblocked) or task.process.pending.take(unblocked)


def _action_locked(task: Task, info: SigInfo) -> Action | None:
    """Do what the process's disposition says; the action whose handler is to run, if one is. Raises TaskExit."""
    process = task.process
    signo = info.signo
    bit = 1 << signo - 1
    action = process.actions[signo]
    tracer = task.kernel.tracer
    if tracer:
        from devices.signals.show import describe

        tracer.signal(task, signo, *describe(info))
    if action.handler == SIG_DFL:
        if bit & STOP_SIGNALS:
            if signo == SIGSTOP or not orphaned_locked(process):
                stop_locked(process, signo)
        elif not bit & IGNORED_BY_DEFAULT:
            process.exit_group_locked(signo)  # no core is written, so no 0x80
            raise TaskExit
        return None
    if action.handler == SIG_IGN:
        return None
    if action.flags & SA_RESETHAND:
        process.actions.set_default(signo)
    return action


def _enter_handler_locked(task: Task, state: list[int], area: bytes, info: SigInfo, action: Action) -> bool:
    """Make `state` enter the handler; False, and a SIGSEGV is due, when its frame cannot be written."""
    if task.restart is not None:
        number, code = task.restart
        task.restart = None
        if code == ERESTARTNOINTR or (code == ERESTARTSYS and action.flags & SA_RESTART):
            _again(state, number)
        else:
            state[RAX] = -errno.EINTR & U64
    mask = task.sigmask if task.saved_sigmask is None else task.saved_sigmask
    try:
        frame.push(task, state, area, info, action, mask)
    except SysError:
        force_locked(task, SigInfo.kernel(SIGSEGV), default=info.signo == SIGSEGV)
        return False
    task.saved_sigmask = None  # it is in the frame
    if task.altstack[2] & SS_AUTODISARM:
        task.altstack = altstack.NONE
    own = 0 if action.flags & SA_NODEFER else 1 << info.signo - 1
    set_mask_locked(task, task.sigmask | action.mask | own)
    return True


def _go_on_locked(task: Task, state: list[int]) -> None:
    """No handler runs: the program does not notice that its call was cut short."""
    assert task.restart is not None
    number, code = task.restart
    task.restart = None
    _again(state, NR_RESTART_SYSCALL if code == ERESTART_RESTARTBLOCK else number)


def _again(state: list[int], number: int) -> None:
    state[RAX] = number
    state[RIP] = state[RIP] - SYSCALL_LENGTH & U64
