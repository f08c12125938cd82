"""statmount and listmount: mounts by their unique ids (fs/namespace.c)."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import FlagSet, Ptr, Size, StructArg, UInt
from devices.bus import syscall
from devices.errors import SysError
from devices.vfs import mount_abi as ms
from devices.vfs.path import Path
from devices.vfs.pathname import dentry_name, is_reachable, prepend
from devices.vfs.permissions import CAP_SYS_ADMIN
from devices.vfs.stat_syscalls import device_halves
from devices.vfs.state import FIRST_UNIQUE_MOUNT

if TYPE_CHECKING:
    from devices.task.task import Task
    from devices.vfs.mount import Mount

STATMOUNT = struct.Struct("<IIQ IIQII QQII QQQQQ II QII IIII Q 360x".replace(" ", ""))
"""struct statmount, 512 bytes, before its strings."""
SUPPORTED = 0x13FF
"""STATMOUNT_* that are served: all but lists of options and id maps."""
STATMOUNT_SUPPORTED_MASK = 0x1000
MOST_IDS = 1_000_000
PAGE_SIZE = 4096
Request = Annotated[int, StructArg("mnt_id_req", "<IIQQ", ("size", "mnt_ns_fd", "mnt_id", "param"))]
ListFlags = Annotated[int, FlagSet({"LISTMOUNT_REVERSE": 1})]


def read_request(task: Task, address: int) -> tuple[int, int]:
    """copy_mnt_id_req(): (mnt_id, param). SysError(EINVAL, E2BIG, EFAULT)."""
    size = task.memory.read_u32(address)
    if size > PAGE_SIZE:
        raise SysError(errno.E2BIG, "size")
    if size < ms.MNT_ID_REQ_SIZE_VER0:
        raise SysError(errno.EINVAL, "size")
    raw = task.memory.read(address, size).ljust(ms.MNT_ID_REQ.size, b"\0")
    if any(raw[ms.MNT_ID_REQ.size :]):
        raise SysError(errno.E2BIG, "fields of a newer kernel")
    _, spare, mount_id, param, namespace_id = ms.MNT_ID_REQ.unpack_from(raw)
    if spare:
        raise SysError(errno.EINVAL, "spare")
    if mount_id <= FIRST_UNIQUE_MOUNT:
        raise SysError(errno.EINVAL, "no unique mount id")
    if namespace_id and namespace_id != task.process.mounts.id:
        raise SysError(errno.ENOENT, "no such mount namespace")
    return mount_id, param


def find(task: Task, unique_id: int) -> Mount:
    mount = task.process.mounts.mounts.get(unique_id)
    if mount is None:
        raise SysError(errno.ENOENT, "no such mount")
    if not is_reachable(mount, mount.root, task.process.fs.root) and not task.credentials.capable(CAP_SYS_ADMIN):
        raise SysError(errno.EPERM, "not below the root")
    return mount


@syscall("listmount")
def listmount(task: Task, req: Request, mnt_ids: Ptr, nr_mnt_ids: Size, flags: ListFlags) -> int:
    """man 2 listmount: the ids of the mounts below one, oldest first, from behind `param` on."""
    if flags & ~ms.LISTMOUNT_REVERSE:
        raise SysError(errno.EINVAL, "flags")
    if nr_mnt_ids > MOST_IDS:
        raise SysError(errno.EOVERFLOW, "too many")
    mount_id, last = read_request(task, req)
    if last and last <= FIRST_UNIQUE_MOUNT:
        raise SysError(errno.EINVAL, "no unique mount id")
    if mount_id == ms.LSMT_ROOT:
        top = task.process.fs.root
    else:
        mount = find(task, mount_id)
        top = Path(mount, mount.root)
    mounts = task.process.mounts.in_order()
    if flags & ms.LISTMOUNT_REVERSE:
        mounts.reverse()
    ids = []
    for mount in mounts:
        if last and (mount.unique_id >= last if flags & ms.LISTMOUNT_REVERSE else mount.unique_id <= last):
            continue
        if mount.unique_id != mount_id and is_reachable(mount, mount.root, top):
            ids.append(mount.unique_id)
    found = ids[:nr_mnt_ids]
    task.memory.write(mnt_ids, struct.pack(f"<{len(found)}Q", *found))
    return len(found)


@syscall("statmount")
def statmount(task: Task, req: Request, buf: Ptr, bufsize: Size, flags: UInt) -> int:
    """man 2 statmount."""
    if flags:
        raise SysError(errno.EINVAL, "flags")
    mount_id, mask = read_request(task, req)
    data = describe(task, find(task, mount_id), mask)
    if len(data) > bufsize > STATMOUNT.size and mask & STRINGS:
        raise SysError(errno.EOVERFLOW, "no room for the strings")
    task.memory.write(buf, data[:bufsize])
    return 0


STRINGS = (
    ms.STATMOUNT_MNT_ROOT
    | ms.STATMOUNT_MNT_POINT
    | ms.STATMOUNT_FS_TYPE
    | ms.STATMOUNT_MNT_OPTS
    | ms.STATMOUNT_SB_SOURCE
)


class Strings:
    """The strings behind the struct; offset 0 holds an empty one."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def add(self, wanted: int, text: bytes) -> int:
        if not wanted:
            return 0
        at = len(self.data)
        self.data += text + b"\0"
        return at


def describe(task: Task, mount: Mount, mask: int) -> bytes:
    """A struct statmount with its strings; fields that were not asked for are zero."""
    strings = Strings()
    sb = mount.sb
    parent = mount.parent or mount
    place = prepend(Path(mount, mount.root), task.process.fs.root)[0]
    basic, own, flow = mask & ms.STATMOUNT_SB_BASIC, mask & ms.STATMOUNT_MNT_BASIC, mask & ms.STATMOUNT_PROPAGATE_FROM
    options = strings.add(mask & ms.STATMOUNT_MNT_OPTS, sb.options()[1:])
    fstype = strings.add(mask & ms.STATMOUNT_FS_TYPE, sb.fstype)
    root = strings.add(mask & ms.STATMOUNT_MNT_ROOT, dentry_name(mount.root))
    point = strings.add(mask & ms.STATMOUNT_MNT_POINT, place)
    source = strings.add(mask & ms.STATMOUNT_SB_SOURCE, mount.source)
    major, minor = device_halves(sb.dev) if basic else (0, 0)
    known = mask & SUPPORTED & ~ms.STATMOUNT_FS_SUBTYPE
    if not sb.options():
        known &= ~ms.STATMOUNT_MNT_OPTS
    text = bytes(strings.data) if len(strings.data) > 1 else b""
    return (
        STATMOUNT.pack(
            STATMOUNT.size + len(text), options, known,
            major, minor, sb.magic if basic else 0, sb.flags & ms.SUPERBLOCK_FLAGS if basic else 0, fstype,
            *((mount.unique_id, parent.unique_id, mount.id, parent.id, attributes(mount)) if own else (0,) * 5),
            propagation(mount) if own else 0,
            mount.group.id if own and mount.group is not None else 0,
            mount.master.id if own and mount.master is not None else 0,
            dominating(task, mount) if flow else 0,
            root, point, task.process.mounts.id if mask & ms.STATMOUNT_MNT_NS_ID else 0, 0, source,
            0, 0, 0, 0, SUPPORTED if mask & STATMOUNT_SUPPORTED_MASK else 0,
        )
        + text
    )  # fmt: skip


def attributes(mount: Mount) -> int:
    """MOUNT_ATTR_* of a mount."""
    found = sum(attribute for flag, (_, attribute) in ms.FLAG_NAMES.items() if mount.flags & flag)
    strict = not mount.flags & (ms.MNT_NOATIME | ms.MNT_RELATIME)
    return found | (ms.MOUNT_ATTR_STRICTATIME if strict else 0)


def propagation(mount: Mount) -> int:
    """MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE."""
    found = (ms.MS_SHARED if mount.group is not None else 0) | (ms.MS_SLAVE if mount.master is not None else 0)
    return found | ms.MS_UNBINDABLE if mount.unbindable else found or ms.MS_PRIVATE


def dominating(task: Task, mount: Mount) -> int:
    """get_dominating_id(): the nearest peer group above the mount that has a member below the root."""
    root = task.process.fs.root
    master = mount.master
    while master is not None:
        for member in master.members:
            if member.namespace is mount.namespace and is_reachable(member, member.root, root):
                return master.id
        master = master.members[0].master if master.members else None
    return 0
