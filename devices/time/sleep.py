"""Waits that a clock ends."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from devices.time.abi import KTIME_MAX

if TYPE_CHECKING:
    from devices.task.task import Task


class Deadline(NamedTuple):
    """A time, in nanoseconds of one of the guest's clocks."""

    clock: int
    ns: int

    @classmethod
    def after(cls, task: Task, clock: int, ns: int) -> Deadline:
        """The time that is `ns` from now; not beyond the last that the kernel knows."""
        return cls(clock, min(task.kernel.clock.now(clock, task) + ns, KTIME_MAX))

    def left(self, task: Task) -> int:
        """Nanoseconds until then; 0 or less when it has come."""
        return self.ns - task.kernel.clock.now(self.clock, task)


def sleep_until(task: Task, deadline: Deadline | None, restart: int) -> bool:
    """`Task.sleep` with a deadline on any of the guest's clocks: woken (True), or has the time come (False)?

    The guest's clock has the last word: the program that sleeps until ten will read ten or later, although its clock
    follows the host's by small corrections and a clock may be set while it sleeps. A clock that is set forward is seen
    when the wait as it was planned is over.
    """
    if deadline is None:
        return task.sleep(None, restart)
    left = deadline.left(task)
    while True:
        if task.sleep(task.kernel.clock.monotonic_ns() + left, restart):
            return True
        left = deadline.left(task)
        if left <= 0:
            return False
