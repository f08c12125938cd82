"""What a process's parent is told: that it ended, stopped or goes on (do_notify_parent() of kernel/signal.c)."""

from __future__ import annotations

from struct import Struct
from typing import TYPE_CHECKING

from devices.signals.abi import NSIG, SA_NOCLDSTOP, SA_NOCLDWAIT, SIG_IGN, SIGCHLD, SIGCONT
from devices.signals.info import SigInfo
from devices.time.cputime import process_cpu_ns

if TYPE_CHECKING:
    from devices.task.process import Process

CLD_EXITED, CLD_KILLED, CLD_DUMPED, CLD_TRAPPED, CLD_STOPPED, CLD_CONTINUED = range(1, 7)
CHILD = Struct("<4xiIi4xqq")
"""The union of siginfo_t for SIGCHLD: si_pid, si_uid, si_status, si_utime, si_stime."""
TICK_NS = 10**9 // 100


def code_and_status(status: int) -> tuple[int, int]:
    """si_code and si_status for a process that ended with `status`, as wait(2) encodes it."""
    signo = status & 0x7F
    if not signo:
        return CLD_EXITED, status >> 8
    return CLD_DUMPED if status & 0x80 else CLD_KILLED, signo


def owner_of(process: Process) -> int:
    """The real user of a process, alive or not."""
    return process.leader.credentials.uid if process.leader is not None else 0


def child_info(process: Process, signo: int, code: int, status: int) -> SigInfo:
    """The siginfo_t with which a parent hears of its child."""
    ticks = process_cpu_ns(process) // TICK_NS
    return SigInfo(signo, code, CHILD.pack(process.pid, owner_of(process), status, ticks, 0))


def tell_end_locked(process: Process) -> bool:
    """Its parent hears that it has ended. True: nobody will wait for it, it is to be reaped at once."""
    parent = process.parent
    if parent is None:
        return True
    signo = process.exit_signal
    reap = False
    if signo == SIGCHLD:
        action = parent.actions[SIGCHLD]
        reap = action.handler == SIG_IGN or bool(action.flags & SA_NOCLDWAIT)
        signo = 0 if action.handler == SIG_IGN else signo
    if 1 <= signo <= NSIG:
        from devices.signals.send import send_locked

        send_locked(parent, signo, child_info(process, signo, *code_and_status(process.status)))
    parent.child_wait.wake_all()
    return reap


def tell_stop_locked(process: Process, code: int, status: int) -> None:
    """Its parent hears that it has stopped or goes on (do_notify_parent_cldstop())."""
    parent = process.parent
    if parent is None:
        return
    action = parent.actions[SIGCHLD]
    if action.handler != SIG_IGN and not action.flags & SA_NOCLDSTOP:
        from devices.signals.send import send_locked

        send_locked(parent, SIGCHLD, child_info(process, SIGCHLD, code, status))
    parent.child_wait.wake_all()


def stopped_locked(process: Process, signo: int) -> None:
    """All of its tasks have stopped."""
    process.stop_told = True
    process.stopped_by = signo
    process.continued = False
    tell_stop_locked(process, CLD_STOPPED, signo)


def continued_locked(process: Process, signo: int) -> None:
    """SIGCONT ended a stop by `signo`, which was complete or had only begun."""
    complete, process.stop_told = process.stop_told, False
    process.stopped_by = 0
    process.continued = True
    if complete:
        tell_stop_locked(process, CLD_CONTINUED, SIGCONT)
    else:
        tell_stop_locked(process, CLD_STOPPED, signo)
