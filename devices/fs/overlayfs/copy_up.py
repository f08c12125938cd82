"""Copying a file into the upper layer: contents through one buffer of the monitor's, then attributes and xattrs."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, Protocol, cast

from devices.errors import SysError
from devices.task.process import Credentials
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.memory.filepages import FilePages
    from devices.task.task import Task
    from devices.vfs.inode import Inode

BUFFER = 1 << 16
PRIVATE = b"trusted.overlay."


class Contents(Protocol):
    """The bytes of a regular file, as the monitor itself reads them (a Backing, devices/memory/backing.py)."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` in bytes on; the bytes read, short at the end of the file."""


def contents_of(inode: Inode) -> Contents:
    """What a regular file of a layer holds: a file in memory has `pages`, a host file is read itself."""
    pages: Contents | None = getattr(inode, "pages", None)
    return cast("Contents", inode) if pages is None else pages


class Mounter:
    """On whose behalf the overlay works in its layers: whoever mounted it, with all capabilities. To the layers it is
    the calling task; what they ask of one is its credentials and its kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.credentials = Credentials()


def copy_to(mounter: Task, old: Inode, directory: Inode, name: bytes, size: int | None) -> Inode:
    """Make `name` in an upper directory a copy of `old`, of its first `size` bytes if it is a regular file (None: all).
    If that fails nothing is left of it. The directory's times stay."""
    times = {"atime": directory.atime, "mtime": directory.mtime, "ctime": directory.ctime}
    new = _make(mounter, directory, name, old)
    try:
        if stat.S_ISREG(old.mode):
            _copy_contents(old, new, old.size if size is None else min(size, old.size))
        _copy_attributes(mounter, old, new)
    except BaseException:
        drop(mounter, directory, name, new)
        raise
    finally:
        directory.setattr(**times)
    return new


def drop(mounter: Task, directory: Inode, name: bytes, inode: Inode) -> None:
    """Take a name away in the upper layer, and the file with the last one."""
    if stat.S_ISDIR(inode.mode):
        directory.rmdir(mounter, name, inode)
    else:
        directory.unlink(mounter, name, inode)
    if not inode.nlink:
        inode.released()


def _make(mounter: Task, directory: Inode, name: bytes, old: Inode) -> Inode:
    """A new file of the kind of `old`, without its contents."""
    if stat.S_ISREG(old.mode):
        return directory.create(mounter, name, 0o600)
    if stat.S_ISDIR(old.mode):
        return directory.mkdir(mounter, name, 0o700)
    if stat.S_ISLNK(old.mode):
        return directory.symlink(mounter, name, old.readlink(mounter))
    return directory.mknod(mounter, name, stat.S_IFMT(old.mode) | 0o600, old.rdev)


def _copy_contents(old: Inode, new: Inode, size: int) -> None:
    """The first `size` bytes, into a file in memory; blocks of zeroes stay holes. SysError(ENOSPC, ENOMEM)."""
    source, target = contents_of(old), cast("FilePages", contents_of(new))
    buffer = memoryview(bytearray(min(BUFFER, max(size, 1))))
    zeroes = bytes(len(buffer))
    new.truncate(size)
    done = 0
    while done < size:
        part = buffer[: min(len(buffer), size - done)]
        count = source.read_into(part, done)
        if not count:
            break
        try:
            if part[:count] != zeroes[:count]:
                if target.make_room(done, count) != count:
                    raise SysError(errno.ENOSPC)
                target.store([part[:count]], done, count)
        except OutOfFrames:
            raise SysError(errno.ENOMEM, "the machine's memory is used up") from None
        done += count


def _copy_attributes(mounter: Task, old: Inode, new: Inode) -> None:
    """Extended attributes, owner, mode, times."""
    for name in old.listxattr(mounter):
        if not name.startswith(PRIVATE):
            new.setxattr(mounter, name, old.getxattr(mounter, name), 0)
    times = {"atime": old.atime, "mtime": old.mtime, "ctime": old.ctime}
    if stat.S_ISLNK(old.mode):
        new.setattr(uid=old.uid, gid=old.gid, **times)
    else:
        new.setattr(uid=old.uid, gid=old.gid, mode=stat.S_IMODE(old.mode), **times)
