"""Reads and writes of files by the monitor itself (ITER_KVEC): a task whose memory is a buffer.

`KernelTask(task, buffer)` is the task in everything but its memory: a file that is told to read "at address 0" for it
fills the buffer. So every kind of file can be the source or the target of sendfile, splice and copy_file_range.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from devices.errors import SysError

if TYPE_CHECKING:
    import struct

    from devices.task.task import Task

EFAULT = 14


class KernelMemory:
    """What files use of an address space, over `buffer`, whose first byte has address 0."""

    def __init__(self, buffer: bytearray) -> None:
        self.buffer = buffer

    def _part(self, address: int, size: int) -> memoryview:
        if not 0 <= address <= address + size <= len(self.buffer):
            raise SysError(EFAULT, "beyond the buffer")
        return memoryview(self.buffer)[address : address + size]

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._part(address, size))

    read_partial = read

    def write(self, address: int, data: bytes) -> None:
        self._part(address, len(data))[:] = data

    def write_partial(self, address: int, data: bytes) -> int:
        self.write(address, data)
        return len(data)

    def views(self, address: int, size: int, write: bool) -> list[memoryview]:
        return [self._part(address, size)] if size else []

    views_partial = views

    def pin(self, address: int, size: int, write: bool) -> KernelPinned:
        return KernelPinned(self.views(address, size, write))

    def read_u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def read_u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")

    def write_u32(self, address: int, value: int) -> None:
        self.write(address, (value & 0xFFFF_FFFF).to_bytes(4, "little"))

    def write_u64(self, address: int, value: int) -> None:
        self.write(address, (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(8, "little"))

    def read_struct(self, address: int, layout: struct.Struct) -> tuple[Any, ...]:
        return layout.unpack(self.read(address, layout.size))

    def write_struct(self, address: int, layout: struct.Struct, *values: Any) -> None:
        self.write(address, layout.pack(*values))


class KernelPinned:
    """See Pinned in devices/memory/machine.py: nothing can happen to this memory."""

    def __init__(self, views: list[memoryview]) -> None:
        self.views = views

    def release(self) -> None:
        """There is nothing to give back."""

    def __enter__(self) -> KernelPinned:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


class KernelTask:
    """A task with the monitor's buffer for memory; everything else is the task's own."""

    def __init__(self, task: Task, buffer: bytearray) -> None:
        self.__dict__["_task"] = task
        self.__dict__["memory"] = KernelMemory(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_task"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_task"], name, value)
