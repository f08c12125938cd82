"""Constants and structures of <asm/fcntl.h>, <asm/stat.h>, <linux/uio.h>; names and values are the kernel's."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Annotated

from devices.args import EnumSet, FlagSet

if TYPE_CHECKING:
    import os

O_ACCMODE = 0o3
O_RDONLY, O_WRONLY, O_RDWR = 0, 1, 2
O_CREAT, O_EXCL, O_NOCTTY, O_TRUNC = 0o100, 0o200, 0o400, 0o1000
O_APPEND, O_NONBLOCK, O_DSYNC, O_ASYNC = 0o2000, 0o4000, 0o10000, 0o20000
O_DIRECT, O_LARGEFILE, O_DIRECTORY, O_NOFOLLOW = 0o40000, 0o100000, 0o200000, 0o400000
O_NOATIME, O_CLOEXEC, O_PATH, O_TMPFILE = 0o1000000, 0o2000000, 0o10000000, 0o20200000

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW, AT_EACCESS, AT_NO_AUTOMOUNT, AT_EMPTY_PATH = 0x100, 0x200, 0x800, 0x1000

F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL = range(5)
F_DUPFD_CLOEXEC = 1030
FD_CLOEXEC = 1
SETFL_MASK = O_APPEND | O_NONBLOCK | O_ASYNC | O_DIRECT | O_NOATIME

SEEK_SET, SEEK_CUR, SEEK_END, SEEK_DATA, SEEK_HOLE = range(5)

MAX_RW_COUNT = 0x7FFF_F000
"""Bytes that one read or write transfers at most (INT_MAX & PAGE_MASK)."""
UIO_MAXIOV = 1024

OPEN_NAMES = {
    "O_CREAT": O_CREAT, "O_EXCL": O_EXCL, "O_NOCTTY": O_NOCTTY, "O_TRUNC": O_TRUNC, "O_APPEND": O_APPEND,
    "O_NONBLOCK": O_NONBLOCK, "O_SYNC": 0o4010000, "O_DSYNC": O_DSYNC, "FASYNC": O_ASYNC, "O_DIRECT": O_DIRECT,
    "O_LARGEFILE": O_LARGEFILE, "O_TMPFILE": O_TMPFILE, "O_DIRECTORY": O_DIRECTORY, "O_NOFOLLOW": O_NOFOLLOW,
    "O_NOATIME": O_NOATIME, "O_CLOEXEC": O_CLOEXEC, "O_PATH": O_PATH,
}  # fmt: skip
OpenFlags = Annotated[
    int,
    FlagSet(OPEN_NAMES, enum=O_ACCMODE, values={"O_RDONLY": O_RDONLY, "O_WRONLY": O_WRONLY, "O_RDWR": O_RDWR}),
]
AtFlags = Annotated[
    int,
    FlagSet(
        {
            "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW,
            "AT_EACCESS": AT_EACCESS,
            "AT_NO_AUTOMOUNT": AT_NO_AUTOMOUNT,
            "AT_EMPTY_PATH": AT_EMPTY_PATH,
        }
    ),
]
AccessMode = Annotated[int, FlagSet({"F_OK": 0, "R_OK": 4, "W_OK": 2, "X_OK": 1})]
Whence = Annotated[
    int, EnumSet({"SEEK_SET": 0, "SEEK_CUR": 1, "SEEK_END": 2, "SEEK_DATA": SEEK_DATA, "SEEK_HOLE": SEEK_HOLE})
]
FcntlCmd = Annotated[
    int,
    EnumSet(
        {
            "F_DUPFD": F_DUPFD,
            "F_GETFD": F_GETFD,
            "F_SETFD": F_SETFD,
            "F_GETFL": F_GETFL,
            "F_SETFL": F_SETFL,
            "F_DUPFD_CLOEXEC": F_DUPFD_CLOEXEC,
        }
    ),
]
CloseRangeFlags = Annotated[int, FlagSet({"CLOSE_RANGE_UNSHARE": 2, "CLOSE_RANGE_CLOEXEC": 4})]
RwFlags = Annotated[int, FlagSet({"RWF_HIPRI": 1, "RWF_DSYNC": 2, "RWF_SYNC": 4, "RWF_NOWAIT": 8, "RWF_APPEND": 16})]

STAT = struct.Struct("<QQQIIIIQqqqqQqQqQ24x")
"""struct stat of x86-64, 144 bytes."""


def pack_stat(host: os.stat_result) -> bytes:
    """struct stat as Linux lays it out, from Python's."""
    times = [divmod(t, 10**9) for t in (host.st_atime_ns, host.st_mtime_ns, host.st_ctime_ns)]
    return STAT.pack(
        host.st_dev, host.st_ino, host.st_nlink, host.st_mode, host.st_uid, host.st_gid, 0, host.st_rdev,
        host.st_size, host.st_blksize, host.st_blocks, *(part for time in times for part in time),
    )  # fmt: skip
