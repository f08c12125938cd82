"""The tables that the CPU itself reads (GDT, TSS, IDT) and the special registers of a ring-3 program.

The selectors are Linux's, for programs can see them: CS 0x33, SS 0x2b, DS, ES, FS and GS null. There is no 32-bit code
segment, so no program leaves 64-bit mode. Sources: Intel SDM volume 3, 3.4.5, 6.14 and 7.7;
arch/x86/include/asm/segment.h.
"""

from __future__ import annotations

import struct

from vmm.kvm import abi
from vmm.layout import EXCEPTION_STUBS, IDT, PAGE_SIZE

KERNEL_CS, KERNEL_SS, USER_SS, USER_CS, TSS = 0x10, 0x18, 0x2B, 0x33, 0x40
STAR = (USER_CS - 16) << 48 | KERNEL_CS << 32
"""SYSRETQ takes CS from bits 48-63 plus 16, SS from them plus 8."""
SYSCALL_MASK = 0x47700
"""Bits of RFLAGS that SYSCALL clears: AC NT IOPL DF IF TF, as syscall_init() of arch/x86/kernel/cpu/common.c."""

FRAME_WORDS = 6
"""At the end of a system page: error code (or nothing), RIP, CS, RFLAGS, RSP, SS, as an exception pushes them."""
FRAME = PAGE_SIZE - 8 * FRAME_WORDS

_GDT_SIZE = 80
_TSS_OFFSET, _TSS_SIZE = 0x400, 0x68
_INTERRUPT_GATE = 0x8E
_DPL3 = 0x60
_BP, _OF = 3, 4

CR0 = 0x8005_0033  # PG AM WP NE ET MP PE, as on Linux
CR4 = 0x620  # OSXMMEXCPT OSFXSR PAE
CR4_FSGSBASE, CR4_OSXSAVE = 1 << 16, 1 << 18
_EFER = 0xD01  # NXE LMA LME SCE


def system_page(va: int) -> bytes:
    """Contents of a vCPU's system page, mapped at `va`: GDT, TSS; the rest is its ring-0 stack."""
    tss = va + _TSS_OFFSET
    page = bytearray(PAGE_SIZE)
    gdt = (
        0,
        0,
        0x00AF9B00_0000FFFF,  # 0x10: ring 0, 64-bit code
        0x00CF9300_0000FFFF,  # 0x18: ring 0, data
        0,  # 0x20 is where Linux has 32-bit code
        0x00CFF300_0000FFFF,  # 0x28: ring 3, data
        0x00AFFB00_0000FFFF,  # 0x30: ring 3, 64-bit code
        0,
        0x00008900_00000000 | _TSS_SIZE - 1 | (tss & 0xFF_FFFF) << 16 | (tss >> 24 & 0xFF) << 56,
        tss >> 32,
    )
    struct.pack_into("<10Q", page, 0, *gdt)
    struct.pack_into("<Q", page, _TSS_OFFSET + 4, va + PAGE_SIZE)  # RSP0
    # An I/O permission bitmap behind the limit is none: with 0 here the TSS itself would serve as one.
    struct.pack_into("<H", page, _TSS_OFFSET + 0x66, _TSS_SIZE)
    return bytes(page)


def interrupt_table(vectors: int, size: int) -> bytes:
    """The IDT: gates to the entries of `size` bytes each at EXCEPTION_STUBS. Programs may use INT 3 and INT 4."""
    table = bytearray()
    for vector in range(vectors):
        entry = EXCEPTION_STUBS + vector * size
        kind = _INTERRUPT_GATE | (_DPL3 if vector in (_BP, _OF) else 0)
        gate = entry & 0xFFFF | KERNEL_CS << 16 | kind << 40 | (entry >> 16 & 0xFFFF) << 48
        table += struct.pack("<QQ", gate, entry >> 32)
    return bytes(table)


def _segment(selector: int, kind: int, *, dpl: int, code: bool) -> abi.kvm_segment:
    return abi.kvm_segment(
        limit=0xFFFF_FFFF, selector=selector, type=kind, present=1, dpl=dpl, db=not code, s=1, l=code, g=1
    )


USER_CODE = _segment(USER_CS, 11, dpl=3, code=True)
USER_DATA = _segment(USER_SS, 3, dpl=3, code=False)
USER_CODE_BYTES, USER_DATA_BYTES = bytes(USER_CODE), bytes(USER_DATA)


def enter_ring3(sregs: abi.kvm_sregs, system_va: int, vectors: int, cr4: int) -> None:
    """Fill in the special registers of a ring-3 program without an address space (CR3 0); APIC_BASE stays."""
    none = abi.kvm_segment(unusable=1)
    sregs.cs, sregs.ss = USER_CODE, USER_DATA
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ldt = none
    sregs.tr = abi.kvm_segment(base=system_va + _TSS_OFFSET, limit=_TSS_SIZE - 1, selector=TSS, type=11, present=1)
    sregs.gdt = abi.kvm_dtable(base=system_va, limit=_GDT_SIZE - 1)
    sregs.idt = abi.kvm_dtable(base=IDT, limit=vectors * 16 - 1)
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4, sregs.cr8, sregs.efer = CR0, 0, 0, cr4, 0, _EFER
