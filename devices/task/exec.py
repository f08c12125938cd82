"""Starting a machine's program: found in its root file system or on the host, in a process of its own."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from devices.errors import SysError
from devices.fs.console import ConsoleFile
from devices.memory.space import AddressSpace
from devices.task.binfmt import Program, find_program, load_image, open_image
from devices.task.loader import check_room, load_program
from devices.task.process import Credentials, Process
from devices.task.rlimits import RLIMIT_STACK
from devices.task.task import Task
from devices.task.user import credentials_of
from devices.vfs.abi import AT_FDCWD
from devices.vfs.files import FileTable
from devices.vfs.open import open_for_exec
from devices.vfs.path import LOOKUP_DIRECTORY, LOOKUP_FOLLOW, path_name, walk
from vmm.cpu import FIXED_RFLAGS, RFLAGS, RIP, RSP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from devices.kernel import Kernel
    from devices.vfs.path import Path

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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
                kernel.root_ready_locked(task, stdio)
                process.fs.set_cwd_locked(walk(task, AT_FDCWD, cwd, LOOKUP_FOLLOW | LOOKUP_DIRECTORY))
                if user:
                    task.credentials = credentials_of(task, user)
                place, path = locate(task, argv[0], env)
                program = find_program(task, place, path, argv)
            state = first_program(task, program, env)
            kernel.start_task_locked(task, state)
        except BaseException:
            kernel.abandon_locked(process)
            raise
    return process


def first_program(task: Task, program: Program, env: Sequence[bytes]) -> list[int]:
    """Load a new process's program; the registers that it starts with."""
    process = task.process
    try:
        check_room(process.rlimits[RLIMIT_STACK][0], program.filename, program.argv, env)
        image = load_program(task, process.memory, program, env, task.credentials, False)
    except BaseException:
        program.release_locked()
        raise
    program.loaded_locked()
    process.auxv = image.auxv
    name_process(task, program, env)
    return initial_state(image.entry, image.stack)


def name_process(task: Task, program: Program, env: Sequence[bytes], comm: bytes = b"") -> None:
    """What /proc shows of the program that the process runs from now on; `comm` if that is not its file's name."""
    process = task.process
    old, process.executable = process.executable, program.executable
    if old is not None:
        old.release_locked()
    process.exe = path_name(task, program.place) if program.place is not None else program.filename
    process.comm = task.comm = (comm or os.path.basename(program.filename))[:15]
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
