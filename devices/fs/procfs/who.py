"""Whose directory in /proc it is, and what may be seen of it by whom (fs/proc/base.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.signals.queue import STOP_PENDING
from devices.task.permissions import may_trace
from devices.time.cputime import process_cpu_ns, task_cpu_ns

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.process import Process
    from devices.task.task import Task

USER_HZ = 100
TICK_NS = 10**9 // USER_HZ


class Who:
    """The subject of /proc/[pid] (`group`) or of /proc/[pid]/task/[tid]."""

    __slots__ = ("_task", "group", "process", "tid")

    def __init__(self, process: Process, task: Task, group: bool) -> None:
        self.process = process
        self._task = task
        self.tid = task.tid
        self.group = group
        """It is the process as a whole that is told of."""

    @property
    def alive(self) -> bool:
        kernel = self.process.kernel
        if self.group and self.tid == self.process.pid:
            return kernel.processes.get(self.tid) is self.process
        return kernel.tasks.get(self.tid) is self._task

    @property
    def ended(self) -> bool:
        """Its task has ended, and the process is still there (a zombie)."""
        return self.process.kernel.tasks.get(self.tid) is not self._task

    @property
    def task(self) -> Task:
        """The task itself. SysError(ESRCH) when it is gone."""
        if not self.alive:
            raise SysError(errno.ESRCH)
        return self._task

    @property
    def name(self) -> bytes:
        return self.process.comm if self.ended else self._task.comm

    def cpu_ns(self) -> int:
        """Nanoseconds of CPU time."""
        return process_cpu_ns(self.process) if self.group else task_cpu_ns(self._task)

    def check_traceable(self, reader: Task) -> None:
        """SysError(EACCES) unless `reader` may look into the process (PTRACE_MODE_READ)."""
        if not may_trace(reader, self.task):
            raise SysError(errno.EACCES, "another's process")


def leader_of(process: Process) -> Task | None:
    """The task of the process's own number, which may have ended; None before it has one."""
    return process.leader or process.tasks.get(process.pid)


def find(kernel: Kernel, number: int) -> Who | None:
    """Who /proc/NUMBER is: a process, or (hidden from the listing) a thread's."""
    process = kernel.processes.get(number)
    task = leader_of(process) if process is not None else kernel.tasks.get(number)
    if task is None:
        return None
    who = Who(task.process, task, True)
    who.tid = number
    return who


def state_of(who: Who) -> bytes:
    """The letter and the word of a task's state (task_state_array[])."""
    if who.ended:
        return b"Z (zombie)"
    task = who.task
    if asleep(task):
        stopped = who.process.pending.stop_signal and not task.pending.bits & STOP_PENDING
        return b"T (stopped)" if stopped and is_in(task) else b"S (sleeping)"
    return b"R (running)"


def asleep(task: Task) -> bool:
    """Does it wait for something?"""
    return task._asleep or task._polling


def is_in(task: Task) -> bool:
    """Is it among the tasks that have stopped?"""
    queue = task.process.pending.stopped
    return queue is not None and any(waiter.task is task for waiter in queue)
