"""What every file system is to the VFS: inodes and the super block they belong to (struct inode, struct super_block).

A file system subclasses both (devices/fs/). The VFS (path.py, mount.py, syscalls) has checked permissions, lengths of
names, read-only mounts and that names are not `.` or `..` before it calls an inode's operation; the inode does the
work, keeps its own and its directory's times and link counts, and raises SysError for what only it can know (ENOSPC,
EIO, ENOTEMPTY). Every method is called with the kernel lock held.

Names and symlink targets are bytes without NUL. Times are CLOCK_REALTIME nanoseconds. Sizes and offsets are bytes.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.vfs.permissions import generic_permission

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.process import Credentials
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.path import Dentry, Path

SB_RDONLY, SB_NOSUID, SB_NODEV, SB_NOEXEC, SB_SYNCHRONOUS, SB_MANDLOCK = 1, 2, 4, 8, 16, 64
SB_NOATIME, SB_NODIRATIME = 1024, 2048


class StatFs(NamedTuple):
    """What statfs(2) tells of a file system; sizes in blocks of `bsize` bytes."""

    type: int
    bsize: int
    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    fsid: int
    namelen: int = 255


class Entry(NamedTuple):
    """One entry of a directory as getdents64 gives it; `kind` is DT_*; `offset` resumes behind it (d_off)."""

    name: bytes
    ino: int
    kind: int
    offset: int


class SuperBlock:
    """One instance of a file system; may be mounted in several places."""

    fstype = b"none"
    magic = 0
    """f_type of statfs(2), <linux/magic.h>."""
    root: Inode

    def __init__(self, dev: int, source: bytes = b"none", flags: int = 0) -> None:
        self.dev = dev
        """st_dev of its inodes (kernel.new_dev_locked())."""
        self.source = source
        self.flags = flags
        """SB_*: of the file system, as opposed to the mount's."""
        self.dentry: Dentry | None = None
        """The dentry of `root`, from the first mount on (path.py, root_dentry())."""
        self.uses = 0
        """Mounts of it that are there or still used; when the last one goes, `shutdown` is called."""
        self.watchers: object = None
        """Marks of fanotify on the whole file system; None if there are none."""

    def statfs(self) -> StatFs:
        raise NotImplementedError

    def options(self) -> bytes:
        """File system's own options behind `rw`/`ro` in /proc/mounts, with a leading comma if there are any."""
        return b""

    def remount(self, flags: int, data: dict[bytes, bytes]) -> None:
        """mount(MS_REMOUNT): take new SB_* flags and options. SysError(EINVAL) for unknown ones."""
        if data:
            raise SysError(errno.EINVAL, "options")
        self.flags = flags

    def sync(self) -> None:
        """Write what is dirty to where it is kept."""

    def name_of(self, dentry: Dentry) -> bytes | None:
        """What /proc shows for a file that is in no directory (`pipe:[5]`, `/memfd:x (deleted)`), else None."""
        return None

    def shutdown(self) -> None:
        """The last mount and the last open file are gone: give host resources back."""


class Inode:
    """A file of any kind. Attributes are current after `refresh()`."""

    __slots__ = (
        "__weakref__", "atime", "btime", "ctime", "gid", "ino", "locks", "mode", "mtime", "nlink", "pipe", "rdev", "sb",
        "size", "uid", "users", "watchers", "writers",
    )  # fmt: skip

    blksize = 4096
    cacheable = True
    """Lookups of its children may be kept as dentries. False where names come and go on their own (procfs, hostfs)."""

    opens_itself = False
    """Its open() is asked even where it is a FIFO, a socket or a device file."""

    def __init__(self, sb: SuperBlock, ino: int, mode: int, uid: int = 0, gid: int = 0) -> None:
        self.sb = sb
        self.ino = ino
        self.mode = mode
        """S_IFMT and permission bits, as st_mode."""
        self.uid = uid
        self.gid = gid
        self.nlink = 1
        self.rdev = 0
        """Device number of a device file, in the kernel's encoding of st_rdev."""
        self.size = 0
        self.atime = self.mtime = self.ctime = self.btime = 0
        self.watchers: object = None
        """Marks of inotify and fanotify (devices/fsnotify); None for the many files that have none."""
        self.users = 0
        """Open file descriptions, working directories, mounts: see hold() and drop_locked() in files.py."""
        self.writers = 0
        """Open file descriptions that may write (i_writecount): ETXTBSY while above 0; below 0 while it is executed."""
        self.locks: object = None
        """Locks on it (devices/vfs/locks.py)."""
        self.pipe: object = None
        """What is behind a FIFO while it is open."""

    # Attributes

    @property
    def blocks(self) -> int:
        """st_blocks: units of 512 bytes."""
        return (self.size + 511) >> 9

    def refresh(self) -> None:
        """Make the attributes current, where something outside of the machine may have changed them."""

    def touch(self, atime: int) -> None:
        """The file was read and its time of access is to be kept (the mount's relatime rules have been applied)."""
        self.atime = atime

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
        """Change attributes (chmod, chown, truncate, utimensat). `mode` is permission bits only."""
        if size is not None:
            self.truncate(size)
        if mode is not None:
            self.mode = stat.S_IFMT(self.mode) | mode & 0o7777
        self.uid = self.uid if uid is None else uid
        self.gid = self.gid if gid is None else gid
        self.atime = self.atime if atime is None else atime
        self.mtime = self.mtime if mtime is None else mtime
        self.ctime = self.ctime if ctime is None else ctime

    def truncate(self, size: int) -> None:
        raise SysError(errno.EINVAL, "not a regular file")

    def permission(self, task: Task, mask: int) -> None:
        """May `task` read (4), write (2), execute or search (1)? SysError(EACCES). generic_permission() by default,
        in devices/vfs/permissions.py; a file system with rules of its own overrides it."""
        generic_permission(self, task, mask)

    # Directories. The defaults are what Linux says of a file system that cannot do it.

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        """The child `name`; None if there is none."""
        raise SysError(errno.ENOTDIR)

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        """Entries from position `offset` (0, or an Entry's offset) on, without `.` and `..` (the VFS adds them as the
        positions 1 and 2: a file system's own offsets begin at 3)."""
        raise SysError(errno.ENOTDIR)

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        """A new regular file; `mode` has the umask applied; owner by `owner_of_new()`."""
        raise SysError(errno.EPERM, "no files can be made here")

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        raise SysError(errno.EPERM, "no directories can be made here")

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        """A device file, FIFO or socket; `mode` holds its kind."""
        raise SysError(errno.EPERM, "no special files can be made here")

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        raise SysError(errno.EPERM, "no symbolic links can be made here")

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        """A hard link `name` to `target`, which is on the same file system."""
        raise SysError(errno.EPERM, "no links can be made here")

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        raise SysError(errno.EPERM, "nothing can be removed here")

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        """SysError(ENOTEMPTY) unless it is empty."""
        raise SysError(errno.EPERM, "nothing can be removed here")

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        """Move `child` from `name` here to `new_name` in the directory `target` of the same file system. `replaced` is
        what is there now. `flags`: RENAME_NOREPLACE (already checked), RENAME_EXCHANGE, RENAME_WHITEOUT."""
        raise SysError(errno.EPERM, "nothing can be moved here")

    def tmpfile(self, task: Task, mode: int) -> Inode:
        """O_TMPFILE: a regular file without a name (nlink 0)."""
        raise SysError(errno.EOPNOTSUPP)

    # Symbolic links

    def readlink(self, task: Task) -> bytes:
        """Where the symbolic link points."""
        raise SysError(errno.EINVAL, "not a symbolic link")

    def follow(self, task: Task) -> Path | None:
        """A magic link (/proc/self/fd/3, exe, cwd, ns/net): where it leads, without a path walk. None: an ordinary
        link, whose target text is walked."""
        return None

    # Contents

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        """An open file description (struct file); `flags` are O_*, access was checked, O_TRUNC is done by the VFS."""
        raise SysError(errno.ENXIO)

    # Extended attributes: names with their prefix (user., trusted., security., system.)

    def getxattr(self, task: Task, name: bytes) -> bytes:
        raise SysError(errno.EOPNOTSUPP)

    def setxattr(self, task: Task, name: bytes, value: bytes, flags: int) -> None:
        """`flags`: XATTR_CREATE (EEXIST), XATTR_REPLACE (ENODATA)."""
        raise SysError(errno.EOPNOTSUPP)

    def listxattr(self, task: Task) -> list[bytes]:
        return []

    def removexattr(self, task: Task, name: bytes) -> None:
        raise SysError(errno.EOPNOTSUPP)

    # Life

    def released(self) -> None:
        """No name (nlink is 0), no open file and no mapping is left: its contents can go."""

    def owner_of_new(self, credentials: Credentials) -> tuple[int, int, int]:
        """(uid, gid, S_ISGID or 0) of a file made in this directory (inode_init_owner())."""
        setgid = self.mode & stat.S_ISGID
        return credentials.fsuid, self.gid if setgid else credentials.fsgid, setgid
