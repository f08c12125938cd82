"""eventfd: a counter that is waited for (fs/eventfd.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.poll.abi import EFD_SEMAPHORE, POLLERR, POLLIN, POLLOUT
from devices.vfs.abi import O_NONBLOCK, O_RDWR
from devices.vfs.files import OpenFile
from devices.wait import PollQueue, WaitQueue

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import Segments

MAX = (1 << 64) - 1


class EventFd(OpenFile):
    """An event counter. read(2) takes it, or 1 of it (EFD_SEMAPHORE), and waits while it is 0; write(2) adds to it, and
    waits while that would make it 2^64 - 1 or more."""

    def __init__(self, count: int, flags: int) -> None:
        super().__init__(O_RDWR | flags & O_NONBLOCK)
        self.pollers = PollQueue()
        self.count = count
        self._semaphore = bool(flags & EFD_SEMAPHORE)
        self._readers = WaitQueue()
        self._writers = WaitQueue()

    def poll(self) -> int:
        return (
            (POLLIN if self.count else 0)
            | (POLLOUT if self.count < MAX - 1 else 0)
            | (POLLERR if self.count == MAX else 0)
        )

    def _tell(self, events: int) -> None:
        assert self.pollers is not None
        self.pollers.tell(events)

    def read(self, task: Task, segments: Segments) -> int:
        if sum(length for _, length in segments) < 8:
            raise SysError(errno.EINVAL, "a read takes 8 bytes")
        while not self.count:
            self._wait(task, self._readers)
        value = 1 if self._semaphore else self.count
        self.count -= value
        put(task, segments, value.to_bytes(8, "little"))
        self._writers.wake_all()
        if self.count:
            self._readers.wake(1)
        self._tell(POLLOUT)
        return 8

    def write(self, task: Task, segments: Segments) -> int:
        if sum(length for _, length in segments) < 8:
            raise SysError(errno.EINVAL, "a write gives 8 bytes")
        value = int.from_bytes(take(task, segments, 8), "little")
        if value == MAX:
            raise SysError(errno.EINVAL, "2^64 - 1 cannot be added")
        while value > MAX - 1 - self.count:
            self._wait(task, self._writers)
        self.add(value)
        return 8

    def add(self, value: int) -> None:
        """Add without waiting; the counter stops at 2^64 - 1 (eventfd_signal())."""
        self.count = min(self.count + value, MAX)
        self._readers.wake(1)
        self._tell(POLLIN)

    def _wait(self, task: Task, queue: WaitQueue) -> None:
        if self.flags & O_NONBLOCK:
            raise SysError(errno.EAGAIN)
        task.block(queue)


def put(task: Task, segments: Segments, data: bytes) -> None:
    """Write `data` into the guest's buffers."""
    for address, length in segments:
        task.memory.write(address, data[:length])
        data = data[length:]


def take(task: Task, segments: Segments, size: int) -> bytes:
    """The first `size` bytes of the guest's buffers."""
    data = b""
    for address, length in segments:
        data += task.memory.read(address, min(length, size - len(data)))
    return data
