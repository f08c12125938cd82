"""pipe and pipe2."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from devices.args import Ptr
from devices.bus import syscall
from devices.errors import SysError
from devices.fs.pipe import make_pipe
from devices.task.rlimits import RLIMIT_NOFILE
from devices.vfs.abi import O_CLOEXEC, O_DIRECT, O_NONBLOCK, OpenFlags

if TYPE_CHECKING:
    from devices.task.task import Task


@syscall("pipe")
def pipe(task: Task, pipefd: Ptr) -> int:
    """man 2 pipe."""
    return pipe2(task, pipefd, 0)


@syscall("pipe2")
def pipe2(task: Task, pipefd: Ptr, flags: OpenFlags) -> int:
    if flags & ~(O_CLOEXEC | O_NONBLOCK | O_DIRECT):
        raise SysError(errno.EINVAL, "unknown flag")
    limit = task.process.rlimits[RLIMIT_NOFILE][0]
    reader, writer = make_pipe(task, flags)
    installed: list[int] = []
    try:
        for end in (reader.hold(), writer.hold()):
            installed.append(task.files.install(end, limit, cloexec=bool(flags & O_CLOEXEC)))
        task.memory.write(pipefd, struct.pack("<ii", *installed))
    except SysError:
        for fd in installed:
            task.files.close_locked(fd)
        raise
    finally:
        reader.put_locked()
        writer.put_locked()
    return 0
