"""/proc/locks: who has locked what (lock_get_status() of fs/locks.c).

Locks are found by the files that are open: a lock of a process or of an open file description ends with the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.vfs.abi import F_RDLCK, LOCK_SH, MAX_FILE_SIZE
from devices.vfs.locks import FileLocks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.kernel import Kernel
    from devices.task.task import Task
    from devices.vfs.inode import Inode


def locked_files(kernel: Kernel) -> Iterator[tuple[Inode, FileLocks]]:
    """Each file with locks, once."""
    seen = set()
    for table in {task.files for task in kernel.tasks.values()}:
        for fd in table.numbers():
            inode = table.get(fd).inode
            if inode is not None and isinstance(inode.locks, FileLocks) and inode not in seen:
                seen.add(inode)
                yield inode, inode.locks


def rows(kernel: Kernel, inode: Inode, locks: FileLocks) -> Iterator[tuple[bytes, bool, int, bytes]]:
    """(kind, shared, pid, range) of a file's locks."""
    for lock in locks.ranges:
        end = b"EOF" if lock.end >= MAX_FILE_SIZE else b"%d" % lock.end
        yield (b"POSIX " if lock.pid >= 0 else b"OFDLCK"), lock.kind == F_RDLCK, lock.pid, b"%d %s" % (lock.start, end)
    for file, kind in locks.flocks.items():
        holders = [t.process.pid for t in kernel.tasks.values() if file in map(t.files.get, t.files.numbers())]
        yield b"FLOCK ", kind == LOCK_SH, min(holders, default=0), b"0 EOF"


def locks(task: Task) -> bytes:
    """The whole table."""
    lines: list[bytes] = []
    for inode, found in locked_files(task.kernel):
        dev = inode.sb.dev
        place = b"%02x:%02x:%d" % (dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00, inode.ino)
        for kind, shared, pid, extent in rows(task.kernel, inode, found):
            access = b"READ " if shared else b"WRITE"
            lines.append(b"%d: %s ADVISORY  %s %d %s %s\n" % (len(lines) + 1, kind, access, pid, place, extent))
    return b"".join(lines)
