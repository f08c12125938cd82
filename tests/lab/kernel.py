"""Which kernel the lab boots, and which of its modules in which order.

Sources: modules.dep(5), modules.builtin (Documentation/kbuild/kbuild.rst), Documentation/arch/x86/boot.rst for the
bzImage header, xen/include/public/elfnote.h for the PVH entry note.
"""

from __future__ import annotations

import lzma
import os
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tests.lab.errors import LabError

# AMD's KVM, the virtio transport and the file system of the host's root; what they need comes from modules.dep.
WANTED = ("kvm_amd", "virtio_pci", "9pnet_virtio", "9p")

XZ_MAGIC, GZIP_MAGIC, ZSTD_MAGIC = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"

XEN_ELFNOTE_PHYS32_ENTRY = 18
PT_INTERP, PT_NOTE = 3, 4


class Kernel(NamedTuple):
    """A kernel image and the files of the modules that the lab loads, each after those it depends on."""

    release: str
    image: Path
    modules: tuple[Path, ...]


class MissingModuleError(LabError):
    """The kernel has a wanted module neither as a file nor built in."""


def version_key(release: str) -> list[tuple[int, int, str]]:
    """A sort key under which 6.1.0-9 comes before 6.1.0-10, numbers being compared as numbers."""
    parts = re.findall(r"(\d+)|([^\d]+)", release)
    return [(1, int(number), "") if number else (0, 0, text) for number, text in parts]


def module_name(path: str) -> str:
    """The name that the kernel gives a module's file: `kernel/arch/x86/kvm/kvm-amd.ko.xz` is `kvm_amd`."""
    return path.rsplit("/", 1)[-1].split(".ko", 1)[0].replace("-", "_")


def parse_dependencies(text: str) -> dict[str, tuple[str, tuple[str, ...]]]:
    """modules.dep as name -> (file, names that must be there first); the file's own order carries no meaning."""
    result = {}
    for line in text.splitlines():
        path, colon, needs = line.partition(":")
        if colon:
            result[module_name(path)] = (path, tuple(module_name(need) for need in needs.split()))
    return result


def load_order(
    wanted: Iterable[str], dependencies: Mapping[str, tuple[str, tuple[str, ...]]], builtin: Iterable[str] = ()
) -> list[str]:
    """The files to load so that each module comes after all that it needs, each once.

    Raises MissingModuleError for a module that is neither a file nor built in, LabError for a cycle.
    """
    present = set(builtin)
    order: list[str] = []
    entered: set[str] = set()

    def visit(name: str) -> None:
        if name in present:
            return
        if name in entered:
            raise LabError(f"modules.dep has a cycle through {name}")
        if name not in dependencies:
            raise MissingModuleError(name)
        entered.add(name)
        path, needs = dependencies[name]
        for need in needs:
            visit(need)
        present.add(name)
        order.append(path)

    for name in wanted:
        visit(name)
    return order


def images_of(release: str, boot: Path, modules: Path) -> list[Path]:
    """Where distributions put the image of a release: Debian and most others in /boot, Fedora beside the modules."""
    return [path for path in (boot / f"vmlinuz-{release}", modules / release / "vmlinuz") if path.exists()]


def modules_of(folder: Path) -> tuple[Path, ...]:
    """The wanted modules under /lib/modules/RELEASE in load order. Raises as load_order does."""
    builtin = folder / "modules.builtin"
    names = [module_name(line) for line in builtin.read_text().splitlines()] if builtin.exists() else []
    dependencies = parse_dependencies((folder / "modules.dep").read_text())
    return tuple(folder / path for path in load_order(WANTED, dependencies, names))


def find_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """The newest kernel that is installed whole: an image, and all the modules that the lab wants.

    Raises LabError with what to do when there is none or when its image may not be read.
    """
    lacking: list[str] = []
    unreadable: Path | None = None
    releases = [path.name for path in modules.iterdir() if path.is_dir()] if modules.is_dir() else []
    for release in sorted(releases, key=version_key, reverse=True):
        images = images_of(release, boot, modules)
        if not images or not (modules / release / "modules.dep").exists():
            continue
        try:
            files = modules_of(modules / release)
        except MissingModuleError as error:
            lacking.append(f"{release} has no module {error}")
            continue
        for image in images:
            if os.access(image, os.R_OK):
                return Kernel(release, image, files)
            unreadable = image
    if unreadable is not None:
        raise LabError(f"{unreadable} may not be read: sudo chmod a+r {unreadable} (or run as root)")
    why = f"; {'; '.join(lacking)}" if lacking else ""
    raise LabError(f"no kernel with its modules under {boot} and {modules}{why}: apt-get install linux-image-amd64")


def decompress(data: bytes) -> bytes:
    """What is in a .xz, .gz or .zst file or payload, by its magic; anything else as it is.

    Bytes after the end of the compressed stream are ignored, as in a bzImage. Raises LabError for a damaged stream.
    """
    stream: lzma.LZMADecompressor | zlib._Decompress
    if data.startswith(XZ_MAGIC):
        stream = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    elif data.startswith(GZIP_MAGIC):
        stream = zlib.decompressobj(wbits=31)
    else:
        return _unzstd(data) if data.startswith(ZSTD_MAGIC) else data
    try:
        result = stream.decompress(data)
    except (lzma.LZMAError, zlib.error) as error:
        raise LabError(f"a damaged kernel or module: {error}") from None
    if not stream.eof:
        raise LabError("a damaged kernel or module: its compressed data end too early")
    return result


def _unzstd(data: bytes) -> bytes:
    # Python has zstd only from 3.14 on.
    if shutil.which("zstd") is None:
        raise LabError("this kernel is compressed with zstd: apt-get install zstd")
    result = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=False)
    if result.returncode:
        raise LabError(f"a damaged kernel or module: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def program_headers(elf: bytes) -> list[tuple[int, bytes]]:
    """(p_type, contents) of each program header of a 64-bit little-endian ELF image; none if it is not one."""
    if len(elf) < 64 or elf[:6] != b"\x7fELF\x02\x01":
        return []
    (offset,) = struct.unpack_from("<Q", elf, 32)
    size, count = struct.unpack_from("<HH", elf, 54)
    if size < 56 or offset + size * count > len(elf):
        return []
    headers = []
    for i in range(count):
        kind, _, at, _, _, length = struct.unpack_from("<IIQQQQ", elf, offset + i * size)
        headers.append((kind, elf[at : at + length]))
    return headers


def has_pvh_entry(elf: bytes) -> bool:
    """Whether QEMU can enter this vmlinux directly: it carries the note that names its PVH entry point."""
    for kind, data in program_headers(elf):
        at = 0
        while kind == PT_NOTE and at + 12 <= len(data):
            name_size, size, note = struct.unpack_from("<III", data, at)
            if data[at + 12 : at + 12 + name_size] == b"Xen\0" and note == XEN_ELFNOTE_PHYS32_ENTRY:
                return True
            at += 12 + (name_size + 3 & ~3) + (size + 3 & ~3)
    return False


def bootable(image: bytes) -> bytes:
    """The vmlinux inside a bzImage when QEMU can start it, else the image as it is.

    A third of the boot time of a bzImage under TCG is its own decompressor; the host does that far quicker.
    """
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        return image
    (version,) = struct.unpack_from("<H", image, 0x206)
    if version < 0x208:  # the payload fields are not there yet
        return image
    start = (image[0x1F1] + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[start + offset : start + offset + length]
    if payload.startswith(ZSTD_MAGIC):
        payload = payload[:-4]  # the size that the kernel's build appends; xz and gzip streams end by themselves
    elf = decompress(payload)
    return elf if has_pvh_entry(elf) else image


def is_static(elf: bytes) -> bool:
    """Whether an ELF program needs no interpreter and so runs where there are no libraries."""
    headers = program_headers(elf)
    return bool(headers) and all(kind != PT_INTERP for kind, _ in headers)
