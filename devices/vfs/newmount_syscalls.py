"""The new mount calls: open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr (fs/namespace.c,
fs/fsopen.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated

from devices.args import Fd, Int, Path, Ptr, Size, StructArg, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs import mount_abi as ms
from devices.vfs import mounting
from devices.vfs.abi import AT_EMPTY_PATH, AT_FDCWD, AT_NO_AUTOMOUNT, AT_RECURSIVE, AT_SYMLINK_NOFOLLOW, O_PATH
from devices.vfs.arguments import NullablePath, place_at
from devices.vfs.files import PathFile
from devices.vfs.fscontext import FsContext, TreeFile, atime_flags, mount_flags_of
from devices.vfs.mount_abi import (
    FsconfigCmd,
    FsopenFlags,
    FspickFlags,
    MountAttrs,
    MoveMountFlags,
    OpenTreeFlags,
)
from devices.vfs.open_syscalls import install
from devices.vfs.path import LOOKUP_EMPTY, LOOKUP_FOLLOW, walk
from devices.vfs.propagation import change_type, set_master

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs import path as paths
    from devices.vfs.files import OpenFile
    from devices.vfs.mount import Mount

PAGE_SIZE = 4096
KEY_MAX = 256
BINARY_MAX = 1 << 20
MountAttr = Annotated[int, StructArg("mount_attr", "<4Q", ("attr_set", "attr_clr", "propagation", "userns_fd"))]
OPEN_TREE_ALL = (
    AT_EMPTY_PATH | AT_NO_AUTOMOUNT | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | ms.OPEN_TREE_CLONE | ms.OPEN_TREE_CLOEXEC
)


# Trees


@syscall("open_tree")
def open_tree(task: Task, dfd: Fd, filename: NullablePath, flags: OpenTreeFlags) -> int:
    """man 2 open_tree."""
    return install(task, tree_file(task, dfd, filename, flags), bool(flags & ms.OPEN_TREE_CLOEXEC))


def tree_file(task: Task, dfd: int, filename: bytes | None, flags: int) -> OpenFile:
    clone = flags & ms.OPEN_TREE_CLONE
    if flags & ~OPEN_TREE_ALL or (flags & AT_RECURSIVE and not clone):
        raise SysError(errno.EINVAL, "flags")
    if clone:
        mounting.check_may_mount(task)
    place = place_at(task, dfd, filename, flags)
    if clone:
        return TreeFile(task.kernel.vfs, mounting.copy_for_bind(task, place, bool(flags & AT_RECURSIVE)))
    file = PathFile(O_PATH)
    file.attach(place)
    return file


@syscall("move_mount")
def move_mount(
    task: Task, from_dfd: Fd, from_pathname: NullablePath, to_dfd: Fd, to_pathname: NullablePath, flags: MoveMountFlags
) -> int:
    """man 2 move_mount."""
    mounting.check_may_mount(task)
    if flags & ~ms.ALL_MOVE_MOUNT_FLAGS or (flags & ms.MOVE_MOUNT_BENEATH and flags & ms.MOVE_MOUNT_SET_GROUP):
        raise SysError(errno.EINVAL, "flags")
    target = _place(task, to_dfd, to_pathname, flags & ms.MOVE_MOUNT_T_SYMLINKS, flags & ms.MOVE_MOUNT_T_EMPTY_PATH)
    source = _place(task, from_dfd, from_pathname, flags & ms.MOVE_MOUNT_F_SYMLINKS, flags & ms.MOVE_MOUNT_F_EMPTY_PATH)
    if flags & ms.MOVE_MOUNT_SET_GROUP:
        set_group(task, source, target)
    else:
        mounting.move(task, source, target, beneath=bool(flags & ms.MOVE_MOUNT_BENEATH))
    return 0


def _place(task: Task, dfd: int, path: bytes | None, follow: int, empty: int) -> paths.Path:
    if path is None and not empty:
        raise SysError(errno.EFAULT)
    return walk(task, dfd, path or b"", (LOOKUP_FOLLOW if follow else 0) | (LOOKUP_EMPTY if empty else 0))


def set_group(task: Task, source: paths.Path, target: paths.Path) -> None:
    """do_set_group(): make a private mount a peer of another, and a slave of the same master."""
    one, other = source.mount, target.mount
    for path in (source, target):
        mounting.check_whole_of_ours(task, path)
    if one.sb is not other.sb or not other.root.is_under(one.root):
        raise SysError(errno.EINVAL, "not of the same file system, or wider")
    if other.group is not None or other.master is not None or (one.group is None and one.master is None):
        raise SysError(errno.EINVAL, "the target must be private, the source must not")
    set_master(other, one.master)
    if one.group is not None:
        one.group.join(other)
    task.process.mounts.changed()


# File systems


@syscall("fsopen")
def fsopen(task: Task, fs_name: Path, flags: FsopenFlags) -> int:
    """man 2 fsopen."""
    from devices.fs.registry import find_filesystem

    mounting.check_may_mount(task)
    if flags & ~ms.FSOPEN_CLOEXEC:
        raise SysError(errno.EINVAL, "flags")
    return install(task, FsContext(task.kernel, find_filesystem(task.kernel, fs_name)), bool(flags))


@syscall("fspick")
def fspick(task: Task, dfd: Fd, path: NullablePath, flags: FspickFlags) -> int:
    """man 2 fspick."""
    mounting.check_may_mount(task)
    if flags & ~15:
        raise SysError(errno.EINVAL, "flags")
    at = AT_SYMLINK_NOFOLLOW if flags & ms.FSPICK_SYMLINK_NOFOLLOW else 0
    place = place_at(task, dfd, path, at | (AT_EMPTY_PATH if flags & ms.FSPICK_EMPTY_PATH else 0))
    if not mounting.is_whole(place):
        raise SysError(errno.EINVAL, "not a mount point")
    return install(task, FsContext(task.kernel, None, place.mount.sb), bool(flags & ms.FSPICK_CLOEXEC))


def context_of(task: Task, fd: int) -> FsContext:
    file = task.files.opened(fd)
    if not isinstance(file, FsContext):
        raise SysError(errno.EINVAL, "no file system context")
    return file


@syscall("fsconfig")
def fsconfig(task: Task, fd: Int, cmd: FsconfigCmd, key: Ptr, value: Ptr, aux: Int) -> int:
    """man 2 fsconfig."""
    if fd < 0:
        raise SysError(errno.EINVAL, "descriptor")
    check_fsconfig(cmd, key, value, aux)
    context = context_of(task, fd)
    name = string(task, key) if key else b""
    if cmd == ms.FSCONFIG_SET_FLAG:
        context.set_flag(name)
    elif cmd == ms.FSCONFIG_SET_STRING:
        context.set_string(name, string(task, value))
    elif cmd in (ms.FSCONFIG_CMD_CREATE, ms.FSCONFIG_CMD_CREATE_EXCL):
        mounting.check_may_mount(task)
        context.create(task)
    elif cmd == ms.FSCONFIG_CMD_RECONFIGURE:
        mounting.check_may_mount(task)
        context.reconfigure(task)
    else:
        context.check_takes_parameters()
        raise SysError(errno.EINVAL, "no file system here takes such a value")
    return 0


def check_fsconfig(cmd: int, key: int, value: int, aux: int) -> None:
    """Which arguments a command has. SysError(EINVAL, EOPNOTSUPP)."""
    if cmd == ms.FSCONFIG_SET_FLAG:
        good = bool(key and not value and not aux)
    elif cmd == ms.FSCONFIG_SET_STRING:
        good = bool(key and value and not aux)
    elif cmd == ms.FSCONFIG_SET_BINARY:
        good = bool(key and value and 0 < aux <= BINARY_MAX)
    elif cmd in (ms.FSCONFIG_SET_PATH, ms.FSCONFIG_SET_PATH_EMPTY):
        good = bool(key and value and (aux == AT_FDCWD or aux >= 0))
    elif cmd == ms.FSCONFIG_SET_FD:
        good = bool(key and not value and aux >= 0)
    elif cmd in (ms.FSCONFIG_CMD_CREATE, ms.FSCONFIG_CMD_CREATE_EXCL, ms.FSCONFIG_CMD_RECONFIGURE):
        good = not (key or value or aux)
    else:
        raise SysError(errno.EOPNOTSUPP, "command")
    if not good:
        raise SysError(errno.EINVAL, "arguments of the command")


def string(task: Task, address: int) -> bytes:
    """strndup_user(): SysError(EINVAL) for one that is too long."""
    try:
        return task.memory.read_cstring(address, KEY_MAX)
    except SysError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SysError(errno.EINVAL, "string too long") from error
        raise


@syscall("fsmount")
def fsmount(task: Task, fs_fd: Fd, flags: FsopenFlags, attr_flags: MountAttrs) -> int:
    """man 2 fsmount."""
    mounting.check_may_mount(task)
    if flags & ~ms.FSMOUNT_CLOEXEC or attr_flags & ~(ms.ALL_MOUNT_ATTRS | ms.ATIME_ATTRS):
        raise SysError(errno.EINVAL, "flags")
    own = mount_flags_of(attr_flags) | atime_flags(attr_flags)
    return install(task, context_of(task, fs_fd).mount(task.kernel.vfs, own), bool(flags))


# Attributes


class Change:
    """What mount_setattr is to do (struct mount_kattr)."""

    def __init__(self, raw: bytes) -> None:
        """build_mount_kattr(): from a struct mount_attr. SysError(EINVAL)."""
        attributes, cleared, propagation, _ = ms.MOUNT_ATTR.unpack_from(raw)
        if propagation & ~ms.PROPAGATION_TYPES or propagation.bit_count() > 1:
            raise SysError(errno.EINVAL, "propagation")
        if (attributes | cleared) & ~(ms.ALL_MOUNT_ATTRS | ms.ATIME_ATTRS):
            raise SysError(errno.EINVAL, "attributes")
        self.set = mount_flags_of(attributes)
        self.clear = mount_flags_of(cleared)
        self.propagation = propagation
        if cleared & ms.ATIME_ATTRS:
            if cleared & ms.ATIME_ATTRS != ms.ATIME_ATTRS:
                raise SysError(errno.EINVAL, "a part of MOUNT_ATTR__ATIME")
            self.clear |= ms.MNT_RELATIME | ms.MNT_NOATIME
            self.set |= atime_flags(attributes)
        elif attributes & ms.ATIME_ATTRS:
            raise SysError(errno.EINVAL, "MOUNT_ATTR__ATIME is not cleared")

    def flags_for(self, mount: Mount) -> int:
        return mount.flags & ~self.clear | self.set

    def apply(self, task: Task, place: paths.Path, recursive: bool) -> None:
        """do_mount_setattr(): all of the mounts or none. SysError(EINVAL, EBUSY)."""
        mount = place.mount
        namespace = mount.namespace
        if not mounting.is_whole(place):
            raise SysError(errno.EINVAL, "not a mount point")
        anonymous = namespace is not None and namespace.anonymous and namespace.root is mount
        if not anonymous and not mounting.is_ours(task, mount):
            raise SysError(errno.EINVAL, "not in this mount namespace")
        mounts = list(mount.tree()) if recursive else [mount]
        for each in mounts:
            becomes_read_only = self.flags_for(each) & ~each.flags & ms.MNT_READONLY
            if becomes_read_only and each.writers:
                raise SysError(errno.EBUSY, "files are open for writing")
        for each in mounts:
            each.flags = self.flags_for(each)
            if self.propagation:
                change_type(task.kernel.vfs, each, self.propagation)
        if namespace is not None:
            namespace.changed()


SETATTR_FLAGS = AT_EMPTY_PATH | AT_RECURSIVE | AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT


def read_attributes(task: Task, address: int, size: int) -> Change | None:
    """The struct mount_attr; None if it asks for nothing. SysError(E2BIG, EINVAL, EPERM, EFAULT)."""
    if size > PAGE_SIZE:
        raise SysError(errno.E2BIG, "size of mount_attr")
    if size < ms.MOUNT_ATTR.size:
        raise SysError(errno.EINVAL, "size of mount_attr")
    mounting.check_may_mount(task)
    raw = task.memory.read(address, size)
    if any(raw[ms.MOUNT_ATTR.size :]):
        raise SysError(errno.E2BIG, "fields of a newer kernel")
    return Change(raw) if any(raw[:24]) else None


@syscall("mount_setattr")
def mount_setattr(task: Task, dfd: Fd, path: NullablePath, flags: OpenTreeFlags, uattr: MountAttr, usize: Size) -> int:
    """man 2 mount_setattr, but for mapped ids (there are no user namespaces to map to)."""
    if flags & ~SETATTR_FLAGS:
        raise SysError(errno.EINVAL, "flags")
    change = read_attributes(task, uattr, usize)
    if change is not None:
        change.apply(task, place_at(task, dfd, path, flags), bool(flags & AT_RECURSIVE))
    return 0


@syscall("open_tree_attr")
def open_tree_attr(
    task: Task, dfd: Fd, filename: NullablePath, flags: OpenTreeFlags, uattr: MountAttr, usize: UInt
) -> int:
    """man 2 open_tree_attr: open_tree, and mount_setattr on what it has opened."""
    if not uattr and usize:
        raise SysError(errno.EINVAL, "no mount_attr")
    file = tree_file(task, dfd, filename, flags)
    try:
        change = read_attributes(task, uattr, usize) if uattr else None
        if change is not None and file.path is not None:
            change.apply(task, file.path, bool(flags & AT_RECURSIVE))
    except SysError:
        file.hold().put_locked()
        raise
    return install(task, file, bool(flags & ms.OPEN_TREE_CLOEXEC))
