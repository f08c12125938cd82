"""Inodes of a host directory: each holds an O_PATH descriptor of the host's inode, and acts through it."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.fs.hostfs.contents import HostContents
from devices.fs.hostfs.host import DIRECTORY_FLAGS, list_directory, open_quietly, refusal, rename_at, within
from devices.fs.hostfs.sidecar import below, kind_of
from devices.vfs.abi import O_ACCMODE, O_RDONLY, RENAME_EXCHANGE, RENAME_NOREPLACE
from devices.vfs.inode import Entry, Inode

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.fs.hostfs.sidecar import Node, Said
    from devices.fs.hostfs.superblock import HostFs
    from devices.memory.machine import MachineMemory
    from devices.memory.pagecache import PageCache
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Path

PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FLAGS = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
MODE_BITS, SET_ID = 0o7777, 0o6000
READABLE_XATTRS = (b"user.", b"trusted.", b"security.")
WRITABLE_XATTRS = b"user."


def inode_of(sb: HostFs, fd: int, host: os.stat_result, node: Node | None = None) -> HostInode:
    """The inode for an O_PATH descriptor, which it takes over; the one that is in use for the same file, if any.
    `node`: what the sidecar says of the file and below it."""
    key = (host.st_dev, host.st_ino)
    known = sb.inodes.get(key)
    if known is not None and known.fd >= 0:
        os.close(fd)
        known.take(host)
        return known
    inode = sb.inodes[key] = HostInode(sb, fd, host, node)
    return inode


class HostInode(Inode):
    """A file of the host."""

    __slots__ = ("_blocks", "_said", "cache", "contents", "fd", "fs", "hidden", "host_mode", "key", "node")

    cacheable = False  # the host's names come and go on their own

    def __init__(self, sb: HostFs, fd: int, host: os.stat_result, node: Node | None) -> None:
        self.fd = fd
        self.contents: HostContents | None = None
        """What open files and mappings share, once there is one."""
        self.cache: PageCache | None = None
        """Pages of it, once it was mapped."""
        self.fs = sb
        self.key = (host.st_dev, host.st_ino)
        self.host_mode = host.st_mode
        self.hidden = False
        """Of a host kernel's own file system: the guest sees an empty directory, or a file that it cannot open."""
        self.node = node
        self._said: Said | None = sb.sidecar.of(node) if sb.sidecar is not None else None
        super().__init__(sb, sb.ino_of(*self.key), host.st_mode)
        self.take(host)

    def __del__(self) -> None:
        if self.cache is not None and self.cache.present and self.contents is not None:
            # Frames are freed with the kernel lock held only, and pages may still be mapped: later, by reap().
            self.fs.orphans[self.key] = (self.contents, self.cache)
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        """Give the descriptors and pages back; the inode is of no more use. Needs the kernel lock."""
        if self.cache is not None:
            self.cache.close()
        if self.contents is not None:
            self.contents.close()
        fd, self.fd = self.fd, -1
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
        self._blocks = host.st_blocks
        self.atime, self.mtime, self.ctime = host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns
        said = self._said
        if said is not None:
            self.uid, self.gid = said.owner
            if said.mode is not None:
                self.mode, self.rdev = said.mode, said.rdev

    def refresh(self) -> None:
        try:
            self.take(os.fstat(self.fd))
        except OSError as error:
            raise refusal(error) from error

    @property
    def blocks(self) -> int:
        return self._blocks

    @property
    def by_descriptor(self) -> str:
        """A path that leads the host to this very inode, be it a symbolic link."""
        return f"/proc/self/fd/{self.fd}"

    def touch(self, atime: int) -> None:
        """The host has its own rules."""

    def check_change(self) -> None:
        """SysError(EROFS, EACCES) where nothing may be changed."""
        self.fs.check_writable()
        if self.hidden:
            raise SysError(errno.EACCES, "a file of the host's kernel")

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
        """The time of change is the host's own affair."""
        self.check_change()
        if mode is not None and mode & SET_ID & ~self.mode and not stat.S_ISDIR(self.mode):
            raise SysError(errno.EPERM, "no set-user-id files on the host")
        if size is not None:
            self.truncate(size)
        with host_errno():
            if uid is not None or gid is not None:
                os.chown(self.by_descriptor, -1 if uid is None else uid, -1 if gid is None else gid)
            if mode is not None:
                os.chmod(self.by_descriptor, mode & MODE_BITS)
            if atime is not None or mtime is not None:
                now = os.fstat(self.fd)
                times = (now.st_atime_ns if atime is None else atime, now.st_mtime_ns if mtime is None else mtime)
                os.utime(self.by_descriptor, ns=times)
        self.refresh()

    def drop_set_id(self) -> None:
        """The guest writes to it: what was a set-user-id program of the host is none any more."""
        with host_errno():
            os.chmod(self.by_descriptor, self.mode & MODE_BITS & ~SET_ID)
        self.refresh()

    def truncate(self, size: int) -> None:
        self.check_change()
        if self.mode & SET_ID:
            self.drop_set_id()
        contents = self.opened(False, True)
        with host_errno():
            contents.truncate(size)
        if self.cache is not None:
            self.cache.resized(size)
        self.refresh()

    # Directories

    def _check_name(self, name: bytes) -> None:
        """The VFS has seen to it already."""
        if b"/" in name or name in (b"", b".", b".."):
            raise SysError(errno.EINVAL, "not a name")

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        self._check_name(name)
        if self.hidden:
            return None
        fs = self.fs
        if fs.orphans:
            fs.reap()
        try:
            if fs.dentry is not None:  # mounted as it is, not below an overlay: the same names come again and again
                host = os.stat(name, dir_fd=self.fd, follow_symlinks=False)
                known = fs.inodes.get((host.st_dev, host.st_ino))
                if known is not None and known.fd >= 0:
                    known.take(host)
                    return known
            return self._open_child(task, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise refusal(error) from error

    def _open_child(self, task: Task, name: bytes, flags: int = PATH_FLAGS) -> HostInode:
        """The inode of a name in this directory. OSError."""
        fs = self.fs
        try:
            fd = within(os.open(name, flags, dir_fd=self.fd), fs.limit)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            recent = task.kernel.vfs.kept  # names that are kept for the next walk only
            recent[:] = [None] * len(recent)
            fd = within(os.open(name, flags, dir_fd=self.fd), fs.limit)
        host = os.fstat(fd)
        hidden = host.st_dev != self.key[0] and fs.hides(fd)
        inode = inode_of(fs, fd, host, below(self.node, name))
        inode.hidden = hidden
        return inode

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        if self.hidden:
            return
        fs = self.fs
        dev = self.key[0]
        with host_errno():
            if fs.read_only:
                fd = open_quietly(self.by_descriptor, DIRECTORY_FLAGS)
            else:
                fd = os.open(self.by_descriptor, DIRECTORY_FLAGS)
        try:
            plain = fs.is_first(dev)
            for listed in list_directory(fd, offset, fs.buffer):
                for name, ino, kind, position in listed:
                    if self.node:
                        kind = kind_of(self.node, name, kind)
                    yield Entry(name, ino if plain else fs.ino_of(dev, ino), kind, position)
        except OSError as error:
            raise refusal(error) from error
        finally:
            os.close(fd)

    # Making

    def _made(self, task: Task, name: bytes, mode: int | None, flags: int = PATH_FLAGS) -> HostInode:
        """The file that was just made under `name`, given to whom the guest's credentials say. `mode`: None for a
        symbolic link."""
        with host_errno():
            child = self._open_child(task, name, flags)
            if os.fstat(child.fd).st_uid != os.geteuid():
                raise SysError(errno.ESTALE, "somebody on the host has put another file in its place")
            uid, gid, setgid = self.owner_of_new(task.credentials)
            if self.fs.owns_files:
                os.chown(child.by_descriptor, uid, gid)
            if mode is not None:
                allowed = mode | setgid if stat.S_ISDIR(child.mode) else mode & ~SET_ID
                os.chmod(child.by_descriptor, allowed & MODE_BITS)
        child.refresh()
        self.refresh()
        return child

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        self.check_change()
        self._check_name(name)
        with host_errno():
            fd = within(os.open(name, NEW_FLAGS, 0o600, dir_fd=self.fd), self.fs.limit)
        return self._new_regular(task, fd, mode)

    def tmpfile(self, task: Task, mode: int) -> Inode:
        self.check_change()
        with host_errno():
            fd = within(os.open(self.by_descriptor, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), self.fs.limit)
        return self._new_regular(task, fd, mode)

    def _new_regular(self, task: Task, fd: int, mode: int) -> HostInode:
        """The inode of a new file, from the descriptor that has made it."""
        contents = HostContents()
        contents.adopt(fd)
        with host_errno():
            if self.fs.owns_files:
                uid, gid, _ = self.owner_of_new(task.credentials)
                os.fchown(fd, uid, gid)
            os.fchmod(fd, mode & MODE_BITS & ~SET_ID)
            path_fd = within(os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC), self.fs.limit)
            inode = inode_of(self.fs, path_fd, os.fstat(path_fd))
        inode.contents = contents
        self.refresh()
        return inode

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        self.check_change()
        self._check_name(name)
        with host_errno():
            os.mkdir(name, 0o700, dir_fd=self.fd)
        return self._made(task, name, mode, PATH_FLAGS | os.O_DIRECTORY)

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        """FIFOs and sockets only: a device node on the host's disk could outlive the guest."""
        self.check_change()
        self._check_name(name)
        if stat.S_IFMT(mode) not in (stat.S_IFIFO, stat.S_IFSOCK):
            raise SysError(errno.EPERM, "no device nodes on the host")
        with host_errno():
            os.mknod(name, stat.S_IFMT(mode) | 0o600, dir_fd=self.fd)
        return self._made(task, name, mode)

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        self.check_change()
        self._check_name(name)
        with host_errno():
            os.symlink(target, name, dir_fd=self.fd)
        return self._made(task, name, None)

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        self.check_change()
        self._check_name(name)
        if not isinstance(target, HostInode) or target.fs is not self.fs:
            raise SysError(errno.EXDEV)
        target.check_change()
        with host_errno():
            os.link(target.by_descriptor, name, dst_dir_fd=self.fd, follow_symlinks=True)
        target.refresh()
        self.refresh()

    # Removing and moving

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        self.check_change()
        self._check_name(name)
        with host_errno():
            os.unlink(name, dir_fd=self.fd)
        child.refresh()
        self.refresh()

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        self.check_change()
        self._check_name(name)
        with host_errno():
            os.rmdir(name, dir_fd=self.fd)
        child.refresh()
        self.refresh()

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        self.check_change()
        self._check_name(name)
        self._check_name(new_name)
        if not isinstance(target, HostInode) or target.fs is not self.fs:
            raise SysError(errno.EXDEV)
        target.check_change()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise SysError(errno.EINVAL, "RENAME_WHITEOUT")
        with host_errno():
            rename_at(self.fd, name, target.fd, new_name, flags)
        for inode in (child, self, target, replaced):
            if inode is not None:
                inode.refresh()

    # Symbolic links

    def readlink(self, task: Task) -> bytes:
        if not stat.S_ISLNK(self.host_mode):
            return super().readlink(task)
        with host_errno():
            return os.readlink(b"", dir_fd=self.fd)

    # Contents

    def opened(self, read: bool, write: bool) -> HostContents:
        """What all opens and mappings of this file share, with host descriptors for what is wanted. SysError."""
        if not (stat.S_ISREG(self.mode) and stat.S_ISREG(self.host_mode)):
            raise SysError(errno.EINVAL, "not a regular file")
        if self.hidden:
            raise SysError(errno.EACCES, "a file of the host's kernel")
        if write:
            self.fs.check_writable()
        contents = self.contents
        if contents is None:
            orphan = self.fs.orphans.pop(self.key, None)
            if orphan is not None:
                contents, self.cache = orphan
            else:
                contents = HostContents()
            self.contents = contents
        if (read and contents.reader < 0) or (write and contents.writer < 0):
            try:
                contents.open(self.by_descriptor, self.fs.limit, read=read, write=write, quiet=self.fs.read_only)
            except OSError as error:
                raise refusal(error) from error
        if self.cache is not None and contents.changed_outside():
            self.cache.forget()
            self.cache.resized(contents.size)
        return contents

    def page_cache(self, memory: MachineMemory) -> PageCache:
        """The pages that mappings show."""
        contents = self.opened(True, False)
        if self.cache is None:
            from devices.memory.pagecache import PageCache

            contents.changed_here()
            self.cache = PageCache(memory, contents)
        return self.cache

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` in bytes on; the bytes read, short at the end of the file."""
        with host_errno():
            return self.opened(True, False).read_into(view, offset)

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        from devices.fs.hostfs.file import HostRegular

        if not stat.S_ISREG(self.mode):
            return super().open(task, path, flags)
        if flags & O_ACCMODE != O_RDONLY:
            self.check_change()
        return HostRegular(self, flags)

    def released(self) -> None:
        if self.cache is not None and not self.cache.mappings:
            self.cache.close()
            self.cache = None
        if self.contents is not None and self.cache is None:
            self.contents.close()
            self.contents = None

    # Extended attributes

    def getxattr(self, task: Task, name: bytes) -> bytes:
        if self._said is not None:
            value = self._said.xattrs.get(name)
            if value is None:
                raise SysError(errno.ENODATA)
            return value
        if not name.startswith(READABLE_XATTRS) or self.hidden:
            raise SysError(errno.EOPNOTSUPP)
        try:
            return os.getxattr(self.by_descriptor, name)
        except OSError as error:
            raise refusal(error) from error

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        self._check_xattr_change(name)
        with host_errno():
            os.setxattr(self.by_descriptor, name, value, flags)

    def _check_xattr_change(self, name: bytes) -> None:
        """What is not user.* means something to the host (file capabilities), or to its own overlays."""
        self.check_change()
        if not name.startswith(WRITABLE_XATTRS):
            raise SysError(errno.EOPNOTSUPP, "only user.* on the host")

    def listxattr(self, task: Task) -> list[bytes]:
        if self._said is not None:
            return list(self._said.xattrs)
        if self.hidden:
            return []
        with host_errno():
            names = [os.fsencode(name) for name in os.listxattr(self.by_descriptor)]
        return [name for name in names if name.startswith(READABLE_XATTRS)]

    def removexattr(self, task: Task, name: bytes) -> None:
        self._check_xattr_change(name)
        with host_errno():
            os.removexattr(self.by_descriptor, name)
