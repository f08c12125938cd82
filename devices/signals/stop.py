"""Job control: a process stops as a whole, and goes on with SIGCONT (do_signal_stop() of kernel/signal.c).

`stop_signal` of the process's pending signals says that it stops or has stopped; each of its tasks has STOP_PENDING set
until it has gone to sleep in the queue `stopped`. Nothing but SIGCONT and the end of the process wakes it there.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from devices.errors import Interrupted, TaskExit
from devices.signals.queue import STOP_PENDING
from devices.wait import WaitQueue

if TYPE_CHECKING:
    from devices.task.process import Process
    from devices.task.task import Task


def stop_locked(process: Process, signo: int) -> None:
    """Begin to stop all tasks of the process, which goes on until they have all come to wait_stopped_locked()."""
    process.pending.stop_signal = signo
    if process.pending.stopped is None:
        process.pending.stopped = WaitQueue()
    process.stop_told = False
    for task in process.tasks.values():
        task.pending.bits |= STOP_PENDING
        task.notify_locked()


def wait_stopped_locked(task: Task) -> None:
    """Sleep while the process is stopped. Raises TaskExit when it ends."""
    process = task.process
    while not (process.exiting or task.killed):
        task.pending.bits &= ~STOP_PENDING
        if not process.pending.stop_signal or process.pending.stopped is None:
            return
        progress_locked(process)
        task.work = False  # or block() would not sleep while an ordinary signal is pending
        with suppress(Interrupted):
            task.block(process.pending.stopped)
    raise TaskExit


def progress_locked(process: Process) -> None:
    """One task less has yet to stop: after the last one the parent is told."""
    signo = process.pending.stop_signal
    if signo and not process.stop_told and not any(t.pending.bits & STOP_PENDING for t in process.tasks.values()):
        from devices.task.parent import stopped_locked

        stopped_locked(process, signo)


def continue_locked(process: Process) -> None:
    """SIGCONT was sent: wake what is stopped, whatever becomes of the signal."""
    signo, process.pending.stop_signal = process.pending.stop_signal, 0
    if signo:
        from devices.task.parent import continued_locked

        continued_locked(process, signo)
    for task in process.tasks.values():
        task.pending.bits &= ~STOP_PENDING
    if process.pending.stopped is not None:
        process.pending.stopped.wake_all()


def orphaned_locked(process: Process) -> bool:
    """Is its process group orphaned, so that nobody in its session could continue it? Then only SIGSTOP stops it
    (setpgid(2), will_become_orphaned_pgrp())."""
    processes = process.kernel.processes
    for member in processes.values():
        parent = processes.get(member.parent_pid)
        if member.exiting and not member.tasks:
            continue  # a zombie ties nobody to anything
        if member.pgid == process.pgid and parent and parent.pgid != process.pgid and parent.sid == member.sid:
            return False
    return True
