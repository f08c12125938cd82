"""The wait that poll and select are: look at every file, and sleep until one of them may have become ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.poll.abi import ALWAYS
from devices.wait import PollListener

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.task.task import Task
    from devices.time.sleep import Deadline
    from devices.vfs.files import OpenFile


class Sleeper(PollListener):
    """A task that wants to hear of any news."""

    __slots__ = ("_task",)

    def __init__(self, task: Task) -> None:
        self._task = task

    def told(self, events: int) -> bool:
        self._task.wake()
        return True


def scan(wanted: Sequence[tuple[OpenFile | None, int]]) -> list[int]:
    """What each file is ready for, out of what is wanted of it and POLLERR and POLLHUP; 0 for None."""
    return [file.poll() & (events | ALWAYS) if file is not None else 0 for file, events in wanted]


def wait_ready(
    task: Task, wanted: Sequence[tuple[OpenFile | None, int]], deadline: Deadline | None, restart: int
) -> list[int]:
    """Wait until a file is ready for what is wanted of it (POLL* bits), or `deadline` has come; what each is ready for.

    Raises Interrupted(restart), and LeaveGuest where it would sleep in place.
    """
    ready = scan(wanted)
    if any(ready) or (deadline is not None and deadline.left(task) <= 0):
        return ready
    task.check_may_wait_locked(restart)
    files = [file.hold() for file, _ in wanted if file is not None]
    hosts = [(f.host_poll_fd, events) for f, events in wanted if f is not None and f.host_poll_fd >= 0]
    sleeper = Sleeper(task)
    try:
        for file in files:
            if file.pollers is not None:
                file.pollers.add(sleeper)
        while not any(ready):
            left = None if deadline is None else deadline.left(task)
            if left is not None and left <= 0:
                break
            task.wait_for(hosts, None if left is None else task.kernel.clock.monotonic_ns() + left, restart)
            ready = scan(wanted)
        return ready
    finally:
        for file in files:
            if file.pollers is not None:
                file.pollers.remove(sleeper)
            file.put_locked()
