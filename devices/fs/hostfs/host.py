"""The host's calls that Python has none for, its directories, and how many descriptors may be used."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import stat
import struct
from typing import TYPE_CHECKING

from devices.errors import SysError

if TYPE_CHECKING:
    from collections.abc import Iterator

STATFS_SIZE = 120
RESERVED = 128
"""Descriptors that are left to the rest of the monitor."""
DIRENT = struct.Struct("<QqHB")
"""struct linux_dirent64 up to d_name."""
LISTING_BUFFER = 1 << 15
"""Bytes of a directory that are asked for at once."""
LAST_POSITION = (1 << 63) - 1
FIRST_POSITION = 3
"""Positions 0 to 2 are the VFS's own; the host's are this much below ours."""
DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC

libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> int:
    """What a C function returned; OSError with errno for -1."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def refusal(error: OSError) -> SysError:
    """What the guest is told of a host's error. The monitor's own limit of descriptors is the machine's (ENFILE)."""
    number = error.errno or errno.EIO
    if number == errno.EMFILE:
        return SysError(errno.ENFILE, "the monitor has no more descriptors")
    return SysError(number, f"the host: {error.strerror}")


# Descriptors


def raise_limit() -> int:
    """Let the monitor have as many descriptors as it may; how many file systems may use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 30 if hard == resource.RLIM_INFINITY else hard - RESERVED


def within(fd: int, limit: int) -> int:
    """A descriptor that was opened just now. The host gives the lowest free number, so a high one says that nearly all
    are in use: OSError(EMFILE), and it is closed."""
    if fd >= limit:
        os.close(fd)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return fd


def open_quietly(path: str, flags: int) -> int:
    """open(2) for reading, without a change of the time of access where the host lets the monitor ask for that: it is
    for a file's owner and for root."""
    try:
        return os.open(path, flags | os.O_NOATIME)
    except PermissionError:
        return os.open(path, flags)


# Calls


def filesystem_type(fd: int) -> int:
    """f_type of what a descriptor is on; os.fstatvfs does not tell it."""
    buffer = ctypes.create_string_buffer(STATFS_SIZE)
    check(libc.fstatfs(fd, buffer))
    return int.from_bytes(buffer.raw[:8], "little") & 0xFFFF_FFFF


def rename_at(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    check(libc.renameat2(old_fd, old, new_fd, new, flags))


def allocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2); os.posix_fallocate() has no modes, and writes where the file system cannot."""
    check(libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))


def sync_filesystem(fd: int) -> None:
    """syncfs(2)."""
    check(libc.syncfs(fd))


Listed = tuple[bytes, int, int, int]
"""(name, inode number, DT_*, our position behind it)."""


def list_directory(fd: int, offset: int, buffer: ctypes.Array[ctypes.c_char]) -> Iterator[list[Listed]]:
    """A directory's entries from our position `offset` on, a handful at a time. `buffer`: room for the host's answer.

    The host's own positions (d_off), so that they stay good whatever is made and removed meanwhile. OSError."""
    if offset == LAST_POSITION:
        return
    if offset > FIRST_POSITION:
        os.lseek(fd, offset - FIRST_POSITION, os.SEEK_SET)
    unpack = DIRENT.unpack_from
    while count := check(libc.getdents64(fd, buffer, len(buffer))):
        raw = ctypes.string_at(buffer, count)
        found: list[Listed] = []
        at = 0
        while at < count:
            ino, position, length, kind = unpack(raw, at)
            name = raw[at + 19 : raw.index(0, at + 19)]
            at += length
            if name == b"." or name == b"..":
                continue
            if not kind:
                kind = stat.S_IFMT(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode) >> 12
            position += FIRST_POSITION
            found.append((name, ino, kind, position if position < LAST_POSITION else LAST_POSITION))
        yield found
