"""Constants and structures of <asm/fcntl.h>, <asm/stat.h>, <linux/stat.h>, <linux/openat2.h>, <linux/uio.h>.

Names and values are the kernel's. What belongs to mounting is in mount_abi.py.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet

if TYPE_CHECKING:
    import os

    from devices.vfs.inode import Inode

O_ACCMODE = 0o3
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC = 0o100, 0o200, 0o400, 0o1000
O_APPEND, O_NONBLOCK, O_DSYNC, O_ASYNC = 0o2000, 0o4000, 0o10000, 0o20000
O_DIRECT, O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW = 0o40000, 0o100000, 0o200000, 0o400000
O_NOATIME, O_CLOEXEC, O_PATH, O_TMPFILE = 0o1000000, 0o2000000, 0o10000000, 0o20200000
O_SYNC_BIT, O_TMPFILE_BIT = 0o4000000, 0o20000000
"""__O_SYNC and __O_TMPFILE."""
O_SYNC = O_SYNC_BIT | O_DSYNC
O_PATH_FLAGS = O_DIRECTORY | O_NOFOLLOW | O_PATH | O_CLOEXEC
VALID_OPEN_FLAGS = 0o37777703
"""All of the above."""
OPEN_ONLY = O_CREAT | O_EXCL | O_NOCTTY | O_TRUNC | O_CLOEXEC
"""Flags that act on the call and do not stay with the open file description."""

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_REMOVEDIR, AT_SYMLINK_FOLLOW = 0x100, 0x200, 0x200, 0x400
AT_NO_AUTOMOUNT, AT_EMPTY_PATH = 0x800, 0x1000
AT_STATX_FORCE_SYNC, AT_STATX_DONT_SYNC, AT_STATX_SYNC_TYPE = 0x2000, 0x4000, 0x6000
AT_RECURSIVE = 0x8000
AT_HANDLE_FID, AT_HANDLE_MNT_ID_UNIQUE, AT_HANDLE_CONNECTABLE = 0x200, 1, 2

RESOLVE_NO_XDEV, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, RESOLVE_BENEATH = 1, 2, 4, 8
RESOLVE_IN_ROOT, RESOLVE_CACHED = 16, 32
RESOLVE_ALL = 63

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL, F_GETLK, F_SETLK, F_SETLKW = range(8)
F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG = 8, 9, 10, 11
F_SETOWN_EX, F_GETOWN_EX, F_GETOWNER_UIDS = 15, 16, 17
F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
F_SETLEASE, F_GETLEASE, F_NOTIFY, F_DUPFD_QUERY, F_CREATED_QUERY = 1024, 1025, 1026, 1027, 1028
F_CANCELLK, F_DUPFD_CLOEXEC = 1029, 1030
F_SETPIPE_SZ, F_GETPIPE_SZ, F_ADD_SEALS, F_GET_SEALS = 1031, 1032, 1033, 1034
F_GET_RW_HINT, F_SET_RW_HINT, F_GET_FILE_RW_HINT, F_SET_FILE_RW_HINT = 1035, 1036, 1037, 1038
F_RDLCK, F_WRLCK, F_UNLCK = 0, 1, 2
F_OWNER_TID, F_OWNER_PID, F_OWNER_PGRP = 0, 1, 2
LOCK_SH, LOCK_EX, LOCK_NB, LOCK_UN, LOCK_MAND = 1, 2, 4, 8, 32
FD_CLOEXEC = 1
SETFL_MASK = O_APPEND | O_NONBLOCK | O_DIRECT | O_NOATIME
"""What F_SETFL changes of any file; O_ASYNC only of files that send SIGIO."""

SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE = range(5)

MAX_RW_COUNT = 0x7FFF_F000
"""Bytes that one read or write transfers at most (INT_MAX & PAGE_MASK)."""
MAX_FILE_SIZE = (1 << 63) - 1
"""MAX_LFS_FILESIZE."""
UIO_MAXIOV = 1024
NAME_MAX, PATH_MAX = 255, 4096

RWF_HIPRI, RWF_DSYNC, RWF_SYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND, RWF_ATOMIC, RWF_DONTCACHE = (
    1 << i for i in range(8)
)

FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_NO_HIDE_STALE, FALLOC_FL_COLLAPSE_RANGE = 1, 2, 4, 8
FALLOC_FL_ZERO_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE, FALLOC_FL_WRITE_ZEROES = 16, 32, 64, 128

RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4
XATTR_CREATE, XATTR_REPLACE = 1, 2
XATTR_NAME_MAX, XATTR_SIZE_MAX, XATTR_LIST_MAX = 255, 65536, 65536
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2

MAY_EXEC, MAY_WRITE, MAY_READ = 1, 2, 4

FIONREAD, FIONBIO, FIOASYNC, FIOQSIZE = 0x541B, 0x5421, 0x5452, 0x5460
FIONCLEX, FIOCLEX = 0x5450, 0x5451
FIBMAP, FIGETBSZ = 1, 2

OPEN_NAMES = {
    "O_CREAT": O_CREAT, "O_EXCL": O_EXCL, "O_NOCTTY": O_NOCTTY, "O_TRUNC": O_TRUNC, "O_APPEND": O_APPEND,
    "O_NONBLOCK": O_NONBLOCK, "O_SYNC": O_SYNC, "O_DSYNC": O_DSYNC, "FASYNC": O_ASYNC, "O_DIRECT": O_DIRECT,
    "O_LARGEFILE": O_LARGEFILE, "O_TMPFILE": O_TMPFILE, "O_DIRECTORY": O_DIRECTORY, "O_NOFOLLOW": O_NOFOLLOW,
    "O_NOATIME": O_NOATIME, "O_CLOEXEC": O_CLOEXEC, "O_PATH": O_PATH,
}  # fmt: skip
OpenFlags = Annotated[
    int,
    FlagSet(OPEN_NAMES, enum=O_ACCMODE, values={"O_RDONLY": O_RDONLY, "O_WRONLY": O_WRONLY, "O_RDWR": O_RDWR}),
]


def _named(*names: str) -> dict[str, int]:
    return {name: globals()[name] for name in names}


AtFlags = Annotated[
    int, FlagSet(_named("AT_SYMLINK_NOFOLLOW", "AT_NO_AUTOMOUNT", "AT_EMPTY_PATH", "AT_SYMLINK_FOLLOW"))
]
AccessFlags = Annotated[int, FlagSet(_named("AT_SYMLINK_NOFOLLOW", "AT_EACCESS", "AT_EMPTY_PATH"))]
UnlinkFlags = Annotated[int, FlagSet(_named("AT_REMOVEDIR"))]
StatxFlags = Annotated[
    int,
    FlagSet(
        _named(
            "AT_SYMLINK_NOFOLLOW", "AT_NO_AUTOMOUNT", "AT_EMPTY_PATH", "AT_STATX_FORCE_SYNC", "AT_STATX_DONT_SYNC"
        )
    ),
]  # fmt: skip
RenameFlags = Annotated[int, FlagSet(_named("RENAME_NOREPLACE", "RENAME_EXCHANGE", "RENAME_WHITEOUT"))]
XattrFlags = Annotated[int, FlagSet(_named("XATTR_CREATE", "XATTR_REPLACE"))]
AccessMode = Annotated[int, FlagSet({"F_OK": 0, "R_OK": 4, "W_OK": 2, "X_OK": 1})]
Whence = Annotated[int, EnumSet(_named("SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE"))]
NOT_COMMANDS = ("F_RDLCK", "F_WRLCK", "F_UNLCK", "F_OWNER_TID", "F_OWNER_PID", "F_OWNER_PGRP")
FcntlCmd = Annotated[
    int,
    EnumSet({n: value for n, value in list(globals().items()) if n.startswith("F_") and n not in NOT_COMMANDS}),
]
LockOperation = Annotated[int, FlagSet(_named("LOCK_SH", "LOCK_EX", "LOCK_NB", "LOCK_UN"))]
CloseRangeFlags = Annotated[int, FlagSet({"CLOSE_RANGE_UNSHARE": 2, "CLOSE_RANGE_CLOEXEC": 4})]
RwFlags = Annotated[
    int,
    FlagSet({name: value for name, value in list(globals().items()) if name.startswith("RWF_")}),
]
FallocateMode = Annotated[
    int,
    FlagSet({name: value for name, value in list(globals().items()) if name.startswith("FALLOC_FL_")}),
]

STAT = struct.Struct("<QQQIIIIQqqqqQqQqQ24x")
"""struct stat of x86-64, 144 bytes."""
NS = 10**9


def pack_stat(host: os.stat_result) -> bytes:
    """struct stat as Linux lays it out, from Python's."""
    times = [divmod(t, NS) for t in (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns)]
    return STAT.pack(
        host.st_dev, host.st_ino, host.st_nlink, host.st_mode, host.st_uid, host.st_gid, 0, host.st_rdev,
        host.st_size, host.st_blksize, host.st_blocks, *(part for time in times for part in time),
    )  # fmt: skip


def pack_inode(inode: Inode) -> bytes:
    """struct stat of an inode whose attributes are current."""
    atime, mtime, ctime = inode.atime, inode.mtime, inode.ctime
    return STAT.pack(
        inode.sb.dev, inode.ino, inode.nlink, inode.mode, inode.uid, inode.gid, 0, inode.rdev,
        inode.size, inode.blksize, inode.blocks,
        atime // NS, atime % NS, mtime // NS, mtime % NS, ctime // NS, ctime % NS,
    )  # fmt: skip


def makedev(major: int, minor: int) -> int:
    """A device number as st_dev and st_rdev hold it (new_encode_dev(), and glibc's beyond 32 bits)."""
    return minor & 0xFF | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32
