"""A file of a lower layer that is open for reading: it goes on with the copy when the file is copied up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.vfs.files import SeekableFile

if TYPE_CHECKING:
    import os

    from devices.fs.overlayfs.inode import OverlayInode
    from devices.task.task import Task
    from devices.vfs.files import OpenFile, Segments
    from devices.vfs.path import Path


class LowerFile(SeekableFile):
    """ovl_real_fdget(): `file` is the layer's open file. The position is here."""

    def __init__(self, node: OverlayInode, file: OpenFile, path: Path) -> None:
        super().__init__(file.flags)
        self.node = node
        self._file = file
        self._place = path
        self._copied = False
        self.supports_direct = file.supports_direct

    def _real(self, task: Task) -> OpenFile:
        node = self.node
        if node.upper is not None and not self._copied:
            self._file = node.upper.open(task, self._place, self.flags)
            self._copied = True
        return self._file

    def pread(self, task: Task, segments: Segments, offset: int) -> int:
        file = self._file if self.node.upper is None or self._copied else self._real(task)
        return file.pread(task, segments, offset)

    def size(self) -> int:
        self.node.refresh()
        return self.node.size

    def seek_hole(self, offset: int, hole: bool) -> int:
        file = self._real(self.node.fs.mounter)
        if isinstance(file, SeekableFile):
            return file.seek_hole(offset, hole)
        return super().seek_hole(offset, hole)

    def stat(self) -> os.stat_result:
        return self._file.stat()

    def ioctl(self, task: Task, request: int, argument: int) -> int:
        return self._real(task).ioctl(task, request, argument)

    def fsync(self, task: Task, datasync: bool) -> None:
        self._real(task).fsync(task, datasync)

    def advise(self, task: Task, offset: int, length: int, advice: int) -> None:
        self._real(task).advise(task, offset, length, advice)

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> Any:
        return self._real(task).mmap_backing(task, prot, flags, offset, length)
