"""Open directories: the position in them and what getdents(2) shows."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import MAX_FILE_SIZE, SEEK_CUR, SEEK_SET
from devices.vfs.files import OpenFile
from devices.vfs.inode import Entry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task
    from devices.vfs.files import Segments

DT_DIR = 4


class DirectoryFile(OpenFile):
    """A directory. Position 0 is before `.`, 1 before `..`, 2 before the file system's first entry."""

    def getdents(self, task: Task) -> Iterator[Entry]:
        """The entries from the position on; whoever takes one sets `position` to its offset."""
        path = self.path
        assert path is not None
        dentry = path.dentry
        if dentry.unlinked:
            raise SysError(errno.ENOENT, "the directory was removed")
        position = self.position
        if position < 1:
            yield Entry(b".", dentry.inode.ino, DT_DIR, 1)
        if position < 2:
            yield Entry(b"..", dentry.parent.inode.ino, DT_DIR, 2)
        yield from dentry.inode.iterate(task, position if position > 2 else 0)

    def read(self, task: Task, segments: Segments) -> int:
        raise SysError(errno.EISDIR)

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        raise SysError(errno.EISDIR)

    def lseek(self, offset: int, whence: int) -> int:
        """To a position that getdents has given. A directory has no end (offset_dir_llseek() in fs/libfs.c)."""
        if whence == SEEK_CUR:
            offset += self.position
        elif whence != SEEK_SET:
            raise SysError(errno.EINVAL, "whence")
        if not 0 <= offset <= MAX_FILE_SIZE:
            raise SysError(errno.EINVAL, "position")
        self.position = offset
        return offset

    def fsync(self, task: Task, datasync: bool) -> None:
        assert self.inode is not None
        self.inode.sb.sync()
