"""Descriptors: numbers, limits, flags, fcntl's small commands, and what goes with the last of them."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from devices.task.rlimits import RLIMIT_FSIZE, RLIMIT_NOFILE
from devices.vfs.events import (
    IN_ACCESS,
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_OPEN,
    Event,
)
from tests.unit.devices.vfs.support import Files, files

if TYPE_CHECKING:
    from collections.abc import Iterator

O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_RDONLY, O_WRONLY, O_RDWR = 0o100, 0o200, 0o1000, 0o2000, 0, 1, 2
O_NONBLOCK, O_CLOEXEC, O_PATH, O_DSYNC, O_LARGEFILE, O_DIRECTORY = (
    0o4000,
    0o2000000,
    0o10000000,
    0o10000,
    0o100000,
    0o200000,
)
F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_SETFL = range(5)
F_SETOWN, F_GETOWN, F_SETSIG, F_GETSIG, F_SETOWN_EX, F_GETOWN_EX = 8, 9, 10, 11, 15, 16
F_DUPFD_QUERY, F_CREATED_QUERY, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, F_GET_SEALS = 1027, 1028, 1030, 1032, 1034
RWF_DSYNC, RWF_NOWAIT, RWF_APPEND, RWF_NOAPPEND = 2, 8, 16, 32
CLOSE_RANGE_UNSHARE, CLOSE_RANGE_CLOEXEC = 2, 4


@pytest.fixture
def tree() -> Iterator[Files]:
    with files() as made:
        assert made.call("open", b"/f", O_CREAT | O_RDWR, 0o644) == 0
        yield made


def test_the_limit_comes_before_the_file(tree: Files) -> None:
    tree.task.process.rlimits[RLIMIT_NOFILE] = (2, 1024)
    assert tree.call("open", b"/new", O_CREAT | O_RDWR, 0o644) == 1
    assert tree.call("open", b"/never", O_CREAT | O_RDWR, 0o644) == -errno.EMFILE
    assert tree.call("access", b"/never", 0) == -errno.ENOENT
    assert tree.call("dup", 0) == -errno.EMFILE
    assert tree.call("dup2", 0, 2) == -errno.EBADF
    assert tree.call("fcntl", 0, F_DUPFD, 2) == -errno.EINVAL


def test_flags_that_stay_and_flags_that_do_not(tree: Files) -> None:
    fd = tree.call("open", b"/f", O_CREAT | O_TRUNC | O_RDWR | O_APPEND | O_CLOEXEC, 0)
    assert tree.call("fcntl", fd, F_GETFL, 0) == O_RDWR | O_APPEND | O_LARGEFILE
    assert tree.call("fcntl", fd, F_GETFD, 0) == 1
    assert tree.call("fcntl", fd, F_SETFL, O_NONBLOCK | O_WRONLY | O_TRUNC) == 0
    assert tree.call("fcntl", fd, F_GETFL, 0) == O_RDWR | O_NONBLOCK | O_LARGEFILE
    path = tree.call("open", b"/f", O_PATH | O_RDWR | O_CREAT)
    assert tree.call("fcntl", path, F_GETFL, 0) == O_PATH
    for command in (F_SETFL, F_GETOWN, F_GET_SEALS):
        assert tree.call("fcntl", path, command, 0) == -errno.EBADF
    assert tree.call("read", path, tree.room(), 1) == -errno.EBADF
    assert tree.call("fstat", path, tree.room()) == 0
    for name in ("fchmod", "fsync", "ftruncate", "flock", "lseek", "ioctl"):
        assert tree.call(name, path, 1, 0) == -errno.EBADF, name


def test_small_commands(tree: Files) -> None:
    copy = tree.call("fcntl", 0, F_DUPFD_CLOEXEC, 10)
    assert (copy, tree.call("fcntl", copy, F_GETFD, 0)) == (10, 1)
    assert tree.call("fcntl", 0, F_DUPFD_QUERY, copy) == 1
    other = tree.call("open", b"/f", O_RDWR)
    assert tree.call("fcntl", 0, F_DUPFD_QUERY, other) == 0
    assert tree.call("fcntl", 0, F_DUPFD_QUERY, 99) == -errno.EBADF
    assert [tree.call("fcntl", fd, F_CREATED_QUERY, 0) for fd in (0, other)] == [1, 0]
    assert tree.call("fcntl", 0, F_SETOWN, tree.task.process.pid) == 0
    assert tree.call("fcntl", 0, F_GETOWN, 0) == tree.task.process.pid
    assert tree.call("fcntl", 0, F_SETOWN, -tree.task.process.pgid) == 0
    assert tree.call("fcntl", 0, F_GETOWN, 0) == -tree.task.process.pgid
    assert tree.call("fcntl", 0, F_SETOWN, 12345) == -errno.ESRCH
    assert tree.call("fcntl", 0, F_GETOWN_EX, tree.room()) == 0
    assert struct.unpack("<ii", tree.read(8)) == (2, tree.task.process.pgid)
    assert tree.call("fcntl", 0, F_SETSIG, 65) == -errno.EINVAL
    assert tree.call("fcntl", 0, F_SETSIG, 10) == 0
    assert tree.call("fcntl", 0, F_GETSIG, 0) == 10
    assert tree.call("fcntl", 0, F_GETPIPE_SZ, 0) == -errno.EBADF
    assert tree.call("fcntl", 0, F_GET_SEALS, 0) == -errno.EINVAL
    assert tree.call("fcntl", 0, 999, 0) == -errno.EINVAL


def test_close_range(tree: Files) -> None:
    for _ in range(5):
        tree.call("dup", 0)
    assert tree.call("close_range", 2, 1, 0) == -errno.EINVAL
    assert tree.call("close_range", 4, 0xFFFF_FFFF, 0) == 0
    assert tree.task.files.numbers() == [0, 1, 2, 3]
    assert tree.call("close_range", 1, 2, CLOSE_RANGE_CLOEXEC) == 0
    assert [tree.task.files.cloexec(fd) for fd in range(4)] == [False, True, True, False]


def test_close_range_in_a_table_of_ones_own(tree: Files) -> None:
    thread = tree.machine.thread()
    assert thread.files is tree.task.files
    assert tree.call("close_range", 0, 9, CLOSE_RANGE_UNSHARE, task=thread) == 0
    assert thread.files.numbers() == []
    assert tree.task.files.numbers() == [0]
    assert tree.call("write", 0, tree.room(), 1) == 1


def test_numbers_are_the_lowest(tree: Files) -> None:
    assert [tree.call("dup", 0) for _ in range(3)] == [1, 2, 3]
    assert tree.call("close", 1) == 0
    assert tree.call("close", 1) == -errno.EBADF
    assert tree.call("open", b"/f", O_RDWR) == 1
    assert tree.call("dup3", 0, 3, O_CLOEXEC) == 3
    assert tree.call("dup3", 0, 0, 0) == -errno.EINVAL
    assert tree.call("dup2", 0, 0) == 0


def test_preadv2_and_pwritev2(tree: Files) -> None:
    base, vector = tree.room() + 0x1000, tree.room() + 0x2000
    tree.task.memory.write(base, b"hello")
    tree.task.memory.write(vector, struct.pack("<4Q", base, 3, base + 3, 2))
    assert tree.call("pwritev2", 0, vector, 2, -1, 0, RWF_DSYNC) == 5
    assert tree.call("lseek", 0, 0, 1) == 5
    assert tree.call("pwritev2", 0, vector, 2, 0, 0, RWF_APPEND) == 5
    assert tree.call("lseek", 0, 0, 2) == 10
    assert tree.call("pwritev2", 0, vector, 2, 0, 0, RWF_NOWAIT) == -errno.EOPNOTSUPP
    assert tree.call("pwritev2", 0, vector, 2, 0, 0, RWF_APPEND | RWF_NOAPPEND) == -errno.EINVAL
    assert tree.call("pwritev2", 0, vector, 2, 0, 0, 1 << 10) == -errno.EOPNOTSUPP
    appending = tree.call("open", b"/f", O_WRONLY | O_APPEND)
    assert tree.call("pwritev2", appending, vector, 2, 0, 0, RWF_NOAPPEND) == 5
    assert tree.call("lseek", 0, 0, 2) == 10
    assert tree.call("fcntl", appending, F_GETFL, 0) & O_APPEND
    assert tree.call("preadv2", 0, vector, 2, 7, 0, 0) == 3
    assert tree.call("preadv2", 0, vector, 2, -2, 0, 0) == -errno.EINVAL
    assert tree.call("pread64", 0, base, 4, (1 << 63) - 2) == -errno.EINVAL


def test_files_do_not_grow_beyond_the_limit(tree: Files) -> None:
    tree.task.process.rlimits[RLIMIT_FSIZE] = (8, 8)
    tree.task.sigmask = 1 << 24  # SIGXFSZ stays pending
    assert tree.call("write", 0, tree.room(), 6) == 6
    assert tree.call("write", 0, tree.room(), 6) == 2
    assert tree.call("write", 0, tree.room(), 6) == -errno.EFBIG
    assert tree.call("pwrite64", 0, tree.room(), 6, 4) == 4
    assert tree.call("ftruncate", 0, 9) == -errno.EFBIG
    assert tree.call("truncate", b"/f", 9) == -errno.EFBIG
    assert tree.call("fallocate", 0, 0, 0, 9) == -errno.EFBIG
    assert tree.call("ftruncate", 0, 2) == 0


def test_who_writes_takes_set_user_id_away(tree: Files) -> None:
    def mode() -> int:
        assert tree.call("fstat", 0, tree.room()) == 0
        return int(struct.unpack_from("<I", tree.read(144), 24)[0]) & 0o7777

    assert tree.call("fchmod", 0, 0o6777) == 0
    assert tree.call("write", 0, tree.room(), 1) == 1
    assert mode() == 0o6777  # CAP_FSETID
    assert tree.call("setfsuid", 1000) == 0
    assert tree.call("write", 0, tree.room(), 1) == 1
    assert mode() == 0o777
    assert tree.call("setfsuid", 0) == 1000
    assert tree.call("fchmod", 0, 0o6767) == 0
    assert tree.call("chown", b"/f", 1000, -1) == 0
    assert mode() == 0o2767  # S_ISGID without S_IXGRP is no set-group-id


def test_ioctls_of_every_file(tree: Files) -> None:
    fionread, fionbio, fioclex, fionclex, fioasync, fioqsize, figetbsz = (
        0x541B,
        0x5421,
        0x5451,
        0x5450,
        0x5452,
        0x5460,
        2,
    )
    assert tree.call("write", 0, tree.room(), 10) == 10
    assert tree.call("lseek", 0, 4, 0) == 4
    assert tree.call("ioctl", 0, fionread, tree.room()) == 0
    assert struct.unpack("<i", tree.read(4)) == (6,)
    assert tree.call("ioctl", 0, fioclex, 0) == 0
    assert tree.call("fcntl", 0, F_GETFD, 0) == 1
    assert tree.call("ioctl", 0, fionclex, 0) == 0
    assert tree.call("fcntl", 0, F_GETFD, 0) == 0
    tree.task.memory.write(tree.room(), struct.pack("<i", 1))
    assert tree.call("ioctl", 0, fionbio, tree.room()) == 0
    assert tree.call("fcntl", 0, F_GETFL, 0) & O_NONBLOCK
    assert tree.call("ioctl", 0, fioasync, tree.room()) == -errno.ENOTTY
    assert tree.call("ioctl", 0, fioqsize, tree.room()) == 0
    assert struct.unpack("<q", tree.read(8)) == (10,)
    assert tree.call("ioctl", 0, figetbsz, tree.room()) == 0
    assert struct.unpack("<i", tree.read(4)) == (4096,)
    assert tree.call("ioctl", 0, 0x1234, 0) == -errno.ENOTTY
    assert tree.call("ioctl", 0, fionread, 0) == -errno.EFAULT


def test_events_pass_one_place(tree: Files) -> None:
    seen: list[Event] = []
    tree.kernel.vfs.on_event = seen.append
    assert tree.call("mkdir", b"/quiet", 0o755) == 0
    assert seen == []
    tree.kernel.vfs.watches = 1
    tree.call("mkdir", b"/d", 0o755)
    fd = tree.call("open", b"/d/a", O_CREAT | O_RDWR, 0o644)
    tree.call("write", fd, tree.room(), 1)
    tree.call("pread64", fd, tree.room(), 1, 0)
    tree.call("fchmod", fd, 0o600)
    tree.call("rename", b"/d/a", b"/d/b")
    tree.call("unlink", b"/d/b")
    tree.call("close", fd)
    told = [(event.mask, event.name) for event in seen]
    wanted = [
        (IN_CREATE | IN_ISDIR, b"d"),
        (IN_CREATE, b"a"),
        (IN_OPEN, b"a"),
        (IN_MODIFY, b"a"),
        (IN_ACCESS, b"a"),
        (IN_ATTRIB, b"a"),
        (IN_MOVED_FROM, b"a"),
        (IN_MOVED_TO, b"b"),
        (IN_DELETE, b"b"),
        (IN_CLOSE_WRITE, b"b"),
    ]
    assert [event for event in told if event in wanted] == wanted
    assert seen[6].cookie == seen[7].cookie != 0
    assert any(event.mask & IN_DELETE_SELF for event in seen)


def test_a_file_that_is_executed_is_not_written(tree: Files) -> None:
    inode = tree.fs.root.children[b"f"]  # type: ignore[attr-defined]
    assert inode.writers == 1
    assert tree.call("close", 0) == 0
    assert inode.writers == 0
    inode.writers = -1
    assert tree.call("open", b"/f", O_RDWR) == -errno.ETXTBSY
    assert tree.call("truncate", b"/f", 0) == -errno.ETXTBSY
    assert tree.call("open", b"/f", O_RDONLY) == 0


def test_read_only_mounts(tree: Files) -> None:
    ms_remount, ms_bind, ms_rdonly = 32, 4096, 1
    assert tree.call("mount", 0, b"/", 0, ms_remount | ms_bind | ms_rdonly, 0) == -errno.EBUSY
    assert tree.call("close", 0) == 0
    assert tree.call("mount", 0, b"/", 0, ms_remount | ms_bind | ms_rdonly, 0) == 0
    for name, *arguments in (
        ("open", b"/f", O_RDWR), ("open", b"/g", O_CREAT, 0o644), ("mkdir", b"/g", 0o755), ("unlink", b"/f"),
        ("chmod", b"/f", 0o600), ("chown", b"/f", 1, 1), ("truncate", b"/f", 0), ("rename", b"/f", b"/g"),
        ("link", b"/f", b"/g"), ("symlink", b"x", b"/g"), ("utimensat", -100, b"/f", 0, 0), ("access", b"/f", 2),
        ("setxattr", b"/f", b"user.a", tree.room(), 1, 0), ("removexattr", b"/f", b"user.a"), ("mknod", b"/g", 0, 0),
    ):  # fmt: skip
        assert tree.call(str(name), *arguments) == -errno.EROFS, name
    assert tree.call("open", b"/f", O_RDONLY) == 0
    assert tree.call("mkdir", b"/", 0o755) == -errno.EEXIST
    assert tree.call("rmdir", b"/none") == -errno.EROFS
