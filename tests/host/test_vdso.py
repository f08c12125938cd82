"""The vDSO and its page of clock data, on the host: the image's form, what it says, and the page's Python mirror."""

from __future__ import annotations

import subprocess
from ctypes import sizeof
from typing import TYPE_CHECKING

import pytest
from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from guest import vvar
from guest.vvar import Vvar, scale
from tests import harness

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CALLS = ("clock_gettime", "gettimeofday", "time", "clock_getres", "getcpu")
PAGE = 4096


@pytest.fixture(scope="module")
def image() -> Iterator[ELFFile]:
    with harness.built("vdso.so").open("rb") as file:
        yield ELFFile(file)


def test_everything_is_in_one_read_only_executable_segment(image: ELFFile) -> None:
    loads = [segment.header for segment in image.iter_segments("PT_LOAD")]
    assert [(load.p_offset, load.p_vaddr, load.p_flags) for load in loads] == [(0, 0, 5)]
    assert loads[0].p_filesz == loads[0].p_memsz
    assert harness.built("vdso.so").stat().st_size <= 2 * PAGE
    allocated = [section for section in image.iter_sections() if section["sh_flags"] & 2]
    assert allocated
    for section in allocated:
        assert section["sh_addr"] == section["sh_offset"], section.name
        assert section["sh_addr"] + section["sh_size"] <= loads[0].p_memsz, section.name


def test_nothing_is_left_to_relocate(image: ELFFile) -> None:
    assert not [section.name for section in image.iter_sections() if section["sh_type"] in ("SHT_REL", "SHT_RELA")]
    (dynamic,) = image.iter_segments("PT_DYNAMIC")
    assert isinstance(dynamic, DynamicSegment)
    tags = {tag.entry.d_tag for tag in dynamic.iter_tags()}
    assert not tags & {"DT_REL", "DT_RELA", "DT_RELR", "DT_JMPREL", "DT_NEEDED", "DT_TEXTREL", "DT_INIT"}
    assert [getattr(tag, "soname", None) for tag in dynamic.iter_tags("DT_SONAME")] == ["linux-vdso.so.1"]
    assert {"DT_HASH", "DT_GNU_HASH", "DT_SYMTAB", "DT_STRTAB", "DT_VERSYM", "DT_VERDEF"} <= tags


def test_symbols_are_linux_s(image: ELFFile) -> None:
    """Names, bindings and the version that libcs look up; nothing is undefined and the page's symbol is hidden."""
    symbols = image.get_section_by_name(".dynsym")
    versions = image.get_section_by_name(".gnu.version")
    definitions = image.get_section_by_name(".gnu.version_d")
    assert isinstance(symbols, SymbolTableSection)
    assert isinstance(versions, GNUVerSymSection)
    assert isinstance(definitions, GNUVerDefSection)
    names = {}
    for definition, auxiliaries in definitions.iter_versions():
        names[definition["vd_ndx"]] = next(auxiliaries).name
    found = {}
    for number, symbol in enumerate(symbols.iter_symbols()):
        if symbol["st_shndx"] == "SHN_UNDEF":
            assert number == 0, symbol.name
        elif symbol["st_info"]["type"] == "STT_FUNC":
            version = names[versions.get_symbol(number)["ndx"]]
            found[symbol.name] = symbol["st_info"]["bind"], version, symbol["st_value"]
        else:
            assert symbol.name == "LINUX_2.6"
    assert set(found) == {*CALLS, *(f"__vdso_{call}" for call in CALLS)}
    for call in CALLS:
        address = found[call][2]
        assert found[call] == ("STB_WEAK", "LINUX_2.6", address)
        assert found[f"__vdso_{call}"] == ("STB_GLOBAL", "LINUX_2.6", address)


def test_it_tells_the_time(tmp_path: Path) -> None:
    """Against the host's clocks: right, monotonic, from the page while that is fresh and whole, else by system call."""
    check = harness.compile_c(harness.ROOT / "tests/host/vdso_check.c", tmp_path / "vdso_check", "-pthread")
    done = subprocess.run([check, harness.built("vdso.so")], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_layout_is_the_header_s(tmp_path: Path) -> None:
    fields = [name for name, *_ in Vvar._fields_]
    constants = [name for name in vars(vvar) if name.startswith("VVAR_")]
    source = tmp_path / "layout.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{harness.GUEST}/vdso/vvar.h"\nint main(void) {{\n'
        'printf("%zu\\n", sizeof(struct vvar));\n'
        + "".join(
            f'printf("{field} %zu %zu\\n", offsetof(struct vvar, {field}), sizeof(((struct vvar *)0)->{field}));\n'
            for field in fields
        )
        + "".join(f'printf("{constant} %d\\n", {constant});\n' for constant in constants)
        + "}\n"
    )
    printed = subprocess.check_output([harness.compile_c(source, tmp_path / "layout")], text=True)
    mirrored = [str(sizeof(Vvar))]
    for field in fields:
        descriptor = getattr(Vvar, field)
        mirrored.append(f"{field} {descriptor.offset} {descriptor.size}")
    mirrored += [f"{constant} {getattr(vvar, constant)}" for constant in constants]
    assert printed.splitlines() == mirrored
    assert sizeof(Vvar) <= vvar.VVAR_SIZE


@pytest.mark.parametrize("tsc_hz", [1e6, 24e6, 1e9, 2_445_406_123.4, 5.2e9, 2**33])
@pytest.mark.parametrize("seconds", [0.01, 1.0, 60.0])
def test_scale_is_precise_and_within_the_bound(tsc_hz: float, seconds: float) -> None:
    mult, shift, limit = scale(tsc_hz, seconds)
    assert 0 < mult < 1 << 32
    assert 0 <= shift <= 63
    assert limit * mult < 1 << 64
    assert limit / tsc_hz == pytest.approx(seconds)
    error_ns = seconds * 1e9 - (limit * mult >> shift)
    assert 0 <= error_ns <= 2 + seconds * 1e9 / mult
    assert (mult << 1) >= 1 << 32 or limit * (mult << 1) >= 1 << 64 or shift == 63, "one bit more would have fit"


@pytest.mark.parametrize(("tsc_hz", "seconds"), [(0.1, 1.0), (1e30, 1.0), (1e9, 1e12)])
def test_scale_refuses_what_cannot_be_scaled(tsc_hz: float, seconds: float) -> None:
    with pytest.raises(ValueError, match="no scale"):
        scale(tsc_hz, seconds)
