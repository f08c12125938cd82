"""Pipes and FIFOs: bytes in at one end, out at the other (fs/pipe.c)."""

from __future__ import annotations

import errno
import signal
import struct
from collections import deque
from stat import S_IFIFO
from typing import TYPE_CHECKING

from devices.errors import Interrupted, LeaveGuest, SysError
from devices.fs.internal import internal_mount_of
from devices.poll.abi import POLLERR, POLLHUP, POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from devices.signals.info import SigInfo
from devices.signals.send import send_locked
from devices.task.capabilities import CAP_SYS_RESOURCE
from devices.vfs.abi import O_ACCMODE, O_DIRECT, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY
from devices.vfs.files import OpenFile
from devices.vfs.inode import Inode, StatFs, SuperBlock
from devices.vfs.mount import unnamed_path
from devices.vfs.transfer import chunks
from devices.wait import PollQueue, WaitQueue
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import Segments
    from devices.vfs.path import Dentry, Path

PIPE_BUF = 4096
"""A write of at most this many bytes is not mixed with other writers'."""
DEFAULT_PAGES = 16
MAX_UNPRIVILEGED = 1 << 20
"""/proc/sys/fs/pipe-max-size."""
FIONREAD = 0x541B
PIPEFS_MAGIC = 0x50495045
PACKET, FIXED = 1, 2
"""A buffer that stands for itself (O_DIRECT), one that nothing is put behind (splice)."""


class Pipe:
    """What is between the ends: buffers of at most a page, as Linux has them, for its capacity counts in buffers."""

    def __init__(self) -> None:
        self.buffers: deque[bytearray] = deque()
        self.kinds: deque[int] = deque()
        """Of each buffer: 0, PACKET or FIXED."""
        self.pages = DEFAULT_PAGES
        self.readers = self.writers = 0
        self.readers_ever = self.writers_ever = 0
        """How often an end was opened: what an open that waits for the other side looks at."""
        self.pollers = PollQueue()
        self.read_queue = WaitQueue()
        self.write_queue = WaitQueue()
        self.open_queue = WaitQueue()

    @property
    def size(self) -> int:
        return sum(map(len, self.buffers))

    @property
    def free(self) -> int:
        """Buffers that may still come."""
        return max(self.pages - len(self.buffers), 0)

    def room(self, length: int) -> bool:
        """Is there room for a write of `length` bytes to begin? One that is atomic wants room for all of it."""
        return self.free > 0 or (length <= PIPE_BUF and self._fits(length))

    def _fits(self, length: int) -> bool:
        """Does it fit behind what the last page holds?"""
        return bool(self.buffers) and not self.kinds[-1] and len(self.buffers[-1]) + length <= PAGE_SIZE

    def put(self, data: bytes, kind: int = 0) -> int:
        """Take as much of `data` as there is room for; the number of bytes."""
        done = 0
        if not kind and self._fits(len(data) % PAGE_SIZE) and len(data) % PAGE_SIZE:
            done = len(data) % PAGE_SIZE
            self.buffers[-1] += data[:done]
        while done < len(data) and len(self.buffers) < self.pages:
            part = data[done : done + PAGE_SIZE]
            self.buffers.append(bytearray(part))
            self.kinds.append(kind)
            done += len(part)
        return done

    def take(self, length: int) -> bytes:
        """Up to `length` bytes; of packets only one, whose rest is lost."""
        found = bytearray()
        while self.buffers and len(found) < length:
            buffer = self.buffers[0]
            part = buffer[: length - len(found)]
            found += part
            if self.kinds[0] & PACKET or len(part) == len(buffer):
                self.buffers.popleft()
                if self.kinds.popleft() & PACKET:
                    break
            else:
                del buffer[: len(part)]
        return bytes(found)

    def take_buffer(self, length: int) -> bytes:
        """At most `length` bytes of the first buffer; the rest of a packet is not lost."""
        buffer = self.buffers[0]
        part = bytes(buffer[:length])
        if len(part) == len(buffer):
            self.buffers.popleft()
            self.kinds.popleft()
        else:
            del buffer[: len(part)]
        return part

    def give_back(self, data: bytes) -> None:
        """Put what was taken back before all that is there."""
        if data:
            for at in range((len(data) - 1) // PAGE_SIZE * PAGE_SIZE, -1, -PAGE_SIZE):
                self.buffers.appendleft(bytearray(data[at : at + PAGE_SIZE]))
                self.kinds.appendleft(FIXED)

    # What an end tells the other

    def filled(self) -> None:
        """There is something to read."""
        self.read_queue.wake(1)
        self.pollers.tell(POLLIN | POLLRDNORM)

    def drained(self, was_full: bool) -> None:
        """There is more room."""
        if was_full:
            self.pollers.tell(POLLOUT | POLLWRNORM)
        self.write_queue.wake_all()
        if self.buffers:
            self.read_queue.wake(1)


class PipeEnd(OpenFile):
    """An open end of a pipe or FIFO, or (O_RDWR) both ends of a FIFO."""

    supports_nowait = True

    def __init__(self, pipe: Pipe, flags: int) -> None:
        super().__init__(flags)
        self.pipe = pipe
        self.pollers = pipe.pollers
        self.reads = flags & O_ACCMODE != O_WRONLY
        self.writes = flags & O_ACCMODE in (O_WRONLY, O_RDWR)
        self._no_writer_yet = -1
        """`writers_ever` at the open of a FIFO's end that did not wait for a writer: no POLLHUP before one came."""
        pipe.readers += self.reads
        pipe.writers += self.writes
        pipe.readers_ever += self.reads
        pipe.writers_ever += self.writes

    def poll(self) -> int:
        pipe = self.pipe
        ready = 0
        if self.reads:
            ready |= POLLIN | POLLRDNORM if pipe.buffers else 0
            ready |= POLLHUP if not pipe.writers and self._no_writer_yet != pipe.writers_ever else 0
        if self.writes:
            ready |= POLLOUT | POLLWRNORM if len(pipe.buffers) < pipe.pages else 0
            ready |= 0 if pipe.readers else POLLERR
        return ready

    def read(self, task: Task, segments: Segments) -> int:
        pipe = self.pipe
        wanted = sum(length for _, length in segments)
        if not wanted:
            return 0
        if not self.wait_filled(task, bool(self.flags & O_NONBLOCK)):
            return 0
        there = len(pipe.buffers[0]) if pipe.kinds[0] & PACKET else pipe.size
        views = [view for part in chunks(task, cut(segments, 0, min(wanted, there)), True) for view in part]
        was_full = not pipe.free
        data = pipe.take(wanted)
        done = 0
        for view in views:
            part = data[done : done + len(view)]
            view[: len(part)] = part
            done += len(part)
        pipe.drained(was_full)
        return len(data)

    def wait_filled(self, task: Task, nonblock: bool) -> bool:
        """Wait until something can be read; False at the end. SysError(EAGAIN)."""
        pipe = self.pipe
        while not pipe.buffers:
            if not pipe.writers:
                return False
            wait(task, pipe.read_queue, nonblock)
        return True

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
                send_locked(task, signal.SIGPIPE, SigInfo.sent_by(task, signal.SIGPIPE))
            if not done:
                raise
        if done and self.inode is not None:
            self.inode.mtime = self.inode.ctime = task.kernel.clock.realtime_ns()
        return done

    def wait_room(self, task: Task, length: int, nonblock: bool) -> None:
        """Wait until a write of `length` bytes may begin. SysError(EPIPE, EAGAIN)."""
        pipe = self.pipe
        while True:
            if not pipe.readers:
                raise SysError(errno.EPIPE)
            if pipe.room(length):
                return
            wait(task, pipe.write_queue, nonblock)

    def _write_some(self, task: Task, segments: Segments, done: int, left: int) -> int:
        """Wait for room and fill it with what is behind the first `done` bytes; the bytes put.

        The guest's memory is looked up after the wait: while it lasted, it may have been unmapped."""
        pipe = self.pipe
        self.wait_room(task, left, bool(self.flags & O_NONBLOCK))
        size = min(left, max(pipe.pages - len(pipe.buffers), 1) << PAGE_SHIFT)
        views = [view for part in chunks(task, cut(segments, done, size), False) for view in part]
        put = pipe.put(b"".join(views), PACKET if self.flags & O_DIRECT else 0)
        pipe.filled()
        return put

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

    def release_locked(self) -> None:
        pipe = self.pipe
        pipe.readers -= self.reads
        pipe.writers -= self.writes
        if self.reads and not pipe.readers:
            pipe.write_queue.wake_all()
            pipe.pollers.tell(POLLOUT | POLLERR)
        if self.writes and not pipe.writers:
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


def wait(task: Task, queue: WaitQueue, nonblock: bool) -> None:
    if nonblock:
        raise SysError(errno.EAGAIN)
    task.block(queue)


# Pipes: files without a name


class PipeFs(SuperBlock):
    """pipefs: what fstat(2) of a pipe tells of."""

    fstype = b"pipefs"
    magic = PIPEFS_MAGIC

    def __init__(self, kernel: Kernel) -> None:
        super().__init__(kernel.new_dev_locked(), b"pipefs")
        self.root = Inode(self, 1, 0o40555)
        self._last_ino = 1

    def new_ino(self) -> int:
        self._last_ino += 1
        return self._last_ino

    def statfs(self) -> StatFs:
        return StatFs(self.magic, PAGE_SIZE, 0, 0, 0, 0, 0, 0)

    def name_of(self, dentry: Dentry) -> bytes:
        return b"pipe:[%d]" % dentry.inode.ino


class PipeInode(Inode):
    __slots__ = ()

    @property
    def blocks(self) -> int:
        return 0


def make_pipe(task: Task, flags: int) -> tuple[PipeEnd, PipeEnd]:
    """The two ends of a new pipe; `flags`: O_NONBLOCK, O_DIRECT."""
    kernel = task.kernel
    mount = internal_mount_of(kernel, b"pipe", lambda: PipeFs(kernel))
    fs = mount.sb
    assert isinstance(fs, PipeFs)
    inode = PipeInode(fs, fs.new_ino(), S_IFIFO | 0o600, task.credentials.fsuid, task.credentials.fsgid)
    inode.atime = inode.mtime = inode.ctime = kernel.clock.realtime_ns()
    inode.pipe = pipe = Pipe()
    ends = PipeEnd(pipe, O_RDONLY | flags & O_NONBLOCK), PipeEnd(pipe, O_WRONLY | flags & (O_NONBLOCK | O_DIRECT))
    place = unnamed_path(mount, inode)
    for end in ends:
        end.attach(place)
    return ends


# FIFOs


class FifoEnd(PipeEnd):
    """An end of a named pipe, whose contents are lost with the last end."""

    def release_locked(self) -> None:
        super().release_locked()
        if self.inode is not None and not self.pipe.readers and not self.pipe.writers:
            self.inode.pipe = None


def open_fifo(task: Task, place: Path, flags: int) -> PipeEnd:
    """fifo_open(): an end, once the other side is there too. SysError(ENXIO, EINVAL), Interrupted."""
    inode = place.dentry.inode
    mode = flags & O_ACCMODE
    if mode not in (O_RDONLY, O_WRONLY, O_RDWR):
        raise SysError(errno.EINVAL, "access mode")
    pipe = inode.pipe
    if not isinstance(pipe, Pipe):
        pipe = Pipe()
    alone = not (pipe.writers if mode == O_RDONLY else pipe.readers)
    waits = alone and mode != O_RDWR and not flags & O_NONBLOCK
    if mode == O_WRONLY and alone and flags & O_NONBLOCK:
        raise SysError(errno.ENXIO, "no reader")
    if waits:
        task.check_may_wait_locked()
    inode.pipe = pipe
    end = FifoEnd(pipe, flags)
    end.attach(place)
    pipe.open_queue.wake_all()
    if waits:
        _wait_for_partner(task, pipe, end)
    elif alone and mode == O_RDONLY:
        end._no_writer_yet = pipe.writers_ever
    return end


def _wait_for_partner(task: Task, pipe: Pipe, end: FifoEnd) -> None:
    """Wait until the other end has been opened, whether it still is or not."""

    def others() -> int:
        return pipe.writers_ever if end.reads else pipe.readers_ever

    before = others()
    try:
        while others() == before:
            task.block(pipe.open_queue)
    except BaseException:
        end.hold().put_locked()
        raise
