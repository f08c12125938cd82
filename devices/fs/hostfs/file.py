"""Open regular files of the host."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from devices.errors import SysError, host_errno
from devices.fs.hostfs.host import allocate, refusal
from devices.memory.filepages import COPIED_AT_ONCE, copy_segments
from devices.vfs.abi import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    MAX_RW_COUNT,
    O_ACCMODE,
    O_APPEND,
    O_RDONLY,
    O_WRONLY,
    SEEK_DATA,
    SEEK_HOLE,
)
from devices.vfs.files import SeekableFile
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from devices.fs.hostfs.inode import HostInode
    from devices.memory.pagecache import PageCache
    from devices.task.task import Task
    from devices.vfs.files import Segments

SET_ID = 0o6000
ZEROING = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE
MOVING = FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE


class HostRegular(SeekableFile):
    """An open regular file. Bytes move straight between the host's file, or the page cache where it has pages, and the
    program's memory."""

    def __init__(self, node: HostInode, flags: int) -> None:
        super().__init__(flags)
        self.node = node
        access = flags & O_ACCMODE
        self.contents = node.opened(access != O_WRONLY, access != O_RDONLY)  # what may not be opened is refused now

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        cache = self.node.cache
        if cache is not None and cache.present:
            return cache.read(task.memory, segments, offset)
        fd = self.contents.reader
        if len(segments) == 1 and 0 < segments[0][1] <= COPIED_AT_ONCE:  # nearly every call
            address, length = segments[0]
            try:
                return os.preadv(fd, task.memory.views_partial(address, length, True), offset)
            except OSError as error:
                raise refusal(error) from error
            except OutOfFrames:
                raise SysError(errno.ENOMEM, "the machine's memory is used up") from None

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.preadv(fd, views, offset + done)

        return copy_segments(task.memory, segments, MAX_RW_COUNT, True, move)

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        node = self.node
        node.fs.check_writable()
        if node.mode & SET_ID:
            node.drop_set_id()
        cache = node.cache
        append = self.flags & O_APPEND
        if cache is not None and cache.present:
            return cache.write(task.memory, segments, self.contents.size if append else offset)
        fd = self.contents.writer
        flags = os.RWF_APPEND if append else 0

        def move(views: list[memoryview], done: int) -> int:
            with host_errno():
                return os.pwritev(fd, views, offset + done, flags)

        return copy_segments(task.memory, segments, MAX_RW_COUNT, False, move)

    def size(self) -> int:
        return self.contents.size

    def _clean(self) -> PageCache | None:
        """The page cache, if there is one, with all that it holds written to the host."""
        cache = self.node.cache
        if cache is not None:
            cache.sync()
        return cache

    def seek_hole(self, offset: int, hole: bool) -> int:
        self._clean()
        with host_errno():
            return os.lseek(self.contents.descriptor, offset, SEEK_HOLE if hole else SEEK_DATA)

    def stat(self) -> os.stat_result:
        return os.fstat(self.node.fd)

    def fsync(self, task: Task, datasync: bool) -> None:
        self._clean()
        if not self.node.fs.read_only:
            with host_errno():
                (os.fdatasync if datasync else os.fsync)(self.contents.descriptor)

    def fallocate(self, task: Task, mode: int, offset: int, length: int) -> None:
        node = self.node
        node.fs.check_writable()
        cache = self._clean()
        with host_errno():
            allocate(self.contents.writer, mode, offset, length)
        self.contents.changed_here()
        if cache is not None:
            if mode & ZEROING:
                cache.punched(offset, length)
            elif mode & MOVING:
                cache.forget()
            cache.resized(self.contents.size)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> PageCache:
        return self.node.page_cache(task.kernel.memory)
