"""mount, umount2 and pivot_root (fs/namespace.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.args import Path, Ptr
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs import mount_abi as ms
from devices.vfs import mounting
from devices.vfs.abi import AT_FDCWD
from devices.vfs.arguments import NullablePath
from devices.vfs.mount_abi import MountFlags, UmountFlags
from devices.vfs.path import LOOKUP_DIRECTORY, LOOKUP_FOLLOW, LOOKUP_MOUNTPOINT, walk

if TYPE_CHECKING:
    from devices.task.task import Task

PAGE_SIZE = 4096


def read_data(task: Task, address: int) -> bytes:
    """copy_mount_options(): what can be read of a page, up to its NUL."""
    if not address:
        return b""
    return task.memory.read_partial(address, PAGE_SIZE)[: PAGE_SIZE - 1].split(b"\0")[0]


@syscall("mount")
def mount(
    task: Task,
    source: NullablePath,
    target: Path,
    filesystemtype: NullablePath,
    mountflags: MountFlags,
    data: Ptr,
) -> int:
    """man 2 mount."""
    options = read_data(task, data)
    place = walk(task, AT_FDCWD, target, LOOKUP_FOLLOW)
    flags = mountflags
    if flags & ms.MS_MGC_MSK == ms.MS_MGC_VAL:
        flags &= ~ms.MS_MGC_MSK
    if flags & ms.MS_NOUSER:
        raise SysError(errno.EINVAL, "MS_NOUSER")
    mounting.check_may_mount(task)
    own_flags = mounting.mount_flags(flags)
    if flags & ms.MS_REMOUNT and not flags & mounting.ATIME_FLAGS:
        own_flags = own_flags & ~ms.MNT_ATIME | place.mount.flags & ms.MNT_ATIME
    if flags & ms.MS_REMOUNT and flags & ms.MS_BIND:
        mounting.reconfigure_mount(task, place, own_flags)
    elif flags & ms.MS_REMOUNT:
        mounting.remount(task, place, flags, own_flags, options)
    elif flags & ms.MS_BIND:
        mounting.bind(task, place, source or b"", bool(flags & ms.MS_REC))
    elif flags & ms.PROPAGATION_TYPES:
        mounting.set_propagation(task, place, flags)
    elif flags & ms.MS_MOVE:
        if not source:
            raise SysError(errno.EINVAL, "no source")
        mounting.move(task, walk(task, AT_FDCWD, source, LOOKUP_FOLLOW), place)
    else:
        if not filesystemtype:
            raise SysError(errno.EINVAL if filesystemtype is None else errno.ENODEV, "no type")
        mounting.new_mount(task, place, filesystemtype, source or b"", flags, options)
    return 0


@syscall("umount2")
def umount2(task: Task, target: Path, flags: UmountFlags) -> int:
    """man 2 umount2."""
    if flags & ~(ms.MNT_FORCE | ms.MNT_DETACH | ms.MNT_EXPIRE | ms.UMOUNT_NOFOLLOW):
        raise SysError(errno.EINVAL, "unknown flag")
    lookup = LOOKUP_MOUNTPOINT if flags & ms.UMOUNT_NOFOLLOW else LOOKUP_MOUNTPOINT | LOOKUP_FOLLOW
    mounting.unmount(task, mounting.topmost(walk(task, AT_FDCWD, target, lookup)), flags)
    return 0


@syscall("pivot_root")
def pivot_root(task: Task, new_root: Path, put_old: Path) -> int:
    """man 2 pivot_root."""
    mounting.check_may_mount(task)
    new = walk(task, AT_FDCWD, new_root, LOOKUP_FOLLOW | LOOKUP_DIRECTORY)
    old = walk(task, AT_FDCWD, put_old, LOOKUP_FOLLOW | LOOKUP_DIRECTORY)
    mounting.pivot_root(task, new, old)
    return 0
