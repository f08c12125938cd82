"""epoll: a set of files, and those of them that may be ready (fs/eventpoll.c).

An item listens to its file and puts itself into the ready list when it is told something that it is interested in;
epoll_wait looks at the files in that list, reports those that are ready, and puts level-triggered ones back at its end.
Files that live in the host are watched by an epoll instance of the host, with the same flags, which knows their edges.
"""

from __future__ import annotations

import errno
import select
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.poll.abi import (
    ALWAYS,
    EP_MAX_NESTS,
    EPOLL_PRIVATE,
    EPOLLET,
    EPOLLEXCLUSIVE,
    EPOLLONESHOT,
    EPOLLWAKEUP,
    POLLIN,
    POLLRDNORM,
)
from devices.vfs.abi import O_RDWR
from devices.vfs.files import OpenFile
from devices.wait import PollListener, PollQueue, WaitQueue

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.time.sleep import Deadline

HOST_BITS = ~(EPOLLWAKEUP | EPOLLEXCLUSIVE)
"""Flags that the host's instance need not know: it has one waiter at a time and no power to save."""


class EpollItem(PollListener):
    """A file in an epoll instance."""

    __slots__ = ("_host", "data", "epoll", "events", "fd", "file")

    def __init__(self, epoll: Epoll, fd: int, file: OpenFile, events: int, data: int) -> None:
        self.epoll = epoll
        self.fd = fd
        self.file = file
        self.events = events
        self.data = data
        self._host = -1

    def start(self) -> None:
        """Begin to listen."""
        self.file.listeners.append(self)
        if self.file.host_poll_fd >= 0:
            self._host = self.file.host_poll_fd
            self.epoll.host_add(self, self._host)
        if self.file.pollers is not None:
            self.file.pollers.add(self, bool(self.events & EPOLLEXCLUSIVE))
            self.look()

    def change(self, events: int, data: int) -> None:
        """EPOLL_CTL_MOD: arms a one-shot item again."""
        self.events = events
        self.data = data
        if self._host >= 0:
            self.epoll.host_modify(self, self._host)
        if self.file.pollers is not None:
            self.look()

    def stop(self) -> None:
        self.file.listeners.remove(self)
        if self._host >= 0:
            self.epoll.host_remove(self._host)
        if self.file.pollers is not None:
            self.file.pollers.remove(self)

    def ready(self) -> int:
        """What the guest's file is ready for, out of what is wanted."""
        wanted = self.events & ~EPOLL_PRIVATE
        return self.file.poll() & (wanted | ALWAYS) if wanted else 0

    def look(self) -> None:
        if self.ready():
            self.epoll.item_ready(self)

    def told(self, events: int) -> bool:
        wanted = self.events & ~EPOLL_PRIVATE
        if not wanted or not events & (wanted | ALWAYS):
            return False
        self.epoll.item_ready(self)
        return True

    def file_closed_locked(self) -> None:
        """The last descriptor of the file is gone, and with it the item."""
        self.epoll.drop(self)


class Epoll(OpenFile):
    """An epoll instance."""

    def __init__(self) -> None:
        super().__init__(O_RDWR)
        self.pollers = PollQueue()
        self.items: dict[tuple[int, OpenFile], EpollItem] = {}
        self._ready: dict[EpollItem, None] = {}
        self._waiters = WaitQueue()
        self._host: select.epoll | None = None
        self._host_items: dict[int, EpollItem] = {}

    # The set

    def add(self, fd: int, file: OpenFile, events: int, data: int) -> None:
        """SysError: EEXIST, EPERM for a file that cannot be waited for, ELOOP for a cycle or too deep a nest."""
        if not file.pollable:
            raise SysError(errno.EPERM, "the file does not support epoll")
        if (fd, file) in self.items:
            raise SysError(errno.EEXIST)
        if isinstance(file, Epoll) and (file.reaches(self) or file.depth() + self.height() > EP_MAX_NESTS + 1):
            raise SysError(errno.ELOOP, "a cycle, or too many nested instances")
        item = EpollItem(self, fd, file, events | ALWAYS, data)
        self.items[fd, file] = item
        item.start()

    def find(self, fd: int, file: OpenFile) -> EpollItem:
        item = self.items.get((fd, file))
        if item is None:
            raise SysError(errno.ENOENT, "the file is not in the set")
        return item

    def drop(self, item: EpollItem) -> None:
        """Take an item out."""
        item.stop()
        del self.items[item.fd, item.file]
        self._ready.pop(item, None)

    def reaches(self, other: Epoll) -> bool:
        """Is `other` this instance or in it, at any depth?"""
        return self is other or any(isinstance(f, Epoll) and f.reaches(other) for _, f in self.items)

    def depth(self) -> int:
        """How many instances are nested below and including this one."""
        return 1 + max((f.depth() for _, f in self.items if isinstance(f, Epoll)), default=0)

    def height(self) -> int:
        """How many instances are above and including this one."""
        return 1 + max((item.epoll.height() for item in self.listeners), default=0)

    # The host's part

    def host_add(self, item: EpollItem, fd: int) -> None:
        if self._host is None:
            self._host = select.epoll()
        if fd in self._host_items:
            raise SysError(errno.EEXIST, "another descriptor of the same host file is in the set")
        with host_errno():
            self._host.register(fd, item.events & HOST_BITS)
        self._host_items[fd] = item

    def host_modify(self, item: EpollItem, fd: int) -> None:
        assert self._host is not None
        with host_errno():
            self._host.modify(fd, item.events & HOST_BITS)

    def host_remove(self, fd: int) -> None:
        assert self._host is not None
        del self._host_items[fd]
        with host_errno():
            self._host.unregister(fd)

    @property
    def host_poll_fd(self) -> int:  # type: ignore[override]  # there is one once a file of the host is in the set
        return self._host.fileno() if self._host is not None else -1

    # Readiness

    def item_ready(self, item: EpollItem) -> None:
        """An item may be ready: tell who waits."""
        self._ready[item] = None
        self._waiters.wake(1)
        self.pollers_of().tell(POLLIN | POLLRDNORM)

    def pollers_of(self) -> PollQueue:
        assert self.pollers is not None
        return self.pollers

    def poll(self) -> int:
        for item in list(self._ready):
            if item.ready():
                return POLLIN | POLLRDNORM
            del self._ready[item]
        if self._host is not None and select_ready(self._host):
            return POLLIN | POLLRDNORM
        return 0

    def take(self, limit: int) -> list[tuple[int, int]]:
        """Up to `limit` ready files: (events, data) each."""
        found: list[tuple[int, int]] = []
        for item in list(self._ready):
            if len(found) == limit:
                break
            del self._ready[item]
            events = item.ready()
            if events:
                found.append((events, item.data))
                if item.events & EPOLLONESHOT:
                    item.events &= EPOLL_PRIVATE
                elif not item.events & EPOLLET:
                    self._ready[item] = None
        if self._host is not None and len(found) < limit:
            for fd, events in self._host.poll(0, limit - len(found)):
                found.append((events, self._host_items[fd].data))
        return found

    def wait(self, task: Task, limit: int, deadline: Deadline | None) -> list[tuple[int, int]]:
        """Wait until a file is ready or `deadline` has come."""
        found = self.take(limit)
        while not found and (deadline is None or deadline.left(task) > 0):
            until = None if deadline is None else task.kernel.clock.monotonic_ns() + deadline.left(task)
            if self._host is None:
                task.block(self._waiters, until)
            else:
                self._wait_with_host(task, until)
            found = self.take(limit)
        if self._ready and found:
            self._waiters.wake(1)  # there may be enough for another one
        return found

    def _wait_with_host(self, task: Task, until: int | None) -> None:
        from devices.poll.wait import Sleeper

        sleeper = Sleeper(task)
        self.pollers_of().add(sleeper)
        try:
            task.wait_for([(self.host_poll_fd, POLLIN)], until)
        finally:
            self.pollers_of().remove(sleeper)

    def release_locked(self) -> None:
        for item in list(self.items.values()):
            self.drop(item)
        if self._host is not None:
            self._host.close()
            self._host = None


def select_ready(host: select.epoll) -> bool:
    """Is the host's epoll instance readable? Asked through poll(2), which takes no edge away."""
    poll = select.poll()
    poll.register(host.fileno(), select.POLLIN)
    return bool(poll.poll(0))
