"""One tmpfs or ramfs: how much it may hold, its mount options, what statfs shows."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.fs.tmpfs.inode import Directory
from devices.vfs.inode import StatFs, SuperBlock
from devices.vfs.mount import FileSystemType
from vmm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.path import Dentry

TMPFS_MAGIC, RAMFS_MAGIC = 0x01021994, 0x858458F6
BOGO_INODE_SIZE = 1024
"""What an inode counts for against nr_inodes; extended attributes count in bytes."""
BOGO_DIRENT_SIZE = 20
"""What an entry adds to the size of its directory."""
UNITS = {b"": 0, b"k": 10, b"m": 20, b"g": 30, b"t": 40, b"p": 50, b"e": 60}
NUMBER = re.compile(rb"(0[xX][0-9a-fA-F]+|\d+)([kmgtpe]?)(%?)", re.IGNORECASE)
IGNORED = {
    b"huge": (b"never", b"always", b"within_size", b"advise", b"deny", b"force"),
    b"mpol": None,
    b"noswap": (b"",),
    b"inode32": (b"",),
    b"inode64": (b"",),
}
"""Options that ask for nothing here, and the values that Linux takes."""


class Options(NamedTuple):
    """Mount options; None where one was not given."""

    blocks: int | None = None
    """0: no limit."""
    inodes: int | None = None
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


def parse_size(value: bytes, total: int) -> int:
    """memparse(), and a percentage of `total` bytes. SysError(EINVAL)."""
    match = NUMBER.fullmatch(value)
    if match is None:
        raise SysError(errno.EINVAL, "a size")
    number = int(match[1], 0 if match[1][:2].lower() == b"0x" else 10) << UNITS[match[2].lower()]
    return number * total // 100 if match[3] else number


def parse_options(data: dict[bytes, bytes], total: int) -> Options:
    """shmem_parse_one(): SysError(EINVAL) for what is unknown. `total`: bytes of all memory."""
    options = Options()
    for name, value in data.items():
        if name == b"size":
            options = options._replace(blocks=-(-parse_size(value, total) // PAGE_SIZE))
        elif name == b"nr_blocks":
            options = options._replace(blocks=parse_size(value, 0))
        elif name == b"nr_inodes":
            options = options._replace(inodes=parse_size(value, 0))
        elif name == b"mode":
            options = options._replace(mode=number(value, 8) & 0o7777)
        elif name == b"uid":
            options = options._replace(uid=number(value, 10))
        elif name == b"gid":
            options = options._replace(gid=number(value, 10))
        elif name not in IGNORED or (IGNORED[name] and value not in (IGNORED[name] or ())):
            raise SysError(errno.EINVAL, "unknown option")
    return options


def number(value: bytes, base: int) -> int:
    try:
        found = int(value, base)
    except ValueError:
        found = -1
    if not 0 <= found < 0xFFFF_FFFF or not value.isalnum():
        raise SysError(errno.EINVAL, "a number")
    return found


def split_options(data: bytes) -> dict[bytes, bytes]:
    """Options as mount(2) has them: separated by commas, each with or without a value."""
    pairs = (item.partition(b"=") for item in data.split(b",") if item)
    return {name: value for name, _, value in pairs}


class Tmpfs(SuperBlock):
    """A tmpfs. `internal`: the one of memfds, without limits."""

    fstype = b"tmpfs"
    magic = TMPFS_MAGIC
    entry_size = BOGO_DIRENT_SIZE
    has_xattrs = True
    sparse = True
    """Its files show holes, take fallocate, count in blocks and can be sealed."""

    def __init__(
        self,
        kernel: Kernel,
        source: bytes = b"tmpfs",
        flags: int = 0,
        options: Options | None = None,
        *,
        internal: bool = False,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__(kernel.new_dev_locked(), source, flags)
        options = options or Options()
        self.kernel = kernel
        self.internal = internal
        self.default_blocks = self.default_inodes = 0 if internal or not self.sparse else kernel.memory.total // 2
        self.max_blocks = self.default_blocks if options.blocks is None else options.blocks
        """Pages that it may hold; 0: no limit."""
        self.max_inodes = self.default_inodes if options.inodes is None else options.inodes
        self.used_blocks = 0
        self.used_space = 0
        """Bytes that inodes and extended attributes count for, at most max_inodes * BOGO_INODE_SIZE."""
        self.last_ino = 0
        self.uid = owner[0] if options.uid is None else options.uid
        self.gid = owner[1] if options.gid is None else options.gid
        self.mode = self.default_mode if options.mode is None else options.mode
        self._top = Directory(self, self.mode, self.uid, self.gid)
        self.root = self._top

    default_mode = 0o1777

    def now(self) -> int:
        return self.kernel.clock.realtime_ns()

    def new_ino(self) -> int:
        self.last_ino += 1
        return self.last_ino

    # Limits

    def charge_space(self, size: int) -> None:
        """`size` bytes more of inodes or attributes. SysError(ENOSPC)."""
        if self.max_inodes and self.used_space + size > self.max_inodes * BOGO_INODE_SIZE:
            raise SysError(errno.ENOSPC, "nr_inodes")
        self.used_space += size

    @property
    def room(self) -> int:
        """Pages that may still come."""
        return self.max_blocks - self.used_blocks if self.max_blocks else 1 << 62

    def charge_blocks(self, count: int) -> None:
        """`count` pages more. SysError(ENOSPC)."""
        if count > self.room:
            raise SysError(errno.ENOSPC, "size")
        self.used_blocks += count

    # What the VFS asks

    def statfs(self) -> StatFs:
        if not self.sparse:
            return StatFs(self.magic, PAGE_SIZE, 0, 0, 0, 0, 0, 0)
        free = max(self.room, 0) if self.max_blocks else 0
        inodes_free = self.max_inodes - self.used_space // BOGO_INODE_SIZE if self.max_inodes else 0
        return StatFs(self.magic, PAGE_SIZE, self.max_blocks, free, free, self.max_inodes, inodes_free, self.dev)

    def options(self) -> bytes:
        shown = b""
        if self.max_blocks != self.default_blocks:
            shown += b",size=%dk" % (self.max_blocks * (PAGE_SIZE // 1024))
        if self.max_inodes != self.default_inodes:
            shown += b",nr_inodes=%d" % self.max_inodes
        if self.mode != self.default_mode:
            shown += b",mode=%03o" % self.mode
        if self.uid:
            shown += b",uid=%d" % self.uid
        if self.gid:
            shown += b",gid=%d" % self.gid
        return shown

    def remount(self, flags: int, data: dict[bytes, bytes]) -> None:
        """shmem_reconfigure(): limits can be changed, but not made below what is used, nor given to a file system that
        had none. SysError(EINVAL)."""
        options = parse_options(data, self.kernel.memory.total * PAGE_SIZE)
        if self.sparse:
            blocks, inodes = options.blocks, options.inodes
            if blocks and (not self.max_blocks or blocks < self.used_blocks):
                raise SysError(errno.EINVAL, "size")
            if inodes and (not self.max_inodes or inodes * BOGO_INODE_SIZE < self.used_space):
                raise SysError(errno.EINVAL, "nr_inodes")
            self.max_blocks = self.max_blocks if blocks is None else blocks
            self.max_inodes = self.max_inodes if inodes is None else inodes
        self.flags = flags

    def name_of(self, dentry: Dentry) -> bytes | None:
        return b"/%s (deleted)" % dentry.name if self.internal else None

    def shutdown(self) -> None:
        """Every file goes, with or without a name."""
        self._top.empty()


class Ramfs(Tmpfs):
    """A ramfs: a tmpfs without limits, attributes and holes."""

    fstype = b"ramfs"
    magic = RAMFS_MAGIC
    entry_size = 0
    has_xattrs = False
    sparse = False
    default_mode = 0o755


def _owner(task: Task | None) -> tuple[int, int]:
    return (task.credentials.fsuid, task.credentials.fsgid) if task is not None else (0, 0)


def mount_tmpfs(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> SuperBlock:
    """mount -t tmpfs. SysError(EINVAL)."""
    options = parse_options(split_options(data), kernel.memory.total * PAGE_SIZE)
    return Tmpfs(kernel, source, flags, options, owner=_owner(task))


def mount_ramfs(kernel: Kernel, task: Task | None, source: bytes, flags: int, data: bytes) -> SuperBlock:
    """mount -t ramfs: only `mode` is looked at, as ramfs_parse_param() does."""
    value = split_options(data).get(b"mode")
    options = Options(mode=None if value is None else number(value, 8) & 0o7777)
    return Ramfs(kernel, source, flags, options, owner=_owner(task))


def make_tmpfs(kernel: Kernel, source: bytes = b"tmpfs", *, mode: int = 0o1777, size: int = 0) -> Tmpfs:
    """A tmpfs for the machine's own use: `mode` is its root's, `size` its limit in bytes (0: half of all memory)."""
    return Tmpfs(kernel, source, 0, Options(mode=mode, blocks=-(-size // PAGE_SIZE) if size else None))


TMPFS = FileSystemType(b"tmpfs", mount_tmpfs)
RAMFS = FileSystemType(b"ramfs", mount_ramfs)
FILE_SYSTEMS = (TMPFS, RAMFS)
