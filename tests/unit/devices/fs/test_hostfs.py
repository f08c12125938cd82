"""devices/fs/hostfs: random calls to the host's Linux and to a directory of it, with the same answers; how it is kept
within bounds is in tests/guest/test_escape.py."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import resource
import stat
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from devices.errors import SysError
from devices.fs.hostfs import HostFs
from devices.fs.hostfs.superblock import DEVICE_SHIFT
from devices.vfs.inode import SB_RDONLY
from tests.unit.devices.fs.trees import (
    CONTENTS,
    INITIAL,
    O_APPEND,
    O_CREAT,
    O_DIRECTORY,
    O_RDWR,
    O_TRUNC,
    O_WRONLY,
    PAGE,
    Call,
    RootKernel,
    check,
    directory,
    host_tree,
    sequences,
    tree,
)
from tests.unit.devices.support import World, world
from tests.unit.devices.vfs.oracle import STAT_FIELDS, Data, Fd, HostKernel, Room, names_in, reason_why_not

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_ORACLE = reason_why_not()
needs_oracle = pytest.mark.skipif(NO_ORACLE is not None, reason=str(NO_ORACLE))
MAP_SHARED, MAP_PRIVATE, MS_SYNC = 1, 2, 4
AT_SYMLINK_NOFOLLOW, AT_FDCWD = 0x100, -100
SEEK_DATA, SEEK_HOLE = 3, 4


@needs_oracle
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(sequences)
def test_as_on_the_host(calls: list[Call]) -> None:
    host = HostKernel()
    try:
        with directory() as path, world() as w:
            ours = RootKernel(w, HostFs(w.kernel.new_dev_locked(), path, read_only=False))
            check(host, ours, INITIAL)
            check(host, ours, calls)
            assert tree(ours) == tree(host)
            ours.sb.shutdown()
            again = RootKernel(w, HostFs(w.kernel.new_dev_locked(), path, read_only=True))
            assert tree(again) == tree(host), "the same from the host's directory alone"
    finally:
        host.close()


class Mounted(RootKernel):
    """A task whose root is a directory of the host, read-write."""

    def __init__(self, world: World, path: bytes, read_only: bool = False) -> None:
        self.host = HostFs(world.kernel.new_dev_locked(), path, read_only=read_only)
        super().__init__(world, self.host)
        self.path = path

    def there(self, name: str) -> bytes:
        """The path of a file on the host."""
        return os.path.join(self.path, os.fsencode(name))

    def read(self, name: str) -> bytes:
        with open(self.there(name), "rb") as file:
            return file.read()

    def write(self, name: str, content: bytes) -> None:
        with open(self.there(name), "wb") as file:
            file.write(content)


@pytest.fixture
def mounted() -> Iterator[Mounted]:
    with directory() as path, world() as w:
        kernel = Mounted(w, path)
        yield kernel
        kernel.task.memory.teardown()
        kernel.host.shutdown()


def test_what_write_returned_for_is_in_the_file(mounted: Mounted) -> None:
    mounted("open", b"/f", O_RDWR | O_CREAT, 0o640)
    assert mounted("write", Fd(0), Data(b"hello"), 5) == 5
    assert mounted.read("f") == b"hello"
    assert mounted("pwrite64", Fd(0), Data(b"J"), 1, 0) == 1
    assert mounted.read("f") == b"Jello"
    assert mounted("ftruncate", Fd(0), 2) == 0
    assert mounted.read("f") == b"Je"
    assert stat.S_IMODE(os.stat(mounted.there("f")).st_mode) == 0o640


def test_appending_goes_behind_what_the_host_has_appended(mounted: Mounted) -> None:
    mounted("open", b"/f", O_WRONLY | O_CREAT | O_APPEND, 0o600)
    mounted("write", Fd(0), Data(b"guest"), 5)
    with open(mounted.there("f"), "ab") as file:
        file.write(b" host")
    assert mounted("pwrite64", Fd(0), Data(b" again"), 6, 0) == 6
    assert mounted.read("f") == b"guest host again"


def test_open_with_o_trunc_empties_the_host_file(mounted: Mounted) -> None:
    mounted.write("f", b"old")
    assert mounted("open", b"/f", O_WRONLY | O_TRUNC, 0) == 0
    assert mounted.read("f") == b""


def test_offsets_beyond_4_gib_and_holes(mounted: Mounted) -> None:
    mounted("open", b"/f", O_RDWR | O_CREAT, 0o600)
    far = 5 << 30
    assert mounted("pwrite64", Fd(0), Data(b"end"), 3, far) == 3
    assert os.stat(mounted.there("f")).st_size == far + 3
    assert os.stat(mounted.there("f")).st_blocks < 1000
    assert mounted.call("pread64", Fd(0), Room(8), 8, far - 1) == (4, [b"\0end\0\0\0\0"])
    assert mounted("lseek", Fd(0), 0, SEEK_HOLE) == 0
    assert mounted("lseek", Fd(0), 0, SEEK_DATA) == far
    assert mounted("pread64", Fd(0), Room(8), 8, (1 << 63) - 9) == 0


def test_direct_io_is_plain_io(mounted: Mounted) -> None:
    mounted.write("f", CONTENTS)
    assert mounted("open", b"/f", O_RDWR | 0o40000, 0) == 0
    assert mounted.call("pread64", Fd(0), Room(3), 3, 1) == (3, [CONTENTS[1:4]])


# Mappings


def test_a_shared_mapping_reaches_the_host(mounted: Mounted) -> None:
    mounted.write("f", b"a" * 3 * PAGE)
    mounted("open", b"/f", O_RDWR, 0)
    at = mounted("mmap", 0, 3 * PAGE, 3, MAP_SHARED, Fd(0), 0)
    memory = mounted.task.memory
    memory.write(at + PAGE, b"mapped")
    assert mounted.call("pread64", Fd(0), Room(6), 6, PAGE) == (6, [b"mapped"]), "read(2) sees it at once"
    assert mounted("msync", at, 3 * PAGE, MS_SYNC) == 0
    assert mounted.read("f")[PAGE : PAGE + 6] == b"mapped"
    assert mounted("pwrite64", Fd(0), Data(b"written"), 7, 0) == 7
    assert memory.read(at, 7) == b"written", "the mapping sees write(2)"
    assert mounted.read("f")[:7] == b"written"
    memory.write(at + 2 * PAGE, b"later")
    assert mounted("munmap", at, 3 * PAGE) == 0
    assert mounted.read("f")[2 * PAGE : 2 * PAGE + 5] == b"later"


def test_a_mapping_that_is_left_reaches_the_host(mounted: Mounted) -> None:
    mounted.write("f", b"a" * PAGE)
    mounted("open", b"/f", O_RDWR, 0)
    at = mounted("mmap", 0, PAGE, 3, MAP_SHARED, Fd(0), 0)
    mounted("close", Fd(0))
    mounted("unlink", b"/g")
    mounted.task.memory.write(at, b"exit")
    mounted.task.memory.teardown()
    assert mounted.read("f")[:4] == b"exit"


def test_a_change_of_the_host_is_seen_at_the_next_open(mounted: Mounted) -> None:
    mounted.write("f", b"a" * 2 * PAGE)
    mounted("open", b"/f", 0, 0)
    at = mounted("mmap", 0, 2 * PAGE, 1, MAP_SHARED, Fd(0), 0)
    assert mounted.task.memory.read(at, 1) == b"a"
    mounted.write("f", b"b" * PAGE)
    mounted("open", b"/f", 0, 0)
    assert mounted.call("pread64", Fd(1), Room(2 * PAGE), 2 * PAGE, 0)[0] == PAGE
    assert mounted.task.memory.read(at, 1) == b"b"
    with pytest.raises(SysError, match="EFAULT"):
        mounted.task.memory.read(at + PAGE, 1)


def test_pages_outlive_their_inode_and_are_found_again(mounted: Mounted) -> None:
    """An executable's interpreter is mapped without an open file."""
    mounted.write("f", b"a" * PAGE)
    file = mounted.host.top.lookup(mounted.task, b"f")
    assert file is not None
    cache = file.page_cache(mounted.world.kernel.memory)  # type: ignore[attr-defined]  # it is a HostInode
    at = mounted.task.memory.mmap(0, PAGE, 3, MAP_SHARED, cache)
    mounted.task.memory.write(at, b"kept")
    del file
    assert len(mounted.host.orphans) == 1
    mounted("open", b"/f", O_RDWR, 0)
    assert not mounted.host.orphans
    assert mounted.call("pread64", Fd(0), Room(4), 4, 0) == (4, [b"kept"])
    mounted("close", Fd(0))
    forget(mounted)
    assert len(mounted.host.orphans) == 1
    free = mounted.world.kernel.memory.frames.free
    assert mounted("munmap", at, PAGE) == 0
    assert mounted.read("f")[:4] == b"kept"
    mounted("stat", b"/nothing", Room(144))
    assert not mounted.host.orphans
    assert mounted.world.kernel.memory.frames.free > free


def forget(kernel: RootKernel) -> None:
    kept = kernel.world.kernel.vfs.kept
    kept[:] = [None] * len(kept)


def test_fallocate_reaches_pages(mounted: Mounted) -> None:
    mounted.write("f", b"a" * 3 * PAGE)
    mounted("open", b"/f", O_RDWR, 0)
    at = mounted("mmap", 0, 3 * PAGE, 3, MAP_SHARED, Fd(0), 0)
    mounted.task.memory.write(at + PAGE, b"b")
    assert mounted("fallocate", Fd(0), 3, PAGE, PAGE) == 0
    assert mounted.task.memory.read(at + PAGE, 2) == b"\0\0"
    assert mounted.read("f") == b"a" * PAGE + bytes(PAGE) + b"a" * PAGE


# Attributes


def test_times_and_owner_of_a_symbolic_link(mounted: Mounted) -> None:
    mounted.write("target", b"")
    before = os.stat(mounted.there("target"))
    mounted("symlink", b"target", b"/l")
    times = Data(struct.pack("<4q", 5, 6, 7, 8))
    assert mounted("utimensat", AT_FDCWD, b"/l", times, AT_SYMLINK_NOFOLLOW) == 0
    host = os.lstat(mounted.there("l"))
    assert (host.st_atime_ns, host.st_mtime_ns) == (5_000_000_006, 7_000_000_008)
    if not os.geteuid():
        assert mounted("lchown", b"/l", 3, 4) == 0
        host = os.lstat(mounted.there("l"))
        assert (host.st_uid, host.st_gid) == (3, 4)
    assert mounted("fchmodat2", AT_FDCWD, b"/l", 0o600, AT_SYMLINK_NOFOLLOW) == -errno.EOPNOTSUPP
    after = os.stat(mounted.there("target"))
    assert (before.st_uid, before.st_mtime_ns, before.st_mode) == (after.st_uid, after.st_mtime_ns, after.st_mode)


def test_only_user_attributes_are_set(mounted: Mounted) -> None:
    mounted.write("f", b"")
    assert mounted("setxattr", b"/f", b"user.a", Data(b"v"), 1, 0) == 0
    assert os.getxattr(mounted.there("f"), "user.a") == b"v"
    capability = Data(struct.pack("<5I", 0x2000001, 0xFFFFFFFF, 0, 0, 0))
    for name, value in ((b"security.capability", capability), (b"trusted.a", Data(b"v"))):
        assert mounted("setxattr", b"/f", name, value, len(value.bytes), 0) == -errno.EOPNOTSUPP
    assert os.listxattr(mounted.there("f")) == ["user.a"]


def test_statfs_is_the_hosts(mounted: Mounted) -> None:
    assert mounted("statfs", b"/", Room(120)) == 0
    raw = mounted.call("statfs", b"/", Room(120))[1][0]
    host = os.statvfs(mounted.path)
    values = struct.unpack_from("<qqQ", raw)
    assert values == (0x00C0FFEE, host.f_bsize, host.f_blocks)


def test_inode_numbers_are_the_hosts(mounted: Mounted) -> None:
    mounted.write("f", b"")
    raw = mounted.call("stat", b"/f", Room(144))[1][0]
    assert STAT_FIELDS.unpack(raw)[1] == os.stat(mounted.there("f")).st_ino
    fs = mounted.host
    here = os.stat(mounted.path).st_dev
    assert fs.ino_of(here, 5) == 5
    assert fs.ino_of(here + 1, 5) == 1 << DEVICE_SHIFT | 5
    assert fs.ino_of(here + 2, 5) == 2 << DEVICE_SHIFT | 5
    assert len({fs.ino_of(here + 1, 1 << 60), fs.ino_of(here + 1, 1 << 61), fs.ino_of(here + 1, 1 << 60)}) == 2


# Directories


def test_reading_a_directory_while_it_changes(mounted: Mounted) -> None:
    for number in range(400):
        mounted.write(f"{number:03}", b"")
    mounted("open", b"/", O_DIRECTORY, 0)
    seen: list[bytes] = []
    while (answer := mounted.call("getdents64", Fd(0), Room(600), 600))[0] > 0:
        found = [name for name in names_in(answer[1][0], answer[0]) if name not in (b".", b"..")]
        seen += found
        for name in found:
            assert mounted("unlink", b"/" + name) == 0
    assert sorted(seen) == [b"%03d" % n for n in range(400)]
    assert os.listdir(mounted.path) == []


# Read-only


def test_nothing_changes_what_is_read_only() -> None:
    with directory() as path:
        with world() as w:
            kernel = Mounted(w, path)
            for name, arguments in INITIAL:
                kernel.call(name, *arguments)
        before = host_tree(path)
        times = {name: os.lstat(os.path.join(path, name)).st_atime_ns for name in (b"a", b"d", b".")}
        with world() as w:
            kernel = Mounted(w, path, read_only=True)
            assert len(tree(kernel)) > 20
            attempts: list[Call] = [
                ("open", (b"/a", O_RDWR, 0)), ("open", (b"/new", O_RDWR | O_CREAT, 0o600)), ("truncate", (b"/a", 0)),
                ("mkdir", (b"/new", 0o700)), ("unlink", (b"/a",)), ("rmdir", (b"/e",)), ("rename", (b"/a", b"/b")),
                ("link", (b"/a", b"/b")), ("symlink", (b"x", b"/b")), ("mknod", (b"/b", stat.S_IFIFO | 0o600, 0)),
                ("chmod", (b"/a", 0)), ("lchown", (b"/s", 1, 1)), ("utimensat", (AT_FDCWD, b"/a", 0, 0)),
                ("setxattr", (b"/a", b"user.n", Data(b"v"), 1, 0)), ("removexattr", (b"/a", b"user.a")),
                ("open", (b"/", 0o20200002, 0o600)),
            ]  # fmt: skip
            for name, arguments in attempts:
                assert kernel(name, *arguments) == -errno.EROFS, name
            kernel.sb.flags &= ~SB_RDONLY  # should the VFS be fooled one day, the file system itself still refuses
            for mount in w.kernel.vfs.mounts.values():
                mount.flags &= ~1
            for name, arguments in attempts:
                assert kernel(name, *arguments) == -errno.EROFS, name
            with pytest.raises(SysError, match="EROFS"):
                kernel.host.remount(0, {})
        assert host_tree(path) == before
        assert {name: os.lstat(os.path.join(path, name)).st_atime_ns for name in times} == times


# Errors and limits of the host


def test_errors_of_the_host_come_through(mounted: Mounted) -> None:
    mounted.write("f", b"")
    mounted("open", b"/f", O_RDWR, 0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE, hard))
    try:
        assert mounted("pwrite64", Fd(0), Data(b"x"), 1, 2 * PAGE) == -errno.EFBIG
        assert mounted("ftruncate", Fd(0), 2 * PAGE) == -errno.EFBIG
        assert mounted("pwrite64", Fd(0), Data(b"x" * PAGE * 2), 2 * PAGE, 0) == PAGE, "what fits"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert mounted("mkdir", b"/" + b"n" * 256, 0o700) == -errno.ENAMETOOLONG


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_host_file_system() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with directory() as path:
        if libc.mount(b"none", path, b"tmpfs", 0, b"size=64k"):
            pytest.skip("no mounts here")
        try:
            with world() as w:
                kernel = Mounted(w, path)
                kernel("open", b"/f", O_RDWR | O_CREAT, 0o600)
                chunk = Data(b"x" * 5 * PAGE)
                results = [kernel("write", Fd(0), chunk, 5 * PAGE) for _ in range(5)]
                assert results[-1] == -errno.ENOSPC
                assert sum(n for n in results if n > 0) == os.stat(kernel.there("f")).st_size <= 64 << 10
                kernel.host.shutdown()
        finally:
            libc.umount2(path, 2)


def test_many_files_do_not_use_up_the_descriptors(mounted: Mounted) -> None:
    """The walk's own memory of recent names gives way; what the guest holds open is ENFILE in the end."""
    for number in range(300):
        mounted.write(f"{number:03}", b"x")
    gc.collect()  # what other tests have left
    used = max(map(int, os.listdir("/proc/self/fd")))
    mounted.host.limit = used + 60
    for number in range(300):
        assert mounted("stat", b"/%03d" % number, Room(144)) == 0
    results = [mounted("open", b"/%03d" % number, 0, 0) for number in range(300)]
    opened = results.count(0)
    assert 20 < opened < 300
    assert set(results[opened:]) == {-errno.ENFILE}
    for number in range(opened):
        assert mounted("close", Fd(number)) == 0
    forget(mounted)
    assert mounted("open", b"/299", 0, 0) == 0


def test_descriptors_are_given_back() -> None:
    with directory() as path:
        before = os.listdir("/proc/self/fd")
        with world() as w:
            during = len(os.listdir("/proc/self/fd"))
            kernel = Mounted(w, path)
            for number in range(50):
                kernel("open", b"/%d" % number, O_RDWR | O_CREAT, 0o600)
                kernel("close", Fd(-1))
            forget(kernel)
            assert len(os.listdir("/proc/self/fd")) <= during + 1
            kernel.host.shutdown()
            assert len(os.listdir("/proc/self/fd")) == during
        assert os.listdir("/proc/self/fd") == before


# Who the monitor runs as


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_monitor_that_is_not_root() -> None:
    """What the host refuses the monitor, it refuses the guest's root."""
    with directory() as path:
        os.chmod(path, 0o777)
        secret = os.path.join(path, b"secret")
        with open(secret, "wb") as file:
            file.write(b"secret")
        os.chmod(secret, 0o600)
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(1234, 1234, 1234)
                os.setresuid(1234, 1234, 1234)
                with world() as w:
                    kernel = Mounted(w, path)
                    assert kernel("open", b"/secret", 0, 0) == -errno.EACCES
                    assert kernel("chmod", b"/secret", 0o666) == -errno.EPERM
                    assert kernel("lchown", b"/secret", 1234, 1234) == -errno.EPERM
                    assert kernel("open", b"/mine", O_RDWR | O_CREAT, 0o600) == 0
                    assert kernel("lchown", b"/mine", 0, 0) == -errno.EPERM
                    raw = kernel.call("stat", b"/mine", Room(144))[1][0]
                    assert STAT_FIELDS.unpack(raw)[4:6] == (1234, 1234)
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert os.stat(os.path.join(path, b"mine")).st_uid == 1234
