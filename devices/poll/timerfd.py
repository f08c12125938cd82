"""timerfd: a timer whose expirations are read and waited for (fs/timerfd.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.poll.abi import POLLIN
from devices.poll.eventfd import put
from devices.time.timers import Interval
from devices.vfs.abi import O_NONBLOCK, O_RDWR
from devices.vfs.files import OpenFile
from devices.wait import PollQueue, WaitQueue

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import Segments


class TimerFd(OpenFile):
    """A timer of the clock `clock` (CLOCK_*). The time that it was given is the caller's to turn into what is left."""

    def __init__(self, kernel: Kernel, clock: int, flags: int) -> None:
        super().__init__(O_RDWR | flags & O_NONBLOCK)
        self.pollers = PollQueue()
        self.clock = clock
        self.timer = Interval(kernel.timers, kernel.clock, self._expired)
        self._ticks = 0
        self._readers = WaitQueue()

    def _expired(self) -> None:
        self._ticks += 1
        self._readers.wake_all()
        assert self.pollers is not None
        self.pollers.tell(POLLIN)

    def set(self, left: int | None, interval: int) -> None:
        """Arm it anew, or disarm it (`left` None). What has expired and was not read is forgotten."""
        self._ticks = 0
        if left is None:
            self.timer.disarm()
            self.timer.interval = interval
        else:
            self.timer.arm(left, interval)

    def poll(self) -> int:
        return POLLIN if self._ticks else 0

    def read(self, task: Task, segments: Segments) -> int:
        if sum(length for _, length in segments) < 8:
            raise SysError(errno.EINVAL, "a read takes 8 bytes")
        while not self._ticks:
            if self.flags & O_NONBLOCK:
                raise SysError(errno.EAGAIN)
            task.block(self._readers)
        ticks, self._ticks = self._ticks, 0
        put(task, segments, ticks.to_bytes(8, "little"))
        return 8

    def release_locked(self) -> None:
        self.timer.disarm()
