"""What vmm/kvm computes without a VM: CPUID tables, XSAVE areas, descriptor tables, a look at instructions."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmm.kvm import insn, segments, xsave
from vmm.kvm.cpuid import XCR0_MASK, CpuidTable
from vmm.memory.frames import Frames
from vmm.memory.pagetable import LARGE, PRESENT, USER, KernelHalf, PageTable
from vmm.memory.physical import GuestRam

if TYPE_CHECKING:
    from collections.abc import Iterator

_ALL = 0xFFFF_FFFF
XSAVE_LEAVES = [
    (0xD, 0, 1, XCR0_MASK | 0x60200, 0x980, 0x2B00, 0),
    (0xD, 1, 1, 0x1F, 0x980, 0x1800, 0),
    (0xD, 2, 1, 0x100, 0x240, 0, 0),
    (0xD, 5, 1, 0x40, 0x340, 0, 0),
    (0xD, 6, 1, 0x200, 0x380, 0, 0),
    (0xD, 7, 1, 0x400, 0x580, 0, 0),
    (0xD, 9, 1, 8, 0xA80, 0, 0),
    (0xD, 17, 1, 0x40, 0xAC0, 2, 0),
    (0xD, 18, 1, 0x2000, 0xB00, 6, 0),
]


def supported(*entries: tuple[int, ...]) -> bytearray:
    """A table as KVM_GET_SUPPORTED_CPUID gives it: function, index, flags, EAX, EBX, ECX, EDX."""
    table = bytearray(struct.pack("<II", len(entries), 0))
    for entry in entries:
        table += struct.pack("<7I12x", *entry)
    return table + bytes(40 * 10)


def read(table: bytearray) -> dict[tuple[int, int], tuple[int, ...]]:
    count = struct.unpack_from("<I", table)[0]
    assert len(table) == 8 + 40 * count
    entries = [struct.unpack_from("<7I", table, 8 + 40 * n) for n in range(count)]
    return {(function, index): tuple(registers) for function, index, _, *registers in entries}


def test_cpuid_hides_what_cannot_work() -> None:
    table = CpuidTable(
        supported(
            (0, 0, 0, 0x1F, 1, 2, 3),
            (1, 0, 0, 0x306C3, 0x0710_0800, _ALL, _ALL),
            (5, 0, 0, 64, 64, 3, 0),
            (7, 0, 1, 2, _ALL, _ALL, _ALL),
            (0xA, 0, 0, 0x0730_0404, 0, 0, 0x603),
            *XSAVE_LEAVES,
            (0x4000_0000, 0, 0, 0x4000_0001, 1, 2, 3),
            (0x4000_0001, 0, 0, 0x0100_7EFB, 0, 0, 0),
            (0x8000_0001, 0, 0, 0, 0, _ALL, _ALL),
        )
    )
    entries = read(table.of_vcpu(0))
    ecx = entries[1, 0][2]
    for bit, name in ((3, "MONITOR"), (5, "VMX"), (6, "SMX"), (17, "PCID"), (21, "x2APIC"), (24, "TSC_DEADLINE")):
        assert not ecx >> bit & 1, name
    for bit, name in ((0, "SSE3"), (13, "CX16"), (26, "XSAVE"), (28, "AVX"), (30, "RDRAND"), (31, "hypervisor")):
        assert ecx >> bit & 1, name
    _, ebx, ecx, edx = entries[7, 0]
    for value, bit, name in (
        (ebx, 2, "SGX"), (ebx, 7, "SMEP"), (ebx, 20, "SMAP"), (ecx, 3, "PKU"), (ecx, 5, "WAITPKG"), (ecx, 7, "SHSTK"),
        (edx, 20, "IBT"), (edx, 22, "AMX"), (edx, 24, "AMX"), (edx, 5, "UINTR"),
    ):  # fmt: skip
        assert not value >> bit & 1, name
    for value, bit, name in ((ebx, 0, "FSGSBASE"), (ebx, 5, "AVX2"), (ebx, 16, "AVX512F"), (ecx, 22, "RDPID")):
        assert value >> bit & 1, name
    assert not entries[0x8000_0001, 0][2] & (1 << 2 | 1 << 12 | 1 << 29), "SVM, SKINIT, MWAITX"
    assert entries[0x8000_0001, 0][3] >> 27 & 1, "RDTSCP"
    assert not {(5, 0), (0xA, 0), (0x4000_0001, 0)} & entries.keys()
    assert entries[0x4000_0000, 0] == (0x4000_0001, 1, 2, 3)
    assert table.features == entries[1, 0][3] == _ALL & ~(1 << 28)


def test_cpuid_xsave() -> None:
    table = CpuidTable(supported((1, 0, 0, 0, 0, _ALL, 0), *XSAVE_LEAVES))
    assert (table.xcr0, table.xsave_size) == (0xE7, 0x980)
    entries = read(table.of_vcpu(0))
    assert entries[0xD, 0] == (0xE7, 0x980, 0x980, 0)
    assert entries[0xD, 1] == (0x7, 0x980, 0, 0)
    assert {index for function, index in entries if function == 0xD} == {0, 1, 2, 5, 6, 7}


@pytest.mark.parametrize(
    ("offered", "xcr0", "size"), [(0, 0, 576), (3, 3, 576), (7, 7, 832), (0x27, 7, 832), (0xE3, 3, 576)]
)
def test_cpuid_xsave_of_lesser_cpus(offered: int, xcr0: int, size: int) -> None:
    leaves = [(0xD, 0, 1, offered, 0, 0, 0), *XSAVE_LEAVES[1:]]
    table = CpuidTable(supported((1, 0, 0, 0, 0, 0, 0), *leaves))
    assert (table.xcr0, table.xsave_size) == (xcr0, size)


def test_cpuid_topology_is_one_core_for_each_vcpu() -> None:
    table = CpuidTable(
        supported(
            (1, 0, 0, 0, 0x0510_0800, 0, 0x1FF),
            (4, 0, 1, 0xFC00_C121, 0x1C0_003F, 0x3F, 0),
            (0xB, 0, 1, 1, 2, 0x100, 9),
            (0xB, 1, 1, 5, 32, 0x201, 9),
            (0x1F, 0, 1, 1, 2, 0x100, 9),
            (0x8000_0008, 0, 0, 0x3030, 0, 0x501F, 0),
            (0x8000_001D, 0, 1, 0x1_C121, 0x1C0_003F, 0x3F, 0),
            (0x8000_001E, 0, 0, 9, 0x109, 3, 0),
        )
    )
    assert table.address_bits == 48
    for index in (0, 1, 300):
        entries = read(table.of_vcpu(index))
        assert entries[1, 0][1] == (index & 0xFF) << 24 | 1 << 16 | 0x0800
        assert entries[4, 0][0] == entries[0x8000_001D, 0][0] == 0x121
        assert entries[0xB, 0] == (0, 1, 0x100, index)
        assert entries[0xB, 1] == (0, 1, 0x201, index)
        assert (0x1F, 0) not in entries
        assert entries[0x8000_0008, 0][2] == 0
        assert entries[0x8000_001E, 0] == (index, index & 0xFF, 0, 0)


@pytest.mark.parametrize(("eax", "bits"), [(0x27, 39), (0x2530, 48), (0x30_2534, 48)])
def test_width_of_guest_addresses(eax: int, bits: int) -> None:
    assert CpuidTable(supported((0x8000_0008, 0, 0, eax, 0, 0, 0))).address_bits == bits


@settings(max_examples=30)
@given(st.binary(min_size=512, max_size=5000), st.sampled_from([0, 3, 7, 0xE7]), st.sampled_from([0xFFBF, 0x2FFFF]))
def test_xsave_areas_are_made_harmless(area: bytes, xcr0: int, mask: int) -> None:
    size = 576 if xcr0 in (0, 3) else 0x980
    clean = xsave.sanitise(area, size, xcr0, mask)
    assert len(clean) == 4096
    mxcsr = struct.unpack_from("<I", clean, 24)[0]
    assert mxcsr == struct.unpack_from("<I", area, 24)[0] & mask
    present, compacted = struct.unpack_from("<QQ", clean, 512)
    assert not present & ~(xcr0 or 3)
    assert compacted == 0
    assert not any(clean[528:576])
    assert clean[28:512] == area[28:512]
    assert clean[576:size] == area[576:size].ljust(size - 576, b"\0")
    assert not any(clean[size:])


def test_xsave_area_of_fxsave_and_too_short_ones() -> None:
    assert struct.unpack_from("<Q", xsave.sanitise(bytes(512), 576, 7, 0xFFBF), 512)[0] == 3
    with pytest.raises(ValueError, match="511 bytes is too short"):
        xsave.sanitise(bytes(511), 576, 7, 0xFFBF)


def test_system_page() -> None:
    va = 0xFFFF_8080_0010_5000
    page = segments.system_page(va)
    low, high = struct.unpack_from("<QQ", page, segments.TSS)
    base = (low >> 16 & 0xFF_FFFF) | (low >> 56 & 0xFF) << 24 | (high & _ALL) << 32
    assert base == va + 0x400
    limit = low & 0xFFFF
    assert limit >= 0x67
    assert struct.unpack_from("<Q", page, base - va + 4)[0] == va + 0x1000
    assert struct.unpack_from("<H", page, base - va + 0x66)[0] > limit, "the TSS would be an I/O permission bitmap"
    for selector, kind in ((0x10, 0x9B), (0x18, 0x93), (0x28, 0xF3), (0x30, 0xFB)):
        assert page[selector + 5] == kind
    assert page[0x20:0x28] == page[0x08:0x10] == bytes(8), "there is a code segment that is not 64-bit"


def test_only_two_gates_are_for_programs() -> None:
    table = segments.interrupt_table(32, 8)
    gates = [struct.unpack_from("<HHBBHQ", table, 16 * n) for n in range(32)]
    assert [n for n, gate in enumerate(gates) if gate[3] & 0x60] == [3, 4]
    for number, (low, selector, stack, kind, middle, high) in enumerate(gates):
        assert high << 32 | middle << 16 | low == 0xFFFF_8080_0000_1000 + 8 * number
        assert (selector, stack, kind & 0x9F) == (0x10, 0, 0x8E)


# A look at instructions


@pytest.fixture
def ram() -> Iterator[GuestRam]:
    ram = GuestRam(4 << 20)
    yield ram
    ram.close()


@pytest.mark.parametrize(
    ("code", "number"),
    [
        (b"\xcd\x80", 0x80),
        (b"\x66\x48\xcd\x0e", 0x0E),
        (b"\xf2\xf3\x2e\x65\x67\xcd\xff", 0xFF),
        (b"\x0f\x0b", -1),
        (b"\xcc", -1),
        (b"\x90\xcd\x80", -1),
        (b"\x66" * 20 + b"\xcd\x80", -1),
        (b"\xcd", -1),
        (b"", -1),
    ],
)
@pytest.mark.parametrize("large", [False, True])
def test_interrupt_number(ram: GuestRam, code: bytes, number: int, large: bool) -> None:
    frames = Frames(ram)
    half = KernelHalf(ram, frames)
    tables = PageTable(ram, frames, half)
    va = 0x7000_0000_0000
    if large:
        pa = frames.allocate_large()
        tables.map_large(va, pa, PRESENT | USER)
        at = va + 0x20_0000 - len(code)
        assert ram.words[pa >> 3] is not None
        assert tables.entry(va) & LARGE
    else:
        pa = frames.allocate()
        tables.map(va, pa, 1, PRESENT | USER)
        at = va + 0x1000 - len(code)
    ram.view[pa + at - va : pa + at - va + len(code)] = code
    assert insn.interrupt_number(ram.words, ram.view, tables.root, at) == number


def test_interrupt_number_over_two_pages(ram: GuestRam) -> None:
    frames = Frames(ram)
    tables = PageTable(ram, frames, KernelHalf(ram, frames))
    first, _, second = (frames.allocate() for _ in range(3))
    tables.map(0x1000, first, 1, PRESENT | USER)
    tables.map(0x2000, second, 1, PRESENT | USER)
    ram.view[first + 0xFFF] = 0xCD
    ram.view[second] = 0x41
    assert insn.interrupt_number(ram.words, ram.view, tables.root, 0x1FFF) == 0x41


@pytest.mark.parametrize("root", [0, 1 << 50, 0xFFFF_FFFF_F000])
def test_page_tables_that_are_none(ram: GuestRam, root: int) -> None:
    assert insn.interrupt_number(ram.words, ram.view, root, 0x40_0000) == -1
    assert insn.interrupt_number(ram.words, ram.view, root, 0xFFFF_FFFF_FFFF_FFFF) == -1
