"""Extended attributes: man 2 getxattr and its family (fs/xattr.c). Where they are kept, a file system knows."""

from __future__ import annotations

import errno
import struct
from stat import S_IFDIR, S_IFMT, S_IFREG, S_ISVTX
from typing import TYPE_CHECKING, Annotated

from devices.args import Fd, Path, Ptr, Size, StringArg, StructArg
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs.abi import (
    AT_EMPTY_PATH,
    AT_FDCWD,
    AT_SYMLINK_NOFOLLOW,
    MAY_READ,
    MAY_WRITE,
    XATTR_CREATE,
    XATTR_LIST_MAX,
    XATTR_NAME_MAX,
    XATTR_REPLACE,
    XATTR_SIZE_MAX,
    AtFlags,
    XattrFlags,
)
from devices.vfs.arguments import NullablePath, place_at
from devices.vfs.events import IN_ATTRIB, notify
from devices.vfs.path import LOOKUP_FOLLOW, walk
from devices.vfs.permissions import CAP_SETFCAP, CAP_SYS_ADMIN, inode_permission, owner_or_capable, want_write

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs import path as paths
    from devices.vfs.inode import Inode

PREFIXES = (b"user.", b"trusted.", b"security.", b"system.")
CAPABILITY = b"security.capability"
CAPABILITY_SIZES = (12, 20, 24)
XATTR_ARGS = struct.Struct("<QII")
"""struct xattr_args: value, size, flags."""
PAGE_SIZE = 4096


class NameArg(StringArg):
    """An attribute's name, which the handler reads itself: one that is too long is ERANGE."""

    def __init__(self) -> None:
        super().__init__()
        self.code = "{r}"


Name = Annotated[int, NameArg()]
XattrArgs = Annotated[int, StructArg("xattr_args", "<QII", ("value", "size", "flags"))]


def name_of(task: Task, address: int) -> bytes:
    """import_xattr_name(): SysError(ERANGE) for one that is empty or too long."""
    try:
        name = task.memory.read_cstring(address, XATTR_NAME_MAX + 1)
    except SysError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise SysError(errno.ERANGE, "name") from error
        raise
    if not name:
        raise SysError(errno.ERANGE, "name")
    return name


def check_access(task: Task, inode: Inode, name: bytes, mask: int) -> None:
    """xattr_permission(): SysError(EPERM, ENODATA, EACCES), then EOPNOTSUPP or EINVAL for what is no name."""
    refused = errno.EPERM if mask == MAY_WRITE else errno.ENODATA
    kind = S_IFMT(inode.mode)
    if name.startswith(b"trusted."):
        if not task.credentials.capable(CAP_SYS_ADMIN):
            raise SysError(refused, "trusted attributes need CAP_SYS_ADMIN")
    elif not name.startswith((b"security.", b"system.")):
        if name.startswith(b"user."):
            if kind not in (S_IFREG, S_IFDIR):
                raise SysError(refused, "only files and directories have user attributes")
            sticky = kind == S_IFDIR and inode.mode & S_ISVTX and mask == MAY_WRITE
            if sticky and not owner_or_capable(task, inode):
                raise SysError(errno.EPERM, "another's sticky directory")
        inode_permission(task, inode, mask)
    if name in PREFIXES:
        raise SysError(errno.EINVAL, "nothing behind the prefix")
    if not name.startswith(PREFIXES):
        raise SysError(errno.EOPNOTSUPP, "no such class of attributes")


def check_security(task: Task, name: bytes, value: bytes | None) -> None:
    """cap_inode_setxattr(), cap_inode_removexattr()."""
    if not name.startswith(b"security."):
        return
    if name == CAPABILITY:
        if value is not None and len(value) not in CAPABILITY_SIZES:
            raise SysError(errno.EINVAL, "no file capabilities")
        if not task.credentials.capable(CAP_SETFCAP):
            raise SysError(errno.EPERM, "CAP_SETFCAP")
    elif not task.credentials.capable(CAP_SYS_ADMIN):
        raise SysError(errno.EPERM, "CAP_SYS_ADMIN")


class Setting:
    """A value to be set, read from the program's memory before anything else happens (setxattr_copy())."""

    def __init__(self, task: Task, name: int, value: int, size: int, flags: int) -> None:
        if flags & ~(XATTR_CREATE | XATTR_REPLACE):
            raise SysError(errno.EINVAL, "unknown flag")
        self.name = name_of(task, name)
        if size > XATTR_SIZE_MAX:
            raise SysError(errno.E2BIG, "value")
        self.value = task.memory.read(value, size) if size else b""
        self.flags = flags

    def apply(self, task: Task, place: paths.Path) -> int:
        inode = place.inode
        want_write(place.mount)
        inode.refresh()
        check_access(task, inode, self.name, MAY_WRITE)
        check_security(task, self.name, self.value)
        inode.setxattr(task, self.name, self.value, self.flags)
        notify(task, IN_ATTRIB, place)
        return 0


def get(task: Task, place: paths.Path, name: bytes, value: int, size: int) -> int:
    """do_getxattr(): the length; 0 bytes of room only ask for it. SysError(ERANGE, ENODATA)."""
    inode = place.inode
    inode.refresh()
    check_access(task, inode, name, MAY_READ)
    found = inode.getxattr(task, name)
    if size:
        if len(found) > size:
            raise SysError(errno.ERANGE)
        task.memory.write(value, found)
    return len(found)


def list_names(task: Task, place: paths.Path, address: int, size: int) -> int:
    """listxattr(): the names with a NUL behind each; those of trusted.* only for CAP_SYS_ADMIN."""
    privileged = task.credentials.capable(CAP_SYS_ADMIN)
    names = [n for n in place.inode.listxattr(task) if privileged or not n.startswith(b"trusted.")]
    data = b"".join(name + b"\0" for name in names)
    if len(data) > XATTR_LIST_MAX:
        raise SysError(errno.E2BIG)
    if size:
        if len(data) > size:
            raise SysError(errno.ERANGE)
        task.memory.write(address, data)
    return len(data)


def remove(task: Task, place: paths.Path, name: bytes) -> int:
    inode = place.inode
    want_write(place.mount)
    inode.refresh()
    check_access(task, inode, name, MAY_WRITE)
    check_security(task, name, None)
    inode.removexattr(task, name)
    notify(task, IN_ATTRIB, place)
    return 0


def place_of(task: Task, fd: int) -> paths.Path:
    """Where a descriptor was opened; EOPNOTSUPP for a file that is in no file system."""
    place = task.files.opened(fd).path
    if place is None:
        raise SysError(errno.EOPNOTSUPP, "in no file system")
    return place


def followed(task: Task, path: bytes) -> paths.Path:
    return walk(task, AT_FDCWD, path, LOOKUP_FOLLOW)


def unfollowed(task: Task, path: bytes) -> paths.Path:
    return walk(task, AT_FDCWD, path, 0)


@syscall("setxattr")
def setxattr(task: Task, path: Path, name: Name, value: Ptr, size: Size, flags: XattrFlags) -> int:
    setting = Setting(task, name, value, size, flags)
    return setting.apply(task, followed(task, path))


@syscall("lsetxattr")
def lsetxattr(task: Task, path: Path, name: Name, value: Ptr, size: Size, flags: XattrFlags) -> int:
    setting = Setting(task, name, value, size, flags)
    return setting.apply(task, unfollowed(task, path))


@syscall("fsetxattr")
def fsetxattr(task: Task, fd: Fd, name: Name, value: Ptr, size: Size, flags: XattrFlags) -> int:
    setting = Setting(task, name, value, size, flags)
    return setting.apply(task, place_of(task, fd))


@syscall("getxattr")
def getxattr(task: Task, path: Path, name: Name, value: Ptr, size: Size) -> int:
    wanted = name_of(task, name)
    return get(task, followed(task, path), wanted, value, size)


@syscall("lgetxattr")
def lgetxattr(task: Task, path: Path, name: Name, value: Ptr, size: Size) -> int:
    wanted = name_of(task, name)
    return get(task, unfollowed(task, path), wanted, value, size)


@syscall("fgetxattr")
def fgetxattr(task: Task, fd: Fd, name: Name, value: Ptr, size: Size) -> int:
    wanted = name_of(task, name)
    return get(task, place_of(task, fd), wanted, value, size)


@syscall("listxattr")
def listxattr(task: Task, path: Path, list: Ptr, size: Size) -> int:
    return list_names(task, followed(task, path), list, size)


@syscall("llistxattr")
def llistxattr(task: Task, path: Path, list: Ptr, size: Size) -> int:
    return list_names(task, unfollowed(task, path), list, size)


@syscall("flistxattr")
def flistxattr(task: Task, fd: Fd, list: Ptr, size: Size) -> int:
    return list_names(task, place_of(task, fd), list, size)


@syscall("removexattr")
def removexattr(task: Task, path: Path, name: Name) -> int:
    wanted = name_of(task, name)
    return remove(task, followed(task, path), wanted)


@syscall("lremovexattr")
def lremovexattr(task: Task, path: Path, name: Name) -> int:
    wanted = name_of(task, name)
    return remove(task, unfollowed(task, path), wanted)


@syscall("fremovexattr")
def fremovexattr(task: Task, fd: Fd, name: Name) -> int:
    wanted = name_of(task, name)
    return remove(task, place_of(task, fd), wanted)


# The *at calls


def check_at(flags: int) -> None:
    if flags & ~(AT_SYMLINK_NOFOLLOW | AT_EMPTY_PATH):
        raise SysError(errno.EINVAL, "unknown flag")


def arguments(task: Task, address: int, size: int) -> tuple[int, int, int]:
    """The struct xattr_args: (value, size, flags). SysError(EINVAL, E2BIG, EFAULT)."""
    if size < XATTR_ARGS.size:
        raise SysError(errno.EINVAL, "size of xattr_args")
    if size > PAGE_SIZE:
        raise SysError(errno.E2BIG, "size of xattr_args")
    raw = task.memory.read(address, size)
    if any(raw[XATTR_ARGS.size :]):
        raise SysError(errno.E2BIG, "fields of a newer kernel")
    value, length, flags = XATTR_ARGS.unpack_from(raw)
    return value, length, flags


@syscall("setxattrat")
def setxattrat(
    task: Task, dfd: Fd, path: NullablePath, at_flags: AtFlags, name: Name, uargs: XattrArgs, usize: Size
) -> int:
    """man 2 setxattrat."""
    value, size, flags = arguments(task, uargs, usize)
    check_at(at_flags)
    setting = Setting(task, name, value, size, flags)
    return setting.apply(task, place_at(task, dfd, path, at_flags))


@syscall("getxattrat")
def getxattrat(
    task: Task, dfd: Fd, path: NullablePath, at_flags: AtFlags, name: Name, uargs: XattrArgs, usize: Size
) -> int:
    value, size, flags = arguments(task, uargs, usize)
    if flags:
        raise SysError(errno.EINVAL, "flags")
    check_at(at_flags)
    wanted = name_of(task, name)
    return get(task, place_at(task, dfd, path, at_flags), wanted, value, size)


@syscall("listxattrat")
def listxattrat(task: Task, dfd: Fd, path: NullablePath, at_flags: AtFlags, list: Ptr, size: Size) -> int:
    check_at(at_flags)
    return list_names(task, place_at(task, dfd, path, at_flags), list, size)


@syscall("removexattrat")
def removexattrat(task: Task, dfd: Fd, path: NullablePath, at_flags: AtFlags, name: Name) -> int:
    check_at(at_flags)
    wanted = name_of(task, name)
    return remove(task, place_at(task, dfd, path, at_flags), wanted)
