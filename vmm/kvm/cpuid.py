"""What CPUID shows a program: what this KVM supports, less what cannot work without a kernel in the guest.

A vCPU is shown as a package of its own with one core and one thread, its APIC id being its index: vCPUs come and go
with the program's threads, so no number of them would be right. (Software KVM lets ring 3 execute the host's CPUID
natively; then all of this is ignored. vmm/kvm/probe.py finds out.)

Sources: Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E; arch/x86/include/asm/cpufeatures.h.
"""

from __future__ import annotations

import struct

from vmm.kvm.abi import KVM_CPUID_FLAG_SIGNIFCANT_INDEX

_ENTRY = struct.Struct("<7I12x")
_ALL = 0xFFFF_FFFF
XCR0_MASK = 0xE7
"""x87, SSE, AVX, AVX-512. Not MPX (gone), PKRU (needs CR4.PKE and system calls), AMX (8 KiB of state a thread)."""


def _bits(*numbers: int) -> int:
    return sum(1 << number for number in numbers)


# (leaf, sub-leaf, register from EAX = 0): bits to clear.
_CLEAR = {
    # VMX SMX MONITOR, DTES64 DS_CPL EST TM2 PDCM PCID DCA x2APIC TSC_DEADLINE
    (0x1, 0, 2): _bits(2, 3, 4, 5, 6, 7, 8, 15, 17, 18, 21, 24),
    # HTT: one thread a package
    (0x1, 0, 3): _bits(28),
    # TSC_ADJUST SGX SMEP INVPCID MPX SMAP PT
    (0x7, 0, 1): _bits(1, 2, 7, 10, 14, 20, 25),
    # UMIP PKU OSPKE WAITPKG SHSTK LA57 KEYLOCKER BUS_LOCK SGX_LC PKS
    (0x7, 0, 2): _bits(2, 3, 4, 5, 7, 16, 23, 24, 30, 31),
    # UINTR IBT, AMX (BF16 TILE INT8); ring 0's: PCONFIG, and 26 to 31, the control of speculation
    (0x7, 0, 3): _bits(5, 18, 20, 22, 24, 25, 26, 27, 28, 29, 30, 31),
    # LAM, AMX-FP16, FRED, LKGS, LASS
    (0x7, 1, 0): _bits(6, 17, 18, 21, 26),
    # XSAVES and XFD are ring 0's
    (0xD, 1, 0): _bits(3, 4),
    # SVM EXTAPIC IBS SKINIT WDT LWP, performance counters, MWAITX
    (0x8000_0001, 0, 2): _bits(2, 3, 10, 12, 13, 15, 23, 24, 28, 29),
}
# Leaves of which nothing is left: MONITOR, thermal, DCA, performance counters, SGX, processor trace, keylocker, AMX,
# LBR, SVM, IBS, LWP, memory encryption, and KVM's own features, which are MSRs.
_EMPTY = {
    0x5, 0x6, 0x9, 0xA, 0xF, 0x10, 0x12, 0x14, 0x19, 0x1B, 0x1C, 0x1D, 0x1E, 0x23, 0x24, 0x8000_000A, 0x8000_001B,
    0x8000_001C, 0x8000_001F, 0x8000_0020, 0x8000_0022, 0x4000_0001,
}  # fmt: skip
_TOPOLOGY = {0xB, 0x1F}


class CpuidTable:
    """The CPUID table of a VM's vCPUs, made from KVM_GET_SUPPORTED_CPUID's."""

    __slots__ = ("_places", "_table", "address_bits", "features", "xcr0", "xsave_size")

    def __init__(self, supported: bytearray) -> None:
        self.xcr0 = 0
        """What XCR0 may hold: 0 without XSAVE, else x87 and SSE and perhaps AVX, AVX-512."""
        self.xsave_size = 576
        """Bytes of an XSAVE area, standard format, with the components of `xcr0`."""
        self.address_bits = 36
        """Width of guest-physical addresses."""
        self.features = 0
        """Leaf 1, EDX."""
        self._places: list[tuple[int, int, int]] = []
        """Where a vCPU's index goes: (offset of a 32-bit register in the table, shift, bits)."""
        entries = [_ENTRY.unpack_from(supported, 8 + 40 * n) for n in range(struct.unpack_from("<I", supported)[0])]
        self._read_xsave(entries)
        table = bytearray(8)
        for function, index, flags, *registers in entries:
            if function in _TOPOLOGY or not self._edit(function, index, registers):
                continue
            self._note(function, len(table))
            table += _ENTRY.pack(function, index, flags, *registers)
        if any(function == 0xB for function, *_ in entries):
            self._add_topology(table)
        struct.pack_into("<I", table, 0, (len(table) - 8) // 40)
        self._table = bytes(table)

    def _read_xsave(self, entries: list[tuple[int, ...]]) -> None:
        sizes = {index: (eax, ebx) for function, index, _, eax, ebx, *_ in entries if function == 0xD}
        if 0 not in sizes or not sizes[0][0]:
            return
        self.xcr0 = sizes[0][0] & XCR0_MASK
        if self.xcr0 & 0xE4 != 0xE4:
            self.xcr0 &= 0x7  # AVX-512 is there as a whole and with AVX, or not at all
        for component in range(2, 8):
            if self.xcr0 >> component & 1:
                size, offset = sizes[component]
                self.xsave_size = max(self.xsave_size, offset + size)

    def _edit(self, function: int, index: int, registers: list[int]) -> bool:
        """Change the registers of an entry; False when it has nothing left to say."""
        if function in _EMPTY:
            return False
        for number in range(4):
            registers[number] &= ~_CLEAR.get((function, index, number), 0)
        if function == 0x1:
            registers[1] = registers[1] & 0xFF00 | 1 << 16  # one logical processor; the APIC id comes later
            registers[2] |= _bits(31)  # a hypervisor runs this
            self.features = registers[3]
        elif function == 0x4:
            registers[0] &= 0x3FFF  # cache shared by one thread, package of one core
        elif function == 0x8000_001D:
            registers[0] &= 0x3FFF
        elif function == 0x8000_0008:
            self.address_bits = registers[0] >> 16 & 0xFF or registers[0] & 0xFF
            registers[2] = 0  # one core
        elif function == 0x8000_001E:
            registers[:] = [0, 0, 0, 0]
        elif function == 0xD:
            return self._edit_xsave(index, registers)
        return any(registers) or function in (0, 0x8000_0000, 0x8000_001E)

    def _edit_xsave(self, index: int, registers: list[int]) -> bool:
        if index == 0:
            registers[0] &= self.xcr0
            registers[2] = self.xsave_size
            registers[3] = 0
        elif index == 1:
            registers[2:] = 0, 0  # IA32_XSS
        return index < 2 or bool(self.xcr0 >> index & 1)

    def _note(self, function: int, at: int) -> None:
        """Remember where the entry at offset `at` of the table holds an APIC id."""
        if function == 0x1:
            self._places.append((at + 16, 24, 0xFF))
        elif function == 0x8000_001E:
            self._places += [(at + 12, 0, _ALL), (at + 16, 0, 0xFF)]

    def _add_topology(self, table: bytearray) -> None:
        """Leaf 0xB: a level of one thread, a level of one core, x2APIC id in EDX."""
        for level, kind in enumerate((1, 2)):
            self._places.append((len(table) + 24, 0, _ALL))
            table += _ENTRY.pack(0xB, level, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, 0, 1, level | kind << 8, 0)

    def of_vcpu(self, index: int) -> bytearray:
        """The argument of KVM_SET_CPUID2 for vCPU `index`."""
        table = bytearray(self._table)
        for at, shift, bits in self._places:
            old = struct.unpack_from("<I", table, at)[0]
            struct.pack_into("<I", table, at, old & ~(bits << shift) & _ALL | (index & bits) << shift)
        return table
