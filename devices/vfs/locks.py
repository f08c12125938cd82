"""File locks: of byte ranges by processes (POSIX) and by open file descriptions (OFD), and flock's of whole files.

fs/locks.c; man 2 fcntl, flock. All three are advisory. A range lock of a process belongs to its descriptor table, as in
the kernel, and goes with any descriptor of the file that is closed there. `RecordLocks` is the model of the ranges.
"""

from __future__ import annotations

import errno
import struct
from stat import S_IFMT, S_IFREG
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import (
    F_RDLCK,
    F_UNLCK,
    F_WRLCK,
    LOCK_EX,
    LOCK_UN,
    MAX_FILE_SIZE,
    SEEK_CUR,
    SEEK_END,
    SEEK_SET,
)
from devices.wait import Waiter, WaitQueue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task
    from devices.vfs.files import FileTable, OpenFile
    from devices.vfs.inode import Inode

FLOCK = struct.Struct("<hh4xqqi4x")
"""struct flock: l_type, l_whence, l_start, l_len, l_pid."""


class RangeLock:
    """A lock of `kind` (F_RDLCK, F_WRLCK) on the bytes from `start` to `end`, which is locked too."""

    __slots__ = ("end", "kind", "owner", "pid", "start")

    def __init__(self, owner: object, pid: int, kind: int, start: int, end: int) -> None:
        self.owner = owner
        self.pid = pid
        """As F_GETLK tells: of the process, -1 for an open file description's."""
        self.kind = kind
        self.start = start
        self.end = end

    def overlaps(self, other: RangeLock) -> bool:
        return self.start <= other.end and other.start <= self.end

    def conflicts(self, other: RangeLock) -> bool:
        return self.owner is not other.owner and F_WRLCK in (self.kind, other.kind) and self.overlaps(other)


class RecordLocks:
    """The range locks of one file: of each owner, in the order in which owners came, sorted and not overlapping."""

    def __init__(self) -> None:
        self._owners: dict[object, list[RangeLock]] = {}

    def __iter__(self) -> Iterator[RangeLock]:
        for locks in self._owners.values():
            yield from locks

    def __bool__(self) -> bool:
        return bool(self._owners)

    def conflict(self, wanted: RangeLock) -> RangeLock | None:
        """The first lock that forbids `wanted`."""
        return next((lock for lock in self if lock.conflicts(wanted)), None)

    def own(self, wanted: RangeLock) -> RangeLock | None:
        """The first lock of the same owner that overlaps."""
        return next((lock for lock in self._owners.get(wanted.owner, ()) if lock.overlaps(wanted)), None)

    def set(self, new: RangeLock) -> None:
        """Give the owner `new` (F_UNLCK: nothing) in place of what it has there; equal neighbours become one lock."""
        kept: list[RangeLock] = []
        for lock in self._owners.get(new.owner, []):
            joins = lock.kind == new.kind and lock.start <= new.end + 1 and new.start <= lock.end + 1
            if joins:
                new = RangeLock(new.owner, new.pid, new.kind, min(lock.start, new.start), max(lock.end, new.end))
            elif not lock.overlaps(new):
                kept.append(lock)
            else:
                if lock.start < new.start:
                    kept.append(RangeLock(lock.owner, lock.pid, lock.kind, lock.start, new.start - 1))
                if lock.end > new.end:
                    kept.append(RangeLock(lock.owner, lock.pid, lock.kind, new.end + 1, lock.end))
        if new.kind != F_UNLCK:
            kept.append(new)
            kept.sort(key=lambda lock: lock.start)
        if kept:
            self._owners[new.owner] = kept
        else:
            self._owners.pop(new.owner, None)

    def drop(self, owner: object) -> bool:
        """All of an owner's locks go; were there any?"""
        return self._owners.pop(owner, None) is not None


class FileLocks:
    """What `inode.locks` is once the file has been locked."""

    def __init__(self) -> None:
        self.ranges = RecordLocks()
        self.flocks: dict[OpenFile, int] = {}
        """LOCK_SH or LOCK_EX by who holds it."""
        self.waiting = WaitQueue()
        """Each waiter's key says whether its request could be granted."""

    def flock_conflict(self, file: OpenFile, kind: int) -> bool:
        return any(holder is not file and LOCK_EX in (kind, held) for holder, held in self.flocks.items())

    def changed(self) -> None:
        """A lock was given up: wake whose request may be granted now; they ask again in their order."""
        self.waiting.wake(len(self.waiting), lambda waiter: bool(waiter.key()))


def locks_of(file: OpenFile) -> FileLocks:
    holder = file.inode if file.inode is not None else file
    if holder.locks is None:
        holder.locks = FileLocks()
    locks = holder.locks
    assert isinstance(locks, FileLocks)
    return locks


# When files are closed


def descriptor_closed_locked(table: FileTable, locks: object) -> None:
    """locks_remove_posix(): a process that closes any descriptor of a file gives up its locks on it."""
    assert isinstance(locks, FileLocks)
    if locks.ranges.drop(table):
        locks.changed()


def file_closed_locked(file: OpenFile, locks: object) -> None:
    """locks_remove_file(): what belongs to the open file description goes with it."""
    assert isinstance(locks, FileLocks)
    dropped = locks.ranges.drop(file)
    if locks.flocks.pop(file, None) is not None or dropped:
        locks.changed()


# flock


def flock_locked(task: Task, file: OpenFile, kind: int, wait: bool) -> int:
    """flock_lock_inode(): LOCK_SH, LOCK_EX or LOCK_UN. A lock is converted by giving up the old one first."""
    locks = locks_of(file)
    if locks.flocks.get(file) == kind:
        return 0
    if kind != LOCK_UN and wait and locks.flock_conflict(file, kind):
        task.check_may_wait_locked()
    if locks.flocks.pop(file, None) is not None:
        locks.changed()
    if kind == LOCK_UN:
        return 0
    while locks.flock_conflict(file, kind):
        if not wait:
            raise SysError(errno.EWOULDBLOCK, "locked by another")
        _sleep_locked(task, file, locks, lambda: not locks.flock_conflict(file, kind))
    locks.flocks[file] = kind
    return 0


def _sleep_locked(task: Task, file: OpenFile, locks: FileLocks, free: object) -> None:
    file.hold()
    try:
        task.block(locks.waiting, waiter=Waiter(task, free))
    finally:
        file.put_locked()


# Ranges


def range_of(file: OpenFile, kind: int, whence: int, start: int, length: int) -> tuple[int, int]:
    """flock_to_posix_lock(): (first, last byte). SysError(EINVAL, EOVERFLOW)."""
    if whence == SEEK_SET:
        base = 0
    elif whence == SEEK_CUR:
        base = file.position
    elif whence == SEEK_END:
        if file.inode is not None:
            file.inode.refresh()
        base = file.inode.size if file.inode is not None else 0
    else:
        raise SysError(errno.EINVAL, "whence")
    if start > MAX_FILE_SIZE - base:
        raise SysError(errno.EOVERFLOW)
    start += base
    if start < 0:
        raise SysError(errno.EINVAL, "negative start")
    if length > 0:
        if length - 1 > MAX_FILE_SIZE - start:
            raise SysError(errno.EOVERFLOW)
        found = start, start + length - 1
    elif length < 0:
        if start + length < 0:
            raise SysError(errno.EINVAL, "negative start")
        found = start + length, start - 1
    else:
        found = start, MAX_FILE_SIZE
    if kind not in (F_RDLCK, F_WRLCK, F_UNLCK):
        raise SysError(errno.EINVAL, "type")
    return found


def get_lock(task: Task, file: OpenFile, address: int, ofd: bool) -> int:
    """fcntl(F_GETLK, F_OFD_GETLK): write what would forbid the lock to the struct flock at `address`."""
    kind, whence, start, length, pid = task.memory.read_struct(address, FLOCK)
    if not ofd and kind not in (F_RDLCK, F_WRLCK):
        raise SysError(errno.EINVAL, "type")
    first, last = range_of(file, kind, whence, start, length)
    if ofd and pid:
        raise SysError(errno.EINVAL, "l_pid")
    holder = file.inode if file.inode is not None else file
    wanted = RangeLock(file if ofd else task.files, 0, kind, first, last)
    found = None
    if holder.locks is not None:
        ranges = locks_of(file).ranges
        found = ranges.own(wanted) if kind == F_UNLCK else ranges.conflict(wanted)
    if found is None:
        task.memory.write(address, F_UNLCK.to_bytes(2, "little"))
    else:
        count = 0 if found.end == MAX_FILE_SIZE else found.end - found.start + 1
        task.memory.write(address, FLOCK.pack(found.kind, SEEK_SET, found.start, count, found.pid))
    return 0


def set_lock_locked(task: Task, file: OpenFile, fd: int, address: int, *, ofd: bool, wait: bool) -> int:
    """fcntl(F_SETLK, F_SETLKW, F_OFD_SETLK, F_OFD_SETLKW) with the struct flock at `address`."""
    kind, whence, start, length, pid = task.memory.read_struct(address, FLOCK)
    first, last = range_of(file, kind, whence, start, length)
    if kind == F_RDLCK:
        file.check_readable()
    elif kind == F_WRLCK:
        file.check_writable()
    if ofd and pid:
        raise SysError(errno.EINVAL, "l_pid")
    owner = file if ofd else task.files
    wanted = RangeLock(owner, -1 if ofd else task.process.pid, kind, first, last)
    locks = locks_of(file)
    ranges = locks.ranges
    if kind != F_UNLCK:
        _await_locked(task, file, locks, wanted, wait)
    ranges.set(wanted)
    if not ofd and kind != F_UNLCK and task.files.find(fd) is not file:
        ranges.drop(owner)  # closed while this call waited: nothing would give it up
        locks.changed()
        raise SysError(errno.EBADF, "closed meanwhile")
    locks.changed()
    return 0


def _await_locked(task: Task, file: OpenFile, locks: FileLocks, wanted: RangeLock, wait: bool) -> None:
    """Until nothing forbids the lock. SysError(EAGAIN) without `wait`, SysError(EDEADLK)."""
    ranges = locks.ranges
    waits = task.kernel.vfs.lock_waits
    while (blocker := ranges.conflict(wanted)) is not None:
        if not wait:
            raise SysError(errno.EAGAIN, "locked by another")
        if wanted.pid >= 0 and _would_deadlock(waits, wanted, blocker):
            raise SysError(errno.EDEADLK)
        waits[wanted] = locks
        try:
            _sleep_locked(task, file, locks, lambda: ranges.conflict(wanted) is None)
        finally:
            del waits[wanted]


def _would_deadlock(waits: dict[RangeLock, FileLocks], wanted: RangeLock, blocker: RangeLock) -> bool:
    """posix_locks_deadlock(): does the holder wait, through others, for the one who asks? Of processes' locks only: an
    open file description's may be given up by any process that has it."""
    seen = set()
    owners = [blocker.owner]
    while owners:
        owner = owners.pop()
        if owner is wanted.owner:
            return True
        if owner in seen:
            continue
        seen.add(owner)
        for request, locks in waits.items():
            if request.owner is owner and request.pid >= 0:
                holder = locks.ranges.conflict(request)
                if holder is not None:
                    owners.append(holder.owner)
    return False


# Leases: no file system here has them, as with FUSE or 9p (simple_nosetlease())


def set_lease_locked(inode: Inode) -> int:
    raise SysError(errno.EINVAL, "no leases" if S_IFMT(inode.mode) == S_IFREG else "no regular file")


def get_lease() -> int:
    return F_UNLCK
