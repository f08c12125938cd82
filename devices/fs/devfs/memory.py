"""The devices of major 1: null, zero, full, random, urandom, kmsg (drivers/char/mem.c, drivers/char/random.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.chardev import FULL, KMSG, NULL, RANDOM, URANDOM, ZERO
from devices.poll.abi import POLLIN, POLLOUT, POLLRDNORM, POLLWRNORM
from devices.vfs.abi import O_NONBLOCK, SEEK_CUR, SEEK_DATA, SEEK_END, SEEK_SET
from devices.vfs.files import OpenFile
from devices.vfs.transfer import transfer
from devices.wait import PollQueue, WaitQueue

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import Segments

RNDGETENTCNT, RNDADDTOENTCNT, RNDRESEEDCRNG = 0x8004_5200, 0x4004_5201, 0x5207
POOL_BITS = 256
CAP_SYS_ADMIN, CAP_SYSLOG = 21, 34
ZEROS = memoryview(bytes(1 << 18))
RANDOM_CHUNK = 1 << 18
"""Random bytes that are made at once."""
LONGEST_RECORD = 1024 - 32
RECORDS = 512
"""Records of kmsg that are kept."""


class NullDevice(OpenFile):
    """/dev/null: empty, and takes everything without looking at it."""

    supports_nowait = True

    def read(self, task: Task, segments: Segments) -> int:
        return 0

    def write(self, task: Task, segments: Segments) -> int:
        return sum(length for _, length in segments)

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        return self.read(task, segments)

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        return self.write(task, segments)

    def lseek(self, offset: int, whence: int) -> int:
        """null_lseek()."""
        self.position = 0
        return 0


class ZeroDevice(NullDevice):
    """/dev/zero: zeros without end. A private mapping is anonymous memory, a shared one as with MAP_ANONYMOUS."""

    def read(self, task: Task, segments: Segments) -> int:
        def fill(views: list[memoryview], done: int) -> int:
            return sum(map(fill_zeros, views))

        return transfer(task, segments, True, fill)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> None:
        return None


class FullDevice(ZeroDevice):
    """/dev/full: zeros, and no room."""

    def write(self, task: Task, segments: Segments) -> int:
        raise SysError(errno.ENOSPC)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> None:
        raise SysError(errno.ENODEV, "cannot be mapped")


class RandomDevice(NullDevice):
    """/dev/random and /dev/urandom, which are the same: what is written makes no difference."""

    def read(self, task: Task, segments: Segments) -> int:
        make = task.kernel.random.bytes

        def fill(views: list[memoryview], done: int) -> int:
            for view in views:
                for start in range(0, len(view), RANDOM_CHUNK):
                    part = view[start : start + RANDOM_CHUNK]
                    part[:] = make(len(part))
            return sum(map(len, views))

        return transfer(task, segments, True, fill)

    def write(self, task: Task, segments: Segments) -> int:
        return transfer(task, segments, False, lambda views, done: sum(map(len, views)))

    def lseek(self, offset: int, whence: int) -> int:
        """noop_llseek()."""
        return self.position

    def ioctl(self, task: Task, request: int, argument: int) -> int:
        if request == RNDGETENTCNT:
            task.memory.write_u32(argument, POOL_BITS)
            return 0
        if request in (RNDADDTOENTCNT, RNDRESEEDCRNG):
            if not task.credentials.capable(CAP_SYS_ADMIN):
                raise SysError(errno.EPERM)
            if request == RNDADDTOENTCNT and task.memory.read_i32(argument) < 0:
                raise SysError(errno.EINVAL, "negative")
            return 0
        raise SysError(errno.EINVAL, "no such ioctl")


def fill_zeros(view: memoryview) -> int:
    """Make memory zeros; its length."""
    size = len(view)
    for start in range(0, size, len(ZEROS)):
        part = view[start : start + len(ZEROS)]
        part[:] = ZEROS[: len(part)]
    return size


class KernelLog:
    """The records that were written to /dev/kmsg. The machine itself logs nothing here."""

    def __init__(self) -> None:
        self.records: list[bytes] = []
        self.first = 0
        """Number of the oldest record that is kept."""
        self.waiting = WaitQueue()
        self.pollers = PollQueue()

    @property
    def next(self) -> int:
        return self.first + len(self.records)

    def add(self, priority: int, micros: int, message: bytes) -> None:
        text = b"".join(b"%c" % c if 32 <= c < 127 and c != 92 else b"\\x%02x" % c for c in message)
        self.records.append(b"%d,%d,%d,-;%s\n" % (priority, self.next, micros, text))
        if len(self.records) > RECORDS:
            del self.records[0]
            self.first += 1
        self.waiting.wake_all()
        self.pollers.tell(POLLIN | POLLRDNORM)


def log_of(kernel: Kernel) -> KernelLog:
    """The machine's log."""
    log = vars(kernel).setdefault("log", KernelLog())
    assert isinstance(log, KernelLog)
    return log


class KmsgDevice(OpenFile):
    """/dev/kmsg: a read gives one record, a write adds one (Documentation/ABI/testing/dev-kmsg)."""

    def __init__(self, flags: int, log: KernelLog) -> None:
        super().__init__(flags)
        self._log = log
        self._next = log.first
        self.pollers = log.pollers

    def poll(self) -> int:
        ready = POLLIN | POLLRDNORM if self._next < self._log.next else 0
        return ready | POLLOUT | POLLWRNORM

    def read(self, task: Task, segments: Segments) -> int:
        log = self._log
        while self._next >= log.next:
            if self.flags & O_NONBLOCK:
                raise SysError(errno.EAGAIN)
            task.block(log.waiting)
        if self._next < log.first:
            self._next = log.first
            raise SysError(errno.EPIPE, "records were lost")
        record = log.records[self._next - log.first]
        if len(record) > sum(length for _, length in segments):
            raise SysError(errno.EINVAL, "the buffer is too small")
        left = record
        for address, length in segments:
            task.memory.write(address, left[:length])
            left = left[length:]
        self._next += 1
        return len(record)

    def write(self, task: Task, segments: Segments) -> int:
        size = sum(length for _, length in segments)
        if size > LONGEST_RECORD:
            raise SysError(errno.EINVAL, "too long")
        message = b"".join(task.memory.read(address, length) for address, length in segments)
        priority = 12  # LOG_USER | LOG_WARNING
        if message.startswith(b"<"):
            number, mark, rest = message[1:].partition(b">")
            if mark and number.isdigit() and len(number) < 10:
                priority, message = int(number) & 0x7FF, rest
                priority |= 8 if priority < 8 else 0  # only the kernel has facility 0
        self._log.add(priority, task.kernel.clock.monotonic_ns() // 1000, message.removesuffix(b"\n"))
        return size

    def lseek(self, offset: int, whence: int) -> int:
        """SEEK_SET to the first record, SEEK_DATA to the last that was cleared (none was), SEEK_END behind the last."""
        if offset:
            raise SysError(errno.ESPIPE)
        if whence not in (SEEK_SET, SEEK_END, SEEK_DATA):
            raise SysError(errno.EINVAL if whence != SEEK_CUR else errno.ESPIPE, "whence")
        self._next = self._log.next if whence == SEEK_END else self._log.first
        return 0


def open_memory(task: Task, minor: int, flags: int) -> OpenFile:
    """Device 1:`minor`."""
    if minor == KMSG:
        return KmsgDevice(flags, log_of(task.kernel))
    kinds = {NULL: NullDevice, ZERO: ZeroDevice, FULL: FullDevice, RANDOM: RandomDevice, URANDOM: RandomDevice}
    return kinds[minor](flags)
