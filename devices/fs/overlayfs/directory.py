"""Directories of an overlay: looking up and listing what the layers have, making, removing and moving names."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.overlayfs.copy_up import drop
from devices.fs.overlayfs.inode import OverlayInode
from devices.fs.overlayfs.listing import Listing
from devices.fs.overlayfs.superblock import OPAQUE, TEMPORARY, Copied, is_opaque, is_whiteout
from devices.vfs.abi import RENAME_EXCHANGE, RENAME_WHITEOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from devices.fs.overlayfs.inode import Place
    from devices.fs.overlayfs.listing import Found
    from devices.fs.overlayfs.superblock import OverlayFs
    from devices.task.task import Task
    from devices.vfs.inode import Entry, Inode

DT_CHR = 2


class OverlayDirectory(OverlayInode):
    __slots__ = ("_listing",)

    def __init__(self, sb: OverlayFs, place: Place | None, upper: Inode | None, lower: list[Inode]) -> None:
        self._listing: Listing | None = None
        super().__init__(sb, place, upper, lower)

    # Looking up

    def lookup(self, task: Task, name: bytes) -> Inode | None:
        fs = self.fs
        place = (self, name)
        upper = self.upper.lookup(fs.mounter, name) if self.upper is not None else None
        if upper is None:
            lower = self._lower_children(name)
            if not lower:
                return None
            if not stat.S_ISDIR(lower[0].mode):
                links = fs.links_of(lower[0])
                upper = links.upper if links is not None else None
            return fs.inode_of(place, upper, lower)
        if is_whiteout(upper):
            return None
        known = fs.inodes.get(id(upper))
        if known is not None and known.upper is upper:
            known.place = place
            return known
        return fs.inode_of(place, upper, self._parts_below(upper, name))

    def _parts_below(self, upper: Inode, name: bytes) -> list[Inode]:
        """The lower parts of an upper file: only directories are merged, where they are not opaque."""
        if not stat.S_ISDIR(upper.mode):
            return []
        copied = self.fs.copied.get(upper)
        if copied is not None and copied.lower is not None:
            return copied.lower
        if is_opaque(self.fs.mounter, upper):
            return []
        return [part for part in self._lower_children(name) if stat.S_ISDIR(part.mode)]

    def _lower_children(self, name: bytes) -> list[Inode]:
        """`name` in the lower layers: one file, or the directories that are merged."""
        mounter = self.fs.mounter
        found: list[Inode] = []
        last = len(self.lower) - 1
        for number, layer in enumerate(self.lower):
            child = layer.lookup(mounter, name)
            if child is None:
                continue
            directory = stat.S_ISDIR(child.mode)
            if is_whiteout(child) or (found and not directory):
                break
            found.append(child)
            if not directory or (number < last and is_opaque(mounter, child)):
                break
        return found

    # Listing

    @property
    def listed(self) -> int:
        """Names in its listing."""
        return len(self._listing.entries) if self._listing is not None else 0

    def forget_listing(self) -> None:
        self._listing = None

    def iterate(self, task: Task, offset: int) -> Iterator[Entry]:
        listing = self._listing
        if listing is None:
            listing = self._listing = Listing()
            listing.update(self._scan())
            self.fs.listed(self)
        elif not offset:
            listing.update(self._scan())
        return listing.after(offset)

    def _scan(self) -> Found:
        """What all the layers have together."""
        fs = self.fs
        names: dict[bytes, tuple[int, int] | None] = {}
        for layer in (self.upper, *self.lower):
            if layer is None:
                continue
            upper = layer is self.upper
            base = fs.number(layer.sb, 0)
            for name, ino, kind, _ in layer.iterate(fs.mounter, 0):
                if name in names:
                    continue
                if kind == DT_CHR and self._is_hidden(layer, name):
                    names[name] = None
                else:
                    names[name] = (self._number(layer, name, ino) if upper else base + ino, kind)
        return {name: found for name, found in names.items() if found is not None}

    def _number(self, upper: Inode, name: bytes, ino: int) -> int:
        """The inode number of an entry of the upper layer."""
        child = upper.lookup(self.fs.mounter, name)
        copied = self.fs.copied.get(child) if child is not None else None
        return copied.ino if copied is not None else self.fs.number(upper.sb, ino)

    def _is_hidden(self, layer: Inode, name: bytes) -> bool:
        inode = layer.lookup(self.fs.mounter, name)
        return inode is not None and is_whiteout(inode)

    def _is_empty(self, task: Task) -> bool:
        return not self._scan()

    def _forget_name(self, name: bytes) -> None:
        if self._listing is not None:
            self._listing.remove(name)

    # Making

    def _make(self, task: Task, name: bytes, make: Callable[[Inode, bytes], Inode]) -> Inode:
        """Have `make(directory, name)` make a file in the upper layer; where there is a whiteout it takes its place."""
        fs = self.fs
        directory = self.copy_up()
        whiteout = directory.lookup(fs.mounter, name)
        if whiteout is None:
            upper = make(directory, name)
        else:
            upper = make(directory, TEMPORARY)
            try:
                if stat.S_ISDIR(upper.mode):
                    upper.setxattr(fs.mounter, OPAQUE, b"y", 0)
            except SysError:
                drop(fs.mounter, directory, TEMPORARY, upper)
                raise
            directory.rename(fs.mounter, TEMPORARY, upper, directory, name, whiteout, 0)
            whiteout.released()
        self.take()
        return fs.inode_of((self, name), upper, [])

    def create(self, task: Task, name: bytes, mode: int) -> Inode:
        return self._make(task, name, lambda directory, at: directory.create(task, at, mode))

    def mkdir(self, task: Task, name: bytes, mode: int) -> Inode:
        return self._make(task, name, lambda directory, at: directory.mkdir(task, at, mode))

    def mknod(self, task: Task, name: bytes, mode: int, rdev: int) -> Inode:
        if stat.S_ISCHR(mode) and rdev == 0:
            raise SysError(errno.EPERM, "it would be a whiteout")
        return self._make(task, name, lambda directory, at: directory.mknod(task, at, mode, rdev))

    def symlink(self, task: Task, name: bytes, target: bytes) -> Inode:
        return self._make(task, name, lambda directory, at: directory.symlink(task, at, target))

    def link(self, task: Task, name: bytes, target: Inode) -> None:
        assert isinstance(target, OverlayInode)
        upper = target.copy_up()

        def make(directory: Inode, at: bytes) -> Inode:
            directory.link(task, at, upper)
            return upper

        self._make(task, name, make)
        target.name_made((self, name))

    def tmpfile(self, task: Task, mode: int) -> Inode:
        inode = self.fs.inode_of((self, b""), self.copy_up().tmpfile(task, mode), [])
        inode.place = None
        return inode

    # Removing

    def _new_whiteout(self, directory: Inode) -> Inode:
        """Made under a name of its own first: what is there only goes when it cannot fail any more."""
        return directory.mknod(self.fs.mounter, TEMPORARY, stat.S_IFCHR, 0)

    def unlink(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, OverlayInode)
        mounter = self.fs.mounter
        directory = self.copy_up()
        present = directory.lookup(mounter, name)
        if self._lower_children(name):
            whiteout = self._new_whiteout(directory)
            directory.rename(mounter, TEMPORARY, whiteout, directory, name, present, 0)
        elif present is not None:
            directory.unlink(mounter, name, present)
        self._name_gone(name, child)

    def rmdir(self, task: Task, name: bytes, child: Inode) -> None:
        assert isinstance(child, OverlayDirectory)
        if not child._is_empty(task):
            raise SysError(errno.ENOTEMPTY)
        mounter = self.fs.mounter
        directory = self.copy_up()
        present = directory.lookup(mounter, name)
        whiteout = self._new_whiteout(directory) if self._lower_children(name) else None
        child.drop_whiteouts()
        if whiteout is not None:
            directory.rename(mounter, TEMPORARY, whiteout, directory, name, present, 0)
        elif present is not None:
            directory.rmdir(mounter, name, present)
        self._name_gone(name, child)

    def _name_gone(self, name: bytes, child: OverlayInode) -> None:
        self._forget_name(name)
        child.name_gone((self, name))
        self.take()

    def drop_whiteouts(self) -> None:
        """Empty the upper part of a directory that shows nothing."""
        if self.upper is None:
            return
        mounter = self.fs.mounter
        for entry in list(self.upper.iterate(mounter, 0)):
            inode = self.upper.lookup(mounter, entry.name)
            if inode is not None:
                drop(mounter, self.upper, entry.name, inode)

    # Moving

    def rename(
        self, task: Task, name: bytes, child: Inode, target: Inode, new_name: bytes, replaced: Inode | None, flags: int
    ) -> None:
        assert isinstance(child, OverlayInode)
        assert isinstance(target, OverlayDirectory)
        assert replaced is None or isinstance(replaced, OverlayInode)
        if flags & RENAME_WHITEOUT:
            raise SysError(errno.EINVAL, "RENAME_WHITEOUT")
        exchange = flags & RENAME_EXCHANGE
        if not exchange and isinstance(replaced, OverlayDirectory) and not replaced._is_empty(task):
            raise SysError(errno.ENOTEMPTY)
        source, destination = self.copy_up(), target.copy_up()
        upper = self._to_upper(source, name, child)
        if exchange:
            assert replaced is not None
            other: Inode | None = target._to_upper(destination, new_name, replaced)
        else:
            other = destination.lookup(self.fs.mounter, new_name)
        whiteout = None
        if not exchange and self._lower_children(name):
            whiteout = self._new_whiteout(source)
        if not exchange and isinstance(replaced, OverlayDirectory):
            replaced.drop_whiteouts()
        source.rename(self.fs.mounter, name, upper, destination, new_name, other, exchange)
        if whiteout is not None:
            source.rename(self.fs.mounter, TEMPORARY, whiteout, source, name, None, 0)
        self._renamed(name, child, target, new_name, replaced, bool(exchange))
        if other is not None and is_whiteout(other):
            other.released()

    def _to_upper(self, directory: Inode, name: bytes, child: OverlayInode) -> Inode:
        """`child` as the entry `name` of this directory in the upper layer, which remembers what belongs to it."""
        mounter = self.fs.mounter
        upper = child.copy_up()
        if directory.lookup(mounter, name) is not upper:  # copied up under another of its names, or without one
            directory.link(mounter, name, upper)
        if isinstance(child, OverlayDirectory):
            copied = self.fs.copied.setdefault(upper, Copied(child.ino, None))
            copied.lower = child.lower
        return upper

    def _renamed(
        self,
        name: bytes,
        child: OverlayInode,
        target: OverlayDirectory,
        new_name: bytes,
        replaced: OverlayInode | None,
        exchange: bool,
    ) -> None:
        self._forget_name(name)
        target._forget_name(new_name)
        child.place = (target, new_name)
        if replaced is not None:
            if exchange:
                replaced.place = (self, name)
                replaced.take()
            else:
                replaced.name_gone((target, new_name))
        for inode in (child, self, target):
            inode.take()
