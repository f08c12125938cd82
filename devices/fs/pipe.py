"""Pipes: bytes in at one end, out at the other (fs/pipe.c)."""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
from collections import deque
from typing import TYPE_CHECKING

from devices.errors import Interrupted, LeaveGuest, SysError
from devices.poll.abi import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from devices.signals.send import send_locked
from devices.task.capabilities import CAP_SYS_RESOURCE
from devices.vfs.abi import O_DIRECT, O_NONBLOCK, O_RDONLY, O_WRONLY
from devices.vfs.files import OpenFile
from devices.vfs.transfer import chunks
from devices.wait import PollQueue, WaitQueue
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import Segments

PIPE_BUF = 4096
"""A write of at most this many bytes is not mixed with other writers'."""
DEFAULT_PAGES = 16
MAX_UNPRIVILEGED = 1 << 20
"""/proc/sys/fs/pipe-max-size."""
FIONREAD = 0x541B
PIPEFS_DEV = 13
"""st_dev of pipes: an anonymous device."""


class Pipe:
    """What is between the ends: buffers of at most a page, as Linux has them, for its capacity counts in buffers."""

    def __init__(self) -> None:
        self.buffers: deque[bytearray] = deque()
        self.packets: deque[bool] = deque()
        """Of each buffer: does it stand for itself (O_DIRECT)?"""
        self.pages = DEFAULT_PAGES
        self.readers = self.writers = 0
        self.pollers = PollQueue()
        self.read_queue = WaitQueue()
        self.write_queue = WaitQueue()

    @property
    def size(self) -> int:
        return sum(map(len, self.buffers))

    def room(self, length: int) -> bool:
        """Is there room for a write of `length` bytes to begin? One that is atomic wants room for all of it."""
        free = self.pages - len(self.buffers)
        return free > 0 if length > PIPE_BUF else free > 0 or self._fits(length)

    def _fits(self, length: int) -> bool:
        """Does it fit behind what the last page holds?"""
        return bool(self.buffers) and not self.packets[-1] and len(self.buffers[-1]) + length <= PAGE_SIZE

    def put(self, data: bytes, packet: bool) -> int:
        """Take as much of `data` as there is room for; the number of bytes."""
        done = 0
        if not packet and self._fits(len(data) % PAGE_SIZE) and len(data) % PAGE_SIZE:
            done = len(data) % PAGE_SIZE
            self.buffers[-1] += data[:done]
        while done < len(data) and len(self.buffers) < self.pages:
            part = data[done : done + PAGE_SIZE]
            self.buffers.append(bytearray(part))
            self.packets.append(packet)
            done += len(part)
        return done

    def take(self, length: int) -> bytes:
        """Up to `length` bytes; of packets only one, whose rest is lost."""
        found = bytearray()
        while self.buffers and len(found) < length:
            buffer = self.buffers[0]
            part = buffer[: length - len(found)]
            found += part
            if self.packets[0] or len(part) == len(buffer):
                self.buffers.popleft()
                if self.packets.popleft():
                    break
            else:
                del buffer[: len(part)]
        return bytes(found)


class PipeEnd(OpenFile):
    """An open end of a pipe."""

    def __init__(self, pipe: Pipe, flags: int) -> None:
        super().__init__(flags)
        self.pipe = pipe
        self.pollers = pipe.pollers
        self._reads = flags & 3 != O_WRONLY
        self._writes = flags & 3 != O_RDONLY
        pipe.readers += self._reads
        pipe.writers += self._writes

    def poll(self) -> int:
        pipe = self.pipe
        ready = 0
        if self._reads:
            ready |= POLLIN | POLLRDNORM if pipe.buffers else 0
            ready |= 0 if pipe.writers else POLLHUP
        if self._writes:
            ready |= POLLOUT | POLLWRNORM if len(pipe.buffers) < pipe.pages else 0
            ready |= 0 if pipe.readers else POLLERR
        return ready

    def read(self, task: Task, segments: Segments) -> int:
        pipe = self.pipe
        wanted = sum(length for _, length in segments)
        if not wanted:
            return 0
        while not pipe.buffers:
            if not pipe.writers:
                return 0
            self._wait(task, pipe.read_queue)
        views = [view for part in chunks(task, segments, True) for view in part]
        was_full = len(pipe.buffers) >= pipe.pages
        data = pipe.take(wanted)
        done = 0
        for view in views:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        if was_full:
            pipe.pollers.tell(POLLOUT | POLLWRNORM)
        pipe.write_queue.wake_all()
        if pipe.buffers:
            pipe.read_queue.wake(1)
        return len(data)

    def write(self, task: Task, segments: Segments) -> int:
        total = sum(length for _, length in segments)
        if task.in_place and total > (self.pipe.pages - len(self.pipe.buffers)) << PAGE_SHIFT:
            raise LeaveGuest  # it may have to wait when it is half done
        done = 0
        try:
            while done < total:
                done += self._write_some(task, segments, done, total - done)
        except (SysError, Interrupted) as error:
            if isinstance(error, SysError) and error.errno == errno.EPIPE:
                send_locked(task, signal.SIGPIPE)
            if not done:
                raise
        return done

    def _write_some(self, task: Task, segments: Segments, done: int, left: int) -> int:
        """Wait for room and fill it with what is behind the first `done` bytes; the bytes put.

        The guest's memory is looked up after the wait: while it lasted, it may have been unmapped."""
        pipe = self.pipe
        while True:
            if not pipe.readers:
                raise SysError(errno.EPIPE)
            if pipe.room(left):
                break
            self._wait(task, pipe.write_queue)
        size = min(left, max(pipe.pages - len(pipe.buffers), 1) << PAGE_SHIFT)
        views = [view for part in chunks(task, cut(segments, done, size), False) for view in part]
        put = pipe.put(b"".join(views), bool(self.flags & O_DIRECT))
        pipe.read_queue.wake(1)
        pipe.pollers.tell(POLLIN | POLLRDNORM)
        return put

    def _wait(self, task: Task, queue: WaitQueue) -> None:
        if self.flags & O_NONBLOCK:
            raise SysError(errno.EAGAIN)
        task.block(queue)

    def ioctl(self, task: Task, request: int, argument: int) -> int:
        if request == FIONREAD:
            task.memory.write(argument, struct.pack("<i", self.pipe.size))
            return 0
        return super().ioctl(task, request, argument)

    def capacity(self) -> int:
        """fcntl(F_GETPIPE_SZ), in bytes."""
        return self.pipe.pages << PAGE_SHIFT

    def set_capacity(self, task: Task, size: int) -> int:
        """fcntl(F_SETPIPE_SZ): round up to a power of two of pages. EPERM, EBUSY, EINVAL; the new capacity in bytes."""
        if size > 1 << 31:
            raise SysError(errno.EINVAL, "size")
        size = max(size, PAGE_SIZE)
        pages = 1 << (((size + PAGE_SIZE - 1) >> PAGE_SHIFT) - 1).bit_length()
        if pages > self.pipe.pages and size > MAX_UNPRIVILEGED and not task.credentials.capable(CAP_SYS_RESOURCE):
            raise SysError(errno.EPERM, "above pipe-max-size")
        if pages < len(self.pipe.buffers):
            raise SysError(errno.EBUSY, "more is in the pipe")
        self.pipe.pages = pages
        return pages << PAGE_SHIFT

    def stat(self) -> os.stat_result:
        ino = id(self.pipe) >> 4 & 0xFFFF_FFFF
        first = (stat.S_IFIFO | 0o600, ino, PIPEFS_DEV, 1, 0, 0, 0)
        return os.stat_result((*first, *(0,) * 9, PAGE_SIZE, 0, 0))

    def release_locked(self) -> None:
        pipe = self.pipe
        pipe.readers -= self._reads
        pipe.writers -= self._writes
        if self._reads and not pipe.readers:
            pipe.write_queue.wake_all()
            pipe.pollers.tell(POLLOUT | POLLERR)
        if self._writes and not pipe.writers:
            pipe.read_queue.wake_all()
            pipe.pollers.tell(POLLIN | POLLHUP)


def cut(segments: Segments, start: int, length: int) -> Segments:
    """The part of the guest's buffers that begins `start` bytes in and has `length` bytes."""
    found = []
    for address, size in segments:
        if start < size and length:
            part = min(size - start, length)
            found.append((address + start, part))
            length -= part
        start = max(start - size, 0)
    return found


def make_pipe(flags: int) -> tuple[PipeEnd, PipeEnd]:
    """The two ends of a new pipe; `flags`: O_NONBLOCK, O_DIRECT."""
    pipe = Pipe()
    return PipeEnd(pipe, O_RDONLY | flags & O_NONBLOCK), PipeEnd(pipe, O_WRONLY | flags & (O_NONBLOCK | O_DIRECT))
