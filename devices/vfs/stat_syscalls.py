"""stat, statx, statfs, access and readlink in all their forms (fs/stat.c, fs/statfs.c, fs/open.c)."""

from __future__ import annotations

import errno
import struct
from stat import S_IFBLK, S_IFCHR, S_IFLNK, S_IFMT, S_IFREG
from typing import TYPE_CHECKING, Annotated

from devices.args import BytesArg, Fd, FlagSet, Int, Path, Ptr, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs.abi import (
    AT_EACCESS,
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_NO_AUTOMOUNT,
    AT_STATX_SYNC_TYPE,
    AT_SYMLINK_NOFOLLOW,
    MAY_EXEC,
    MAY_WRITE,
    NS,
    AccessFlags,
    AccessMode,
    AtFlags,
    StatxFlags,
    pack_inode,
    pack_stat,
)
from devices.vfs.arguments import NullablePath, is_descriptor, place_at
from devices.vfs.mount_abi import MNT_NOEXEC, ST_VALID
from devices.vfs.path import LOOKUP_EMPTY, LOOKUP_FOLLOW, walk
from devices.vfs.permissions import inode_permission, real_credentials

if TYPE_CHECKING:
    import os

    from devices.task.task import Task
    from devices.vfs import path as paths
    from devices.vfs.inode import SuperBlock

LinkBytes = Annotated[int, BytesArg("bufsiz", late=True)]
StatxMask = Annotated[int, FlagSet({"STATX_BASIC_STATS": 0x7FF, "STATX_BTIME": 0x800, "STATX_MNT_ID": 0x1000})]

STATX_TYPE, STATX_MODE, STATX_NLINK, STATX_UID, STATX_GID, STATX_ATIME, STATX_MTIME, STATX_CTIME = (
    1 << i for i in range(8)
)
STATX_INO, STATX_SIZE, STATX_BLOCKS, STATX_BTIME, STATX_MNT_ID, STATX_DIOALIGN = (1 << i for i in range(8, 14))
STATX_MNT_ID_UNIQUE, STATX_SUBVOL, STATX_WRITE_ATOMIC = 1 << 14, 1 << 15, 1 << 16
STATX_BASIC_STATS, STATX_RESERVED = 0x7FF, 1 << 31
STATX_ATTR_MOUNT_ROOT = 0x2000
STATX_ATTR_AUTOMOUNT, STATX_ATTR_DAX = 0x1000, 0x200000
STATX = struct.Struct("<IIQIIIHxxQQQQ" + "qIxxxx" * 4 + "IIIIQII" + "96x")
"""struct statx, 256 bytes."""
STATFS = struct.Struct("<qqQQQQQQqqq32x")
"""struct statfs of x86-64, 120 bytes."""


# stat


@syscall("stat")
def stat(task: Task, pathname: Path, statbuf: Ptr) -> int:
    return _stat(task, walk(task, AT_FDCWD, pathname, LOOKUP_FOLLOW), statbuf)


@syscall("lstat")
def lstat(task: Task, pathname: Path, statbuf: Ptr) -> int:
    return _stat(task, walk(task, AT_FDCWD, pathname, 0), statbuf)


def _stat(task: Task, place: paths.Path, statbuf: int) -> int:
    inode = place.dentry.inode
    inode.refresh()
    task.memory.write(statbuf, pack_inode(inode))
    return 0


@syscall("fstat")
def fstat(task: Task, fd: Fd, statbuf: Ptr) -> int:
    file = task.files.get(fd)
    inode = file.inode
    if inode is None:
        task.memory.write(statbuf, pack_stat(file.stat()))
    else:
        inode.refresh()
        task.memory.write(statbuf, pack_inode(inode))
    return 0


@syscall("newfstatat")
def newfstatat(task: Task, dirfd: Fd, pathname: NullablePath, statbuf: Ptr, flags: AtFlags) -> int:
    if pathname and not flags & ~AT_SYMLINK_NOFOLLOW:
        return _stat(task, walk(task, dirfd, pathname, 0 if flags else LOOKUP_FOLLOW), statbuf)
    if is_descriptor(dirfd, pathname, flags) and not flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT):
        return fstat(task, dirfd, statbuf)
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    return _stat(task, place_at(task, dirfd, pathname, flags), statbuf)


# statx


@syscall("statx")
def statx(task: Task, dirfd: Fd, pathname: NullablePath, flags: StatxFlags, mask: StatxMask, statxbuf: Ptr) -> int:
    """man 2 statx."""
    if mask & STATX_RESERVED:
        raise SysError(errno.EINVAL, "reserved bit of the mask")
    if flags & AT_STATX_SYNC_TYPE == AT_STATX_SYNC_TYPE:
        raise SysError(errno.EINVAL, "AT_STATX_FORCE_SYNC and AT_STATX_DONT_SYNC")
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH | AT_STATX_SYNC_TYPE):
        raise SysError(errno.EINVAL, "unknown flag")
    if is_descriptor(dirfd, pathname, flags):
        file = task.files.get(dirfd)
        data = pack_statx_host(file.stat()) if file.path is None else pack_statx(file.path, mask)
    else:
        data = pack_statx(place_at(task, dirfd, pathname, flags), mask)
    task.memory.write(statxbuf, data)
    return 0


def pack_statx(place: paths.Path, mask: int) -> bytes:
    """struct statx of a file. What was not asked for but costs nothing is told too, as Linux does."""
    mount, dentry = place
    inode = dentry.inode
    inode.refresh()
    known = STATX_BASIC_STATS | (STATX_BTIME if inode.btime else 0)
    if mask & STATX_MNT_ID_UNIQUE:
        known |= STATX_MNT_ID_UNIQUE
        mount_id = mount.unique_id
    else:
        known |= STATX_MNT_ID
        mount_id = mount.id
    attributes = STATX_ATTR_MOUNT_ROOT if dentry is mount.root else 0
    times = [divmod(t, NS) for t in (inode.atime, inode.btime, inode.ctime, inode.mtime)]
    return STATX.pack(
        known, inode.blksize, attributes, inode.nlink, inode.uid, inode.gid, inode.mode, inode.ino, inode.size,
        inode.blocks, STATX_ATTR_MOUNT_ROOT | STATX_ATTR_AUTOMOUNT | STATX_ATTR_DAX,
        *(part for time in times for part in time),
        *device_halves(inode.rdev), *device_halves(inode.sb.dev), mount_id, 0, 0,
    )  # fmt: skip


def pack_statx_host(host: os.stat_result) -> bytes:
    """struct statx of a file that has no inode here."""
    times = [divmod(t, NS) for t in (host.st_atime_ns, 0, host.st_ctime_ns, host.st_mtime_ns)]
    return STATX.pack(
        STATX_BASIC_STATS, host.st_blksize, 0, host.st_nlink, host.st_uid, host.st_gid, host.st_mode, host.st_ino,
        host.st_size, host.st_blocks, STATX_ATTR_MOUNT_ROOT, *(part for time in times for part in time),
        *device_halves(host.st_rdev), *device_halves(host.st_dev), 0, 0, 0,
    )  # fmt: skip


def device_halves(device: int) -> tuple[int, int]:
    """(major, minor) of an encoded device number."""
    major = device >> 8 & 0xFFF | device >> 32 & 0xFFFFF000
    minor = device & 0xFF | device >> 12 & 0xFFFFFF00
    return major, minor & 0xFFFF_FFFF


# statfs


@syscall("statfs")
def statfs(task: Task, path: Path, buf: Ptr) -> int:
    place = walk(task, AT_FDCWD, path, LOOKUP_FOLLOW)
    task.memory.write(buf, pack_statfs(place.mount.sb, place.mount.flags))
    return 0


@syscall("fstatfs")
def fstatfs(task: Task, fd: Fd, buf: Ptr) -> int:
    place = task.files.get(fd).path
    if place is None:
        raise SysError(errno.ENOSYS, "in no file system")
    task.memory.write(buf, pack_statfs(place.mount.sb, place.mount.flags))
    return 0


def pack_statfs(sb: SuperBlock, mount_flags: int) -> bytes:
    """struct statfs; its flags are the mount's and the file system's (calculate_f_flags())."""
    found = sb.statfs()
    flags = mount_flags | sb.flags & (1 | 16 | 64) | ST_VALID
    return STATFS.pack(
        found.type, found.bsize, found.blocks, found.bfree, found.bavail, found.files, found.ffree, found.fsid,
        found.namelen, found.bsize, flags,
    )  # fmt: skip


USTAT = struct.Struct("<i4xQ12x4x")
"""struct ustat: f_tfree, f_tinode, f_fname, f_fpack."""


@syscall("ustat")
def ustat(task: Task, dev: UInt, ubuf: Ptr) -> int:
    """man 2 ustat: statistics of the file system with a device number."""
    for mount in task.process.mounts.in_order():
        if mount.sb.dev & 0xFFFF_FFFF == dev:
            found = mount.sb.statfs()
            tfree = found.bfree & 0xFFFF_FFFF
            task.memory.write(ubuf, USTAT.pack((tfree ^ 1 << 31) - (1 << 31), found.ffree))
            return 0
    raise SysError(errno.EINVAL, "no such file system")


# access


@syscall("access")
def access(task: Task, pathname: Path, mode: AccessMode) -> int:
    return do_access(task, AT_FDCWD, pathname, mode, 0)


@syscall("faccessat")
def faccessat(task: Task, dirfd: Fd, pathname: Path, mode: AccessMode) -> int:
    return do_access(task, dirfd, pathname, mode, 0)


@syscall("faccessat2")
def faccessat2(task: Task, dirfd: Fd, pathname: Path, mode: AccessMode, flags: AccessFlags) -> int:
    if mode & ~7 or flags & ~(AT_EACCESS | AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL)
    return do_access(task, dirfd, pathname, mode, flags)


def do_access(task: Task, dirfd: int, path: bytes, mode: int, flags: int) -> int:
    """do_faccessat(): by the real user, unless AT_EACCESS."""
    if mode & ~7:
        raise SysError(errno.EINVAL, "mode")
    effective = task.credentials
    if not flags & AT_EACCESS:
        task.credentials = real_credentials(effective)
    try:
        check_access(task, place_at(task, dirfd, path, flags), mode)
    finally:
        task.credentials = effective
    return 0


def check_access(task: Task, place: paths.Path, mode: int) -> None:
    mount, dentry = place
    inode = dentry.inode
    inode.refresh()
    if mode & MAY_EXEC and S_IFMT(inode.mode) == S_IFREG and mount.flags & MNT_NOEXEC:
        raise SysError(errno.EACCES, "noexec")
    inode_permission(task, inode, mode)
    if mode & MAY_WRITE and mount.is_read_only and S_IFMT(inode.mode) not in (S_IFCHR, S_IFBLK, 0o10000, 0o140000):
        raise SysError(errno.EROFS)


# readlink


@syscall("readlink")
def readlink(task: Task, pathname: Path, buf: LinkBytes, bufsiz: Int) -> int:
    return readlinkat(task, AT_FDCWD, pathname, buf, bufsiz)


@syscall("readlinkat")
def readlinkat(task: Task, dirfd: Fd, pathname: Path, buf: LinkBytes, bufsiz: Int) -> int:
    """man 2 readlinkat. An empty path is the link that `dirfd` was opened on (O_PATH | O_NOFOLLOW)."""
    if bufsiz <= 0:
        raise SysError(errno.EINVAL, "no room")
    place = walk(task, dirfd, pathname, LOOKUP_EMPTY)
    inode = place.dentry.inode
    if S_IFMT(inode.mode) != S_IFLNK:
        raise SysError(errno.EINVAL if pathname else errno.ENOENT, "not a symbolic link")
    place.mount.touch(task, place.dentry)
    target = inode.readlink(task)[:bufsiz]
    task.memory.write(buf, target)
    return len(target)
