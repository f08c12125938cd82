"""The simplest file system that can do everything, for tests of the VFS: data is bytes, directories are dicts."""

from __future__ import annotations

import errno
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import O_APPEND, RENAME_EXCHANGE, RENAME_WHITEOUT, XATTR_CREATE, XATTR_REPLACE
from devices.vfs.files import SeekableFile
from devices.vfs.inode import Entry, Inode, StatFs, SuperBlock
from devices.vfs.mount import FileSystemType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments
    from devices.vfs.path import Path

MAGIC = 0x01021994


class MemFs(SuperBlock):
    fstype = b"tmpfs"
    magic = MAGIC

    def __init__(self, kernel: Kernel, source: bytes = b"none", flags: int = 0) -> None:
        super().__init__(kernel.new_dev_locked(), source, flags)
        self.kernel = kernel
        self.inodes = 0
        self.shut = False
        self.released: list[int] = []
        self.root = MemInode(self, S_IFDIR | 0o755)
        self.root.nlink = 2

    def statfs(self) -> StatFs:
        return StatFs(self.magic, 4096, 1000, 900, 900, 500, 500 - self.inodes, 0)

    def shutdown(self) -> None:
        self.shut = True


class MemInode(Inode):
    def __init__(self, sb: MemFs, mode: int, uid: int = 0, gid: int = 0) -> None:
        sb.inodes += 1
        super().__init__(sb, sb.inodes, mode, uid, gid)
        self.fs = sb
        self.children: dict[bytes, MemInode] = {}
        self.data = bytearray()
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.atime = self.mtime = self.ctime = self.btime = sb.kernel.clock.realtime_ns()

    def _now(self) -> int:
        return self.fs.kernel.clock.realtime_ns()

    def _changed(self) -> None:
        self.mtime = self.ctime = self._now()

    def truncate(self, size: int) -> None:
        if size > 1 << 30:
            raise SysError(errno.EFBIG)
        del self.data[size:]
        self.data += bytes(size - len(self.data))
        self.size = size
        self._changed()

    # Directories

    def lookup(self, task: Task, name: bytes) -> MemInode | None:
        return self.children.get(name)

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        for position, (name, inode) in enumerate(list(self.children.items()), 3):
            if position > offset:
                yield Entry(name, inode.ino, S_IFMT(inode.mode) >> 12, position)

    def _new(self, task: Task, mode: int) -> MemInode:
        uid, gid, setgid = self.owner_of_new(task.credentials)
        return MemInode(self.fs, mode | (setgid if S_IFMT(mode) == S_IFDIR else 0), uid, gid)

    def _add(self, name: bytes, inode: MemInode) -> MemInode:
        self.children[name] = inode
        self._changed()
        return inode

    def create(self, task: Task, name: bytes, mode: int) -> MemInode:
        return self._add(name, self._new(task, S_IFREG | mode))

    def mkdir(self, task: Task, name: bytes, mode: int) -> MemInode:
        inode = self._add(name, self._new(task, S_IFDIR | mode))
        inode.nlink = 2
        self.nlink += 1
        return inode

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> MemInode:
        inode = self._add(name, self._new(task, mode))
        inode.rdev = rdev
        return inode

    def symlink(self, task: Task, name: bytes, target: bytes) -> MemInode:
        inode = self._add(name, self._new(task, S_IFLNK | 0o777))
        inode.target = target
        inode.size = len(target)
        return inode

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        assert isinstance(target, MemInode)
        self._add(name, target)
        target.nlink += 1
        target.ctime = self._now()

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        del self.children[name]
        child.nlink -= 1
        self._changed()
        child.ctime = self._now()

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, MemInode)
        if child.children:
            raise SysError(errno.ENOTEMPTY)
        del self.children[name]
        child.nlink = 0
        self.nlink -= 1
        self._changed()

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        assert isinstance(child, MemInode)
        assert isinstance(target, MemInode)
        moves_directory = S_IFMT(child.mode) == S_IFDIR
        if flags & RENAME_EXCHANGE:
            assert isinstance(replaced, MemInode)
            self.children[name], target.children[new_name] = replaced, child
            if target is not self:
                difference = moves_directory - (S_IFMT(replaced.mode) == S_IFDIR)
                self.nlink -= difference
                target.nlink += difference
        else:
            if isinstance(replaced, MemInode):
                if replaced.children:
                    raise SysError(errno.ENOTEMPTY)
                directory = S_IFMT(replaced.mode) == S_IFDIR
                replaced.nlink = 0 if directory else replaced.nlink - 1
                target.nlink -= directory
            del self.children[name]
            target.children[new_name] = child
            self.nlink -= moves_directory
            target.nlink += moves_directory
            if flags & RENAME_WHITEOUT:
                self.mknod(task, name, 0o020000, 0)
        self._changed()
        target._changed()
        child.ctime = self._now()

    def tmpfile(self, task: Task, mode: int) -> MemInode:
        inode = self._new(task, S_IFREG | mode)
        inode.nlink = 0
        return inode

    def readlink(self, task: Task) -> bytes:
        return self.target

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        if S_IFMT(self.mode) != S_IFREG:
            raise SysError(errno.ENXIO)
        return MemFile(self, flags)

    # Extended attributes

    def getxattr(self, task: Task, name: bytes) -> bytes:
        if name not in self.xattrs:
            raise SysError(errno.ENODATA)
        return self.xattrs[name]

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        if name.startswith(b"system."):
            raise SysError(errno.EOPNOTSUPP)
        if flags & XATTR_CREATE and name in self.xattrs:
            raise SysError(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in self.xattrs:
            raise SysError(errno.ENODATA)
        self.xattrs[name] = value

    def listxattr(self, task: Task) -> list[bytes]:
        return list(self.xattrs)

    def removexattr(self, task: Task, name: bytes) -> None:
        if self.xattrs.pop(name, None) is None:
            raise SysError(errno.ENODATA)

    def released(self) -> None:
        self.fs.released.append(self.ino)


class MemFile(SeekableFile):
    def __init__(self, inode: MemInode, flags: int) -> None:
        super().__init__(flags)
        self.file = inode

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        done = 0
        for address, length in segments:
            part = bytes(self.file.data[offset + done : offset + done + length])
            task.memory.write(address, part)
            done += len(part)
        return done

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        data = b"".join(task.memory.read(address, length) for address, length in segments)
        inode = self.file
        if self.flags & O_APPEND:
            offset = len(inode.data)
        if not data:
            return 0
        inode.data += bytes(max(0, offset - len(inode.data)))
        inode.data[offset : offset + len(data)] = data
        inode.size = len(inode.data)
        inode._changed()
        return len(data)

    def fsync(self, task: Task, datasync: bool) -> None:
        """It is in memory."""

    def fallocate(self, task: Task, mode: int, offset: int, length: int) -> None:
        if mode & ~3:
            raise SysError(errno.EOPNOTSUPP)
        if mode & 2:
            end = min(offset + length, self.file.size)
            self.file.data[offset:end] = bytes(max(0, end - offset))
        if not mode and offset + length > self.file.size:
            self.file.truncate(offset + length)


def mount_memfs(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> MemFs:
    if data:
        raise SysError(errno.EINVAL)
    return MemFs(kernel, source, flags & 0xFF)


MEMFS = FileSystemType(b"tmpfs", mount_memfs)
