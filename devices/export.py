"""--export: what the guest has changed in its root file system, written to a host directory.

The tree of the overlay's upper layer, as a layer of an OCI image has it: what was removed is an empty file `.wh.NAME`,
a directory that hides what was below has a `.wh..wh..opq`. A directory of a lower layer that was renamed is written
whole. Left out: device nodes and sockets, set-user-id and set-group-id bits of programs, extended attributes but
user.*, and names that would read as whiteouts. Names are created one component at a time below the descriptor of the
directory; nothing is followed and nothing that exists is replaced.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, cast

from devices.errors import SysError
from devices.fs.overlayfs.copy_up import Mounter, contents_of
from devices.fs.overlayfs.inode import OverlayInode
from devices.fs.overlayfs.superblock import OverlayFs, is_opaque, is_whiteout

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode

BUFFER = 1 << 16
WHITEOUT = b".wh."
OPAQUE = b".wh..wh..opq"
NEW_FLAGS = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
SET_ID = 0o6000


class Exporter:
    """Writes a tree. OSError for what the host refuses."""

    def __init__(self, kernel: Kernel) -> None:
        self._task = cast("Task", Mounter(kernel))
        self._overlay = self._overlay_of(kernel)
        self._owns = os.geteuid() == 0
        self._target = -1
        self._written: dict[Inode, bytes] = {}
        """Where a file that has several names was written."""
        self.files = 0
        self.left_out: list[bytes] = []

    @staticmethod
    def _overlay_of(kernel: Kernel) -> OverlayFs | None:
        """The overlay that knows which directories were renamed."""
        namespace = kernel.vfs.namespace
        mounts = namespace.in_order() if namespace is not None else []
        return next((mount.sb for mount in mounts if isinstance(mount.sb, OverlayFs)), None)

    def write_locked(self, directory: Inode, target: bytes) -> None:
        """Write the contents of `directory`, the root of the upper layer, into the host's directory `target`, which is
        empty or is made."""
        os.makedirs(target, exist_ok=True)
        self._target = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if os.listdir(self._target):
                raise FileExistsError(errno.EEXIST, "the directory is not empty", target)
            self._directory(directory, self._target, b"", is_opaque(self._task, directory))
        except SysError as error:
            raise OSError(error.errno, error.reason, target) from error
        finally:
            os.close(self._target)

    def _directory(self, directory: Inode, fd: int, path: bytes, opaque: bool) -> None:
        if opaque:
            os.close(os.open(OPAQUE, NEW_FLAGS, 0o600, dir_fd=fd))
        for entry in list(directory.iterate(self._task, 0)):
            inode = directory.lookup(self._task, entry.name)
            if inode is None:
                continue
            if entry.name.startswith(WHITEOUT) or not self._entry(inode, entry.name, fd, path + entry.name):
                self.left_out.append(path + entry.name)
            else:
                self.files += 1

    def _entry(self, inode: Inode, name: bytes, parent: int, path: bytes) -> bool:
        """Write one file; False if it is left out."""
        inode.refresh()
        kind = stat.S_IFMT(inode.mode)
        if is_whiteout(inode):
            os.close(os.open(WHITEOUT + name, NEW_FLAGS, 0o600, dir_fd=parent))
        elif kind == stat.S_IFDIR:
            self._subdirectory(inode, name, parent, path + b"/")
        elif kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFIFO):
            return False
        elif inode in self._written:
            first = self._written[inode]
            os.link(first, name, src_dir_fd=self._target, dst_dir_fd=parent, follow_symlinks=False)
        else:
            self._file(inode, kind, name, parent)
            if inode.nlink > 1:
                self._written[inode] = path
        return True

    def _subdirectory(self, inode: Inode, name: bytes, parent: int, path: bytes) -> None:
        os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        try:
            whole = self._renamed(inode)
            if whole is None:
                self._directory(inode, fd, path, is_opaque(self._task, inode))
            else:
                self._directory(whole, fd, path, True)
            self._attributes(inode, fd)
        finally:
            os.close(fd)

    def _renamed(self, inode: Inode) -> Inode | None:
        """The overlay's view of an upper directory whose lower parts have another name."""
        if self._overlay is None:
            return None
        copied = self._overlay.copied.get(inode)
        if copied is None or copied.lower is None:
            return None
        return self._overlay.inode_of(None, inode, copied.lower)

    def _file(self, inode: Inode, kind: int, name: bytes, parent: int) -> None:
        if kind == stat.S_IFREG:
            fd = os.open(name, NEW_FLAGS, 0o600, dir_fd=parent)
            try:
                self._contents(inode, fd)
                self._attributes(inode, fd)
            finally:
                os.close(fd)
            return
        if kind == stat.S_IFLNK:
            os.symlink(inode.readlink(self._task), name, dir_fd=parent)
        else:
            os.mkfifo(name, stat.S_IMODE(inode.mode) & 0o777, dir_fd=parent)
        if self._owns:
            os.chown(name, inode.uid, inode.gid, dir_fd=parent, follow_symlinks=False)
        os.utime(name, ns=(inode.atime, inode.mtime), dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _contents(inode: Inode, fd: int) -> None:
        """The bytes; blocks of zeroes stay holes."""
        os.ftruncate(fd, inode.size)
        source = contents_of(inode.real if isinstance(inode, OverlayInode) else inode)
        buffer = memoryview(bytearray(min(BUFFER, max(inode.size, 1))))
        zeroes = bytes(len(buffer))
        done = 0
        while done < inode.size:
            count = source.read_into(buffer, done)
            if not count:
                break
            written = count if buffer[:count] == zeroes[:count] else 0
            while written < count:
                written += os.pwrite(fd, buffer[written:count], done + written)
            done += count

    def _attributes(self, inode: Inode, fd: int) -> None:
        if self._owns:
            os.fchown(fd, inode.uid, inode.gid)
        mode = stat.S_IMODE(inode.mode)
        os.fchmod(fd, mode if stat.S_ISDIR(inode.mode) else mode & ~SET_ID)
        for name in inode.listxattr(self._task):
            if name.startswith(b"user."):
                os.setxattr(fd, name, inode.getxattr(self._task, name))
        os.utime(fd, ns=(inode.atime, inode.mtime))
