"""Bringing an engine up: from Unicorn's reset state to ring 3 of a 64-bit operating system.

Unicorn starts at CPL 0 and a write of CS does not change that, so guest code would be allowed everything. A few
instructions that are run once (_BOOT below) set XCR0 and go to ring 3 with SYSRET; a context saved there is what every
new CPU begins with, and nothing leads back: there is no IDT, the GDT holds two ring-3 segments, every exception stops
the engine before it would be delivered, and SYSCALL is a call of the monitor.

What the monitor needs in memory lies behind the guest's RAM, at PRIVATE, in pages of the monitor's own: page tables
that map everything (used while an engine is brought up, and to name physical memory to Unicorn; no program runs with
them), the GDT, and the gate.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from typing import TYPE_CHECKING

from vmm.cpu import FIXED_RFLAGS
from vmm.emulator import abi
from vmm.emulator.abi import EmulatorUnavailable
from vmm.layout import PAGE_SIZE, SYSTEM
from vmm.memory.pagetable import ACCESSED, DIRTY, LARGE, NX, PRESENT, USER, WRITE

if TYPE_CHECKING:
    from vmm.emulator.unicorn import Unicorn
    from vmm.memory.pagetable import KernelHalf

PRIVATE = 1 << 39
"""Guest-physical address of the monitor's own pages; also the size of the largest RAM. Below Unicorn's 40 bits."""
GATE = SYSTEM + (1 << 30)
"""Where each run of a CPU begins (engine.py), in every guest address space: user-accessible and read-only."""
GATE_JUMP = GATE + 2
"""The gate's second instruction."""
GDT = GATE + PAGE_SIZE

ROOT, _LOW, _HIGH, NOTHING, _GDT, _GATE, CODE, _END = (PRIVATE + n * PAGE_SIZE for n in range(8))
"""ROOT is the PML4 of the monitor's own address space: RAM at its guest-physical addresses, these pages, and what the
probes of calibrate.py need. NOTHING is a PML4 that maps nothing."""
_SLOT = 0x800
"""Offset in the gate's page of the address where the program goes on."""
_BOOT_AT, COUNTER = CODE + 0x400, CODE + 0x800
_GIB = 1 << 30
READ_ONLY, NO_EXECUTE, ABSENT = (PRIVATE + n * _GIB for n in (1, 2, 3))
"""Addresses in the monitor's own address space that cannot be used for everything."""

USER_CODE, USER_DATA = 0x33, 0x2B
_STAR = (USER_CODE - 16) << 48
_CR0 = 0x8001_0033  # PG WP NE ET MP PE
_CR4 = 0x5_0620  # OSXSAVE FSGSBASE OSXMMEXCPT OSFXSR PAE
_EFER = 0xD01  # NXE LMA LME SCE
_MSR_EFER, _MSR_STAR = 0xC000_0080, 0xC000_0081
_XCR0 = 3  # x87, SSE: all that Unicorn has
XSAVE_SIZE = 576
_XSAVEOPT = 1
_FPU_CONTROL, _MXCSR, _EMPTY = 0x37F, 0x1F80, 0xFFFF

_BOOT = bytes.fromhex(
    "b803000000"  # mov $_XCR0, %eax
    "31d2 31c9"  # xor %edx, %edx; xor %ecx, %ecx
    "0f01d1"  # xsetbv
    "4889d9"  # mov %rbx, %rcx
    "480f07"  # sysretq: to RCX in ring 3, RFLAGS from R11
)
_SYSCALL = bytes.fromhex("0f05")
_GATE_CODE = _SYSCALL + bytes.fromhex("ff25") + struct.pack("<i", _SLOT - 8)  # syscall; jmp *slot(%rip)
_CPUID = bytes.fromhex("0fa2")


class Pages:
    """The monitor's own pages: host memory that is guest-physical from PRIVATE on."""

    __slots__ = ("_map", "_pin", "address", "counter", "size", "slot")

    def __init__(self, ram: int) -> None:
        """`ram` is the size of guest RAM in bytes."""
        self.size = _END - PRIVATE
        self._map = mmap.mmap(-1, self.size)
        self._pin: ctypes.c_char | None = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._pin)
        self.slot = ctypes.c_uint64.from_buffer(self._map, _GATE + _SLOT - PRIVATE)
        self.counter = ctypes.c_uint32.from_buffer(self._map, COUNTER - PRIVATE)
        all_rights = PRESENT | WRITE | USER | ACCESSED
        self._write(ROOT, [_LOW | all_rights, _HIGH | all_rights])
        leaf = all_rights | DIRTY | LARGE
        self._write(_LOW, [n * _GIB | leaf for n in range(-(-ram // _GIB))])
        self._write(_HIGH, [PRIVATE | leaf, PRIVATE | leaf & ~WRITE, PRIVATE | leaf | NX])
        # The accessed bits are set, so that loading a selector writes nothing.
        self._write(_GDT + (USER_DATA & ~7), [0x00CF_F300_0000_FFFF, 0x00AF_FB00_0000_FFFF])
        self._put(_GATE, _GATE_CODE)

    def _write(self, address: int, words: list[int]) -> None:
        self._put(address, struct.pack(f"<{len(words)}Q", *words))

    def _put(self, address: int, data: bytes) -> None:
        self._map[address - PRIVATE : address - PRIVATE + len(data)] = data

    def boot(self, cpu: Unicorn) -> int:
        """Run the way to ring 3, which ends behind a SYSCALL there; returns where."""
        self._put(CODE, _SYSCALL)
        self._put(_BOOT_AT, _BOOT)
        cpu.start(_BOOT_AT)
        return CODE + len(_SYSCALL)

    def run(self, cpu: Unicorn, code: bytes) -> None:
        """Run code and a SYSCALL in the monitor's own address space, until a hook stops it."""
        self._put(CODE, code + _SYSCALL)
        cpu.drop_code()
        cpu.start(CODE)

    def map_into(self, half: KernelHalf) -> None:
        """Map what guest address spaces need of it."""
        half.map(GATE, _GATE, USER)
        half.map(GDT, _GDT, NX)

    def close(self) -> None:
        del self.slot, self.counter
        self._pin = None
        self._map.close()


def bring_up(cpu: Unicorn, pages: Pages) -> None:
    """Leave the engine in ring 3 with a program's initial state. Raises EmulatorUnavailable."""
    cpu.write(abi.REG_CR4, _CR4)
    cpu.write(abi.REG_CR3, ROOT)
    cpu.write_msr(_MSR_EFER, _EFER)
    cpu.write(abi.REG_CR0, _CR0)
    cpu.write_msr(_MSR_STAR, _STAR)
    cpu.write(abi.REG_R8 + 3, FIXED_RFLAGS)
    cpu.write(abi.REG_RBX, CODE)
    cpu.write_gdtr(GDT, USER_CODE | 7)
    end = pages.boot(cpu)
    cs, ss, rip = (cpu.read(register) for register in (abi.REG_CS, abi.REG_SS, abi.REG_RIP))
    if (cs, ss, rip) != (USER_CODE, USER_DATA, end):
        raise EmulatorUnavailable(f"Unicorn does not reach ring 3 (CS {cs:#x}, SS {ss:#x}, RIP {rip:#x})")
    for register in (abi.REG_RAX, abi.REG_RBX, abi.REG_RCX, abi.REG_R8 + 3):
        cpu.write(register, 0)
    for register, value in ((abi.REG_FPCW, _FPU_CONTROL), (abi.REG_MXCSR, _MXCSR), (abi.REG_FPTAG, _EMPTY)):
        cpu.write(register, value)


def feature_bits(cpu: Unicorn, pages: Pages) -> int:
    """EDX of CPUID leaf 1, as the guest sees it."""
    cpu.write(abi.REG_RAX, 1)
    pages.run(cpu, _CPUID)
    return cpu.read(abi.REG_RDX) & 0xFFFF_FFFF


def xsave_leaf(part: int) -> tuple[int, int, int, int]:
    """EAX, EBX, ECX, EDX of CPUID leaf 0xD: the area has the legacy region and the header, and no AVX state."""
    if part == 0:
        return _XCR0, XSAVE_SIZE, XSAVE_SIZE, 0
    return (_XSAVEOPT if part == 1 else 0), 0, 0, 0
