"""/dev, and devices by number wherever their files are."""

from __future__ import annotations

import errno
import os
import pty
import stat
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.fs.chardev import install, register
from devices.fs.console import ConsoleFile
from devices.fs.devfs.console import attach_streams_locked, set_console
from devices.memory.abi import MAP_PRIVATE, MAP_SHARED, PROT_READ, PROT_WRITE
from devices.task.process import Credentials
from devices.vfs.abi import AT_FDCWD, O_NONBLOCK, makedev
from devices.vfs.files import OpenFile
from devices.vfs.names import make_node
from tests.unit.devices.fs.pseudo_support import Tree, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

NODES = {
    "null": (1, 3, 0o666), "zero": (1, 5, 0o666), "full": (1, 7, 0o666), "random": (1, 8, 0o666),
    "urandom": (1, 9, 0o666), "kmsg": (1, 11, 0o644), "tty": (5, 0, 0o666), "console": (5, 1, 0o600),
}  # fmt: skip


def failing(number: int) -> pytest.RaisesExc[SysError]:
    return pytest.raises(SysError, check=lambda e: e.errno == number)


@pytest.fixture
def t() -> Iterator[Tree]:
    with tree() as made:
        yield made


def test_what_is_there(t: Tree) -> None:
    assert set(t.names("/dev")) == {*NODES, "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr"}
    for name, (major, minor, mode) in NODES.items():
        inode = t.inode(f"/dev/{name}")
        assert (inode.mode, inode.rdev) == (stat.S_IFCHR | mode, makedev(major, minor))
    assert t.inode("/dev").mode == stat.S_IFDIR | 0o755
    assert t.inode("/dev/shm").mode == stat.S_IFDIR | 0o1777
    assert t.inode("/dev").nlink == 5
    assert t.inode("/dev/stdin").readlink(t.task) == b"/proc/self/fd/0"


def read(t: Tree, path: str, size: int) -> bytes:
    file = t.open(path)
    t.task.memory.write(t.world.data, b"\xaa" * size)
    count = file.read(t.task, [(t.world.data, size - 3), (t.world.data + size - 3, 3)])
    file.put_locked()
    return t.task.memory.read(t.world.data, count)


def test_reading(t: Tree) -> None:
    assert read(t, "/dev/null", 5000) == b""
    assert read(t, "/dev/zero", 5000) == bytes(5000)
    assert read(t, "/dev/full", 5000) == bytes(5000)
    one, other = read(t, "/dev/random", 5000), read(t, "/dev/urandom", 5000)
    assert len(one) == len(other) == 5000
    assert len(set(one)) > 200
    assert one != other
    for name in ("zero", "urandom"):
        file = t.open(f"/dev/{name}")
        with failing(errno.EFAULT):
            file.read(t.task, [(4096, 10)])
        assert file.read(t.task, [(t.world.data, 10), (4096, 10)]) == 10
        assert file.pread(t.task, [(t.world.data, 10)], 1 << 40) == 10
        file.put_locked()


def test_writing(t: Tree) -> None:
    assert [t.write(f"/dev/{name}", b"12345") for name in ("null", "zero", "random", "urandom")] == [5] * 4
    with failing(errno.ENOSPC):
        t.write("/dev/full", b"x")
    null, random = t.open("/dev/null", 1), t.open("/dev/random", 1)
    assert null.write(t.task, [(4096, 1 << 30)]) == 1 << 30  # nobody looks at it
    with failing(errno.EFAULT):
        random.write(t.task, [(4096, 10)])
    null.put_locked()
    random.put_locked()


def test_seeking(t: Tree) -> None:
    for name in ("null", "zero", "full", "random"):
        file = t.open(f"/dev/{name}")
        assert (file.lseek(100, 0), file.lseek(0, 2)) == (0, 0)
        file.put_locked()


def test_mapping(t: Tree) -> None:
    fd = t.task.files.install(t.open("/dev/zero", 2), 10)
    private = t.world.call("mmap", 0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0)
    shared = t.world.call("mmap", 0, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    for address in (private, shared):
        assert t.task.memory.read(address, 8192) == bytes(8192)
        t.task.memory.write(address + 4000, b"both pages" * 20)
    child = t.task.memory.fork()
    child.write(private, b"child")
    child.write(shared, b"child")
    assert t.task.memory.read(private, 5) == bytes(5)
    assert t.task.memory.read(shared, 5) == b"child"
    child.teardown()
    for name in ("null", "full", "random"):
        fd = t.task.files.install(t.open(f"/dev/{name}", 2), 20)
        with failing(errno.ENODEV):
            t.world.call("mmap", 0, 4096, PROT_READ, MAP_PRIVATE, fd, 0)


def test_random_ioctls(t: Tree) -> None:
    file = t.open("/dev/urandom")
    file.ioctl(t.task, 0x80045200, t.world.data)
    assert t.task.memory.read_u32(t.world.data) == 256
    with failing(errno.EINVAL):
        file.ioctl(t.task, 0x5401, t.world.data)
    t.task.credentials = Credentials(1000, 1000)
    with failing(errno.EPERM):
        file.ioctl(t.task, 0x5207, 0)
    file.put_locked()
    null = t.open("/dev/null")
    with failing(errno.ENOTTY):
        null.ioctl(t.task, 0x5401, t.world.data)
    null.put_locked()


# By number


def test_a_node_on_any_file_system_is_the_device_of_its_number(t: Tree) -> None:
    make_node(t.task, AT_FDCWD, b"/mine", stat.S_IFCHR | 0o666, makedev(1, 5))
    assert t.open("/mine").read(t.task, [(t.world.data, 10)]) == 10
    for kind, major, minor in ((stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 232), (stat.S_IFBLK, 1, 5)):
        name = f"/bad{kind}{major}-{minor}"
        make_node(t.task, AT_FDCWD, name.encode(), kind | 0o666, makedev(major, minor))
        with failing(errno.ENXIO):
            t.open(name)


def test_a_driver_registers_its_number(t: Tree) -> None:
    made: list[OpenFile] = []

    def opener(task: object, path: object, flags: int) -> OpenFile:
        made.append(OpenFile(flags))
        return made[-1]

    register(t.kernel.vfs, 300, 70000, opener)
    install(t.kernel.vfs)  # may be repeated
    make_node(t.task, AT_FDCWD, b"/far", stat.S_IFCHR | 0o600, makedev(300, 70000))
    file = t.open("/far", 2)
    assert (file, file.path is not None) == (made[0], True)
    file.put_locked()


# kmsg


def test_records_of_the_log(t: Tree) -> None:
    reader = t.open("/dev/kmsg", O_NONBLOCK)
    assert reader.poll() & 1 == 0
    with failing(errno.EAGAIN):
        reader.read(t.task, [(t.world.data, 1000)])
    t.write("/dev/kmsg", b"<30>daemon: x\ty\\\n")
    t.write("/dev/kmsg", b"<2>user")
    assert reader.poll() & 1
    with failing(errno.EINVAL):
        reader.read(t.task, [(t.world.data, 5)])
    found = []
    for _ in range(2):
        count = reader.read(t.task, [(t.world.data, 10), (t.world.data + 10, 1000)])
        found.append(t.task.memory.read(t.world.data, count).split(b","))
    assert [(r[0], r[1], r[3]) for r in found] == [
        (b"30", b"0", b"-;daemon: x\\x09y\\x5c\n"), (b"10", b"1", b"-;user\n"),
    ]  # fmt: skip
    with failing(errno.EINVAL):
        t.write("/dev/kmsg", b"x" * 993)
    for number in range(600):
        t.write("/dev/kmsg", b"%d" % number)
    with failing(errno.EPIPE):
        reader.read(t.task, [(t.world.data, 1000)])
    count = reader.read(t.task, [(t.world.data, 1000)])
    assert t.task.memory.read(t.world.data, count).split(b",")[1] == b"90"
    reader.put_locked()


# The console and the standard streams


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_no_console_before_there_are_streams(t: Tree) -> None:
    for name in ("console", "tty"):
        with failing(errno.ENXIO):
            t.open(f"/dev/{name}", 2)


def test_a_terminal_is_the_console(t: Tree, terminal: tuple[int, int]) -> None:
    ours, theirs = terminal
    files = t.task.files
    for fd in range(3):
        files.replace_locked(fd, ConsoleFile(theirs))
    attach_streams_locked(t.task, (theirs,) * 3)
    assert t.inode("/proc/self/fd/1").readlink(t.task) == b"/dev/console"
    inode = files.get(1).inode
    assert inode is t.inode("/dev/console")
    for name in ("console", "tty", "stdout"):
        t.write(f"/dev/{name}", name.encode())
        assert os.read(ours, 100) == name.encode()


def test_without_a_terminal_the_console_is_two_streams(t: Tree) -> None:
    (in_read, in_write), (out_read, out_write) = os.pipe(), os.pipe()
    try:
        set_console(t.kernel, (in_read, out_write, -1))
        with failing(errno.ENXIO):
            t.open("/dev/tty", 2)
        console = t.open("/dev/console", 2)
        os.write(in_write, b"typed")
        assert console.read(t.task, [(t.world.data, 100)]) == 5
        assert console.write(t.task, [(t.world.data, 5)]) == 5
        assert os.read(out_read, 100) == b"typed"
        t.write("/dev/console", b"only out")
        assert os.read(out_read, 100) == b"only out"
        console.put_locked()
    finally:
        for fd in (in_read, in_write, out_read, out_write):
            os.close(fd)


def test_streams_that_are_files_can_be_opened_again_with_no_more_rights(t: Tree, tmp_path: os.PathLike[str]) -> None:
    path = os.path.join(tmp_path, "stream")
    with open(path, "wb") as file:
        file.write(b"contents")
    with open(path, "rb") as source, open(os.path.join(tmp_path, "out"), "ab") as sink:
        t.task.files.replace_locked(0, ConsoleFile(source.fileno()))
        t.task.files.replace_locked(1, ConsoleFile(sink.fileno()))
        attach_streams_locked(t.task, (source.fileno(), sink.fileno(), -1))
        again = t.open("/dev/stdin")
        assert again.read(t.task, [(t.world.data, 100)]) == 8
        for flags in (1, 2, 0o1001):  # also with O_TRUNC
            with failing(errno.EACCES):
                t.open("/dev/stdin", flags)
        with failing(errno.EACCES):
            t.open("/dev/stdout", 0)
        out = t.open("/dev/stdout", 0o1001)
        t.task.memory.write(t.world.data, b"more")
        assert out.write(t.task, [(t.world.data, 4)]) == 4
        name = t.inode("/proc/self/fd/0").readlink(t.task)
        assert name == b"stdio:[%d]" % os.fstat(source.fileno()).st_ino
        assert str(tmp_path).encode() not in name
        with failing(errno.EPERM):
            t.inode("/proc/self/fd/0", follow=True).setattr(mode=0o777)
        again.put_locked()
        out.put_locked()
        t.task.files.close_all_locked()
    with open(os.path.join(tmp_path, "out"), "rb") as sink_again:
        assert sink_again.read() == b"more"
