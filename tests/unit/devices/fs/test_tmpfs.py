"""devices/fs/tmpfs: random calls to the host's tmpfs and to ours, with the same answers; and what an oracle cannot show."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.errors import SysError
from devices.fs.tmpfs import Tmpfs, make_tmpfs
from devices.fs.tmpfs.superblock import parse_options, split_options
from devices.vfs.mount import set_root_locked
from tests.unit.devices.support import World, world
from tests.unit.devices.vfs.oracle import (
    STAT_FIELDS,
    Answer,
    Argument,
    Data,
    Fd,
    HostKernel,
    OurKernel,
    Room,
    reason_why_not,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ORACLE = reason_why_not()
needs_oracle = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))
AT_FDCWD = -100
O_RDWR, O_CREAT, O_TRUNC, O_APPEND, O_DIRECTORY, O_TMPFILE = 2, 0o100, 0o1000, 0o2000, 0o200000, 0o20200000
PAGE = 4096
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
STAT = STAT_FIELDS

Call = tuple[str, tuple[Argument, ...]]


class TmpfsKernel(OurKernel):
    """A task whose root is an empty tmpfs."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        vfs = world.kernel.vfs
        vfs.namespace = vfs.first_fs = None
        self.tmpfs = make_tmpfs(world.kernel, mode=0o755)
        set_root_locked(world.kernel, self.tmpfs)
        self.task = world.new_process()
        self.data = self.task.memory.mmap(0, 1 << 20, 3, 0x22)


def call(name: str, *arguments: st.SearchStrategy[Argument]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.tuples(*arguments))


def just(value: Argument) -> st.SearchStrategy[Argument]:
    return st.just(value)


path = st.sampled_from([b"/a", b"/b", b"/d", b"/d/a", b"/d/b", b"/e", b"/e/d", b"/e/d/x"])
fd = st.builds(Fd, st.integers(0, 3))
offset = st.one_of(
    st.integers(0, 5 * PAGE),
    st.sampled_from([0, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, 511 * PAGE, 512 * PAGE, 513 * PAGE + 7, 1 << 40]),
)
length = st.one_of(st.integers(1, 3 * PAGE), st.sampled_from([1, PAGE, 2 * PAGE]))
data = st.builds(lambda byte, n: Data(bytes([byte]) * n), st.integers(1, 255), length)
xattr = st.sampled_from([b"user.a", b"user.bc", b"trusted.t", b"security.s", b"system.x", b"other", b"user."])
O = O_RDWR | O_CREAT  # noqa: E741
files = st.one_of(
    call("open", path, st.sampled_from([O, O, O | O_TRUNC, O | O_APPEND]), just(0o644)),
    call("open", just(b"/"), just(O_RDWR | O_TMPFILE), just(0o600)),
)
contents = st.one_of(
    st.builds(lambda f, d, o: ("pwrite64", (f, d, len(d.bytes), o)), fd, data, offset),
    st.builds(lambda f, d: ("write", (f, d, len(d.bytes))), fd, data),
    call("pread64", fd, just(Room(3 * PAGE)), st.sampled_from([3 * PAGE, PAGE, 17]), offset),
    call("lseek", fd, offset, st.integers(0, 4)),
    call("ftruncate", fd, offset),
    call("truncate", path, offset),
    call("fallocate", fd, st.sampled_from([0, 0, 1, 3, 3, 3, 2, 16, 8]), offset.filter(lambda o: o < 1 << 30), length),
)
names = st.one_of(
    call("mkdir", path, st.sampled_from([0o755, 0o2770])),
    call("mknod", path, st.sampled_from([0o10644, 0o20600, 0o140600]), just(0x3C05)),
    call("unlink", path),
    call("rmdir", path),
    call("link", path, path),
    call("linkat", fd, just(b""), just(AT_FDCWD), path, just(0x1000)),
    call("symlink", st.sampled_from([b"x", b"a" * 127, b"a" * 128, b"a" * 4000]), path),
    call(
        "renameat2", just(AT_FDCWD), path, just(AT_FDCWD), path, st.sampled_from([0, 0, NOREPLACE, EXCHANGE, WHITEOUT])
    ),
    call("close", fd),
)
xattrs = st.one_of(
    st.builds(lambda p, n, d, f: ("setxattr", (p, n, d, len(d.bytes), f)), path, xattr, data, st.integers(0, 2)),
    call("getxattr", path, xattr, just(Room(3 * PAGE)), st.sampled_from([0, 5, 3 * PAGE])),
    call("listxattr", path, just(Room(200)), st.sampled_from([0, 10, 200])),
    call("removexattr", path, xattr),
)
PROBES: list[Call] = [
    ("stat", (p, Room(144))) for p in (b"/", b"/a", b"/b", b"/d", b"/d/a", b"/d/b", b"/e", b"/e/d", b"/e/d/x")
]


def comparable(name: str, answer: Answer) -> object:
    """What both kernels must agree on: of stat all but the device, inode number and times."""
    result, rooms = answer
    if name in ("stat", "lstat", "fstat") and not result:
        values = STAT.unpack(rooms[0])
        return values[2:6] + values[7:11]
    if name == "getdents64" and result > 0:
        return listing(rooms[0][:result])
    if name == "listxattr" and result > 0:
        return sorted(rooms[0][:result].split(b"\0"))
    return result, [room[: max(result, 0)] for room in rooms]


def listing(raw: bytes) -> list[tuple[bytes, int]]:
    """Names and kinds, in the order of the directory."""
    found = []
    while raw:
        size, kind = struct.unpack_from("<HB", raw, 16)
        found.append((raw[19:size].split(b"\0")[0], kind))
        raw = raw[size:]
    return found


def check(host: HostKernel, ours: TmpfsKernel, sequence: list[Call]) -> None:
    opened = 0
    for name, arguments in sequence:
        theirs, mine = host.call(name, *arguments), ours.call(name, *arguments)
        assert comparable(name, mine) == comparable(name, theirs), (name, arguments)
        opened += name == "open" and theirs[0] >= 0
    for name, arguments in [*PROBES, *[("fstat", (Fd(n), Room(144))) for n in range(opened)]]:
        assert comparable(name, ours.call(name, *arguments)) == comparable(name, host.call(name, *arguments)), arguments
    for directory in (b"/", b"/d", b"/e"):
        for kernel in (host, ours):
            kernel.call("open", directory, O_DIRECTORY, 0)
        dents = ("getdents64", (Fd(-1), Room(4096), 4096))
        assert comparable(dents[0], ours.call(dents[0], *dents[1])) == comparable(
            dents[0], host.call(dents[0], *dents[1])
        )


def compare(sequence: list[Call]) -> None:
    host = HostKernel()
    try:
        assert host.problem is None
        with world() as w:
            check(host, TmpfsKernel(w), sequence)
    finally:
        host.close()


relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))


@needs_oracle
@relaxed
@given(st.lists(st.one_of(files, files, contents, contents, contents), min_size=3, max_size=25))
def test_contents_as_on_the_host(sequence: list[Call]) -> None:
    compare(sequence)


@needs_oracle
@relaxed
@given(st.lists(st.one_of(names, names, names, files, xattrs), min_size=3, max_size=25))
def test_names_as_on_the_host(sequence: list[Call]) -> None:
    compare([("mkdir", (b"/d", 0o755)), ("mkdir", (b"/e", 0o755)), *sequence])
