"""Opening: from a path and O_* flags to an open file description (do_open() and its callers in fs/namei.c)."""

from __future__ import annotations

import errno
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.vfs import abi
from devices.vfs.abi import MAY_EXEC, MAY_READ, MAY_WRITE, O_CREAT, O_DIRECTORY, O_EXCL, O_NOFOLLOW, O_PATH, O_TRUNC
from devices.vfs.directory import DirectoryFile
from devices.vfs.events import IN_CREATE, IN_OPEN, notify, notify_name
from devices.vfs.files import PathFile, release_if_unused
from devices.vfs.path import (
    LOOKUP_CACHED,
    LOOKUP_DIRECTORY,
    LOOKUP_EMPTY,
    LOOKUP_FOLLOW,
    RESOLVE_SHIFT,
    Dentry,
    Parent,
    Path,
    Walk,
    attach_child,
    find_child,
)
from devices.vfs.permissions import (
    inode_permission,
    kill_privileges,
    may_create,
    may_create_in_sticky,
    may_open_device,
    new_mode,
    owner_or_capable,
    want_write,
)
from devices.vfs.resize import check_size

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.inode import Inode

ACCESS = (MAY_READ, MAY_WRITE, MAY_READ | MAY_WRITE, MAY_READ | MAY_WRITE)
"""What O_ACCMODE asks for; 3 is open for ioctl only, for whoever could read and write."""
MAY_OPEN_EXEC = MAY_EXEC
MNT_NOEXEC = 8


class How(NamedTuple):
    """struct open_flags: an open that has been checked."""

    flags: int
    mode: int
    lookup: int
    access: int
    """MAY_* that the file's permissions must grant."""


def how_of(flags: int, mode: int, resolve: int = 0) -> How:
    """build_open_flags(), for openat2(2): SysError(EINVAL, EAGAIN) for what does not fit together."""
    flags &= ~abi.O_CLOEXEC
    creates = flags & (O_CREAT | abi.O_TMPFILE_BIT)
    if flags & ~abi.VALID_OPEN_FLAGS or resolve & ~abi.RESOLVE_ALL:
        raise SysError(errno.EINVAL, "unknown flag")
    if resolve & abi.RESOLVE_BENEATH and resolve & abi.RESOLVE_IN_ROOT:
        raise SysError(errno.EINVAL, "RESOLVE_BENEATH and RESOLVE_IN_ROOT")
    if mode & ~0o7777 if creates else mode:
        raise SysError(errno.EINVAL, "mode")
    if flags & O_DIRECTORY and flags & O_CREAT:
        raise SysError(errno.EINVAL, "O_DIRECTORY and O_CREAT")
    access = ACCESS[flags & abi.O_ACCMODE]
    if flags & abi.O_TMPFILE_BIT and not (flags & O_DIRECTORY and access & MAY_WRITE):
        raise SysError(errno.EINVAL, "O_TMPFILE is for writing")
    if flags & O_PATH:
        if flags & ~abi.O_PATH_FLAGS:
            raise SysError(errno.EINVAL, "O_PATH")
        access = 0
    if flags & abi.O_SYNC_BIT:
        flags |= abi.O_DSYNC
    if flags & O_TRUNC:
        access |= MAY_WRITE
    lookup = resolve << RESOLVE_SHIFT
    if flags & O_DIRECTORY:
        lookup |= LOOKUP_DIRECTORY
    if not (flags & O_NOFOLLOW or (flags & O_CREAT and flags & O_EXCL)):
        lookup |= LOOKUP_FOLLOW
    if lookup & LOOKUP_CACHED and flags & (O_TRUNC | O_CREAT | abi.O_TMPFILE_BIT):
        raise SysError(errno.EAGAIN, "RESOLVE_CACHED")
    return How(flags, mode, lookup, access)


def legacy_how(flags: int, mode: int) -> How:
    """build_open_how(), for open(2) and openat(2), which ignore what they do not know."""
    flags = flags & abi.VALID_OPEN_FLAGS | abi.O_LARGEFILE
    if flags & O_PATH:
        flags &= abi.O_PATH_FLAGS
    if not flags & (O_CREAT | abi.O_TMPFILE_BIT):
        mode = 0
    return how_of(flags, mode & 0o7777)


def open_path(task: Task, dirfd: int, path: bytes, how: How) -> OpenFile:
    """do_filp_open(): an open file description that no descriptor refers to yet."""
    if not path and not how.lookup & LOOKUP_EMPTY:
        raise SysError(errno.ENOENT, "empty path")
    walk = Walk(task, how.lookup)
    if how.flags & abi.O_TMPFILE_BIT:
        return _open_tmpfile(task, walk, dirfd, path, how)
    if how.flags & O_PATH:
        file: OpenFile = PathFile(how.flags)
        file.attach(walk.to_end(dirfd, path))
        file.credentials = task.credentials
        return file
    if how.flags & O_CREAT:
        return _open_or_create(task, walk, dirfd, path, how)
    place = walk.to_end(dirfd, path)
    return open_place(task, place, how)


def _open_or_create(task: Task, walk: Walk, dirfd: int, path: bytes, how: How) -> OpenFile:
    """open_last_lookups(), for O_CREAT."""
    parent = walk.to_parent(dirfd, path)
    while True:
        if not parent.is_name:
            if parent.name == b"..":
                walk.up()
            place = walk.here()
            break
        if parent.slash:
            raise SysError(errno.EISDIR)
        child = find_child(task, walk.dentry, parent.name)
        if child is None:
            return _create(task, walk, parent, how)
        mount, child = walk.cross(walk.mount, child)
        if S_IFMT(child.inode.mode) != S_IFLNK or not walk.follow:
            walk.mount, walk.dentry = mount, child
            place = walk.here()
            break
        body = walk.link(mount, child, True)
        if body is None:
            place = walk.here()
            break
        parent = walk.parent_of(body)
    if how.flags & O_EXCL:
        raise SysError(errno.EEXIST)
    if place.dentry.is_directory:
        raise SysError(errno.EISDIR)
    may_create_in_sticky(task, parent.path.dentry.inode, place.dentry.inode)
    return open_place(task, place, how)


def _create(task: Task, walk: Walk, parent: Parent, how: How) -> OpenFile:
    directory = walk.here()
    want_write(directory.mount)
    may_create(task, directory.dentry)
    mode = new_mode(task, directory.inode, how.mode | S_IFREG) & 0o7777
    inode = directory.inode.create(task, parent.name, mode)
    child = attach_child(task.kernel.vfs, directory.dentry, parent.name, inode)
    notify_name(task, IN_CREATE, directory, parent.name, inode)
    file = finish_open(task, Path(directory.mount, child), how.flags)
    file.created = True
    return file


def _open_tmpfile(task: Task, walk: Walk, dirfd: int, path: bytes, how: How) -> OpenFile:
    """do_tmpfile(): a file that has no name in the directory `path`."""
    walk.directory = True
    directory = walk.to_end(dirfd, path)
    want_write(directory.mount)
    inode_permission(task, directory.inode, MAY_WRITE | MAY_EXEC)
    inode = directory.inode.tmpfile(task, new_mode(task, directory.inode, how.mode | S_IFREG) & 0o7777)
    dentry = Dentry(directory.dentry, b"#%d" % inode.ino, inode)
    dentry.unlinked = True
    try:
        file = finish_open(task, Path(directory.mount, dentry), how.flags)
    except SysError:
        release_if_unused(inode)
        raise
    dentry.linkable = not how.flags & O_EXCL
    return file


def open_place(task: Task, place: Path, how: How) -> OpenFile:
    """do_open(), of a file that was there before."""
    inode, flags = place.dentry.inode, how.flags
    kind = S_IFMT(inode.mode)
    truncates = flags & O_TRUNC and kind == S_IFREG
    if truncates:
        want_write(place.mount)
    may_open(task, place, how.access, flags)
    if not truncates:
        return finish_open(task, place, flags)
    file = finish_open(task, place, flags)
    try:
        check_size(task, inode, 0)
        kill_privileges(task, inode)
        file.truncate(task, 0)
    except BaseException:
        file.hold().put_locked()
        raise
    return file


def may_open(task: Task, place: Path, access: int, flags: int) -> None:
    """may_open(): SysError(ELOOP, EISDIR, EACCES, EPERM, EROFS)."""
    inode = place.dentry.inode
    kind = S_IFMT(inode.mode)
    if kind == S_IFLNK:
        raise SysError(errno.ELOOP, "a symbolic link")
    if kind == S_IFDIR and access & MAY_WRITE:
        raise SysError(errno.EISDIR)
    if access & MAY_EXEC and (kind != S_IFREG or place.mount.flags & MNT_NOEXEC):
        raise SysError(errno.EACCES, "not executable")
    if kind in (S_IFCHR, S_IFBLK) and not may_open_device(place):
        raise SysError(errno.EACCES, "nodev")
    inode_permission(task, inode, access)
    if flags & abi.O_NOATIME and not owner_or_capable(task, inode):
        raise SysError(errno.EPERM, "O_NOATIME")


def finish_open(task: Task, place: Path, flags: int) -> OpenFile:
    """vfs_open(): the open file description; permissions have been checked."""
    inode = place.dentry.inode
    kind = S_IFMT(inode.mode)
    kept = flags & ~abi.OPEN_ONLY
    if flags & abi.O_ACCMODE != abi.O_RDONLY and kind in (S_IFREG, S_IFDIR, S_IFLNK):
        want_write(place.mount)
        if inode.writers < 0:
            raise SysError(errno.ETXTBSY)
    file = make_file(task, place, kind, inode, kept)
    if flags & abi.O_DIRECT and kind == S_IFREG and not file.supports_direct:
        file.hold().put_locked()
        raise SysError(errno.EINVAL, "O_DIRECT")
    if file.path is None:
        file.attach(place)
    file.credentials = task.credentials
    notify(task, IN_OPEN, place)
    return file


def make_file(task: Task, place: Path, kind: int, inode: Inode, flags: int) -> OpenFile:
    """The file system's open file description, or that of what a special file stands for."""
    if kind == S_IFDIR:
        return DirectoryFile(flags)
    if inode.opens_itself:
        return inode.open(task, place, flags)
    if kind == S_IFIFO:
        from devices.fs.pipe import open_fifo

        return open_fifo(task, place, flags)
    if kind == S_IFSOCK:
        raise SysError(errno.ENXIO, "a socket")
    if kind in (S_IFCHR, S_IFBLK):
        opener = task.kernel.vfs.devices.get((kind, inode.rdev))
        if opener is not None:
            return opener(task, place, flags)
    return inode.open(task, place, flags)


def open_for_exec(task: Task, dirfd: int, path: bytes, lookup: int = LOOKUP_FOLLOW) -> Path:
    """do_open_execat(): the regular file that may be executed. SysError(EACCES, ENOENT...)."""
    place = Walk(task, lookup).to_end(dirfd, path)
    if S_IFMT(place.dentry.inode.mode) == S_IFLNK:
        raise SysError(errno.ELOOP)
    may_open(task, place, MAY_OPEN_EXEC, 0)
    return place
