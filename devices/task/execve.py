"""execve and execveat: another program takes the place of the caller's (fs/exec.c)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Annotated

from devices.args import Fd, FlagSet, Path, Ptr
from devices.bus import syscall
from devices.errors import SysError, TaskExit
from devices.memory.space import AddressSpace
from devices.signals import altstack, fpstate
from devices.signals.abi import SIGCHLD, SIGSEGV
from devices.task.binfmt import Program, find_program
from devices.task.elf import NotLoadable
from devices.task.exec import initial_state, name_process
from devices.task.identity import SUID_DUMPABLE, commit
from devices.task.loader import LONGEST_STRING, Image, check_room, load_program, room_for_strings
from devices.task.permissions import SUID_DUMP_USER
from devices.task.privilege import credentials_for
from devices.task.rlimits import RLIMIT_STACK
from devices.vfs.abi import AT_EMPTY_PATH, AT_FDCWD, AT_SYMLINK_NOFOLLOW, MAY_READ
from devices.vfs.open import open_for_exec
from devices.vfs.path import LOOKUP_EMPTY, LOOKUP_FOLLOW
from devices.vfs.permissions import inode_permission
from vmm.memory.frames import OutOfFrames

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.task.process import Credentials
    from devices.task.task import Task
    from devices.vfs.path import Path as Place

AT_EXECVE_CHECK = 0x10000
SECURE_STACK_LIMIT = 8 << 20
POINTERS_AT_ONCE = 4096
"""Bytes; a pointer read that crosses into a bad page is tried again with less."""

ExecFlags = Annotated[
    int,
    FlagSet(
        {
            "AT_EMPTY_PATH": AT_EMPTY_PATH,
            "AT_SYMLINK_NOFOLLOW": AT_SYMLINK_NOFOLLOW,
            "AT_EXECVE_CHECK": AT_EXECVE_CHECK,
        }
    ),
]


@syscall("execve", in_place=False)
def execve(task: Task, filename: Path, argv: Ptr, envp: Ptr) -> int:
    """man 2 execve."""
    return execveat(task, AT_FDCWD, filename, argv, envp, 0)


@syscall("execveat", in_place=False)
def execveat(task: Task, fd: Fd, filename: Path, argv: Ptr, envp: Ptr, flags: ExecFlags) -> int:
    """man 2 execveat."""
    if not filename and not flags & AT_EMPTY_PATH:
        raise SysError(errno.ENOENT, "empty path")
    if flags & ~(AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW | AT_EXECVE_CHECK):
        raise SysError(errno.EINVAL, "flags")
    lookup = 0 if flags & AT_SYMLINK_NOFOLLOW else LOOKUP_FOLLOW
    place = open_for_exec(task, fd, filename, lookup | (LOOKUP_EMPTY if flags & AT_EMPTY_PATH else 0))
    if flags & AT_EXECVE_CHECK:
        return 0
    name, script_name, comm = filename, filename, b""
    if fd != AT_FDCWD and not filename.startswith(b"/"):
        name = script_name = b"/dev/fd/%d" % fd + (b"/" + filename if filename else b"")
        comm = b"" if filename else place.dentry.name
        if task.files.cloexec(fd):
            script_name = b""
    words, env = read_arguments(task, name, argv, envp)
    try:
        program = find_program(task, place, name, words, script_name)
    except NotLoadable as error:
        raise SysError(errno.ENOEXEC, str(error)) from None
    run_program_locked(task, program, env, comm)
    return 0


# Arguments


def read_arguments(task: Task, filename: bytes, argv: int, envp: int) -> tuple[list[bytes], list[bytes]]:
    """The program's arguments and variables out of the caller's memory. SysError(EFAULT, E2BIG)."""
    limit = task.process.rlimits[RLIMIT_STACK][0]
    most = room_for_strings(limit, 0) // 8
    arguments, variables = read_pointers(task, argv, most), read_pointers(task, envp, most)
    room = room_for_strings(limit, max(len(arguments), 1) + len(variables)) - len(filename) - 1
    env, room = read_strings(task, variables, room)
    words, _ = read_strings(task, arguments, room)
    return words or [b""], env


def read_pointers(task: Task, address: int, most: int) -> list[int]:
    """The pointers of an array that ends with NULL; none for an array at NULL. SysError(EFAULT, E2BIG)."""
    found: list[int] = []
    while address:
        size = POINTERS_AT_ONCE - address % POINTERS_AT_ONCE
        if size < 8:
            part = [task.memory.read_u64(address)]
        else:
            raw = task.memory.read(address, size & ~7)
            part = memoryview(raw).cast("Q").tolist()
        if 0 in part:
            return found + part[: part.index(0)]
        found += part
        if len(found) > most:
            raise SysError(errno.E2BIG, "too many arguments or variables")
        address += 8 * len(part)
    return found


def read_strings(task: Task, pointers: Sequence[int], room: int) -> tuple[list[bytes], int]:
    """The strings, and what is left of `room` bytes. SysError(EFAULT, E2BIG)."""
    strings = []
    read = task.memory.read_cstring
    for pointer in pointers:
        try:
            text = read(pointer, LONGEST_STRING)
        except SysError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise SysError(errno.E2BIG, "a string is too long") from None
            raise
        room -= len(text) + 1
        if room < 0:
            raise SysError(errno.E2BIG, "the arguments and variables are too long")
        strings.append(text)
    return strings, room


# The change


def run_program_locked(task: Task, program: Program, env: list[bytes], comm: bytes) -> None:
    """Let the task's process be `program` from now on. SysError; TaskExit where there is no way back any more."""
    assert program.place is not None
    process = task.process
    try:
        check_room(process.rlimits[RLIMIT_STACK][0], program.filename, program.argv, env)
        credentials, secure = credentials_for(task, program.place)
        be_alone_locked(task)
    except BaseException:
        program.release_locked()
        raise
    if secure and process.rlimits[RLIMIT_STACK][0] > SECURE_STACK_LIMIT:
        process.rlimits[RLIMIT_STACK] = (SECURE_STACK_LIMIT, process.rlimits[RLIMIT_STACK][1])
    memory = AddressSpace(task.kernel.memory)
    memory.rlimits = process.rlimits
    try:
        image = load_program(task, memory, program, env, credentials, secure)
    except (SysError, OutOfFrames, OSError):
        memory.teardown()
        program.release_locked()
        process.exit_group_locked(SIGSEGV)  # begin_new_exec() was called: nothing is left to return to
        raise TaskExit from None
    program.loaded_locked()
    change_memory_locked(task, memory)
    readable = may_read(task, program.place)
    begin_anew_locked(task)
    take_credentials(task, credentials, secure, readable)
    name_process(task, program, env, comm)
    process.auxv = image.auxv
    enter(task, image)


def be_alone_locked(task: Task) -> None:
    """End the other threads; the caller becomes the leader, whose number it takes (de_thread()). SysError(EAGAIN) when
    another one is doing this; TaskExit."""
    process = task.process
    if process.exec_task is not None:
        raise SysError(errno.EAGAIN, "another thread calls execve")
    if len(process.tasks) > 1:
        process.exec_task = task
        for other in list(process.tasks.values()):
            if other is not task:
                other.killed = True
                other.notify_locked()
        try:
            while len(process.tasks) > 1:
                task.sleep_killable()
        finally:
            process.exec_task = None
    if task.tid != process.pid:
        kernel = task.kernel
        kernel.discard_task_locked(task)
        task.tid = process.pid
        kernel.tasks[task.tid] = process.tasks[task.tid] = process.leader = task


def change_memory_locked(task: Task, memory: AddressSpace) -> None:
    """exec_mmap(): leave the old address space for the new one."""
    process = task.process
    task.release_memory_locked()
    process.note_resident()
    old, process.memory, task.memory = process.memory, memory, memory
    task.cpu.set_address_space(memory.root)
    old.leave()


def begin_anew_locked(task: Task) -> None:
    """What of a process does not outlive its program."""
    process = task.process
    if task.files.users > 1:
        own = task.files.copy()
        task.files.release_locked()
        task.files = own
    process.files = task.files
    task.files.close_on_exec_locked(task)
    process.actions = process.actions.copy(clear=True)
    task.altstack = altstack.NONE
    task.restart_block = None
    process.exit_signal = SIGCHLD
    process.did_exec = True


def may_read(task: Task, place: Place) -> bool:
    try:
        inode_permission(task, place.inode, MAY_READ)
    except SysError:
        return False
    return True


def take_credentials(task: Task, credentials: Credentials, secure: bool, readable: bool) -> None:
    """The task is whom the file makes of it; what may not be read may not be dumped (would_dump())."""
    process = task.process
    if secure:
        task.pdeath_signal = 0
    same = (credentials.uid, credentials.gid) == (credentials.euid, credentials.egid)
    commit(task, credentials)
    process.dumpable = SUID_DUMP_USER if same and readable and not secure else SUID_DUMPABLE


def enter(task: Task, image: Image) -> None:
    """The registers that a program starts with."""
    cpu = task.cpu
    cpu.load(initial_state(image.entry, image.stack))
    cpu.fs_base = cpu.gs_base = 0
    cpu.set_fpu(fpstate.initial(task.kernel.accelerator.fpu_size))
