"""The vDSO of a machine: the frames of its image and of the clock page before it, mapped into every process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devices.memory.backing import SpecialPages
from devices.time.vvar import VvarPage
from guest import built
from guest.vvar import VVAR_SIZE
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from devices.memory.machine import MachineMemory
    from devices.memory.space import AddressSpace
    from devices.time.clock import Clock


class Vdso:
    """[vvar] and [vdso]. Sets `clock.vvar`: with the page, the page is the guest's time."""

    def __init__(self, memory: MachineMemory, clock: Clock) -> None:
        image = built("vdso.so")
        count = (len(image) + PAGE_SIZE - 1) >> PAGE_SHIFT
        vvar_frame = memory.frames.allocate()
        frames = [memory.frames.allocate() for _ in range(count)]
        view = memory.ram.view
        for index, frame in enumerate(frames):
            part = image[index << PAGE_SHIFT : (index + 1) << PAGE_SHIFT]
            view[frame : frame + len(part)] = part
        self._vvar = SpecialPages(b"[vvar]", [vvar_frame], executable=False)
        self._vdso = SpecialPages(b"[vdso]", frames, executable=True)
        clock.vvar = VvarPage(view[vvar_frame : vvar_frame + PAGE_SIZE], memory.accelerator.tsc, clock.host)

    def map_locked(self, space: AddressSpace) -> int:
        """Map both into a new program's memory; the address of the image (AT_SYSINFO_EHDR)."""
        return space.install_special(self._vvar, self._vdso) + VVAR_SIZE
