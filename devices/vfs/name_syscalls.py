"""mkdir, rmdir, mknod, unlink, link, symlink, rename, and the working and root directory (fs/namei.c, fs/open.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Fd, Mode, Path, Ptr, UInt, ULong
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs import names
from devices.vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_REMOVEDIR,
    AT_SYMLINK_FOLLOW,
    MAY_EXEC,
    PATH_MAX,
    AtFlags,
    RenameFlags,
    UnlinkFlags,
)
from devices.vfs.arguments import place_following
from devices.vfs.path import LOOKUP_DIRECTORY, LOOKUP_FOLLOW, walk
from devices.vfs.pathname import current_directory
from devices.vfs.permissions import CAP_DAC_READ_SEARCH, CAP_SYS_CHROOT, inode_permission

if TYPE_CHECKING:
    from devices.task.task import Task


@syscall("mkdir")
def mkdir(task: Task, pathname: Path, mode: Mode) -> int:
    names.make_directory(task, AT_FDCWD, pathname, mode)
    return 0


@syscall("mkdirat")
def mkdirat(task: Task, dirfd: Fd, pathname: Path, mode: Mode) -> int:
    names.make_directory(task, dirfd, pathname, mode)
    return 0


@syscall("mknod")
def mknod(task: Task, pathname: Path, mode: Mode, dev: UInt) -> int:
    names.make_node(task, AT_FDCWD, pathname, mode & 0xFFFF, dev)
    return 0


@syscall("mknodat")
def mknodat(task: Task, dirfd: Fd, pathname: Path, mode: Mode, dev: UInt) -> int:
    names.make_node(task, dirfd, pathname, mode & 0xFFFF, dev)
    return 0


@syscall("rmdir")
def rmdir(task: Task, pathname: Path) -> int:
    names.remove_directory(task, AT_FDCWD, pathname)
    return 0


@syscall("unlink")
def unlink(task: Task, pathname: Path) -> int:
    names.remove_file(task, AT_FDCWD, pathname)
    return 0


@syscall("unlinkat")
def unlinkat(task: Task, dirfd: Fd, pathname: Path, flags: UnlinkFlags) -> int:
    if flags & ~AT_REMOVEDIR:
        raise SysError(errno.EINVAL, "unknown flag")
    if flags:
        names.remove_directory(task, dirfd, pathname)
    else:
        names.remove_file(task, dirfd, pathname)
    return 0


@syscall("symlink")
def symlink(task: Task, target: Path, linkpath: Path) -> int:
    names.make_link(task, AT_FDCWD, linkpath, target)
    return 0


@syscall("symlinkat")
def symlinkat(task: Task, target: Path, newdirfd: Fd, linkpath: Path) -> int:
    names.make_link(task, newdirfd, linkpath, target)
    return 0


@syscall("link")
def link(task: Task, oldpath: Path, newpath: Path) -> int:
    return linkat(task, AT_FDCWD, oldpath, AT_FDCWD, newpath, 0)


@syscall("linkat")
def linkat(task: Task, olddirfd: Fd, oldpath: Path, newdirfd: Fd, newpath: Path, flags: AtFlags) -> int:
    """man 2 linkat. The descriptor itself (AT_EMPTY_PATH) is for who has opened it or has CAP_DAC_READ_SEARCH."""
    if flags & ~(AT_SYMLINK_FOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")
    if flags & AT_EMPTY_PATH and olddirfd != AT_FDCWD and not oldpath.startswith(b"/"):
        file = task.files.get(olddirfd)
        own = file.credentials is task.credentials
        if not own and not task.credentials.capable(CAP_DAC_READ_SEARCH):
            raise SysError(errno.ENOENT, "opened by another")
    names.make_hard_link(task, place_following(task, olddirfd, oldpath, flags), newdirfd, newpath)
    return 0


@syscall("rename")
def rename(task: Task, oldpath: Path, newpath: Path) -> int:
    names.rename(task, AT_FDCWD, oldpath, AT_FDCWD, newpath, 0)
    return 0


@syscall("renameat")
def renameat(task: Task, olddirfd: Fd, oldpath: Path, newdirfd: Fd, newpath: Path) -> int:
    names.rename(task, olddirfd, oldpath, newdirfd, newpath, 0)
    return 0


@syscall("renameat2")
def renameat2(task: Task, olddirfd: Fd, oldpath: Path, newdirfd: Fd, newpath: Path, flags: RenameFlags) -> int:
    names.rename(task, olddirfd, oldpath, newdirfd, newpath, flags)
    return 0


# Where the process is


@syscall("chdir")
def chdir(task: Task, path: Path) -> int:
    place = walk(task, AT_FDCWD, path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY)
    inode_permission(task, place.inode, MAY_EXEC)
    task.process.fs.set_cwd_locked(place)
    return 0


@syscall("fchdir")
def fchdir(task: Task, fd: Fd) -> int:
    """man 2 fchdir; a descriptor of O_PATH will do."""
    place = task.files.get(fd).path
    if place is None or not place.dentry.is_directory:
        raise SysError(errno.ENOTDIR)
    inode_permission(task, place.inode, MAY_EXEC)
    task.process.fs.set_cwd_locked(place)
    return 0


@syscall("chroot")
def chroot(task: Task, path: Path) -> int:
    place = walk(task, AT_FDCWD, path, LOOKUP_FOLLOW | LOOKUP_DIRECTORY)
    inode_permission(task, place.inode, MAY_EXEC)
    if not task.credentials.capable(CAP_SYS_CHROOT):
        raise SysError(errno.EPERM, "CAP_SYS_CHROOT")
    task.process.fs.set_root_locked(place)
    return 0


@syscall("getcwd")
def getcwd(task: Task, buf: Ptr, size: ULong) -> int:
    """man 2 getcwd; the kernel's call returns the length with the NUL."""
    name = current_directory(task) + b"\0"
    if len(name) > PATH_MAX:
        raise SysError(errno.ENAMETOOLONG)
    if len(name) > size:
        raise SysError(errno.ERANGE)
    task.memory.write(buf, name)
    return len(name)
