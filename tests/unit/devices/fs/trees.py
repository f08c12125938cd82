"""Random calls on a small tree of files, to the host's Linux and to a file system of ours: what both must agree on."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from devices.vfs.mount import set_root_locked
from tests.unit.devices.support import World
from tests.unit.devices.vfs.oracle import STAT_FIELDS, Answer, Argument, Data, Fd, HostKernel, OurKernel, Room, names_in

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.vfs.inode import SuperBlock

AT_FDCWD = -100
O_WRONLY, O_RDWR, O_CREAT, O_EXCL, O_TRUNC, O_APPEND = 1, 2, 0o100, 0o200, 0o1000, 0o2000
O_DIRECTORY, O_NOFOLLOW, O_TMPFILE = 0o200000, 0o400000, 0o20200000
NOREPLACE, EXCHANGE = 1, 2
PAGE = 4096

Call = tuple[str, tuple[Argument, ...]]


class RootKernel(OurKernel):
    """A task whose root is `sb`."""

    def __init__(self, world: World, sb: SuperBlock) -> None:
        super().__init__(world)
        vfs = world.kernel.vfs
        vfs.namespace = vfs.first_fs = None
        self.sb = sb
        set_root_locked(world.kernel, sb)
        self.task = world.new_process()
        self.data = self.task.memory.mmap(0, 1 << 20, 3, 0x22)

    def __call__(self, name: str, *arguments: Argument) -> int:
        return self.call(name, *arguments)[0]


@contextlib.contextmanager
def directory() -> Iterator[bytes]:
    """A directory of the host, on a tmpfs as the oracle's is where there is one."""
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=place, prefix="pyvmm-test-") as path:
        os.chmod(path, 0o755)
        yield os.fsencode(path)


# The tree that everything begins with

CONTENTS = bytes(range(256)) * 40
INITIAL: list[Call] = [
    ("umask", (0o022,)),
    ("mkdir", (b"/d", 0o755)),
    ("mkdir", (b"/d/sub", 0o755)),
    ("mkdir", (b"/d/sub/deep", 0o755)),
    ("mkdir", (b"/e", 0o755)),
    ("open", (b"/a", O_RDWR | O_CREAT, 0o644)),
    ("write", (Fd(0), Data(CONTENTS), len(CONTENTS))),
    ("open", (b"/d/x", O_RDWR | O_CREAT, 0o600)),
    ("write", (Fd(1), Data(b"in a directory"), 14)),
    ("link", (b"/d/x", b"/d/sub/y")),
    ("open", (b"/d/sub/deep/z", O_RDWR | O_CREAT, 0o640)),
    ("ftruncate", (Fd(2), 3 * PAGE)),
    ("symlink", (b"d/sub", b"/s")),
    ("symlink", (b"../a", b"/d/s")),
    ("mknod", (b"/p", stat.S_IFIFO | 0o600, 0)),
    ("setxattr", (b"/a", b"user.a", Data(b"value"), 5, 0)),
    ("setxattr", (b"/d", b"user.b", Data(b"of a directory"), 14, 0)),
    ("close", (Fd(0),)),
    ("close", (Fd(1),)),
    ("close", (Fd(2),)),
]
PATHS = (
    b"/a", b"/b", b"/d", b"/e", b"/s", b"/p", b"/d/x", b"/d/s", b"/d/n", b"/d/sub", b"/d/sub/y", b"/d/sub/n", b"/e/x",
    b"/d/sub/deep", b"/d/sub/deep/z", b"/e/d", b"/e/d/x", b"/e/d/sub/y", b"/s/y", b"/s/deep/z", b"/e/sub", b"/e/n",
)  # fmt: skip

# Calls


def call(name: str, *arguments: st.SearchStrategy[Argument]) -> st.SearchStrategy[Call]:
    return st.tuples(st.just(name), st.tuples(*arguments))


def just(value: Argument) -> st.SearchStrategy[Argument]:
    return st.just(value)


path = st.sampled_from(PATHS)
fd = st.builds(Fd, st.integers(3, 8))
"""0 to 2 were closed again in INITIAL."""
offset = st.one_of(st.integers(0, 4 * PAGE), st.sampled_from([0, 10, PAGE, 10239, 1 << 33]))
data = st.builds(lambda byte, n: Data(bytes([byte]) * n), st.integers(1, 255), st.sampled_from([1, 14, PAGE, 9000]))
mode = st.sampled_from([0o755, 0o700, 0o644, 0o600, 0o777])
xattr = st.sampled_from([b"user.a", b"user.b", b"user.c"])
stat_room = just(Room(144))
opens = st.one_of(
    call("open", path, st.sampled_from([0, 0, 0, 1, 2, 2, 0o102, 0o1102, 0o302, 0o2102, 0o1001, O_DIRECTORY]), mode),
    call("open", st.sampled_from([b"/", b"/d/sub", b"/e"]), just(O_TMPFILE | O_RDWR), mode),
).filter(lambda c: c[1][0] != b"/p")
reads = st.one_of(
    call("pread64", fd, just(Room(3 * PAGE)), st.sampled_from([3 * PAGE, PAGE, 17]), offset),
    call("read", fd, just(Room(PAGE)), just(PAGE)),
    call("lseek", fd, offset, st.integers(0, 4)),
    call("lstat", path, stat_room),
    call("stat", path, stat_room),
    call("fstat", fd, stat_room),
    call("readlink", path, just(Room(64)), just(64)),
    call("getxattr", path, xattr, just(Room(32)), st.sampled_from([0, 32])),
    call("listxattr", path, just(Room(200)), just(200)),
    call("access", path, st.sampled_from([0, 1, 2, 4])),
)
writes = st.one_of(
    st.builds(lambda f, d, o: ("pwrite64", (f, d, len(d.bytes), o)), fd, data, offset),
    st.builds(lambda f, d: ("write", (f, d, len(d.bytes))), fd, data),
    call("ftruncate", fd, offset),
    call("truncate", path, offset),
    call("fallocate", fd, st.sampled_from([0, 1, 3]), st.integers(0, 5 * PAGE), st.sampled_from([1, PAGE, 3 * PAGE])),
    call("chmod", path, mode),
    call("fchmod", fd, mode),
    call("lchown", path, st.sampled_from([0, 1000]), st.sampled_from([0, 1000])),
    call("fchown", fd, st.sampled_from([0, 1000]), just(1000)),
    call("utimensat", just(AT_FDCWD), path, just(Data(b"".join(n.to_bytes(8, "little") for n in (5, 6, 7, 8)))),
         st.sampled_from([0, 0x100])),
    call("setxattr", path, xattr, just(Data(b"another")), just(7), st.sampled_from([0, 1, 2])),
    call("removexattr", path, xattr),
)  # fmt: skip
names = st.one_of(
    call("mkdir", path, mode),
    call("unlink", path),
    call("unlink", path),
    call("rmdir", path),
    call("link", path, path),
    call("linkat", fd, just(b""), just(AT_FDCWD), path, just(0x1000)),
    call("symlink", st.sampled_from([b"d", b"/a", b"nowhere"]), path),
    call("mknod", path, st.sampled_from([stat.S_IFIFO | 0o644, stat.S_IFSOCK | 0o600]), just(0)),
    call("renameat2", just(AT_FDCWD), path, just(AT_FDCWD), path, st.sampled_from([0, 0, 0, NOREPLACE, EXCHANGE])),
    call("close", fd),
)
sequences = st.lists(st.one_of(opens, reads, writes, names, names, names), min_size=2, max_size=30)

# Comparing


def attributes(raw: bytes, times: bool) -> tuple[int, ...]:
    """Of a struct stat: links, mode, owner, size (of a directory neither links nor size)."""
    values = STAT_FIELDS.unpack(raw)
    directory = stat.S_ISDIR(values[3])
    found = (0 if directory else values[2], *values[3:6], 0 if directory else values[8])
    return (*found, *values[13:15]) if times else found


def comparable(name: str, answer: Answer) -> object:
    result, rooms = answer
    if result < 0:
        return result
    if name in ("stat", "lstat", "fstat"):
        return attributes(rooms[0], False)
    if name == "listxattr":
        return sorted(rooms[0][:result].split(b"\0"))
    return result, [room[:result] for room in rooms]


def check(host: HostKernel, ours: RootKernel, calls: list[Call]) -> None:
    for number, (name, arguments) in enumerate(calls):
        expected = comparable(name, host.call(name, *arguments))
        assert comparable(name, ours.call(name, *arguments)) == expected, (number, name, arguments)


def tree(kernel: HostKernel | RootKernel, times: bool = False) -> list[object]:
    """Everything below the root, with contents and attributes."""
    found: list[object] = []

    def visit(place: bytes) -> None:
        raw = kernel.call("lstat", place or b"/", Room(144))[1][0]
        kind = stat.S_IFMT(STAT_FIELDS.unpack(raw)[3])
        found.append((place, attributes(raw, times)))
        count, rooms = kernel.call("llistxattr", place or b"/", Room(400), 400)
        found.append(sorted(rooms[0][:count].split(b"\0")))
        if kind == stat.S_IFLNK:
            count, rooms = kernel.call("readlink", place, Room(64), 64)
            found.append(rooms[0][:count])
        elif kind == stat.S_IFREG:
            kernel.call("open", place, 0, 0)
            count, rooms = kernel.call("pread64", Fd(-1), Room(5 * PAGE), 5 * PAGE, 0)
            found.append(rooms[0][:count])
            kernel.call("close", Fd(-1))
        elif kind == stat.S_IFDIR:
            assert kernel.call("open", place or b"/", O_DIRECTORY, 0)[0] == 0
            below = names_in(*reversed_answer(kernel.call("getdents64", Fd(-1), Room(8192), 8192)))
            kernel.call("close", Fd(-1))
            for name in below:
                if name not in (b".", b".."):
                    visit(place + b"/" + name)

    visit(b"")
    return found


def reversed_answer(answer: Answer) -> tuple[bytes, int]:
    return answer[1][0], answer[0]


def host_tree(path: bytes) -> list[object]:
    """A directory of the host: names, what lstat says, contents, extended attributes. Times of access are left out."""
    found: list[object] = []
    for place, directories, files in os.walk(path):
        directories.sort()
        for name in sorted([*directories, *files, b"."]):
            full = os.path.join(place, name)
            host = os.lstat(full)
            what: object = None
            if stat.S_ISREG(host.st_mode):
                with open(full, "rb") as file:
                    what = hashlib.sha256(file.read()).digest()
            elif stat.S_ISLNK(host.st_mode):
                what = os.readlink(full)
            found.append(
                (
                    full, host.st_ino, host.st_mode, host.st_nlink, host.st_uid, host.st_gid, host.st_size,
                    host.st_mtime_ns, host.st_ctime_ns, what, sorted(os.listxattr(full, follow_symlinks=False)),
                )
            )  # fmt: skip
    return found
