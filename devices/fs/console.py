"""The machine's standard streams: host descriptors 0, 1 and 2 as the guest's.

The host's descriptors are not made non-blocking (others share their open file descriptions). So that a guest's call can
be interrupted, it waits with poll(2) before it reads or writes, and writes to a pipe with RWF_NOWAIT.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import stat
import struct
import termios
from typing import TYPE_CHECKING

from devices.errors import Interrupted, LeaveGuest, SysError, host_errno
from devices.poll.abi import POLLIN, POLLOUT, POLLPRI, POLLRDNORM, POLLWRNORM
from devices.signals.info import SigInfo
from devices.signals.send import send_locked
from devices.vfs.abi import O_NONBLOCK
from devices.vfs.files import OpenFile
from devices.vfs.transfer import transfer

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import Segments

TERMIOS_SIZE = 36
"""struct termios of <asm-generic/termbits.h>."""
WRITE_AT_ONCE = 4096
"""A terminal that polls as writable takes this much without blocking for long."""
FIONREAD = 0x541B


class ConsoleFile(OpenFile):
    """A standard stream backed by a host descriptor, which stays open when the guest closes it."""

    def __init__(self, host_fd: int) -> None:
        flags = fcntl.fcntl(host_fd, fcntl.F_GETFL) & ~O_NONBLOCK
        super().__init__(flags)
        self.host_fd = host_fd
        mode = os.fstat(host_fd).st_mode
        self.seekable = stat.S_ISREG(mode) or stat.S_ISBLK(mode)
        self.nowait = stat.S_ISFIFO(mode)
        self.always_ready = self.seekable or not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(host_fd))

    @property
    def host_poll_fd(self) -> int:  # type: ignore[override]  # a value of its own for each stream
        return -1 if self.always_ready else self.host_fd

    def poll(self) -> int:
        if self.always_ready:
            return super().poll()
        return host_ready(self.host_fd, POLLIN | POLLOUT | POLLRDNORM | POLLWRNORM | POLLPRI)

    def _wait(self, task: Task, events: int) -> None:
        if self.flags & O_NONBLOCK:
            if not host_ready(self.host_fd, events):
                raise SysError(errno.EAGAIN)
        else:
            task.wait_host(self.host_fd, events)

    def read(self, task: Task, segments: Segments) -> int:
        if not self.always_ready:
            self._wait(task, select.POLLIN)

        def move(views: list[memoryview], done: int) -> int:
            if done and not self.always_ready:
                return 0  # one poll vouches for one read
            with host_errno():
                return os.readv(self.host_fd, views)

        return transfer(task, segments, True, move)

    def write(self, task: Task, segments: Segments) -> int:
        if task.in_place and not self.always_ready:
            raise LeaveGuest  # it may have to wait when it is half done

        def move(views: list[memoryview], done: int) -> int:
            try:
                return self._write_all(task, views)
            except Interrupted:
                if done:
                    return 0
                raise

        return transfer(task, segments, False, move)

    def _write_all(self, task: Task, views: list[memoryview]) -> int:
        """Write all of `views`, waiting for room as often as needed (a blocking write is whole)."""
        total = 0
        while views:
            try:
                written = self._write_some(task, views)
            except (Interrupted, SysError):
                if total:
                    return total
                raise
            total += written
            views = rest_of(views, written)
        return total

    def _write_some(self, task: Task, views: list[memoryview]) -> int:
        try:
            with host_errno():
                return self._write_once(task, views)
        except SysError as error:
            if error.errno == errno.EPIPE:
                send_locked(task, signal.SIGPIPE, SigInfo.sent_by(task, signal.SIGPIPE))
            raise

    def _write_once(self, task: Task, views: list[memoryview]) -> int:
        if self.always_ready:
            return os.writev(self.host_fd, views)
        if self.nowait:
            try:
                return os.pwritev(self.host_fd, views, -1, os.RWF_NOWAIT)
            except BlockingIOError:
                self._wait(task, select.POLLOUT)
                return 0
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                self.nowait = False
        self._wait(task, select.POLLOUT)
        return os.write(self.host_fd, views[0][:WRITE_AT_ONCE])

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        if not self.seekable:
            return super().pread(task, segments, offset)

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.preadv(self.host_fd, views, offset + done)

        return transfer(task, segments, True, move)

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        if not self.seekable:
            return super().pwrite(task, segments, offset)

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.pwritev(self.host_fd, views, offset + done)

        return transfer(task, segments, False, move)

    def lseek(self, offset: int, whence: int) -> int:
        with host_errno():
            return os.lseek(self.host_fd, offset, whence)

    def stat(self) -> os.stat_result:
        return os.fstat(self.host_fd)

    def ioctl(self, task: Task, request: int, argument: int) -> int:
        if request == termios.TCGETS:
            task.memory.write(argument, self._host_ioctl(request, bytes(TERMIOS_SIZE)))
        elif request in (termios.TCSETS, termios.TCSETSW, termios.TCSETSF):
            self._host_ioctl(termios.TCGETS, bytes(TERMIOS_SIZE))  # ENOTTY before EFAULT
            task.kernel.keep_terminal(self.host_fd)
            self._host_ioctl(request, task.memory.read(argument, TERMIOS_SIZE))
        elif request == termios.TIOCGWINSZ:
            task.memory.write(argument, self._host_ioctl(request, bytes(8)))
        elif request == termios.TIOCGPGRP:
            self._host_ioctl(termios.TCGETS, bytes(TERMIOS_SIZE))
            task.memory.write(argument, struct.pack("<i", task.process.pgid))
        elif request == FIONREAD:
            task.memory.write(argument, self._host_ioctl(request, bytes(4)))
        else:
            return super().ioctl(task, request, argument)
        return 0

    def _host_ioctl(self, request: int, argument: bytes) -> bytes:
        with host_errno():
            return fcntl.ioctl(self.host_fd, request, argument)


def host_ready(fd: int, events: int) -> int:
    """The poll(2) bits out of `events` (and POLLERR, POLLHUP) that a host descriptor is ready for."""
    poll = select.poll()
    poll.register(fd, events)
    return sum(ready for _, ready in poll.poll(0))


def rest_of(views: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `views` after `done` bytes."""
    left = list(views)
    while left and done >= len(left[0]):
        done -= len(left.pop(0))
    if left and done:
        left[0] = left[0][done:]
    return left
