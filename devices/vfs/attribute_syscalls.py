"""chmod, chown and the calls that set times (fs/open.c, fs/attr.c, fs/utimes.c)."""

from __future__ import annotations

import errno
import struct
from stat import S_IFLNK, S_IFMT
from typing import TYPE_CHECKING, Annotated

from devices.args import Fd, Mode, Path, Ptr, StructArg, Uid
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    MAY_WRITE,
    NS,
    UTIME_NOW,
    UTIME_OMIT,
    AtFlags,
)
from devices.vfs.arguments import NullablePath, place_at
from devices.vfs.events import IN_ATTRIB, notify
from devices.vfs.path import LOOKUP_FOLLOW, walk
from devices.vfs.permissions import (
    chmod_mode,
    inode_permission,
    may_chown,
    mode_after_chown,
    owner_or_capable,
    want_write,
)

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs import path as paths

TIMES = struct.Struct("<qqqq")
SAME_ID = 0xFFFF_FFFF
TimesPtr = Annotated[int, StructArg("timespec", "<qqqq", ("atime", "atime_nsec", "mtime", "mtime_nsec"))]


def now(task: Task) -> int:
    """current_time()."""
    return task.kernel.clock.realtime_ns()


def place_of_fd(task: Task, fd: int) -> paths.Path:
    """Where a descriptor was opened; EPERM for a file in no file system, whose attributes are nobody's to set."""
    place = task.files.opened(fd).path
    if place is None:
        raise SysError(errno.EPERM, "in no file system")
    return place


# Mode


@syscall("chmod")
def chmod(task: Task, pathname: Path, mode: Mode) -> int:
    return change_mode(task, walk(task, AT_FDCWD, pathname, LOOKUP_FOLLOW), mode)


@syscall("fchmod")
def fchmod(task: Task, fd: Fd, mode: Mode) -> int:
    return change_mode(task, place_of_fd(task, fd), mode)


@syscall("fchmodat")
def fchmodat(task: Task, dirfd: Fd, pathname: Path, mode: Mode) -> int:
    return change_mode(task, walk(task, dirfd, pathname, LOOKUP_FOLLOW), mode)


@syscall("fchmodat2")
def fchmodat2(task: Task, dirfd: Fd, pathname: NullablePath, mode: Mode, flags: AtFlags) -> int:
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    return change_mode(task, place_at(task, dirfd, pathname, flags), mode)


def change_mode(task: Task, place: paths.Path, mode: int) -> int:
    """chmod_common()."""
    inode = place.inode
    want_write(place.mount)
    inode.refresh()
    if S_IFMT(inode.mode) == S_IFLNK:
        raise SysError(errno.EOPNOTSUPP, "a symbolic link has no mode")
    kept = chmod_mode(task, inode, mode & 0o7777)
    inode.setattr(mode=kept, ctime=now(task))
    notify(task, IN_ATTRIB, place)
    return 0


# Owner


@syscall("chown")
def chown(task: Task, pathname: Path, owner: Uid, group: Uid) -> int:
    return change_owner(task, walk(task, AT_FDCWD, pathname, LOOKUP_FOLLOW), owner, group)


@syscall("lchown")
def lchown(task: Task, pathname: Path, owner: Uid, group: Uid) -> int:
    return change_owner(task, walk(task, AT_FDCWD, pathname, 0), owner, group)


@syscall("fchown")
def fchown(task: Task, fd: Fd, owner: Uid, group: Uid) -> int:
    return change_owner(task, place_of_fd(task, fd), owner, group)


@syscall("fchownat")
def fchownat(task: Task, dirfd: Fd, pathname: NullablePath, owner: Uid, group: Uid, flags: AtFlags) -> int:
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    return change_owner(task, place_at(task, dirfd, pathname, flags), owner, group)


def change_owner(task: Task, place: paths.Path, owner: int, group: int) -> int:
    """chown_common(): -1 leaves an id as it is; set-user-id and set-group-id go in any case."""
    inode = place.inode
    want_write(place.mount)
    inode.refresh()
    uid = None if owner == SAME_ID else owner
    gid = None if group == SAME_ID else group
    may_chown(task, inode, uid, gid)
    inode.setattr(uid=uid, gid=gid, mode=mode_after_chown(task, inode), ctime=now(task))
    notify(task, IN_ATTRIB, place)
    return 0


# Times


@syscall("utime")
def utime(task: Task, filename: Path, times: Ptr) -> int:
    """man 2 utime: whole seconds; NULL is now."""
    found = None
    if times:
        atime, mtime = task.memory.read_struct(times, struct.Struct("<qq"))
        found = (atime * NS, mtime * NS)
    return change_times(task, walk(task, AT_FDCWD, filename, LOOKUP_FOLLOW), found)


@syscall("utimes")
def utimes(task: Task, filename: Path, times: Ptr) -> int:
    """man 2 utimes: microseconds."""
    return _futimesat(task, AT_FDCWD, filename, times)


@syscall("futimesat")
def futimesat(task: Task, dirfd: Fd, pathname: NullablePath, times: Ptr) -> int:
    """man 2 futimesat; a NULL path is `dirfd` itself."""
    return _futimesat(task, dirfd, pathname, times)


def _futimesat(task: Task, dirfd: int, path: bytes | None, address: int) -> int:
    times = None
    if address:
        values = task.memory.read_struct(address, TIMES)
        if not (0 <= values[1] < 10**6 and 0 <= values[3] < 10**6):
            raise SysError(errno.EINVAL, "microseconds")
        times = (values[0] * NS + values[1] * 1000, values[2] * NS + values[3] * 1000)
    if path is None and dirfd != AT_FDCWD:
        return change_times(task, place_of_fd(task, dirfd), times)
    return change_times(task, place_at(task, dirfd, path, 0), times)


@syscall("utimensat")
def utimensat(task: Task, dirfd: Fd, pathname: NullablePath, times: TimesPtr, flags: AtFlags) -> int:
    """man 2 utimensat: nanoseconds, UTIME_NOW, UTIME_OMIT; a NULL path is `dirfd` itself (futimens(3))."""
    found: tuple[int | None, int | None] | None = None
    if times:
        atime, atime_ns, mtime, mtime_ns = task.memory.read_struct(times, TIMES)
        if atime_ns == UTIME_OMIT and mtime_ns == UTIME_OMIT:
            return 0
        if not (atime_ns == mtime_ns == UTIME_NOW):
            at = now(task)
            found = (_time(atime, atime_ns, at), _time(mtime, mtime_ns, at))
    if pathname is None and dirfd != AT_FDCWD:
        if flags:
            raise SysError(errno.EINVAL, "flags for a descriptor")
        return change_times(task, place_of_fd(task, dirfd), found)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    return change_times(task, place_at(task, dirfd, pathname, flags), found)


def _time(seconds: int, nanoseconds: int, at: int) -> int | None:
    if nanoseconds == UTIME_OMIT:
        return None
    if nanoseconds == UTIME_NOW:
        return at
    if not 0 <= nanoseconds < NS:
        raise SysError(errno.EINVAL, "nanoseconds")
    return seconds * NS + nanoseconds


def change_times(task: Task, place: paths.Path, times: tuple[int | None, int | None] | None) -> int:
    """vfs_utimes(): to (atime, mtime), or to now (None), which whoever may write may do; the rest is the owner's."""
    inode = place.inode
    want_write(place.mount)
    inode.refresh()
    at = now(task)
    if times is None:
        if not owner_or_capable(task, inode):
            inode_permission(task, inode, MAY_WRITE)
        times = (at, at)
    elif not owner_or_capable(task, inode):
        raise SysError(errno.EPERM)
    inode.setattr(atime=times[0], mtime=times[1], ctime=at)
    notify(task, IN_ATTRIB, place)
    return 0
