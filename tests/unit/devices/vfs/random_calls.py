"""Random calls on a small tree of names, for a comparison of two kernels."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from tests.unit.devices.vfs.oracle import AT_FDCWD, Argument, Data, Fd, Room

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECTORY, O_NOFOLLOW = 0o100, 0o200, 0o1000, 0o2000, 0o200000, 0o400000
O_NONBLOCK, O_NOATIME, O_PATH, O_TMPFILE = 0o4000, 0o1000000, 0o10000000, 0o20200000
OTHER_USER, OTHER_GROUP = 1000, 1000
LOCKS = struct.Struct("<hh4xqqi4x")

Call = tuple[str, tuple[Argument, ...]]

INITIAL: list[Call] = [
    ("mkdir", (b"a", 0o755)),
    ("mkdir", (b"a/b", 0o777)),
    ("mkdir", (b"e", 0o777)),
    ("chmod", (b"e", 0o1777)),
    ("open", (b"a/c", O_CREAT | 2, 0o644)),
    ("symlink", (b"../c", b"a/b/d")),
    ("symlink", (b"a/b", b"c")),
    ("symlink", (b"/a", b"d")),
    ("symlink", (b"nothing", b"e/a")),
    ("open", (b"e/b", O_CREAT | 2, 0o666)),
]


LIKELY = (
    b"a", b"a/b", b"a/c", b"e", b"e/b", b"c", b"d", b"/a/b/d", b"e/a", b"/e/n", b"n", b"a/n", b"/c/n", b"d/b", b"d/c",
)  # fmt: skip
"""What is there at the start, and places where something new can be."""


class Draw:
    """Random arguments."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.one = rng.choice

    def path(self) -> bytes:
        rng = self.rng
        if rng.random() < 0.55:
            return rng.choice(LIKELY)
        count = rng.choice((1, 1, 1, 2, 2, 2, 3, 4, 0))
        names = [rng.choice((b"a", b"b", b"c", b"d", b"e", b"a", b"b", b".", b"..")) for _ in range(count)]
        start = rng.choice((b"", b"", b"", b"/", b"//")) if names else b"/"
        return start + b"/".join(names) + rng.choice((b"",) * 8 + (b"/", b"//", b"/."))

    def any_path(self) -> bytes:
        return self.one((b"", b"a" * 255, b"a" * 256)) if self.rng.random() < 0.06 else self.path()

    def fd(self) -> Fd:
        return Fd(self.rng.randrange(-3, 6))

    def dirfd(self) -> int | Fd:
        return AT_FDCWD if self.rng.random() < 0.7 else self.fd()

    def mode(self) -> int:
        return self.one((0o755, 0o700, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0, 0o555, 0o6777, 0o2770, 0o311, 0o7777))

    def owner(self) -> int:
        return self.one((0, OTHER_USER, -1, 1001))

    def open_flags(self) -> int:
        flags = self.one((0, 0, 1, 2, 2, 3)) | O_NONBLOCK
        for bit in (O_CREAT, O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECTORY, O_NOFOLLOW):
            flags |= bit if self.rng.random() < 0.2 else 0
        return flags

    def any_flags(self) -> int:
        kind = self.rng.randrange(8)
        if kind == 0:
            return self.open_flags() | O_PATH
        if kind == 1:
            return O_TMPFILE | self.one((0, 1, 2, 2, O_EXCL | 2))
        if kind == 2:
            return self.open_flags() | O_NOATIME
        return self.one((self.open_flags(), 0o20000000)) if kind == 3 else self.open_flags()

    def how(self) -> Data:
        flags = self.any_flags()
        mode = self.mode() if flags & (O_CREAT | 0o20000000) else 0
        return Data(struct.pack("<QQQ", flags, mode, self.one((0, 0, 1, 2, 4, 8, 8, 16, 16, 24, 5, 9, 12, 64))))

    def xattr(self) -> bytes:
        return self.one((b"user.a", b"user.a", b"user.b", b"trusted.a", b"user.", b"x", b"", b"security.a"))

    def flock(self) -> Data:
        return Data(
            LOCKS.pack(self.one((0, 1, 2, 3)), self.one((0, 1, 2, 3)), self.one((0, 5, -1)), self.one((0, 5, -1)), 0)
        )


STAT = Room(144)
MAKERS: dict[str, Callable[[Draw], tuple[Argument, ...]]] = {
    "mkdir": lambda d: (d.any_path(), d.mode()),
    "mkdirat": lambda d: (d.dirfd(), d.path(), d.mode()),
    "rmdir": lambda d: (d.any_path(),),
    "unlink": lambda d: (d.any_path(),),
    "unlinkat": lambda d: (d.dirfd(), d.path(), d.one((0, 0x200, 1))),
    "symlink": lambda d: (d.path(), d.any_path()),
    "symlinkat": lambda d: (d.any_path(), d.dirfd(), d.path()),
    "link": lambda d: (d.path(), d.path()),
    "linkat": lambda d: (d.dirfd(), d.any_path(), d.dirfd(), d.path(), d.one((0, 0x400, 0x1000, 0x1400, 2))),
    "rename": lambda d: (d.path(), d.any_path()),
    "renameat2": lambda d: (d.dirfd(), d.path(), d.dirfd(), d.path(), d.one((0, 0, 1, 2, 2, 3, 4, 8))),
    "open": lambda d: (d.any_path(), d.any_flags(), d.mode()),
    "openat": lambda d: (d.dirfd(), d.path(), d.open_flags(), d.mode()),
    "openat2": lambda d: (d.dirfd(), d.any_path(), d.how(), 24),
    "close": lambda d: (d.fd(),),
    "stat": lambda d: (d.any_path(), STAT),
    "lstat": lambda d: (d.path(), STAT),
    "fstat": lambda d: (d.fd(), STAT),
    "newfstatat": lambda d: (d.dirfd(), d.any_path(), STAT, d.one((0, 0x100, 0x1000, 0x1100, 4))),
    "readlink": lambda d: (d.any_path(), Room(64), d.one((64, 3, 0))),
    "readlinkat": lambda d: (d.dirfd(), d.any_path(), Room(64), 64),
    "access": lambda d: (d.path(), d.one((0, 1, 2, 4, 7, 8))),
    "faccessat2": lambda d: (d.dirfd(), d.any_path(), d.one((0, 1, 2, 4, 7)), d.one((0, 0x200, 0x100, 0x1000))),
    "chdir": lambda d: (d.path(),),
    "fchdir": lambda d: (d.fd(),),
    "getcwd": lambda d: (Room(4096), d.one((4096, 1, 0))),
    "chmod": lambda d: (d.path(), d.mode()),
    "fchmod": lambda d: (d.fd(), d.mode()),
    "fchmodat2": lambda d: (d.dirfd(), d.any_path(), d.mode(), d.one((0, 0x100, 0x1000))),
    "chown": lambda d: (d.path(), d.owner(), d.owner()),
    "lchown": lambda d: (d.path(), d.owner(), d.owner()),
    "fchown": lambda d: (d.fd(), d.owner(), d.owner()),
    "fchownat": lambda d: (d.dirfd(), d.any_path(), d.owner(), d.owner(), d.one((0, 0x100, 0x1000))),
    "mknod": lambda d: (d.path(), d.one((0o10644, 0o100600, 0o644, 0o40755, 0o140644, 0o20644, 0o120777)), 0x7803),
    "truncate": lambda d: (d.path(), d.one((0, 5, 100, -1))),
    "ftruncate": lambda d: (d.fd(), d.one((0, 5, 100, -1))),
    "write": lambda d: (d.fd(), Data(b"hello"), 5),
    "read": lambda d: (d.fd(), Room(16), 16),
    "pread64": lambda d: (d.fd(), Room(16), 16, d.one((0, 3, -1))),
    "pwrite64": lambda d: (d.fd(), Data(b"hello"), 5, d.one((0, 3, -1))),
    "lseek": lambda d: (d.fd(), d.one((0, 3, -1, 1000)), d.one((0, 0, 1, 2, 5))),
    "getdents64": lambda d: (d.fd(), Room(1024), 1024),
    "utimensat": lambda d: (
        d.dirfd(), d.any_path(), d.one((0, Data(struct.pack("<4q", 1, 2, 3, 4)))), d.one((0, 0x100, 0x1000)),
    ),
    "fallocate": lambda d: (d.fd(), d.one((0, 1, 2, 3)), d.one((0, 10, -1)), d.one((10, 0))),
    "fsync": lambda d: (d.fd(),),
    "fadvise64": lambda d: (d.fd(), 0, d.one((10, -1)), d.one((0, 3, 6))),
    "setxattr": lambda d: (d.path(), d.xattr(), Data(b"v"), 1, d.one((0, 0, 1, 2, 3, 4))),
    "lgetxattr": lambda d: (d.path(), d.xattr(), Room(4), d.one((0, 4))),
    "fgetxattr": lambda d: (d.fd(), d.xattr(), Room(4), 4),
    "listxattr": lambda d: (d.path(), Room(64), d.one((0, 64, 1))),
    "removexattr": lambda d: (d.path(), d.xattr()),
    "setfsuid": lambda d: (d.one((0, 0, 0, OTHER_USER)),),
    "setfsgid": lambda d: (d.one((0, OTHER_GROUP)),),
    "umask": lambda d: (d.one((0o022, 0, 0o077)),),
    "dup": lambda d: (d.fd(),),
    "fcntl": lambda d: (d.fd(), d.one((1, 3)), 0),
    "statfs": lambda d: (d.path(), Room(120)),
    "flock": lambda d: (d.fd(), d.one((4 | 1, 4 | 2, 8, 0))),
}  # fmt: skip
RARE: dict[str, Callable[[Draw], tuple[Argument, ...]]] = {"chroot": lambda d: (d.path(),)}


def sequence(rng: random.Random, length: int) -> list[Call]:
    draw = Draw(rng)
    names = list(MAKERS)
    found = []
    for _ in range(length):
        name = rng.choice(names) if rng.random() > 0.003 else "chroot"
        found.append((name, (MAKERS.get(name) or RARE[name])(draw)))
    return found
