"""devices/fs/tmpfs: random calls to the host's tmpfs and to ours, with the same answers; and what no oracle shows."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devices.errors import SysError
from devices.fs.tmpfs import FILE_SYSTEMS, RAMFS, TMPFS, Tmpfs, make_tmpfs
from devices.fs.tmpfs.superblock import Options, parse_options, parse_size, split_options
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
    from collections.abc import Callable, Iterator

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


path = st.sampled_from([b"/a", b"/b", b"/d", b"/d/a", b"/d/b", b"/e", b"/e/d", b"/e/d/x", b"/d/a", b"/d/b"])
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
        "renameat2",
        just(AT_FDCWD),
        path,
        just(AT_FDCWD),
        path,
        st.sampled_from([0, 0, NOREPLACE, EXCHANGE, EXCHANGE, WHITEOUT]),
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


# Limits and options


class Small(TmpfsKernel):
    """A task whose root is a tmpfs with limits."""

    def __init__(self, world: World, options: Options) -> None:
        super().__init__(world)
        vfs = world.kernel.vfs
        vfs.namespace = vfs.first_fs = None
        self.tmpfs = Tmpfs(world.kernel, options=options)
        set_root_locked(world.kernel, self.tmpfs)
        self.task = world.new_process()
        self.data = self.task.memory.mmap(0, 1 << 20, 3, 0x22)

    def __call__(self, name: str, *arguments: Argument) -> int:
        return self.call(name, *arguments)[0]


@pytest.fixture
def small() -> Iterator[Callable[..., Small]]:
    with world() as w:
        free = w.kernel.memory.frames.free
        made: list[Small] = []

        def make(**options: int) -> Small:
            made.append(Small(w, Options(**options)))
            return made[-1]

        yield make
        for kernel in made:
            kernel.task.memory.teardown()
            kernel.tmpfs.shutdown()
            assert kernel.tmpfs.used_blocks == 0
            assert kernel.tmpfs.used_space == 0
        assert w.kernel.memory.frames.free >= free - len(made) * 8, "frames come back"


def test_a_write_takes_what_room_there_is(small: Callable[..., Small]) -> None:
    kernel = small(blocks=3)
    assert kernel("open", b"/f", O, 0o600) == 0
    assert kernel("pwrite64", Fd(0), Data(b"x" * 5 * PAGE), 5 * PAGE, 100) == 3 * PAGE - 100
    assert kernel("pwrite64", Fd(0), Data(b"x"), 1, 3 * PAGE) == -errno.ENOSPC
    assert kernel("pwrite64", Fd(0), Data(b"y" * PAGE), PAGE, PAGE) == PAGE, "what is there can be written over"
    assert kernel("fallocate", Fd(0), 0, 3 * PAGE, 1) == -errno.ENOSPC
    assert kernel("fallocate", Fd(0), 3, 0, PAGE) == 0
    assert kernel("fallocate", Fd(0), 1, 10 * PAGE, PAGE) == 0
    assert kernel("pwrite64", Fd(0), Data(b"z"), 1, 0) == -errno.ENOSPC
    assert kernel.tmpfs.statfs()[2:5] == (3, 0, 0)


def test_a_mapping_without_room_is_no_memory(small: Callable[..., Small]) -> None:
    kernel = small(blocks=2)
    kernel("open", b"/f", O, 0o600)
    kernel("ftruncate", Fd(0), 10 * PAGE)
    at = kernel("mmap", 0, 10 * PAGE, 3, 1, Fd(0), 0)
    memory = kernel.task.memory
    memory.write(at, b"1")
    memory.write(at + 5 * PAGE, b"2")
    with pytest.raises(SysError, match="EFAULT"):
        memory.write(at + 7 * PAGE, b"3")
    assert memory.read(at + 5 * PAGE, 1) == b"2"


def test_inodes_links_and_attributes_count(small: Callable[..., Small]) -> None:
    kernel = small(inodes=4)
    assert kernel("mkdir", b"/d", 0o700) == 0
    assert kernel("open", b"/f", O, 0o600) == 0
    assert kernel("link", b"/f", b"/g") == 0
    assert kernel("link", b"/f", b"/h") == -errno.ENOSPC
    assert kernel("mkdir", b"/e", 0o700) == -errno.ENOSPC
    assert kernel("setxattr", b"/f", b"user.a", Data(b"v" * 10), 10, 0) == -errno.ENOSPC
    assert kernel.tmpfs.statfs()[5:7] == (4, 0)
    assert kernel("unlink", b"/g") == 0
    assert kernel("setxattr", b"/f", b"user.a", Data(b"v" * 10), 10, 0) == 0
    assert kernel("mkdir", b"/e", 0o700) == -errno.ENOSPC
    assert kernel("unlink", b"/f") == 0
    assert kernel("mkdir", b"/e", 0o700) == -errno.ENOSPC, "the file is still open"
    assert kernel("close", Fd(0)) == 0
    assert kernel("mkdir", b"/e", 0o700) == 0


def test_an_unlinked_file_lives_until_it_is_closed_and_unmapped(small: Callable[..., Small]) -> None:
    kernel = small()
    kernel("open", b"/f", O, 0o600)
    kernel("write", Fd(0), Data(b"abc"), 3)
    at = kernel("mmap", 0, PAGE, 3, 1, Fd(0), 0)
    kernel("unlink", b"/f")
    kernel("close", Fd(0))
    assert kernel.task.memory.read(at, 3) == b"abc"
    assert kernel.tmpfs.used_blocks == 1
    assert kernel("munmap", at, PAGE) == 0
    assert kernel.tmpfs.used_blocks == 0


def test_positions_survive_changes(small: Callable[..., Small]) -> None:
    kernel = small()
    for number in range(200):
        kernel("mkdir", b"/%03d" % number, 0o700)
    kernel("open", b"/", O_DIRECTORY, 0)
    seen: list[bytes] = []
    while True:
        count, rooms = kernel.call("getdents64", Fd(0), Room(300), 300)
        found = [name for name, _ in listing(rooms[0][:count])]
        if not found:
            break
        seen += found
        for name in found[:2]:
            kernel("rmdir", b"/" + name)
        kernel("mkdir", b"/new%d" % len(seen), 0o700)
    assert sorted(seen) == sorted([b".", b"..", *(b"%03d" % n for n in range(200))])


def test_options() -> None:
    total = 1 << 30
    assert parse_size(b"10%", total) == total // 10
    assert parse_size(b"0x10k", total) == 16 << 10
    assert parse_options(split_options(b"size=1m,nr_inodes=2k,mode=0750,uid=3,gid=4,huge=never"), total) == Options(
        256, 2048, 0o750, 3, 4
    )
    assert parse_options({b"nr_blocks": b"5"}, total).blocks == 5
    for wrong in (b"size", b"size=1z", b"mode=9", b"uid=x", b"nonsense", b"huge=maybe", b"uid=-1", b"inode64=1"):
        with pytest.raises(SysError, match="EINVAL"):
            parse_options(split_options(wrong), total)


def test_shown_options_and_remount() -> None:
    with world() as w:
        made = TMPFS.mount(w.kernel, w.task, b"none", 0, b"size=40k,mode=700,uid=5")
        assert made.options() == b",size=40k,mode=700,uid=5"
        assert (made.root.mode & 0o7777, made.root.uid) == (0o700, 5)
        made.remount(0, {b"size": b"80k"})
        assert made.options().startswith(b",size=80k")
        assert isinstance(made, Tmpfs)
        made.used_blocks = 15
        for wrong in ({b"size": b"40k"}, {b"what": b""}, {b"nr_inodes": b"1x"}):
            with pytest.raises(SysError, match="EINVAL"):
                made.remount(0, wrong)
        made.remount(1, {b"size": b"0"})
        assert made.flags == 1
        with pytest.raises(SysError, match="EINVAL"):
            made.remount(0, {b"size": b"1g"})
        made.used_blocks = 0
        assert TMPFS.mount(w.kernel, None, b"none", 0, b"").options() == b""
        assert [fs.name for fs in FILE_SYSTEMS] == [b"tmpfs", b"ramfs"]


def test_ramfs() -> None:
    with world() as w:
        made = RAMFS.mount(w.kernel, w.task, b"none", 0, b"mode=711,whatever")
        assert made.root.mode & 0o7777 == 0o711
        assert made.statfs()[:3] == (0x858458F6, PAGE, 0)
        made.root.mkdir(w.task, b"d", 0o755)
        assert (made.root.size, made.root.nlink) == (0, 3)
        with pytest.raises(SysError, match="ENOTSUP"):
            made.root.setxattr(w.task, b"user.a", b"b", 0)
