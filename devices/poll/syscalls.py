"""poll, select, epoll, eventfd: decode, find the files, wait."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Fd, Int, Ptr, Size, TimespecPtr, TimevalPtr, UInt
from devices.bus import syscall
from devices.errors import ERESTART_RESTARTBLOCK, ERESTARTNOHAND, Interrupted, SysError
from devices.fs.anon import anonymous_path
from devices.poll import abi
from devices.poll.abi import (
    ALWAYS,
    POLLFD,
    POLLHUP,
    POLLIN,
    POLLNVAL,
    POLLOUT,
    POLLPRI,
    POLLRDBAND,
    POLLRDNORM,
    POLLWRBAND,
    POLLWRNORM,
    EpollFlags,
    EpollOp,
    EventfdFlags,
)
from devices.poll.epoll import Epoll
from devices.poll.eventfd import EventFd
from devices.poll.wait import wait_ready
from devices.signals.abi import SIGSET_SIZE, UNBLOCKABLE
from devices.signals.send import set_mask_locked
from devices.task.rlimits import RLIMIT_NOFILE
from devices.time.abi import CLOCK_MONOTONIC, NSEC_PER_SEC, NSEC_PER_USEC, TIMEVAL, read_timespec, write_timespec
from devices.time.sleep import Deadline
from vmm.layout import TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from devices.task.task import Task
    from devices.vfs.files import OpenFile

NSEC_PER_MSEC = 1_000_000
POLLIN_SET = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | abi.POLLERR
POLLOUT_SET = POLLWRBAND | POLLWRNORM | POLLOUT | abi.POLLERR
POLLEX_SET = POLLPRI
"""What counts as readable, writable and exceptional for select (fs/select.c)."""


def nofile(task: Task) -> int:
    return task.process.rlimits[RLIMIT_NOFILE][0]


def deadline_of(task: Task, ns: int | None) -> Deadline | None:
    """A relative time-out as a time to wake up at; None waits for ever."""
    return None if ns is None else Deadline.after(task, CLOCK_MONOTONIC, ns)


def milliseconds(timeout: int) -> int | None:
    return None if timeout < 0 else timeout * NSEC_PER_MSEC


def with_mask(task: Task, mask: int | None, wait: Callable[[], int]) -> int:
    """Wait with a signal mask of the wait's own; what interrupts it is delivered before the old mask is back."""
    if mask is None:
        return wait()
    old = task.sigmask
    set_mask_locked(task, mask)
    try:
        result = wait()
    except Interrupted:
        task.saved_sigmask = old
        raise
    except BaseException:
        set_mask_locked(task, old)
        raise
    set_mask_locked(task, old)
    return result


def read_mask(task: Task, address: int, size: int) -> int | None:
    if not address:
        return None
    if size != SIGSET_SIZE:
        raise SysError(errno.EINVAL, "sigsetsize is not 8")
    return task.memory.read_u64(address) & ~UNBLOCKABLE


# poll


@syscall("poll")
def poll(task: Task, fds: Ptr, nfds: UInt, timeout: Int) -> int:
    """man 2 poll."""
    deadline = deadline_of(task, milliseconds(timeout))
    return _poll_on(task, fds, nfds, deadline)


def _poll_on(task: Task, fds: int, nfds: int, deadline: Deadline | None) -> int:
    """poll with a deadline: also what restart_syscall goes on with."""
    try:
        return do_poll(task, fds, nfds, deadline, ERESTART_RESTARTBLOCK)
    except Interrupted:
        task.restart_block = lambda again: _poll_on(again, fds, nfds, deadline)
        raise


@syscall("ppoll", in_place=False)
def ppoll(task: Task, fds: Ptr, nfds: UInt, tmo_p: TimespecPtr, sigmask: Ptr, sigsetsize: Size) -> int:
    """man 2 ppoll. The kernel's call updates the time-out."""
    deadline = deadline_of(task, read_timespec(task.memory, tmo_p) if tmo_p else None)
    mask = read_mask(task, sigmask, sigsetsize)
    try:
        return with_mask(task, mask, lambda: do_poll(task, fds, nfds, deadline, ERESTARTNOHAND))
    finally:
        if deadline is not None:
            write_timespec_if_possible(task, tmo_p, deadline)


def write_timespec_if_possible(task: Task, address: int, deadline: Deadline) -> None:
    """The remaining time; a time-out in read-only memory stays as it is (poll_select_finish())."""
    try:
        write_timespec(task.memory, address, max(deadline.left(task), 0))
    except SysError:
        return


def do_poll(task: Task, fds: int, nfds: int, deadline: Deadline | None, restart: int) -> int:
    if nfds > nofile(task):
        raise SysError(errno.EINVAL, "nfds is above RLIMIT_NOFILE")
    raw = task.memory.read(fds, nfds * POLLFD.size) if nfds else b""
    entries = list(POLLFD.iter_unpack(raw))
    open_files = task.files
    wanted: list[tuple[OpenFile | None, int]] = []
    bad = False
    for fd, events, _ in entries:
        file = open_files.find(fd) if fd >= 0 else None
        bad = bad or (file is None and fd >= 0)
        wanted.append((file, events & 0xFFFF))
    ready = wait_ready(task, wanted, Deadline(CLOCK_MONOTONIC, 0) if bad else deadline, restart)
    count = 0
    for index, ((fd, _, before), (file, _), now) in enumerate(zip(entries, wanted, ready, strict=True)):
        revents = POLLNVAL if file is None and fd >= 0 else now
        count += revents != 0
        if revents != before:
            task.memory.write(fds + index * POLLFD.size + 6, revents.to_bytes(2, "little"))
    return count


# select


@syscall("select")
def select(task: Task, nfds: Int, readfds: Ptr, writefds: Ptr, exceptfds: Ptr, timeout: TimevalPtr) -> int:
    """man 2 select. Linux updates the time-out."""
    deadline = None
    if timeout:
        seconds, micros = task.memory.read_struct(timeout, TIMEVAL)
        if seconds < 0 or micros < 0:
            raise SysError(errno.EINVAL, "negative time-out")
        deadline = deadline_of(task, seconds * NSEC_PER_SEC + micros * NSEC_PER_USEC)
    try:
        return do_select(task, nfds, (readfds, writefds, exceptfds), deadline)
    finally:
        if deadline is not None and not task.in_place:
            write_timeval_if_possible(task, timeout, deadline)


def write_timeval_if_possible(task: Task, address: int, deadline: Deadline) -> None:
    seconds, ns = divmod(max(deadline.left(task), 0), NSEC_PER_SEC)
    try:
        task.memory.write_struct(address, TIMEVAL, seconds, ns // NSEC_PER_USEC)
    except SysError:
        return


@syscall("pselect6", in_place=False)
def pselect6(task: Task, nfds: Int, readfds: Ptr, writefds: Ptr, exceptfds: Ptr, timeout: TimespecPtr, sig: Ptr) -> int:
    """man 2 pselect6; `sig` leads to the mask's address and size."""
    deadline = deadline_of(task, read_timespec(task.memory, timeout) if timeout else None)
    mask = None
    if sig:
        address, size = task.memory.read_u64(sig), task.memory.read_u64(sig + 8)
        mask = read_mask(task, address, size)
    try:
        return with_mask(task, mask, lambda: do_select(task, nfds, (readfds, writefds, exceptfds), deadline))
    finally:
        if deadline is not None:
            write_timespec_if_possible(task, timeout, deadline)


def do_select(task: Task, nfds: int, sets: tuple[int, int, int], deadline: Deadline | None) -> int:
    if nfds < 0:
        raise SysError(errno.EINVAL, "negative nfds")
    count = min(nfds, task.files.capacity())
    size = (count + 63) // 64 * 8
    given = [int.from_bytes(task.memory.read(a, size), "little") if a and size else 0 for a in sets]
    limit = (1 << count) - 1
    given = [bits & limit for bits in given]
    fds = [fd for fd in range(count) if (given[0] | given[1] | given[2]) >> fd & 1]
    wanted: list[tuple[OpenFile | None, int]] = []
    for fd in fds:
        events = sum(
            mask for bits, mask in zip(given, (POLLIN_SET, POLLOUT_SET, POLLEX_SET), strict=True) if bits >> fd & 1
        )
        wanted.append((task.files.get(fd), events))
    ready = wait_ready(task, wanted, deadline, ERESTARTNOHAND)
    found = [0, 0, 0]
    for fd, now in zip(fds, ready, strict=True):
        for i, mask in enumerate((POLLIN_SET, POLLOUT_SET, POLLEX_SET)):
            if given[i] >> fd & 1 and now & mask:
                found[i] |= 1 << fd
    for address, bits in zip(sets, found, strict=True):
        if address and size:
            task.memory.write(address, bits.to_bytes(size, "little"))
    return sum(bits.bit_count() for bits in found)


# epoll


@syscall("epoll_create")
def epoll_create(task: Task, size: Int) -> int:
    """man 2 epoll_create."""
    if size <= 0:
        raise SysError(errno.EINVAL, "size is not positive")
    return task.files.install(new_epoll(task), nofile(task))


@syscall("epoll_create1")
def epoll_create1(task: Task, flags: EpollFlags) -> int:
    if flags & ~abi.EPOLL_CLOEXEC:
        raise SysError(errno.EINVAL, "unknown flag")
    return task.files.install(new_epoll(task), nofile(task), cloexec=bool(flags))


def new_epoll(task: Task) -> Epoll:
    epoll = Epoll()
    epoll.attach(anonymous_path(task.kernel, b"[eventpoll]"))
    return epoll


def epoll_of(task: Task, epfd: int) -> Epoll:
    file = task.files.get(epfd)
    if not isinstance(file, Epoll):
        raise SysError(errno.EINVAL, "not an epoll instance")
    return file


@syscall("epoll_ctl")
def epoll_ctl(task: Task, epfd: Fd, op: EpollOp, fd: Fd, event: Ptr) -> int:
    """man 2 epoll_ctl, with the order of checks of do_epoll_ctl()."""
    events = data = 0
    if op != abi.EPOLL_CTL_DEL:
        events, data = task.memory.read_struct(event, abi.EPOLL_EVENT)
    epoll = task.files.get(epfd)
    file = task.files.get(fd)
    if not file.pollable:
        raise SysError(errno.EPERM, "the file does not support epoll")
    if epoll is file or not isinstance(epoll, Epoll):
        raise SysError(errno.EINVAL, "not an epoll instance, or itself")
    if events & abi.EPOLLEXCLUSIVE and op != abi.EPOLL_CTL_DEL:
        if op == abi.EPOLL_CTL_MOD:
            raise SysError(errno.EINVAL, "EPOLLEXCLUSIVE cannot be set later")
        if isinstance(file, Epoll) or events & ~abi.EPOLLEXCLUSIVE_OK:
            raise SysError(errno.EINVAL, "EPOLLEXCLUSIVE does not go with that")
    if op == abi.EPOLL_CTL_ADD:
        epoll.add(fd, file, events, data)
    elif op == abi.EPOLL_CTL_DEL:
        epoll.drop(epoll.find(fd, file))
    elif op == abi.EPOLL_CTL_MOD:
        item = epoll.find(fd, file)
        if item.events & abi.EPOLLEXCLUSIVE:
            raise SysError(errno.EINVAL, "an exclusive item cannot be changed")
        item.change(events | ALWAYS, data)
    else:
        raise SysError(errno.EINVAL, "unknown operation")
    return 0


def do_epoll_wait(task: Task, epfd: int, events: int, maxevents: int, timeout: int | None) -> int:
    if not 0 < maxevents <= abi.EP_MAX_EVENTS:
        raise SysError(errno.EINVAL, "maxevents")
    if events + maxevents * abi.EPOLL_EVENT.size > TASK_SIZE:
        raise SysError(errno.EFAULT, "beyond the program's address space")
    epoll = epoll_of(task, epfd)
    epoll.hold()
    try:
        found = epoll.wait(task, maxevents, deadline_of(task, timeout))
        task.memory.write(events, b"".join(abi.EPOLL_EVENT.pack(e, d) for e, d in found))
    finally:
        epoll.put_locked()
    return len(found)


def never_restarted(wait: Callable[[], int]) -> int:
    """A wait that fails with EINTR whatever the signal does (signal(7))."""
    try:
        return wait()
    except Interrupted as interrupted:
        raise SysError(errno.EINTR) from interrupted


@syscall("epoll_wait")
def epoll_wait(task: Task, epfd: Fd, events: Ptr, maxevents: Int, timeout: Int) -> int:
    """man 2 epoll_wait."""
    return never_restarted(lambda: do_epoll_wait(task, epfd, events, maxevents, milliseconds(timeout)))


@syscall("epoll_pwait", in_place=False)
def epoll_pwait(task: Task, epfd: Fd, events: Ptr, maxevents: Int, timeout: Int, sigmask: Ptr, sigsetsize: Size) -> int:
    mask = read_mask(task, sigmask, sigsetsize)
    ns = milliseconds(timeout)
    return never_restarted(lambda: with_mask(task, mask, lambda: do_epoll_wait(task, epfd, events, maxevents, ns)))


@syscall("epoll_pwait2", in_place=False)
def epoll_pwait2(
    task: Task, epfd: Fd, events: Ptr, maxevents: Int, timeout: TimespecPtr, sigmask: Ptr, sigsetsize: Size
) -> int:
    ns = read_timespec(task.memory, timeout) if timeout else None
    mask = read_mask(task, sigmask, sigsetsize)
    return never_restarted(lambda: with_mask(task, mask, lambda: do_epoll_wait(task, epfd, events, maxevents, ns)))


# eventfd


@syscall("eventfd")
def eventfd(task: Task, initval: UInt) -> int:
    return eventfd2(task, initval, 0)


@syscall("eventfd2")
def eventfd2(task: Task, initval: UInt, flags: EventfdFlags) -> int:
    """man 2 eventfd."""
    if flags & ~(abi.EFD_SEMAPHORE | abi.EFD_NONBLOCK | abi.EFD_CLOEXEC):
        raise SysError(errno.EINVAL, "unknown flag")
    file = EventFd(initval, flags)
    file.attach(anonymous_path(task.kernel, b"[eventfd]"))
    return task.files.install(file, nofile(task), cloexec=bool(flags & abi.EFD_CLOEXEC))
