"""The machine's CPUs without KVM: Unicorn (QEMU's translator as a library) runs guest code, for any number of CPUs by
turns, with the same page tables in the same guest RAM.

abi.py      Unicorn's C API; unicorn.py is one engine of it
ring3.py    brings an engine up; calibrate.py finds out what Unicorn does not tell of it
engine.py   runs CPUs in it and stops them; turns.py says whose turn it is
hooks.py    what Unicorn calls while guest code runs; exits.py makes a vmm.cpu.Exit of what it has left
cpu.py      vmm/cpu.py's Cpu; fpu.py is its x87 and SSE state
decode.py   a little of the instruction format; code_pages.py and tables.py are about guest memory

What differs from hardware, and a program may notice:

* There is no AVX, and CPUID says so; an AVX instruction is #UD. 32-bit code segments do not exist.
* Floating-point exceptions are never raised but the x87's for a division by zero, and most of their flags are not set;
  an unaligned access is none with the AC flag set either.
* A read-modify-write of a page that is not there faults as a read first. INS in ring 3 has cleared its destination
  when it faults. RCX and R11 keep their values over SYSCALL.
* The RIP of an INT n that faults is that of the instruction without its prefixes.

Its time-stamp counter is the host's, RDTSC and all.

Unicorn is GPL-2.0. It is neither part of pyvmm nor linked with it; it is loaded when it is asked for.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING

from vmm.emulator.abi import EmulatorUnavailable, UnicornError
from vmm.emulator.cpu import EmulatorCpu
from vmm.emulator.engine import SLICE, Engine
from vmm.emulator.fpu import SIZE as FPU_SIZE
from vmm.memory.atomics import read_tsc
from vmm.tsc import Stopwatch, host_trusts_tsc

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from vmm.cpu import Cpu
    from vmm.memory.frames import Frames
    from vmm.memory.pagetable import KernelHalf
    from vmm.memory.physical import GuestRam

__all__ = ["EmulatorAccelerator", "EmulatorUnavailable"]

MAX_CPUS = 4096


class HostTsc:
    """See vmm.cpu.Tsc."""

    def __init__(self, khz: int) -> None:
        self.khz = khz

    def read(self, cpu: Cpu) -> int:
        return read_tsc()


class EmulatorAccelerator:
    """See vmm/cpu.py: Accelerator.

    `slice_seconds`: what CPUs that compute get by turns. Raises EmulatorUnavailable without a usable Unicorn.
    """

    name = "emulator"
    max_cpus = MAX_CPUS
    populates = False
    large_pages = False
    discard_revokes = False
    hwcap2 = 0
    fpu_size = FPU_SIZE

    def __init__(self, ram: GuestRam, frames: Frames, half: KernelHalf, slice_seconds: float = SLICE) -> None:
        self._stopwatch = Stopwatch() if host_trusts_tsc() else None
        try:
            self._engine = Engine(ram, frames, half, slice_seconds)
        except UnicornError as error:
            raise EmulatorUnavailable(f"Unicorn does not work here: {error}") from error
        self._lock = Lock()
        self._free: list[int] = []
        self._made = 0
        self._count = 0

    @property
    def cpuid_features(self) -> int:
        return self._engine.feature_bits

    @property
    def tsc(self) -> HostTsc | None:
        """RDTSC in the guest gives the host's counter."""
        return HostTsc(self._stopwatch.khz()) if self._stopwatch is not None else None

    def create_cpu(self) -> EmulatorCpu:
        with self._lock:
            if self._count == self.max_cpus:
                raise OSError(f"the emulator has no more than {self.max_cpus} CPUs")
            self._count += 1
            index = self._free.pop() if self._free else self._made
            self._made = max(self._made, index + 1)
        try:
            return EmulatorCpu(self, self._engine, index)
        except UnicornError as error:
            self._release(index)
            raise OSError(str(error)) from error

    def forget(self, cpu: EmulatorCpu) -> None:
        """`cpu` was closed."""
        self._engine.forget(cpu)
        self._release(cpu.index)

    def _release(self, index: int) -> None:
        with self._lock:
            self._count -= 1
            self._free.append(index)

    def revoke(self, address: int, length: int) -> None:
        # The translations that the engine keeps are found by virtual address only.
        self._engine.forget_translations()

    def revoke_all(self) -> None:
        self._engine.forget_translations()

    def forget_code(self, address: int, length: int) -> None:
        self._engine.forget_code(address, length)

    def exclusive(self) -> AbstractContextManager[None]:
        return self._engine.exclusive()

    def close(self) -> None:
        self._engine.close()
