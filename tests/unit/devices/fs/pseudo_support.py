"""A World with /proc, /sys and /dev, and ways to read them as a program does."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from devices.fs.registry import find_filesystem
from devices.fs.tmpfs import make_tmpfs
from devices.vfs.abi import AT_FDCWD
from devices.vfs.mount import Mount, attach_tree, set_root_locked
from devices.vfs.names import make_directory
from devices.vfs.open import legacy_how, open_path
from devices.vfs.path import root_dentry, walk
from tests.unit.devices.support import World, world

if TYPE_CHECKING:
    from collections.abc import Iterator

    from devices.task.task import Task
    from devices.vfs.files import OpenFile
    from devices.vfs.inode import Inode

O_DIRECTORY = 0o200000
BUFFER = 1 << 16
MOUNTS = ((b"/proc", b"proc"), (b"/sys", b"sysfs"), (b"/dev", b"devtmpfs"))


class Tree:
    """The file systems of a World. `task` does everything unless told otherwise."""

    def __init__(self, of: World) -> None:
        self.world = of
        self.kernel = of.kernel
        self.task = of.task
        root = set_root_locked(self.kernel, make_tmpfs(self.kernel, mode=0o755))
        assert self.kernel.vfs.first_fs is not None
        self.task.process.fs.release_locked()
        self.task.process.fs = self.kernel.vfs.first_fs.copy()
        assert self.task.process.fs.root == root
        for place, name in MOUNTS:
            make_directory(self.task, AT_FDCWD, place, 0o755)
            self.mount(place, name)

    def mount(self, place: bytes, name: bytes) -> None:
        sb = find_filesystem(self.kernel, name).mount(self.kernel, None, name, 0, b"")
        where = walk(self.task, AT_FDCWD, place)
        made = Mount(self.kernel.vfs, sb, root_dentry(sb), 0, sb.source)
        attach_tree(self.kernel.vfs, made, where.mount, where.dentry)

    def open(self, path: str, flags: int = 0, task: Task | None = None) -> OpenFile:
        return open_path(task or self.task, AT_FDCWD, path.encode(), legacy_how(flags, 0o644)).hold()

    def read(self, path: str, task: Task | None = None, size: int = BUFFER) -> str:
        """All of a file, in reads of `size` bytes."""
        task = task or self.task
        file = self.open(path, 0, task)
        found = b""
        while count := file.read(task, [(self.world.data, size)]):
            found += task.memory.read(self.world.data, count)
        file.put_locked()
        return found.decode("latin-1")

    def write(self, path: str, data: bytes, task: Task | None = None) -> int:
        task = task or self.task
        file = self.open(path, 1, task)
        task.memory.write(self.world.data, data)
        try:
            return file.write(task, [(self.world.data, len(data))])
        finally:
            file.put_locked()

    def inode(self, path: str, follow: bool = False) -> Inode:
        found = walk(self.task, AT_FDCWD, path.encode(), int(follow)).inode
        found.refresh()
        return found

    def names(self, path: str, task: Task | None = None) -> list[str]:
        file = self.open(path, O_DIRECTORY, task)
        found = [entry.name.decode() for entry in file.getdents(task or self.task)]
        file.put_locked()
        return [name for name in found if name not in (".", "..")]

    def walk(self, path: str) -> Iterator[tuple[str, Inode]]:
        """Everything below a directory; what getdents says of each entry is checked against its inode."""
        file = self.open(path, O_DIRECTORY)
        for entry in list(file.getdents(self.task)):
            if entry.name in (b".", b".."):
                continue
            below = f"{path}/{entry.name.decode()}"
            inode = self.inode(below)
            assert (inode.ino, inode.mode >> 12) == (entry.ino, entry.kind), below
            yield below, inode
            if entry.kind == 4:
                yield from self.walk(below)
        file.put_locked()


@contextlib.contextmanager
def tree() -> Iterator[Tree]:
    with world() as made:
        made.task.comm = made.task.process.comm = b"a (b) c"
        made.task.memory.write(made.data, bytes(BUFFER))  # reads into it change no counts
        yield Tree(made)
