"""What a mapping shows: a file's bytes, copied into pages of the mapping's own, or frames that several mappings share.

`Backing` is all that a private mapping of a file needs. `SharedBacking` is the base of whatever owns frames: the vDSO
here, files in memory and anonymous shared memory in filepages.py, host files in pagecache.py. A private mapping of one
maps its frames read-only and copies on write.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from devices.memory import abi
from vmm.layout import PAGE_SHIFT
from vmm.memory.frames import add_run

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from devices.memory.core import Core
    from devices.memory.vma import Vma
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

    def hold(self) -> object:
        """One more area maps the file: it stays open."""

    def put_locked(self) -> None:
        """An area that mapped it is gone."""


class SharedBacking:
    """Owner of frames that mappings show; holds a reference to each of them itself.

    `mappings` counts the areas that map it, `spaces` says in which address spaces they are; when the last one goes,
    `unmapped` is called.
    """

    path: bytes = b""
    tracks_writes = False
    """Shared mappings are mapped read-only until they are written to; `written` is then told."""
    copies_private = False
    """A private mapping that may be written gets copies of the pages at the first access, not at the first write: one
    fault less each. Else it sees later writes to the file until it has written itself, as on Linux."""
    write_sealed = False
    """Mappings that are shared from now on may never be made writable (F_SEAL_WRITE)."""

    def __init__(self) -> None:
        self.mappings = 0
        self.spaces: dict[Core, int] = {}

    def vma_open(self, space: Core | None) -> None:
        self.mappings += 1
        if space is not None:
            self.spaces[space] = self.spaces.get(space, 0) + 1

    def vma_close(self, space: Core | None) -> None:
        self.mappings -= 1
        if space is not None:
            self.spaces[space] -= 1
            if not self.spaces[space]:
                del self.spaces[space]
        if not self.mappings:
            self.unmapped()

    def unmapped(self) -> None:
        """No area maps it any more."""

    def areas(self) -> Iterator[tuple[Core, Vma]]:
        """Every area that maps it, with its address space."""
        for space in list(self.spaces):
            for vma in list(space.vmas):
                if vma.backing is self:
                    yield space, vma

    def unmap_range(self, first: int, last: int, private: bool) -> None:
        """Take pages [first, last) out of all mappings (unmap_mapping_range()); `private`: copies that private mappings
        have made, too. Raises OutOfFrames."""
        for space in list(self.spaces):
            space.unmap_backing(self, first, last, private)

    def frame(self, index: int) -> int:
        """Address of the frame of page `index`, 0 if there is none."""
        raise NotImplementedError

    def around(self, index: int, first: int, last: int, sequential: bool) -> tuple[int, int]:
        """Which of the pages [first, last) a fault at page `index` is to map; `sequential`: accesses go on and on, or
        all of them were asked for."""
        return first, last

    def frames_at(self, index: int, count: int) -> list[Run]:
        """Runs of the frames of at most `count` pages from page `index` on, made if need be; [] beyond the end.

        Raises OutOfFrames, and OSError where reading them failed."""
        raise NotImplementedError

    def written(self, first: int, last: int) -> None:
        """Pages [first, last) are about to be written through a shared mapping (only with `tracks_writes`)."""

    def read_into(self, view: memoryview, offset: int) -> int:
        """As for `Backing`, for a user that wants a copy."""
        raise NotImplementedError

    def sync(self, offset: int, length: int) -> None:
        """Write a range of bytes to where it is kept (msync with MS_SYNC). SysError where that fails."""

    def punch(self, offset: int, length: int) -> bool:
        """Make whole pages read as zeros and take no memory (madvise(MADV_REMOVE)); False where that cannot be done."""
        return False


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

    def frame(self, index: int) -> int:
        return self._frames[index] if index < len(self._frames) else 0

    def frames_at(self, index: int, count: int) -> list[Run]:
        runs: list[Run] = []
        for address in self._frames[index : index + count]:
            add_run(runs, address, 1)
        return runs
