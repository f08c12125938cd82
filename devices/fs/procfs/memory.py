"""What /proc/[pid] tells of a process's memory: maps, smaps, smaps_rollup, statm (fs/proc/task_mmu.c)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple

from devices.fs.procfs.layout import layout_of
from devices.memory.abi import (
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DONTEXPAND,
    VM_EXEC,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_IO,
    VM_LOCKED,
    VM_MAYREAD,
    VM_MAYSHARE,
    VM_MAYWRITE,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_PFNMAP,
    VM_RAND_READ,
    VM_READ,
    VM_SEQ_READ,
    VM_SHARED,
    VM_WIPEONFORK,
    VM_WRITE,
)
from devices.memory.backing import SharedBacking, SpecialPages
from devices.memory.filepages import SharedMemory
from vmm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from devices.fs.procfs.who import Who
    from devices.memory.space import AddressSpace
    from devices.memory.vma import Vma
    from devices.task.process import Process
    from devices.task.task import Task

NAME_COLUMN = 73
VM_MAYEXEC = 0x40
VM_ACCOUNT = 0x10_0000
FLAG_NAMES = (
    (VM_READ, b"rd"), (VM_WRITE, b"wr"), (VM_EXEC, b"ex"), (VM_SHARED, b"sh"), (VM_MAYREAD, b"mr"),
    (VM_MAYWRITE, b"mw"), (VM_MAYEXEC, b"me"), (VM_MAYSHARE, b"ms"), (VM_GROWSDOWN, b"gd"), (VM_PFNMAP, b"pf"),
    (VM_LOCKED, b"lo"), (VM_IO, b"io"), (VM_SEQ_READ, b"sr"), (VM_RAND_READ, b"rr"), (VM_DONTCOPY, b"dc"),
    (VM_DONTEXPAND, b"de"), (VM_ACCOUNT, b"ac"), (VM_NORESERVE, b"nr"), (VM_WIPEONFORK, b"wf"),
    (VM_DONTDUMP, b"dd"), (VM_HUGEPAGE, b"hg"), (VM_NOHUGEPAGE, b"nh"), (VM_MERGEABLE, b"mg"),
)  # fmt: skip


# maps


def maps(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/maps."""
    process = who.process
    return b"".join(line(reader, process, vma) for vma in process.memory.regions())


def line(reader: Task, process: Process, vma: Vma) -> bytes:
    """One area (show_map_vma())."""
    flags = vma.flags
    offset, dev, ino, name = shown_file(reader, vma)
    text = b"%08x-%08x %c%c%c%c %08x %02x:%02x %d " % (
        vma.start, vma.end,
        b"r"[0] if flags & VM_READ else b"-"[0], b"w"[0] if flags & VM_WRITE else b"-"[0],
        b"x"[0] if flags & VM_EXEC else b"-"[0], b"s"[0] if flags & VM_MAYSHARE else b"p"[0],
        offset, dev >> 8 & 0xFFF, dev & 0xFF | dev >> 12 & 0xFFF00, ino,
    )  # fmt: skip
    name = name or special_name(process, vma)
    return (text.ljust(NAME_COLUMN) + name.replace(b"\n", b"\\012") if name else text) + b"\n"


def shown_file(reader: Task, vma: Vma) -> tuple[int, int, int, bytes]:
    """(offset in bytes, device, inode number, name) of the file that an area shows; zeros if it shows none."""
    backing = vma.backing
    path = getattr(vma.file, "path", None)
    if path is not None and not isinstance(backing, SharedMemory):
        from devices.vfs.pathname import path_name

        inode = path.dentry.inode
        return (vma.offset if backing is not None else 0), inode.sb.dev, inode.ino, path_name(reader, path)
    if backing is None:
        return 0, 0, 0, b""
    if isinstance(backing, SpecialPages):
        return 0, 0, 0, backing.path
    dev, ino = identity(backing)
    return vma.offset, dev, ino, backing.path


def identity(backing: Any) -> tuple[int, int]:
    """Device and inode number of contents that were mapped without an open file of the VFS."""
    if isinstance(backing, SharedMemory):
        return 1, id(backing) >> 4 & 0xFFFF_FFFF  # the kernel's own tmpfs
    fd = getattr(backing, "fd", -1)
    return (0, os.fstat(fd).st_ino) if fd >= 0 else (0, 0)


def special_name(process: Process, vma: Vma) -> bytes:
    space = process.memory
    if vma.start < space.brk_end and vma.end > space.brk_start:
        return b"[heap]"
    return b"[stack]" if is_first_stack(process, vma) else b""


def is_first_stack(process: Process, vma: Vma) -> bool:
    return vma.backing is None and vma.start < process.memory.stack_top <= vma.end


# smaps


class Pages(NamedTuple):
    """Sizes of an area's pages that are in memory, in KiB but `pss`, which is in bytes."""

    rss: int = 0
    pss: int = 0
    pss_anon: int = 0
    shared_clean: int = 0
    shared_dirty: int = 0
    private_clean: int = 0
    private_dirty: int = 0
    anonymous: int = 0
    huge: int = 0
    shmem: int = 0
    locked: int = 0

    def plus(self, other: Pages) -> Pages:
        return Pages(*map(sum, zip(self, other, strict=True)))


def count_pages(space: AddressSpace, vma: Vma) -> Pages:
    """smaps_account(): who else has the pages is in their frames' reference counts, of which the owner has one."""
    if isinstance(vma.backing, SpecialPages):
        return Pages()
    counts = space.machine.frames.counts
    owned = vma.backing if isinstance(vma.backing, SharedBacking) else None
    copies = vma.backing is not None and not vma.flags & VM_WRITE
    rss = pss = pss_anon = shared = private = anonymous = index = 0
    for address, start in frames_of(space, vma):
        index = (vma.offset + start - vma.start) >> PAGE_SHIFT
        users = counts[address >> PAGE_SHIFT]
        is_file = copies or (owned is not None and owned.frame(index) == address)
        if is_file and owned is not None:
            users -= 1
        part = PAGE_SIZE // max(users, 1)
        rss += 4
        pss += part
        shared += 4 if users > 1 else 0
        private += 4 if users <= 1 else 0
        if not is_file:
            anonymous += 4
            pss_anon += part
    dirty = not copies and (owned is None or isinstance(owned, SharedMemory))
    return Pages(
        rss, pss, pss_anon,
        0 if dirty else shared, shared if dirty else 0,
        (rss - shared - anonymous if not dirty else 0), (anonymous if not dirty else private),
        anonymous, large_pages(space, vma), rss if isinstance(owned, SharedMemory) else 0,
        rss if vma.flags & VM_LOCKED else 0,
    )  # fmt: skip


def frames_of(space: AddressSpace, vma: Vma) -> list[tuple[int, int]]:
    """(address of the frame, address of the page) of the pages that are in memory."""
    found = []
    present = space.table.present(vma.start, vma.end)
    pages = [vma.start + (n << PAGE_SHIFT) for n, there in enumerate(present) if there]
    at = iter(pages)
    for address, count in space.table.runs(vma.start, vma.end):
        found += [(address + (n << PAGE_SHIFT), next(at)) for n in range(count)]
    return found


def large_pages(space: AddressSpace, vma: Vma) -> int:
    """KiB of the area in 2 MiB pages."""
    from vmm.layout import LARGE_SIZE
    from vmm.memory.pagetable import LARGE

    first = -(-vma.start // LARGE_SIZE) * LARGE_SIZE
    return sum(2048 for va in range(first, vma.end - LARGE_SIZE + 1, LARGE_SIZE) if space.table.region(va) & LARGE)


def fields(pages: Pages) -> list[tuple[bytes, int]]:
    """__show_smap()."""
    file_pss = pages.pss - pages.pss_anon
    return [
        (b"Rss", pages.rss), (b"Pss", pages.pss >> 10),
        (b"Pss_Dirty", pages.pss_anon >> 10), (b"Shared_Clean", pages.shared_clean),
        (b"Shared_Dirty", pages.shared_dirty), (b"Private_Clean", pages.private_clean),
        (b"Private_Dirty", pages.private_dirty), (b"Referenced", pages.rss), (b"Anonymous", pages.anonymous),
        (b"KSM", 0), (b"LazyFree", 0), (b"AnonHugePages", pages.huge), (b"ShmemPmdMapped", 0), (b"FilePmdMapped", 0),
        (b"Shared_Hugetlb", 0), (b"Private_Hugetlb", 0), (b"Swap", 0), (b"SwapPss", 0), (b"Locked", pages.locked),
        (b"Pss_Anon", pages.pss_anon >> 10), (b"Pss_File", 0 if pages.shmem else file_pss >> 10),
        (b"Pss_Shmem", file_pss >> 10 if pages.shmem else 0),
    ]  # fmt: skip


def sized(name: bytes, kilobytes: int) -> bytes:
    return (name + b":").ljust(16) + b"%8d kB\n" % kilobytes


def smaps(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/smaps."""
    process = who.process
    parts = []
    for vma in process.memory.regions():
        parts.append(line(reader, process, vma))
        parts += [sized(b"Size", vma.pages << 2), sized(b"KernelPageSize", 4), sized(b"MMUPageSize", 4)]
        parts += [sized(*field) for field in fields(count_pages(process.memory, vma))[:19]]
        eligible = vma.backing is None and vma.flags & VM_WRITE and not vma.flags & VM_NOHUGEPAGE
        parts.append(b"THPeligible:    %8d\n" % bool(eligible))
        parts.append(b"VmFlags: " + b"".join(n + b" " for bit, n in FLAG_NAMES if vma.flags & bit) + b"\n")
    return b"".join(parts)


ROLLUP = (0, 1, 2, 19, 20, 21, *range(3, 19))
"""The order of the fields in smaps_rollup."""


def smaps_rollup(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/smaps_rollup."""
    space = who.process.memory
    areas = list(space.regions())
    total = Pages()
    for vma in areas:
        total = total.plus(count_pages(space, vma))
    first, last = (areas[0].start, areas[-1].end) if areas else (0, 0)
    head = b"%08x-%08x ---p 00000000 00:00 0 " % (first, last)
    values = fields(total)
    file = total.pss - total.pss_anon - (total.shmem << 10)
    values[20], values[21] = (b"Pss_File", max(file, 0) >> 10), (b"Pss_Shmem", total.shmem)
    return head.ljust(NAME_COLUMN) + b"[rollup]\n" + b"".join(sized(*values[n]) for n in ROLLUP)


# Sums


class Sizes(NamedTuple):
    """Pages of a process's memory by kind."""

    total: int
    resident: int
    file: int
    shared_memory: int
    data: int
    stack: int
    text: int
    library: int
    locked: int

    @property
    def anonymous(self) -> int:
        return max(0, self.resident - self.file - self.shared_memory)


def sizes(process: Process) -> Sizes:
    """What status, stat and statm say."""
    space = process.memory
    file = shared_memory = stack = executable = 0
    for vma in space.regions():
        flags = vma.flags
        if flags & VM_GROWSDOWN:
            stack += vma.pages
        elif flags & VM_EXEC and not flags & VM_WRITE:
            executable += vma.pages
        backing = vma.backing
        if isinstance(backing, SharedMemory):
            shared_memory += space.table.present(vma.start, vma.end).count(1)
        elif backing is not None and (flags & VM_SHARED or not flags & VM_WRITE):
            file += space.table.present(vma.start, vma.end).count(1)
    layout = layout_of(process)
    text = min((layout.end_code - layout.start_code) >> PAGE_SHIFT, executable)
    return Sizes(
        space.total_vm, space.resident, file, shared_memory, space.data_vm, stack, text, executable - text,
        space.locked_vm,
    )  # fmt: skip


def statm(reader: Task, who: Who) -> bytes:
    """/proc/[pid]/statm: size resident shared text lib data dt, in pages."""
    s = sizes(who.process)
    return b"%d %d %d %d 0 %d 0\n" % (s.total, s.resident, s.file + s.shared_memory, s.text, s.data + s.stack)
