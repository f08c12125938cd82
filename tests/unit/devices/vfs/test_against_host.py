"""Random sequences of calls on paths, to the host's Linux and to the VFS over the simplest file system: same answers."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.devices.support import World
from tests.unit.devices.vfs.oracle import (
    AT_FDCWD,
    Answer,
    Argument,
    Data,
    Fd,
    HostKernel,
    OurKernel,
    Room,
    names_in,
    reason_why_not,
    stat_of,
)

NO_ORACLE = reason_why_not()
pytestmark = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))

O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECTORY, O_NOFOLLOW = 0o100, 0o200, 0o1000, 0o2000, 0o200000, 0o400000
O_NONBLOCK, O_NOATIME, O_PATH, O_TMPFILE = 0o4000, 0o1000000, 0o10000000, 0o20200000
OTHER_USER, OTHER_GROUP = 1000, 1000

Call = tuple[str, tuple[Argument, ...]]

component = st.sampled_from([b"a", b"b", b"c", b"d", b".", b"..", b"a", b"b"])
path = st.builds(
    lambda start, parts, end: (start + b"/".join(parts) + end) or b"a",
    st.sampled_from([b"", b"", b"/", b"//"]),
    st.lists(component, min_size=0, max_size=4),
    st.sampled_from([b"", b"", b"", b"/", b"//", b"/."]),
)
any_path = st.one_of(path, path, path, st.sampled_from([b"", b"a" * 255, b"a" * 256]))
fd = st.builds(Fd, st.integers(0, 4))
dirfd = st.one_of(st.just(AT_FDCWD), st.just(AT_FDCWD), fd)
mode = st.sampled_from([0o755, 0o700, 0o644, 0o777, 0o1777, 0o2755, 0o4755, 0, 0o555, 0o6777, 0o2770, 0o311, 0o7777])
owner = st.sampled_from([0, OTHER_USER, -1, 1001])
open_flags = st.builds(
    lambda access, *bits: access | sum(bits),
    st.sampled_from([0, 1, 2, 3]),
    *(st.sampled_from([0, 0, bit]) for bit in (O_CREAT, O_EXCL, O_TRUNC, O_APPEND, O_DIRECTORY, O_NOFOLLOW)),
).map(lambda flags: flags | O_NONBLOCK)
rare_flags = st.one_of(
    st.builds(lambda f: f | O_PATH, open_flags),
    st.builds(lambda a: O_TMPFILE | a, st.sampled_from([0, 1, 2, O_EXCL | 2])),
    st.builds(lambda f: f | O_NOATIME, open_flags),
    st.just(0o20000000),
)
resolve = st.sampled_from([0, 1, 2, 4, 8, 16, 24, 5, 9, 12, 64])


def call(name: str, *arguments: st.SearchStrategy[Argument]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.tuples(*arguments))


def just(value: Argument) -> st.SearchStrategy[Argument]:
    return st.just(value)


how = st.builds(
    lambda flags, mode, resolve: Data(
        struct.pack("<QQQ", flags, mode if flags & (O_CREAT | 0o20000000) else 0, resolve)
    ),
    st.one_of(open_flags, open_flags, rare_flags),
    mode,
    resolve,
)
stat_room = just(Room(144))
calls: list[st.SearchStrategy[Call]] = [
    call("mkdir", any_path, mode),
    call("mkdirat", dirfd, path, mode),
    call("rmdir", any_path),
    call("unlink", any_path),
    call("unlinkat", dirfd, path, st.sampled_from([0, 0x200, 1])),
    call("symlink", path, any_path),
    call("symlinkat", any_path, dirfd, path),
    call("link", path, path),
    call("linkat", dirfd, any_path, dirfd, path, st.sampled_from([0, 0x400, 0x1000, 2])),
    call("rename", path, any_path),
    call("renameat2", dirfd, path, dirfd, path, st.sampled_from([0, 1, 2, 3, 4, 8])),
    call("open", any_path, st.one_of(open_flags, open_flags, rare_flags), mode),
    call("openat", dirfd, path, open_flags, mode),
    call("openat2", dirfd, any_path, how, just(24)),
    call("close", fd),
    call("stat", any_path, stat_room),
    call("lstat", path, stat_room),
    call("fstat", fd, stat_room),
    call("newfstatat", dirfd, any_path, stat_room, st.sampled_from([0, 0x100, 0x1000, 0x1100, 4])),
    call("readlink", any_path, just(Room(64)), st.sampled_from([64, 3, 0])),
    call("readlinkat", dirfd, any_path, just(Room(64)), just(64)),
    call("access", path, st.sampled_from([0, 1, 2, 4, 7, 8])),
    call("faccessat2", dirfd, any_path, st.sampled_from([0, 1, 2, 4, 7]), st.sampled_from([0, 0x200, 0x100, 0x1000])),
    call("chdir", path),
    call("fchdir", fd),
    call("getcwd", just(Room(4096)), st.sampled_from([4096, 1, 0])),
    call("chmod", path, mode),
    call("fchmod", fd, mode),
    call("fchmodat2", dirfd, any_path, mode, st.sampled_from([0, 0x100, 0x1000])),
    call("chown", path, owner, owner),
    call("lchown", path, owner, owner),
    call("fchown", fd, owner, owner),
    call("fchownat", dirfd, any_path, owner, owner, st.sampled_from([0, 0x100, 0x1000])),
    call("mknod", path, st.sampled_from([0o10644, 0o100600, 0o644, 0o40755, 0o140644, 0o20644, 0o120777]), just(0x103)),
    call("truncate", path, st.sampled_from([0, 5, 100, -1])),
    call("ftruncate", fd, st.sampled_from([0, 5, 100, -1])),
    call("write", fd, just(Data(b"hello")), just(5)),
    call("read", fd, just(Room(16)), just(16)),
    call("pread64", fd, just(Room(16)), just(16), st.sampled_from([0, 3, -1])),
    call("pwrite64", fd, just(Data(b"hello")), just(5), st.sampled_from([0, 3, -1])),
    call("lseek", fd, st.sampled_from([0, 3, -1, 1000]), st.integers(0, 5)),
    call("utimensat", dirfd, any_path, just(Data(struct.pack("<4q", 1, 2, 3, 4))), st.sampled_from([0, 0x100])),
    call("utimensat", dirfd, path, just(0), just(0)),
    call("fallocate", fd, st.sampled_from([0, 1, 2, 3, 32]), st.sampled_from([0, 10, -1]), st.sampled_from([10, 0])),
    call("setxattr", path, st.sampled_from([b"user.a", b"trusted.a", b"user.", b"x", b""]), just(Data(b"v")), just(1),
         st.sampled_from([0, 1, 2, 3, 4])),
    call("getxattr", path, st.sampled_from([b"user.a", b"trusted.a", b"user."]), just(Room(4)), st.sampled_from([0, 4])),
    call("removexattr", path, st.sampled_from([b"user.a", b"trusted.a", b"user.b"])),
    call("setfsuid", st.sampled_from([0, OTHER_USER])),
    call("setfsgid", st.sampled_from([0, OTHER_GROUP])),
    call("umask", st.sampled_from([0o022, 0, 0o077])),
    call("chroot", path),
    call("dup", fd),
    call("fcntl", fd, just(3), just(0)),
    call("statfs", path, just(Room(120))),
]  # fmt: skip
INITIAL: list[Call] = [
    ("mkdir", (b"a", 0o755)),
    ("mkdir", (b"a/b", 0o777)),
    ("open", (b"a/c", O_CREAT | 2, 0o644)),
    ("symlink", (b"../c", b"a/b/d")),
    ("symlink", (b"a/b", b"c")),
    ("symlink", (b"/a", b"d")),
]


def comparable(name: str, answer: Answer) -> object:
    """Of an answer what must be the same."""
    result, rooms = answer
    if result < 0:
        return result
    if name in ("stat", "lstat", "fstat", "newfstatat"):
        return stat_of(rooms[0])
    if name in ("readlink", "readlinkat", "getcwd"):
        return result, rooms[0][:result]
    if name in ("read", "pread64"):
        return result, rooms[0][:result]
    if name == "statfs":
        return result
    if name == "getdents64":
        return names_in(rooms[0], result)
    if name == "fcntl":
        return oct(result)
    return result


def check(host: HostKernel, ours: OurKernel, sequence: list[Call]) -> None:
    for name, arguments in sequence:
        expected = comparable(name, host.call(name, *arguments))
        found = comparable(name, ours.call(name, *arguments))
        assert found == expected, (name, arguments)


def tree(kernel: HostKernel | OurKernel) -> list[object]:
    """Everything below the root."""
    found: list[object] = []

    def visit(place: bytes) -> None:
        answer = kernel.call("lstat", place or b"/", Room(144))
        attributes = comparable("lstat", answer)
        found.append((place, attributes))
        if isinstance(attributes, tuple) and attributes[1] & 0o170000 == 0o040000:
            kernel.call("open", place or b"/", 0)
            opened = Fd(-1)
            count, rooms = kernel.call("getdents64", opened, Room(4096), 4096)
            for name in names_in(rooms[0], count):
                if name not in (b".", b".."):
                    visit(place + b"/" + name)
            kernel.call("close", opened)

    visit(b"")
    return found


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(calls), min_size=1, max_size=25))
def test_random_calls(sequence: list[Call]) -> None:
    host = HostKernel()
    world = World()
    try:
        ours = OurKernel(world)
        check(host, ours, INITIAL)
        check(host, ours, sequence)
        for kernel in (host, ours):
            kernel.call("setfsuid", 0)
            kernel.call("setfsgid", 0)
        assert tree(ours) == tree(host)
    finally:
        world.close()
        host.close()
