"""devices/fs/overlayfs: random calls to the host's Linux on a plain copy and to an overlay, with the same answers."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings

from devices.fs.hostfs import HostFs
from devices.fs.overlayfs import OverlayFs
from devices.fs.tmpfs import make_tmpfs
from tests.unit.devices.fs.trees import (
    CONTENTS,
    INITIAL,
    O_CREAT,
    O_DIRECTORY,
    O_RDWR,
    O_TMPFILE,
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


def fill(path: bytes, calls: list[Call]) -> None:
    """Make a tree in a directory of the host."""
    with world() as w:
        kernel = RootKernel(w, HostFs(w.kernel.new_dev_locked(), path, read_only=False))
        for name, arguments in calls:
            assert kernel.call(name, *arguments)[0] >= 0, (name, arguments)
        kernel.sb.shutdown()


def overlay(w: World, *lower: bytes, attributes: bytes | None = None, size: int = 0) -> RootKernel:
    """A task whose root is an overlay of host directories, the topmost first."""
    layers = [HostFs(w.kernel.new_dev_locked(), path, read_only=True, attributes=attributes) for path in lower]
    upper = make_tmpfs(w.kernel, mode=0o755, size=size)
    return RootKernel(w, OverlayFs(w.kernel, [layer.root for layer in layers], upper.root))


@needs_oracle
@settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=100)
@given(sequences)
def test_as_a_plain_copy(calls: list[Call]) -> None:
    host = HostKernel()
    try:
        for name, arguments in INITIAL:
            host.call(name, *arguments)
        with directory() as lower:
            fill(lower, INITIAL)
            before = host_tree(lower)
            with world() as w:
                ours = overlay(w, lower)
                ours.descriptors.fds = [1000, 1000, 1000]
                ours.call("umask", 0o022)
                check(host, ours, calls)
                assert tree(ours) == tree(host)
                forget(w)
                assert tree(ours) == tree(host), "the same without what was in memory"
                ours.sb.shutdown()
            assert host_tree(lower) == before
    finally:
        host.close()


def forget(w: World) -> None:
    """Let go of all inodes that nobody uses."""
    kept = w.kernel.vfs.kept
    kept[:] = [None] * len(kept)


@pytest.fixture
def lower() -> Iterator[bytes]:
    with directory() as path:
        fill(path, INITIAL)
        before = host_tree(path)
        yield path
        assert host_tree(path) == before, "a lower layer was changed"


def ino_of(kernel: RootKernel, path: bytes) -> int:
    result, rooms = kernel.call("lstat", path, Room(144))
    assert result == 0
    return int(STAT_FIELDS.unpack(rooms[0])[1])


def names(kernel: RootKernel, path: bytes) -> list[bytes]:
    assert kernel("open", path, O_DIRECTORY, 0) == 0
    count, rooms = kernel.call("getdents64", Fd(-1), Room(1 << 15), 1 << 15)
    kernel("close", Fd(-1))
    return [name for name in names_in(rooms[0], count) if name not in (b".", b"..")]


def contents(kernel: RootKernel, path: bytes) -> bytes:
    assert kernel("open", path, 0, 0) == 0
    count, rooms = kernel.call("pread64", Fd(-1), Room(1 << 15), 1 << 15, 0)
    kernel("close", Fd(-1))
    return rooms[0][:count]


def test_inode_numbers_stay(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        paths = (b"/a", b"/d", b"/d/x", b"/d/sub/y", b"/s", b"/p")
        before = {path: ino_of(kernel, path) for path in paths}
        assert before[b"/d/x"] == before[b"/d/sub/y"]
        for path in paths:
            assert kernel("lchown", path, 1, 1) == 0
        assert kernel("mkdir", b"/new", 0o700) == 0
        forget(w)
        assert {path: ino_of(kernel, path) for path in paths} == before
        assert kernel("rename", b"/d", b"/moved") == 0
        forget(w)
        assert ino_of(kernel, b"/moved") == before[b"/d"]
        assert ino_of(kernel, b"/moved/x") == before[b"/d/x"]
        assert len({ino_of(kernel, path) for path in (b"/new", b"/moved", b"/a", b"/e", b"/moved/sub")}) == 5


def test_a_listing_shows_the_numbers_of_stat(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        kernel("chmod", b"/a", 0o600)
        kernel("mkdir", b"/new", 0o700)
        kernel("rename", b"/d", b"/moved")
        kernel("open", b"/", O_DIRECTORY, 0)
        count, rooms = kernel.call("getdents64", Fd(0), Room(4096), 4096)
        at, found = 0, {}
        while at < count:
            size = int.from_bytes(rooms[0][at + 16 : at + 18], "little")
            name = rooms[0][at + 19 : at + size].split(b"\0")[0]
            found[name] = int.from_bytes(rooms[0][at : at + 8], "little")
            at += size
        del found[b"."], found[b".."]
        assert found == {name: ino_of(kernel, b"/" + name) for name in found}
        assert set(found) == {b"a", b"new", b"moved", b"e", b"s", b"p"}


def test_removing_while_reading() -> None:
    with directory() as lower, world() as w:
        many = os.path.join(lower, b"many")
        os.mkdir(many)
        for number in range(500):
            os.close(os.open(os.path.join(many, b"%03d" % number), os.O_CREAT, 0o600))
        kernel = overlay(w, lower)
        kernel("open", b"/many", O_DIRECTORY, 0)
        seen: list[bytes] = []
        while (answer := kernel.call("getdents64", Fd(0), Room(700), 700))[0] > 0:
            found = [n for n in names_in(answer[1][0], answer[0]) if n not in (b".", b"..")]
            seen += found
            for name in found:
                assert kernel("unlink", b"/many/" + name) == 0
            kernel("open", b"/many/new", O_RDWR | O_CREAT, 0o600)
            kernel("close", Fd(-1))
        assert sorted(seen) == [b"%03d" % n for n in range(500)]
        assert names(kernel, b"/many") == [b"new"]
        assert kernel("unlink", b"/many/new") == 0
        assert kernel("rmdir", b"/many") == 0
        assert kernel("mkdir", b"/many", 0o700) == 0
        assert names(kernel, b"/many") == []
        assert len(os.listdir(many)) == 500


def test_a_copy_up_without_room_leaves_nothing() -> None:
    with directory() as path:
        with open(os.path.join(path, b"big"), "wb") as file:
            file.write(b"x" * 64 * PAGE)
        with world() as w:
            kernel = overlay(w, path, size=16 * PAGE)
            upper = kernel.sb.layers[0]  # type: ignore[attr-defined]  # it is an OverlayFs
            used = upper.used_space
            assert kernel("open", b"/big", O_RDWR, 0) == -errno.ENOSPC
            assert kernel("chmod", b"/big", 0o600) == -errno.ENOSPC
            assert (upper.used_blocks, upper.used_space) == (0, used)
            assert kernel("open", b"/big", 0, 0) == 0
            count, rooms = kernel.call("pread64", Fd(0), Room(10), 10, 63 * PAGE)
            assert (count, rooms[0]) == (10, b"x" * 10)
            assert kernel("truncate", b"/big", PAGE) == 0, "only what is kept is copied"


def test_an_open_file_goes_on_with_its_copy(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        assert kernel("open", b"/a", 0, 0) == 0
        assert kernel.call("read", Fd(0), Room(4), 4)[1] == [CONTENTS[:4]]
        assert kernel("open", b"/a", O_RDWR, 0) == 0
        assert kernel("pwrite64", Fd(1), Data(b"new!"), 4, 4) == 4
        assert kernel.call("read", Fd(0), Room(4), 4)[1] == [b"new!"]
        assert kernel("unlink", b"/a") == 0
        assert kernel.call("read", Fd(0), Room(4), 4)[1] == [CONTENTS[8:12]]


def test_a_mapping_keeps_the_lower_file(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        kernel("open", b"/a", 0, 0)
        at = kernel("mmap", 0, PAGE, 1, 2, Fd(0), 0)
        assert kernel.task.memory.read(at, 4) == CONTENTS[:4]
        kernel("open", b"/a", O_RDWR, 0)
        kernel("pwrite64", Fd(1), Data(b"new!"), 4, 0)
        assert kernel.task.memory.read(at, 4) == CONTENTS[:4]
        assert contents(kernel, b"/a")[:4] == b"new!"
        kernel.task.memory.teardown()


def test_attributes_of_an_unlinked_lower_file(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        for path in (b"/a", b"/d/sub/deep"):
            assert kernel("open", path, 0, 0) == 0
        assert kernel("unlink", b"/a") == 0
        assert kernel("unlink", b"/d/sub/deep/z") == 0
        assert kernel("rmdir", b"/d/sub/deep") == 0
        for fd in (Fd(0), Fd(1)):
            assert kernel("fchmod", fd, 0o701) == 0
            raw = kernel.call("fstat", fd, Room(144))[1][0]
            assert STAT_FIELDS.unpack(raw)[3] & 0o7777 == 0o701
            assert STAT_FIELDS.unpack(raw)[2] == 0
        assert kernel.call("pread64", Fd(0), Room(4), 4, 0)[1] == [CONTENTS[:4]]
        assert names(kernel, b"/") == [b"d", b"e", b"p", b"s"]


def test_a_file_with_two_names_stays_one(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        kernel("open", b"/d/x", O_RDWR, 0)
        kernel("pwrite64", Fd(0), Data(b"ON"), 2, 0)
        kernel("close", Fd(0))
        forget(w)
        assert contents(kernel, b"/d/sub/y") == b"ON a directory"
        assert kernel("unlink", b"/d/x") == 0
        forget(w)
        assert contents(kernel, b"/d/sub/y") == b"ON a directory"
        assert kernel("rename", b"/d/sub/y", b"/e/y") == 0
        forget(w)
        assert contents(kernel, b"/e/y") == b"ON a directory"
        assert STAT_FIELDS.unpack(kernel.call("stat", b"/e/y", Room(144))[1][0])[2] == 1
        assert kernel("unlink", b"/e/y") == 0
        assert names(kernel, b"/d/sub") == [b"deep"]


def test_space_comes_back(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        upper = kernel.sb.layers[0]  # type: ignore[attr-defined]  # it is an OverlayFs
        for _ in range(3):
            kernel("open", b"/a", O_RDWR, 0)
            kernel("open", b"/new", O_RDWR | O_CREAT, 0o600)
            kernel("write", Fd(-1), Data(b"x" * PAGE), PAGE)
            kernel("close", Fd(-1))
            kernel("close", Fd(-2))
            kernel("open", b"/", O_RDWR | O_TMPFILE, 0o600)
            kernel("write", Fd(-1), Data(b"x" * PAGE), PAGE)
            kernel("close", Fd(-1))
            kernel("unlink", b"/a")
            kernel("unlink", b"/new")
            assert upper.used_blocks == 0
            used = upper.used_space
            for _ in range(3):
                assert kernel("mkdir", b"/a", 0o700) == 0
                assert kernel("rmdir", b"/a") == 0
            assert upper.used_space == used


def test_whiteouts_cannot_be_forged(lower: bytes) -> None:
    with world() as w:
        kernel = overlay(w, lower)
        assert kernel("mknod", b"/d/w", stat.S_IFCHR, 0) == -errno.EPERM
        for name in (b"trusted.overlay.opaque", b"trusted.overlay.redirect"):
            assert kernel("setxattr", b"/d", name, Data(b"y"), 1, 0) == -errno.EOPNOTSUPP
            assert kernel("getxattr", b"/d", name, Room(4), 4) == -errno.EOPNOTSUPP
        assert names(kernel, b"/d") == [b"s", b"sub", b"x"]


# Several layers


def test_layers_of_an_image() -> None:
    with directory() as base, directory() as middle, directory() as top, directory() as side:
        fill(base, INITIAL)
        for path, text in ((b"a", b"middle"), (b"new", b"middle")):
            with open(os.path.join(middle, path), "wb") as file:
                file.write(text)
        os.mkdir(os.path.join(middle, b"d"))
        os.mkdir(os.path.join(middle, b"e"))
        for path in (b"d/x", b"dev", b"fifo", b"suid"):  # a whiteout, a device, a FIFO: all of them empty files
            os.close(os.open(os.path.join(middle, path), os.O_CREAT, 0o600))
        with open(os.path.join(middle, b"e", b"only"), "wb") as file:
            file.write(b"opaque")
        sidecar = os.path.join(side, b"middle.json")
        with open(sidecar, "w") as text_file:
            text_file.write(
                '{"version": 1, "owner": [7, 8], "tree": {'
                '"d": {"x": {"": {"mode": 8192, "rdev": 0}}},'
                '"e": {"": {"xattrs": {"trusted.overlay.opaque": "y", "user.k": "\\u00ff"}}},'
                '"dev": {"": {"mode": 8630, "rdev": 259, "owner": [1, 2]}},'
                '"fifo": {"": {"mode": 4480}}, "suid": {"": {"mode": 35309}}}}'
            )
        with open(os.path.join(top, b"a"), "wb") as file:
            file.write(b"top")
        with world() as w:
            made = [
                HostFs(w.kernel.new_dev_locked(), path, read_only=True, attributes=attributes)
                for path, attributes in ((top, None), (middle, sidecar), (base, None))
            ]
            upper = make_tmpfs(w.kernel, mode=0o755)
            kernel = RootKernel(w, OverlayFs(w.kernel, [fs.root for fs in made], upper.root))
            assert contents(kernel, b"/a") == b"top"
            assert contents(kernel, b"/new") == b"middle"
            assert names(kernel, b"/") == [b"a", b"d", b"dev", b"e", b"fifo", b"new", b"p", b"s", b"suid"]
            assert names(kernel, b"/d") == [b"s", b"sub"], "the whiteout of the middle hides the base's"
            assert kernel("stat", b"/d/x", Room(144)) == -errno.ENOENT
            assert names(kernel, b"/e") == [b"only"]
            status = STAT_FIELDS.unpack(kernel.call("stat", b"/dev", Room(144))[1][0])
            assert (status[3], status[4], status[5], status[7]) == (stat.S_IFCHR | 0o666, 1, 2, 0x103)
            assert STAT_FIELDS.unpack(kernel.call("stat", b"/fifo", Room(144))[1][0])[3] == stat.S_IFIFO | 0o600
            status = STAT_FIELDS.unpack(kernel.call("stat", b"/suid", Room(144))[1][0])
            assert (status[3] & 0o7777, status[4], status[5]) == (0o4755, 7, 8)
            assert kernel.call("getxattr", b"/e", b"user.k", Room(4), 4) == (1, [b"\xff\0\0\0"])
            assert kernel("unlink", b"/a") == 0
            assert kernel("open", b"/a", 0, 0) == -errno.ENOENT, "nothing of the lower ones comes back"
            assert kernel("chmod", b"/suid", 0o4711) == 0
            assert kernel("chown", b"/e", 5, 5) == 0
            assert names(kernel, b"/e") == [b"only"]
            assert len({ino_of(kernel, b"/" + name) for name in names(kernel, b"/")}) == 8


@pytest.mark.parametrize("text", ['{"version": 2}', "[]", "{", '{"version": 1, "owner": [1], "tree": {}}'])
def test_a_damaged_sidecar_is_refused(text: str) -> None:
    with directory() as path, world() as w:
        sidecar = os.path.join(path, b"x.json")
        with open(sidecar, "w") as file:
            file.write(text)
        with pytest.raises(OSError, match="is damaged"):
            HostFs(w.kernel.new_dev_locked(), path, read_only=True, attributes=sidecar)
