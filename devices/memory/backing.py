"""What a mapping shows: a file's bytes, copied into pages of the mapping's own, or frames that several mappings share.

`Backing` is all that a private mapping of a file needs. `SharedBacking` is the base of whatever owns frames: anonymous
shared memory and the vDSO here, a page cache or System V segment elsewhere. A private mapping of one maps its frames
read-only and copies on write.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Protocol

from devices.memory import abi
from vmm.layout import LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE
from vmm.memory.frames import BLOCK_FRAMES, add_run

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.memory.machine import MachineMemory
    from devices.task.task import Task
    from vmm.memory.frames import Run

VDSO_FLAGS = abi.VM_READ | abi.VM_EXEC | abi.VM_MAYALL
VVAR_FLAGS = abi.VM_READ | abi.VM_MAYREAD | abi.VM_IO | abi.VM_DONTEXPAND | abi.VM_PFNMAP | abi.VM_DONTDUMP
"""vm_flags of arch/x86/entry/vdso/vma.c."""


class Backing(Protocol):
    """What a private mapping copies its pages from."""

    @property
    def path(self) -> bytes:
        """As /proc/[pid]/maps shows it."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` in bytes on; the bytes read, fewer only at the end. OSError makes it a SIGBUS."""


class MappableFile(Protocol):
    """What mmap needs of an open file description (devices/vfs/files.py)."""

    flags: int

    def mmap_backing(self, task: Task, prot: int, flags: int, offset: int, length: int) -> Backing:
        """What the mapping shows; SysError(ENODEV) for a file that cannot be mapped."""


class SharedBacking:
    """Owner of frames that mappings show; holds a reference to each of them itself.

    `mappings` counts the areas that map it; when the last one goes, `unmapped` is called.
    """

    path: bytes = b""

    def __init__(self) -> None:
        self.mappings = 0

    def vma_open(self) -> None:
        self.mappings += 1

    def vma_close(self) -> None:
        self.mappings -= 1
        if not self.mappings:
            self.unmapped()

    def unmapped(self) -> None:
        """No area maps it any more."""

    def frames_at(self, index: int, count: int) -> list[Run]:
        """Runs of the frames of at most `count` pages from page `index` on, made if need be; [] beyond the end.

        Raises OutOfFrames, and OSError where reading them failed."""
        raise NotImplementedError

    def read_into(self, view: memoryview, offset: int) -> int:
        """As for `Backing`, for a user that wants a copy."""
        raise NotImplementedError

    def sync(self, offset: int, length: int) -> None:
        """Write a range of bytes to where it is kept (msync with MS_SYNC)."""

    def punch(self, offset: int, length: int) -> bool:
        """Make whole pages read as zeros and take no memory (madvise(MADV_REMOVE)); False where that cannot be done."""
        return False


class SharedMemory(SharedBacking):
    """Anonymous shared memory of `size` bytes, as mmap(MAP_SHARED | MAP_ANONYMOUS) makes it (mm/shmem.c)."""

    path = b"/dev/zero (deleted)"

    def __init__(self, machine: MachineMemory, size: int) -> None:
        super().__init__()
        self._machine = machine
        self._pages = size >> PAGE_SHIFT
        self._chunks: dict[int, array[int]] = {}
        """Frames' addresses, 0 for a page never used, 512 pages a piece."""

    def frames_at(self, index: int, count: int) -> list[Run]:
        count = min(count, self._pages - index)
        runs: list[Run] = []
        while count > 0:
            part = min(count, BLOCK_FRAMES - index % BLOCK_FRAMES)
            self._frames_in(index, part, runs)
            index += part
            count -= part
        return runs

    def _frames_in(self, index: int, count: int, runs: list[Run]) -> None:
        """The same for pages of one chunk, whose missing frames are allocated."""
        chunk = self._chunks.get(index // BLOCK_FRAMES)
        if chunk is None:
            chunk = self._chunks[index // BLOCK_FRAMES] = array("Q", bytes(LARGE_SIZE // BLOCK_FRAMES))
        first = index % BLOCK_FRAMES
        missing = [i for i in range(first, first + count) if not chunk[i]]
        if missing:
            fresh = self._machine.frames.allocate_run(len(missing))
            addresses = (a for run, n in fresh for a in range(run, run + (n << PAGE_SHIFT), PAGE_SIZE))
            for i, address in zip(missing, addresses, strict=True):
                chunk[i] = address
        for address in chunk[first : first + count]:
            add_run(runs, address, 1)

    def punch(self, offset: int, length: int) -> bool:
        """The frames stay, mapped wherever they are: it is the host that gets its memory back, and zeros are left."""
        for index in range(offset >> PAGE_SHIFT, min((offset + length) >> PAGE_SHIFT, self._pages)):
            chunk = self._chunks.get(index // BLOCK_FRAMES)
            if chunk is not None and (address := chunk[index % BLOCK_FRAMES]):
                self._machine.ram.discard(address, PAGE_SIZE)
                self._machine.code_written(address, PAGE_SIZE)
        return True

    def unmapped(self) -> None:
        runs: list[Run] = []
        for chunk in self._chunks.values():
            for address in chunk:
                if address:
                    add_run(runs, address, 1)
        self._chunks.clear()
        self._machine.release(runs)


class SpecialPages(SharedBacking):
    """Frames that belong to the machine, shown by name in every address space: [vvar] and [vdso].

    `frames` are guest-physical addresses; the maker keeps its reference to them. What is `executable` may also be made
    writable (a debugger's breakpoints: the write copies the page), the rest stays read-only.
    """

    def __init__(self, name: bytes, frames: Sequence[int], executable: bool) -> None:
        super().__init__()
        self.path = name
        self.size = len(frames) << PAGE_SHIFT
        self.vm_flags = VDSO_FLAGS if executable else VVAR_FLAGS
        self._frames = frames

    def frames_at(self, index: int, count: int) -> list[Run]:
        runs: list[Run] = []
        for address in self._frames[index : index + count]:
            add_run(runs, address, 1)
        return runs
