"""An address space, whole: its layers (see the package's text) put together, with fork on top."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.memory.abi import VM_DONTCOPY, VM_LOCKED_MASK, VM_SHARED, VM_WIPEONFORK
from devices.memory.machine import MachineMemory
from devices.memory.mapping import Mappings
from devices.memory.vma import Vma
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from vmm.memory.frames import Run

__all__ = ["AddressSpace", "MachineMemory"]


class AddressSpace(Mappings):
    """struct mm_struct: the memory of a process. Needs the kernel lock held. Raises OutOfFrames.

    `rlimits` and `ipc_lock` are the process's and are set by it.
    """

    users = 1
    """Processes that run in it: several with CLONE_VM."""

    def share(self) -> AddressSpace:
        """Another process runs in it."""
        self.users += 1
        return self

    def leave(self) -> None:
        """A process does not run in it any more; the last one takes it down (mmput())."""
        self.users -= 1
        if not self.users:
            self.teardown()

    def fork(self) -> AddressSpace:
        """A copy: private pages are shared until one side writes, shared memory stays shared (dup_mmap()).

        Raises OutOfFrames, and then nothing is left of the copy."""
        child = AddressSpace(self.machine)
        lost: list[Run] = []
        try:
            for name in ("brk_start", "brk_end", "program_data", "stack_top", "mmap_base", "rlimits", "ipc_lock"):
                setattr(child, name, getattr(self, name))
            child._no_gap = (1, child.mmap_base)
            for vma in self.vmas:
                self._fork_area(child, vma, lost)
        except OutOfFrames:
            child.teardown()
            raise
        finally:
            self.forget_translations()
            self.machine.revoke(lost)
        return child

    def _fork_area(self, child: AddressSpace, vma: Vma, lost: list[Run]) -> None:
        if vma.flags & VM_DONTCOPY:
            return
        flags = vma.flags & ~VM_LOCKED_MASK
        child.add(Vma(vma.start, vma.end, flags, vma.backing, vma.offset, vma.file))
        if not vma.flags & VM_WIPEONFORK:
            self.table.share(child.table, vma.start, vma.end, not vma.flags & VM_SHARED, lost)
