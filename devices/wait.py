"""Wait queues: the one way in which a task waits for another.

A `WaitQueue` is a FIFO of `Waiter`s. A task blocks with `Task.block(queue, deadline)` (devices/task/task.py), which
puts a waiter at the end, drops the kernel lock and sleeps on the task's own primitive, so that a waker wakes exactly
whom it picks and nobody is woken to look and sleep again. Everything here needs the kernel lock held.

Rejected: one condition variable an object (thundering herds, no order) and one a kernel (the same, worse).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.task.task import Task


class Waiter:
    """One sleep of one task. `queue` is where it stands (None once it was picked); `key` is the subsystem's own."""

    __slots__ = ("key", "queue", "result", "task")

    def __init__(self, task: Task, key: Any = None) -> None:
        self.task = task
        self.key = key
        self.queue: WaitQueue | None = None
        self.result: Any = None

    def wake(self, result: Any = True) -> None:
        """Take the waiter out of its queue and let its task run on; `result` is what it finds in `self.result`."""
        if self.queue is not None:
            self.queue.remove(self)
        self.result = result
        self.task.wake_sleeper(self)


class WaitQueue:
    """Waiters in the order in which they came."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: dict[Waiter, None] = {}  # insertion-ordered, removal from the middle is O(1)

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        """A snapshot: waking or removing while iterating is safe."""
        return iter(list(self._waiters))

    def add(self, waiter: Waiter) -> None:
        waiter.queue = self
        self._waiters[waiter] = None

    def remove(self, waiter: Waiter) -> None:
        del self._waiters[waiter]
        waiter.queue = None

    def requeue(self, waiter: Waiter, other: WaitQueue) -> None:
        """Move a sleeping waiter to the end of another queue without waking it."""
        self.remove(waiter)
        other.add(waiter)

    def wake(self, count: int = 1, match: Callable[[Waiter], bool] | None = None) -> int:
        """Wake up to `count` waiters (those that `match`, if given), oldest first; return how many were woken."""
        woken = 0
        for waiter in self:
            if woken >= count:
                break
            if match is None or match(waiter):
                waiter.wake()
                woken += 1
        return woken

    def wake_all(self) -> int:
        return self.wake(len(self._waiters))


class PollQueue:
    """Who wants to hear when a file becomes ready: waits in poll and select, items of epoll instances.

    A file has one and calls `tell(events)` whenever it may have become ready for some POLL* bits; the listeners look
    at the file again themselves. Of the exclusive listeners (EPOLLEXCLUSIVE) one that takes the news is enough.
    """

    __slots__ = ("_listeners",)

    def __init__(self) -> None:
        self._listeners: dict[PollListener, bool] = {}

    def __bool__(self) -> bool:
        return bool(self._listeners)

    def add(self, listener: PollListener, exclusive: bool = False) -> None:
        self._listeners[listener] = exclusive

    def remove(self, listener: PollListener) -> None:
        self._listeners.pop(listener, None)

    def tell(self, events: int) -> None:
        """The file may be ready for `events`."""
        taken = False
        for listener, exclusive in list(self._listeners.items()):
            if not (exclusive and taken):
                taken = (listener.told(events) and exclusive) or taken


class PollListener:
    """A wait or an epoll item that listens to a file."""

    __slots__ = ()

    def told(self, events: int) -> bool:
        """A file that it listens to may be ready for `events`. True if that is news to it."""
        raise NotImplementedError
