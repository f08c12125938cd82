"""What the loader reads of an ELF file: its header and program headers, checked as the kernel checks them.

Ours and not pyelftools, whose import costs 41 of the 50 ms that all of pyvmm's imports may take before the first guest
instruction; it is the oracle of this module's tests. Layouts: elf(5), <linux/elf.h>.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
PHDR = struct.Struct("<IIQQQQQQ")
PT_LOAD, PT_INTERP, PT_GNU_STACK = 1, 3, 0x6474E551
ET_EXEC, ET_DYN = 2, 3
EM_X86_64 = 62
PF_X, PF_W, PF_R = 1, 2, 4
TABLE_LIMIT = 65536
"""Bytes of program headers that the kernel takes at most (ELF_MIN_ALIGN rules of load_elf_phdrs)."""
INTERPRETER_LIMIT = 4096

MACHINES = {3: "i386", 40: "arm", 62: "x86-64", 183: "aarch64", 243: "riscv", 8: "mips", 21: "ppc64", 22: "s390"}


class NotLoadable(Exception):
    """The file cannot be run; the text says why, for a person."""


class Segment(NamedTuple):
    """A program header (Elf64_Phdr): offsets, addresses and sizes in bytes."""

    kind: int
    flags: int
    offset: int
    vaddr: int
    file_size: int
    mem_size: int
    align: int


class Elf(NamedTuple):
    """The parts of an ELF file that loading needs."""

    kind: int
    entry: int
    table_offset: int
    table_size: int
    segments: list[Segment]
    interpreter: bytes | None

    @property
    def loads(self) -> list[Segment]:
        return [s for s in self.segments if s.kind == PT_LOAD]


def parse(read: Callable[[int, int], bytes], size: int) -> Elf:
    """Read an ELF file through `read(offset, length)`, bytes short at its end; `size` is its length in bytes.

    Raises NotLoadable for what is not a complete x86-64 ELF executable.
    """
    head = read(0, EHDR.size)
    if not head:
        raise NotLoadable("is empty")
    if head[:4] != b"\x7fELF"[: len(head)] or len(head) < 4:
        raise NotLoadable("is not an ELF file")
    if len(head) < EHDR.size:
        raise NotLoadable("is a truncated ELF file")
    ident, kind, machine, _, entry, table, _, _, _, entry_size, count, *_ = EHDR.unpack(head)
    if machine != EM_X86_64 or ident[4] != 2 or ident[5] != 1:
        bits = {1: "32-bit", 2: "64-bit"}.get(ident[4], "unknown")
        raise NotLoadable(f"is for another machine ({bits} {MACHINES.get(machine, machine)}); x86-64 is needed")
    if kind not in (ET_EXEC, ET_DYN):
        raise NotLoadable("is an ELF file, but not a program (an object file or a core dump?)")
    if entry_size != PHDR.size or not count or count * PHDR.size > TABLE_LIMIT:
        raise NotLoadable("has an invalid program header table")
    raw = read(table, count * PHDR.size)
    if len(raw) < count * PHDR.size:
        raise NotLoadable("is a truncated ELF file")
    segments = [Segment(p[0], p[1], p[2], p[3], p[5], p[6], p[7]) for p in PHDR.iter_unpack(raw)]
    check_loads([s for s in segments if s.kind == PT_LOAD], size)
    return Elf(kind, entry, table, count, segments, interpreter_of(read, segments))


def check_loads(loads: list[Segment], size: int) -> None:
    if not loads:
        raise NotLoadable("has nothing to load (no PT_LOAD segment)")
    for s in loads:
        if s.file_size > s.mem_size or s.vaddr + s.mem_size >= 1 << 47 or (s.vaddr ^ s.offset) & 0xFFF:
            raise NotLoadable("has an invalid PT_LOAD segment")
        if s.offset + s.file_size > size:
            raise NotLoadable("is a truncated ELF file")


def interpreter_of(read: Callable[[int, int], bytes], segments: list[Segment]) -> bytes | None:
    for s in segments:
        if s.kind == PT_INTERP:
            path = read(s.offset, s.file_size) if 2 <= s.file_size <= INTERPRETER_LIMIT else b""
            if len(path) != s.file_size or path[-1:] != b"\0":
                raise NotLoadable("has an invalid PT_INTERP segment")
            return path[:-1]
    return None
