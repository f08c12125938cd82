"""CPU time: how long tasks have run (kernel/time/posix-cpu-timers.c).

A task's CPU time is that of its host thread since the task came to it: the guest's code and what the monitor does
for it. The host reads it from any thread through the thread's clock id.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.task.process import Process
    from devices.task.task import Task


def start_task(task: Task) -> None:
    """The task begins to run on the calling thread."""
    task.cpu_clock = time.pthread_getcpuclockid(threading.get_ident())
    task.cpu_base_ns = time.thread_time_ns()


def end_task_locked(task: Task) -> None:
    """The task has ended, on its own thread, which may serve another one now."""
    task.process.ended_task_ns += task_cpu_ns(task)
    task.cpu_clock = None


def task_cpu_ns(task: Task) -> int:
    """Nanoseconds that the task has run; 0 before it has started and after its end."""
    clock = task.cpu_clock
    return time.clock_gettime_ns(clock) - task.cpu_base_ns if clock is not None else 0


def process_cpu_ns(process: Process) -> int:
    """Nanoseconds that all tasks of the process have run, those that have ended too."""
    total = process.ended_task_ns
    for task in process.tasks.values():
        total += task_cpu_ns(task)
    return total
