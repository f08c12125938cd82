"""Filling the address space of a new program: its segments, its loader, its first stack (fs/binfmt_elf.c, fs/exec.c).

The layout that the program sees at its entry is that of the System V ABI for x86-64, section 3.4.1: argc, argv, envp
and the auxiliary vector (getauxval(3)) upwards from RSP, with the strings above.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.memory.abi import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE
from devices.signals.frame import minimum_stack
from devices.task.capabilities import CAP_IPC_LOCK
from devices.task.elf import ET_DYN, PF_R, PF_W, PF_X, PHDR, PT_GNU_STACK, Elf, Segment
from devices.task.rlimits import RLIMIT_STACK
from vmm.layout import PAGE_MASK, PAGE_SIZE, TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.memory.backing import Backing, MappableFile
    from devices.memory.space import AddressSpace
    from devices.task.binfmt import Program
    from devices.task.process import Credentials
    from devices.task.task import Task

PIE_BASE = TASK_SIZE // 3 * 2 & PAGE_MASK
"""ELF_ET_DYN_BASE."""
PIE_PAGES_RANDOM = 1 << 28
BRK_PAGES_RANDOM = 0x2000
LONGEST_STRING = 128 << 10
"""MAX_ARG_STRLEN: bytes of one argument or variable, with its NUL."""
LEAST_ROOM, MOST_ROOM = 128 << 10, 6 << 20
"""Bytes of all arguments and variables: ARG_MAX always fit, three quarters of _STK_LIM are the most."""

AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY = 0, 3, 4, 5, 6, 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK, AT_SECURE = 11, 12, 13, 14, 15, 16, 17, 23
AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 25, 26, 31, 33, 51
PLATFORM = b"x86_64\0"
USER_HZ = 100


class Image:
    """A loaded program: where it begins, its first stack pointer, and its auxiliary vector for /proc."""

    __slots__ = ("auxv", "entry", "stack")

    def __init__(self, entry: int, stack: int, auxv: bytes) -> None:
        self.entry = entry
        self.stack = stack
        self.auxv = auxv


def room_for_strings(stack_limit: int, count: int) -> int:
    """Bytes that `count` arguments and variables may take up with their NULs (bprm_stack_limits()). SysError(E2BIG)."""
    room = max(min(MOST_ROOM, stack_limit // 4), LEAST_ROOM) - 8 * count
    if room <= 0:
        raise SysError(errno.E2BIG, "too many arguments and variables")
    return room


def check_room(stack_limit: int, filename: bytes, argv: Sequence[bytes], env: Sequence[bytes]) -> None:
    """SysError(E2BIG) for arguments and variables that are too much."""
    room = room_for_strings(stack_limit, len(argv) + len(env))
    total = len(filename) + 1 + sum(map(len, argv)) + sum(map(len, env)) + len(argv) + len(env)
    if total > room or any(len(s) >= LONGEST_STRING for s in (*argv, *env)):
        raise SysError(errno.E2BIG, "the arguments and variables are too long")


def load_program(
    task: Task, memory: AddressSpace, program: Program, env: Sequence[bytes], credentials: Credentials, secure: bool
) -> Image:
    """Map `program` into an empty address space. SysError, OutOfFrames."""
    kernel = task.kernel
    elf = program.elf
    memory.ipc_lock = credentials.capable(CAP_IPC_LOCK)
    executable = any(s.kind == PT_GNU_STACK and s.flags & PF_X for s in elf.segments)
    top = memory.map_stack(task.process.rlimits[RLIMIT_STACK][0], executable)
    bias = 0
    if elf.kind == ET_DYN:
        low, high = extent_of(elf)
        if program.loader is not None:
            bias = PIE_BASE + kernel.random.below(PIE_PAGES_RANDOM) * PAGE_SIZE - low
        else:  # a static-PIE program, or a loader that is run as a program
            bias = memory.unmapped_area(0, high - low, 0) - low
    map_segments(memory, elf, program.contents, bias, program.file)
    end = max(s.vaddr + s.mem_size for s in elf.loads) + bias
    brk = (end + PAGE_SIZE - 1 & PAGE_MASK) + kernel.random.below(BRK_PAGES_RANDOM) * PAGE_SIZE
    if elf.kind == ET_DYN and program.loader is None:
        brk = PIE_BASE + kernel.random.below(PIE_PAGES_RANDOM) * PAGE_SIZE
    memory.set_brk_start(brk)
    entry, base = elf.entry + bias, 0
    if program.loader is not None:
        loader = program.loader
        low, high = extent_of(loader.elf)
        base = memory.unmapped_area(0, high - low, 0) - low if loader.elf.kind == ET_DYN else 0
        map_segments(memory, loader.elf, loader.contents, base, loader.file)
        entry = loader.elf.entry + base
    if entry >= TASK_SIZE:
        raise SysError(errno.EINVAL, "the entry is no address of a program")
    vdso = kernel.vdso.map_locked(memory)
    vector = auxiliary(task, elf, bias, base, vdso, credentials, secure)
    stack, auxv = build_stack(task, memory, top, program, env, vector)
    return Image(entry, stack, auxv)


def extent_of(elf: Elf) -> tuple[int, int]:
    """The addresses that a program's segments take up, in whole pages."""
    low = min(s.vaddr for s in elf.loads) & PAGE_MASK
    return low, max(s.vaddr + s.mem_size for s in elf.loads) + PAGE_SIZE - 1 & PAGE_MASK


def map_segments(memory: AddressSpace, elf: Elf, contents: Backing, bias: int, file: MappableFile | None) -> None:
    for segment in elf.loads:
        map_segment(memory, segment, contents, bias, file)


def map_segment(
    memory: AddressSpace, segment: Segment, contents: Backing, bias: int, file: MappableFile | None
) -> None:
    """Map one PT_LOAD: its file part, zeroes to the end of that page, anonymous memory for the rest (.bss)."""
    prot = (
        (PROT_READ if segment.flags & PF_R else 0)
        | (PROT_WRITE if segment.flags & PF_W else 0)
        | (PROT_EXEC if segment.flags & PF_X else 0)
    )
    start = segment.vaddr + bias & PAGE_MASK
    file_end = segment.vaddr + bias + segment.file_size
    end = segment.vaddr + bias + segment.mem_size
    file_pages_end = file_end + PAGE_SIZE - 1 & PAGE_MASK if segment.file_size else start
    fixed = MAP_PRIVATE | MAP_FIXED_NOREPLACE
    if segment.file_size:
        memory.mmap(start, file_pages_end - start, prot, fixed, contents, segment.offset & PAGE_MASK, file=file)
        if segment.mem_size > segment.file_size and prot & PROT_WRITE:
            memory.write(file_end, bytes(file_pages_end - file_end))  # padzero(): ld.so relies on all of the page
    if end > file_pages_end:
        memory.mmap(file_pages_end, end - file_pages_end, prot, fixed | MAP_ANONYMOUS, None, 0)


def auxiliary(
    task: Task, elf: Elf, bias: int, base: int, vdso: int, credentials: Credentials, secure: bool
) -> list[tuple[int, int]]:
    """The auxiliary vector but for the entries that point into the stack."""
    table = next(
        (
            s.vaddr + elf.table_offset - s.offset + bias
            for s in elf.loads
            if s.offset <= elf.table_offset < s.offset + s.file_size
        ),
        0,
    )
    accelerator = task.kernel.accelerator
    return [
        (AT_SYSINFO_EHDR, vdso),
        (AT_MINSIGSTKSZ, minimum_stack(accelerator.fpu_size)),
        (AT_HWCAP, accelerator.cpuid_features),
        (AT_PAGESZ, PAGE_SIZE),
        (AT_CLKTCK, USER_HZ),
        (AT_PHDR, table),
        (AT_PHENT, PHDR.size),
        (AT_PHNUM, elf.table_size),
        (AT_BASE, base),
        (AT_FLAGS, 0),
        (AT_ENTRY, elf.entry + bias),
        (AT_UID, credentials.uid),
        (AT_EUID, credentials.euid),
        (AT_GID, credentials.gid),
        (AT_EGID, credentials.egid),
        (AT_SECURE, int(secure)),
        (AT_HWCAP2, accelerator.hwcap2),
    ]


def build_stack(
    task: Task, memory: AddressSpace, top: int, program: Program, env: Sequence[bytes], aux: list[tuple[int, int]]
) -> tuple[int, bytes]:
    """Write strings and vectors below `top`; the stack pointer at the program's entry, and the auxiliary vector."""
    argv = program.argv
    strings = [*argv, *env, program.filename]
    blob = b"\0".join(strings) + b"\0"
    at = top - 8 - len(blob)  # the kernel leaves a null word at the very end
    random_at = (at & -16) - 16
    platform_at = random_at - len(PLATFORM)
    addresses = []
    position = at
    for s in strings:
        addresses.append(position)
        position += len(s) + 1
    vector = [*aux, (AT_RANDOM, random_at), (AT_EXECFN, addresses[-1]), (AT_PLATFORM, platform_at), (AT_NULL, 0)]
    words = [len(argv), *addresses[: len(argv)], 0, *addresses[len(argv) : -1], 0]
    words += [word for pair in vector for word in pair]
    stack = platform_at - 8 * len(words) & -16
    memory.write(at, blob)
    memory.write(platform_at, PLATFORM)
    memory.write(random_at, task.kernel.random.bytes(16))
    memory.write(stack, struct.pack(f"<{len(words)}Q", *words))
    return stack, struct.pack(f"<{2 * len(vector)}Q", *(word for pair in vector for word in pair))
