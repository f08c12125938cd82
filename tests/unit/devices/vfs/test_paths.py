"""Limits and rare turns of the path walk that random calls do not meet."""

from __future__ import annotations

import errno
import struct
from stat import S_IFLNK
from typing import TYPE_CHECKING

import pytest

from devices.errors import SysError
from devices.vfs import path as paths
from devices.vfs.pathname import path_name
from tests.unit.devices.vfs.memfs import MemInode
from tests.unit.devices.vfs.support import Files, files

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task

O_CREAT, O_RDWR, O_DIRECTORY, O_PATH, O_TMPFILE = 0o100, 2, 0o200000, 0o10000000, 0o20200000
AT_FDCWD, AT_EMPTY_PATH = -100, 0x1000
RESOLVE_NO_MAGICLINKS, RESOLVE_BENEATH, RESOLVE_CACHED, RESOLVE_NO_XDEV = 2, 8, 32, 1


@pytest.fixture
def tree() -> Iterator[Files]:
    with files() as made:
        assert made.call("mkdir", b"/d", 0o755) == 0
        assert made.call("close", made.call("open", b"/d/f", O_CREAT | O_RDWR, 0o644)) == 0
        yield made


def openat2(tree: Files, path: bytes, flags: int, resolve: int, size: int = 24, tail: bytes = b"") -> int:
    how = tree.room() + 0x4000
    tree.task.memory.write(how, struct.pack("<QQQ", flags, 0, resolve) + tail)
    return tree.call("openat2", AT_FDCWD, path, how, size)


def test_lengths(tree: Files) -> None:
    assert tree.call("stat", b"/" + b"a" * 255, tree.room()) == -errno.ENOENT
    assert tree.call("stat", b"/" + b"a" * 256, tree.room()) == -errno.ENAMETOOLONG
    assert tree.call("stat", b"/" + b"a" * 256 + b"/b", tree.room()) == -errno.ENAMETOOLONG
    assert tree.call("stat", b"./" * 2046 + b"d", tree.room()) == 0
    assert tree.call("stat", b"./" * 2048, tree.room()) == -errno.ENAMETOOLONG


def test_forty_links_and_no_more(tree: Files) -> None:
    assert tree.call("symlink", b"d/f", b"/0") == 0
    for number in range(40):
        assert tree.call("symlink", b"%d" % number, b"/%d" % (number + 1)) == 0
    assert tree.call("stat", b"/39", tree.room()) == 0
    assert tree.call("stat", b"/40", tree.room()) == -errno.ELOOP
    assert tree.call("symlink", b"loop", b"/loop") == 0
    assert tree.call("open", b"/loop", O_CREAT | O_RDWR, 0o644) == -errno.ELOOP


def test_struct_open_how_may_grow(tree: Files) -> None:
    assert openat2(tree, b"/d", 0, 0, 16) == -errno.EINVAL
    assert openat2(tree, b"/d", 0, 0, 32, bytes(8)) >= 0
    assert openat2(tree, b"/d", 0, 0, 32, b"\0\0\0\1") == -errno.E2BIG
    assert openat2(tree, b"/d", 0, 0, 5000) == -errno.E2BIG
    assert openat2(tree, b"/d", 1 << 40, 0) == -errno.EINVAL


def test_cached_walks_ask_no_file_system(tree: Files) -> None:
    for index in range(len(tree.kernel.vfs.kept)):
        tree.kernel.vfs.kept[index] = None
    assert openat2(tree, b"/d/f", 0, RESOLVE_CACHED) == -errno.EAGAIN
    assert tree.call("stat", b"/d/f", tree.room()) == 0
    assert openat2(tree, b"/d/f", 0, RESOLVE_CACHED) >= 0


def test_a_few_dentries_are_kept_and_no_more(tree: Files) -> None:
    root = tree.task.process.fs.root.dentry
    for number in range(len(tree.kernel.vfs.kept) + 200):
        assert tree.call("mkdir", b"/x%d" % number, 0o755) == 0
    assert root.children is not None
    assert len(root.children) <= len(tree.kernel.vfs.kept)


class MagicInode(MemInode):
    """A link of /proc/self/fd: it leads where it was told, whatever its text says."""

    def __init__(self, fs: object, target: paths.Path) -> None:
        super().__init__(fs, S_IFLNK | 0o777)  # type: ignore[arg-type]  # a MemFs
        self.place = target
        self.target = b"nowhere"

    def follow(self, task: Task) -> paths.Path:
        return self.place


def add_magic(tree: Files, target: bytes) -> None:
    tree.fs.root.children[b"magic"] = MagicInode(tree.fs, paths.walk(tree.task, AT_FDCWD, target))  # type: ignore[attr-defined]


def test_magic_links_jump(tree: Files) -> None:
    add_magic(tree, b"/d")
    assert tree.call("stat", b"/magic/f", tree.room()) == 0
    assert tree.call("open", b"/magic", 0) >= 0
    assert openat2(tree, b"/magic/f", 0, RESOLVE_NO_MAGICLINKS) == -errno.ELOOP
    assert openat2(tree, b"magic/f", 0, RESOLVE_BENEATH) == -errno.EXDEV
    assert tree.call("readlink", b"/magic", tree.room(), 100) == len(b"nowhere")


def test_a_magic_link_to_a_removed_file_opens_it(tree: Files) -> None:
    add_magic(tree, b"/d/f")
    assert tree.call("unlink", b"/d/f") == 0
    fd = tree.call("open", b"/magic", O_RDWR)
    assert fd >= 0
    place = tree.task.files.get(fd).path
    assert place is not None
    assert path_name(tree.task, place) == b"/d/f (deleted)"


def test_a_magic_link_to_another_mount(tree: Files) -> None:
    assert tree.call("mount", b"none", b"/d", b"tmpfs", 0, 0) == 0
    add_magic(tree, b"/d")
    assert tree.call("stat", b"/magic", tree.room()) == 0
    assert openat2(tree, b"/magic", 0, RESOLVE_NO_XDEV) == -errno.EXDEV


def test_tmpfile_is_linked_once_it_has_a_name(tree: Files) -> None:
    fd = tree.call("open", b"/d", O_TMPFILE | O_RDWR, 0o600)
    place = tree.task.files.get(fd).path
    assert place is not None
    assert path_name(tree.task, place).startswith(b"/d/#")
    assert path_name(tree.task, place).endswith(b" (deleted)")
    assert tree.call("linkat", fd, b"", AT_FDCWD, b"/named", AT_EMPTY_PATH) == 0
    assert tree.call("stat", b"/named", tree.room()) == 0
    sealed = tree.call("open", b"/d", O_TMPFILE | O_RDWR | 0o200, 0o600)
    assert tree.call("linkat", sealed, b"", AT_FDCWD, b"/sealed", AT_EMPTY_PATH) == -errno.ENOENT
    released = len(tree.fs.released)
    assert tree.call("close", sealed) == 0
    assert len(tree.fs.released) == released + 1


def test_contents_go_with_the_last_user(tree: Files) -> None:
    ino = tree.fs.root.children[b"d"].children[b"f"].ino  # type: ignore[attr-defined]
    fd = tree.call("open", b"/d/f", O_PATH)
    again = tree.call("open", b"/d/f", O_RDWR)
    assert tree.call("unlink", b"/d/f") == 0
    assert tree.call("close", again) == 0
    assert ino not in tree.fs.released
    assert tree.call("close", fd) == 0
    assert tree.fs.released == [ino]


def test_a_directory_moved_out_of_a_bind_mount_has_no_parent(tree: Files) -> None:
    for name in (b"/d/in", b"/d/in/deep", b"/out", b"/m"):
        assert tree.call("mkdir", name, 0o755) == 0
    assert tree.call("mount", b"/d/in", b"/m", 0, 4096, 0) == 0
    assert tree.call("chdir", b"/m/deep") == 0
    assert tree.call("rename", b"/d/in/deep", b"/out/deep") == 0
    assert tree.call("stat", b"..", tree.room()) == -errno.ENOENT
    size = tree.call("getcwd", tree.room(), 4096)
    assert tree.read(size) == b"(unreachable)/out/deep\0"


def test_a_removed_working_directory(tree: Files) -> None:
    assert tree.call("mkdir", b"/gone", 0o755) == 0
    assert tree.call("chdir", b"/gone") == 0
    assert tree.call("rmdir", b"/gone") == 0
    assert tree.call("getcwd", tree.room(), 4096) == -errno.ENOENT
    assert tree.call("open", b"x", O_CREAT | O_RDWR, 0o644) == -errno.ENOENT
    assert tree.call("mkdir", b"x", 0o755) == -errno.ENOENT
    assert tree.call("stat", b".", tree.room()) == 0
    assert tree.call("stat", b"../d", tree.room()) == 0


def test_paths_that_the_program_cannot_read(tree: Files) -> None:
    for name in ("open", "stat", "mkdir", "unlink", "chdir", "truncate"):
        assert tree.call(name, 0, 0) == -errno.EFAULT
    assert tree.call("newfstatat", AT_FDCWD, 0, tree.room(), AT_EMPTY_PATH) == 0
    assert tree.call("newfstatat", AT_FDCWD, 0, tree.room(), 0) == -errno.EFAULT


def test_walk_says_what_is_wrong(tree: Files) -> None:
    with pytest.raises(SysError, match="ENOENT"):
        paths.walk(tree.task, AT_FDCWD, b"")
    with pytest.raises(SysError, match="EBADF"):
        paths.walk(tree.task, 77, b"d")
    parent = paths.walk_parent(tree.task, AT_FDCWD, b"/d/f//")
    assert (parent.name, parent.slash, parent.path.dentry.name) == (b"f", True, b"d")


def test_directories_may_be_nested_deeply(tree: Files) -> None:
    """Neither walking nor forgetting a chain of dentries may exhaust the monitor's stack."""
    depth = 30_000
    for _ in range(depth):
        assert tree.call("mkdir", b"n", 0o755) == 0
        assert tree.call("chdir", b"n") == 0
    assert tree.call("getcwd", tree.room(), 4096) == -errno.ENAMETOOLONG
    assert tree.call("rename", b"/n", b"x") == -errno.EINVAL
    for index in range(len(tree.kernel.vfs.kept)):
        tree.kernel.vfs.kept[index] = None
    assert tree.call("chdir", b"/") == 0
