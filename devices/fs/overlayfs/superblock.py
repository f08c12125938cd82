"""An overlay: its layers, and what it knows of files beyond what the layers say."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, cast
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from devices.errors import SysError
from devices.fs.overlayfs.copy_up import Mounter
from devices.vfs.inode import SB_RDONLY, Inode, StatFs, SuperBlock

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.fs.overlayfs.directory import OverlayDirectory
    from devices.fs.overlayfs.inode import OverlayInode
    from devices.kernel import Kernel
    from devices.task.task import Task

OPAQUE = b"trusted.overlay.opaque"
PRIVATE = b"trusted.overlay."
LAYER_SHIFT = 50
"""Inode numbers have the number of the layer from this bit on: 0 for the topmost lower one, 1 for the upper one."""
LISTED = 200_000
"""Names of directories that are kept beyond those of open directories."""
TEMPORARY = b"/"
"""Name in the upper layer for what is not in its place yet: no file of the guest can be called so."""


def is_whiteout(inode: Inode) -> bool:
    return stat.S_ISCHR(inode.mode) and inode.rdev == 0


def is_opaque(task: Task, inode: Inode) -> bool:
    try:
        return inode.getxattr(task, OPAQUE) == b"y"
    except SysError:
        return False


class Links:
    """A file of a lower layer that has, or had, several names: how many the overlay shows, and its copy."""

    __slots__ = ("count", "upper")

    def __init__(self, count: int) -> None:
        self.count = count
        self.upper: Inode | None = None


class Copied:
    """What is remembered of an upper file that is the copy of a lower one, or a directory that was moved."""

    __slots__ = ("ino", "links", "lower")

    def __init__(self, ino: int, links: Links | None) -> None:
        self.ino = ino
        self.links = links
        self.lower: list[Inode] | None = None
        """The lower parts of a directory that is not where they are any more (redirect_dir)."""


class OverlayFs(SuperBlock):
    """Layers put together. `lower`: root directories of the read-only layers, the highest first; `upper`: the root of
    the writable one, which is in memory (tmpfs); None for an overlay that is read-only."""

    fstype = b"overlay"
    magic = 0x794C7630

    def __init__(self, kernel: Kernel, lower: Sequence[Inode], upper: Inode | None, source: bytes = b"overlay") -> None:
        from devices.fs.overlayfs.directory import OverlayDirectory

        super().__init__(kernel.new_dev_locked(), source, 0 if upper is not None else SB_RDONLY)
        self.mounter = cast("Task", Mounter(kernel))
        self.upper_root = upper
        self.layers = [inode.sb for inode in (upper, *lower) if inode is not None]
        self.inodes: WeakValueDictionary[int, OverlayInode] = WeakValueDictionary()
        """By id() of their parts in the layers."""
        self.copied: WeakKeyDictionary[Inode, Copied] = WeakKeyDictionary()
        """By the upper file."""
        self.links: dict[tuple[int, int], Links] = {}
        """By id() of the layer and inode number there."""
        self.listings: WeakSet[OverlayDirectory] = WeakSet()
        self._listed = 0
        """Names in them, and in some that are gone."""
        self._numbers: dict[int, int] = {}
        for number, part in enumerate((*lower[:1], upper, *lower[1:])):
            if part is not None:
                self._numbers.setdefault(id(part.sb), number)
        self.root = OverlayDirectory(self, None, upper, list(lower))

    # Files

    def inode_of(
        self, place: tuple[OverlayInode, bytes] | None, upper: Inode | None, lower: list[Inode]
    ) -> OverlayInode:
        """The inode for these parts: the one in use, if there is one. `place`: the directory and the name of it."""
        from devices.fs.overlayfs.directory import OverlayDirectory
        from devices.fs.overlayfs.inode import OverlayInode

        real = upper if upper is not None else lower[0]
        known = self.inodes.get(id(real))
        if known is not None and known.has(real):
            known.place = place or known.place
            return known
        kind = OverlayDirectory if stat.S_ISDIR(real.mode) else OverlayInode
        inode = kind(self, place, upper, lower)
        for part in (upper, *lower[:1]):
            if part is not None:
                self.inodes[id(part)] = inode
        return inode

    def number_of(self, part: Inode) -> int:
        """The overlay's inode number for a file of a layer."""
        return self.number(part.sb, part.ino)

    def number(self, layer: SuperBlock, ino: int) -> int:
        return (self._numbers[id(layer)] << LAYER_SHIFT) + ino

    def links_of(self, lower: Inode) -> Links | None:
        return self.links.get((id(lower.sb), lower.ino))

    def count_links(self, lower: Inode) -> Links:
        """Keep count of the names of a lower file from now on."""
        key = (id(lower.sb), lower.ino)
        links = self.links.get(key)
        if links is None:
            links = Links(lower.nlink)
            if lower.nlink > 1:
                self.links[key] = links
        return links

    def listed(self, directory: OverlayDirectory) -> None:
        """It holds a listing now: let others go if it is too much."""
        self.listings.add(directory)
        self._listed += directory.listed
        if self._listed > LISTED:
            for other in list(self.listings):
                if other is not directory and not other.users:
                    other.forget_listing()
                    self.listings.discard(other)
            self._listed = sum(other.listed for other in self.listings)

    # What the VFS asks

    def statfs(self) -> StatFs:
        return self.layers[0].statfs()._replace(type=self.magic, fsid=self.dev)

    def sync(self) -> None:
        self.layers[0].sync()

    def shutdown(self) -> None:
        for layer in self.layers:
            layer.shutdown()
