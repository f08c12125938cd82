"""The ELF reader: against pyelftools on real programs, and on files that are not programs."""

from __future__ import annotations

import random
import struct
import sys
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

from devices.task.elf import EHDR, PHDR, Elf, NotLoadable, parse

PROGRAMS = [p for p in (Path("/bin/busybox"), Path("/bin/ls"), Path(sys.executable).resolve()) if p.exists()]


def parse_bytes(data: bytes) -> Elf:
    return parse(lambda offset, length: data[offset : offset + length], len(data))


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda p: p.name)
def test_agrees_with_pyelftools(path: Path) -> None:
    elf = parse_bytes(path.read_bytes())
    with path.open("rb") as file:
        theirs = ELFFile(file)
        assert elf.entry == theirs["e_entry"]
        assert elf.table_size == theirs["e_phnum"]
        segments = list(theirs.iter_segments())
        assert [(s.offset, s.vaddr, s.file_size, s.mem_size, s.flags) for s in elf.segments] == [
            (s["p_offset"], s["p_vaddr"], s["p_filesz"], s["p_memsz"], s["p_flags"]) for s in segments
        ]
        interpreters = [s.get_interp_name() for s in segments if isinstance(s, InterpSegment)]
    assert elf.interpreter == (interpreters[0].encode() if interpreters else None)


def minimal(machine: int = 62, kind: int = 2, cls: int = 2, loads: tuple[tuple[int, ...], ...] | None = None) -> bytes:
    loads = loads if loads is not None else ((1, 5, 0, 0x400000, 0x400000, 120, 120, 4096),)
    ident = b"\x7fELF" + bytes([cls, 1, 1]) + bytes(9)
    header = EHDR.pack(ident, kind, machine, 1, 0x400078, 64, 0, 0, 64, 56, len(loads), 0, 0, 0)
    return header + b"".join(PHDR.pack(*load) for load in loads)


def test_minimal() -> None:
    assert parse_bytes(minimal()).entry == 0x400078


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\x7fE", "not an ELF file"),
        (b"#!/bin/sh\n", "not an ELF file"),
        (minimal()[:40], "truncated"),
        (minimal()[:100], "truncated"),
        (minimal(machine=183), "aarch64"),
        (minimal(machine=3, cls=1), "32-bit i386"),
        (minimal(kind=1), "object file"),
        (minimal(loads=()), "program header table"),
        (minimal(loads=((6, 5, 0, 0, 0, 1, 1, 8),)), "nothing to load"),
        (minimal(loads=((1, 5, 0, 0x400000, 0, 4096, 4096, 8),)), "truncated"),
        (minimal(loads=((1, 5, 0, 0x400000, 0, 120, 100, 8),)), "invalid PT_LOAD"),
        (minimal(loads=((1, 5, 0, 1 << 47, 0, 120, 120, 8),)), "invalid PT_LOAD"),
        (minimal(loads=((1, 5, 1, 0x400000, 0, 100, 100, 8),)), "invalid PT_LOAD"),
        (minimal(loads=((3, 5, 0, 0, 0, 1, 1, 8), (1, 5, 0, 0x400000, 0, 120, 120, 8))), "PT_INTERP"),
    ],
)
def test_refused(data: bytes, reason: str) -> None:
    with pytest.raises(NotLoadable, match=reason):
        parse_bytes(data)


def test_damaged_files_are_refused_or_parsed_but_never_crash() -> None:
    rng = random.Random(1)
    good = minimal()
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.choice((0, 0xFF, rng.randrange(256)))
        try:
            elf = parse_bytes(bytes(data))
        except NotLoadable:
            continue
        assert all(s.offset + s.file_size <= len(data) for s in elf.loads)
        assert struct.calcsize("<16sHHIQQQIHHHHHH") == EHDR.size
