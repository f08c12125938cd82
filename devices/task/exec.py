"""Starting a program: map its ELF file and build its first stack (fs/binfmt_elf.c, fs/exec.c).

The layout that the program sees at its entry is that of the System V ABI for x86-64, section 3.4.1: argc, argv, envp
and the auxiliary vector (getauxval(3)) upwards from RSP, with the strings above.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, NamedTuple

from devices.errors import SysError
from devices.fs.console import ConsoleFile
from devices.fs.hostfile import HostFileBacking
from devices.memory.abi import MAP_ANONYMOUS, MAP_FIXED_NOREPLACE, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE
from devices.memory.space import AddressSpace
from devices.signals.frame import minimum_stack
from devices.task.elf import ET_DYN, PF_R, PF_W, PF_X, PHDR, Elf, NotLoadable, Segment, parse
from devices.task.process import Credentials, Process
from devices.task.rlimits import RLIMIT_STACK
from devices.task.task import Task
from devices.task.user import credentials_of
from devices.vfs.abi import AT_FDCWD, O_RDONLY
from devices.vfs.files import FileTable
from devices.vfs.open import open_for_exec
from devices.vfs.path import LOOKUP_DIRECTORY, LOOKUP_FOLLOW, path_name, walk
from vmm.cpu import FIXED_RFLAGS, RFLAGS, RIP, RSP
from vmm.layout import PAGE_MASK, PAGE_SIZE, TASK_SIZE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.kernel import Kernel
    from devices.memory.backing import Backing
    from devices.vfs.path import Path

PIE_BASE = TASK_SIZE // 3 * 2 & PAGE_MASK
"""ELF_ET_DYN_BASE."""
PIE_PAGES_RANDOM = 1 << 28
BRK_PAGES_RANDOM = 0x2000
STRINGS_LIMIT = 128 << 10
"""MAX_ARG_STRLEN: one argument's bytes."""

AT_NULL, AT_PHDR, AT_PHENT, AT_PHNUM, AT_PAGESZ, AT_BASE, AT_FLAGS, AT_ENTRY = 0, 3, 4, 5, 6, 7, 8, 9
AT_UID, AT_EUID, AT_GID, AT_EGID, AT_PLATFORM, AT_HWCAP, AT_CLKTCK, AT_SECURE = 11, 12, 13, 14, 15, 16, 17, 23
AT_RANDOM, AT_HWCAP2, AT_EXECFN, AT_SYSINFO_EHDR, AT_MINSIGSTKSZ = 25, 26, 31, 33, 51
SCRIPT_HEAD = 256
"""BINPRM_BUF_SIZE: bytes of a file that tell what it is."""
SCRIPT_DEPTH = 4
DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
ADVICE = "`pyvmm boot host -- FILE` or `pyvmm boot DIRECTORY -- FILE`"
PLATFORM = b"x86_64\0"
USER_HZ = 100


class Program(NamedTuple):
    """A program found and checked: what it is mapped from, and the loader that it asks for."""

    path: bytes
    """As the guest sees it."""
    elf: Elf
    contents: Backing
    interpreter: tuple[Elf, Backing] | None
    argv: list[bytes]


def open_image(path: bytes) -> HostFileBacking:
    """Open the host file `path` to run it. OSError, NotLoadable."""
    real = os.path.realpath(path)
    fd = os.open(real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise NotLoadable("is a directory" if stat.S_ISDIR(mode) else "is not a regular file")
    return HostFileBacking(fd, real)


def parse_backing(contents: Backing, size: int) -> Elf:
    """The ELF header of what a mapping would show. NotLoadable."""

    def read(offset: int, length: int) -> bytes:
        buffer = bytearray(length)
        return bytes(buffer[: contents.read_into(memoryview(buffer), offset)])

    return parse(read, size)


def load_image(image: HostFileBacking, argv: Sequence[bytes]) -> Program:
    """The program in a host file that is booted by itself; NotLoadable for one that needs more files than that."""
    elf = parse_backing(image, image.size)
    if elf.interpreter is not None:
        name = elf.interpreter.decode(errors="replace")
        raise NotLoadable(f"is dynamically linked (it needs {name}); boot it in a root file system: {ADVICE}")
    return Program(image.path, elf, image, None, list(argv))


def find_program(task: Task, argv: Sequence[bytes], env: Sequence[bytes], depth: int = 0) -> Program:
    """The program that `argv` names in the task's root file system: by path, or by name along PATH; scripts lead to
    their interpreter (fs/binfmt_script.c). SysError, NotLoadable."""
    place, path = locate(task, argv[0], env)
    file = place.inode.open(task, place, O_RDONLY)
    contents: Backing = file.mmap_backing(task, PROT_READ, MAP_PRIVATE, 0, 0)
    head = bytearray(SCRIPT_HEAD)
    head = head[: contents.read_into(memoryview(head), 0)]
    if head[:2] == b"#!":
        if depth == SCRIPT_DEPTH:
            raise SysError(errno.ELOOP, "too many interpreters of interpreters")
        return find_program(task, [*script_words(bytes(head)), path, *argv[1:]], env, depth + 1)
    place.inode.refresh()
    elf = parse_backing(contents, place.inode.size)
    interpreter = None
    if elf.interpreter is not None:
        loader = open_for_exec(task, AT_FDCWD, elf.interpreter)
        loaded: Backing = loader.inode.open(task, loader, O_RDONLY).mmap_backing(task, PROT_READ, MAP_PRIVATE, 0, 0)
        interpreter = (parse_backing(loaded, loader.inode.size), loaded)
    task.process.exe_path = place
    return Program(path_name(task, place), elf, contents, interpreter, list(argv))


def script_words(head: bytes) -> list[bytes]:
    """Interpreter and argument of a `#!` line. NotLoadable when there is none."""
    line, newline, _ = head[2:].partition(b"\n")
    words = line.strip(b" \t").split(None, 1)
    if not words or (not newline and len(head) == SCRIPT_HEAD and len(words) == 1):
        raise NotLoadable("is a script without an interpreter")
    return [word.rstrip(b" \t") for word in words]


def locate(task: Task, name: bytes, env: Sequence[bytes]) -> tuple[Path, bytes]:
    """What a shell would run for `name`: the file, and the path that led to it."""
    if b"/" in name:
        return open_for_exec(task, AT_FDCWD, name), name
    search = next((v[5:] for v in env if v.startswith(b"PATH=")), DEFAULT_PATH)
    denied = False
    for directory in search.split(b":"):
        path = (directory or b".") + b"/" + name
        try:
            return open_for_exec(task, AT_FDCWD, path), path
        except SysError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                raise
            denied = denied or error.errno == errno.EACCES
    raise SysError(errno.EACCES if denied else errno.ENOENT, "not found along PATH")


def start_program(
    kernel: Kernel,
    argv: Sequence[bytes],
    env: Sequence[bytes],
    stdio: tuple[int, int, int],
    *,
    cwd: bytes = b"/",
    user: str = "",
) -> Process:
    """Make the process that runs argv[0] and start its first task.

    With a root file system (devices/rootfs.py) argv[0] is looked for in it, the program starts in `cwd` and runs as
    `user` (USER[:GROUP], empty: root); without, argv[0] is a host file. `stdio` are the host descriptors behind the
    descriptors 0, 1, 2 (a closed one stays closed in the guest). OSError, SysError,
    NotLoadable.
    """
    image = None
    if kernel.root is None:
        image = open_image(argv[0])
        try:
            program = load_image(image, argv)
        except BaseException:
            os.close(image.fd)
            raise
    with kernel.lock:
        if image is not None:
            kernel.adopt_image_locked(image)
        process = new_process_locked(kernel, stdio)
        task = Task(process, process.pid, Credentials())
        kernel.add_task_locked(task)
        try:
            if image is None:
                kernel.root_ready_locked(task)
                process.fs.set_cwd_locked(walk(task, AT_FDCWD, cwd, LOOKUP_FOLLOW | LOOKUP_DIRECTORY))
                if user:
                    task.credentials = credentials_of(task, user)
                program = find_program(task, argv, env)
            name_process(process, program, env)
            task.comm = process.comm
            entry, stack = load_program(task, program, env)
            kernel.start_task_locked(task, initial_state(entry, stack))
        except BaseException:
            kernel.abandon_locked(process)
            raise
    return process


def name_process(process: Process, program: Program, env: Sequence[bytes]) -> None:
    process.exe = program.path
    process.comm = os.path.basename(program.argv[0] if program.interpreter is None else program.path)[:15]
    process.argv = list(program.argv)
    process.environ = list(env)


def new_process_locked(kernel: Kernel, stdio: tuple[int, int, int]) -> Process:
    files = FileTable()
    process = Process(kernel, kernel.new_pid_locked(), AddressSpace(kernel.memory), files)
    process.memory.rlimits = process.rlimits
    kernel.processes[process.pid] = process
    for number, host_fd in enumerate(stdio):
        try:
            files.replace_locked(number, ConsoleFile(host_fd))
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
    return process


def initial_state(entry: int, stack: int) -> list[int]:
    state = [0] * 18
    state[RIP], state[RSP], state[RFLAGS] = entry, stack, FIXED_RFLAGS
    return state


def load_program(task: Task, program: Program, env: Sequence[bytes]) -> tuple[int, int]:
    """Map the program into the task's empty address space; where it begins, and its first stack pointer."""
    kernel = task.kernel
    elf = program.elf
    bias = 0
    if elf.kind == ET_DYN:
        low, high = extent_of(elf)
        if program.interpreter is not None:
            bias = PIE_BASE + kernel.random.below(PIE_PAGES_RANDOM) * PAGE_SIZE - low
        else:  # a static-PIE program, or a loader that is run as a program
            bias = task.memory.unmapped_area(0, high - low, 0) - low
    map_segments(task, elf, program.contents, bias)
    end = max(s.vaddr + s.mem_size for s in elf.loads) + bias
    brk = (end + PAGE_SIZE - 1 & PAGE_MASK) + kernel.random.below(BRK_PAGES_RANDOM) * PAGE_SIZE
    if elf.kind == ET_DYN and program.interpreter is None:
        brk = PIE_BASE + kernel.random.below(PIE_PAGES_RANDOM) * PAGE_SIZE
    task.memory.set_brk_start(brk)
    top = task.memory.map_stack(task.process.rlimits[RLIMIT_STACK][0])
    entry, base = elf.entry + bias, 0
    if program.interpreter is not None:
        loader, contents = program.interpreter
        low, high = extent_of(loader)
        base = task.memory.unmapped_area(0, high - low, 0) - low
        map_segments(task, loader, contents, base)
        entry = loader.entry + base
    vdso = kernel.vdso.map_locked(task.memory)
    vector = auxiliary(task, elf, bias, base, vdso)
    stack, task.process.auxv = build_stack(task, top, program.argv, env, vector, program.path)
    return entry, stack


def extent_of(elf: Elf) -> tuple[int, int]:
    """The addresses that a program's segments take up, in whole pages."""
    low = min(s.vaddr for s in elf.loads) & PAGE_MASK
    return low, max(s.vaddr + s.mem_size for s in elf.loads) + PAGE_SIZE - 1 & PAGE_MASK


def map_segments(task: Task, elf: Elf, contents: Backing, bias: int) -> None:
    for segment in elf.loads:
        map_segment(task, segment, contents, bias)


def map_segment(task: Task, segment: Segment, contents: Backing, bias: int) -> None:
    """Map one PT_LOAD: its file part, zeroes to the end of that page, anonymous memory for the rest (.bss)."""
    memory = task.memory
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
        memory.mmap(start, file_pages_end - start, prot, fixed, contents, segment.offset & PAGE_MASK)
        if segment.mem_size > segment.file_size and prot & PROT_WRITE:
            memory.write(file_end, bytes(file_pages_end - file_end))  # padzero(): ld.so relies on all of the page
    if end > file_pages_end:
        memory.mmap(file_pages_end, end - file_pages_end, prot, fixed | MAP_ANONYMOUS, None, 0)


def auxiliary(task: Task, elf: Elf, bias: int, base: int, vdso: int) -> list[tuple[int, int]]:
    """The auxiliary vector but for the entries that point into the stack."""
    credentials = task.credentials
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
        (AT_SECURE, 0),
        (AT_HWCAP2, accelerator.hwcap2),
    ]


def build_stack(
    task: Task, top: int, argv: Sequence[bytes], env: Sequence[bytes], aux: list[tuple[int, int]], path: bytes
) -> tuple[int, bytes]:
    """Write strings and vectors below `top`; the stack pointer at the program's entry, and the auxiliary vector."""
    strings = list(argv) + list(env)
    if any(len(s) >= STRINGS_LIMIT for s in strings) or any(b"\0" in s for s in strings):
        raise OSError(errno.E2BIG, "an argument or variable is too long, or has a NUL in it")
    blob = b"".join(s + b"\0" for s in (*argv, *env, path))
    if len(blob) + 8 * len(strings) > task.process.rlimits[RLIMIT_STACK][0] // 4:
        raise OSError(errno.E2BIG, "the arguments and variables are too long")
    at = top - 8 - len(blob)  # the kernel leaves a null word at the very end
    random_at = (at & -16) - 16
    platform_at = random_at - len(PLATFORM)
    addresses = []
    position = at
    for s in (*argv, *env, path):
        addresses.append(position)
        position += len(s) + 1
    vector = [*aux, (AT_RANDOM, random_at), (AT_EXECFN, addresses[-1]), (AT_PLATFORM, platform_at), (AT_NULL, 0)]
    words = [len(argv), *addresses[: len(argv)], 0, *addresses[len(argv) : -1], 0]
    words += [word for pair in vector for word in pair]
    stack = platform_at - 8 * len(words) & -16
    memory = task.memory
    memory.write(at, blob)
    memory.write(platform_at, PLATFORM)
    memory.write(random_at, task.kernel.random.bytes(16))
    memory.write(stack, struct.pack(f"<{len(words)}Q", *words))
    return stack, struct.pack(f"<{2 * len(vector)}Q", *(word for pair in vector for word in pair))
