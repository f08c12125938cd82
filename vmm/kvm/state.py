"""A vCPU descriptor and its state: registers in the page shared with the kernel, FPU, time-stamp counter.

KVM_CAP_SYNC_REGS: on every exit KVM copies general and special registers into the page, and takes back on the next
KVM_RUN those that `kvm_dirty_regs` names, so no register ioctl is needed. (Special registers on every exit cost less
than 0.2 us, KVM_GET_SREGS on those that need them 5 us, on the software KVM where it was measured.)
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
from fcntl import ioctl
from typing import TYPE_CHECKING

from vmm.cpu import FIXED_RFLAGS, REGISTERS, RFLAGS, RIP, USER_RFLAGS
from vmm.kvm import abi, xsave
from vmm.kvm.abi import KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, offsetof
from vmm.kvm.segments import FRAME, FRAME_WORDS, STAR, SYSCALL_MASK, USER_CODE_BYTES, USER_DATA_BYTES, enter_ring3
from vmm.layout import PAGE_SIZE, SYSTEM_CPUS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vmm.kvm.probe import Host

_SYNC = offsetof(abi.kvm_run, "s.regs")
_REGS = _SYNC + offsetof(abi.kvm_sync_regs, "regs")
_SREGS = _SYNC + offsetof(abi.kvm_sync_regs, "sregs")
_EVENTS = _SYNC + offsetof(abi.kvm_sync_regs, "events")
_REGS_END, _SREGS_END, _EVENTS_END = _REGS + 144, _SREGS + 312, _EVENTS + 64
_VALID = offsetof(abi.kvm_run, "kvm_valid_regs")
_DIRTY = offsetof(abi.kvm_run, "kvm_dirty_regs")


def _special(name: str) -> int:
    return _SREGS + offsetof(abi.kvm_sregs, name)


_CS, _SS = _special("cs"), _special("ss")
_CS_SELECTOR = _special("cs.selector")
# Indices into the page as 64-bit words.
_FS_BASE, _GS_BASE, CR2, _CR3 = (_special(name) // 8 for name in ("fs.base", "gs.base", "cr2", "cr3"))

_ALL_REGISTERS = struct.Struct("<18Q")
_INITIAL_REGISTERS = _ALL_REGISTERS.pack(*[0] * RFLAGS, FIXED_RFLAGS)
_INITIAL_FPU = xsave.initial()
LOWER_HALF = 1 << 47
"""Addresses below are the program's half; above follow those that are not canonical, then the upper half."""
_UPPER_HALF = (1 << 64) - LOWER_HALF
REGS_DIRTY = KVM_SYNC_X86_REGS
SREGS_DIRTY = KVM_SYNC_X86_SREGS
EVENTS_DIRTY = KVM_SYNC_X86_EVENTS


def _canonical(address: int) -> bool:
    return 0 <= address < LOWER_HALF or _UPPER_HALF <= address < 1 << 64


def set_msrs(vcpu: int, values: tuple[tuple[int, int], ...]) -> int:
    """KVM_SET_MSRS of (number, value) pairs; how many KVM accepted before the first it did not."""
    argument = struct.pack("<II", len(values), 0)
    for number, value in values:
        argument += struct.pack("<IIQ", number, 0, value)
    return int(ioctl(vcpu, abi.KVM_SET_MSRS, bytearray(argument), True))


def set_xcr0(vcpu: int, value: int) -> None:
    """KVM_SET_XCRS: the state components that XSAVE and the program may use."""
    xcrs = abi.kvm_xcrs(nr_xcrs=1)
    xcrs.xcrs[0].value = value
    ioctl(vcpu, abi.KVM_SET_XCRS, xcrs)


def use_host_tsc(vcpu: int) -> bool:
    """Let the vCPU's time-stamp counter be the host's own; False where KVM cannot (Linux before 5.16)."""
    offset = ctypes.c_uint64(0)
    attribute = abi.kvm_device_attr(
        group=abi.KVM_VCPU_TSC_CTRL, attr=abi.KVM_VCPU_TSC_OFFSET, addr=ctypes.addressof(offset)
    )
    try:
        ioctl(vcpu, abi.KVM_SET_DEVICE_ATTR, attribute)
    except OSError:
        return False
    return True


class Vcpu:
    """The descriptor, its shared page, and all state but the running of it.

    lstar: where SYSCALL leads; own: the monitor's own pages as 64-bit words; system_page: offset in them, in bytes, of
    the page that is this vCPU's at SYSTEM_CPUS. Raises OSError.
    """

    __slots__ = ("_broken", "_bytes", "_dirty", "_fd", "_frame", "_host", "_lstar", "_map", "_page", "_sregs", "_words",
                 "index", "regs")  # fmt: skip

    def __init__(
        self, host: Host, fd: int, run_size: int, index: int, lstar: int, own: memoryview, system_page: int
    ) -> None:
        self.index = index
        self._host = host
        self._fd = fd
        self._lstar = lstar
        self._map = mmap.mmap(fd, run_size)
        self._page = abi.kvm_run.from_buffer(self._map)
        self._bytes = memoryview(self._map)
        self._words = self._bytes.cast("Q")
        self._dirty = self._words[_DIRTY // 8 : _DIRTY // 8 + 1]
        """kvm_dirty_regs, which KVM clears when it takes the registers."""
        self.regs = self._words[_REGS // 8 : _REGS_END // 8]
        frame = (system_page + FRAME) // 8
        self._frame = own[frame : frame + FRAME_WORDS]
        self._broken = False
        ioctl(fd, abi.KVM_SET_CPUID2, host.cpuid.of_vcpu(index))
        self._sregs = self._initial_sregs()
        self._program()
        self._words[_VALID // 8] = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS

    def _initial_sregs(self) -> bytes:
        sregs = abi.kvm_sregs()
        ioctl(self._fd, abi.KVM_GET_SREGS, sregs)
        enter_ring3(sregs, SYSTEM_CPUS + self.index * PAGE_SIZE, self._host.stub.vectors, self._host.cr4)
        return bytes(sregs)

    def _program(self) -> None:
        """Set what no program changes. Special registers first: MSRs and XCR0 depend on CR4 and EFER."""
        ioctl(self._fd, abi.KVM_SET_SREGS, self._sregs)
        if self._host.xcr0:
            set_xcr0(self._fd, self._host.xcr0)
        values = ((abi.MSR_STAR, STAR), (abi.MSR_LSTAR, self._lstar), (abi.MSR_SYSCALL_MASK, SYSCALL_MASK))
        if set_msrs(self._fd, values) != len(values):
            raise OSError("KVM_SET_MSRS refused a SYSCALL register")
        if self._host.host_tsc and not use_host_tsc(self._fd):
            raise OSError("KVM refused KVM_VCPU_TSC_OFFSET")
        # RDTSCP and RDPID show it. KVM refuses it where they do not exist; software KVM takes it to no effect.
        set_msrs(self._fd, ((abi.MSR_TSC_AUX, self.index),))

    # Registers

    def save(self) -> list[int]:
        """The program's 18 registers; see vmm.cpu.Cpu."""
        return self.regs.tolist()

    def load(self, state: Sequence[int]) -> None:
        """Set the program's 18 registers; see vmm.cpu.Cpu."""
        if not _canonical(state[RIP]):
            raise ValueError(f"RIP {state[RIP]:#x} is not canonical")
        _ALL_REGISTERS.pack_into(self._bytes, _REGS, *state)
        self.regs[RFLAGS] = state[RFLAGS] & USER_RFLAGS | FIXED_RFLAGS
        if self._ring() != 3:
            self._to_ring3()
        self._dirty[0] |= REGS_DIRTY

    def _ring(self) -> int:
        return self._bytes[_CS_SELECTOR] & 3

    def _to_ring3(self) -> None:
        """Let the next run begin in ring 3. The other segment registers stay as the program has left them."""
        self._bytes[_CS : _CS + 24] = USER_CODE_BYTES
        self._bytes[_SS : _SS + 24] = USER_DATA_BYTES
        self._dirty[0] |= SREGS_DIRTY

    @property
    def fs_base(self) -> int:
        return int(self._words[_FS_BASE])

    @fs_base.setter
    def fs_base(self, value: int) -> None:
        self._set_base(_FS_BASE, value)

    @property
    def gs_base(self) -> int:
        return int(self._words[_GS_BASE])

    @gs_base.setter
    def gs_base(self, value: int) -> None:
        self._set_base(_GS_BASE, value)

    def _set_base(self, index: int, value: int) -> None:
        if not _canonical(value):  # the CPU would refuse to enter the guest with it
            raise ValueError(f"segment base {value:#x} is not canonical")
        self._words[index] = value
        self._dirty[0] |= SREGS_DIRTY

    def set_address_space(self, root: int) -> None:
        """Load CR3 with the guest-physical address `root` on the next run."""
        self._words[_CR3] = root
        self._dirty[0] |= SREGS_DIRTY

    @property
    def address_space(self) -> int:
        """CR3: guest-physical address of the PML4."""
        return int(self._words[_CR3])

    # FPU and clock

    def get_fpu(self) -> bytes:
        """The XSAVE area; see vmm.cpu.Cpu."""
        area = bytearray(xsave.AREA_SIZE)
        ioctl(self._fd, abi.KVM_GET_XSAVE, area, True)
        return bytes(area[: self._host.cpuid.xsave_size])

    def set_fpu(self, area: bytes) -> None:
        """Set from an XSAVE area; see vmm.cpu.Cpu. Raises ValueError for less than 512 bytes."""
        host = self._host
        ioctl(self._fd, abi.KVM_SET_XSAVE, xsave.sanitise(area, host.cpuid.xsave_size, host.xcr0, host.mxcsr_mask))

    def tsc(self) -> int:
        """What RDTSC would give the program now."""
        argument = bytearray(struct.pack("<IIIIQ", 1, 0, abi.MSR_IA32_TSC, 0, 0))
        if ioctl(self._fd, abi.KVM_GET_MSRS, argument, True) != 1:
            raise OSError("KVM_GET_MSRS refused MSR_IA32_TSC")
        return int.from_bytes(argument[16:24], "little")

    # Life

    def _restart(self) -> None:
        """Registers, segments and FPU of a new process, in the same address space."""
        root = self._words[_CR3]
        if self._broken:  # a shutdown resets model-specific registers too, at least on SVM
            self._program()
            self._broken = False
        self._bytes[_REGS:_REGS_END] = _INITIAL_REGISTERS
        self._bytes[_SREGS:_SREGS_END] = self._sregs
        self._words[_CR3] = root
        self._forget_events()
        self._dirty[0] = REGS_DIRTY | SREGS_DIRTY | EVENTS_DIRTY
        ioctl(self._fd, abi.KVM_SET_XSAVE, _INITIAL_FPU)

    def _registers(self) -> tuple[bytes, bytes]:
        """General and special registers, for `_put_back`."""
        return bytes(self._bytes[_REGS:_REGS_END]), bytes(self._bytes[_SREGS:_SREGS_END])

    def _put_back(self, registers: tuple[bytes, bytes]) -> None:
        """Undo what KVM has done since `_registers`, an exception that waits to be delivered among it."""
        self._bytes[_REGS:_REGS_END], self._bytes[_SREGS:_SREGS_END] = registers
        self._forget_events()
        self._dirty[0] = REGS_DIRTY | SREGS_DIRTY | EVENTS_DIRTY

    def _forget_events(self) -> None:
        self._bytes[_EVENTS:_EVENTS_END] = bytes(_EVENTS_END - _EVENTS)

    def dump(self) -> str:
        """All registers as text, for a log."""
        lines = [f"vcpu {self.index}, exit reason {self._page.exit_reason}"]
        named = [f"{name:>6} {value:016x}" for name, value in zip(REGISTERS, self.regs.tolist(), strict=True)]
        lines += [" ".join(named[row : row + 3]) for row in range(0, len(named), 3)]
        sregs = self._page.s.regs.sregs
        for name in ("cs", "ss", "ds", "es", "fs", "gs", "tr", "ldt"):
            segment = getattr(sregs, name)
            lines.append(
                f"{name:>6} {segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x} "
                f"type {segment.type:x} dpl {segment.dpl} l {segment.l} present {segment.present}"
            )
        for name in ("gdt", "idt"):
            lines.append(f"{name:>6} base {getattr(sregs, name).base:016x} limit {getattr(sregs, name).limit:04x}")
        lines.append(" ".join(f"{name} {getattr(sregs, name):x}" for name in ("cr0", "cr2", "cr3", "cr4", "efer")))
        lines.append("exception frame " + " ".join(f"{word:x}" for word in self._frame.tolist()))
        return "\n".join(lines)

    def release(self) -> None:
        """Unmap the page and close the descriptor."""
        for view in (self.regs, self._dirty, self._words, self._bytes, self._frame):
            view.release()
        del self._page
        self._map.close()
        os.close(self._fd)
