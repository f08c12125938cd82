"""The rules of mounting: who may do it, and what goes where (fs/namespace.c, path_mount() and what it calls)."""

from __future__ import annotations

import errno
from stat import S_IFLNK, S_IFMT
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.vfs import mount_abi as ms
from devices.vfs.files import drop_locked, hold
from devices.vfs.inode import SB_RDONLY
from devices.vfs.mount import (
    Mount,
    attach_tree,
    clone,
    connect,
    copy_tree,
    disconnect,
    unmount_tree_locked,
)
from devices.vfs.path import LOOKUP_FOLLOW, Path, root_dentry, walk
from devices.vfs.pathname import is_reachable
from devices.vfs.permissions import CAP_SYS_ADMIN
from devices.vfs.propagation import busy_elsewhere, change_type, receivers

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.inode import SuperBlock
    from devices.vfs.state import Vfs

AT_FDCWD = -100
MOUNT_MAX = 100_000
"""Mounts in the machine at most (Linux has /proc/sys/fs/mount-max for each namespace)."""
ATIME_FLAGS = ms.MS_NOATIME | ms.MS_NODIRATIME | ms.MS_RELATIME | ms.MS_STRICTATIME


def check_may_mount(task: Task) -> None:
    """may_mount(): SysError(EPERM)."""
    if not task.credentials.capable(CAP_SYS_ADMIN):
        raise SysError(errno.EPERM, "CAP_SYS_ADMIN")


def is_ours(task: Task, mount: Mount) -> bool:
    """check_mnt(): is it in the task's mount namespace?"""
    return mount.namespace is task.process.mounts


def is_whole(path: Path) -> bool:
    """path_mounted(): is the path the root of its mount?"""
    return path.dentry is path.mount.root


def top_of(path: Path) -> Path:
    """Where something mounted at `path` goes: on what is on top there. SysError(ENOENT) for a removed directory."""
    place = topmost(path)
    if place.dentry.unlinked or place.mount.namespace is None:
        raise SysError(errno.ENOENT, "the mount point was removed, or its mount")
    return place


def topmost(path: Path) -> Path:
    """What is mounted there, if anything is (handle_lookup_down())."""
    mount, dentry = path
    while dentry.mounts and (over := mount.mounted.get(dentry)) is not None:
        mount, dentry = over, over.root
    return Path(mount, dentry)


def invalid(reason: str) -> SysError:
    return SysError(errno.EINVAL, reason)


def mount_flags(flags: int) -> int:
    """MNT_* from MS_*; relatime unless something else is asked for."""
    found = flags & (ms.MS_RDONLY | ms.MS_NOSUID | ms.MS_NODEV | ms.MS_NOEXEC)
    if flags & ms.MS_NOATIME:
        found |= ms.MNT_NOATIME
    elif not flags & ms.MS_STRICTATIME:
        found |= ms.MNT_RELATIME
    if flags & ms.MS_NODIRATIME:
        found |= ms.MNT_NODIRATIME
    if flags & ms.MS_STRICTATIME:
        found &= ~(ms.MNT_RELATIME | ms.MNT_NOATIME)
    if flags & ms.MS_NOSYMFOLLOW:
        found |= ms.MNT_NOSYMFOLLOW
    return found


def graft(vfs: Vfs, tree: Mount, target: Path) -> None:
    """graft_tree(): SysError(ENOTDIR, ENOSPC)."""
    if tree.root.is_directory != target.dentry.is_directory:
        raise SysError(errno.ENOTDIR, "a file on a directory, or the reverse")
    check_room(vfs, tree, len(receivers(target.mount)))
    attach_tree(vfs, tree, target.mount, target.dentry)


def check_room(vfs: Vfs, tree: Mount, copies: int) -> None:
    """count_mounts(): SysError(ENOSPC) if so many copies of a tree are too many."""
    if len(vfs.mounts) + copies * sum(1 for _ in tree.tree()) > MOUNT_MAX:
        raise SysError(errno.ENOSPC, "mount-max")


def discard_locked(vfs: Vfs, tree: Mount) -> None:
    """Take back a tree that could not be mounted."""
    unmount_tree_locked(vfs, tree, spreads=False)


# New mounts and copies


def add_new(task: Task, sb: SuperBlock, target: Path, flags: int, source: bytes) -> Mount:
    """do_add_mount(): mount a file system at `target`."""
    vfs = task.kernel.vfs
    mount = Mount(vfs, sb, root_dentry(sb), flags, source)
    try:
        place = top_of(target)
        if not is_ours(task, place.mount):
            raise invalid("not in this mount namespace")
        if place.mount.sb is sb and is_whole(place):
            raise SysError(errno.EBUSY, "it is mounted there")
        if S_IFMT(mount.root.inode.mode) == S_IFLNK:
            raise invalid("the root is a symbolic link")
        graft(vfs, mount, place)
    except SysError:
        discard_locked(vfs, mount)
        raise
    return mount


def new_mount(task: Task, target: Path, kind: bytes, source: bytes, flags: int, data: bytes) -> None:
    """do_new_mount(): SysError(ENODEV) for an unknown kind, and what the file system says."""
    from devices.fs.registry import find_filesystem

    fstype = find_filesystem(task.kernel, kind.split(b".")[0])
    sb = fstype.mount(task.kernel, task, source, flags & ms.SUPERBLOCK_FLAGS, data)
    add_new(task, sb, target, mount_flags(flags), source or b"none")


def may_copy(task: Task, path: Path) -> bool:
    """may_copy_tree(): mounts of this namespace, and of what open_tree and fsmount have made."""
    namespace = path.mount.namespace
    return is_ours(task, path.mount) or (namespace is not None and namespace.anonymous)


def copy_for_bind(task: Task, old: Path, recursive: bool) -> Mount:
    """The mount tree that a bind mount of `old` makes. SysError(EINVAL)."""
    if old.mount.unbindable:
        raise invalid("unbindable")
    if not may_copy(task, old):
        raise invalid("not in this mount namespace")
    if old.dentry.unlinked and old.dentry is not old.mount.root:
        raise SysError(errno.ENOENT, "removed")
    vfs = task.kernel.vfs
    check_room(vfs, old.mount, 1)
    return copy_tree(vfs, old.mount, old.dentry) if recursive else clone(vfs, old.mount, old.dentry)


def bind(task: Task, target: Path, source: bytes, recursive: bool) -> None:
    """do_loopback()."""
    if not source:
        raise invalid("no source")
    old = walk(task, AT_FDCWD, source, LOOKUP_FOLLOW)
    place = top_of(target)
    tree = copy_for_bind(task, old, recursive)
    try:
        if not is_ours(task, place.mount):
            raise invalid("not in this mount namespace")
        graft(task.kernel.vfs, tree, place)
    except SysError:
        discard_locked(task.kernel.vfs, tree)
        raise


# Changes


def set_propagation(task: Task, path: Path, flags: int) -> None:
    """do_change_type()."""
    kind = flags & ~(ms.MS_REC | ms.MS_SILENT)
    if kind & ~ms.PROPAGATION_TYPES or kind.bit_count() != 1:
        raise invalid("propagation type")
    if not is_whole(path):
        raise invalid("not a mount point")
    if not is_ours(task, path.mount):
        raise invalid("not in this mount namespace")
    for mount in path.mount.tree() if flags & ms.MS_REC else (path.mount,):
        change_type(task.kernel.vfs, mount, kind)
    task.process.mounts.changed()


def set_flags(mount: Mount, flags: int) -> None:
    """Give the mount these MNT_* flags. SysError(EBUSY): it becomes read-only, and files are open for writing."""
    if flags & ms.MNT_READONLY and not mount.flags & ms.MNT_READONLY and mount.writers:
        raise SysError(errno.EBUSY, "files are open for writing")
    mount.flags = flags


def check_whole_of_ours(task: Task, path: Path) -> None:
    if not is_ours(task, path.mount):
        raise invalid("not in this mount namespace")
    if not is_whole(path):
        raise invalid("not a mount point")


def reconfigure_mount(task: Task, path: Path, flags: int) -> None:
    """do_reconfigure_mnt(): mount(MS_REMOUNT | MS_BIND) changes the mount alone."""
    check_whole_of_ours(task, path)
    set_flags(path.mount, flags)
    task.process.mounts.changed()


def remount(task: Task, path: Path, flags: int, new_flags: int, data: bytes) -> None:
    """do_remount(): the file system's flags and options, and the mount's."""
    check_whole_of_ours(task, path)
    sb = path.mount.sb
    reconfigure_super(task, sb, flags & ms.SUPERBLOCK_FLAGS, options_of(data))
    path.mount.flags = new_flags
    task.process.mounts.changed()


def reconfigure_super(task: Task, sb: SuperBlock, flags: int, options: dict[bytes, bytes]) -> None:
    """reconfigure_super(): SysError(EBUSY) where it becomes read-only and files are open for writing."""
    becomes_read_only = flags & SB_RDONLY and not sb.flags & SB_RDONLY
    if becomes_read_only:
        if any(mount.sb is sb and mount.writers for mount in task.kernel.vfs.mounts.values()):
            raise SysError(errno.EBUSY, "files are open for writing")
        sb.sync()
    sb.remount(flags, options)


def options_of(data: bytes) -> dict[bytes, bytes]:
    """`a=1,b` of mount(2) as a dict (generic_parse_monolithic())."""
    options = {}
    for part in data.split(b","):
        if part:
            name, _, value = part.partition(b"=")
            options[name] = value
    return options


def move(task: Task, old: Path, target: Path, *, beneath: bool = False) -> None:
    """do_move_mount(): SysError(EINVAL, ELOOP, ENOENT)."""
    mount, parent = old.mount, old.mount.parent
    if not is_whole(old):
        raise invalid("not a mount point")
    if mount.namespace is None:
        raise invalid("not mounted")
    place = place_beneath(target) if beneath else top_of(target)
    namespace = place.mount.namespace
    if is_ours(task, mount):
        if parent is None or parent.group is not None or not is_ours(task, place.mount):
            raise invalid("the root, on a shared mount, or to another mount namespace")
    else:
        usable = is_ours(task, place.mount) or (namespace is not None and namespace.anonymous)
        root = mount.namespace.anonymous and mount.namespace.root is mount
        if not root or namespace is mount.namespace or not usable:
            raise invalid("neither in this mount namespace nor a detached tree")
    if target.dentry.is_directory != old.dentry.is_directory:
        raise invalid("a file on a directory, or the reverse")
    if beneath:
        check_beneath(task, mount, place)
    if place.mount.group is not None and any(m.unbindable for m in mount.tree()):
        raise invalid("an unbindable mount to a shared one")
    if is_ancestor(mount, place.mount):
        raise SysError(errno.ELOOP, "into itself")
    check_room(task.kernel.vfs, mount, len(receivers(place.mount)))
    attach_tree(task.kernel.vfs, mount, place.mount, place.dentry)


def place_beneath(path: Path) -> Path:
    """where_to_mount(): the place under what is mounted at `path`. SysError(EINVAL)."""
    over = path.mount.topmost()
    if not is_whole(path) or over.parent is None or over.mountpoint is None:
        raise invalid("nothing is mounted there")
    return Path(over.parent, over.mountpoint)


def check_beneath(task: Task, mount: Mount, place: Path) -> None:
    """can_move_mount_beneath(): SysError(EINVAL)."""
    over = place.mount.mounted[place.dentry]
    if mount.mounted.get(mount.root) is not None:
        raise invalid("something covers it whole")
    if over is task.process.fs.root.mount or place.mount is task.process.mounts.root:
        raise invalid("the root")
    if is_ancestor(over, mount):
        raise invalid("beneath itself")
    would_cover = [over, mount] if is_ours(task, mount) else [over]
    reached = receivers(place.mount)
    if any(each.root is place.dentry and each in reached for each in would_cover):
        raise invalid("it would be mounted on top as well")


def is_ancestor(upper: Mount, lower: Mount | None) -> bool:
    """Is `lower` mounted on `upper`, directly or not, or the same?"""
    while lower is not None and lower is not upper:
        lower = lower.parent
    return lower is upper


# Unmounting


def unmount(task: Task, path: Path, flags: int) -> None:
    """can_umount(), do_umount(): SysError(EINVAL, EPERM, EBUSY, EAGAIN)."""
    mount = path.mount
    check_may_mount(task)
    if not is_whole(path) or not is_ours(task, mount):
        raise invalid("not a mount point")
    root = task.process.fs.root.mount
    if flags & ms.MNT_EXPIRE:
        if mount is root or flags & (ms.MNT_FORCE | ms.MNT_DETACH):
            raise invalid("MNT_EXPIRE")
        if mount.users or mount.mounted:
            raise SysError(errno.EBUSY)
        if not mount.expiring:
            mount.expiring = True
            raise SysError(errno.EAGAIN, "marked as expired")
    vfs = task.kernel.vfs
    if flags & ms.MNT_DETACH:
        unmount_tree_locked(vfs, mount)
        return
    if mount is root:
        if not mount.sb.flags & SB_RDONLY:
            reconfigure_super(task, mount.sb, mount.sb.flags | SB_RDONLY, {})
        return
    if mount.mounted or mount.users or busy_elsewhere(mount):
        raise SysError(errno.EBUSY, "in use")
    unmount_tree_locked(vfs, mount)


def pivot_root(task: Task, new: Path, put_old: Path) -> None:
    """pivot_root(2): `new` becomes the root of the mount namespace, the old root goes to `put_old`."""
    fs = task.process.fs
    root = fs.root
    old = top_of(put_old)
    new_mount_, root_mount = new.mount, root.mount
    shared = [m for m in (old.mount, new_mount_.parent, root_mount.parent) if m is not None and m.group is not None]
    if shared:
        raise invalid("shared mounts")
    if not is_ours(task, root_mount) or not is_ours(task, new_mount_):
        raise invalid("not in this mount namespace")
    if new.dentry.unlinked:
        raise SysError(errno.ENOENT, "removed")
    if new_mount_ is root_mount or old.mount is root_mount:
        raise SysError(errno.EBUSY, "on the same mount as the root")
    above, place = root_mount.parent, root_mount.mountpoint
    if not is_whole(root) or above is None or place is None:
        raise invalid("the root is no mount point")
    if not is_whole(new) or new_mount_.parent is None:
        raise invalid("the new root is no mount point")
    if not is_reachable(old.mount, old.dentry, new) or not is_reachable(new_mount_, new.dentry, root):
        raise invalid("not below the root")
    disconnect(new_mount_)
    disconnect(root_mount)
    connect(root_mount, old.mount, old.dentry)
    connect(new_mount_, above, place)
    task.process.mounts.changed()
    _move_roots_locked(task, root, new)


def _move_roots_locked(task: Task, old: Path, new: Path) -> None:
    """chroot_fs_refs(): every process whose root or working directory is the old root gets the new one."""
    hold(old)
    first = task.kernel.vfs.first_fs
    if first is not None and first.root == old:
        first.root = first.cwd = new
    try:
        for fs in {process.fs for process in task.kernel.processes.values()}:
            if fs.root == old:
                fs.set_root_locked(new)
            if fs.cwd == old:
                fs.set_cwd_locked(new)
    finally:
        drop_locked(old)
