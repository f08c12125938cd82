"""/proc/[pid]/mounts, mountinfo and mountstats (fs/proc_namespace.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.fs.pseudo import TextFile
from devices.poll.abi import POLLERR, POLLIN, POLLPRI, POLLRDNORM
from devices.vfs.inode import SB_MANDLOCK, SB_RDONLY, SB_SYNCHRONOUS
from devices.vfs.mount_abi import FLAG_NAMES, MNT_READONLY
from devices.vfs.pathname import dentry_name, is_reachable, prepend

if TYPE_CHECKING:
    from devices.fs.procfs.who import Who
    from devices.fs.pseudo import Show
    from devices.task.task import Task
    from devices.vfs.fs_struct import FsStruct
    from devices.vfs.mount import Mount, MountNamespace
    from devices.vfs.path import Path

ESCAPED = {ord(c): b"\\%03o" % ord(c) for c in " \t\n\\#"}
SB_DIRSYNC, SB_LAZYTIME = 128, 1 << 25
SB_NAMES = (
    (SB_SYNCHRONOUS, b",sync"), (SB_DIRSYNC, b",dirsync"), (SB_MANDLOCK, b",mand"), (SB_LAZYTIME, b",lazytime"),
)  # fmt: skip


def mangle(name: bytes) -> bytes:
    """Blanks, backslashes and `#` as octal escapes, as getmntent(3) undoes them."""
    return b"".join(ESCAPED.get(c, b"%c" % c) for c in name) if any(c in ESCAPED for c in name) else name


def mount_options(mount: Mount) -> bytes:
    """Those of the mount itself."""
    names = [b"ro" if mount.flags & MNT_READONLY else b"rw"]
    names += [name for bit, (name, _) in FLAG_NAMES.items() if mount.flags & bit and bit != MNT_READONLY]
    return b",".join(names)


def super_options(mount: Mount) -> bytes:
    """Those of the file system."""
    flags = mount.sb.flags
    return b"".join(name for bit, name in SB_NAMES if flags & bit) + mount.sb.options()


def visible(fs: FsStruct) -> list[tuple[Mount, bytes]]:
    """The mounts below the root directory, with where they are."""
    found = []
    for mount in fs.mounts.in_order():
        if mount.parent is None or not is_reachable(mount, mount.root, fs.root):
            continue
        found.append((mount, mangle(prepend(place_of(mount), fs.root)[0])))
    return found


def place_of(mount: Mount) -> Path:
    from devices.vfs.path import Path

    return Path(mount, mount.root)


def device(dev: int) -> bytes:
    return b"%d:%d" % (dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00)


def mounts(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/mounts, in the format of fstab(5)."""
    lines = []
    for mount, place in visible(who.process.fs):
        sb = mount.sb
        head = b"rw" if not (sb.flags & SB_RDONLY or mount.flags & MNT_READONLY) else b"ro"
        options = head + super_options(mount) + mount_options(mount)[2:]
        lines.append(b"%s %s %s %s 0 0\n" % (mangle(mount.source), place, mangle(sb.fstype), options))
    return b"".join(lines)


def mountinfo(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/mountinfo."""
    lines = []
    for mount, place in visible(who.process.fs):
        sb = mount.sb
        assert mount.parent is not None
        lines.append(
            b"%d %d %s %s %s %s%s - %s %s %s%s\n" % (
                mount.id, mount.parent.id, device(sb.dev), mangle(dentry_name(mount.root)), place,
                mount_options(mount), propagation(mount, who.process.fs), mangle(sb.fstype), mangle(mount.source),
                b"ro" if sb.flags & SB_RDONLY else b"rw", super_options(mount),
            )
        )  # fmt: skip
    return b"".join(lines)


def propagation(mount: Mount, fs: FsStruct) -> bytes:
    """The optional fields."""
    text = b""
    if mount.group is not None:
        text += b" shared:%d" % mount.group.id
    if mount.master is not None:
        text += b" master:%d" % mount.master.id
    return text + (b" unbindable" if mount.unbindable else b"")


def mountstats(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/mountstats."""
    return b"".join(
        b"device %s mounted on %s with fstype %s\n" % (mangle(mount.source), place, mangle(mount.sb.fstype))
        for mount, place in visible(who.process.fs)
    )


class MountsFile(TextFile):
    """Open mounts or mountinfo: poll tells when the mounts have changed since the last look (proc(5))."""

    def __init__(self, flags: int, show: Show, namespace: MountNamespace) -> None:
        super().__init__(flags, show)
        self._namespace = namespace
        self._seen = namespace.events

    def poll(self) -> int:
        changed = self._namespace.events != self._seen
        self._seen = self._namespace.events
        return POLLIN | POLLRDNORM | (POLLERR | POLLPRI if changed else 0)
