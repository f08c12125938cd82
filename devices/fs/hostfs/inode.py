"""Inodes of a host directory: each holds an O_PATH descriptor of the host's inode, and acts through it."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.vfs.abi import O_ACCMODE, O_RDONLY
from devices.vfs.inode import Entry, Inode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.fs.hostfs.file import HostContents
    from devices.fs.hostfs.superblock import HostFs
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
MODE_BITS = 0o7777


def inode_of(sb: HostFs, fd: int, host: os.stat_result) -> HostInode:
    """The inode for an O_PATH descriptor, which it takes over; the one that is in use for the same file, if any."""
    key = (host.st_dev, host.st_ino)
    known = sb.inodes.get(key)
    if known is not None and known.fd >= 0:
        os.close(fd)
        known.take(host)
        return known
    inode = HostInode(sb, fd, host)
    sb.inodes[key] = inode
    return inode


class HostInode(Inode):
    """A file of the host."""

    __slots__ = ("contents", "empty", "fd", "fs", "host_dev", "host_ino")

    cacheable = False  # the host's names come and go on their own

    def __init__(self, sb: HostFs, fd: int, host: os.stat_result) -> None:
        self.fs = sb
        self.fd = fd
        self.host_dev = host.st_dev
        self.host_ino = host.st_ino
        self.empty = False
        """A directory of the host that the guest sees as empty."""
        self.contents: HostContents | None = None
        """What open files and mappings share, once there is one."""
        super().__init__(sb, sb.ino_of(host), host.st_mode)
        self.take(host)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptors back; the inode is of no more use."""
        fd, self.fd = self.fd, -1
        if self.contents is not None:
            self.contents.close()
            self.contents = None
        if fd >= 0:
            os.close(fd)

    # Attributes

    def take(self, host: os.stat_result) -> None:
        """Take over what the host says."""
        self.mode = host.st_mode
        self.uid, self.gid = host.st_uid, host.st_gid
        self.nlink = host.st_nlink
        self.rdev = host.st_rdev
        self.size = host.st_size
        self.atime, self.mtime, self.ctime = host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns
        self.btime = 0

    def refresh(self) -> None:
        with host_errno():
            self.take(os.fstat(self.fd))
        if self.contents is not None:
            self.size = self.contents.size

    @property
    def blocks(self) -> int:
        with host_errno():
            return os.fstat(self.fd).st_blocks

    @property
    def by_descriptor(self) -> str:
        """A path that leads the host to this very inode."""
        return f"/proc/self/fd/{self.fd}"

    def setattr(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        ctime: int | None = None,
    ) -> None:
        self.fs.check_writable()
        if stat.S_ISLNK(self.mode) and (mode is not None or size is not None):
            raise SysError(errno.EOPNOTSUPP, "a symbolic link has no mode")
        with host_errno():
            if size is not None:
                self.truncate(size)
            if uid is not None or gid is not None:
                self._chown(-1 if uid is None else uid, -1 if gid is None else gid)
            if mode is not None:
                os.chmod(self.by_descriptor, mode & MODE_BITS)
            if atime is not None or mtime is not None:
                now = os.fstat(self.fd)
                times = (now.st_atime_ns if atime is None else atime, now.st_mtime_ns if mtime is None else mtime)
                if stat.S_ISLNK(self.mode):
                    raise SysError(errno.EOPNOTSUPP, "times of a symbolic link")
                os.utime(self.by_descriptor, ns=times)
        self.refresh()

    def _chown(self, uid: int, gid: int) -> None:
        if stat.S_ISLNK(self.mode):
            raise SysError(errno.EOPNOTSUPP, "the owner of a symbolic link")
        os.chown(self.by_descriptor, uid, gid)

    def truncate(self, size: int) -> None:
        self.fs.check_writable()
        with host_errno():
            self.shared_contents().truncate(size)
        self.size = size

    # Directories

    def _open_child(self, name: bytes) -> tuple[int, os.stat_result] | None:
        """An O_PATH descriptor of one name in this directory. The VFS has seen to it that it is one component."""
        if b"/" in name or name in (b"", b".", b".."):
            raise SysError(errno.EINVAL, "not a name")
        if self.empty:
            return None
        try:
            fd = os.open(name, PATH_FLAGS, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SysError(error.errno or errno.EIO, "the host") from error
        return fd, os.fstat(fd)

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        found = self._open_child(name)
        if found is None:
            return None
        fd, host = found
        hidden = self.fs.hides(fd, host, self)
        inode = inode_of(self.fs, fd, host)
        inode.empty = hidden
        return inode

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        if self.empty:
            return
        with host_errno():
            fd = os.open(self.by_descriptor, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(fd) as entries:
                names = sorted((os.fsencode(e.name), e.inode(), kind_of(e)) for e in entries)
        finally:
            os.close(fd)
        for position, (name, ino, kind) in enumerate(names, 3):
            if position > offset:
                yield Entry(name, ino, kind, position)

    def _child(self, name: bytes) -> HostInode:
        found = self._open_child(name)
        if found is None:
            raise SysError(errno.ENOENT, "gone while it was made")
        return inode_of(self.fs, *found)

    def _own(self, task: Task, name: bytes, mode: int | None) -> HostInode:
        """The file that was just made under `name`, given to whom the guest's credentials say."""
        child = self._child(name)
        uid, gid, setgid = self.owner_of_new(task.credentials)
        with host_errno():
            if self.fs.owns_files:
                os.chown(child.by_descriptor, uid, gid)
            if mode is not None:
                setgid = setgid if stat.S_ISDIR(child.mode) else 0
                os.chmod(child.by_descriptor, mode & MODE_BITS | setgid)
        child.refresh()
        self.refresh()
        return child

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        self.fs.check_writable()
        with host_errno():
            os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self.fd))
        return self._own(task, name, mode)

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        self.fs.check_writable()
        with host_errno():
            os.mkdir(name, 0o700, dir_fd=self.fd)
        return self._own(task, name, mode)

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        """FIFOs and sockets only: a device node on the host's disk could outlive the guest."""
        self.fs.check_writable()
        if stat.S_IFMT(mode) not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
            raise SysError(errno.EPERM, "no device nodes on the host")
        with host_errno():
            os.mknod(name, stat.S_IFMT(mode) | 0o600, dir_fd=self.fd)
        return self._own(task, name, mode)

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        self.fs.check_writable()
        with host_errno():
            os.symlink(target, name, dir_fd=self.fd)
        return self._own(task, name, None)

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        self.fs.check_writable()
        if not isinstance(target, HostInode) or target.fs is not self.fs:
            raise SysError(errno.EXDEV)
        with host_errno():
            os.link(target.by_descriptor, name, dst_dir_fd=self.fd, follow_symlinks=True)
        target.refresh()
        self.refresh()

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        self.fs.check_writable()
        with host_errno():
            os.unlink(name, dir_fd=self.fd)
        child.refresh()
        self.refresh()

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        self.fs.check_writable()
        with host_errno():
            os.rmdir(name, dir_fd=self.fd)
        child.refresh()
        self.refresh()

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        self.fs.check_writable()
        if not isinstance(target, HostInode) or target.fs is not self.fs:
            raise SysError(errno.EXDEV)
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise SysError(errno.EINVAL, "RENAME_WHITEOUT")
        rename_at(self.fd, name, target.fd, new_name, flags)
        for inode in (child, self, target, replaced):
            if inode is not None:
                inode.refresh()

    def tmpfile(self, task: Task, mode: int) -> Inode:
        self.fs.check_writable()
        with host_errno():
            fd = os.open(self.by_descriptor, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(fd, mode & MODE_BITS)
                if self.fs.owns_files:
                    uid, gid, _ = self.owner_of_new(task.credentials)
                    os.fchown(fd, uid, gid)
                path_fd = os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC)
            finally:
                os.close(fd)
        return inode_of(self.fs, path_fd, os.fstat(path_fd))

    # Symbolic links

    def readlink(self, task: Task) -> bytes:
        if not stat.S_ISLNK(self.mode):
            return super().readlink(task)
        with host_errno():
            return os.readlink(b"", dir_fd=self.fd)

    # Contents

    def shared_contents(self) -> HostContents:
        """What all opens and mappings of this file share."""
        if not stat.S_ISREG(self.mode):
            raise SysError(errno.EINVAL, "not a regular file")
        if self.contents is None:
            from devices.fs.hostfs.file import HostContents

            self.contents = HostContents(self)
        return self.contents

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` in bytes on; the bytes read, short at the end of the file."""
        with host_errno():
            return self.shared_contents().read_into(view, offset)

    def write_back(self) -> None:
        if self.contents is not None:
            self.contents.write_back()

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        from devices.fs.hostfs.file import HostRegular

        if not stat.S_ISREG(self.mode):
            return super().open(task, path, flags)
        if flags & O_ACCMODE != O_RDONLY:
            self.fs.check_writable()
        return HostRegular(self, flags)

    # Extended attributes

    def _check_xattr(self, name: bytes) -> None:
        if stat.S_ISLNK(self.mode) or not name.startswith((b"user.", b"trusted.", b"security.")):
            raise SysError(errno.EOPNOTSUPP)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        self._check_xattr(name)
        with host_errno():
            return os.getxattr(self.by_descriptor, name)

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._check_xattr(name)
        self.fs.check_writable()
        with host_errno():
            os.setxattr(self.by_descriptor, name, value, flags)

    def listxattr(self, task: Task) -> list[bytes]:
        if stat.S_ISLNK(self.mode):
            return []
        with host_errno():
            return [os.fsencode(name) for name in os.listxattr(self.by_descriptor)]

    def removexattr(self, task: Task, name: bytes) -> None:
        self._check_xattr(name)
        self.fs.check_writable()
        with host_errno():
            os.removexattr(self.by_descriptor, name)


def kind_of(entry: os.DirEntry[str]) -> int:
    """DT_* of a directory entry."""
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR >> 12
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG >> 12
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode) >> 12


def rename_at(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2), which Python has no call for."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(old_fd, old, new_fd, new, flags):
        number = ctypes.get_errno()
        raise SysError(number, os.strerror(number))
