"""Making, removing and moving names: the rules of vfs_mkdir(), vfs_unlink(), vfs_rename()... in fs/namei.c.

Where the file system is asked, permissions, read-only mounts, mount points and the kinds of files have been checked.
"""

from __future__ import annotations

import errno
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_ISVTX
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs.abi import MAY_WRITE, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from devices.vfs.events import (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_ISDIR,
    IN_MOVE_SELF,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    notify,
    notify_name,
)
from devices.vfs.files import release_if_unused
from devices.vfs.path import (
    Dentry,
    Parent,
    Path,
    attach_child,
    exchange_children,
    find_child,
    forget_child,
    move_child,
    walk_parent,
)
from devices.vfs.permissions import (
    inode_permission,
    may_create,
    may_delete,
    may_link,
    may_mknod,
    new_mode,
    want_write,
)

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.inode import Inode

SPECIAL = (S_IFCHR, S_IFBLK, S_IFIFO, S_IFSOCK)
WHITEOUT_DEV = 0


def parent_for_new(task: Task, dirfd: int, path: bytes, directory: bool = False) -> Parent:
    """filename_create(): where a new name goes. SysError(EEXIST, ENOENT for a file with slashes behind it, EROFS)."""
    parent = walk_parent(task, dirfd, path)
    if not parent.is_name:
        raise SysError(errno.EEXIST)
    if find_child(task, parent.path.dentry, parent.name) is not None:
        raise SysError(errno.EEXIST)
    if parent.slash and not directory:
        raise SysError(errno.ENOENT, "a directory's name for a file")
    want_write(parent.path.mount)
    return parent


def made(task: Task, parent: Parent, inode: Inode) -> Path:
    """The file system has made a file of this name."""
    place = parent.path
    child = attach_child(task.kernel.vfs, place.dentry, parent.name, inode)
    directory = IN_ISDIR if S_IFMT(inode.mode) == S_IFDIR else 0
    notify_name(task, IN_CREATE | directory, place, parent.name, inode)
    return Path(place.mount, child)


def make_directory(task: Task, dirfd: int, path: bytes, mode: int) -> None:
    parent = parent_for_new(task, dirfd, path, True)
    may_create(task, parent.path.dentry)
    directory = parent.path.inode
    mode = new_mode(task, directory, mode & (0o777 | S_ISVTX) | S_IFDIR) & 0o7777
    made(task, parent, directory.mkdir(task, parent.name, mode))


def make_node(task: Task, dirfd: int, path: bytes, mode: int, device: int) -> None:
    """vfs_mknod(), and vfs_create() for a regular file."""
    kind = S_IFMT(mode) or S_IFREG
    if kind == S_IFDIR:
        raise SysError(errno.EPERM, "mkdir makes directories")
    if kind not in (S_IFREG, *SPECIAL):
        raise SysError(errno.EINVAL, "kind of file")
    parent = parent_for_new(task, dirfd, path)
    may_create(task, parent.path.dentry)
    directory = parent.path.inode
    mode = new_mode(task, directory, kind | mode & 0o7777)
    if kind == S_IFREG:
        made(task, parent, directory.create(task, parent.name, mode & 0o7777))
        return
    if kind != S_IFCHR or device != WHITEOUT_DEV:
        may_mknod(task, kind)
    made(task, parent, directory.mknod(task, parent.name, mode, device if kind in (S_IFCHR, S_IFBLK) else 0))


def make_socket(task: Task, path: bytes, mode: int) -> Path:
    """The name of a bound Unix socket (unix_bind_bsd()); SysError(EADDRINUSE) is the caller's for EEXIST."""
    parent = parent_for_new(task, -100, path)
    may_create(task, parent.path.dentry)
    mode = new_mode(task, parent.path.inode, S_IFSOCK | mode & 0o7777)
    return made(task, parent, parent.path.inode.mknod(task, parent.name, mode, 0))


def make_link(task: Task, dirfd: int, path: bytes, target: bytes) -> None:
    """vfs_symlink()."""
    if not target:
        raise SysError(errno.ENOENT, "empty target")
    parent = parent_for_new(task, dirfd, path)
    may_create(task, parent.path.dentry)
    made(task, parent, parent.path.inode.symlink(task, parent.name, target))


def make_hard_link(task: Task, old: Path, dirfd: int, path: bytes) -> None:
    """vfs_link()."""
    parent = parent_for_new(task, dirfd, path)
    if old.mount is not parent.path.mount:
        raise SysError(errno.EXDEV)
    inode = old.inode
    inode.refresh()
    may_link(task, inode)
    may_create(task, parent.path.dentry)
    if inode.sb is not parent.path.inode.sb:
        raise SysError(errno.EXDEV)
    if S_IFMT(inode.mode) == S_IFDIR:
        raise SysError(errno.EPERM, "a directory")
    if not inode.nlink and not old.dentry.linkable:
        raise SysError(errno.ENOENT, "the file has no name any more")
    parent.path.inode.link(task, parent.name, inode)
    made(task, parent, inode)
    notify(task, IN_ATTRIB, old)


# Removing


def remove_file(task: Task, dirfd: int, path: bytes) -> None:
    """do_unlinkat()."""
    parent = walk_parent(task, dirfd, path)
    if not parent.is_name:
        raise SysError(errno.EISDIR)
    want_write(parent.path.mount)
    child = existing(task, parent)
    if parent.slash:
        raise SysError(errno.EISDIR if child.is_directory else errno.ENOTDIR)
    may_delete(task, child, False)
    check_not_mounted(parent.path, child)
    parent.path.inode.unlink(task, parent.name, child.inode)
    removed(task, parent.path, child)


def remove_directory(task: Task, dirfd: int, path: bytes) -> None:
    """do_rmdir()."""
    parent = walk_parent(task, dirfd, path)
    if not parent.is_name:
        raise SysError({b"..": errno.ENOTEMPTY, b".": errno.EINVAL}.get(parent.name, errno.EBUSY))
    want_write(parent.path.mount)
    child = existing(task, parent)
    may_delete(task, child, True)
    check_not_mounted(parent.path, child)
    parent.path.inode.rmdir(task, parent.name, child.inode)
    removed(task, parent.path, child)


def existing(task: Task, parent: Parent) -> Dentry:
    child = find_child(task, parent.path.dentry, parent.name)
    if child is None:
        raise SysError(errno.ENOENT)
    return child


def check_not_mounted(place: Path, child: Dentry) -> None:
    """is_local_mountpoint(): SysError(EBUSY) for a mount point of this mount namespace."""
    if child.mounts and is_local_mountpoint(place, child):
        raise SysError(errno.EBUSY, "a mount point")


def is_local_mountpoint(place: Path, dentry: Dentry) -> bool:
    namespace = place.mount.namespace
    if namespace is None:
        return False
    return any(mount.mountpoint is dentry for mount in namespace.mounts.values())


def removed(task: Task, place: Path, child: Dentry) -> None:
    """The file system has taken a name away."""
    inode = child.inode
    directory = IN_ISDIR if child.is_directory else 0
    forget_child(child)
    if child.mounts:
        detach_mounts_locked(task, child)
    notify_name(task, IN_DELETE | directory, place, child.name, inode)
    if not inode.nlink or directory:
        notify(task, IN_DELETE_SELF | directory, Path(place.mount, child))
    release_if_unused(inode)


def detach_mounts_locked(task: Task, dentry: Dentry) -> None:
    """__detach_mounts(): a name that was removed takes along what other mount namespaces have mounted on it."""
    from devices.vfs.mount import unmount_tree_locked

    vfs = task.kernel.vfs
    for mount in list(vfs.mounts.values()):
        if mount.mountpoint is dentry:
            unmount_tree_locked(vfs, mount, spreads=False)


# Moving


def rename(task: Task, old_dirfd: int, old_path: bytes, new_dirfd: int, new_path: bytes, flags: int) -> None:
    """do_renameat2()."""
    exchange = flags & RENAME_EXCHANGE
    if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
        raise SysError(errno.EINVAL, "unknown flag")
    if exchange and flags & (RENAME_NOREPLACE | RENAME_WHITEOUT):
        raise SysError(errno.EINVAL, "flags that exclude each other")
    old_parent = walk_parent(task, old_dirfd, old_path)
    new_parent = walk_parent(task, new_dirfd, new_path)
    if old_parent.path.mount is not new_parent.path.mount:
        raise SysError(errno.EXDEV)
    if not old_parent.is_name:
        raise SysError(errno.EBUSY)
    if not new_parent.is_name:
        raise SysError(errno.EEXIST if flags & RENAME_NOREPLACE else errno.EBUSY)
    want_write(old_parent.path.mount)
    old = existing(task, old_parent)
    new = find_child(task, new_parent.path.dentry, new_parent.name)
    if new is not None and flags & RENAME_NOREPLACE:
        raise SysError(errno.EEXIST)
    if exchange:
        if new is None:
            raise SysError(errno.ENOENT)
        if not new.is_directory and new_parent.slash:
            raise SysError(errno.ENOTDIR)
    if not old.is_directory and (old_parent.slash or (new_parent.slash and not exchange)):
        raise SysError(errno.ENOTDIR)
    if new_parent.path.dentry.is_under(old) and old_parent.path.dentry is not new_parent.path.dentry:
        raise SysError(errno.EINVAL, "into itself")
    if new is not None and new is not old and old_parent.path.dentry.is_under(new):
        raise SysError(errno.EINVAL if exchange else errno.ENOTEMPTY)
    do_rename(task, old_parent, new_parent, old, new, flags)


def do_rename(task: Task, old_parent: Parent, new_parent: Parent, old: Dentry, new: Dentry | None, flags: int) -> None:
    """vfs_rename()."""
    inode = old.inode
    if new is not None and new.inode is inode:
        return
    exchange = bool(flags & RENAME_EXCHANGE)
    directory = old.is_directory
    may_delete(task, old, directory)
    if new is None:
        may_create(task, new_parent.path.dentry)
    else:
        may_delete(task, new, new.is_directory if exchange else directory)
    if old_parent.path.dentry is not new_parent.path.dentry:
        if directory:
            inode_permission(task, inode, MAY_WRITE)
        if exchange and new is not None and new.is_directory:
            inode_permission(task, new.inode, MAY_WRITE)
    check_not_mounted(old_parent.path, old)
    if new is not None:
        check_not_mounted(new_parent.path, new)
    if flags & RENAME_WHITEOUT:
        may_mknod(task, 0)
    replaced = new.inode if new is not None else None
    old_parent.path.inode.rename(task, old_parent.name, inode, new_parent.path.inode, new_parent.name, replaced, flags)
    if new is not None and exchange:
        exchange_children(old, new)
    else:
        if new is not None:
            forget_child(new)
        move_child(old, new_parent.path.dentry, new_parent.name)
    _tell_rename(task, old_parent, new_parent, old, new, exchange)


def _tell_rename(
    task: Task, old_parent: Parent, new_parent: Parent, old: Dentry, new: Dentry | None, exchange: bool
) -> None:
    """fsnotify_move(), and the end of what was replaced."""
    cookie = task.kernel.vfs.new_cookie()
    kind = IN_ISDIR if old.is_directory else 0
    notify_name(task, IN_MOVED_FROM | kind, old_parent.path, old_parent.name, old.inode, cookie)
    notify_name(task, IN_MOVED_TO | kind, new_parent.path, new_parent.name, old.inode, cookie)
    notify(task, IN_MOVE_SELF, Path(old_parent.path.mount, old))
    if new is None:
        return
    if exchange:
        kind = IN_ISDIR if new.is_directory else 0
        cookie = task.kernel.vfs.new_cookie()
        notify_name(task, IN_MOVED_FROM | kind, new_parent.path, new_parent.name, new.inode, cookie)
        notify_name(task, IN_MOVED_TO | kind, old_parent.path, old_parent.name, new.inode, cookie)
        return
    if new.mounts:
        detach_mounts_locked(task, new)
    if not new.inode.nlink:
        notify(task, IN_DELETE_SELF, Path(new_parent.path.mount, new))
    release_if_unused(new.inode)
