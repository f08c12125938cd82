"""Regular files of tmpfs: their pages, what open files do with them, seals (mm/shmem.c, mm/memfd.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.tmpfs.inode import TmpfsInode
from devices.memory.abi import MAP_PRIVATE, MAP_TYPE, PROT_WRITE, VM_MAYWRITE, VM_SHARED
from devices.memory.filepages import UNWRITTEN, FilePages
from devices.vfs.abi import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, O_APPEND
from devices.vfs.files import SeekableFile
from vmm.layout import PAGE_SHIFT, PAGE_SIZE
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from devices.fs.tmpfs.superblock import Tmpfs
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments
    from devices.vfs.path import Path
    from vmm.memory.frames import Run

F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE, F_SEAL_EXEC = (1 << i for i in range(6))
F_ALL_SEALS = 63
NO_WRITES = F_SEAL_WRITE | F_SEAL_FUTURE_WRITE


class TmpfsPages(FilePages):
    """The pages of a file, counted against the limits of its file system."""

    def __init__(self, inode: Regular) -> None:
        super().__init__(inode.fs.kernel.memory)
        self._inode = inode
        self._fs = inode.fs

    @property
    def size(self) -> int:
        return self._inode.size

    @property
    def write_sealed(self) -> bool:  # type: ignore[override]  # changes with the seals
        return bool(self._inode.seals & NO_WRITES)

    def charge(self, count: int) -> None:
        self._fs.charge_blocks(count)

    def uncharge(self, count: int) -> None:
        self._fs.used_blocks -= count

    def around(self, index: int, first: int, last: int, sequential: bool) -> tuple[int, int]:
        """A page here and there makes no others: a sparse file stays sparse."""
        last = min(last, (self.size + PAGE_SIZE - 1) >> PAGE_SHIFT)
        if not first <= index < last:
            return index, index + 1
        if sequential and self.missing(first, last) <= self._fs.room:
            return first, last
        low, high = index, index + 1
        while low > first and self.holds(low - 1):
            low -= 1
        while high < last and self.holds(high):
            high += 1
        return low, high

    def frames_at(self, index: int, count: int) -> list[Run]:
        try:
            return super().frames_at(index, count)
        except SysError as error:
            raise OSError(error.errno, error.reason) from error  # a fault that finds no room is SIGBUS

    def make_room(self, offset: int, length: int) -> int:
        first, last = offset >> PAGE_SHIFT, (offset + length + PAGE_SIZE - 1) >> PAGE_SHIFT
        room = self._fs.room
        if self.missing(first, last) > room:
            last = first
            while self.holds(last) or room:
                room -= not self.holds(last)
                last += 1
            length = min(length, (last << PAGE_SHIFT) - offset)
            if length <= 0:
                raise SysError(errno.ENOSPC, "size")
        self.ensure(first, last)
        return length

    def punch(self, offset: int, length: int) -> bool:
        self._inode.punch(offset, length)
        return True


class Regular(TmpfsInode):
    __slots__ = ("pages", "seals")

    def __init__(self, fs: Tmpfs, mode: int, uid: int, gid: int) -> None:
        super().__init__(fs, mode, uid, gid)
        self.seals = F_SEAL_SEAL
        """F_SEAL_*; only memfd_create makes files that can be given more."""
        self.pages = TmpfsPages(self)

    @property
    def blocks(self) -> int:
        return self.pages.present * 8 if self.fs.sparse else 0

    def open(self, task: Task, path: Path, flags: int) -> OpenFile:
        return TmpfsFile(self, flags)

    def setattr(
        self,
        *,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime: int | None = None,
        mtime: int | None = None,
        ctime: int | None = None,
    ) -> None:
        if mode is not None and self.seals & F_SEAL_EXEC and (self.mode ^ mode) & 0o111:
            raise SysError(errno.EPERM, "F_SEAL_EXEC")
        super().setattr(mode=mode, uid=uid, gid=gid, size=size, atime=atime, mtime=mtime, ctime=ctime)

    def truncate(self, size: int) -> None:
        old = self.size
        if (size < old and self.seals & F_SEAL_SHRINK) or (size > old and self.seals & F_SEAL_GROW):
            raise SysError(errno.EPERM, "sealed")
        self.size = size
        if size < old:
            self.pages.cut(size)
        self.changed()

    def allocate(self, offset: int, length: int, keep_size: bool) -> None:
        """fallocate(2): frames for the range, all or none. SysError(ENOSPC, EPERM, ENOMEM)."""
        end = offset + length
        if end > self.size and self.seals & F_SEAL_GROW:
            raise SysError(errno.EPERM, "F_SEAL_GROW")
        first, last = offset >> PAGE_SHIFT, (end + PAGE_SIZE - 1) >> PAGE_SHIFT
        if self.fs.max_blocks and last - first > self.fs.max_blocks:
            raise SysError(errno.ENOSPC, "size")
        try:
            self.pages.ensure(first, last, UNWRITTEN)
        except OutOfFrames:
            raise SysError(errno.ENOMEM, "the machine's memory is used up") from None
        if not keep_size and end > self.size:
            self.size = end
        self.changed()

    def punch(self, offset: int, length: int) -> None:
        """fallocate(FALLOC_FL_PUNCH_HOLE)."""
        if self.seals & NO_WRITES:
            raise SysError(errno.EPERM, "F_SEAL_WRITE")
        self.pages.clear(offset, length)
        self.changed()

    def released(self) -> None:
        self.pages.cut(0)
        super().released()


class TmpfsFile(SeekableFile):
    """An open regular file."""

    def __init__(self, node: Regular, flags: int) -> None:
        super().__init__(flags)
        self.node = node

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        node = self.node
        limit = node.size - offset
        return node.pages.copy_out(task.memory, segments, offset, limit) if limit > 0 else 0

    def pwrite(self, task: Task, segments: Segments, offset: int) -> int:
        node = self.node
        if self.flags & O_APPEND:
            offset = node.size
        limit = sum(length for _, length in segments)
        if not limit:
            return 0
        if node.seals & (NO_WRITES | F_SEAL_GROW):
            limit = self._sealed(offset, limit)
        task.kernel.memory.make_room()
        count = node.pages.copy_in(task.memory, segments, offset, limit)
        node.size = max(node.size, offset + count)
        node.changed()
        return count

    def _sealed(self, offset: int, length: int) -> int:
        """shmem_write_begin(), which is asked for each page: how many bytes may be written. SysError(EPERM)."""
        node = self.node
        if node.seals & NO_WRITES:
            raise SysError(errno.EPERM, "F_SEAL_WRITE")
        if offset + length <= node.size:
            return length
        limit = (node.size & -PAGE_SIZE) - offset
        if limit <= 0:
            raise SysError(errno.EPERM, "F_SEAL_GROW")
        return limit

    def size(self) -> int:
        return self.node.size

    def seek_hole(self, offset: int, hole: bool) -> int:
        size = self.node.size
        if not 0 <= offset < size:
            raise SysError(errno.ENXIO)
        if not self.node.fs.sparse:
            return size if hole else offset
        pages = self.node.pages
        first, last = offset >> PAGE_SHIFT, (size + PAGE_SIZE - 1) >> PAGE_SHIFT
        found = pages.next_hole(first, last) if hole else pages.next_data(first, last)
        if found < 0:
            raise SysError(errno.ENXIO, "no more data")
        return max(offset, min(found << PAGE_SHIFT, size))

    def fsync(self, task: Task, datasync: bool) -> None:
        """There is nowhere to write it to."""

    def fallocate(self, task: Task, mode: int, offset: int, length: int) -> None:
        if mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE) or not self.node.fs.sparse:
            raise SysError(errno.EOPNOTSUPP, "mode")
        if mode & FALLOC_FL_PUNCH_HOLE:
            self.node.punch(offset, length)
        else:
            self.node.allocate(offset, length, bool(mode & FALLOC_FL_KEEP_SIZE))

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> TmpfsPages:
        if flags & MAP_TYPE != MAP_PRIVATE and prot & PROT_WRITE and self.node.seals & NO_WRITES:
            raise SysError(errno.EPERM, "F_SEAL_WRITE")
        return self.node.pages

    # Seals

    def seals(self) -> int:
        return self.node.seals if self.node.fs.sparse else super().seals()

    def add_seals(self, task: Task, seals: int) -> None:
        """memfd_add_seals(): SysError(EPERM, EINVAL, EBUSY)."""
        node = self.node
        if not self.may_write:
            raise SysError(errno.EPERM, "not open for writing")
        if seals & ~F_ALL_SEALS or not node.fs.sparse:
            raise SysError(errno.EINVAL, "unknown seal")
        if node.seals & F_SEAL_SEAL:
            raise SysError(errno.EPERM, "F_SEAL_SEAL")
        if seals & F_SEAL_EXEC and node.mode & 0o111:
            seals |= F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE | F_SEAL_FUTURE_WRITE
        if seals & F_SEAL_WRITE and not node.seals & F_SEAL_WRITE:
            writable = VM_SHARED | VM_MAYWRITE
            if any(vma.flags & writable == writable for _, vma in node.pages.areas()):
                raise SysError(errno.EBUSY, "mapped writable")
        node.seals |= seals
