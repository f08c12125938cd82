"""Scheduling policies (<linux/sched.h>), and what a task has been told of them; the calls are in scheduling.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devices.task.task import Task

SCHED_NORMAL, SCHED_FIFO, SCHED_RR, SCHED_BATCH = range(4)
SCHED_IDLE, SCHED_DEADLINE = 5, 6
SCHED_RESET_ON_FORK = 0x4000_0000
REALTIME = (SCHED_FIFO, SCHED_RR)
FAIR = (SCHED_NORMAL, SCHED_BATCH)
POLICIES = (*REALTIME, *FAIR, SCHED_IDLE, SCHED_DEADLINE)


class Scheduling:
    """A task's scheduling parameters. `affinity` is a mask of the CPUs that the guest is told of."""

    __slots__ = ("affinity", "nice", "policy", "priority", "reset_on_fork")

    def __init__(self, cpus: int) -> None:
        self.policy = SCHED_NORMAL
        self.priority = 0
        self.nice = 0
        self.reset_on_fork = False
        self.affinity = (1 << cpus) - 1

    def for_child(self) -> Scheduling:
        """sched_fork(): what a new task starts with."""
        child = Scheduling(0)
        child.affinity = self.affinity
        child.policy, child.priority, child.nice = self.policy, self.priority, self.nice
        if self.reset_on_fork:
            if self.policy in REALTIME:
                child.policy, child.priority, child.nice = SCHED_NORMAL, 0, 0
            child.nice = max(child.nice, 0)
        return child


def current_cpu(task: Task) -> int:
    """The CPU that a task believes to run on: one of those that it may use, the same for as long as its vCPU."""
    scheduling = task.scheduling
    allowed = [cpu for cpu in range(task.kernel.cpus) if scheduling.affinity >> cpu & 1]
    return allowed[task.cpu.index % len(allowed)]
